//! Waiting for a word to change, in the kernel.
//!
//! The one sanctioned exception to "only `os` names `libc`": a lock belongs to this layer, and a
//! lock that sleeps needs these two calls.
//!
//! Both calls leave `errno` as it was: they run inside `malloc`.
#![allow(unsafe_code)] // the futex system call

use super::atomic::AtomicU32;

/// Who may wait on a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Threads of this process.
    Private,
    /// Every process that maps the word.
    Shared,
}

/// Keeps `errno` as it is now until dropped.
pub(crate) struct KeepErrno(i32);

impl KeepErrno {
    pub(crate) fn new() -> Self {
        // SAFETY: the C library gives every thread a valid errno location.
        KeepErrno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: as in `new`; the location belongs to this thread alone.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

/// Sleeps while `*word == expected`, at most `timeout_ns` nanoseconds. Returns whether something
/// other than the timeout ended the sleep: a wake, another value, a signal. Callers look at the
/// word again in any case.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout_ns: Option<u64>, scope: Scope) -> bool {
    let _errno = KeepErrno::new();
    let time = timeout_ns.map(|ns| libc::timespec {
        tv_sec: (ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (ns % 1_000_000_000) as libc::c_long,
    });
    let time_ptr = time.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: `word` is a live, aligned 32-bit word for the whole call, and the timeout is null or
    // points to `time`, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op(libc::FUTEX_WAIT, scope),
            expected,
            time_ptr,
        )
    };
    // SAFETY: as in `KeepErrno::new`.
    !(result == -1 && unsafe { *libc::__errno_location() } == libc::ETIMEDOUT)
}

/// Wakes up to `count` waiters; returns how many there were.
pub(crate) fn wake(word: &AtomicU32, count: u32, scope: Scope) -> u32 {
    let _errno = KeepErrno::new();
    // SAFETY: the kernel uses the address as a key and reads no memory through it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op(libc::FUTEX_WAKE, scope),
            count.min(i32::MAX as u32),
        )
    };
    if result > 0 { result as u32 } else { 0 }
}

fn op(op: i32, scope: Scope) -> i32 {
    match scope {
        Scope::Private => op | libc::FUTEX_PRIVATE_FLAG,
        Scope::Shared => op,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::Ordering;

    #[test]
    fn waits_time_out_and_other_values_return_at_once() {
        let word = AtomicU32::new(1);
        assert!(!wait(&word, 1, Some(1_000_000), Scope::Private));
        assert!(wait(&word, 2, Some(1_000_000), Scope::Shared));
        assert_eq!(wake(&word, 1, Scope::Private), 0);
    }

    #[test]
    fn wakes_a_sleeper() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0, None, Scope::Private);
                }
            });
            word.store(1, Ordering::Release);
            wake(&word, 1, Scope::Private);
        });
    }
}
