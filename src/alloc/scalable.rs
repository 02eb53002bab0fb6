//! `ScalablePageAllocator`: page classes, few pages, blocks that grow in place.
//!
//! The engine is the paged heap, as under `ThreadLocalAllocator`; what differs is how its thread blocks
//! are used. There are as many as processors, not as threads, and any of them serves any thread: the
//! first that nobody uses just now. So as many threads as can run allocate side by side, while the
//! blocks of a size lie in few pages, however many threads there are.
#![allow(unsafe_code)] // implements an unsafe trait

use core::alloc::Layout;

use super::thread_local::{Choice, DEFAULT_PROCESSES, Owner, ThreadLocalAllocator};
use super::traits::{Allocator, BlockInfo};
use crate::base::{AllocatorId, Error, MemContext, Result};
use crate::heap::layout::{RegionHeap, TableSizes};
use crate::heap::{Fault, Fragmentation, HeapReport};
use crate::ptr::OffsetPtr;
use crate::region::Region;

/// Thread blocks of a process, at most.
const MOST: usize = 16;

/// A general-purpose allocator for threads and processes (HSHM's `ScalablePageAllocator`): pages of
/// blocks of one size class to 32 KiB, runs of 64 KiB pages above, whole 4 MiB chunks above 2 MiB.
///
/// Blocks of more than 32 KiB grow in place where the pages behind them are free, and give pages back
/// in place when they shrink. Smaller ones stay where they are within their size class (a page is cut into
/// blocks of one size, so that a free neighbour is no room to grow into), which wastes at
/// most an eighth above 128 bytes. [`fragmentation`](Self::fragmentation) says how scattered the free
/// memory is.
///
/// Any thread of any attached process may free a block. As with [`ThreadLocalAllocator`], what a process
/// allocated goes with it unless it was [handed over](Self::transfer), and a forked child attaches anew
/// ([`Error::Forked`]). The two are one engine: the one can attach what the other laid out.
///
/// The context of a call is ignored.
///
/// ```
/// use hshm::{Allocator, AllocatorId, KIB, MemContext, Region, ScalablePageAllocator};
/// let ctx = MemContext::DEFAULT;
/// let alloc = ScalablePageAllocator::shm_init(Region::anonymous(AllocatorId::new(8, 0), 16 << 20)?)?;
/// let block = alloc.allocate::<u8>(ctx, 100 * KIB)?;
/// // SAFETY: live, and only the result is used again.
/// let grown = unsafe { alloc.reallocate(ctx, block, 1000 * KIB)? };
/// assert_eq!(grown.as_ptr(), block.as_ptr(), "nothing lay behind it");
/// // SAFETY: live, and not used again.
/// unsafe { alloc.free(ctx, grown)? };
/// assert_eq!(alloc.fragmentation().in_use, 0);
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Debug)]
pub struct ScalablePageAllocator {
    inner: ThreadLocalAllocator,
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(4, |count| count.get()).clamp(2, MOST)
}

impl ScalablePageAllocator {
    /// Lays the allocator out in a fresh region, for up to [`DEFAULT_PROCESSES`] processes, and joins
    /// it.
    pub fn shm_init(region: Region) -> Result<Self> {
        Self::shm_init_with(region, DEFAULT_PROCESSES)
    }

    /// [`shm_init`](Self::shm_init) for up to `processes` processes at a time (1 to 1024).
    pub fn shm_init_with(region: Region, processes: usize) -> Result<Self> {
        let sizes = TableSizes { processes: processes.min(1024) as u32, ..TableSizes::default() };
        Self::join(RegionHeap::create(region, sizes)?, 0)
    }

    /// Joins the allocator that another process (or this one) laid out in `region`. `max_bytes` is the
    /// most memory that this process may take, in bytes, 0 for no limit.
    pub fn shm_attach(region: Region, max_bytes: usize) -> Result<Self> {
        if !region.is_writable() {
            return Err(Error::ReadOnly);
        }
        Self::join(RegionHeap::attach(region)?, max_bytes)
    }

    fn join(heap: RegionHeap, max_bytes: usize) -> Result<Self> {
        let inner = ThreadLocalAllocator::join(heap, max_bytes, processors(), Choice::Idle)?;
        Ok(ScalablePageAllocator { inner })
    }

    /// The region.
    pub fn region(&self) -> &Region {
        self.inner.region()
    }
    /// How scattered the free memory is that this process can have.
    pub fn fragmentation(&self) -> Fragmentation {
        self.inner.fragmentation()
    }
    /// Frees that were refused so far, by all processes: double, foreign, interior.
    pub fn refused_frees(&self) -> u64 {
        self.inner.refused_frees()
    }
    /// Walks every invariant of the region; see [`ThreadLocalAllocator::verify`].
    pub fn verify(&self) -> Result<HeapReport, Fault> {
        self.inner.verify()
    }
    /// Gives free memory back to the system; see [`ThreadLocalAllocator::trim`].
    pub fn trim(&self) {
        self.inner.trim();
    }
    /// Takes back what dead processes owned; see [`ThreadLocalAllocator::reap`].
    pub fn reap(&self) -> usize {
        self.inner.reap()
    }
    /// Whether a block is nobody's; see [`ThreadLocalAllocator::is_nobodys`].
    pub fn is_nobodys(&self, block: OffsetPtr<u8>) -> Result<bool> {
        self.inner.is_nobodys(block)
    }
    /// Hands a block over; see [`ThreadLocalAllocator::transfer`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn transfer(&self, block: OffsetPtr<u8>, to: Owner) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.inner.transfer(block, to) }
    }
    /// Leaves the region and frees all that belongs to this process; see
    /// [`ThreadLocalAllocator::shm_detach`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn shm_detach(self) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.inner.shm_detach() }
    }
}

// SAFETY: it is a `ThreadLocalAllocator`, and every call goes there.
unsafe impl Allocator for ScalablePageAllocator {
    fn id(&self) -> AllocatorId {
        self.inner.id()
    }
    fn base(&self) -> *mut u8 {
        self.inner.base()
    }
    fn region_len(&self) -> usize {
        self.inner.region_len()
    }
    fn backing(&self) -> Option<&Region> {
        self.inner.backing()
    }
    fn allocate_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        self.inner.allocate_offset(ctx, layout)
    }
    fn allocate_zeroed_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        self.inner.allocate_zeroed_offset(ctx, layout)
    }
    unsafe fn reallocate_offset(
        &self,
        ctx: MemContext,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.inner.reallocate_offset(ctx, old, new) }
    }
    unsafe fn free_offset_no_null_check(
        &self,
        ctx: MemContext,
        block: OffsetPtr<u8>,
    ) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.inner.free_offset_no_null_check(ctx, block) }
    }
    fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize> {
        self.inner.usable_size(block)
    }
    unsafe fn keep_offset(&self, block: OffsetPtr<u8>) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.inner.keep_offset(block) }
    }
    fn allocate_kept_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        self.inner.allocate_kept_offset(ctx, layout)
    }
    fn currently_allocated_size(&self) -> usize {
        self.inner.currently_allocated_size()
    }
    fn available(&self) -> usize {
        self.inner.available()
    }
    fn visit_blocks(&self, visit: &mut dyn FnMut(BlockInfo)) -> Result<()> {
        self.inner.visit_blocks(visit)
    }
}
