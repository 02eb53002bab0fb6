//! Huge pages, for what is large enough to be worth them.
//!
//! A huge page costs a third of the ordinary ones in its place, and spares the processor look-ups
//! for as long as it lives; but it is 2 MiB at once. So small heaps have none: large blocks get
//! them where they fill whole chunks, and slabs and runs from the chunk on at which the process has
//! [`HUGE_FROM`] bytes, and half as many for each thread, so that what is not needed yet stays a small
//! part of it.
//!
//! Private memory is advised, and the system does the rest when it is touched. Shared memory obeys
//! a setting of its own, mostly "never"; but chunks can be made huge at once (`MADV_COLLAPSE`),
//! which is what slabs' chunks get. Large blocks of shared memory get ordinary pages: nobody knows
//! how much of them will ever be touched.
//!
//! All of it is a wish. Where the system has no huge page to give, ordinary ones do.

#![allow(unsafe_code)] // its test writes to a run

use super::granule::GranuleIdx;
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use super::process::ProcessBlock;
use crate::base::Error;
use crate::base::units::CHUNK;
use crate::os;
use crate::sync::atomic::Ordering::Relaxed;

/// Bytes of chunks from which on a process's next one has huge pages.
pub(crate) const HUGE_FROM: u64 = 64 << 20;
/// And so many for each of its thread blocks: many threads have many slabs, each of which is used a little.
const HUGE_FROM_EACH: u64 = 32 << 20;

/// What of a heap is to have huge pages. A wish: where the system has none to give, ordinary pages do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// Nothing.
    Never,
    /// What a process takes past its first 64 MiB (32 MiB a thread, where it has more than two), and the whole chunks (4 MiB) of large blocks in
    /// private memory.
    #[default]
    LargeHeaps,
    /// Everything that the system's settings allow: shared memory is mostly exempt by them
    /// (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`).
    Always,
}

impl ProcessBlock {
    /// Whether the process has so much memory that its next chunk should have huge pages.
    fn is_large(&self) -> bool {
        let each = HUGE_FROM_EACH.saturating_mul(self.blocks.load(Relaxed).into());
        self.owns() >= each.max(HUGE_FROM)
    }
}

impl RegionHeap {
    /// Sets what is to have huge pages.
    pub(crate) fn set_huge(&mut self, huge: HugePages) {
        self.huge = huge;
        if huge == HugePages::Always {
            let _ = os::advise_huge(self.base().addr(), self.region().len());
        }
    }

    /// Chooses the pages of a chunk that `process` took for slabs and runs, which touch a page here
    /// and there: ordinary ones, unless it has so much memory that huge ones are worth it. Under the
    /// process's lock, before anything of the chunk is used.
    pub(super) fn choose_pages(&self, process: ProcessSlot, chunk: ChunkIdx) {
        let entry = self.chunk(chunk);
        let large = self.process(process).is_large();
        let want = self.huge == HugePages::LargeHeaps && large && self.is_whole(chunk);
        let at = self.base().addr() + chunk.0 as usize * CHUNK;
        if !self.region().is_shared() {
            if entry.huge.swap(want.into(), Relaxed) != want.into() {
                let _ =
                    if want { os::advise_huge(at, CHUNK) } else { os::advise_ordinary(at, CHUNK) };
            }
        } else if want && entry.dirty.load(Relaxed) == 0 && !self.huge_refused.load(Relaxed) {
            // Before there is memory, which nobody would give back if the process died here.
            entry.dirty.store(u64::MAX, Relaxed);
            match os::populate_huge(at, CHUNK) {
                Ok(()) => entry.full.store(u64::MAX, Relaxed),
                Err(Error::Unsupported) => self.huge_refused.store(true, Relaxed),
                // None to be had now.
                Err(_) => {}
            }
        }
    }

    /// Asks for huge pages behind the chunks that a large block fills. A page more for the block's
    /// tail would be up to 2 MiB that nobody asked for.
    pub(super) fn advise_huge_block(&self, head: GranuleIdx, bytes: usize) {
        if self.huge != HugePages::LargeHeaps || self.region().is_shared() {
            return;
        }
        let first = Self::chunk_of(head).0.0;
        let chunks = first..first + (bytes / CHUNK) as u32;
        let asked = |index: u32| self.chunk(ChunkIdx(index)).huge.swap(1, Relaxed) == 1;
        let mut start = chunks.start;
        for index in chunks.clone() {
            if asked(index) {
                self.advise_huge_chunks(start, index);
                start = index + 1;
            }
        }
        self.advise_huge_chunks(start, chunks.end);
    }

    fn advise_huge_chunks(&self, from: u32, to: u32) {
        if from < to {
            let at = self.base().addr() + from as usize * CHUNK;
            let _ = os::advise_huge(at, (to - from) as usize * CHUNK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::TableSizes;
    use super::super::liveness::Joining;
    use super::super::process::MAX_RUN;
    use super::*;
    use crate::base::units::{GRANULE, MIB};
    use crate::region::{Backend, MemfdBackend, PosixMmap, Region, RegionOptions};

    /// Takes runs until the process owns `bytes`, and returns the last.
    fn grow(heap: &RegionHeap, process: ProcessSlot, bytes: u64) -> GranuleIdx {
        loop {
            let run = heap.take_run(process, MAX_RUN, 1, 0).unwrap();
            if heap.process(process).owns() >= bytes {
                return run.first;
            }
            heap.commit_run(run.first, MAX_RUN as usize * GRANULE).unwrap();
        }
    }

    fn check(region: Region, shared: bool) {
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let joining = Joining { max_blocks: 4, ..Joining::default() };
        let process = heap.register(joining).unwrap();
        let small = RegionHeap::chunk_of(grow(&heap, process, HUGE_FROM)).0;
        assert_eq!(heap.chunk(small).full.load(Relaxed), 0, "the heap is still small");
        let run = grow(&heap, process, HUGE_FROM + CHUNK as u64);
        let (chunk, bit) = RegionHeap::chunk_of(run);
        let at = heap.base().addr() + chunk.0 as usize * CHUNK;
        let entry = heap.chunk(chunk);
        if entry.full.load(Relaxed) == u64::MAX {
            assert!(shared);
            assert_eq!(os::resident(at, CHUNK), Ok(CHUNK));
            assert_eq!(entry.dirty.load(Relaxed), u64::MAX);
        } else if shared {
            assert!(heap.huge_refused.load(Relaxed), "it is only not done where it cannot be");
        } else {
            assert_eq!(entry.huge.load(Relaxed), 1);
        }
        // SAFETY: the run is this test's; what is committed may be read and written.
        unsafe {
            heap.commit_run(run, GRANULE).unwrap();
            let place = heap.granule_addr(run);
            assert_eq!(place.read(), 0);
            place.write(1);
        }
        // Given back, a huge page is no different from others.
        let committed = heap.committed(run) as u32;
        heap.return_run(process, run, MAX_RUN, committed);
        heap.trim(process);
        let mask = u64::from(u32::MAX) << bit;
        assert_eq!((entry.dirty.load(Relaxed) | entry.full.load(Relaxed)) & mask, 0);
        let start = at + bit as usize * GRANULE;
        assert_eq!(os::resident(start, MAX_RUN as usize * GRANULE), Ok(0));
    }

    /// What is large for one thread is not for many, of which each has a few chunks.
    #[test]
    fn a_heap_of_many_threads_is_large_later() {
        let options = RegionOptions::new().capacity(256 * MIB);
        let region = MemfdBackend::create("", &options).unwrap();
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let joining = Joining { max_blocks: 4, ..Joining::default() };
        let process = heap.register(joining).unwrap();
        grow(&heap, process, HUGE_FROM);
        let is_large = || heap.process(process).is_large();
        let blocks = [(); 2].map(|()| heap.take_block(process).unwrap());
        assert!(is_large());
        let third = heap.take_block(process).unwrap();
        assert!(!is_large());
        grow(&heap, process, 3 * HUGE_FROM_EACH);
        assert!(is_large());
        assert!(blocks.iter().all(|&id| id != third));
    }

    #[test]
    fn chunks_of_large_heaps_get_huge_pages() {
        let options = RegionOptions::new().capacity(256 * MIB);
        check(MemfdBackend::create("", &options).unwrap(), true);
        check(PosixMmap::create("", &options).unwrap(), false);
    }
}
