//! A gate that visitors pass without an atomic instruction, and that can be closed behind them.
//!
//! ```text
//! visitor   visits += 1        (plain)         closer   closed = 1
//!           [barrier]                                   barrier in every thread
//!           closed? then out again, and wait            wait until all visits are 0
//! ```
//!
//! Either the visitor's count is there for the closer to see, or the visitor sees the gate closed:
//! the pattern of Dekker's lock, with the visitor's barrier moved to the closer, who is rare
//! (Dice, Huang and Yang, "Asymmetric Dekker synchronization", 2001). Where the system has no
//! barrier for all threads to offer, visitors fence themselves; that is also how a gate starts.
//!
//! While it is closed nobody is inside, and nobody gets in: what visitors work on stands still.

use super::atomic::{AtomicU32, Ordering, compiler_fence, fence};
use super::futex::{self, Scope};
use super::lock::RawLock;
use super::word::Word;
use crossbeam_utils::Backoff;

/// Nobody may enter.
const CLOSED: u32 = 1;
/// Visitors need not fence.
const UNFENCED: u32 = 2;

/// So long a closer sleeps before it looks again, where a visitor takes his time.
const NAP_NS: u64 = 100_000;

/// Visitor: counts itself in, then looks whether it may be. `barrier` orders the two where no closer
/// does.
#[inline]
fn come<W: Word<u32>>(visits: &W, count: u32, state: &W, barrier: impl FnOnce()) -> bool {
    visits.store(count, Ordering::Relaxed);
    barrier();
    // Acquire: what a closer did to things while they stood still is seen inside.
    state.load(Ordering::Acquire) & CLOSED == 0
}

/// Visitor: counts itself out again. Release: a closer that sees no visits sees all that was done on
/// them.
#[inline]
fn leave<W: Word<u32>>(visits: &W, count: u32) {
    visits.store(count, Ordering::Release);
}

/// Closer: whoever comes after `barrier` sees the gate closed, and whoever came before is seen.
fn shut<W: Word<u32>>(state: &W, barrier: impl FnOnce(u32)) {
    barrier(state.fetch_or(CLOSED, Ordering::SeqCst));
}

/// Closer: whether a visitor is inside. Acquire: with [`leave`].
fn is_inside<W: Word<u32>>(visits: &W) -> bool {
    visits.load(Ordering::Acquire) != 0
}

/// How often its thread is inside: nested visits count. Written by that thread only.
#[derive(Debug)]
pub(crate) struct Visits(AtomicU32);

impl Visits {
    /// None.
    pub(crate) const fn new() -> Self {
        Visits(AtomicU32::new(0))
    }
    /// In a forked child: their thread is not there.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// See the [module](self).
pub(crate) struct Gate {
    state: AtomicU32,
    /// Visits of threads that have no [`Visits`] of their own.
    strays: AtomicU32,
    /// Held by whoever has closed the gate.
    closer: RawLock,
}

/// A visit, until dropped.
#[must_use]
pub(crate) struct Visit<'a> {
    visits: &'a AtomicU32,
    stray: bool,
}

impl Drop for Visit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.stray {
            self.visits.fetch_sub(1, Ordering::Release);
        } else {
            leave(self.visits, self.visits.load(Ordering::Relaxed) - 1);
        }
    }
}

impl Gate {
    /// An open gate.
    pub(crate) const fn new() -> Self {
        Gate { state: AtomicU32::new(0), strays: AtomicU32::new(0), closer: RawLock::new() }
    }
    /// From now on closers bring the barrier.
    pub(crate) fn rely_on_closers(&self) {
        self.state.fetch_or(UNFENCED, Ordering::SeqCst);
    }

    /// In a forked child of whoever closed the gate: the strays are not there, unless the calling
    /// thread is one, which a closed gate has none of.
    pub(crate) fn forget_strays(&self) {
        self.strays.store(0, Ordering::Relaxed);
    }

    /// Enters, with the calling thread's `visits`; waits while the gate is closed, unless the
    /// thread is inside already.
    #[inline]
    pub(crate) fn enter<'a>(&'a self, visits: &'a Visits) -> Visit<'a> {
        let visits = &visits.0;
        let count = visits.load(Ordering::Relaxed);
        let fenced = self.state.load(Ordering::Relaxed) & UNFENCED == 0;
        let barrier = || {
            if fenced {
                fence(Ordering::SeqCst);
            }
            // The closer's barrier works on memory: what is still in a register it does not see.
            compiler_fence(Ordering::SeqCst);
        };
        if !come(visits, count + 1, &self.state, barrier) && count == 0 {
            self.enter_slow(visits);
        }
        Visit { visits, stray: false }
    }

    #[cold]
    fn enter_slow(&self, visits: &AtomicU32) {
        loop {
            leave(visits, 0);
            self.wait_open();
            if come(visits, 1, &self.state, || fence(Ordering::SeqCst)) {
                return;
            }
        }
    }

    /// Enters without [`Visits`]. Such visits must not nest.
    pub(crate) fn enter_stray(&self) -> Visit<'_> {
        loop {
            self.strays.fetch_add(1, Ordering::SeqCst);
            if self.state.load(Ordering::SeqCst) & CLOSED == 0 {
                return Visit { visits: &self.strays, stray: true };
            }
            self.strays.fetch_sub(1, Ordering::Release);
            self.wait_open();
        }
    }

    fn wait_open(&self) {
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state & CLOSED == 0 {
                return;
            }
            futex::wait(&self.state, state, None, Scope::Private);
        }
    }

    /// Closes the gate, after others who have; returns when nobody is inside any more.
    ///
    /// `barrier` runs a memory barrier in every thread of the process; `visitors` gives the
    /// [`Visits`] of all threads but the caller's. They may grow in number meanwhile.
    pub(crate) fn close<'a, V>(&self, barrier: impl FnOnce(), visitors: impl FnOnce() -> V)
    where
        V: Iterator<Item = &'a Visits>,
    {
        self.closer.lock_raw();
        shut(&self.state, |before| {
            if before & UNFENCED != 0 {
                barrier();
            }
            fence(Ordering::SeqCst);
        });
        for visits in visitors() {
            wait_until_zero(&visits.0);
        }
        wait_until_zero(&self.strays);
    }

    /// Opens the gate that the caller closed, or in a forked child its parent's thread.
    pub(crate) fn open(&self) {
        self.state.fetch_and(!CLOSED, Ordering::Release);
        futex::wake(&self.state, u32::MAX, Scope::Private);
        self.closer.unlock_raw();
    }
}

fn wait_until_zero(word: &AtomicU32) {
    let backoff = Backoff::new();
    while is_inside(word) {
        if backoff.is_completed() {
            // Visitors do not wake anybody: that would cost all of them.
            let count = word.load(Ordering::Relaxed);
            if count != 0 {
                futex::wait(word, count, Some(NAP_NS), Scope::Private);
            }
        } else {
            backoff.snooze();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicU64;
    use std::time::Duration;

    /// Two counters that are equal whenever nobody is inside.
    fn stands_still(gate: &'static Gate, barrier: fn()) {
        static PAIR: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
        let visits: Vec<Visits> = (0..3).map(|_| Visits::new()).collect();
        let visits: &'static [Visits] = Vec::leak(visits);
        let stop: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
        PAIR.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let threads: Vec<_> = visits
            .iter()
            .map(|visits| {
                std::thread::spawn(move || {
                    static LOCK: RawLock = RawLock::new();
                    while stop.load(Ordering::Relaxed) == 0 {
                        let _visit = gate.enter(visits);
                        let _nested = gate.enter(visits);
                        let _guard = LOCK.lock();
                        for word in &PAIR {
                            word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        for _ in 0..200 {
            gate.close(barrier, || visits.iter());
            let before: Vec<u64> = PAIR.iter().map(|word| word.load(Ordering::Relaxed)).collect();
            assert_eq!(before[0], before[1]);
            std::thread::sleep(Duration::from_micros(50));
            assert!(PAIR.iter().all(|word| word.load(Ordering::Relaxed) == before[0]));
            gate.open();
        }
        stop.store(1, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn what_visitors_work_on_stands_still() {
        static GATE: Gate = Gate::new();
        stands_still(&GATE, || panic!("no barrier is needed where visitors fence"));
    }

    #[test]
    fn strays_wait_too() {
        static GATE: Gate = Gate::new();
        GATE.close(|| (), core::iter::empty);
        let late = std::thread::spawn(|| drop(GATE.enter_stray()));
        std::thread::sleep(Duration::from_millis(5));
        assert!(!late.is_finished());
        GATE.open();
        late.join().unwrap();
        GATE.close(|| (), core::iter::empty);
        GATE.open();
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::sync::Arc;

    fn fence() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Fences stand for the barriers of both sides; who is inside touches what is guarded.
    #[test]
    fn nobody_is_inside_a_closed_gate() {
        loom::model(|| {
            let word = loom::sync::atomic::AtomicU32::new;
            let words = Arc::new((word(0), word(0)));
            let guarded = Arc::new(loom::cell::UnsafeCell::new(()));
            let visitor = {
                let (words, guarded) = (words.clone(), guarded.clone());
                loom::thread::spawn(move || {
                    let (visits, state) = &*words;
                    for _ in 0..2 {
                        if come(visits, 1, state, fence) {
                            guarded.with_mut(|_| ());
                        }
                        leave(visits, 0);
                    }
                })
            };
            let (visits, state) = &*words;
            shut(state, |_| fence());
            if !is_inside(visits) {
                guarded.with_mut(|_| ());
            }
            visitor.join().unwrap();
        });
    }
}
