//! The operating system layer: the only folder that names `libc`.
//!
//! Thin wrappers, one file a subject, one folder an operating system. None of them allocates from
//! the Rust heap, panics or formats: they run inside `malloc`. Those that the allocation path
//! itself calls leave `errno` as it was. Errors are [`Error`](crate::base::Error)s: what the
//! layers above tell apart has its own variant, the rest is `Os(errno)`.

#[cfg(not(target_os = "linux"))]
compile_error!("hshm has a Linux layer only, so far");

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub(crate) use linux::*;
