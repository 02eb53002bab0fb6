//! The C library's allocation functions, and C++'s `new` and `delete`, on the same heap.
//!
//! With the `c-api` feature the crate's `libhshm.so` defines them all, for `LD_PRELOAD` or for
//! linking. Memory is private by default, as C programs expect of `fork`; `HSHM_BACKEND=memfd`
//! shares it, `HSHM_REGION=name` makes it one heap with all programs that have that name. Shells and
//! their like allocate between `fork` and `exec`, so a forked child gets a copy of such a heap, too
//! (`HSHM_FORK=refuse` forbids it).
//!
//! One thing the C library does in a child before this one can: in a program with threads it frees the
//! locks of all streams, which lie in the heap. Where that is shared memory, a stream that another
//! thread had locked at that moment is not locked any more in the parent either.
//!
//! C gives no size at `free`, so the class comes from the granule map: one load for a block of the
//! first region. Blocks are aligned to 16 bytes (8 where the size is at most 8), so the classes of
//! 24, 40 and 56 bytes are never used here.
//!
//! Rules of the place: `errno` is set on failure and left alone on success; zero-size requests get
//! a block of their own; pointers that are not ours (from before the library was there) are
//! ignored by `free`. Nothing unwinds but `new`, which throws `std::bad_alloc` where the program
//! has a C++ library, and aborts where it has none.
#![allow(unsafe_code, non_snake_case)] // defines C symbols; C++'s have their own names

use core::alloc::Layout;
use core::ffi::{c_int, c_void};
use core::ptr;

use super::cache::{self, ThreadCache, bin_offset, bin_offset_c};
use super::config::{Config, ForkPolicy, HeapBackend};
use super::heap::HEAP;
use super::stats::HeapStats;
use super::{flush, large, slow, tls};
use crate::base::classes::{CLASSES, MAX_SMALL};
use crate::base::units::GRANULE_SHIFT;
use crate::heap::block::Block;
use crate::os;
use crate::region::lock_memory_or_errno;
use crate::sync::atomic::Ordering::Relaxed;

/// The settings of a C program's heap.
static CONFIG: Config =
    Config { backend: HeapBackend::Private, fork: Some(ForkPolicy::Copy), ..Config::DEFAULT };

/// The natural alignment of `malloc`.
const ALIGN: usize = 16;

#[cold]
#[inline(never)]
fn no_memory() -> *mut c_void {
    os::set_errno_no_memory();
    ptr::null_mut()
}

#[inline(always)]
fn allocate(size: usize) -> *mut c_void {
    if size <= cache::MAX_FINE { allocate_from(bin_offset_c(size)) } else { allocate_coarse(size) }
}

/// Sizes past the fine table: a function of their own keeps `malloc` short.
#[inline(never)]
extern "C" fn allocate_coarse(size: usize) -> *mut c_void {
    if size <= MAX_SMALL { allocate_from(bin_offset(size)) } else { allocate_large(size) }
}

/// More than [`MAX_SMALL`] bytes; all such blocks are aligned to a granule.
#[inline(never)]
extern "C" fn allocate_large(size: usize) -> *mut c_void {
    if size > isize::MAX as usize - ALIGN {
        return no_memory();
    }
    let block = large::allocate_large(&CONFIG, size, 1, 0, false).0;
    if block.is_null() { no_memory() } else { block.cast() }
}

#[inline(always)]
fn allocate_from(offset: usize) -> *mut c_void {
    // SAFETY: the pointer is the calling thread's; the offset is a bin's.
    let block = unsafe { cache::pop(tls::get(), offset) };
    if block.is_null() { refill(offset) } else { block.cast() }
}

/// The byte offset of the bin for `malloc` of up to [`MAX_SMALL`] bytes.
fn any_offset(size: usize) -> usize {
    if size <= cache::MAX_FINE { bin_offset_c(size) } else { bin_offset(size) }
}

#[cold]
#[inline(never)]
extern "C" fn refill(offset: usize) -> *mut c_void {
    let mut block = slow::refill(offset);
    if block.is_null() {
        block = slow::first_refill(&CONFIG, offset);
    }
    if block.is_null() { no_memory() } else { block.cast() }
}

/// Any size at any alignment that is a power of two.
#[inline(never)]
extern "C" fn allocate_aligned(size: usize, align: usize) -> *mut c_void {
    let Ok(layout) = Layout::from_size_align(size.max(1), align.max(ALIGN)) else {
        return no_memory();
    };
    let rounded = cache::rounded(layout);
    let block = if rounded <= MAX_SMALL {
        super::allocate_small(&CONFIG, bin_offset(rounded))
    } else {
        large::allocate_large(&CONFIG, size, align, 0, false).0
    };
    if block.is_null() { no_memory() } else { block.cast() }
}

/// The class field of a granule map entry, as the byte offset of the class's bin. What is no small
/// block has the offset of a bin that takes nothing.
const CLASS_FIELD: usize = 127 << 4;
const _: () = assert!(cache::bin_of(0) == 1 << 4);

/// The byte offset of a block's bin, straight from the granule map; `None` outside the first
/// region.
///
/// # Safety
/// `cache` is the calling thread's cache pointer.
#[inline(always)]
unsafe fn bin_of_block(cache: *mut ThreadCache, block: *mut c_void) -> Option<usize> {
    // SAFETY: the cache or sentinel says where the map is and how many words it has; it stays for
    // good.
    unsafe {
        let first = &raw const (*cache).first;
        let granule = block.addr().wrapping_sub((*first).base) >> GRANULE_SHIFT;
        if granule >= (*first).granules {
            return None;
        }
        Some((*(*first).map.add(granule)).load(Relaxed) as usize & CLASS_FIELD)
    }
}

#[inline(always)]
unsafe fn release(block: *mut c_void) {
    let cache = tls::get();
    // SAFETY: the pointer is the calling thread's, every class field is a bin's offset, and the
    // block is the caller's to give up.
    unsafe {
        match bin_of_block(cache, block) {
            Some(offset) if cache::push(cache, offset, block.cast()) => {}
            // Null and foreign pointers are told there.
            _ => release_slow(block),
        }
    }
}

/// What does not go to a bin: full ones, runs, large blocks, and what is no block.
#[inline(never)]
unsafe extern "C" fn release_slow(block: *mut c_void) {
    if block.is_null() {
        return;
    }
    let Some((_, part, offset)) = HEAP.find(block.addr()) else { return };
    match part.heap.find_block(offset) {
        Ok(Block::Small { class, .. }) => {
            let offset = cache::bin_of(class.index()) as usize;
            // SAFETY: the caller gives the block up.
            unsafe {
                if !cache::push(tls::get(), offset, block.cast()) {
                    slow::overflow(block.cast(), offset);
                }
            }
        }
        // SAFETY: as above.
        found => unsafe { large::free_found(part, offset, found, block.cast()) },
    }
}

/// Bytes that a block can hold; 0 for what is not ours.
fn usable(block: *mut c_void) -> usize {
    // SAFETY: the pointer is the calling thread's.
    let bin = unsafe { bin_of_block(tls::get(), block) };
    if let Some(bin) = bin
        && bin != 0
        && bin <= cache::bin_of(CLASSES - 1) as usize
    {
        return cache::class_at(bin).size();
    }
    let Some((_, part, offset)) = HEAP.find(block.addr()) else { return 0 };
    match part.heap.find_block(offset) {
        Ok(found) => part.heap.block_size(found),
        Err(_) => 0,
    }
}

/// Allocates `size` bytes.
///
/// # Safety
/// As C says of `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    allocate(size)
}

/// Frees a block; null and foreign pointers are ignored.
///
/// # Safety
/// As C says of `free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { release(block) }
}

/// Allocates `count * size` zeroed bytes.
///
/// # Safety
/// As C says of `calloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(size) else { return no_memory() };
    let block = if bytes <= MAX_SMALL {
        super::allocate_small_zeroed(&CONFIG, any_offset(bytes), bytes)
    } else if bytes > isize::MAX as usize {
        ptr::null_mut()
    } else {
        super::allocate_large_zeroed(&CONFIG, bytes, ALIGN)
    };
    if block.is_null() { no_memory() } else { block.cast() }
}

/// Changes a block's size, moving it where it must.
///
/// # Safety
/// As C says of `realloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return allocate(size);
    }
    if size > isize::MAX as usize - ALIGN {
        return no_memory();
    }
    let old = usable(block);
    if old == 0 {
        return no_memory();
    }
    let moved = if old <= MAX_SMALL {
        if size <= MAX_SMALL && cache::class_at(any_offset(size)).size() == old {
            return block;
        }
        let moved = allocate(size);
        if !moved.is_null() {
            // SAFETY: both blocks are live and distinct, the length is within both.
            unsafe {
                ptr::copy_nonoverlapping(block.cast::<u8>(), moved.cast(), old.min(size));
                release(block);
            }
        }
        moved
    } else {
        // A run's committed bytes stand for its old size; its layout is told by the map.
        // SAFETY: the old size is positive and fits the block, the alignment is a power of two.
        let layout = unsafe { Layout::from_size_align_unchecked(old, ALIGN) };
        // SAFETY: the caller's contract.
        unsafe { large::reallocate(&CONFIG, block.cast(), layout, size.max(1)).cast() }
    };
    if moved.is_null() { no_memory() } else { moved }
}

/// [`realloc`] to `count * size` bytes.
///
/// # Safety
/// As for `realloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(
    block: *mut c_void,
    count: usize,
    size: usize,
) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's contract.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => no_memory(),
    }
}

/// Allocates at a multiple of `align`, a power of two and of the size of a pointer.
///
/// # Safety
/// As POSIX says of `posix_memalign`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return os::INVALID_ARGUMENT;
    }
    let errno = os::errno();
    let block = allocate_aligned(size, align);
    if block.is_null() {
        os::set_errno(errno);
        return os::NO_MEMORY;
    }
    // SAFETY: the caller gives a place for the result.
    unsafe { out.write(block) };
    0
}

/// Allocates at a multiple of `align`, a power of two.
///
/// # Safety
/// As C says of `aligned_alloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        os::set_errno(os::INVALID_ARGUMENT);
        return ptr::null_mut();
    }
    allocate_aligned(size, align)
}

/// Allocates at a multiple of `align`, raised to a power of two.
///
/// # Safety
/// As for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    match align.max(1).checked_next_power_of_two() {
        Some(align) => allocate_aligned(size, align),
        None => no_memory(),
    }
}

/// Allocates at a page boundary.
///
/// # Safety
/// As for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valloc(size: usize) -> *mut c_void {
    allocate_aligned(size, os::page_size())
}

/// Allocates whole pages.
///
/// # Safety
/// As for `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page = os::page_size();
    match crate::base::align_up(size.max(1), page) {
        Some(bytes) => allocate_aligned(bytes, page),
        None => no_memory(),
    }
}

/// Bytes that a block can hold.
///
/// # Safety
/// `block` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    if block.is_null() { 0 } else { usable(block) }
}

/// Gives free memory back to the system. Returns 1.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_keep: usize) -> c_int {
    flush::trim();
    1
}

/// glibc's `struct mallinfo2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MallInfo2 {
    arena: usize,
    ordblks: usize,
    smblks: usize,
    hblks: usize,
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    uordblks: usize,
    fordblks: usize,
    keepcost: usize,
}

/// How much memory the heap has and uses, in glibc's terms.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> MallInfo2 {
    let stats = HeapStats::of_this_process();
    MallInfo2 {
        arena: stats.owned,
        hblkhd: stats.large,
        uordblks: stats.in_use(),
        fordblks: stats.owned.saturating_sub(stats.in_use()),
        ..MallInfo2::default()
    }
}

/// The C library's `mlockall`, but that it does not fill what is empty of heaps; see
/// [`lock_memory`](crate::lock_memory).
#[unsafe(no_mangle)]
pub extern "C" fn mlockall(flags: c_int) -> c_int {
    let locked = match flags & !os::LOCK_FUTURE {
        os::LOCK_CURRENT => lock_memory_or_errno(flags & os::LOCK_FUTURE != 0),
        _ => os::lock_by(flags),
    };
    match locked {
        Ok(()) => 0,
        Err(errno) => {
            os::set_errno(errno);
            -1
        }
    }
}

/// C23: frees a block whose size is known.
///
/// # Safety
/// As C says of `free_sized`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(block: *mut c_void, _size: usize) {
    // SAFETY: the caller's contract.
    unsafe { release(block) }
}

/// C23: frees a block whose size and alignment are known.
///
/// # Safety
/// As C says of `free_aligned_sized`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the caller's contract.
    unsafe { release(block) }
}

/// BSD's name for `free`.
///
/// # Safety
/// As for `free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { release(block) }
}

/// What `new` does when there is no memory: the new-handler, again and again; then `bad_alloc`.
#[cold]
#[inline(never)]
unsafe fn new_failed(size: usize, align: usize) -> *mut c_void {
    // SAFETY: the names are those of the C++ library's functions, with these types.
    unsafe {
        let get_handler = os::symbol(c"_ZSt15get_new_handlerv");
        while !get_handler.is_null() {
            let get_handler: extern "C" fn() -> Option<extern "C-unwind" fn()> =
                core::mem::transmute(get_handler);
            let Some(handler) = get_handler() else { break };
            handler();
            let block = allocate_aligned(size, align);
            if !block.is_null() {
                return block;
            }
        }
        let throw = os::symbol(c"_ZSt17__throw_bad_allocv");
        if !throw.is_null() {
            let throw: extern "C-unwind" fn() -> ! = core::mem::transmute(throw);
            throw();
        }
    }
    os::write_stderr(b"hshm: out of memory in operator new\n");
    os::abort()
}

macro_rules! operator_new {
    ($($name:ident, $aligned:ident, $nothrow:ident, $aligned_nothrow:ident;)*) => { $(
        /// C++ `operator new`.
        ///
        /// # Safety
        /// As C++ says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(size: usize) -> *mut c_void {
            let block = allocate(size);
            if !block.is_null() {
                return block;
            }
            // SAFETY: called where C++ expects `new` to throw.
            unsafe { new_failed(size, ALIGN) }
        }
        /// C++ `operator new` with an alignment.
        ///
        /// # Safety
        /// As C++ says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $aligned(size: usize, align: usize) -> *mut c_void {
            let block = allocate_aligned(size, align);
            if !block.is_null() {
                return block;
            }
            // SAFETY: called where C++ expects `new` to throw.
            unsafe { new_failed(size, align) }
        }
        /// C++ `operator new` that returns null on failure.
        ///
        /// # Safety
        /// As C++ says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $nothrow(size: usize, _tag: *const c_void) -> *mut c_void {
            allocate(size)
        }
        /// C++ `operator new` with an alignment, null on failure.
        ///
        /// # Safety
        /// As C++ says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $aligned_nothrow(
            size: usize,
            align: usize,
            _tag: *const c_void,
        ) -> *mut c_void {
            allocate_aligned(size, align)
        }
    )* };
}

operator_new! {
    _Znwm, _ZnwmSt11align_val_t, _ZnwmRKSt9nothrow_t, _ZnwmSt11align_val_tRKSt9nothrow_t;
    _Znam, _ZnamSt11align_val_t, _ZnamRKSt9nothrow_t, _ZnamSt11align_val_tRKSt9nothrow_t;
}

macro_rules! operator_delete {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => { $(
        /// C++ `operator delete`, with whatever it is told besides the block.
        ///
        /// # Safety
        /// As C++ says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(block: *mut c_void $(, $argument: $type)*) {
            // SAFETY: the caller's contract.
            unsafe { release(block) }
        }
    )* };
}

operator_delete! {
    _ZdlPv();
    _ZdaPv();
    _ZdlPvm(_size: usize);
    _ZdaPvm(_size: usize);
    _ZdlPvSt11align_val_t(_align: usize);
    _ZdaPvSt11align_val_t(_align: usize);
    _ZdlPvmSt11align_val_t(_size: usize, _align: usize);
    _ZdaPvmSt11align_val_t(_size: usize, _align: usize);
    _ZdlPvRKSt9nothrow_t(_tag: *const c_void);
    _ZdaPvRKSt9nothrow_t(_tag: *const c_void);
    _ZdlPvSt11align_val_tRKSt9nothrow_t(_align: usize, _tag: *const c_void);
    _ZdaPvSt11align_val_tRKSt9nothrow_t(_align: usize, _tag: *const c_void);
}
