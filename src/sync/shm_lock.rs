//! The lock between processes.
//!
//! One word in shared memory: 0 when free, otherwise the holder's number, with the top bit set while
//! somebody may be waiting. Numbers are given out once, so that a name never comes to mean another.
//! Knowing the holder is what lets a later process take the
//! lock over from a dead one ([`ShmLock::lock_or_inherit`]): a waiter sleeps for a bounded time, then
//! asks whether the holder still lives, and if not replaces its name by its own in one exchange. It
//! then has the lock, and the duty to repair what the lock protects.
//!
//! No sleep is without a bound, so that a wake which was sent to a process that died before it could
//! take the lock costs the others a moment and not for ever.
//!
//! Ordering: taking the lock is an acquire, giving it back a release, of the one word. Taking it
//! over acquires the word that the dead holder wrote; what it wrote before it died is in memory, for
//! the kernel ended it before it said so.

use super::atomic::{AtomicU32, Ordering};
use super::futex::{self, Scope};

const WAITERS: u32 = 1 << 31;
/// None in a model, where to spin is to look at the same word for ever.
const SPINS: u32 = if cfg!(loom) { 0 } else { 64 };
/// The first sleep, in nanoseconds; each later one is twice as long, up to [`LAST_SLEEP`].
const FIRST_SLEEP: u64 = 1_000_000;
const LAST_SLEEP: u64 = 128_000_000;

/// Names the process that holds a [`ShmLock`]: the number that it was given when it attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Holder(u32);

impl Holder {
    /// A holder without a number: in regions that have no process table.
    pub(crate) const UNKNOWN: Holder = Holder(!WAITERS);
    /// The holder with this number, from 1 to 2^31 - 2.
    #[inline]
    pub(crate) const fn number(number: u32) -> Holder {
        Holder(number & !WAITERS)
    }
    /// The number, for a holder that has one.
    #[inline]
    pub(crate) fn get(self) -> Option<u32> {
        if self == Holder::UNKNOWN { None } else { Some(self.0) }
    }
}

/// What the algorithm needs of its word; loom has its own.
trait Word {
    fn load(&self) -> u32;
    fn replace(&self, current: u32, new: u32, success: Ordering) -> bool;
    fn swap(&self, value: u32, order: Ordering) -> u32;
    fn wait(&self, expected: u32, nanoseconds: u64);
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
    fn wait(&self, expected: u32, nanoseconds: u64) {
        futex::wait(self, expected, Some(nanoseconds), Scope::Shared);
    }
    fn wake_one(&self) {
        futex::wake(self, 1, Scope::Shared);
    }
}

/// Takes the lock; true where it was taken over from a holder that `is_dead` says is dead.
#[inline]
fn take<W: Word>(word: &W, holder: Holder, is_dead: impl Fn(Holder) -> bool) -> bool {
    if word.replace(0, holder.0, Ordering::Acquire) {
        return false;
    }
    take_slow(word, holder, &is_dead, None).unwrap_or(false)
}

/// With `patience`, sleeps no longer than that (in nanoseconds) in all, and then gives up: `None`.
#[cold]
fn take_slow<W: Word>(
    word: &W,
    holder: Holder,
    is_dead: &dyn Fn(Holder) -> bool,
    patience: Option<u64>,
) -> Option<bool> {
    for _ in 0..SPINS {
        core::hint::spin_loop();
        if word.load() == 0 && word.replace(0, holder.0, Ordering::Acquire) {
            return Some(false);
        }
    }
    let (mut sleep, mut slept) = (FIRST_SLEEP, 0);
    loop {
        let seen = word.load();
        if seen == 0 {
            // Others may still sleep: keep the waiters bit, an unneeded wake is harmless.
            if word.replace(0, holder.0 | WAITERS, Ordering::Acquire) {
                return Some(false);
            }
            continue;
        }
        if patience.is_some_and(|patience| slept >= patience) {
            return None;
        }
        if seen & WAITERS == 0 && !word.replace(seen, seen | WAITERS, Ordering::Relaxed) {
            continue;
        }
        word.wait(seen | WAITERS, sleep);
        slept += sleep;
        // Whoever still has it after a sleep may not be there any more.
        let still = word.load() | WAITERS == seen | WAITERS;
        if still
            && is_dead(Holder(seen & !WAITERS))
            && word.replace(seen | WAITERS, holder.0 | WAITERS, Ordering::Acquire)
        {
            return Some(true);
        }
        sleep = (2 * sleep).min(LAST_SLEEP);
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

    /// Waits for the lock and takes it: for locks whose holders cannot be told dead.
    #[inline]
    pub(crate) fn lock(&self, holder: Holder) -> ShmGuard<'_> {
        take(&self.word, holder, |_| false);
        ShmGuard { lock: self }
    }

    /// Waits for the lock and takes it, from a dead holder if need be. True with the guard where it
    /// was: then what the lock protects may be half changed, and is to be repaired first.
    #[inline]
    pub(crate) fn lock_or_inherit(
        &self,
        holder: Holder,
        is_dead: impl Fn(Holder) -> bool,
    ) -> (ShmGuard<'_>, bool) {
        let inherited = take(&self.word, holder, is_dead);
        (ShmGuard { lock: self }, inherited)
    }

    /// [`lock_or_inherit`](Self::lock_or_inherit) that gives up when others have had the lock for
    /// `patience` nanoseconds of sleep: for whoever has no reason yet to believe the word.
    pub(crate) fn lock_within(
        &self,
        patience: u64,
        holder: Holder,
        is_dead: impl Fn(Holder) -> bool,
    ) -> Option<(ShmGuard<'_>, bool)> {
        if self.word.replace(0, holder.0, Ordering::Acquire) {
            return Some((ShmGuard { lock: self }, false));
        }
        let inherited = take_slow(&self.word, holder, &is_dead, Some(patience))?;
        Some((ShmGuard { lock: self }, inherited))
    }

    /// Whether the word names this holder.
    pub(crate) fn names(&self, holder: Holder) -> bool {
        self.word.load(Ordering::Relaxed) & !WAITERS == holder.0
    }

    /// Leaves a lock whose guard was forgotten: for the fork hooks, which take it in one function
    /// and leave it in another.
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
                        let _guard = LOCK.lock(Holder::number(slot + 1));
                        let seen = COUNT.load(Ordering::Relaxed);
                        COUNT.store(seen + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(COUNT.load(Ordering::Relaxed), 80_000);
        assert!(!LOCK.is_locked());
    }

    #[test]
    fn only_a_dead_holder_loses_it() {
        let lock = ShmLock::new();
        let (one, two) = (Holder::number(1), Holder::number(2));
        core::mem::forget(lock.lock(one));
        let asked = core::cell::Cell::new(0);
        let (guard, inherited) = lock.lock_or_inherit(two, |holder| {
            assert_eq!(holder, one);
            asked.set(asked.get() + 1);
            asked.get() == 3
        });
        assert!(inherited && asked.get() == 3);
        drop(guard);
        assert!(!lock.is_locked());
        assert!(!lock.lock_or_inherit(one, |_| true).1);
    }

    #[test]
    fn patience_ends() {
        let lock = ShmLock::new();
        let (one, two) = (Holder::number(1), Holder::number(2));
        drop(lock.lock_within(0, one, |_| false).unwrap());
        core::mem::forget(lock.lock(one));
        assert!(lock.lock_within(3 * FIRST_SLEEP, two, |_| false).is_none());
        assert!(lock.names(one) && !lock.names(two));
        let (_guard, inherited) = lock.lock_within(3 * FIRST_SLEEP, two, |_| true).unwrap();
        assert!(inherited && lock.names(two));
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
        fn wait(&self, expected: u32, _nanoseconds: u64) {
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
            let run = |slot: u32, lock: &Model, inside: &AtomicUsize| {
                assert!(!take(lock, Holder::number(slot + 1), |_| false));
                assert_eq!(lock.load() & !WAITERS, Holder::number(slot + 1).0);
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
            let run = |slot: u32, lock: &Model, guarded: &loom::cell::UnsafeCell<()>| {
                assert!(!take(lock, Holder::number(slot + 1), |_| false));
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
