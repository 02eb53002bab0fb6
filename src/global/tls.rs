//! The calling thread's cache.
//!
//! A const `thread_local!` without a destructor: plain thread-local memory. Where the compiler knows
//! that the code ends up in an executable its address is two instructions, and outside loops.
//!
//! In the C library that would be a call of `__tls_get_addr`, which is slow and may allocate. There
//! the cache is a symbol of our own, reached by the initial-exec model, which a library that is
//! loaded with the program may use.
#![allow(unsafe_code)] // thread-local access by hand

use super::cache::ThreadCache;

#[cfg(all(feature = "c-api", target_arch = "x86_64", target_os = "linux"))]
mod imp {
    use super::super::cache::{BINS, NULL_SLOT};
    use super::ThreadCache;
    use core::arch::{asm, global_asm};

    // `ThreadCache::NEW`, word by word: two pointers to the null slot for every bin, then zeros.
    global_asm!(
        ".pushsection .tdata.__hshm_thread_cache,\"awT\",@progbits",
        ".globl __hshm_thread_cache",
        ".type __hshm_thread_cache, @object",
        ".size __hshm_thread_cache, {size}",
        ".balign 64",
        "__hshm_thread_cache:",
        ".rept {bins} * 2",
        ".quad {null_slot}",
        ".endr",
        ".zero {size} - {bins} * 16",
        ".popsection",
        size = const size_of::<ThreadCache>(),
        bins = const BINS,
        null_slot = sym NULL_SLOT,
    );

    /// Where the calling thread's cache is. The same for the whole life of a thread, so the
    /// compiler may keep it.
    #[inline(always)]
    pub(crate) fn get() -> *mut ThreadCache {
        let cache;
        // SAFETY: reads the offset of the symbol defined above and the thread's base, which the
        // ABI keeps at fs:0; touches nothing else.
        unsafe {
            asm!(
                "mov {cache}, qword ptr fs:0",
                "add {cache}, qword ptr [rip + __hshm_thread_cache@GOTTPOFF]",
                cache = out(reg) cache,
                options(pure, nomem, nostack),
            );
        }
        cache
    }
}

#[cfg(not(all(feature = "c-api", target_arch = "x86_64", target_os = "linux")))]
mod imp {
    use super::ThreadCache;
    use core::cell::UnsafeCell;

    thread_local! {
        static CACHE: UnsafeCell<ThreadCache> = const { UnsafeCell::new(ThreadCache::NEW) };
    }

    #[inline(always)]
    pub(crate) fn get() -> *mut ThreadCache {
        by_address(CACHE.with(UnsafeCell::get))
    }

    /// The same pointer, of which the compiler does not know that it is to thread-local memory. It would
    /// go through the segment register for each load and store otherwise, and what is stored that
    /// way reaches the next load three cycles later: a pair of boxes takes an eighth longer.
    ///
    /// Programs have the lower half of the address space, so that the highest bit is clear as it is. The
    /// compiler knows nothing of that, and keeps the result in a register for a whole loop.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    fn by_address(cache: *mut ThreadCache) -> *mut ThreadCache {
        core::ptr::with_exposed_provenance_mut(cache.expose_provenance() & (usize::MAX >> 1))
    }

    #[inline(always)]
    #[cfg(not(target_arch = "x86_64"))]
    fn by_address(cache: *mut ThreadCache) -> *mut ThreadCache {
        cache
    }
}

pub(crate) use imp::get;
