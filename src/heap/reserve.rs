//! Empty slabs that a thread heap keeps, for whichever class needs one next.
//!
//! A slab that has all its blocks back goes to the process's chunks under the process's lock, and the next
//! one comes from there: locked instructions, which wait until all that the program wrote before is in the
//! cache. A program that allocates much of one size and frees it again pays them for every slab. So a heap with
//! a thread cache in front of it keeps some, and gives several up at a time.
//!
//! What is kept is a slab still: its granule's entry, and the process's account, are as they were, all its
//! blocks are free, and it is on no list. Only slabs of one granule are kept; to make one that of another
//! class is one store to its entry, behind new bitmaps. Until then whoever settles a dead process's things
//! finds an empty slab, and so would it find one with bits of both classes: none of its blocks has a keeper.

use super::granule::{Entry, GranuleIdx};
use super::layout::RegionHeap;
use super::slab::{Listing, Slab, uses_area};
use super::thread::ThreadHeap;
use crate::base::classes::ClassId;
use crate::base::units::GRANULE;
use crate::sync::atomic::Ordering::Relaxed;

/// Slabs that a heap keeps: 1 MiB.
const MOST: usize = 16;

/// The private part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserve {
    len: usize,
    /// The most that may be kept.
    most: usize,
    heads: [GranuleIdx; MOST],
}

impl Reserve {
    /// Keeps nothing, ever.
    pub(super) const NONE: Reserve = Reserve { len: 0, most: 0, heads: [GranuleIdx(0); MOST] };

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
    fn kept(&self) -> &[GranuleIdx] {
        &self.heads[..self.len]
    }
    /// There is room.
    fn push(&mut self, head: GranuleIdx) {
        self.heads[self.len] = head;
        self.len += 1;
    }
    /// Takes `wanted`, if it is here; otherwise the one that was kept last.
    fn pop(&mut self, wanted: Option<GranuleIdx>) -> Option<GranuleIdx> {
        let len = self.len.checked_sub(1)?;
        let found = self.kept().iter().position(|&head| Some(head) == wanted);
        let place = found.unwrap_or(len);
        let head = *self.heads.get(place)?;
        self.heads.copy_within(place + 1..=len, place);
        self.len = len;
        Some(head)
    }
}

impl ThreadHeap {
    /// The same heap, which keeps empty slabs.
    pub(crate) fn keeping_slabs(mut self) -> ThreadHeap {
        self.reserve.most = MOST;
        self
    }

    /// Keeps an empty slab that is on no list, or gives it up.
    pub(super) fn reserve_or_release(&mut self, heap: &RegionHeap, slab: &Slab<'_>) {
        if self.reserve.most == 0 || slab.class.slab_granules() != 1 {
            return self.release(heap, slab);
        }
        if self.reserve.len >= self.reserve.most {
            self.give_up_reserve(heap, MOST / 2);
        }
        // In a damaged heap it may be here already.
        if !self.reserve.kept().contains(&slab.head) {
            slab.set_listing(Listing::Partial);
            self.note_no_slab(slab.class, slab.head);
            self.reserve.push(slab.head);
        }
    }

    /// A slab of `class` out of the reserve: on no list, and none of its blocks handed out.
    pub(super) fn take_reserved(
        &mut self,
        heap: &RegionHeap,
        class: ClassId,
    ) -> Option<GranuleIdx> {
        if class.slab_granules() != 1 {
            return None;
        }
        let head = self.reserve.pop(self.last_slab(class))?;
        let entry = heap.entry(head);
        if !entry.is_slab_of(self.id()) || entry.distance() != 0 {
            // So it is in a damaged heap only.
            return None;
        }
        if heap.commit_tables(head, 1, uses_area(class)).is_err() {
            self.reserve.push(head);
            return None;
        }
        let slab = Slab::new(heap, head, class);
        slab.init(slab.desc.committed.load(Relaxed).min(GRANULE as u32), false);
        heap.forget_dead_announcer(head);
        heap.set_entry(head, Entry::slab(self.id(), class, 0));
        self.note_slab(class);
        Some(head)
    }

    /// Gives up the first `count` that are kept.
    pub(super) fn give_up_reserve(&mut self, heap: &RegionHeap, count: usize) {
        let count = count.min(self.reserve.len);
        if count == 0 {
            return;
        }
        let oldest = &self.reserve.heads[..count];
        for &head in oldest {
            heap.set_entry(head, Entry::FREE);
        }
        heap.return_slabs(self.process(), oldest);
        self.reserve.heads.copy_within(count..self.reserve.len, 0);
        self.reserve.len -= count;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::thread::with_thread_heap;
    use super::super::verify::verify;
    use super::*;
    use crate::base::classes::class_index;

    /// Fills `slabs` slabs of a class and gives all blocks back.
    fn fill_and_free(heap: &RegionHeap, thread: &mut ThreadHeap, size: usize, slabs: usize) {
        let class = ClassId::new(class_index(size));
        let count = slabs * class.blocks() as usize;
        let blocks: Vec<_> =
            (0..count).map(|_| thread.allocate_one(heap, class).unwrap()).collect();
        for block in blocks {
            let granule = GranuleIdx(((block.addr() - heap.base().addr()) / GRANULE) as u32);
            let head = GranuleIdx(granule.0 - heap.entry(granule).distance());
            assert_eq!(thread.free_group(heap, head, class, &[block]), (1, 0));
        }
    }

    fn in_slabs(heap: &RegionHeap, thread: &ThreadHeap) -> usize {
        heap.process(thread.process()).in_slabs.load(Relaxed) as usize / GRANULE
    }

    /// Slabs go from class to class without a look at the chunks, no more are kept than may be, and
    /// all go when the heap is tidied.
    #[test]
    fn empty_slabs_serve_other_classes() {
        with_thread_heap(|heap, thread| {
            let mut thread = thread.keeping_slabs();
            for size in [4096, 8, 1000, 256, 16, 8192, 48] {
                fill_and_free(heap, &mut thread, size, 3);
                verify(heap, core::iter::once(&thread)).unwrap();
            }
            // The last of each class stays with it; of each three, two go round.
            assert_eq!(thread.reserve.kept().len(), 2);
            assert_eq!(in_slabs(heap, &thread), 7 + 2);
            fill_and_free(heap, &mut thread, 4096, 3 * MOST);
            assert!((MOST / 2..=MOST).contains(&thread.reserve.kept().len()));
            assert_eq!(in_slabs(heap, &thread), 7 + thread.reserve.kept().len());
            verify(heap, core::iter::once(&thread)).unwrap();
            // Those of several granules are not kept.
            let before = thread.reserve.kept().to_vec();
            fill_and_free(heap, &mut thread, 32 << 10, 3);
            assert_eq!(thread.reserve.kept(), before);
            thread.tidy(heap);
            assert_eq!((thread.reserve.kept().len(), in_slabs(heap, &thread)), (0, 0));
            verify(heap, core::iter::once(&thread)).unwrap();
        });
    }

    /// A class gets the slab again that it had last, from the reserve or from the process's chunks; unless somebody
    /// has it, or its memory was given back.
    #[test]
    fn slabs_go_where_their_class_had_one() {
        with_thread_heap(|heap, thread| {
            let mut thread = thread.keeping_slabs();
            let (small, middle) = (ClassId::new(class_index(48)), ClassId::new(class_index(512)));
            fill_and_free(heap, &mut thread, 512, 4);
            let wanted = thread.reserve.kept()[0];
            thread.note_slab(small);
            thread.note_no_slab(small, wanted);
            assert_ne!(thread.reserve.kept().last(), Some(&wanted));
            assert_eq!(thread.take_reserved(heap, small), Some(wanted));
            assert!(!thread.reserve.kept().contains(&wanted));
            let process = thread.process();
            assert!(heap.take_run_again(process, wanted, 1).is_none());
            thread.reserve_or_release(heap, &Slab::new(heap, wanted, small));
            thread.tidy(heap);
            assert_eq!(in_slabs(heap, &thread), 0);
            let block = thread.allocate_one(heap, small).unwrap();
            assert_eq!(block, heap.granule_addr(wanted));
            assert!(heap.take_run_again(process, wanted, 1).is_none());
            // Another's, which is free.
            let other = thread.last_slab(middle).unwrap();
            assert_ne!(other, wanted);
            let taken = heap.take_run_again(process, other, 1).unwrap();
            assert!(taken.first == other && !taken.zeroed);
            heap.return_run(process, other, 1, taken.committed);
            heap.trim(process);
            assert!(heap.take_run_again(process, other, 1).is_none());
            assert_eq!(thread.free_group(heap, wanted, small, &[block]), (1, 0));
            thread.tidy(heap);
            verify(heap, core::iter::once(&thread)).unwrap();
        });
    }

    /// A block of a slab in reserve that is freed once more is refused, and the slab is kept once.
    #[test]
    fn blocks_of_kept_slabs_are_free() {
        with_thread_heap(|heap, thread| {
            let mut thread = thread.keeping_slabs();
            fill_and_free(heap, &mut thread, 512, 3);
            let class = ClassId::new(class_index(512));
            let kept = thread.reserve.kept().to_vec();
            assert_eq!(kept.len(), 2);
            for &head in &kept {
                let block = heap.granule_addr(head).wrapping_add(512);
                assert_eq!(thread.free_group(heap, head, class, &[block]), (1, 1));
                assert!(heap.free_remote(head, class, thread.id(), 0, 2));
            }
            thread.collect(heap);
            assert_eq!(heap.source().refused_frees.load(Relaxed), 2);
            assert_eq!(thread.reserve.kept(), kept);
            verify(heap, core::iter::once(&thread)).unwrap();
            // Nor does the reserve take one that it has.
            thread.reserve_or_release(heap, &Slab::new(heap, kept[0], class));
            assert_eq!(thread.reserve.kept(), kept);
        });
    }

    /// What a dead process kept goes with it, even half made into a slab of another class.
    #[test]
    fn what_was_kept_dies_with_its_process() {
        with_thread_heap(|heap, thread| {
            let mut thread = thread.keeping_slabs();
            fill_and_free(heap, &mut thread, 512, 3);
            let head = thread.reserve.kept()[0];
            let other = Slab::new(heap, head, ClassId::new(class_index(16)));
            other.init(GRANULE as u32, false);
            let slab = Slab::new(heap, head, ClassId::new(class_index(512)));
            assert_eq!(slab.settle(|_| false, |_, _| ()), 0);
            assert!(slab.is_empty());
        });
    }
}
