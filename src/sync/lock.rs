//! A mutex for the threads of one process that works inside `malloc`.
//!
//! One word: 0 free, 1 taken, 2 taken and somebody may sleep (the three-state futex mutex of
//! Drepper, "Futexes are tricky", 2011). Taking a free lock is one compare-exchange, leaving one
//! nobody waits for is one swap; both without a system call.
//!
//! Ordering: the exchange that takes the lock acquires, the swap that leaves it releases, so all
//! that was written under the lock is seen by its next owner.
//!
//! The lock does not know its owner. A fork while another thread holds it would leave it taken in
//! the child forever: whoever owns a lock takes it in the fork's prepare hook and leaves it on
//! both sides ([`RawLock::lock_raw`], [`RawLock::unlock_raw`]).

use crossbeam_utils::Backoff;

use super::atomic::{AtomicU32, Ordering};
use super::futex::{self, Scope};

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const CONTENDED: u32 = 2;

/// What the algorithm needs of its word; loom has its own.
trait Word {
    fn try_take(&self) -> bool;
    fn load(&self) -> u32;
    fn swap(&self, value: u32, order: Ordering) -> u32;
    fn wait(&self, expected: u32);
    fn wake_one(&self);
}

impl Word for AtomicU32 {
    #[inline]
    fn try_take(&self) -> bool {
        self.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
    fn load(&self) -> u32 {
        AtomicU32::load(self, Ordering::Relaxed)
    }
    #[inline]
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        AtomicU32::swap(self, value, order)
    }
    fn wait(&self, expected: u32) {
        futex::wait(self, expected, None, Scope::Private);
    }
    fn wake_one(&self) {
        futex::wake(self, 1, Scope::Private);
    }
}

#[cold]
fn take_slow<W: Word>(word: &W) {
    let backoff = Backoff::new();
    // Spin only while nobody sleeps: those who sleep came first.
    while !backoff.is_completed() {
        match word.load() {
            FREE if word.try_take() => return,
            CONTENDED => break,
            _ => backoff.snooze(),
        }
    }
    // From here on the word says "contended" whenever we hold it: we cannot know whether others
    // sleep, and one wake too many is harmless.
    while word.swap(CONTENDED, Ordering::Acquire) != FREE {
        word.wait(CONTENDED);
    }
}

#[inline]
fn leave<W: Word>(word: &W) {
    if word.swap(FREE, Ordering::Release) == CONTENDED {
        word.wake_one();
    }
}

/// A mutex without data: whoever declares one says what it guards.
#[derive(Debug)]
pub(crate) struct RawLock(AtomicU32);

/// Holds a [`RawLock`] until dropped.
#[must_use]
pub(crate) struct Guard<'a>(&'a RawLock);

impl RawLock {
    /// A free lock.
    pub(crate) const fn new() -> Self {
        RawLock(AtomicU32::new(FREE))
    }
    /// Takes the lock, waiting while another thread has it.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_> {
        self.lock_raw();
        Guard(self)
    }
    /// Takes the lock without a guard, for fork hooks.
    #[inline]
    pub(crate) fn lock_raw(&self) {
        if !self.0.try_take() {
            take_slow(&self.0);
        }
    }
    /// Leaves a lock that this thread (or in a forked child, the forking thread) took with
    /// [`lock_raw`](RawLock::lock_raw).
    #[inline]
    pub(crate) fn unlock_raw(&self) {
        leave(&self.0);
    }
    /// Whether somebody holds the lock now: a hint, old as soon as it is given.
    #[inline]
    pub(crate) fn is_locked(&self) -> bool {
        Word::load(&self.0) != FREE
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.unlock_raw();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicU64;

    #[test]
    fn excludes() {
        static LOCK: RawLock = RawLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let _guard = LOCK.lock();
                        let seen = COUNT.load(Ordering::Relaxed);
                        COUNT.store(seen + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(COUNT.load(Ordering::Relaxed), 80_000);
        assert!(!LOCK.is_locked());
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::sync::atomic::Ordering;
    use loom::sync::atomic::{AtomicU32, AtomicUsize};
    use loom::sync::{Arc, Condvar, Mutex};

    /// A word whose futex is a condition variable: it sleeps only while the word has the value.
    struct Model {
        word: AtomicU32,
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl Word for Model {
        fn try_take(&self) -> bool {
            self.word.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        }
        fn load(&self) -> u32 {
            // No spinning in the model: go to sleep at once.
            CONTENDED
        }
        fn swap(&self, value: u32, order: Ordering) -> u32 {
            self.word.swap(value, order)
        }
        fn wait(&self, expected: u32) {
            let queue = self.queue.lock().unwrap();
            if self.word.load(Ordering::Relaxed) == expected {
                drop(self.woken.wait(queue).unwrap());
            }
        }
        fn wake_one(&self) {
            let _queue = self.queue.lock().unwrap();
            self.woken.notify_one();
        }
    }

    #[test]
    fn no_lost_wake_and_no_two_owners() {
        let mut builder = loom::model::Builder::new();
        // LOOM_MAX_PREEMPTIONS asks for more.
        builder.preemption_bound.get_or_insert(3);
        builder.check(|| {
            let lock = Arc::new(Model {
                word: AtomicU32::new(FREE),
                queue: Mutex::new(()),
                woken: Condvar::new(),
            });
            let inside = Arc::new(AtomicUsize::new(0));
            let run = |lock: Arc<Model>, inside: Arc<AtomicUsize>| {
                if !lock.try_take() {
                    take_slow(&*lock);
                }
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                inside.fetch_sub(1, Ordering::Relaxed);
                leave(&*lock);
            };
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let (lock, inside) = (lock.clone(), inside.clone());
                    loom::thread::spawn(move || run(lock, inside))
                })
                .collect();
            run(lock.clone(), inside.clone());
            for other in others {
                other.join().unwrap();
            }
        });
    }

    /// What one owner wrote is seen by the next: taking acquires what leaving released.
    #[test]
    fn hands_over_what_it_guards() {
        loom::model(|| {
            let lock = Arc::new(Model {
                word: AtomicU32::new(FREE),
                queue: Mutex::new(()),
                woken: Condvar::new(),
            });
            let guarded = Arc::new(loom::cell::UnsafeCell::new(()));
            let run = |lock: &Model, guarded: &loom::cell::UnsafeCell<()>| {
                if !lock.try_take() {
                    take_slow(lock);
                }
                guarded.with_mut(|_| ());
                leave(lock);
            };
            let other = {
                let (lock, guarded) = (lock.clone(), guarded.clone());
                loom::thread::spawn(move || run(&lock, &guarded))
            };
            run(&lock, &guarded);
            other.join().unwrap();
        });
    }
}
