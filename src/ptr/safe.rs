//! The `ShmSafe` marker.
#![allow(unsafe_code)] // an unsafe marker trait and its implementations

use super::{AtomicOffsetPtr, AtomicShmPtr, OffsetPtr, ShmPtr};
use crate::base::AllocatorId;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

/// Types whose bytes mean the same in every process that maps them, at whatever address.
///
/// # Safety
/// The type has no address in it (no reference, raw pointer, `Box`, `Vec`, `String`, function
/// pointer or vtable), no handle of one process (file descriptor, thread id), and no destructor
/// that relies on one; its layout does not depend on the build (`repr(C)`, `repr(transparent)` or
/// a primitive). Links to other places are [`OffsetPtr`] or [`ShmPtr`].
pub unsafe trait ShmSafe: Sized {}

macro_rules! shm_safe {
    ($($type:ty),* $(,)?) => { $(
        // SAFETY: a plain number, the same in every process.
        unsafe impl ShmSafe for $type {}
    )* };
}

shm_safe!(
    (),
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    AllocatorId,
    AtomicBool,
    AtomicU8,
    AtomicU16,
    AtomicU32,
    AtomicU64,
    AtomicUsize,
);

// SAFETY: an offset is a number relative to its region.
unsafe impl<T> ShmSafe for OffsetPtr<T> {}
// SAFETY: as above, atomically.
unsafe impl<T> ShmSafe for AtomicOffsetPtr<T> {}
// SAFETY: an id and an offset.
unsafe impl<T> ShmSafe for ShmPtr<T> {}
// SAFETY: as above, atomically.
unsafe impl<T> ShmSafe for AtomicShmPtr<T> {}
// SAFETY: an array is its elements, one after another.
unsafe impl<T: ShmSafe, const N: usize> ShmSafe for [T; N] {}
