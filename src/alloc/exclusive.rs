//! A thread block for one thread alone: the same heap, without its lock.
//!
//! ```text
//! ThreadLocalAllocator    locals: [ shared | shared | taken | shared ... ]
//!                                                      ^ Exclusive
//! ```
//!
//! A block is marked as taken under its lock, and given back under it; in between its heap is the
//! handle's, and everybody else who finds the mark leaves it alone: allocates from another block,
//! announces frees instead of making them. So the handle locks nothing, and a pair of small blocks
//! makes no read-modify-write.
//!
//! It is no cache: what it does is in the region's bitmaps at once, so its frees are checked like all
//! others, and a process that dies loses nothing but the block that it was handing over.
#![allow(unsafe_code)] // a heap that is the handle's alone

use core::alloc::Layout;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

use super::thread_local::{Local, ThreadLocalAllocator};
use super::traits::Allocator;
use crate::base::classes::{ClassId, MAX_SMALL, class_index};
use crate::base::{Error, Result, align_up};
use crate::heap::block::Block;
use crate::heap::granule::BlockId;
use crate::heap::thread::ThreadHeap;
use crate::ptr::OffsetPtr;

/// A thread block of a [`ThreadLocalAllocator`] that one thread has to itself; see
/// [`exclusive`](ThreadLocalAllocator::exclusive).
///
/// Its blocks are the allocator's: any thread of any process frees them, through the allocator or
/// through a handle of its own. What others free comes back when the handle's thread needs memory, or
/// calls [`tidy`](Self::tidy); until then, and for the runs of pages that it keeps (at most 16 MiB,
/// and but for 1 MiB no more than it once used), nobody else can have it.
///
/// ```
/// use core::alloc::Layout;
/// use hshm::{AllocatorId, Region, ThreadLocalAllocator};
///
/// let region = Region::anonymous(AllocatorId::new(2, 0), 16 << 20)?;
/// let alloc = ThreadLocalAllocator::shm_init(region)?;
/// let mine = alloc.exclusive()?;
/// let block = mine.allocate_offset(Layout::new::<u64>())?;
/// // SAFETY: the block is not used again.
/// unsafe { mine.free_offset(block)? };
/// # Ok::<(), hshm::Error>(())
/// ```
pub struct Exclusive<'a> {
    alloc: &'a ThreadLocalAllocator,
    local: &'a Local,
    heap: NonNull<ThreadHeap>,
    id: BlockId,
    /// May go to another thread, but is one's at a time.
    _not_sync: PhantomData<Cell<()>>,
}

// SAFETY: the heap is reached through the handle alone, wherever that is.
unsafe impl Send for Exclusive<'_> {}

impl core::fmt::Debug for Exclusive<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Exclusive").field("alloc", &self.alloc).field("block", &self.id.0).finish()
    }
}

impl ThreadLocalAllocator {
    /// Takes a thread block for the calling thread alone, until the handle is dropped. Faster than
    /// the allocator's own calls, by the locks that it does not need.
    ///
    /// # Errors
    /// [`Error::TableFull`] where all thread blocks but the one that everybody else needs are taken:
    /// an allocator that was attached with `n` of them has `n - 1` to give away. [`Error::Forked`].
    pub fn exclusive(&self) -> Result<Exclusive<'_>> {
        self.check_process()?;
        for local in self.locals.iter().skip(1) {
            let Some(slot) = local.take() else { continue };
            // SAFETY: taken: the slot is this call's alone.
            match self.populate(local, unsafe { &mut *slot }) {
                Ok(heap) => {
                    let (id, heap) = (heap.id(), NonNull::from(heap));
                    return Ok(Exclusive { alloc: self, local, heap, id, _not_sync: PhantomData });
                }
                Err(error) => {
                    local.give_back();
                    return Err(error);
                }
            }
        }
        Err(Error::TableFull { slots: self.locals.len() - 1 })
    }
}

impl<'a> Exclusive<'a> {
    /// The allocator whose block it is.
    pub fn allocator(&self) -> &'a ThreadLocalAllocator {
        self.alloc
    }

    /// The address of an offset in this process; see [`Allocator::resolve`].
    #[inline]
    pub fn resolve(&self, offset: OffsetPtr<u8>) -> *mut u8 {
        self.alloc.resolve(offset)
    }

    #[inline]
    fn with<R>(&self, work: impl FnOnce(&mut ThreadHeap) -> R) -> R {
        // SAFETY: the slot is this handle's, which is one thread's at a time, and no `work` below
        // comes back here.
        work(unsafe { &mut *self.heap.as_ptr() })
    }

    /// Allocates a block; its contents are undefined. As [`Allocator::allocate_offset`].
    #[inline]
    pub fn allocate_offset(&self, layout: Layout) -> Result<OffsetPtr<u8>> {
        let small = layout.align() <= 8 && layout.size().wrapping_sub(1) < MAX_SMALL;
        if small && self.alloc.check_process().is_ok() {
            let class = ClassId::new(class_index(layout.size()));
            if let Some(offset) = self.with(|heap| heap.take_one(&self.alloc.heap, class)) {
                return Ok(OffsetPtr::new(offset as u64));
            }
        }
        self.allocate_slow(layout)
    }

    #[inline(never)]
    fn allocate_slow(&self, layout: Layout) -> Result<OffsetPtr<u8>> {
        self.alloc.check_process()?;
        let (size, align) = (layout.size().max(1), layout.align());
        let Some(rounded) = align_up(size, align) else {
            let available = self.alloc.available();
            return Err(Error::OutOfMemory { requested: usize::MAX, available });
        };
        let found = self.with(|heap| self.alloc.allocate_from(heap, size, align, rounded));
        match found {
            Ok((block, _)) => Ok(block),
            Err(error) => self.try_harder(error, size, align, rounded),
        }
    }

    #[cold]
    fn try_harder(
        &self,
        error: Error,
        size: usize,
        align: usize,
        rounded: usize,
    ) -> Result<OffsetPtr<u8>> {
        let mut found = Err(error);
        if matches!(error, Error::OutOfMemory { .. }) && size <= self.alloc.region_len() {
            // This block and the others may sit on what was returned to them.
            self.tidy();
            self.alloc.trim();
            found = self.with(|heap| self.alloc.allocate_from(heap, size, align, rounded));
        }
        found.map(|(block, _)| block).map_err(|error| self.alloc.truthful(error, size))
    }

    /// Frees a block of the allocator, whoever allocated it. Checked as
    /// [`Allocator::free_offset`]: what is no block, or is free, is refused and counted.
    ///
    /// # Safety
    /// If `block` is live, nobody uses it any more.
    #[inline]
    pub unsafe fn free_offset(&self, block: OffsetPtr<u8>) -> Result<()> {
        let offset = usize::try_from(block.offset()).unwrap_or(usize::MAX);
        let engine = &self.alloc.heap;
        if let Some((head, class, index)) = engine.find_own(offset, self.id)
            && self.alloc.check_process().is_ok()
            && self.with(|heap| heap.free_live(engine, head, class, index))
        {
            return Ok(());
        }
        self.free_slow(offset)
    }

    /// Blocks of others, runs, and what is refused.
    #[inline(never)]
    fn free_slow(&self, offset: usize) -> Result<()> {
        self.free_any(offset).map_err(|error| self.alloc.refuse_free(error))
    }

    #[inline]
    fn free_any(&self, offset: usize) -> Result<()> {
        self.alloc.check_process()?;
        let engine = &self.alloc.heap;
        let found = engine.find_block(offset)?;
        let freed = match found {
            Block::Small { owner, .. } if owner == self.id => false,
            // Also where it is another block's of this process: its owner will come by.
            Block::Small { head, class, index, owner } => {
                engine.return_block(head, class, owner, index)
            }
            Block::Run { head, owner, .. } if owner == self.id => {
                self.with(|heap| heap.free_own_run(engine, head))
            }
            _ => return self.alloc.free_block(offset, found),
        };
        if freed { Ok(()) } else { Err(Error::DoubleFree { offset: offset as u64 }) }
    }

    /// Makes a block of the allocator, whoever allocated it, as long as `new` says: where it lies if that can
    /// be, otherwise by moving. As [`Allocator::reallocate_offset`]: on an error the block is unchanged.
    ///
    /// # Safety
    /// Nobody else uses the block meanwhile; if the call gives another one, the old one is not used again.
    pub unsafe fn reallocate_offset(
        &self,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        let resize = |block, size| self.resize_in_place(block, size);
        let Some(before) = self.alloc.size_unless_resized(old, new, resize)? else {
            return Ok(old);
        };
        let moved = self.allocate_offset(new)?;
        let (from, to) = (self.resolve(old), self.resolve(moved));
        // SAFETY: both are live, and the length is within both; the caller vouches for the old one, and its
        // contents have moved. (In a heap that another process damages the two may overlap.)
        unsafe {
            core::ptr::copy(from, to, before.min(new.size()));
            self.free_offset(old)?;
        }
        Ok(moved)
    }

    fn resize_in_place(&self, block: Block, size: usize) -> bool {
        match block {
            Block::Run { head, granules, owner } if owner == self.id => {
                self.alloc.note_growth(granules, size);
                let run = (head, granules, owner);
                self.with(|heap| self.alloc.resize_run(run, Some(heap), size))
            }
            _ => self.alloc.resize_in_place(block, size),
        }
    }

    /// Takes in what others returned, and gives empty slabs to the process.
    pub fn tidy(&self) {
        if self.alloc.check_process().is_ok() {
            self.with(|heap| heap.tidy(&self.alloc.heap));
        }
    }
}

impl Drop for Exclusive<'_> {
    /// The block is everybody's again, with all that it has.
    fn drop(&mut self) {
        if self.alloc.check_process().is_ok() {
            self.local.give_back();
        }
    }
}
