//! Linux.
#![allow(unsafe_code)] // reads errno

#[cfg(feature = "c-api")]
mod c_library;
mod file;
mod identity;
mod limits;
mod liveness;
mod lock;
mod mem;
mod path;
mod process;
mod socket;
mod thread;

#[cfg(feature = "c-api")]
pub(crate) use c_library::*;
pub(crate) use file::*;
pub(crate) use identity::*;
pub(crate) use limits::*;
pub(crate) use liveness::*;
pub(crate) use lock::*;
pub(crate) use mem::*;
pub(crate) use path::*;
pub(crate) use process::*;
pub(crate) use socket::*;
pub(crate) use thread::*;

use crate::base::Error;

/// The calling thread's `errno`.
pub(crate) fn errno() -> i32 {
    // SAFETY: the C library gives every thread a valid errno location.
    unsafe { *libc::__errno_location() }
}

/// The error for `errno`, where a request for `requested` bytes met it.
pub(crate) fn error_for(errno: i32, requested: usize) -> Error {
    match errno {
        libc::ENOENT | libc::ENOTDIR => Error::NotFound,
        libc::EEXIST => Error::AlreadyExists,
        libc::EACCES | libc::EPERM | libc::EROFS | libc::ELOOP => Error::PermissionDenied,
        libc::ENAMETOOLONG => Error::BadName,
        libc::EISDIR | libc::ENXIO | libc::ENODEV => Error::NotARegion,
        libc::ENOMEM | libc::ENOSPC | libc::EDQUOT => {
            Error::OutOfMemory { requested, available: 0 }
        }
        libc::EFBIG => Error::TooLarge { given: requested, maximum: file_limit() as usize },
        libc::ENOSYS | libc::EOPNOTSUPP => Error::Unsupported,
        other => Error::Os(other),
    }
}

/// The error of the call that just failed.
fn last_error(requested: usize) -> Error {
    error_for(errno(), requested)
}
