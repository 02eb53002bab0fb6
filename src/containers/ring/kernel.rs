//! The ring's kernel: cells that hold messages, and a queue of their numbers.
//!
//! ```text
//! cells   word: even: free    odd: busy (a message is written, queued or read)     + a place for a T
//! slots   word: lap (39 bits) | full? | cell (24 bits)
//! tail, head: where to begin looking
//!
//! push:   own = cell       pop:    at: first position that was not emptied
//!         cell: free -> busy       own = its cell
//!         write the message        slot: full(lap, cell) -> empty(lap + 1)     (B)
//!         at: first position       read the message
//!             not filled yet       cell: busy -> free
//!         slot: empty(lap)         own = none
//!           -> full(lap, cell) (A)
//!         own = none
//! ```
//!
//! Position `p` is slot `p % n` in lap `p / n`. A message is in the ring from (A) on and until (B),
//! each one compare-and-exchange: there is no moment in which it is half there, and nobody waits for
//! anybody. Slots are filled in order, because whoever fills `p` has found all before it filled:
//! `tail` is such a position, of some time, and each step from it on looked at the slot. The same
//! goes for emptying and `head`. Both are hints, stored plainly: an older one costs steps. There are
//! at least as many slots as cells, so that who has a cell finds an empty slot.
//!
//! **Ordering.** (A) releases the message and (B) acquires it; freeing a cell releases the reading of
//! it, claiming acquires that.
//!
//! **Lost cells.** Who dies with a cell that is not in a slot takes it along. Everybody says which one
//! that could be, in `own`, *before* the exchange that makes it so. A cell is lost if it is busy, in no
//! slot, and nobody living has it for his own; [`reclaim`](Kernel::reclaim) reads, in this order, the
//! cells' words, the owns, the slots, and the owns again. Take a cell that is *not* lost, whose busy
//! word was read first. Its producer said so before it was busy, and unsays it after (A): either the
//! first look at the owns sees that, or (A) came before it. Then the slots have the cell, or its
//! consumer has done (B), and had said so before: either the second look sees that, or the consumer has
//! unsaid it, after it freed the cell; then the word is another one by now, and the exchange of the
//! word that would free the cell fails.

use crate::base::{Error, Result};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::word::Word;

const FULL: u64 = 1 << 24;
const LAP_SHIFT: u32 = 25;
/// Most cells that there can be.
pub(super) const MAX_CELLS: usize = 1 << 24;

/// What a slot says of a position: laps that it is ahead of it (behind, if negative).
enum Seen {
    Empty(i64),
    Full(i64, u32),
}

/// The words of a ring.
pub(super) struct Kernel<'a, W> {
    /// A power of two of them, at least as many as cells.
    pub(super) slots: &'a [W],
    pub(super) cells: &'a [W],
    pub(super) tail: &'a W,
    pub(super) head: &'a W,
}

impl<W> Clone for Kernel<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W> Copy for Kernel<'_, W> {}

impl<W: Word<u64>> Kernel<'_, W> {
    #[inline]
    fn slot(&self, at: u64) -> &W {
        &self.slots[at as usize & (self.slots.len() - 1)]
    }

    #[inline]
    fn lap(&self, at: u64) -> u64 {
        at >> self.slots.len().trailing_zeros()
    }

    #[inline]
    fn look(&self, at: u64, word: u64) -> Seen {
        // Laps are numbers of 39 bits; the difference of two is never near half of that.
        let ahead = (word >> LAP_SHIFT).wrapping_sub(self.lap(at));
        let ahead = (ahead << LAP_SHIFT) as i64 >> LAP_SHIFT;
        match word & FULL {
            0 => Seen::Empty(ahead),
            _ => Seen::Full(ahead, (word & (FULL - 1)) as u32),
        }
    }

    fn past(&self, at: u64, laps: i64) -> u64 {
        at.wrapping_add((laps as u64).wrapping_mul(self.slots.len() as u64)).wrapping_add(1)
    }

    /// A slot that is behind a position where that cannot be: an old value, as a load may give, or
    /// damage.
    #[cold]
    fn settle(slot: &W, word: u64) -> Result<()> {
        // An exchange sees the newest.
        match slot.compare_exchange(word, word, SeqCst, SeqCst) {
            Ok(_) => Err(Error::Corrupt),
            Err(_) => Ok(()),
        }
    }

    /// The same for those who only look, perhaps at memory that they must not write to.
    #[cold]
    fn look_again(slot: &W, word: u64) -> Result<()> {
        if slot.load(SeqCst) == word { Err(Error::Corrupt) } else { Ok(()) }
    }

    /// Claims a free cell, from number `start` on, and says so in `own`.
    #[inline]
    pub(super) fn claim(&self, own: &W, start: usize) -> Option<usize> {
        let mut at = start;
        for _ in 0..self.cells.len() {
            at = if at < self.cells.len() { at } else { 0 };
            let cell = &self.cells[at];
            let word = cell.load(Relaxed);
            if word & 1 == 0 {
                own.store(at as u64 + 1, Release);
                if cell.compare_exchange(word, word.wrapping_add(1), AcqRel, Relaxed).is_ok() {
                    return Some(at);
                }
            }
            at += 1;
        }
        own.store(0, Release);
        None
    }

    /// Frees a cell that was claimed or taken.
    #[inline]
    pub(super) fn release(&self, own: &W, cell: usize) {
        if let Some(word) = self.cells.get(cell) {
            word.store(word.load(Relaxed).wrapping_add(1), Release);
        }
        own.store(0, Release);
    }

    /// Puts a claimed cell, whose message is written, at the end of the queue.
    #[inline]
    pub(super) fn put(&self, own: &W, cell: usize) -> Result<()> {
        let mut at = self.tail.load(Acquire);
        loop {
            let slot = self.slot(at);
            let word = slot.load(Acquire);
            match self.look(at, word) {
                Seen::Empty(0) => {
                    let full = word | FULL | cell as u64;
                    if slot.compare_exchange(word, full, SeqCst, Relaxed).is_ok() {
                        break;
                    }
                }
                Seen::Full(laps, _) if laps >= 0 => at = self.past(at, laps),
                Seen::Empty(laps) if laps > 0 => at = self.past(at, laps - 1),
                _ => Self::settle(slot, word)?,
            }
        }
        own.store(0, Release);
        self.advance(self.tail, at.wrapping_add(1));
        Ok(())
    }

    /// Moves a hint; not back, as far as that goes without an exchange.
    #[inline]
    fn advance(&self, hint: &W, at: u64) {
        if at.wrapping_sub(hint.load(Relaxed)) as i64 > 0 {
            hint.store(at, Release);
        }
    }

    /// Takes the cell at the head of the queue, if there is one, and says so in `own`.
    #[inline]
    pub(super) fn take(&self, own: &W) -> Result<Option<usize>> {
        loop {
            let (at, cell) = self.first(Self::settle)?;
            let Some((word, cell)) = cell else {
                self.advance(self.head, at);
                own.store(0, Release);
                return Ok(None);
            };
            own.store(u64::from(cell) + 1, Release);
            let empty = (self.lap(at).wrapping_add(1)) << LAP_SHIFT;
            if self.slot(at).compare_exchange(word, empty, SeqCst, Relaxed).is_ok() {
                self.advance(self.head, at.wrapping_add(1));
                return Ok(Some(cell as usize));
            }
        }
    }

    /// The first position that is not emptied yet, and, if it is filled, its slot's word and cell.
    #[inline]
    fn first(&self, settle: fn(&W, u64) -> Result<()>) -> Result<(u64, Option<(u64, u32)>)> {
        let mut at = self.head.load(Acquire);
        loop {
            let slot = self.slot(at);
            let word = slot.load(SeqCst);
            match self.look(at, word) {
                Seen::Full(0, cell) if (cell as usize) < self.cells.len() => {
                    return Ok((at, Some((word, cell))));
                }
                Seen::Full(0, _) => return Err(Error::Corrupt),
                Seen::Empty(0) => return Ok((at, None)),
                Seen::Full(laps, _) | Seen::Empty(laps) if laps > 0 => {
                    at = self.past(at, laps - 1);
                }
                _ => settle(slot, word)?,
            }
        }
    }

    /// A position that is not filled, while all before it were: the first one, if nobody is at work.
    fn end(&self) -> u64 {
        let mut at = self.tail.load(Acquire);
        // Who filled the last ones may have died before he said so in `tail`.
        for _ in 0..self.slots.len() {
            at = match self.look(at, self.slot(at).load(SeqCst)) {
                Seen::Full(laps, _) if laps >= 0 => self.past(at, laps),
                Seen::Empty(laps) if laps > 0 => self.past(at, laps - 1),
                _ => break,
            };
        }
        at
    }

    /// Messages in the queue, at some moment of the call if nobody else is at work; otherwise about,
    /// but zero only if there was a moment without any.
    pub(super) fn len(&self) -> usize {
        let Ok((first, _)) = self.first(Self::look_again) else { return 0 };
        let count = self.end().wrapping_sub(first);
        if count as i64 > 0 { (count as usize).min(self.cells.len()) } else { 0 }
    }

    /// Whether every cell is in the queue.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        let tail = self.tail.load(Acquire);
        let full = |head: u64| tail.wrapping_sub(head) as i64 >= self.cells.len() as i64;
        full(self.head.load(Relaxed))
            && self.first(Self::settle).is_ok_and(|(first, _)| full(first))
    }

    /// Whether the words at the head can be.
    pub(super) fn check(&self) -> Result<()> {
        self.first(Self::look_again).map(|_| ())
    }

    /// Frees the cells that nobody will: see the module. `owns` gives what the living say.
    #[cold]
    pub(super) fn reclaim(&self, mut owns: impl FnMut(&mut dyn FnMut(u64))) -> usize {
        let words: Vec<u64> = self.cells.iter().map(|cell| cell.load(Acquire)).collect();
        let mut held: Vec<bool> = words.iter().map(|word| word & 1 == 0).collect();
        let mut hold = |cell: u64| {
            if let Some(held) = held.get_mut(cell as usize) {
                *held = true;
            }
        };
        owns(&mut |own| hold(own.wrapping_sub(1)));
        for slot in self.slots {
            let word = slot.load(SeqCst);
            if word & FULL != 0 {
                hold(word & (FULL - 1));
            }
        }
        owns(&mut |own| hold(own.wrapping_sub(1)));
        let lost = (0..words.len()).filter(|&cell| !held[cell]);
        lost.filter(|&cell| {
            let (word, free) = (words[cell], words[cell].wrapping_add(1));
            self.cells[cell].compare_exchange(word, free, AcqRel, Relaxed).is_ok()
        })
        .count()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicU64;
    use std::collections::VecDeque;

    struct Ring {
        slots: Vec<AtomicU64>,
        cells: Vec<AtomicU64>,
        tail: AtomicU64,
        head: AtomicU64,
    }

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    impl Ring {
        fn new(slots: usize, cells: usize) -> Ring {
            let (tail, head) = (AtomicU64::new(0), AtomicU64::new(0));
            Ring { slots: words(slots), cells: words(cells), tail, head }
        }
        fn kernel(&self) -> Kernel<'_, AtomicU64> {
            let Ring { slots, cells, tail, head } = self;
            Kernel { slots, cells, tail, head }
        }
    }

    /// Whatever the hints say, as long as it once was true.
    #[test]
    fn old_hints_only_cost_steps() {
        let ring = Ring::new(4, 3);
        let kernel = ring.kernel();
        let own = AtomicU64::new(0);
        let mut model = VecDeque::new();
        let mut random = 7u64;
        let (mut pushed, mut popped) = (0u64, 0u64);
        for _ in 0..100_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match random >> 61 {
                0..=2 => match kernel.claim(&own, (random >> 40) as usize % 3) {
                    Some(cell) => {
                        kernel.put(&own, cell).unwrap();
                        model.push_back(cell);
                        pushed += 1;
                    }
                    None => assert_eq!(model.len(), 3),
                },
                3..=5 => {
                    let cell = kernel.take(&own).unwrap();
                    assert_eq!(cell, model.pop_front());
                    if let Some(cell) = cell {
                        kernel.release(&own, cell);
                        popped += 1;
                    }
                }
                6 => ring.tail.store(pushed.saturating_sub(random >> 30 & 31), Relaxed),
                _ => ring.head.store(popped.saturating_sub(random >> 30 & 31), Relaxed),
            }
            assert_eq!(own.load(Relaxed), 0);
            assert_eq!(kernel.len(), model.len());
            if ring.tail.load(Relaxed) == pushed {
                assert_eq!(kernel.is_full(), model.len() == 3);
            }
        }
        assert!(pushed > 10_000);
    }

    #[test]
    fn lap_numbers_go_round() {
        let ring = Ring::new(2, 2);
        let kernel = ring.kernel();
        let own = AtomicU64::new(0);
        // The last position of the last lap but one.
        let at = ((1u64 << 39) - 1) * 2;
        for (slot, lap) in [(0, (1u64 << 39) - 1), (1, (1 << 39) - 1)] {
            ring.slots[slot].store(lap << LAP_SHIFT, Relaxed);
        }
        ring.tail.store(at, Relaxed);
        ring.head.store(at, Relaxed);
        for _ in 0..20 {
            let cell = kernel.claim(&own, 0).unwrap();
            kernel.put(&own, cell).unwrap();
            assert_eq!(kernel.len(), 1);
            assert_eq!(kernel.take(&own), Ok(Some(cell)));
            kernel.release(&own, cell);
            assert_eq!(kernel.take(&own), Ok(None));
        }
    }

    #[test]
    fn lost_cells_come_back_and_no_others() {
        let ring = Ring::new(4, 4);
        let kernel = ring.kernel();
        let owns = words(3);
        // One is queued, one is written by a living process, two by dead ones.
        let queued = kernel.claim(&owns[0], 0).unwrap();
        kernel.put(&owns[0], queued).unwrap();
        kernel.claim(&owns[0], 0).unwrap();
        let lost = [kernel.claim(&owns[1], 0).unwrap(), kernel.claim(&owns[2], 0).unwrap()];
        assert_eq!(kernel.claim(&AtomicU64::new(0), 0), None);
        assert!(!kernel.is_full());
        let freed = kernel.reclaim(|tell| tell(owns[0].load(Relaxed)));
        assert_eq!(freed, 2);
        let found = [kernel.claim(&owns[1], 0).unwrap(), kernel.claim(&owns[2], 0).unwrap()];
        assert_eq!(found, lost);
        let everybody = || owns.iter().map(|own| own.load(Relaxed)).collect::<Vec<_>>();
        assert_eq!(kernel.reclaim(|tell| everybody().into_iter().for_each(tell)), 0);
    }

    /// Any words give an answer, in the end.
    #[test]
    fn damaged_words_end() {
        let mut random = 99u64;
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let few = [u64::MAX, 0, FULL, FULL - 1, 1 << LAP_SHIFT, random >> 8, random >> 33];
            few[(random >> 60) as usize % 7]
        };
        for _ in 0..20_000 {
            let ring = Ring::new(4, 3);
            for word in ring.slots.iter().chain(&ring.cells).chain([&ring.tail, &ring.head]) {
                word.store(next(), Relaxed);
            }
            let (kernel, own) = (ring.kernel(), AtomicU64::new(0));
            if let Some(cell) = kernel.claim(&own, next() as usize) {
                let _ = kernel.put(&own, cell);
            }
            if let Ok(Some(cell)) = kernel.take(&own) {
                kernel.release(&own, cell);
            }
            kernel.reclaim(|tell| tell(next()));
            assert!(kernel.len() <= 3);
            kernel.is_full();
        }
    }
}

#[cfg(all(test, loom))]
#[allow(unsafe_code)] // messages are written without atomics, under loom's eyes
mod loom_models {
    use super::*;
    use crate::sync::atomic::model::AtomicU64;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    struct Ring {
        slots: Vec<AtomicU64>,
        cells: Vec<AtomicU64>,
        messages: Vec<UnsafeCell<u32>>,
        tail: AtomicU64,
        head: AtomicU64,
        owns: Vec<AtomicU64>,
    }

    fn ring(size: usize, threads: usize) -> Arc<Ring> {
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        Arc::new(Ring {
            slots: words(size),
            cells: words(size),
            messages: (0..size).map(|_| UnsafeCell::new(0)).collect(),
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            owns: words(threads),
        })
    }

    impl Ring {
        fn kernel(&self) -> Kernel<'_, AtomicU64> {
            let Ring { slots, cells, tail, head, .. } = self;
            Kernel { slots, cells, tail, head }
        }
        fn push(&self, own: usize, message: u32) -> bool {
            let own = &self.owns[own];
            let Some(cell) = self.kernel().claim(own, 0) else { return false };
            self.messages[cell].with_mut(|place| {
                // SAFETY: the cell is claimed: loom sees who else looks at it.
                unsafe { *place = message }
            });
            self.kernel().put(own, cell).unwrap();
            true
        }
        fn pop(&self, own: usize) -> Option<u32> {
            let own = &self.owns[own];
            let cell = self.kernel().take(own).unwrap()?;
            let message = self.messages[cell].with(|place| {
                // SAFETY: the cell was taken: loom sees who else looks at it.
                unsafe { *place }
            });
            self.kernel().release(own, cell);
            Some(message)
        }
    }

    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// Two producers and a consumer: nothing is lost, doubled, or read while it is written.
    #[test]
    fn messages_arrive_once() {
        check(|| {
            let ring = ring(2, 3);
            let producers: Vec<_> = (1..3)
                .map(|number| {
                    let ring = ring.clone();
                    loom::thread::spawn(move || assert!(ring.push(number, number as u32)))
                })
                .collect();
            let early = ring.pop(0);
            producers.into_iter().for_each(|producer| producer.join().unwrap());
            let mut got: Vec<u32> = early.into_iter().collect();
            got.extend(std::iter::from_fn(|| ring.pop(0)));
            got.sort();
            assert_eq!(got, [1, 2]);
        });
    }

    /// A producer and two consumers: in order, and cells are used again only when they were read.
    #[test]
    fn messages_keep_their_order() {
        check(|| {
            let ring = ring(2, 3);
            assert!(ring.push(0, 1));
            let consumers: Vec<_> = (1..3)
                .map(|number| {
                    let ring = ring.clone();
                    loom::thread::spawn(move || ring.pop(number))
                })
                .collect();
            assert!(ring.push(0, 2));
            let third = ring.push(0, 3);
            let mut got: Vec<u32> =
                consumers.into_iter().filter_map(|consumer| consumer.join().unwrap()).collect();
            got.sort();
            let taken = got.len() as u32;
            got.extend(std::iter::from_fn(|| ring.pop(0)));
            // The consumers got the first ones, whoever got which.
            assert!(taken >= 1);
            assert_eq!(got, (1..=2 + third as u32).collect::<Vec<_>>());
        });
    }

    /// Somebody looks for lost cells while others are at work: there are none.
    #[test]
    fn nothing_living_is_reclaimed() {
        check(|| {
            let ring = ring(2, 3);
            assert!(ring.push(0, 1));
            let others = [
                {
                    let ring = ring.clone();
                    loom::thread::spawn(move || assert!(ring.push(1, 2)))
                },
                {
                    let ring = ring.clone();
                    loom::thread::spawn(move || {
                        ring.pop(2);
                    })
                },
            ];
            let owns = || ring.owns.iter().map(|own| own.load(Acquire)).collect::<Vec<_>>();
            let reclaimed = ring.kernel().reclaim(|tell| owns().into_iter().for_each(tell));
            assert_eq!(reclaimed, 0);
            others.into_iter().for_each(|other| other.join().unwrap());
        });
    }
}
