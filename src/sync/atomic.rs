//! The machine's atomics, and loom's beside them.
//!
//! Types that lie in a region (`shm`) are always the machine's: a region is raw memory, and loom's
//! atomics are not. The kernels that loom checks are generic over the words they work on:
//! the machine's in the crate, loom's (`model`) in the models.

pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering, compiler_fence, fence};
/// Atomics with the layout of their integer, fit to lie in shared memory.
#[cfg(not(hshm_count_rmw))]
pub(crate) use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

/// The same, counted.
#[cfg(hshm_count_rmw)]
pub(crate) use super::counted::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

/// Loom's atomics, for the kernels' models.
#[cfg(loom)]
pub(crate) mod model {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
}
