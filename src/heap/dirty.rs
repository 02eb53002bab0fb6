//! Which memory of chunks holds anything, what large blocks find there, and what goes back to the system.
//!
//! A granule whose dirty bit is clear reads as zero and has no memory. Of a large block the granules up
//! to its end are dirty, so that what is behind it in its last chunk stays known to be zero.
//!
//! Memory of free chunks is kept for large blocks, twice what a process retains; and no more than half of that
//! where blocks would otherwise come to more than ever before, because no free place has enough of it
//! side by side.
#![allow(unsafe_code)] // clears and purges memory of chunks that are nobody's

use core::ops::Range;

use super::chunk::ChunkEntry;
use super::granule::GranuleIdx;
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use crate::base::bits::run_mask;
use crate::base::units::{CHUNK, GRANULE};
use crate::os::HUGE_PAGE;
use crate::sync::atomic::Ordering::Relaxed;

impl RegionHeap {
    /// Notes that `bytes` of a large block, counted from its first chunk, may hold anything from now on.
    pub(super) fn mark_dirty(&self, first: ChunkIdx, bytes: Range<usize>) {
        // A huge page that private memory gets by itself is there as a whole.
        let unit = if self.region().is_shared() { GRANULE } else { HUGE_PAGE };
        let bytes = bytes.start..bytes.end.next_multiple_of(unit);
        for (entry, mask) in self.granules_of(first, bytes) {
            entry.dirty.store(entry.dirty.load(Relaxed) | mask, Relaxed);
        }
    }

    /// Whether none of those bytes of a large block holds anything, or has memory.
    pub(super) fn is_clean(&self, first: ChunkIdx, bytes: Range<usize>) -> bool {
        self.granules_of(first, bytes).all(|(entry, mask)| entry.dirty.load(Relaxed) & mask == 0)
    }

    /// Whether all of them may hold something.
    pub(super) fn is_dirty(&self, first: ChunkIdx, bytes: Range<usize>) -> bool {
        self.granules_of(first, bytes).all(|(entry, mask)| entry.dirty.load(Relaxed) & mask == mask)
    }

    /// The chunks that those bytes from the beginning of chunk `first` lie in, with the granules of each.
    fn granules_of(
        &self,
        first: ChunkIdx,
        bytes: Range<usize>,
    ) -> impl Iterator<Item = (&ChunkEntry, u64)> {
        (bytes.start / CHUNK..bytes.end.div_ceil(CHUNK)).map(move |distance| {
            let start = distance * CHUNK;
            let from = bytes.start.saturating_sub(start) / GRANULE;
            let to = (bytes.end - start).min(CHUNK).div_ceil(GRANULE);
            let mask = if from < to { run_mask(from as u32, (to - from) as u32) } else { 0 };
            (self.chunk(ChunkIdx(first.0 + distance as u32)), mask)
        })
    }

    /// Writes zeros over what is dirty of a large block that nobody has seen yet.
    pub(super) fn clear_dirty(&self, first: ChunkIdx, bytes: usize) {
        for distance in 0..bytes.div_ceil(CHUNK) {
            let chunk = ChunkIdx(first.0 + distance as u32);
            let start = chunk.0 as usize * CHUNK;
            let end = first.0 as usize * CHUNK + bytes;
            let mut left = self.chunk(chunk).dirty.load(Relaxed);
            while left != 0 {
                let bit = left.trailing_zeros();
                let count = (left >> bit).trailing_ones();
                left &= !run_mask(bit, count);
                let from = start + bit as usize * GRANULE;
                let to = (from + count as usize * GRANULE).min(end);
                if from < to {
                    let granule = GranuleIdx((from / GRANULE) as u32);
                    // SAFETY: the range lies in the block, which is committed and the caller's alone.
                    unsafe { self.granule_addr(granule).write_bytes(0, to - from) };
                }
            }
        }
    }

    /// Gives memory of free chunks back before a block that takes new memory raises what the process has of it: what is
    /// free may be as much as the process's large blocks were once more than they are now, or half of what
    /// is retained.
    pub(super) fn hold_peak(&self, process: ProcessSlot) {
        let block = self.process(process);
        let used = block.large.load(Relaxed);
        let most = self.most_large.fetch_max(used, Relaxed).max(used);
        let keep = ((most - used) as usize).max(block.retained() / 2);
        if self.resident_free_chunks() > keep {
            self.purge_all_but(ChunkIdx(0), 0, keep);
        }
    }

    /// Gives memory of free chunks back until at most `keep` bytes of it are resident, that of the
    /// `count` chunks from `first` last: they were just freed, so they are warm.
    pub(super) fn purge_all_but(&self, first: ChunkIdx, count: u32, keep: usize) {
        let _guard = self.lock_source();
        let mut resident = self.resident_free_chunks();
        let warm = first.0..first.0 + count;
        for spare_warm in [true, false] {
            self.for_each_recycled(|chunk, entry| {
                let dirty = entry.dirty.load(Relaxed).count_ones() as usize * GRANULE;
                if resident > keep && dirty > 0 && !(spare_warm && warm.contains(&chunk.0)) {
                    self.purge_chunks(chunk, 1);
                    resident = resident.saturating_sub(dirty);
                }
            });
        }
    }

    /// Bytes of free chunks that may still be resident.
    pub(super) fn resident_free_chunks(&self) -> usize {
        let mut resident = 0;
        self.for_each_recycled(|_, entry| {
            resident += entry.dirty.load(Relaxed).count_ones() as usize * GRANULE;
        });
        resident
    }

    /// Gives the memory of all free chunks back to the system.
    pub(crate) fn purge_recycled(&self) {
        let _guard = self.lock_source();
        self.for_each_recycled(|chunk, entry| {
            if entry.dirty.load(Relaxed) != 0 {
                self.purge_chunks(chunk, 1);
            }
        });
    }

    fn for_each_recycled(&self, mut visit: impl FnMut(ChunkIdx, &ChunkEntry)) {
        let fresh = self.source().fresh.load(Relaxed).min(self.chunk_count());
        for word in 0..fresh.div_ceil(64) {
            let mut left = self.recycled(word).load(Relaxed);
            while left != 0 {
                let chunk = ChunkIdx(word * 64 + left.trailing_zeros());
                left &= left - 1;
                visit(chunk, self.chunk(chunk));
            }
        }
    }

    /// Gives the memory of `count` chunks from `first`, which nobody uses, back to the system;
    /// afterwards it is zero.
    pub(super) fn purge_chunks(&self, first: ChunkIdx, count: u32) {
        let (start, len) = (first.0 as usize * CHUNK, count as usize * CHUNK);
        let len = len.min(self.region().len().saturating_sub(start));
        // SAFETY: the chunks were just freed and not released yet, or are free and locked.
        if !unsafe { self.purge(start, len) } {
            return;
        }
        for index in first.0..first.0 + count {
            let entry = self.chunk(ChunkIdx(index));
            entry.dirty.store(0, Relaxed);
            entry.full.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::granule::BlockId;
    use super::super::huge::HugePages;
    use super::super::layout::TableSizes;
    use super::super::liveness::Joining;
    use super::super::process::MAX_RUN;
    use super::super::verify::verify;
    use super::*;
    use crate::base::units::{MIB, PAGE};
    use crate::os;
    use crate::region::{Backend, MemfdBackend, PosixMmap, PosixShmMmap, Region, RegionOptions};

    struct Test {
        heap: RegionHeap,
        process: ProcessSlot,
        owner: BlockId,
    }

    impl Test {
        fn new(region: Region) -> Test {
            let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
            let process = heap.register(Joining { max_blocks: 1, ..Joining::default() }).unwrap();
            let owner = heap.take_block(process).unwrap();
            Test { heap, process, owner }
        }
        fn both() -> [Test; 2] {
            let options = RegionOptions::new().capacity(512 * MIB);
            [
                Test::new(MemfdBackend::create("", &options).unwrap()),
                Test::new(PosixMmap::create("", &options).unwrap()),
            ]
        }
        fn take(&self, size: usize, room: usize, zeros: bool) -> (GranuleIdx, bool) {
            self.heap.allocate_large(self.process, self.owner, size, 1, room, zeros).unwrap()
        }
        /// Whether a look at each page finds zeros only, which are then no more.
        fn was_zero(&self, head: GranuleIdx, bytes: Range<usize>) -> bool {
            let mut found = 0;
            for at in bytes.step_by(PAGE / 2) {
                // SAFETY: within a block of this test's.
                unsafe {
                    let byte = self.heap.granule_addr(head).add(at);
                    found |= byte.read();
                    byte.write(1);
                }
            }
            found == 0
        }
    }

    /// Blocks of all lengths come, grow, shrink and go: what is said to be zero is, whoever had it before.
    #[test]
    fn what_is_zero_is_known() {
        for test in Test::both() {
            let mut state = 1u64;
            let mut random = |below: usize| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as usize % below
            };
            let mut live: Vec<(GranuleIdx, usize)> = Vec::new();
            let mut zeroed_again = 0;
            for turn in 0..300 {
                if live.len() > 5 {
                    let (head, size) = live.swap_remove(random(live.len()));
                    let resized = 2 * MIB + random(10 * MIB);
                    if turn % 3 == 0 && test.heap.resize_large(head, resized) {
                        test.was_zero(head, size.min(resized)..resized);
                        live.push((head, resized));
                        continue;
                    }
                    assert!(test.heap.free_large(test.process, head));
                }
                let size = 2 * MIB + random(10 * MIB);
                let zeros = turn % 2 == 0;
                let (head, zeroed) = test.take(size, size * (1 + turn % 5 / 4), zeros);
                assert!(zeroed || !zeros);
                let was_zero = test.was_zero(head, 0..size);
                assert!(was_zero || !zeroed);
                zeroed_again += u32::from(zeroed && !zeros);
                live.push((head, size));
            }
            assert!(zeroed_again > 0);
            verify(&test.heap, core::iter::empty()).unwrap();
        }
    }

    /// What lies behind a block's end in its last chunk has no memory, and is not cleared for the next.
    #[test]
    fn what_is_behind_the_end_stays_clean() {
        let [mut test, _] = Test::both();
        test.heap.set_huge(HugePages::Never);
        let (head, _) = test.take(CHUNK + MIB, 0, false);
        test.was_zero(head, 0..CHUNK + MIB);
        let (first, _) = RegionHeap::chunk_of(head);
        assert!(test.heap.is_dirty(first, 0..CHUNK + MIB));
        assert!(test.heap.is_clean(first, CHUNK + MIB..2 * CHUNK));
        assert!(test.heap.free_large(test.process, head));
        assert_eq!(test.heap.resident_free_chunks(), CHUNK + MIB);
        let (head, _) = test.take(2 * CHUNK, 0, true);
        let at = test.heap.granule_addr(head).addr();
        // What was used is warm, the rest comes as it is touched.
        assert_eq!(os::resident(at, CHUNK + MIB), Ok(CHUNK + MIB));
        assert_eq!(os::resident(at + CHUNK + MIB, CHUNK - MIB), Ok(0));
        assert!(test.was_zero(head, 0..2 * CHUNK));
    }

    /// What the system once would not take back of a committed chunk, and a large block did, is not taken for
    /// committed by the runs that come there later.
    #[test]
    fn what_a_large_block_gave_back_is_committed_again() {
        let name = format!("hshm-dirty-{}", std::process::id());
        let options = RegionOptions::new().capacity(64 * MIB);
        let region = PosixShmMmap::create(&name, &options).unwrap();
        PosixShmMmap::destroy(&name).unwrap();
        let test = Test::new(region);
        let heap = &test.heap;
        assert!(heap.must_commit());
        let (head, _) = test.take(3 * CHUNK, 0, false);
        assert!(heap.free_large(test.process, head));
        let (first, _) = RegionHeap::chunk_of(head);
        for chunk in first.0..first.0 + 3 {
            heap.chunk(ChunkIdx(chunk)).full.store(u64::MAX, Relaxed);
        }
        assert_eq!(test.take(3 * CHUNK, 0, false).0, head);
        assert!(heap.resize_large(head, CHUNK + GRANULE));
        assert!(heap.free_large(test.process, head));
        let bytes = MAX_RUN as usize * GRANULE;
        for _ in 0..6 {
            let run = heap.take_run(test.process, MAX_RUN, 1, 0).unwrap();
            let desc = heap.desc(run.first);
            desc.committed.store(run.committed, Relaxed);
            heap.commit_run(run.first, bytes).unwrap();
            assert_eq!(os::resident(heap.granule_addr(run.first).addr(), bytes), Ok(bytes));
        }
    }

    /// Free places that are too short for what comes next do not add to the most that was ever in use.
    #[test]
    fn scattered_free_chunks_raise_no_peak() {
        for test in Test::both() {
            let blocks = [(); 16].map(|()| test.take(CHUNK, 0, false).0);
            for &head in &blocks {
                test.was_zero(head, 0..CHUNK);
            }
            for &head in blocks.iter().step_by(2) {
                assert!(test.heap.free_large(test.process, head));
            }
            assert_eq!(test.heap.resident_free_chunks(), 8 * CHUNK);
            // As much as is free, none of which will do.
            for chunks in [2, 2, 2, 2] {
                let (head, zeroed) = test.take(chunks * CHUNK, 0, false);
                assert!(zeroed);
                test.was_zero(head, 0..chunks * CHUNK);
                let used = test.heap.process(test.process).large.load(Relaxed) as usize;
                let kept = test.heap.resident_free_chunks();
                let least = test.heap.process(test.process).retained() / 2;
                assert!(kept <= (16 * CHUNK - used).max(least), "{kept}");
            }
            assert!(test.heap.resident_free_chunks() > 0, "some is kept");
            verify(&test.heap, core::iter::empty()).unwrap();
        }
    }
}
