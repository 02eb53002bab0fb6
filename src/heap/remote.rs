//! Returning blocks to a slab that another thread owns.
//!
//! ```text
//! freer:   remote word |= bits          (1)
//!          if pending turns from 0 to my number:
//!              push slab on the owner's list
//! owner:   pending = my number, for each slab on the list
//!          list turns from that to empty
//!          for each slab that was on it:
//!              next = slab.remote_next; pending = 0   (2)
//!              merge: local |= remote; remote &= !merged   (3)
//! ```
//!
//! `pending` says who may use the slab's link: whoever turns it from 0 to its number owns the link until a
//! list's owner takes the slab off and clears it. No bit is lost: a freer that finds `pending` set
//! did so before (2), so its bits (1) are there for the merge at (3); one that comes after (2)
//! pushes the slab again. (1), (2) and (3) are read-modify-writes or sequentially consistent, so
//! that the freer's store and load cannot pass each other.
//!
//! A slab may change hands between a freer's (1) and its push: the owner merged the bits, found
//! the slab empty, gave it up, and somebody else made a slab of it. The late push then puts it on
//! the *old* owner's list. That owner sees in the granule map that it is not his and passes it on
//! (`pass_on` in `thread`); the descriptor always exists, so nothing dangles.
//!
//! One `fetch_or` returns up to 64 blocks. Nothing here waits for anybody.
//!
//! A process that dies behind (1) leaves bits that nobody announced: whoever reaps it announces them. One
//! that dies before the push leaves a slab that nobody can announce any more, and so does an owner that
//! dies with a list that it took. Both leave a dead process's number in it, for a list is marked
//! as its taker's before it is taken. So a slab with a dead one's number is on a thread block's list still,
//! or on none: in the second case, and only then, somebody may clear it (`forget_dead_announcer` in
//! `reap`; the first is that of a late push). After every death each owner looks through its slabs for
//! such (`ThreadHeap::rescue`), and whoever begins a slab or a run looks at that one.

use crate::sync::atomic::Ordering;
use crate::sync::word::Word;

/// Freer (its number, not 0), after its bits are set: makes sure that the slab (granule + 1) is on
/// the list at `head`. True where it was this one who put it there.
#[inline]
pub(crate) fn announce<W: Word<u32>>(
    pending: &W,
    next: &W,
    head: &W,
    slab: u32,
    freer: u32,
) -> bool {
    // Not a swap: the number has to be that of the one who pushes, whoever comes to nothing here.
    let free = pending.load(Ordering::SeqCst) == 0
        && pending.compare_exchange(0, freer, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    if !free {
        return false;
    }
    let mut first = head.load(Ordering::Relaxed);
    loop {
        next.store(first, Ordering::Relaxed);
        // Release: whoever takes the list sees the link, and the bits.
        match head.compare_exchange(first, slab, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => first = now,
        }
    }
}

/// Owner: takes the whole list, all of whose slabs have its number (not 0) from then on. Zero is an empty one.
///
/// `links` gives the `pending` and `next` words of a slab (granule + 1), if it can be one; a damaged list
/// is followed for `most` slabs.
pub(crate) fn take_list<'a, W: Word<u32> + 'a>(
    head: &W,
    taker: u32,
    most: u32,
    links: impl Fn(u32) -> Option<(&'a W, &'a W)>,
) -> u32 {
    let mut first = head.load(Ordering::Acquire);
    let mut marked = 0;
    while first != 0 {
        let (mut at, mut left) = (first, most);
        while at != marked
            && left > 0
            && let Some((pending, next)) = links(at)
        {
            left -= 1;
            // What is on the list is pending, and stays so: nobody else changes the word. If somebody
            // else takes the list all the same (a thread block that changes hands), it may become 0.
            let seen = pending.load(Ordering::Relaxed);
            if seen != 0 && seen != taker {
                let _ = pending.compare_exchange(seen, taker, Ordering::SeqCst, Ordering::Relaxed);
            }
            at = next.load(Ordering::Relaxed);
        }
        match head.compare_exchange(first, 0, Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => return first,
            Err(now) => (marked, first) = (first, now),
        }
    }
    0
}

/// Owner: takes a slab off the list it took; afterwards the slab's remote words must be merged.
/// Returns the next slab of the list (+1), zero at the end.
#[inline]
pub(crate) fn unlink<W: Word<u32>>(pending: &W, next: &W) -> u32 {
    let following = next.load(Ordering::Relaxed);
    pending.swap(0, Ordering::SeqCst);
    following
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, AtomicU64};
    use std::collections::BTreeSet;

    /// What the owner's first look found, over all runs of a model.
    type Seen = std::sync::Arc<std::sync::Mutex<BTreeSet<u64>>>;

    const OWNER: u32 = 9;
    const FREER: u32 = 70;

    struct Model {
        bits: AtomicU64,
        pending: AtomicU32,
        next: AtomicU32,
        head: AtomicU32,
    }

    impl Model {
        fn free(&self, bit: u64) -> bool {
            assert_eq!(self.bits.fetch_or(bit, Ordering::SeqCst) & bit, 0);
            announce(&self.pending, &self.next, &self.head, 1, FREER + bit as u32)
        }
        fn take(&self) -> u32 {
            let links = |_| Some((&self.pending, &self.next));
            take_list(&self.head, OWNER, 9, links)
        }
        fn drain(&self) -> u64 {
            let mut got = 0;
            let mut at = self.take();
            while at != 0 {
                assert_eq!((at, self.pending.load(Ordering::SeqCst)), (1, OWNER));
                at = unlink(&self.pending, &self.next);
                let bits = self.bits.load(Ordering::SeqCst);
                got |= bits;
                self.bits.fetch_and(!bits, Ordering::AcqRel);
            }
            got
        }
    }

    fn model() -> Arc<Model> {
        Arc::new(Model {
            bits: AtomicU64::new(0),
            pending: AtomicU32::new(0),
            next: AtomicU32::new(0),
            head: AtomicU32::new(0),
        })
    }

    // In the models the main thread frees and another drains: loom runs the main thread first and
    // then looks for other orders of what it did, which a load before a later exchange does not
    // make it find. Each model checks at its end that the interesting orders have been run.

    /// Two freers and an owner that drains while they work: every bit arrives exactly once, and
    /// none needs another free to be seen.
    #[test]
    fn no_bit_is_lost_or_doubled() {
        let seen = Seen::default();
        let record = seen.clone();
        loom::model(move || {
            let shared = model();
            let owner = {
                let shared = shared.clone();
                loom::thread::spawn(move || shared.drain())
            };
            let freer = {
                let shared = shared.clone();
                loom::thread::spawn(move || shared.free(2))
            };
            shared.free(1);
            freer.join().unwrap();
            let early = owner.join().unwrap();
            let late = shared.drain();
            assert_eq!(early & late, 0);
            assert_eq!(early | late, 3);
            record.lock().unwrap().insert(early);
        });
        assert_eq!(seen.lock().unwrap().iter().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    /// Who has the link is who is named: were it the other, its death would be mistaken for his.
    #[test]
    fn a_slab_names_the_one_who_announces_it() {
        let seen = Seen::default();
        let record = seen.clone();
        loom::model(move || {
            let shared = model();
            let other = {
                let shared = shared.clone();
                loom::thread::spawn(move || shared.free(2))
            };
            let puts = shared.free(1);
            assert_ne!(other.join().unwrap(), puts);
            let named = shared.pending.load(Ordering::SeqCst);
            assert_eq!(named, FREER + if puts { 1 } else { 2 });
            record.lock().unwrap().insert(puts as u64);
        });
        assert_eq!(seen.lock().unwrap().iter().copied().collect::<Vec<_>>(), [0, 1]);
    }

    /// Two slabs pushed on one list by two freers: the list keeps both.
    #[test]
    fn pushes_do_not_lose_each_other() {
        let seen = Seen::default();
        let record = seen.clone();
        loom::model(move || {
            let head = Arc::new(AtomicU32::new(0));
            let slabs: Arc<[(AtomicU32, AtomicU32); 2]> =
                Arc::new([(); 2].map(|()| (AtomicU32::new(0), AtomicU32::new(0))));
            let push = |index: usize, head: &AtomicU32, slabs: &[(AtomicU32, AtomicU32); 2]| {
                let (pending, next) = &slabs[index];
                announce(pending, next, head, index as u32 + 1, 7);
            };
            let drain = |head: &AtomicU32, slabs: &[(AtomicU32, AtomicU32); 2]| {
                let links = |at: u32| {
                    let (pending, next) = slabs.get(at.wrapping_sub(1) as usize)?;
                    Some((pending, next))
                };
                let (mut got, mut at) = (0, take_list(head, OWNER, 9, links));
                while at != 0 {
                    got |= 1 << (at - 1);
                    let (pending, next) = &slabs[at as usize - 1];
                    assert_eq!(pending.load(Ordering::SeqCst), OWNER);
                    at = unlink(pending, next);
                }
                got
            };
            let owner = {
                let (head, slabs) = (head.clone(), slabs.clone());
                loom::thread::spawn(move || drain(&head, &slabs))
            };
            let freer = {
                let (head, slabs) = (head.clone(), slabs.clone());
                loom::thread::spawn(move || push(1, &head, &slabs))
            };
            push(0, &head, &slabs);
            freer.join().unwrap();
            let early = owner.join().unwrap();
            let late = drain(&head, &slabs);
            assert_eq!(early & late, 0);
            assert_eq!(early | late, 3);
            record.lock().unwrap().insert(early);
        });
        assert_eq!(seen.lock().unwrap().iter().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}
