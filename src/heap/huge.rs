//! Huge pages, for what is large enough to be worth them.
//!
//! A huge page costs a third of the ordinary ones in its place, and spares the processor look-ups
//! for as long as it lives; but it is 2 MiB at once. So small heaps have none: large blocks get
//! them where they fill one, and slabs and runs from the chunk on at which the process has
//! [`HUGE_FROM`] bytes, or [`HUGE_FROM_EACH`] for each thread, so that what is not needed yet stays a small
//! part of it.
//!
//! Private memory is advised, and the system does the rest when it is touched. Shared memory obeys
//! a setting of its own, mostly "never"; but chunks can be made huge at once (`MADV_COLLAPSE`),
//! which is what slabs' chunks get. That is memory at once, touched or not: large blocks of shared memory
//! get it where those before them were soon in memory to their ends (`touches`).
//!
//! All of it is a wish. Where the system has no huge page to give, ordinary ones do.

#![allow(unsafe_code)] // its test writes to a run

use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use super::process::ProcessBlock;
use crate::base::units::CHUNK;
use crate::base::{Error, Result};
use crate::os::{self, HUGE_PAGE};
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Bytes of chunks from which on a process's next one has huge pages.
pub(crate) const HUGE_FROM: u64 = 64 << 20;
/// And so many for each of its thread blocks but the first [`FEW_BLOCKS`]: many threads have many slabs, each of
/// which is used a little.
const HUGE_FROM_EACH: u64 = 32 << 20;
/// What a program with two threads has, beside them: its first thread's block, and one for those that have none.
const FEW_BLOCKS: u64 = 2;
/// Huge pages in a chunk.
const PER_CHUNK: usize = CHUNK / HUGE_PAGE;
/// [`ChunkEntry::huge`](super::chunk::ChunkEntry) where they were asked for all of it.
const ALL: u32 = (1 << PER_CHUNK) - 1;
/// What the end of a block fills at least of a huge page that it gets.
const FILLED: usize = HUGE_PAGE / 4 * 3;

/// Huge pages that a block of so many bytes fills, or nearly.
pub(super) fn huge_pages_of(bytes: usize) -> usize {
    (bytes + HUGE_PAGE - FILLED) / HUGE_PAGE
}

/// What of a heap is to have huge pages. A wish: where the system has none to give, ordinary pages do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// Nothing.
    Never,
    /// What a process takes past its first 64 MiB (where it has more than four thread blocks, 32 MiB for each but
    /// two), what large blocks in private memory fill of huge pages (2 MiB), and large blocks in memfds where the
    /// process uses such blocks to their ends.
    #[default]
    LargeHeaps,
    /// Everything: private memory when it is touched, as far as the system's settings allow, and shared memory from
    /// the first 4 MiB on, as many at a time. A tenth of the page faults, up to half as much memory again, and up to
    /// a fifth less time in programs that take memory all the time (measured with heaps of 15 to 50 MiB).
    Always,
}

/// How often in a row the system refused to collapse shared memory: it says so of what it never will, and of what
/// it cannot just now, for want of room in a file system or in its own tables. Where it did so a few times it
/// is asked seldom from then on, until it does it again.
#[derive(Debug, Default)]
pub(super) struct Refusals(AtomicU32);

impl Refusals {
    /// So many in a row are meant for good, or nearly.
    const ENOUGH: u32 = 4;
    /// Then one wish in so many is one.
    const SELDOM: u32 = 64;

    /// Whether the system is worth asking. What is not asked counts as refused.
    pub(super) fn is_worth_it(&self) -> bool {
        let refused = self.0.load(Relaxed);
        refused < Self::ENOUGH || self.0.fetch_add(1, Relaxed).is_multiple_of(Self::SELDOM)
    }

    /// Notes the system's answer, which it gives back. Where there are just no huge pages to be had, that may
    /// be otherwise the next time.
    pub(super) fn note(&self, answer: Result<()>) -> Result<()> {
        match answer {
            Ok(()) if self.0.load(Relaxed) != 0 => self.0.store(0, Relaxed),
            Err(Error::Unsupported) => {
                self.0.fetch_add(1, Relaxed);
            }
            _ => {}
        }
        answer
    }
}

impl ProcessBlock {
    /// Whether the process has so much memory that its next chunk should have huge pages.
    fn is_large(&self) -> bool {
        let blocks = u64::from(self.blocks.load(Relaxed)).saturating_sub(FEW_BLOCKS);
        let each = HUGE_FROM_EACH.saturating_mul(blocks);
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
        let want = self.is_whole(chunk)
            && match self.huge {
                HugePages::Never => false,
                HugePages::LargeHeaps => self.process(process).is_large(),
                // Private memory was advised as a whole.
                HugePages::Always => self.region().is_shared(),
            };
        let at = self.base().addr() + chunk.0 as usize * CHUNK;
        if !self.region().is_shared() {
            let asked = if want { ALL } else { 0 };
            if entry.huge.swap(asked, Relaxed) != asked {
                let _ =
                    if want { os::advise_huge(at, CHUNK) } else { os::advise_ordinary(at, CHUNK) };
            }
        } else if want
            // A region inside another may begin anywhere: half a huge page is none.
            && at.is_multiple_of(HUGE_PAGE)
            && entry.dirty.load(Relaxed) == 0
            && self.refusals.is_worth_it()
        {
            // Before there is memory, which nobody would give back if the process died here.
            entry.dirty.store(u64::MAX, Relaxed);
            // Where none are to be had, ordinary ones come as they are touched.
            if self.refusals.note(os::populate_huge(at, CHUNK)).is_ok() {
                entry.full.store(u64::MAX, Relaxed);
            }
        }
    }

    /// Asks for huge pages behind a large block of private memory, as far as it fills them. A page more for its
    /// tail would be up to 2 MiB that nobody asked for.
    pub(super) fn advise_huge_block(&self, first: ChunkIdx, bytes: usize) {
        if self.huge != HugePages::LargeHeaps || self.region().is_shared() {
            return;
        }
        let pages = huge_pages_of(bytes);
        let asked = |page: usize| {
            let entry = self.chunk(ChunkIdx(first.0 + (page / PER_CHUNK) as u32));
            let (had, bit) = (entry.huge.load(Relaxed), 1 << (page % PER_CHUNK));
            entry.huge.store(had | bit, Relaxed);
            had & bit != 0
        };
        let base = self.base().addr() + first.0 as usize * CHUNK;
        let advise = |from: usize, to: usize| {
            if from < to {
                let _ = os::advise_huge(base + from * HUGE_PAGE, (to - from) * HUGE_PAGE);
            }
        };
        let mut start = 0;
        for page in 0..pages {
            if asked(page) {
                advise(start, page);
                start = page + 1;
            }
        }
        advise(start, pages);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::granule::GranuleIdx;
    use super::super::layout::TableSizes;
    use super::super::liveness::Joining;
    use super::super::process::MAX_RUN;
    use super::*;
    use crate::base::align_up;
    use crate::base::units::{GRANULE, MIB};
    use crate::region::{Backend, MemfdBackend, PosixMmap, Region, RegionOptions};

    /// Whether the system has a huge page now for another memfd.
    pub(in super::super) fn has_huge_pages() -> bool {
        let options = RegionOptions::new().capacity(16 * MIB);
        let region = MemfdBackend::create("", &options).unwrap();
        let at = align_up(region.base().addr() + 4096, HUGE_PAGE).unwrap();
        os::populate_huge(at, HUGE_PAGE).is_ok()
    }

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
            assert!(!has_huge_pages(), "it is only not done where it cannot be");
        } else {
            assert_eq!(entry.huge.load(Relaxed), ALL);
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

    /// Whoever wants huge pages always has them from the first whole chunk on.
    #[test]
    fn small_heaps_get_huge_pages_where_that_is_wanted() {
        for (huge, wanted) in [(HugePages::Always, true), (HugePages::LargeHeaps, false)] {
            let options = RegionOptions::new().capacity(64 * MIB);
            let region = MemfdBackend::create("", &options).unwrap();
            let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
            heap.set_huge(huge);
            let process = heap.register(Joining { max_blocks: 1, ..Joining::default() }).unwrap();
            // The first one has the tables in it, too.
            let chunk = RegionHeap::chunk_of(grow(&heap, process, 2 * CHUNK as u64)).0;
            let full = heap.chunk(chunk).full.load(Relaxed);
            assert!(full == if wanted { u64::MAX } else { 0 } || wanted && !has_huge_pages());
        }
    }

    /// What the system refuses now it may not refuse later; what it always refuses it is asked for seldom.
    #[test]
    fn a_refusal_is_not_for_good() {
        // Where they are refused for good, or there are none just now, there is nothing to see.
        if !has_huge_pages() {
            return;
        }
        let options = RegionOptions::new().capacity(512 * MIB);
        let region = MemfdBackend::create("", &options).unwrap();
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let process = heap.register(Joining { max_blocks: 1, ..Joining::default() }).unwrap();
        grow(&heap, process, HUGE_FROM);
        let (base, len) = (heap.base().addr(), heap.region().len());
        // A chunk that is asked for has memory, or may have.
        let next = || {
            let run = grow(&heap, process, heap.process(process).owns() + CHUNK as u64);
            let entry = heap.chunk(RegionHeap::chunk_of(run).0);
            (entry.dirty.load(Relaxed) == u64::MAX, entry.full.load(Relaxed) == u64::MAX)
        };
        for _ in 0..2 {
            // Here the system says what it says of memory that never has huge pages.
            os::advise_ordinary(base, len).unwrap();
            for _ in 1..Refusals::ENOUGH {
                assert_eq!(next(), (true, false));
            }
            os::advise_huge(base, len).unwrap();
            let given = || {
                let (asked, given) = next();
                assert!(asked);
                given
            };
            if !(0..3).any(|_| given()) {
                assert!(!has_huge_pages());
                return;
            }
        }
        os::advise_ordinary(base, len).unwrap();
        let asked = (0..3 * Refusals::ENOUGH).filter(|_| next().0).count() as u32;
        assert_eq!(asked, Refusals::ENOUGH);
    }

    #[test]
    fn refusals_in_a_row_make_wishes_seldom() {
        let refusals = Refusals::default();
        let refused = Err(Error::Unsupported);
        // That there is none just now is no refusal.
        for _ in 0..2 * Refusals::ENOUGH {
            let none = Err(Error::OutOfMemory { requested: CHUNK, available: 0 });
            assert!(refusals.is_worth_it() && refusals.note(none) == none);
        }
        let mut asked = 0;
        for _ in 0..4 * Refusals::SELDOM {
            if refusals.is_worth_it() {
                assert_eq!(refusals.note(refused), refused);
                asked += 1;
            }
        }
        assert!((Refusals::ENOUGH + 3..=Refusals::ENOUGH + 4).contains(&asked), "{asked}");
        while !refusals.is_worth_it() {}
        assert_eq!(refusals.note(Ok(())), Ok(()));
        assert!(
            (0..Refusals::ENOUGH)
                .all(|_| { refusals.is_worth_it() && refusals.note(refused).is_err() })
        );
        assert!(!refusals.is_worth_it());
    }

    /// Large blocks of private memory have huge pages as far as they fill them, and what they may fill counts as
    /// touched.
    #[test]
    fn private_blocks_ask_for_what_they_fill() {
        let options = RegionOptions::new().capacity(64 * MIB);
        let region = PosixMmap::create("", &options).unwrap();
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let process = heap.register(Joining { max_blocks: 1, ..Joining::default() }).unwrap();
        let owner = heap.take_block(process).unwrap();
        let take = |size| heap.allocate_large(process, owner, size, 1, 0, false).unwrap().0;
        let found = |head, chunk: u32| {
            let entry = heap.chunk(ChunkIdx(RegionHeap::chunk_of(head).0.0 + chunk));
            (entry.huge.load(Relaxed), entry.dirty.load(Relaxed))
        };
        let half = u64::from(u32::MAX);
        let short = take(3 * MIB);
        assert_eq!(found(short, 0), (1, u64::MAX));
        let nearly = take(CHUNK + FILLED);
        assert_eq!((found(nearly, 0), found(nearly, 1)), ((ALL, u64::MAX), (1, half)));
        let less = take(CHUNK + FILLED - 4096);
        assert_eq!((found(less, 0), found(less, 1)), ((ALL, u64::MAX), (0, half)));
        assert!(heap.resize_large(less, CHUNK + 3 * MIB));
        assert_eq!(found(less, 1), (1, u64::MAX));
        // Slabs and runs in such a chunk have ordinary pages again.
        assert!(heap.free_large(process, short));
        let chunk_of = |granule| RegionHeap::chunk_of(granule).0;
        while chunk_of(heap.take_run(process, MAX_RUN, 1, 0).unwrap().first) != chunk_of(short) {}
        assert_eq!(found(short, 0).0, 0);
    }

    /// What is large for one thread is not for many, of which each has a few chunks.
    #[test]
    fn a_heap_of_many_threads_is_large_later() {
        let options = RegionOptions::new().capacity(256 * MIB);
        let region = MemfdBackend::create("", &options).unwrap();
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let joining = Joining { max_blocks: 5, ..Joining::default() };
        let process = heap.register(joining).unwrap();
        grow(&heap, process, HUGE_FROM);
        let is_large = || heap.process(process).is_large();
        let blocks = [(); 4].map(|()| heap.take_block(process).unwrap());
        assert!(is_large());
        let fifth = heap.take_block(process).unwrap();
        assert!(!is_large());
        grow(&heap, process, 3 * HUGE_FROM_EACH);
        assert!(is_large());
        assert!(blocks.iter().all(|&id| id != fifth));
    }

    /// A chunk that does not begin where a huge page may is not taken for one that has its memory.
    #[test]
    fn half_a_huge_page_is_none() {
        let options = RegionOptions::new().capacity(256 * MIB);
        let around = MemfdBackend::create("", &options).unwrap();
        let inner = RegionOptions::new().capacity(200 * MIB);
        // SAFETY: nobody else uses it.
        let region = unsafe { around.nest((2 * MIB + GRANULE) as u64, &inner) }.unwrap();
        assert!(!region.base().addr().is_multiple_of(HUGE_PAGE));
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let joining = Joining { max_blocks: 2, ..Joining::default() };
        let process = heap.register(joining).unwrap();
        let run = grow(&heap, process, HUGE_FROM + CHUNK as u64);
        let (chunk, _) = RegionHeap::chunk_of(run);
        assert_eq!(heap.chunk(chunk).full.load(Relaxed), 0);
        assert_eq!(os::resident(heap.granule_addr(run).addr(), CHUNK), Ok(0));
    }

    #[test]
    fn chunks_of_large_heaps_get_huge_pages() {
        let options = RegionOptions::new().capacity(256 * MIB);
        check(MemfdBackend::create("", &options).unwrap(), true);
        check(PosixMmap::create("", &options).unwrap(), false);
    }
}
