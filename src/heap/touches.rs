//! Large blocks of shared memory that get their memory at once, since those before them were used to
//! their ends.
//!
//! A huge page made at once (`MADV_COLLAPSE`) costs a third of ordinary ones that come as they are
//! touched, and less where two threads touch one file. But it is memory that may never be used. So the
//! last blocks say what the next is likely to be, each by pages that were left to show it:
//!
//! ```text
//! nothing is known   |?    ?    ?    ?    ?    ?    ?    ?|   ordinary pages; eight are looked at
//! the others         |=======huge=======|=======huge=======|=tail=????|   the last eight pages
//! one in eight       |?  ?  ?  ?  ?  ?  |=======huge=======|=tail=????|   the first 2 MiB, too
//! ```
//!
//! A block has shown it when all of those have memory: by the time the next block is taken, or when it is
//! freed. A guess: what threads do at once may make it wrong, no more. Where it was wrong, twice as many blocks
//! in a row have to be used to their ends before the next is expected to be.
#![allow(unsafe_code)] // its tests write to blocks

use core::ops::Range;

use super::huge::{HugePages, huge_pages_of};
use super::layout::{ChunkIdx, RegionHeap};
use crate::base::units::{CHUNK, PAGE};
use crate::os::{self, HUGE_PAGE};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Huge pages that are made in one call: it waits for every processor once, and one that fails is the last.
const AT_ONCE: usize = 16;
/// Pages of a huge one.
const PAGES: usize = HUGE_PAGE / PAGE;

/// How a process uses its large blocks of shared memory.
#[derive(Debug, Default)]
pub(super) struct Touches {
    /// Blocks in a row that were used to their ends.
    whole: AtomicU32,
    /// Pages of the largest of those.
    largest: AtomicU32,
    /// How often a block was expected to be and was not; see [`enough`](Self::enough).
    wrong: AtomicU32,
    /// Blocks that were expected to be used to their ends.
    expected: AtomicU32,
    /// Blocks that have not shown it yet; 0 for none.
    open: [AtomicU64; 8],
    /// Where the next of them goes, modulo their number.
    next: AtomicU32,
}

/// What of a block was left to show how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// All of it.
    All,
    /// The last [`Touches::LOOKS`] pages.
    End,
    /// Those, and the first huge page.
    Ends,
}

/// A block of [`Touches::open`]: its first chunk + 1, what was left of it, its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown(u64);

impl Shown {
    fn new(first: ChunkIdx, pages: u32, left: Left) -> Shown {
        Shown((u64::from(first.0) + 1) << 34 | (left as u64) << 32 | u64::from(pages))
    }
    fn first(self) -> Option<u32> {
        ((self.0 >> 34) as u32).checked_sub(1)
    }
    fn left(self) -> Left {
        match self.0 >> 32 & 3 {
            0 => Left::All,
            1 => Left::End,
            _ => Left::Ends,
        }
    }
    fn pages(self) -> u32 {
        self.0 as u32
    }
}

impl Touches {
    /// One in so many of those that are expected to be used to their ends shows more of it.
    const ASKED: u32 = 8;
    /// Pages that are looked at, the first and the last among them.
    const LOOKS: usize = 8;
    /// However often it was wrong, so many in a row will do, as a power of two.
    const MOST: u32 = 6;
    /// After so many in a row once less counts.
    const FORGIVEN: u32 = 16;

    /// Pages of the next block, which has so many, that are to have memory at once, and whether it is one of those
    /// that are asked. None where nothing is known of blocks that are about as large. One that grows gets no more
    /// than what was used of another: half of it may be room for what comes.
    fn expect(&self, pages: u32, grows: bool) -> Option<(u32, bool)> {
        let largest = self.largest.load(Relaxed);
        if self.whole.load(Relaxed) < self.enough() || largest.saturating_mul(2) < pages {
            return None;
        }
        let turn = self.expected.fetch_add(1, Relaxed);
        let now = if grows { largest.min(pages) } else { pages };
        Some((now, turn % Self::ASKED == Self::ASKED - 1))
    }

    /// How many in a row make it likely that the next is used to its end, too.
    fn enough(&self) -> u32 {
        1 << self.wrong.load(Relaxed).min(Self::MOST)
    }

    /// A block was used to its end, or it was not.
    fn note(&self, block: Shown, whole: bool) {
        let (before, largest) = (self.whole.load(Relaxed), self.largest.load(Relaxed));
        let now = if whole { before.saturating_add(1) } else { 0 };
        self.whole.store(now, Relaxed);
        self.largest.store(if whole { largest.max(block.pages()) } else { 0 }, Relaxed);
        let wrong = self.wrong.load(Relaxed);
        if !whole && block.left() != Left::All {
            self.wrong.store((wrong + 1).min(Self::MOST), Relaxed);
        } else if whole && now.is_multiple_of(Self::FORGIVEN) {
            self.wrong.store(wrong.saturating_sub(1), Relaxed);
        }
    }

    /// A block that will show it. If there are too many, the oldest has had its time.
    fn open(&self, block: Shown) {
        let turn = self.next.fetch_add(1, Relaxed) as usize % self.open.len();
        let oldest = Shown(self.open[turn].swap(block.0, Relaxed));
        if oldest.first().is_some() {
            self.note(oldest, false);
        }
    }
}

impl RegionHeap {
    /// Chooses the pages of those parts of a large block of `bytes`, a multiple of a page, that have no memory yet. One
    /// that `grows` has just done so.
    pub(super) fn choose_large_pages(&self, first: ChunkIdx, bytes: usize, grows: bool) {
        if bytes < HUGE_PAGE
            || !self.region().is_shared()
            || self.must_commit()
            || self.huge == HugePages::Never
        {
            return;
        }
        for place in &self.touches.open {
            let block = Shown(place.load(Relaxed));
            if self.is_used(block) {
                self.close(place, block, true);
            }
        }
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        let Some((now, asked)) = self.touches.expect(pages, grows) else {
            // What it shows only counts if none of it was there before.
            if self.is_clean(first, 0..bytes) {
                self.touches.open(Shown::new(first, pages, Left::All));
            }
            return;
        };
        if !self.refusals.is_worth_it() {
            return;
        }
        let shown = bytes - Touches::LOOKS * PAGE;
        let mut huge = 0..huge_pages_of(now as usize * PAGE) * HUGE_PAGE;
        let tail = huge.end..if now == pages { shown } else { 0 };
        if asked {
            huge.start = HUGE_PAGE;
            if huge.end > shown {
                huge.end -= HUGE_PAGE;
            }
        }
        let shows_end = huge.end <= shown && self.is_clean(first, shown..bytes);
        let shows_start = asked && self.is_clean(first, 0..HUGE_PAGE);
        if self.populate_large(first, huge, tail) && shows_end {
            let left = if shows_start { Left::Ends } else { Left::End };
            self.touches.open(Shown::new(first, pages, left));
        }
    }

    /// Gives those parts of a large block memory that have none: `huge` in huge pages, `tail` in ordinary ones. False
    /// where there was none to be had: what is missing comes as it is touched.
    fn populate_large(&self, first: ChunkIdx, huge: Range<usize>, tail: Range<usize>) -> bool {
        let base = self.base().addr() + first.0 as usize * CHUNK;
        let mut at = huge.start;
        while at < huge.end {
            let is_clean = |&page: &usize| self.is_clean(first, page..page + HUGE_PAGE);
            let pages = (at..huge.end).step_by(HUGE_PAGE).take(AT_ONCE);
            let end = at + pages.take_while(is_clean).count() * HUGE_PAGE;
            // Before there is memory, which nobody would give back if the process died here.
            self.mark_dirty(first, at..end);
            // Where none are to be had, ordinary ones will do.
            if at < end && self.refusals.note(os::populate_huge(base + at, end - at)).is_err() {
                return false;
            }
            at = end.max(at + HUGE_PAGE);
        }
        if tail.start >= tail.end || !self.is_clean(first, tail.clone()) {
            return true;
        }
        self.mark_dirty(first, tail.clone());
        os::commit(base + tail.start, tail.end - tail.start, None).is_ok()
    }

    /// Looks at what a large block that is being freed tells of how its like are used.
    pub(super) fn note_touched(&self, first: ChunkIdx) {
        for place in &self.touches.open {
            let block = Shown(place.load(Relaxed));
            if block.first() == Some(first.0) {
                self.close(place, block, self.is_used(block));
            }
        }
    }

    fn close(&self, place: &AtomicU64, block: Shown, whole: bool) {
        if place.compare_exchange(block.0, 0, Relaxed, Relaxed).is_ok() {
            self.touches.note(block, whole);
        }
    }

    /// Whether a block has memory wherever it is looked for, from its end on. False if there is none.
    fn is_used(&self, block: Shown) -> bool {
        let Some(first) = block.first() else { return false };
        let (base, pages) = (self.base().addr() + first as usize * CHUNK, block.pages() as usize);
        let is_there = |pages: Range<usize>| {
            let last = pages.len().saturating_sub(1);
            (0..Touches::LOOKS).rev().all(|look| {
                let page = pages.start + last * look / (Touches::LOOKS - 1);
                os::resident(base + page * PAGE, 1).is_ok_and(|found| found > 0)
            })
        };
        let end = || is_there(pages.saturating_sub(Touches::LOOKS)..pages);
        match block.left() {
            Left::All => is_there(0..pages),
            Left::End => end(),
            Left::Ends => end() && is_there(0..PAGES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::granule::{BlockId, GranuleIdx};
    use super::super::huge::tests::has_huge_pages;
    use super::super::layout::{ProcessSlot, TableSizes};
    use super::super::liveness::Joining;
    use super::*;
    use crate::base::units::MIB;
    use crate::region::{Backend, MemfdBackend, RegionOptions};

    /// The pages at the end that show whether it is reached.
    const SHOWN: usize = Touches::LOOKS * PAGE;

    struct Large {
        heap: RegionHeap,
        process: ProcessSlot,
        owner: BlockId,
    }

    impl Large {
        /// Two huge pages, and some ordinary ones.
        const SIZE: usize = CHUNK + MIB;

        fn new() -> Self {
            let options = RegionOptions::new().capacity(512 * MIB);
            let region = MemfdBackend::create("", &options).unwrap();
            let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
            let process = heap.register(Joining { max_blocks: 1, ..Joining::default() }).unwrap();
            let owner = heap.take_block(process).unwrap();
            Large { heap, process, owner }
        }
        /// The same after so many blocks were used to their ends.
        fn after_whole(blocks: usize) -> Self {
            let test = Large::new();
            test.use_whole(blocks);
            test
        }
        fn use_whole(&self, blocks: usize) {
            for _ in 0..blocks {
                let (head, _) = self.take();
                self.touch(head, 0..Self::SIZE);
                self.free(head);
            }
        }
        /// A block that had no memory, and how much of it has some now.
        fn take(&self) -> (GranuleIdx, usize) {
            self.take_of(Self::SIZE, 0)
        }
        fn take_of(&self, size: usize, room: usize) -> (GranuleIdx, usize) {
            let heap = &self.heap;
            let (head, zeroed) =
                heap.allocate_large(self.process, self.owner, size, 1, room, false).unwrap();
            assert!(zeroed, "never used");
            let found = os::resident(heap.granule_addr(head).addr(), size).unwrap();
            (head, found)
        }
        fn touch(&self, head: GranuleIdx, bytes: Range<usize>) {
            for at in bytes.step_by(PAGE) {
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
        /// Whether `found` bytes are `wanted`, or what was there when the system had no huge page to give.
        fn got(&self, found: usize, wanted: usize) -> bool {
            found == wanted || found < wanted && !has_huge_pages()
        }
    }

    #[test]
    fn large_blocks_get_their_memory_at_once_after_one_that_was_used_to_its_end() {
        for freed in [false, true] {
            let test = Large::new();
            // Also where it shows only when it is freed; otherwise, when the next is taken.
            let (head, found) = test.take();
            assert_eq!(found, 0);
            test.touch(head, 0..Large::SIZE);
            if freed {
                test.free(head);
            }
            for turn in 1..=2 * Touches::ASKED {
                let (head, found) = test.take();
                let left = if turn % Touches::ASKED == 0 { HUGE_PAGE } else { 0 };
                assert!(test.got(found, Large::SIZE - SHOWN - left), "{turn}: {found}");
                test.touch(head, 0..Large::SIZE);
                test.free(head);
            }
        }
    }

    /// Where the end lies in a huge page of its own, or nearly, one in eight shows it.
    #[test]
    fn blocks_without_a_tail_get_all_of_it() {
        for (size, whole) in [(CHUNK, CHUNK), (2 * CHUNK - MIB / 4, 2 * CHUNK - MIB / 4)] {
            let test = Large::new();
            let (head, _) = test.take_of(size, 0);
            test.touch(head, 0..size);
            test.free(head);
            for turn in 1..=2 * Touches::ASKED {
                let (head, found) = test.take_of(size, 0);
                let asked = turn % Touches::ASKED == 0;
                let left = whole.div_ceil(HUGE_PAGE) * HUGE_PAGE - 2 * HUGE_PAGE;
                assert!(if asked && left == 0 {
                    found == 0
                } else {
                    test.got(found, if asked { left } else { whole })
                });
                test.touch(head, 0..size);
                test.free(head);
            }
        }
    }

    #[test]
    fn large_blocks_of_which_little_is_used_get_their_memory_by_and_by() {
        let test = Large::new();
        for turn in 0..20 {
            let (head, found) = test.take();
            assert_eq!(found, 0);
            // The first half, the first page, all but the end, or nothing.
            test.touch(head, 0..[Large::SIZE / 2, PAGE, Large::SIZE - PAGE, 0][turn % 4]);
            if turn % 3 == 0 {
                test.free(head);
            }
        }
        assert_eq!(test.heap.touches.expected.load(Relaxed), 0);
    }

    /// Small ones say nothing of far larger ones: those may be tables that are never filled. Of what has
    /// just grown half may be room.
    #[test]
    fn larger_blocks_than_those_that_were_used_get_their_memory_by_and_by() {
        let test = Large::after_whole(4);
        let far_larger = 2 * Large::SIZE + 2 * SHOWN;
        let (_, found) = test.take_of(far_larger, 0);
        assert_eq!(found, 0);
        let larger = Large::SIZE + CHUNK;
        let (grown, found) = test.take_of(larger, 2 * larger);
        assert!(test.got(found, CHUNK), "{found}");
        let (_, found) = test.take_of(larger, 0);
        assert!(test.got(found, larger - SHOWN), "{found}");
        // It has shown itself.
        test.touch(grown, 0..larger);
        let (_, found) = test.take_of(far_larger, 0);
        assert!(test.got(found, far_larger - SHOWN), "{found}");
    }

    /// What is used otherwise from now on shows at once, and more has to happen before it is believed again.
    #[test]
    fn blocks_that_have_their_memory_at_once_stop_having_it() {
        let test = Large::after_whole(1);
        let (head, found) = test.take();
        if found != Large::SIZE - SHOWN {
            assert!(!has_huge_pages(), "{found}");
            return;
        }
        test.touch(head, 0..Large::SIZE - PAGE);
        test.free(head);
        for _ in 0..2 {
            assert_eq!(test.heap.touches.largest.load(Relaxed), 0);
            test.use_whole(1);
            let (head, found) = test.take();
            assert_eq!(found, 0, "one is not enough any more");
            test.free(head);
        }
        test.use_whole(2);
        let (head, found) = test.take();
        assert!(found > 0);
        test.free(head);
        // Nor is it remembered for ever.
        test.use_whole(4 + Touches::FORGIVEN as usize);
        assert_eq!(test.heap.touches.wrong.load(Relaxed), 1);
    }

    /// Those that are only used at their ends, as what is filled from the end on, show it when they are asked.
    #[test]
    fn blocks_that_are_used_from_the_end_on_are_found_out() {
        let test = Large::after_whole(1);
        let mut last = 0;
        for _ in 0..=Touches::ASKED {
            let (head, found) = test.take();
            test.touch(head, Large::SIZE - SHOWN..Large::SIZE);
            test.free(head);
            last = found;
        }
        assert_eq!(last, 0);
    }

    /// Blocks that live on without being used have had their time when others followed.
    #[test]
    fn tables_that_stay_empty_are_not_waited_for() {
        let test = Large::after_whole(1);
        let places = test.heap.touches.open.len();
        let found: Vec<_> = (0..2 * places).map(|_| test.take().1).collect();
        assert!(found[places + 2..].iter().all(|&found| found == 0), "{found:?}");
    }

    #[test]
    fn what_is_shown_is_packed() {
        for left in [Left::All, Left::End, Left::Ends] {
            let block = Shown::new(ChunkIdx((1 << 25) - 1), u32::MAX, left);
            assert_eq!(block.first(), Some((1 << 25) - 1));
            assert_eq!((block.left(), block.pages()), (left, u32::MAX));
        }
        assert_eq!(Shown(0).first(), None);
    }
}
