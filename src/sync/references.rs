//! How many there are who use a thing that goes when nobody does.
//!
//! As with `Arc` and `Weak`: who has a reference makes another one without looking; who only knows
//! where the thing is gets one only while somebody else has one. The last one to leave is told so,
//! once, and nobody comes in afterwards.

use super::atomic::{AtomicU32, Ordering};
use super::word::Word;

/// So many references are a program's error, and a few more of them would be none.
const MOST: u32 = i32::MAX as u32;

/// Another reference for somebody who has one. Relaxed: the one there is keeps the thing alive.
/// Returns how many there were.
#[inline]
fn another<W: Word<u32>>(count: &W) -> u32 {
    count.fetch_add(1, Ordering::Relaxed)
}

/// A reference for somebody who has none: never the first one again. Look and increment are one
/// step, since the last user may leave in between. Returns how many there were.
#[inline]
fn first<W: Word<u32>>(count: &W) -> u32 {
    let mut now = count.load(Ordering::Relaxed);
    while now != 0 {
        match count.compare_exchange(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => break,
            Err(other) => now = other,
        }
    }
    now
}

/// A reference less; true if it was the last. Release: what this user did comes before whatever the
/// last one, who acquires it, does to the thing.
#[inline]
fn leave<W: Word<u32>>(count: &W, fence: impl FnOnce()) -> bool {
    if count.fetch_sub(1, Ordering::Release) != 1 {
        return false;
    }
    fence();
    true
}

#[inline]
fn count_on(before: u32) -> u32 {
    if before >= MOST {
        std::process::abort();
    }
    before
}

/// See the [module](self).
pub(crate) struct References(AtomicU32);

impl References {
    /// Nobody uses it.
    pub(crate) const fn none() -> Self {
        References(AtomicU32::new(0))
    }
    /// A new thing, with one user. Not while there are others.
    pub(crate) fn begin(&self) {
        self.0.store(1, Ordering::Relaxed);
    }
    /// Whether somebody uses it now: a hint, old as soon as it is given.
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
    /// Another reference. The caller has one. Ends the process when there are two thousand million,
    /// before the count comes round.
    #[inline]
    pub(crate) fn retain(&self) {
        count_on(another(&self.0));
    }
    /// A reference, if anybody has one. Ends the process as [`retain`](References::retain) does.
    #[inline]
    pub(crate) fn try_retain(&self) -> bool {
        count_on(first(&self.0)) != 0
    }
    /// Gives a reference of the caller's back; true if it was the last.
    #[inline]
    pub(crate) fn release(&self) -> bool {
        leave(&self.0, || super::atomic::fence(Ordering::Acquire))
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::sync::atomic::model::AtomicU32;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    /// One has the thing and leaves, another one finds it: whoever is the last ends it, alone, once.
    #[test]
    fn the_last_one_is_alone() {
        loom::model(|| {
            let shared = Arc::new((AtomicU32::new(1), UnsafeCell::new(()), AtomicU32::new(0)));
            let go = |(count, thing, ended): &(AtomicU32, UnsafeCell<()>, AtomicU32)| {
                if leave(count, || loom::sync::atomic::fence(Ordering::Acquire)) {
                    thing.with_mut(|_| ended.fetch_add(1, Ordering::Relaxed));
                }
            };
            let finder = {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    let (count, thing, ended) = &*shared;
                    if first(count) != 0 {
                        thing.with(|_| assert_eq!(ended.load(Ordering::Relaxed), 0));
                        go(&shared);
                    }
                })
            };
            go(&shared);
            finder.join().unwrap();
            assert_eq!(shared.2.load(Ordering::Relaxed), 1);
        });
    }
}
