//! `BuddyAllocator`: pages of any size in power-of-two lists.
#![allow(unsafe_code)] // implements an unsafe trait

use core::alloc::Layout;

use super::traits::{Allocator, BlockInfo, move_block};
use crate::base::{AllocatorId, Error, MemContext, Result};
use crate::heap::Heap;
use crate::heap::buddy::{Accounting, Buddy, Request};
use crate::ptr::OffsetPtr;
use crate::region::Region;

/// An allocator of pages of any size, for one thread or many, one process or many (HSHM's
/// `BuddyAllocator`).
///
/// Sizes up to 16 KiB are rounded up to a power of two of at least 32 bytes, larger ones to 16
/// bytes. Freed pages go to the list of their true size, are reused from there, cut where they are
/// larger than needed, and joined with their neighbours when nothing else serves. Its blocks live
/// in the region with their headers before them; nothing else is kept in the process, so any
/// process that maps the region, wherever, works on the same allocator.
///
/// One lock guards it: for many threads that allocate small blocks all the time there are better
/// ones. Blocks of odd sizes just above a power of two up to 16 KiB waste almost half.
///
/// Alignments count addresses of the process that allocates. Another one sees the same alignment
/// if its mapping is congruent, which it always is for alignments up to a page.
///
/// A freed offset is checked: anything but the start of a live block of this allocator is refused
/// and changes nothing, up to a chance of 2^-64 that arbitrary bytes inside a block pass for the
/// header of a page.
///
/// The context of a call is ignored.
#[derive(Clone, Debug)]
pub struct BuddyAllocator {
    heap: Buddy,
}

impl BuddyAllocator {
    /// Bytes of a page's header that are the allocator's own; the least `metadata` there is.
    pub const MIN_METADATA: usize = crate::heap::page::MIN_METADATA;

    /// Creates the allocator over what `heap` has left. Its shared header, into which the heap
    /// moves, and its lists are the first that it takes from there.
    ///
    /// `heap_offset` is where the heap begins in the region. `metadata` is the size of a page's
    /// header in bytes, a multiple of 16 from [`MIN_METADATA`](Self::MIN_METADATA) to 4096; what is
    /// more than the minimum lies directly before each block and is the user's.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] where the heap begins elsewhere or reaches past the region;
    /// [`Error::TooSmall`], [`Error::TooLarge`], [`Error::BadAlignment`] for the metadata size;
    /// [`Error::OutOfMemory`] where header and lists do not fit.
    pub fn shm_init(
        region: Region,
        heap_offset: OffsetPtr<u8>,
        heap: Heap,
        metadata: usize,
    ) -> Result<Self> {
        if heap_offset.offset() != heap.start() {
            let (offset, length) = (heap_offset.offset(), region.len() as u64);
            return Err(Error::OffsetOutOfRange { offset, length });
        }
        super::in_band(&region, heap.start(), || {
            Ok(BuddyAllocator { heap: Buddy::create(region.clone(), heap, metadata)? })
        })
    }

    /// Attaches the allocator whose shared header lies at `header` (see
    /// [`header_offset`](Self::header_offset)).
    ///
    /// # Errors
    /// [`Error::NotARegion`], [`Error::NotReady`], [`Error::Incompatible`], [`Error::Corrupt`] or
    /// [`Error::OffsetOutOfRange`] for whatever is not such a header; [`Error::ReadOnly`];
    /// [`Error::Busy`] where somebody holds the lock, and still does after two seconds. The
    /// pages are not walked; that is [`verify`](Self::verify)'s business.
    pub fn shm_attach(region: Region, header: OffsetPtr<u8>) -> Result<Self> {
        Ok(BuddyAllocator { heap: Buddy::attach(region, header)? })
    }

    /// Where the shared header lies: what another process needs to attach.
    pub fn header_offset(&self) -> OffsetPtr<u8> {
        OffsetPtr::new(self.heap.header_offset())
    }

    /// Bytes of a page's header.
    pub fn metadata_size(&self) -> usize {
        self.heap.metadata() as usize
    }

    /// The region.
    pub fn region(&self) -> &Region {
        self.heap.region()
    }

    /// Bytes that could still be handed out, all together: free payloads and the heap's rest. No
    /// single block of that size need exist.
    pub fn available(&self) -> usize {
        self.heap.available().map_or(0, |bytes| bytes as usize)
    }

    /// Joins free pages that touch, and gives the last one back to the heap. Runs by itself when a
    /// request needs it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the lists or headers are damaged.
    pub fn coalesce(&self) -> Result<()> {
        self.heap.coalesce()
    }

    /// Frees that were refused so far, by all processes: double, foreign, interior.
    pub fn refused_frees(&self) -> u64 {
        self.heap.refused()
    }

    /// How often pages were coalesced.
    pub fn coalescings(&self) -> u64 {
        self.heap.merges()
    }

    /// Walks all pages and says where every byte is.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the headers do not tile the range.
    pub fn accounting(&self) -> Result<Accounting> {
        self.heap.accounting()
    }

    /// Checks every invariant: the pages tile the range, each free page is in the list of its
    /// size and in no other, no used page is in any, and all counters agree.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where one does not hold.
    pub fn verify(&self) -> Result<()> {
        self.heap.verify()
    }

    /// Makes the lists and counters anew from the page headers.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the headers are damaged; nothing is changed then.
    pub fn rebuild(&self) -> Result<()> {
        self.heap.rebuild()
    }
}

// SAFETY: the engine hands out payloads of pages that tile its own range of the region, so blocks
// lie inside it and overlap neither each other nor headers; `Request` and `gap` make size and
// alignment; only `free` and `resize` change a used page, and both are the owner's call.
unsafe impl Allocator for BuddyAllocator {
    fn id(&self) -> AllocatorId {
        self.heap.region().id()
    }

    fn base(&self) -> *mut u8 {
        self.heap.region().base()
    }

    fn region_len(&self) -> usize {
        self.heap.region().len()
    }

    fn backing(&self) -> Option<&Region> {
        Some(self.heap.region())
    }

    fn allocate_offset(&self, _: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        let request = Request::new(layout.size(), layout.align());
        self.heap.allocate(request).map(OffsetPtr::new)
    }

    unsafe fn reallocate_offset(
        &self,
        ctx: MemContext,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        let old_size = self.usable_size(old)?;
        let request = Request::new(new.size(), new.align());
        let aligned = self.resolve(old).addr() & (new.align() - 1) == 0;
        if aligned && self.heap.resize(old.offset(), request)? {
            return Ok(old);
        }
        // SAFETY: the caller's contract is the same, and the size is the block's.
        unsafe { move_block(self, ctx, old, old_size, new) }
    }

    unsafe fn free_offset_no_null_check(&self, _: MemContext, block: OffsetPtr<u8>) -> Result<()> {
        self.heap.free(block.offset()).map_err(|error| self.refuse_free(error))
    }

    fn refuse_free(&self, error: Error) -> Error {
        self.heap.count_refused();
        error
    }

    fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize> {
        self.heap.usable_size(block.offset()).map(|bytes| bytes as usize)
    }

    fn currently_allocated_size(&self) -> usize {
        self.heap.in_use() as usize
    }

    fn available(&self) -> usize {
        BuddyAllocator::available(self)
    }

    fn visit_blocks(&self, visit: &mut dyn FnMut(BlockInfo)) -> Result<()> {
        self.heap.visit_used(&mut |offset, size| {
            visit(BlockInfo { offset: OffsetPtr::new(offset), size: size as usize, own: true });
        })
    }
}
