//! What the manager must know of an allocator.

use crate::alloc::{
    Allocator, BuddyAllocator, DEFAULT_PROCESSES, DEFAULT_THREAD_BLOCKS, MallocAllocator,
    ScalablePageAllocator, StackAllocator, ThreadLocalAllocator,
};
use crate::base::{Error, Result};
use crate::heap::Heap;
use crate::ptr::OffsetPtr;
use crate::region::Region;

/// Which type of allocator it is, as a backend's directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllocatorKind(u32);

impl AllocatorKind {
    /// [`StackAllocator`].
    pub const STACK: AllocatorKind = AllocatorKind(1);
    /// [`MallocAllocator`].
    pub const MALLOC: AllocatorKind = AllocatorKind(2);
    /// [`ScalablePageAllocator`].
    pub const SCALABLE_PAGE: AllocatorKind = AllocatorKind(3);
    /// [`BuddyAllocator`].
    pub const BUDDY: AllocatorKind = AllocatorKind(4);
    /// [`ThreadLocalAllocator`].
    pub const THREAD_LOCAL: AllocatorKind = AllocatorKind(5);

    /// The kind of an allocator that is not this crate's: `number`, which all programs that share a
    /// backend must mean the same by. Numbers from 2^32 - 256 on come out as the last one.
    pub const fn custom(number: u32) -> AllocatorKind {
        AllocatorKind(number.saturating_add(256))
    }
    /// The number in the directory.
    pub const fn number(self) -> u32 {
        self.0
    }
    pub(super) const fn from_number(number: u32) -> AllocatorKind {
        AllocatorKind(number)
    }
}

/// How the manager makes or attaches an allocator.
///
/// ```
/// use hshm::{AllocatorOptions, Unit};
/// #[repr(C)]
/// struct Header { magic: u64, count: u64 }
/// const OPTIONS: AllocatorOptions =
///     AllocatorOptions::new().size(Unit::megabytes(16)).custom_header::<Header>();
/// # let _ = OPTIONS;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct AllocatorOptions {
    pub(super) size: usize,
    pub(super) custom: Option<(usize, usize)>,
    processes: usize,
    thread_blocks: usize,
    max_bytes: usize,
    page_metadata: usize,
}

impl AllocatorOptions {
    /// All that the backend has left, in one piece; no custom header.
    pub const fn new() -> Self {
        AllocatorOptions {
            size: 0,
            custom: None,
            processes: DEFAULT_PROCESSES,
            thread_blocks: DEFAULT_THREAD_BLOCKS,
            max_bytes: 0,
            page_metadata: BuddyAllocator::MIN_METADATA,
        }
    }
    /// Bytes of the backend for a new allocator, its headers and tables included; rounded up to 64 KiB
    /// where there is room. 0 is the longest piece that is left.
    pub const fn size(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }
    /// A custom header for a `T`. A new allocator gets it, all zero; one that is attached must have it,
    /// of the same size and alignment, or it is [`Error::Incompatible`].
    pub const fn custom_header<T>(self) -> Self {
        self.custom_header_of(size_of::<T>(), align_of::<T>())
    }
    /// [`custom_header`](Self::custom_header) by size (up to 1 MiB) and alignment (up to 4096), in
    /// bytes. A size of 0 is none.
    pub const fn custom_header_of(mut self, size: usize, align: usize) -> Self {
        self.custom = if size == 0 { None } else { Some((size, align)) };
        self
    }
    /// How many processes can have a new page or thread allocator at a time. Default: 256.
    pub const fn processes(mut self, count: usize) -> Self {
        self.processes = count;
        self
    }
    /// How many thread blocks this process may use of a thread allocator. Default: 64.
    pub const fn thread_blocks(mut self, count: usize) -> Self {
        self.thread_blocks = count;
        self
    }
    /// The most bytes that this process may take of a page or thread allocator that it attaches.
    /// Default: 0, no limit.
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }
    /// Bytes of a buddy's page header; see [`BuddyAllocator::shm_init`].
    pub const fn page_metadata(mut self, bytes: usize) -> Self {
        self.page_metadata = bytes;
        self
    }
}

impl Default for AllocatorOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// An allocator that [`MemoryManager`](crate::MemoryManager) can make, in a region of its own.
pub trait ManagedAllocator: Allocator + Sized + 'static {
    /// What the directory calls it.
    const KIND: AllocatorKind;

    /// Makes the allocator in a fresh region, which it keeps a handle of.
    fn make(region: Region, options: &AllocatorOptions) -> Result<Self>;

    /// Attaches the one that was made in `region`.
    fn attach(region: Region, options: &AllocatorOptions) -> Result<Self>;
}

/// All of the region behind its headers.
fn rest_of(region: &Region) -> Result<(OffsetPtr<u8>, Heap)> {
    let start = region.payload_offset() as u64;
    Ok((OffsetPtr::new(start), Heap::new(start, region.len() as u64)?))
}

impl ManagedAllocator for StackAllocator {
    const KIND: AllocatorKind = AllocatorKind::STACK;
    fn make(region: Region, _: &AllocatorOptions) -> Result<Self> {
        let (start, heap) = rest_of(&region)?;
        StackAllocator::shm_init(region, start, heap)
    }
    fn attach(region: Region, _: &AllocatorOptions) -> Result<Self> {
        let (start, _) = rest_of(&region)?;
        StackAllocator::shm_attach(region, start)
    }
}

impl ManagedAllocator for BuddyAllocator {
    const KIND: AllocatorKind = AllocatorKind::BUDDY;
    fn make(region: Region, options: &AllocatorOptions) -> Result<Self> {
        let (start, heap) = rest_of(&region)?;
        BuddyAllocator::shm_init(region, start, heap, options.page_metadata)
    }
    fn attach(region: Region, _: &AllocatorOptions) -> Result<Self> {
        let (start, _) = rest_of(&region)?;
        BuddyAllocator::shm_attach(region, start)
    }
}

impl ManagedAllocator for ScalablePageAllocator {
    const KIND: AllocatorKind = AllocatorKind::SCALABLE_PAGE;
    fn make(region: Region, options: &AllocatorOptions) -> Result<Self> {
        ScalablePageAllocator::shm_init_with(region, options.processes)
    }
    fn attach(region: Region, options: &AllocatorOptions) -> Result<Self> {
        ScalablePageAllocator::shm_attach(region, options.max_bytes)
    }
}

impl ManagedAllocator for ThreadLocalAllocator {
    const KIND: AllocatorKind = AllocatorKind::THREAD_LOCAL;
    fn make(region: Region, options: &AllocatorOptions) -> Result<Self> {
        ThreadLocalAllocator::shm_init_as(region, options.processes, options.thread_blocks)
    }
    fn attach(region: Region, options: &AllocatorOptions) -> Result<Self> {
        ThreadLocalAllocator::shm_attach(region, options.max_bytes, options.thread_blocks)
    }
}

/// Only on private backends: the C library's heap is this process's. Its blocks do not lie there; the
/// custom header does.
impl ManagedAllocator for MallocAllocator {
    const KIND: AllocatorKind = AllocatorKind::MALLOC;
    fn make(region: Region, _: &AllocatorOptions) -> Result<Self> {
        if region.is_shared() {
            return Err(Error::Unsupported);
        }
        Ok(MallocAllocator::with_header(region))
    }
    fn attach(_: Region, _: &AllocatorOptions) -> Result<Self> {
        Err(Error::NotShared)
    }
}
