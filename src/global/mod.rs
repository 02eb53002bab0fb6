//! `HshmAlloc`: the global allocator.
//!
//! ```text
//! alloc, dealloc   the calling thread's cache (`cache`): a few instructions, inlined
//!   └ slow         refills from the thread's heap; frees that found no room
//!     ├ flush      blocks go back to their slabs, and memory to the system
//!     ├ large      runs, of which the thread keeps some (`runs`), and large blocks
//!     └ heap       the process's regions and the pool of caches
//! fork    a child gets its own copy, or none      share, find    other processes attach
//! join    several programs have one heap          exit           when the program ends
//! ```
//!
//! Nothing here may use the Rust heap (it *is* the Rust heap), take a std lock, print by format,
//! panic or unwind. [`HeapToken`] and [`AttachedHeap`] are outside: they are used by programs, not
//! by allocations.
#![allow(unsafe_code)] // implements GlobalAlloc

#[cfg(any(feature = "allocator-api2-02", feature = "allocator-api2-04"))]
mod adapter;
#[cfg(feature = "c-api")]
pub mod c_api;
mod cache;
mod config;
mod exit;
mod find;
mod flush;
mod fork;
mod grow;
mod heap;
mod join;
mod large;
mod leaks;
mod places;
mod runs;
mod share;
mod slow;
mod stats;
mod tls;

use core::alloc::{GlobalAlloc, Layout};

use self::cache::{MAX_REGIONS, rounded};
use self::config::Config;
use self::heap::HEAP;
use crate::alloc::Owner;
use crate::base::Result;
use crate::base::classes::MAX_SMALL;
use crate::heap::{Fault, HeapReport};
use crate::region::Region;

pub use config::{ForkPolicy, HeapBackend, HshmAllocBuilder};
pub use share::{AttachedHeap, HeapToken};
pub use stats::HeapStats;

/// The global allocator whose heap is shared memory.
///
/// ```
/// use hshm::{FullPtr, HshmAlloc};
///
/// #[global_allocator]
/// static A: HshmAlloc = HshmAlloc::new();
///
/// fn main() {
///     let answer = Box::new(42u64);
///     let full = FullPtr::from_ptr(&raw const *answer as *mut u64).unwrap();
///     println!("{:?} can be sent to another process", full.shm());
/// }
/// ```
///
/// A process has one such heap: several `HshmAlloc`s in a program are handles of the same one, and
/// the settings of the one that allocates first hold.
#[derive(Debug)]
pub struct HshmAlloc {
    config: Config,
}

impl HshmAlloc {
    /// The allocator with default settings.
    pub const fn new() -> Self {
        HshmAlloc { config: Config::DEFAULT }
    }
    /// Other settings.
    pub const fn builder() -> HshmAllocBuilder {
        HshmAllocBuilder { config: Config::DEFAULT }
    }
    /// What another process needs to attach this heap. Where it lives in private memory, the error
    /// says why: [`Error::NotShared`](crate::Error::NotShared) by choice, otherwise what making
    /// shared memory failed with.
    pub fn share(&self) -> Result<HeapToken> {
        HeapToken::of_this_process()
    }
    /// The heap's regions, oldest first.
    pub fn regions(&self) -> impl Iterator<Item = Region> {
        HEAP.parts().map(|part| part.heap.region().clone())
    }
    /// How much the heap uses.
    pub fn stats(&self) -> HeapStats {
        HeapStats::of_this_process()
    }
    /// Bytes in blocks that are handed out, as the heap rounds them; of a heap that was
    /// [joined](HshmAllocBuilder::region), all programs' together. Equal before and after balanced use,
    /// and what [`LeakReport::of`](crate::LeakReport::of) says in detail.
    ///
    /// Each thread keeps some of what was freed for its next allocations. The calling thread's go back
    /// to the heap before anything is counted, and so did those of threads that have ended (joined, that
    /// is: `thread::scope` goes on before its threads have quite ended). What the caches of *other living
    /// threads* keep counts as handed out, for nobody but those threads knows what that is:
    /// at most 256 KiB of each size class, and 8 MiB of blocks of more than 32 KiB.
    ///
    /// The heap is counted while it stands still, so the sum is one that was true at one moment; threads
    /// that allocate or free meanwhile wait, as far as their caches do not serve them. It takes time with
    /// the size of the heap, and nothing is remembered for it.
    pub fn currently_allocated_size(&self) -> usize {
        leaks::bytes_allocated()
    }
    /// Gives what is free back to the system: this thread's cache, empty slabs, free pages.
    pub fn trim(&self) {
        flush::trim();
    }
    /// Hands a block of this heap over, where other programs [joined](HshmAllocBuilder::region) it:
    /// to nobody, or to this program. What is nobody's stays when its maker goes; what this program
    /// took over goes with this program. See [`ThreadLocalAllocator::transfer`].
    ///
    /// [`ThreadLocalAllocator::transfer`]: crate::ThreadLocalAllocator::transfer
    ///
    /// # Errors
    /// [`Error::NotInAnyRegion`](crate::Error::NotInAnyRegion) and
    /// [`Error::NotABlock`](crate::Error::NotABlock) for an address that is no block of this heap,
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a block of less than 32 bytes and in a
    /// heap that nobody can join.
    ///
    /// # Safety
    /// `block` is the start of a block that is in use. It belongs to this program, or to nobody while
    /// no other program takes it.
    pub unsafe fn transfer(&self, block: *const u8, to: Owner) -> Result<()> {
        share::transfer(block.addr(), to)
    }
    /// Reclaims what programs owned that have died since somebody looked, in a heap that others
    /// [joined](HshmAllocBuilder::region). Returns how many they were.
    ///
    /// Nobody needs to call this: whoever needs more memory looks, at most ten times a second, and
    /// always before a request fails.
    pub fn reap(&self) -> usize {
        flush::reap()
    }
    /// Walks every invariant of the heap's regions, oldest first; see [`HeapReport`]. Blocks in
    /// threads' caches count as in use.
    ///
    /// Threads that allocate or free meanwhile wait, as far as their caches do not serve them. The other
    /// programs of a heap that was [joined](HshmAllocBuilder::region) do not: what they are just changing
    /// looks like a fault, and in a forked child's copy stays so.
    pub fn verify(&self) -> Result<Vec<HeapReport>, Fault> {
        // The vector first: nothing may be allocated while the heap stands still.
        let mut reports = Vec::with_capacity(MAX_REGIONS);
        HEAP.stand_still();
        let mut fault = None;
        for part in HEAP.parts() {
            match crate::heap::verify::verify(&part.heap, core::iter::empty()) {
                Ok(report) => reports.push(report),
                Err(found) => fault = fault.or(Some(found)),
            }
        }
        HEAP.go_on();
        fault.map_or(Ok(reports), Err)
    }
}

impl Default for HshmAlloc {
    fn default() -> Self {
        Self::new()
    }
}

/// Allocates a block of the class whose bin is at byte `offset` of the cache.
#[inline(always)]
fn allocate_small(config: &Config, offset: usize) -> *mut u8 {
    // SAFETY: the pointer is the calling thread's; the offset came from `bin_offset`.
    let mut block = unsafe { cache::pop(tls::get(), offset) };
    if block.is_null() {
        block = slow::refill(offset);
        if block.is_null() {
            block = slow::first_refill(config, offset);
        }
    }
    block
}

/// Allocates `size` bytes of zeros from the class whose bin is at byte `offset` of the cache.
#[inline]
fn allocate_small_zeroed(config: &Config, offset: usize, size: usize) -> *mut u8 {
    // SAFETY: the pointer is the calling thread's; the offset came from `bin_offset`.
    let block = unsafe { cache::pop(tls::get(), offset) };
    if block.is_null() {
        return slow::refill_zeroed(config, offset, size);
    }
    // SAFETY: the block has at least this size.
    unsafe { block.write_bytes(0, size) };
    block
}

/// Allocates more than [`MAX_SMALL`] bytes of zeros.
fn allocate_large_zeroed(config: &Config, size: usize, align: usize) -> *mut u8 {
    let (block, zeroed) = large::allocate_large(config, size, align, 0, true);
    if !zeroed && !block.is_null() {
        // SAFETY: the block has at least this size.
        unsafe { block.write_bytes(0, size) };
    }
    block
}

/// Frees a block of `layout`.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
#[inline(always)]
unsafe fn free(block: *mut u8, layout: Layout) {
    let size = rounded(layout);
    // SAFETY: the pointer is the calling thread's; the block is the caller's to give up.
    if size > MAX_SMALL || !unsafe { cache::push(tls::get(), cache::bin_offset(size), block) } {
        // One call for all that is left: see `cache::OFFSETS`.
        // SAFETY: as above.
        unsafe { slow::free(block, size) };
    }
}

// SAFETY: blocks come from the engine, which marks them used before they get here and gives them
// to nobody else until they are freed; a cache holds a block only between a free and the next
// allocation. Sizes and alignments are those of the class, which the rounded size picks, or of
// whole granules. Nothing unwinds.
unsafe impl GlobalAlloc for HshmAlloc {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = rounded(layout);
        if size <= MAX_SMALL {
            allocate_small(&self.config, cache::bin_offset(size))
        } else {
            large::allocate_large(&self.config, layout.size(), layout.align(), 0, false).0
        }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { free(block, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let size = rounded(layout);
        if size <= MAX_SMALL {
            allocate_small_zeroed(&self.config, cache::bin_offset(size), size)
        } else {
            allocate_large_zeroed(&self.config, layout.size(), layout.align())
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let old = rounded(layout);
        // SAFETY: the caller keeps the rounded size within `isize`.
        let new = rounded(unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) });
        if old <= MAX_SMALL && new <= MAX_SMALL && cache::class_for(old) == cache::class_for(new) {
            return block;
        }
        // SAFETY: the caller's contract.
        unsafe { large::reallocate(&self.config, block, layout, new_size) }
    }
}
