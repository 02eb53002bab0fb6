//! The lock between processes.
//!
//! One word in shared memory: 0 when free, otherwise the holder's process slot + 1, with the top
//! bit set while somebody may be waiting. Knowing the holder is what lets a later process take the
//! lock over from a dead one.
//!
//! Ordering: taking the lock is an acquire, giving it back a release, of the one word.

use super::atomic::{AtomicU32, Ordering};
use super::futex::{self, Scope};

const WAITERS: u32 = 1 << 31;
/// None in a model, where to spin is to look at the same word for ever.
const SPINS: u32 = if cfg!(loom) { 0 } else { 64 };

/// Names the process that holds a [`ShmLock`]: its slot in the region's process table, plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Holder(u32);

impl Holder {
    /// A holder without a process slot: in regions that have no process table.
    pub(crate) const UNKNOWN: Holder = Holder(!WAITERS);
    /// The holder for process slot `slot`.
    #[inline]
    pub(crate) const fn slot(slot: u32) -> Holder {
        Holder((slot + 1) & !WAITERS)
    }
}

/// What the algorithm needs of its word; loom has its own.
trait Word {
    fn load(&self) -> u32;
    fn replace(&self, current: u32, new: u32, success: Ordering) -> bool;
    fn swap(&self, value: u32, order: Ordering) -> u32;
    fn wait(&self, expected: u32);
    fn wake_one(&self);
}

impl Word for AtomicU32 {
    #[inline]
    fn load(&self) -> u32 {
        AtomicU32::load(self, Ordering::Relaxed)
    }
    #[inline]
    fn replace(&self, current: u32, new: u32, success: Ordering) -> bool {
        self.compare_exchange(current, new, success, Ordering::Relaxed).is_ok()
    }
    #[inline]
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        AtomicU32::swap(self, value, order)
    }
    fn wait(&self, expected: u32) {
        futex::wait(self, expected, None, Scope::Shared);
    }
    fn wake_one(&self) {
        futex::wake(self, 1, Scope::Shared);
    }
}

#[inline]
fn take<W: Word>(word: &W, holder: Holder) {
    if !word.replace(0, holder.0, Ordering::Acquire) {
        take_slow(word, holder);
    }
}

#[cold]
fn take_slow<W: Word>(word: &W, holder: Holder) {
    for _ in 0..SPINS {
        core::hint::spin_loop();
        if word.load() == 0 && word.replace(0, holder.0, Ordering::Acquire) {
            return;
        }
    }
    loop {
        let seen = word.load();
        if seen == 0 {
            // Others may still sleep: keep the waiters bit, an unneeded wake is harmless.
            if word.replace(0, holder.0 | WAITERS, Ordering::Acquire) {
                return;
            }
            continue;
        }
        if seen & WAITERS == 0 && !word.replace(seen, seen | WAITERS, Ordering::Relaxed) {
            continue;
        }
        word.wait(seen | WAITERS);
    }
}

#[inline]
fn leave<W: Word>(word: &W) {
    if word.swap(0, Ordering::Release) & WAITERS != 0 {
        word.wake_one();
    }
}

/// A mutual exclusion lock for the structures of a region. Lies in shared memory; zero is free.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct ShmLock {
    word: AtomicU32,
}

impl ShmLock {
    /// A free lock.
    pub(crate) const fn new() -> Self {
        ShmLock { word: AtomicU32::new(0) }
    }

    /// Waits for the lock and takes it.
    #[inline]
    pub(crate) fn lock(&self, holder: Holder) -> ShmGuard<'_> {
        take(&self.word, holder);
        ShmGuard { lock: self }
    }

    /// [`lock`](ShmLock::lock) without a guard: for the fork hooks, which take it in one function
    /// and leave it in another.
    pub(crate) fn lock_raw(&self, holder: Holder) {
        core::mem::forget(self.lock(holder));
    }

    /// Leaves a lock taken by [`lock_raw`](ShmLock::lock_raw).
    pub(crate) fn unlock_raw(&self) {
        drop(ShmGuard { lock: self });
    }

    /// Whether somebody holds the lock.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_locked(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0
    }

    /// Frees the lock whoever holds it: for a forked child's own copy of a region.
    pub(crate) fn reset(&self) {
        self.word.store(0, Ordering::Release);
    }
}

/// Holds a [`ShmLock`] until dropped.
#[derive(Debug)]
pub(crate) struct ShmGuard<'a> {
    lock: &'a ShmLock,
}

impl Drop for ShmGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        leave(&self.lock.word);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn excludes_and_wakes() {
        static LOCK: ShmLock = ShmLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for slot in 0..4 {
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let _guard = LOCK.lock(Holder::slot(slot));
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
    use loom::sync::atomic::{AtomicU32, AtomicUsize};
    use loom::sync::{Arc, Condvar, Mutex};

    /// A word whose futex is a condition variable: it sleeps only while the word has the value.
    struct Model {
        word: AtomicU32,
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl Word for Model {
        fn load(&self) -> u32 {
            self.word.load(Ordering::Relaxed)
        }
        fn replace(&self, current: u32, new: u32, success: Ordering) -> bool {
            self.word.compare_exchange(current, new, success, Ordering::Relaxed).is_ok()
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

    /// Three processes pass the lock around: never two inside, and every sleeper is woken.
    #[test]
    fn one_holder_and_no_lost_wake() {
        let mut builder = loom::model::Builder::new();
        // LOOM_MAX_PREEMPTIONS asks for more.
        builder.preemption_bound.get_or_insert(2);
        builder.check(|| {
            let lock = Arc::new(Model {
                word: AtomicU32::new(0),
                queue: Mutex::new(()),
                woken: Condvar::new(),
            });
            let inside = Arc::new(AtomicUsize::new(0));
            let run = |slot, lock: &Model, inside: &AtomicUsize| {
                take(lock, Holder::slot(slot));
                assert_eq!(lock.load() & !WAITERS, Holder::slot(slot).0);
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                inside.fetch_sub(1, Ordering::Relaxed);
                leave(lock);
            };
            let others: Vec<_> = (0..2)
                .map(|slot| {
                    let (lock, inside) = (lock.clone(), inside.clone());
                    loom::thread::spawn(move || run(slot, &lock, &inside))
                })
                .collect();
            run(2, &lock, &inside);
            for other in others {
                other.join().unwrap();
            }
            assert_eq!(lock.load(), 0);
        });
    }

    /// What one holder wrote is seen by the next: taking acquires what leaving released.
    #[test]
    fn hands_over_what_it_guards() {
        loom::model(|| {
            let lock = Arc::new(Model {
                word: AtomicU32::new(0),
                queue: Mutex::new(()),
                woken: Condvar::new(),
            });
            let guarded = Arc::new(loom::cell::UnsafeCell::new(()));
            let run = |slot, lock: &Model, guarded: &loom::cell::UnsafeCell<()>| {
                take(lock, Holder::slot(slot));
                guarded.with_mut(|_| ());
                leave(lock);
            };
            let other = {
                let (lock, guarded) = (lock.clone(), guarded.clone());
                loom::thread::spawn(move || run(0, &lock, &guarded))
            };
            run(1, &lock, &guarded);
            other.join().unwrap();
        });
    }
}
