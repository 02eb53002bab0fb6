//! Huge pages, for what is large enough to be worth them.
//!
//! A huge page costs a third of the ordinary ones in its place, and spares the processor look-ups
//! for as long as it lives; but it is 2 MiB at once. So small heaps have none: large blocks get
//! them where they fill whole chunks, and slabs and runs from the chunk on at which the process has
//! [`HUGE_FROM`] bytes, or [`HUGE_FROM_EACH`] for each thread, so that what is not needed yet stays a small
//! part of it.
//!
//! Private memory is advised, and the system does the rest when it is touched. Shared memory obeys
//! a setting of its own, mostly "never"; but chunks can be made huge at once (`MADV_COLLAPSE`),
//! which is what slabs' chunks get. That is memory at once, touched or not: large blocks of shared memory
//! get it where those before them were soon in memory to their ends ([`Touches`]).
//!
//! All of it is a wish. Where the system has no huge page to give, ordinary ones do.

#![allow(unsafe_code)] // its test writes to a run

use super::granule::GranuleIdx;
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use super::process::ProcessBlock;
use crate::base::units::{CHUNK, PAGE};
use crate::base::{Error, Result};
use crate::os::{self, HUGE_PAGE};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Bytes of chunks from which on a process's next one has huge pages.
pub(crate) const HUGE_FROM: u64 = 64 << 20;
/// And so many for each of its thread blocks but the first [`FEW_BLOCKS`]: many threads have many slabs, each of
/// which is used a little.
const HUGE_FROM_EACH: u64 = 32 << 20;
/// Chunks that are made huge in one call: it waits for every processor once, and one that fails is the last.
const AT_ONCE: u32 = 8;
/// What a program with two threads has, beside them: its first thread's block, and one for those that have none.
const FEW_BLOCKS: u64 = 2;

/// What of a heap is to have huge pages. A wish: where the system has none to give, ordinary pages do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// Nothing.
    Never,
    /// What a process takes past its first 64 MiB (where it has more than four thread blocks, 32 MiB for each but
    /// two), the whole chunks (4 MiB) of large blocks in private memory, and large blocks in memfds (2 MiB at a
    /// time) where the process uses such blocks to their ends.
    #[default]
    LargeHeaps,
    /// Everything that the system's settings allow: shared memory is mostly exempt by them
    /// (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`).
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
    fn is_worth_it(&self) -> bool {
        let refused = self.0.load(Relaxed);
        refused < Self::ENOUGH || self.0.fetch_add(1, Relaxed).is_multiple_of(Self::SELDOM)
    }

    /// Notes the system's answer, which it gives back. Where there are just no huge pages to be had, that may
    /// be otherwise the next time.
    fn note(&self, answer: Result<()>) -> Result<()> {
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

/// How a process uses its large blocks of shared memory: whether those that it took last, which had no memory and
/// got ordinary pages, have memory wherever it is looked for by the time the next is taken, or when they are
/// freed. A guess: what threads do at once may make it wrong, no more.
#[derive(Debug, Default)]
pub(super) struct Touches {
    /// How many in a row had.
    whole: AtomicU32,
    /// Pages of the largest of those.
    largest: AtomicU32,
    /// Blocks that were expected to.
    expected: AtomicU32,
    /// Blocks that have not shown it yet: first chunk + 1 in the upper half, pages in the lower; 0 for none.
    open: [AtomicU64; 4],
    /// Where the next of them goes, modulo their number.
    next: AtomicU32,
}

impl Touches {
    /// So many in a row make it likely that the next is touched to its end, too.
    const ENOUGH: u32 = 2;
    /// One in so many of those that are expected to be is left to show it.
    const ASKED: u32 = 8;
    /// Pages that are looked at, the first and the last among them.
    const LOOKS: usize = 8;

    /// Whether the next block is to have its memory at once: not if it is larger than all that have shown it,
    /// as one that grows is, or one that is a table for what comes.
    fn expect_whole(&self, pages: u32) -> bool {
        self.whole.load(Relaxed) >= Self::ENOUGH
            && self.largest.load(Relaxed) >= pages
            && self.expected.fetch_add(1, Relaxed) % Self::ASKED != Self::ASKED - 1
    }

    /// A block of so many pages has shown it, or that it is otherwise.
    fn note(&self, pages: u32, whole: bool) {
        let (before, largest) = (self.whole.load(Relaxed), self.largest.load(Relaxed));
        self.whole.store(if whole { before.saturating_add(1) } else { 0 }, Relaxed);
        self.largest.store(if whole { largest.max(pages) } else { 0 }, Relaxed);
    }

    /// A block that will show it. If there are too many, the oldest has had its time.
    fn open(&self, first: ChunkIdx, pages: u32) {
        let turn = self.next.fetch_add(1, Relaxed) as usize % self.open.len();
        let block = (u64::from(first.0) + 1) << 32 | u64::from(pages);
        if self.open[turn].swap(block, Relaxed) != 0 {
            self.note(0, false);
        }
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
        let large = self.process(process).is_large();
        let want = self.huge == HugePages::LargeHeaps && large && self.is_whole(chunk);
        let at = self.base().addr() + chunk.0 as usize * CHUNK;
        if !self.region().is_shared() {
            if entry.huge.swap(want.into(), Relaxed) != want.into() {
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

    /// Chooses the pages of those chunks of a large block that have no memory yet.
    pub(super) fn choose_large_pages(&self, first: ChunkIdx, bytes: usize) {
        let end = first.0 + bytes.div_ceil(CHUNK) as u32;
        let is_clean = |index: u32| self.chunk(ChunkIdx(index)).dirty.load(Relaxed) == 0;
        if bytes < HUGE_PAGE
            || !self.region().is_shared()
            || self.must_commit()
            || self.huge != HugePages::LargeHeaps
            || !(first.0..end).any(is_clean)
        {
            return;
        }
        for place in &self.touches.open {
            let block = place.load(Relaxed);
            if block != 0 && self.is_in_memory(block) {
                self.close(place, block, true);
            }
        }
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        if !self.touches.expect_whole(pages) {
            // What it shows only counts if none of it was there before.
            if (first.0..end).all(is_clean) {
                self.touches.open(first, pages);
            }
            return;
        }
        if !self.refusals.is_worth_it() {
            return;
        }
        let last = first.0 as usize * CHUNK + bytes / HUGE_PAGE * HUGE_PAGE;
        let mut at = first.0;
        while at < end {
            let most = end.min(at + AT_ONCE);
            let count = (at..most).take_while(|&index| is_clean(index)).count() as u32;
            for index in at..at + count {
                // Before there is memory, which nobody would give back if the process died here.
                self.chunk(ChunkIdx(index)).dirty.store(u64::MAX, Relaxed);
            }
            let start = at as usize * CHUNK;
            let len = (start + count as usize * CHUNK).min(last).saturating_sub(start);
            let populate = || os::populate_huge(self.base().addr() + start, len);
            // Where none are to be had, ordinary ones will do.
            if len > 0 && self.refusals.note(populate()).is_err() {
                return;
            }
            at += count.max(1);
        }
    }

    /// Looks at what a large block that is being freed tells of how its like are used.
    pub(super) fn note_touched(&self, first: ChunkIdx) {
        for place in &self.touches.open {
            let block = place.load(Relaxed);
            if block >> 32 == u64::from(first.0) + 1 {
                self.close(place, block, self.is_in_memory(block));
            }
        }
    }

    fn close(&self, place: &AtomicU64, block: u64, whole: bool) {
        if place.compare_exchange(block, 0, Relaxed, Relaxed).is_ok() {
            self.touches.note(block as u32, whole);
        }
    }

    /// Whether a block of [`Touches::open`] has memory wherever it is looked for, from its end on.
    fn is_in_memory(&self, block: u64) -> bool {
        let (first, pages) = ((block >> 32) as usize - 1, block as u32 as usize);
        let at = self.base().addr() + first * CHUNK;
        let last = pages.saturating_sub(1);
        (0..Touches::LOOKS).rev().all(|look| {
            let page = at + last * look / (Touches::LOOKS - 1) * PAGE;
            os::resident(page, 1).is_ok_and(|found| found > 0)
        })
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
    use super::super::granule::BlockId;
    use super::super::layout::TableSizes;
    use super::super::liveness::Joining;
    use super::super::process::MAX_RUN;
    use super::*;
    use crate::base::align_up;
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
            assert!(!has_huge_pages(), "it is only not done where it cannot be");
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

    /// What the system refuses now it may not refuse later; what it always refuses it is asked for seldom.
    #[test]
    fn a_refusal_is_not_for_good() {
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

    struct Large {
        heap: RegionHeap,
        process: ProcessSlot,
        owner: BlockId,
    }

    impl Large {
        const SIZE: usize = CHUNK + MIB;

        fn new() -> Self {
            let options = RegionOptions::new().capacity(512 * MIB);
            let region = MemfdBackend::create("", &options).unwrap();
            let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
            let process = heap.register(Joining { max_blocks: 1, ..Joining::default() }).unwrap();
            let owner = heap.take_block(process).unwrap();
            Large { heap, process, owner }
        }
        /// A block that had no memory, and how much of it has some now.
        fn take(&self) -> (GranuleIdx, usize) {
            self.take_of(Self::SIZE)
        }
        fn take_of(&self, size: usize) -> (GranuleIdx, usize) {
            let heap = &self.heap;
            let (head, zeroed) =
                heap.allocate_large(self.process, self.owner, size, 1, 0, false).unwrap();
            assert!(zeroed, "never used");
            let found = os::resident(heap.granule_addr(head).addr(), size).unwrap();
            (head, found)
        }
        fn touch(&self, head: GranuleIdx, bytes: usize) {
            for at in (0..bytes).step_by(PAGE) {
                // SAFETY: within a block of this test's.
                unsafe {
                    let byte = self.heap.granule_addr(head).add(at);
                    assert_eq!(byte.read(), 0);
                    byte.write(1);
                }
            }
        }
        fn free(&self, head: GranuleIdx) {
            assert!(self.heap.free_large(self.process, head));
            self.heap.trim(self.process);
        }
        /// Of [`Touches::ASKED`] blocks, how many got all the memory at once that huge pages can be, where the
        /// system has one left.
        fn at_once(&self) -> u32 {
            let took = |_: &u32| {
                let (head, found) = self.take();
                self.touch(head, Self::SIZE);
                self.free(head);
                found == CHUNK || found > 0 && !has_huge_pages()
            };
            (0..Touches::ASKED).filter(took).count() as u32
        }
    }

    /// Whether the system has a huge page now for another memfd.
    fn has_huge_pages() -> bool {
        let options = RegionOptions::new().capacity(16 * MIB);
        let region = MemfdBackend::create("", &options).unwrap();
        let at = align_up(region.base().addr() + 4096, HUGE_PAGE).unwrap();
        os::populate_huge(at, HUGE_PAGE).is_ok()
    }

    #[test]
    fn large_blocks_that_are_used_to_their_ends_get_their_memory_at_once() {
        for freed in [false, true] {
            let test = Large::new();
            // Also where it shows only when they are freed; otherwise, when the next is taken.
            for _ in 0..Touches::ENOUGH {
                let (head, found) = test.take();
                assert_eq!(found, 0);
                test.touch(head, Large::SIZE);
                if freed {
                    test.free(head);
                }
            }
            let found = test.at_once();
            assert!(
                found == Touches::ASKED - 1 || !has_huge_pages(),
                "{found}: it is only not done where it cannot be"
            );
        }
    }

    #[test]
    fn large_blocks_of_which_little_is_used_get_their_memory_by_and_by() {
        let test = Large::new();
        for turn in 0..20 {
            let (head, found) = test.take();
            assert_eq!(found, 0);
            // The first half, the first page, all but the end, or nothing.
            test.touch(head, [Large::SIZE / 2, PAGE, Large::SIZE - PAGE, 0][turn % 4]);
            if turn % 3 == 0 {
                test.free(head);
            }
        }
        assert_eq!(test.heap.touches.expected.load(Relaxed), 0);
    }

    /// Small ones say nothing of larger ones: those may be tables that are never filled.
    #[test]
    fn larger_blocks_than_those_that_were_used_get_their_memory_by_and_by() {
        let test = Large::new();
        for _ in 0..4 {
            let (head, _) = test.take();
            test.touch(head, Large::SIZE);
        }
        let (large, found) = test.take_of(Large::SIZE + PAGE);
        assert_eq!(found, 0);
        test.touch(large, Large::SIZE + PAGE);
        let (_, found) = test.take_of(Large::SIZE + PAGE);
        assert!(found > 0 || !has_huge_pages(), "it has shown itself");
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

    /// What is used otherwise from now on is found out by those that are left to show it.
    #[test]
    fn blocks_that_have_their_memory_at_once_stop_having_it() {
        let test = Large::new();
        for _ in 0..Touches::ENOUGH {
            let (head, _) = test.take();
            test.touch(head, Large::SIZE);
        }
        let mut last = 0;
        for _ in 0..2 * Touches::ASKED {
            let (head, found) = test.take();
            test.free(head);
            last = found;
        }
        assert_eq!(last, 0);
    }

    #[test]
    fn chunks_of_large_heaps_get_huge_pages() {
        let options = RegionOptions::new().capacity(256 * MIB);
        check(MemfdBackend::create("", &options).unwrap(), true);
        check(PosixMmap::create("", &options).unwrap(), false);
    }
}
