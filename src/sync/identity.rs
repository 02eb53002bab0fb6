//! Who is calling: small numbers for threads.

use core::cell::Cell;

use crate::sync::atomic::{AtomicU32, Ordering};

/// A number for the calling thread: 0 for the first that asks, then 1, 2, ... Numbers of threads
/// that ended are not used again; whoever needs a small range takes the remainder.
#[inline]
pub(crate) fn thread_number() -> u32 {
    thread_local! {
        static NUMBER: Cell<u32> = const { Cell::new(u32::MAX) };
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NUMBER.with(|number| {
        if number.get() == u32::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed) & (u32::MAX >> 1));
        }
        number.get()
    })
}
