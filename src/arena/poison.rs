//! Telling AddressSanitizer which bytes of an arena may be touched, and filling freed ones.
//!
//! Compiled in where the crate is built with `-Zsanitizer=address` (the build script sets
//! `hshm_asan`); everywhere else the calls are empty.
#![allow(unsafe_code)] // calls the sanitizer's runtime

/// What popped memory is filled with, on request.
pub(super) const POPPED: u8 = 0xDD;
/// What pushed memory is filled with in debug builds, on request.
#[cfg(debug_assertions)]
pub(super) const PUSHED: u8 = 0xCD;

#[cfg(hshm_asan)]
unsafe extern "C" {
    fn __asan_poison_memory_region(address: *const core::ffi::c_void, size: usize);
    fn __asan_unpoison_memory_region(address: *const core::ffi::c_void, size: usize);
}

/// A touch of these bytes is an error from now on.
#[inline(always)]
pub(super) fn forbid(address: usize, len: usize) {
    #[cfg(hshm_asan)]
    // SAFETY: the bytes are an arena's, handed out to nobody; only the sanitizer's notes change.
    unsafe {
        __asan_poison_memory_region(core::ptr::without_provenance(address), len);
    }
    let _ = (address, len);
}

/// These bytes may be touched.
#[inline(always)]
pub(super) fn allow(address: usize, len: usize) {
    #[cfg(hshm_asan)]
    // SAFETY: as above.
    unsafe {
        __asan_unpoison_memory_region(core::ptr::without_provenance(address), len);
    }
    let _ = (address, len);
}

/// Clears freed bytes, whatever the compiler thinks of stores to memory that nobody reads.
///
/// # Safety
/// The bytes may be written, and nobody uses them.
pub(super) unsafe fn clear(start: *mut u8, len: usize) {
    // SAFETY: the caller's contract.
    unsafe { start.write_bytes(0, len) };
    // Who gets the pointer might look.
    core::hint::black_box(start);
}

/// Fills freed bytes.
///
/// # Safety
/// The bytes may be written, and nobody uses them.
pub(super) unsafe fn fill(start: *mut u8, len: usize) {
    // SAFETY: the caller's contract.
    unsafe { start.write_bytes(POPPED, len) };
}
