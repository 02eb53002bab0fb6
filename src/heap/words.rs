//! Checked access to a mapped region, one word at a time.
//!
//! An engine keeps offsets. [`Words`] turns an offset into a reference to an atomic word, or into
//! [`Error::Corrupt`] where it is misaligned or outside the region; so a damaged offset is an error
//! wherever it is followed. All words are atomics, read and written `Relaxed` unless said
//! otherwise: on the machines at hand that is a plain load or store, and a process that scribbles
//! over the region at the same time cannot make it undefined behaviour.
#![allow(unsafe_code)] // turns offsets into references to atomics

use crate::base::{Error, Result};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::shm_lock::ShmLock;

/// Types made of nothing but atomics, in a fixed layout, for which any bits are valid.
///
/// # Safety
/// `repr(C)`; every byte belongs to an atomic; alignment at most 64.
pub(crate) unsafe trait Atoms {}

// SAFETY: it is an atomic.
unsafe impl Atoms for AtomicU32 {}
// SAFETY: it is an atomic.
unsafe impl Atoms for AtomicU64 {}
// SAFETY: transparent over an atomic.
unsafe impl Atoms for ShmLock {}

/// The mapping of a region in this process, seen as words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    base: *mut u8,
    len: u64,
}

// SAFETY: only hands out references to atomics, which any thread may use.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// The `len` bytes at `base`.
    ///
    /// # Safety
    /// They are mapped readable and writable for as long as the value or a copy of it is used,
    /// `base` is a multiple of 64, and what this crate accesses through it is accessed by atomics
    /// alone while it is shared.
    pub(crate) const unsafe fn new(base: *mut u8, len: usize) -> Self {
        Words { base, len: len as u64 }
    }

    /// Where this process sees `at`, as a number; for alignment only.
    pub(crate) fn address(&self, at: u64) -> u64 {
        (self.base.addr() as u64).wrapping_add(at)
    }

    /// Bytes in the mapping.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// The atomics at `at`.
    #[inline]
    pub(crate) fn place<T: Atoms>(&self, at: u64) -> Result<&T> {
        let inside = at < self.len && self.len - at >= size_of::<T>() as u64;
        if !inside || at & (align_of::<T>() as u64 - 1) != 0 {
            return Err(Error::Corrupt);
        }
        // SAFETY: `at..at + size_of::<T>()` lies in the mapping, `base` is aligned to 64 and `at`
        // to `T`, any bits are a valid `T` (`Atoms`), and the mapping outlives `self` (`new`).
        Ok(unsafe { &*self.base.add(at as usize).cast::<T>() })
    }

    /// Reads the word at `at`.
    #[inline]
    pub(crate) fn get(&self, at: u64) -> Result<u64> {
        Ok(self.place::<AtomicU64>(at)?.load(Ordering::Relaxed))
    }

    /// Writes the word at `at`.
    #[inline]
    pub(crate) fn set(&self, at: u64, value: u64) -> Result<()> {
        #[cfg(test)]
        die::step()?;
        self.place::<AtomicU64>(at)?.store(value, Ordering::Relaxed);
        Ok(())
    }
}

/// The lowest offset from `at` on whose address is a multiple of `align`, a power of two, where
/// offset 0 is seen at `base`.
#[inline]
pub(crate) const fn next_aligned(base: u64, at: u64, align: u64) -> Option<u64> {
    at.checked_add(base.wrapping_add(at).wrapping_neg() & (align - 1))
}

/// Ends an operation of this thread before one of its stores, as the death of a process would.
#[cfg(test)]
pub(crate) mod die {
    use crate::base::{Error, Result};
    use core::cell::Cell;

    thread_local!(static LEFT: Cell<u64> = const { Cell::new(u64::MAX) });

    /// Lets `stores` more stores happen; then every one fails.
    #[cfg(not(loom))]
    pub(crate) fn after(stores: u64) {
        LEFT.set(stores);
    }

    /// No store fails any more.
    #[cfg(not(loom))]
    pub(crate) fn never() {
        LEFT.set(u64::MAX);
    }

    pub(crate) fn step() -> Result<()> {
        match LEFT.get() {
            u64::MAX => {}
            0 => return Err(Error::Corrupt),
            left => LEFT.set(left - 1),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_checked() {
        #[repr(align(64))]
        struct Room([u8; 64]);
        let mut room = Room([0; 64]);
        // SAFETY: aligned, and outlives `words`.
        let words = unsafe { Words::new(room.0.as_mut_ptr(), 60) };
        assert_eq!(words.len(), 60);
        words.set(48, 7).unwrap();
        assert_eq!(words.get(48), Ok(7));
        for bad in [1, 4, 56, 60, 64, u64::MAX, u64::MAX - 7] {
            assert_eq!(words.get(bad), Err(Error::Corrupt), "{bad}");
            assert_eq!(words.set(bad, 1), Err(Error::Corrupt), "{bad}");
        }
    }

    #[test]
    fn alignment_counts_from_the_base() {
        assert_eq!(next_aligned(4096, 4096, 8192), Some(4096));
        assert_eq!(next_aligned(4096, 4097, 8192), Some(12288));
        assert_eq!(next_aligned(0, 1, 1), Some(1));
        assert_eq!(next_aligned(0, u64::MAX - 3, 16), None);
    }
}
