//! What the C library's own functions need of the system: `errno`, symbols.
#![allow(unsafe_code)] // errno, dlsym

use core::ffi::{CStr, c_void};

/// `errno` for running out of memory.
pub(crate) const NO_MEMORY: i32 = libc::ENOMEM;
/// `errno` for an argument that makes no sense.
pub(crate) const INVALID_ARGUMENT: i32 = libc::EINVAL;

/// Sets the calling thread's `errno`.
pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the C library gives every thread a valid errno location.
    unsafe { *libc::__errno_location() = errno };
}

/// Says that there is no memory.
pub(crate) fn set_errno_no_memory() {
    set_errno(NO_MEMORY);
}

/// A function of the program or its libraries by its symbol; null where there is none.
pub(crate) fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// Ends the process by SIGABRT.
pub(crate) fn abort() -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}
