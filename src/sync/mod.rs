//! Atomics, locks and identities: the only folder that names `core::sync::atomic`.
//!
//! Everything else in the crate takes its atomics from [`atomic`], so that the concurrent kernels
//! run unchanged under [loom](https://docs.rs/loom).

pub(crate) mod atomic;
#[cfg(hshm_count_rmw)]
pub(crate) mod counted;
pub(crate) mod futex;
pub(crate) mod gate;
pub(crate) mod identity;
pub(crate) mod lock;
pub(crate) mod references;
pub(crate) mod shm_lock;
pub(crate) mod word;
