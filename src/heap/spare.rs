//! Runs that a thread heap keeps for itself instead of giving them to the process's chunks.
//!
//! ```text
//! spares.heads[granules - 1] -> run -> run -> run       linked by their descriptors, last in first out
//! ```
//!
//! A kept run is a run still: entries, length and committed bytes are as they were, and so is the
//! process's account. What makes it free is a mark in the owner's line of its descriptor: whoever frees
//! it once more is refused, whoever settles a dead process's things takes it for free, and a walk counts
//! it as free granules. To keep a run is one store, to hand it out again another: no lock, and no
//! read-modify-write.
//!
//! As with a slab's two bitmaps, a run is free where its owner *or* somebody else says so: others say it in
//! their own line, by a compare-and-swap, and announce it (`remote`); the owner then makes their mark
//! into its own. So nobody but the owner ever gives a run to the chunk. Two who free one run at the same
//! time may both be told that they did; the owner notices, at the latest when it hands the run out again,
//! and counts one as refused.
//!
//! The lists belong to the heap alone, as those of its slabs do. What is read from the region on the
//! way is checked: a run comes off a list only if it is one of the heap's, of that length, with the mark;
//! a list in which something else turns up is dropped.
//!
//! What a heap keeps and has handed out together is no more than what it once had handed out, but for
//! [`FEW`]: keeping runs makes no higher peak. How many may be kept goes down while more is freed than
//! that, and up again while none is found: who frees all it has ends up with few, since a run that is kept
//! holds its whole chunk.

use core::ops::Range;

use super::granule::{Entry, GranuleIdx};
use super::layout::RegionHeap;
use super::process::MAX_RUN;
use super::thread::ThreadHeap;
use crate::base::Result;
use crate::base::units::GRANULE;
use crate::sync::atomic::Ordering::Relaxed;

/// Granules that any heap may keep.
const FEW: u32 = 16;
/// The most that one may: also no more than this part of a region's granules.
const MOST: u32 = 256;
const PART: u32 = 16;
/// So many runs are asked for before the heap looks what others gave back, though it has enough.
const TURNS: u32 = 64;

/// The private part: where the lists begin, and what they come to, in granules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spares {
    /// By length; granule + 1, 0 for none.
    heads: [u32; MAX_RUN as usize],
    /// The lengths of which there are any: bit 0 is one granule.
    lengths: u32,
    kept: u32,
    /// Handed out and not back yet, as far as this heap knows.
    used: u32,
    most_used: u32,
    /// The most that may ever be kept. 0 where there is a cache in front of the heap that does it.
    most: u32,
    /// The most that may be kept now, but for [`FEW`].
    now: u32,
    /// Runs that were asked for.
    turns: u32,
}

impl Spares {
    /// Keeps nothing, ever.
    pub(super) const NONE: Spares = Spares {
        heads: [0; MAX_RUN as usize],
        lengths: 0,
        kept: 0,
        used: 0,
        most_used: 0,
        most: 0,
        now: 0,
        turns: 0,
    };

    /// What may be kept beside `used` granules in use.
    fn room(&self, used: u32) -> u32 {
        self.most_used.saturating_sub(used).min(self.now).max(FEW).min(self.most)
    }
    fn note_handed_out(&mut self, granules: u32) {
        self.used = self.used.saturating_add(granules);
        self.most_used = self.most_used.max(self.used);
    }
    /// More was freed than may be kept.
    fn note_overflow(&mut self, granules: u32) {
        self.now = self.now.saturating_sub(2 * granules).max(FEW);
    }
    /// More was wanted than was kept.
    fn note_miss(&mut self, granules: u32) {
        self.now = (self.now + granules).min(self.most);
    }
}

impl ThreadHeap {
    /// The same heap, which keeps runs.
    pub(crate) fn keeping_runs(mut self, heap: &RegionHeap) -> ThreadHeap {
        self.spares.most = (heap.granules() / PART).clamp(FEW, MOST);
        self.spares.now = self.spares.most;
        self
    }

    /// Notes that one of this heap's runs has another length now.
    pub(crate) fn note_resized(&mut self, before: u32, now: u32) {
        self.spares.used = self.spares.used.saturating_sub(before);
        self.spares.note_handed_out(now);
    }

    /// Takes a run for a block of `size` bytes, 1 to [`MAX_RUN`] granules, at a multiple of `align`, which
    /// is no longer either: one that was kept, if need be up to a third longer, or as
    /// [`RegionHeap::allocate_run`], which is what it is where runs of that length are to have room to
    /// grow.
    #[inline]
    pub(crate) fn allocate_run(
        &mut self,
        heap: &RegionHeap,
        size: usize,
        align: usize,
        room: u32,
    ) -> Result<(GranuleIdx, bool)> {
        let granules = size.div_ceil(GRANULE).max(1) as u32;
        let kept_will_do = align <= GRANULE && room <= granules;
        self.spares.turns = self.spares.turns.wrapping_add(1);
        // Who finds all it needs among what it keeps would never look for more.
        if kept_will_do
            && !self.spares.turns.is_multiple_of(TURNS)
            && let Some(head) = self.take_spare(heap, granules)
        {
            return self.hand_out(heap, head, size).map(|()| (head, false));
        }
        self.allocate_run_slow(heap, (size, align), (granules, room), kept_will_do)
    }

    /// A run of that length off its list, or of the next.
    #[inline]
    fn take_spare(&mut self, heap: &RegionHeap, granules: u32) -> Option<GranuleIdx> {
        let lengths = self.spares.lengths & run_mask_32(granules - 1, granules / 3 + 1);
        if lengths == 0 { None } else { self.unlink_spare(heap, lengths.trailing_zeros() + 1) }
    }

    #[inline]
    fn hand_out(&mut self, heap: &RegionHeap, head: GranuleIdx, size: usize) -> Result<()> {
        if size > heap.committed(head)
            && let Err(error) = heap.commit_run(head, size)
        {
            heap.free_run(self.process(), head);
            return Err(error);
        }
        if heap.desc(head).forget_late_return() {
            heap.source().refused_frees.fetch_add(1, Relaxed);
        }
        heap.desc(head).hand_out_run();
        self.spares.note_handed_out(heap.run_granules(head));
        Ok(())
    }

    #[cold]
    fn allocate_run_slow(
        &mut self,
        heap: &RegionHeap,
        (size, align): (usize, usize),
        (granules, room): (u32, u32),
        kept_will_do: bool,
    ) -> Result<(GranuleIdx, bool)> {
        // Runs that others freed come back here; one load where there are none. Slabs only now and then:
        // they are no run, but room for one when they are empty.
        if self.spares.turns.is_multiple_of(TURNS) {
            self.collect(heap);
        } else {
            self.collect_from(heap, |block| &block.returned_runs);
        }
        heap.reap_now_and_then(self.process());
        if kept_will_do && let Some(head) = self.take_spare(heap, granules) {
            return self.hand_out(heap, head, size).map(|()| (head, false));
        }
        self.spares.note_miss(granules);
        let most = self.spares.room(self.spares.used.saturating_add(granules));
        while self.spares.kept > most && self.give_up_longest(heap) {}
        let taken = heap.allocate_run(self.process(), self.id(), size, align, room)?;
        self.spares.note_handed_out(granules);
        Ok(taken)
    }

    /// Frees a run of this heap's. False where it is free already.
    #[inline]
    pub(crate) fn free_own_run(&mut self, heap: &RegionHeap, head: GranuleIdx) -> bool {
        let desc = heap.desc(head);
        if !desc.is_run_live() {
            return false;
        }
        heap.forget_keeper(head);
        desc.make_spare();
        self.keep_run(heap, head);
        true
    }

    /// What becomes of a run that was just marked as spare: kept, or given to the process's chunks.
    #[inline]
    pub(super) fn keep_run(&mut self, heap: &RegionHeap, head: GranuleIdx) {
        let granules = heap.run_granules(head);
        self.spares.used = self.spares.used.saturating_sub(granules);
        let fits = self.spares.kept + granules <= self.spares.room(self.spares.used);
        match self.spares.heads.get_mut(granules.wrapping_sub(1) as usize) {
            Some(first) if fits => {
                heap.desc(head).next.store(*first, Relaxed);
                *first = head.0 + 1;
                self.spares.lengths |= 1 << (granules - 1);
                self.spares.kept += granules;
            }
            _ => {
                heap.free_run(self.process(), head);
                self.spares.note_overflow(granules);
                while self.spares.kept > self.spares.room(self.spares.used)
                    && self.give_up_longest(heap)
                {}
            }
        }
    }

    /// Takes a run of that length off its list, as it is.
    #[inline]
    fn unlink_spare(&mut self, heap: &RegionHeap, granules: u32) -> Option<GranuleIdx> {
        let index = granules.wrapping_sub(1) as usize;
        let found = heap.slab_at(*self.spares.heads.get(index)?, granules);
        let own = Entry::run(self.id(), 0);
        let found = found.filter(|&head| heap.is_spare_of(head, granules, own));
        self.set_first(index, found.map_or(0, |head| heap.desc(head).next.load(Relaxed)));
        let head = found?;
        self.spares.kept = self.spares.kept.saturating_sub(granules);
        Some(head)
    }

    /// Gives the longest run that is kept to the process's chunks. False where none is.
    fn give_up_longest(&mut self, heap: &RegionHeap) -> bool {
        while self.spares.lengths != 0 {
            let longest = MAX_RUN - self.spares.lengths.leading_zeros();
            if let Some(head) = self.unlink_spare(heap, longest) {
                heap.free_run(self.process(), head);
                return true;
            }
        }
        // Damaged lists were dropped.
        self.spares.kept = 0;
        false
    }

    /// Gives up the kept runs in the way of a run of this heap's that is to grow to `size` bytes where it
    /// lies. False where there are none.
    #[cold]
    pub(crate) fn make_room_behind(
        &mut self,
        heap: &RegionHeap,
        head: GranuleIdx,
        granules: u32,
        size: usize,
    ) -> bool {
        if size > MAX_RUN as usize * GRANULE {
            return false;
        }
        // Only what this heap has is looked at: what else lies there may not even be committed.
        let way = head.0 + granules..head.0 + size.div_ceil(GRANULE) as u32;
        let mut given_up = false;
        for length in 1..=MAX_RUN {
            while let Some(run) = self.unlink_within(heap, length, &way) {
                if !heap.free_run(self.process(), run) {
                    break;
                }
                given_up = true;
            }
        }
        given_up
    }

    /// Takes a run of that length that begins in `way` off its list.
    fn unlink_within(
        &mut self,
        heap: &RegionHeap,
        granules: u32,
        way: &Range<u32>,
    ) -> Option<GranuleIdx> {
        let own = Entry::run(self.id(), 0);
        let index = granules as usize - 1;
        let (mut at, mut before) = (self.spares.heads[index], None);
        for _ in 0..MOST {
            let found = heap.slab_at(at, granules);
            let head = found.filter(|&head| heap.is_spare_of(head, granules, own))?;
            at = heap.desc(head).next.load(Relaxed);
            if way.contains(&head.0) {
                match before {
                    Some(before) => heap.desc(before).next.store(at, Relaxed),
                    None => self.set_first(index, at),
                }
                self.spares.kept = self.spares.kept.saturating_sub(granules);
                return Some(head);
            }
            before = Some(head);
        }
        None
    }

    fn set_first(&mut self, index: usize, link: u32) {
        self.spares.heads[index] = link;
        match link {
            0 => self.spares.lengths &= !(1 << index),
            _ => self.spares.lengths |= 1 << index,
        }
    }

    /// Keeps nothing any more, and begins anew with what it once used.
    pub(super) fn give_up_spares(&mut self, heap: &RegionHeap) {
        while self.spares.kept > 0 && self.give_up_longest(heap) {}
        self.spares.most_used = self.spares.used;
    }

    /// Whether the lists hold what they are said to, for `verify`.
    pub(super) fn spares_are_sound(&self, heap: &RegionHeap) -> bool {
        let own = Entry::run(self.id(), 0);
        let mut kept = 0u32;
        for granules in 1..=MAX_RUN {
            let mut at = self.spares.heads[granules as usize - 1];
            while at != 0 {
                kept += granules;
                match heap.slab_at(at, granules) {
                    Some(head)
                        if kept <= self.spares.kept && heap.is_spare_of(head, granules, own) =>
                    {
                        at = heap.desc(head).next.load(Relaxed);
                    }
                    _ => return false,
                }
            }
        }
        kept == self.spares.kept
    }
}

/// `count` bits from `first` on, as far as there are any.
fn run_mask_32(first: u32, count: u32) -> u32 {
    (crate::base::bits::run_mask(first, count)) as u32
}

impl RegionHeap {
    /// Whether a kept run of `granules` begins at `head`, with `entry` in the map.
    #[inline]
    fn is_spare_of(&self, head: GranuleIdx, granules: u32, entry: Entry) -> bool {
        self.entry(head) == entry
            && self.run_granules(head) == granules
            && self.desc(head).is_spare()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::block::Block;
    use super::super::thread::with_thread_heap;
    use super::*;
    use crate::base::classes::{ClassId, class_index};

    fn with_heap(work: impl FnOnce(&RegionHeap, &mut ThreadHeap)) {
        with_thread_heap(|heap, thread| {
            let mut thread = thread.keeping_runs(heap);
            work(heap, &mut thread);
            thread.tidy(heap);
        });
    }

    /// A heap that finds all it needs among what it keeps still takes in what others gave back.
    #[test]
    fn what_others_return_does_not_wait_for_ever() {
        with_heap(|heap, thread| {
            let runs: Vec<_> = (0..100)
                .map(|_| thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap().0)
                .collect();
            assert!(thread.free_own_run(heap, runs[0]));
            for &run in &runs[1..] {
                assert!(heap.return_foreign_run(run, thread.id()));
            }
            for _ in 0..TURNS {
                let (run, _) = thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap();
                assert!(thread.free_own_run(heap, run));
            }
            assert!(runs.iter().all(|&run| !heap.desc(run).is_run_returned()));
        });
    }

    /// Who needs a run takes in runs; slabs gather what comes back meanwhile, and are seen to now and
    /// then, or by who needs their blocks.
    #[test]
    fn slabs_gather_while_runs_are_needed() {
        with_heap(|heap, thread| {
            let class = ClassId::new(class_index(30 << 10));
            let block = |thread: &mut ThreadHeap| {
                let block = thread.allocate_one(heap, class).unwrap();
                block.addr() - heap.base().addr()
            };
            let give_back = |offset| match heap.find_block(offset) {
                Ok(Block::Small { head, class, index, owner }) => {
                    assert!(heap.return_block(head, class, owner, index));
                    &heap.desc(head).pending
                }
                other => panic!("{other:?}"),
            };
            let blocks = [0; 3].map(|_| block(thread));
            let pending = give_back(blocks[0]);
            let run = thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap().0;
            assert!(heap.return_foreign_run(run, thread.id()));
            let longer = thread.allocate_run(heap, 9 * GRANULE, GRANULE, 0).unwrap().0;
            assert!(!heap.desc(run).is_run_returned());
            assert_ne!(pending.load(Relaxed), 0);
            assert!(thread.free_own_run(heap, longer));
            for _ in 0..TURNS {
                let (run, _) = thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap();
                assert!(thread.free_own_run(heap, run));
            }
            assert_eq!(pending.load(Relaxed), 0);
            // And runs wait for who needs blocks, as long as slabs give some.
            give_back(blocks[1]);
            let run = thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap().0;
            assert!(heap.return_foreign_run(run, thread.id()));
            while !blocks[..2].contains(&block(thread)) {}
            while pending.load(Relaxed) != 0 {
                block(thread);
            }
            assert!(heap.desc(run).is_run_returned());
            for _ in 0..64 {
                block(thread);
            }
            assert!(!heap.desc(run).is_run_returned());
        });
    }

    /// Two free one run, and the one who is no owner is told first that it did: what is handed out next
    /// is no longer said to be returned, and nobody gets it twice.
    #[test]
    fn a_late_return_is_forgotten_when_the_run_is_handed_out() {
        with_heap(|heap, thread| {
            let (run, _) = thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap();
            assert!(heap.return_foreign_run(run, thread.id()));
            // The owner had looked before.
            heap.desc(run).make_spare();
            thread.keep_run(heap, run);
            let (again, _) = thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap();
            assert_eq!(again, run);
            assert!(heap.desc(run).is_run_live());
            assert_eq!(heap.source().refused_frees.load(Relaxed), 1);
            thread.collect(heap);
            let (other, _) = thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap();
            assert_ne!(other, run);
            assert!(thread.free_own_run(heap, run) && thread.free_own_run(heap, other));
        });
    }

    /// A run that is to grow has what is kept behind it given up, as far as it wants to go, and nothing else.
    #[test]
    fn what_is_kept_makes_room_for_what_grows() {
        const TWO: usize = 2 * GRANULE;
        with_heap(|heap, thread| {
            let runs: Vec<_> =
                (0..6).map(|_| thread.allocate_run(heap, TWO, 1, 0).unwrap().0).collect();
            assert!(runs.windows(2).all(|pair| pair[1].0 == pair[0].0 + 2), "{runs:?}");
            let (process, owner, first) = (thread.process(), thread.id(), runs[0]);
            let grows = |granules, size| heap.resize_run(process, owner, first, granules, size);
            // What is in use behind it stays, and so does what is kept elsewhere.
            assert!(thread.free_own_run(heap, runs[4]));
            assert!(!thread.make_room_behind(heap, first, 2, 2 * TWO) && !grows(2, 2 * TWO));
            // One that is kept goes, also if it is not all that is needed.
            assert!(thread.free_own_run(heap, runs[1]));
            assert_eq!(thread.spares.kept, 4);
            assert!(!grows(2, 2 * TWO));
            assert!(thread.make_room_behind(heap, first, 2, 3 * TWO));
            assert_eq!(thread.spares.kept, 2);
            assert!(!grows(2, 3 * TWO) && grows(2, 2 * TWO));
            assert_eq!(heap.run_granules(first), 4);
            assert!(
                (0..4).all(|at| { heap.entry(GranuleIdx(first.0 + at)) == Entry::run(owner, at) })
            );
            // Several, of which one is only half in the way.
            assert!(thread.free_own_run(heap, runs[2]) && thread.free_own_run(heap, runs[3]));
            assert!(thread.make_room_behind(heap, first, 4, 3 * TWO + GRANULE));
            assert_eq!(thread.spares.kept, 2);
            assert!(grows(4, 3 * TWO + GRANULE) && !grows(7, 5 * TWO));
            assert!(thread.spares_are_sound(heap));
            // No run is longer than the longest.
            assert!(!thread.make_room_behind(heap, first, 7, (MAX_RUN as usize + 1) * GRANULE));
            assert_eq!(thread.take_spare(heap, 2), Some(runs[4]));
        });
    }

    #[test]
    fn no_more_is_kept_than_was_once_used() {
        assert_eq!(Spares::NONE.room(0), 0);
        let mut spares = Spares { most: MOST, now: MOST, ..Spares::NONE };
        assert_eq!(spares.room(0), FEW);
        (0..10).for_each(|_| spares.note_handed_out(10));
        assert_eq!((spares.used, spares.room(spares.used), spares.room(40)), (100, FEW, 60));
        assert_eq!((spares.room(0), spares.room(90)), (100, FEW));
        spares.note_handed_out(u32::MAX);
        assert_eq!(spares.room(0), MOST);
    }

    #[test]
    fn who_frees_all_ends_up_with_few() {
        with_heap(|heap, thread| {
            let most = thread.spares.most;
            assert!((2 * FEW..=MOST).contains(&most));
            let take = |thread: &mut ThreadHeap, count: u32| -> Vec<_> {
                let run = |_| thread.allocate_run(heap, GRANULE, GRANULE, 0).unwrap().0;
                (0..count).map(run).collect()
            };
            for _ in 0..3 {
                let runs = take(thread, 500);
                assert_eq!((thread.spares.kept, thread.spares.now), (0, most));
                assert!(runs.iter().all(|&run| thread.free_own_run(heap, run)));
                assert_eq!((thread.spares.kept, thread.spares.used), (FEW, 0));
            }
            // Who needs no more than may be kept finds all of it again.
            let runs = take(thread, most);
            assert!(runs.iter().all(|&run| thread.free_own_run(heap, run)));
            assert_eq!(thread.spares.kept, most);
            assert!(thread.spares_are_sound(heap));
        });
    }
}
