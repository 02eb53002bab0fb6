//! What a [`ThreadLocalAllocator`] does with blocks: allocate them, free them, make them longer or shorter.
#![allow(unsafe_code)] // implements an unsafe trait

use core::alloc::Layout;

use super::super::traits::{Allocator, BlockInfo, move_block};
use super::{Owner, ThreadLocalAllocator};
use crate::base::classes::{ClassId, MAX_SMALL, class_index};
use crate::base::units::GRANULE;
use crate::base::{AllocatorId, Error, MemContext, Result, align_up};
use crate::heap::block::Block;
use crate::heap::granule::{BlockId, GranuleIdx};
use crate::heap::process::MAX_RUN;
use crate::heap::thread::ThreadHeap;
use crate::ptr::OffsetPtr;
use crate::region::Region;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::identity::thread_number;

impl ThreadLocalAllocator {
    /// Frees a slab block of the thread block that the calling thread allocates from. False where it is
    /// another's, or no block that is handed out.
    #[inline]
    fn free_own(&self, offset: usize) -> bool {
        let local = &self.locals[thread_number() as usize % self.locals.len()];
        let id = local.id.load(Relaxed);
        if id == 0 || self.heap.owner_of(offset).0 as u32 != id || self.check_process().is_err() {
            return false;
        }
        let freed = local.with(|slot| {
            let thread = slot.as_mut()?;
            // Again: the slab may have changed hands before the lock was taken.
            let (head, class, index) = self.heap.find_own(offset, thread.id())?;
            Some(thread.free_live(&self.heap, head, class, index))
        });
        freed.flatten() == Some(true)
    }

    fn allocate_in(&self, ctx: MemContext, layout: Layout) -> Result<(OffsetPtr<u8>, bool)> {
        let size = layout.size().max(1);
        let align = layout.align();
        let overflow = || Error::OutOfMemory { requested: usize::MAX, available: self.available() };
        let rounded = align_up(size, align).ok_or_else(overflow)?;
        let mut found = self.try_allocate(ctx, size, align, rounded);
        if matches!(found, Err(Error::OutOfMemory { .. })) && size <= self.region_len() {
            // Thread blocks may sit on what other processes returned to them.
            self.trim();
            found = self.try_allocate(ctx, size, align, rounded);
        }
        found.map_err(|error| self.truthful(error, size))
    }

    fn try_allocate(
        &self,
        ctx: MemContext,
        size: usize,
        align: usize,
        rounded: usize,
    ) -> Result<(OffsetPtr<u8>, bool)> {
        self.with_heap(ctx, |thread| self.allocate_from(thread, size, align, rounded))
    }

    /// A block, and whether it is known to be zero. `rounded` is the size as a multiple of `align`.
    #[inline]
    pub(in crate::alloc) fn allocate_from(
        &self,
        thread: &mut ThreadHeap,
        size: usize,
        align: usize,
        rounded: usize,
    ) -> Result<(OffsetPtr<u8>, bool)> {
        if rounded <= MAX_SMALL {
            let class = ClassId::new(class_index(rounded));
            let block = thread.allocate_one(&self.heap, class)?;
            return Ok((OffsetPtr::new((block.addr() - self.heap.base().addr()) as u64), false));
        }
        let max_run = MAX_RUN as usize * GRANULE;
        let (head, zeroed) = if size <= max_run && align <= max_run {
            thread.allocate_run(&self.heap, size, align, self.room())?
        } else {
            thread.collect(&self.heap);
            self.heap.allocate_large(self.process, thread.id(), size, align, size, false)?
        };
        Ok((OffsetPtr::new(head.0 as u64 * GRANULE as u64), zeroed))
    }

    /// Granules that a new run should have room for.
    fn room(&self) -> u32 {
        let grown = self.grown.load(Relaxed);
        if grown > 0 {
            self.grown.store(grown - 1, Relaxed);
        }
        grown
    }

    /// An out-of-memory error in terms of what the caller asked for.
    pub(in crate::alloc) fn truthful(&self, error: Error, requested: usize) -> Error {
        match error {
            Error::OutOfMemory { requested: usize::MAX, .. } => error,
            Error::OutOfMemory { .. } => {
                Error::OutOfMemory { requested, available: self.available() }
            }
            other => other,
        }
    }

    pub(in crate::alloc) fn free_block(&self, offset: usize, block: Block) -> Result<()> {
        self.check_process()?;
        let double = Error::DoubleFree { offset: offset as u64 };
        match block {
            Block::Small { head, class, index, owner } => {
                let free =
                    |thread: &mut ThreadHeap| thread.free_live(&self.heap, head, class, index);
                if let Some(done) = self.free_under_lock(offset, block, owner, free) {
                    return done;
                }
                if !self.heap.return_block(head, class, owner, index) {
                    return Err(double);
                }
            }
            Block::Run { head, owner, .. } => {
                let free = |thread: &mut ThreadHeap| thread.free_own_run(&self.heap, head);
                if let Some(done) = self.free_under_lock(offset, block, owner, free) {
                    return done;
                }
                if !self.heap.return_foreign_run(head, owner) {
                    return Err(double);
                }
            }
            Block::Large { head } => {
                if !self.heap.free_large(self.process, head) {
                    return Err(double);
                }
            }
        }
        Ok(())
    }

    /// Frees a block with the heap of the thread block that owns it; `None` where that is not this process's, or
    /// somebody's own.
    fn free_under_lock(
        &self,
        offset: usize,
        block: Block,
        owner: BlockId,
        free: impl FnOnce(&mut ThreadHeap) -> bool,
    ) -> Option<Result<()>> {
        self.local_of(owner)?.with(|slot| {
            // It may have changed hands, or been given up, before the lock was taken.
            if self.heap.find_block(offset)? != block {
                return Err(Error::NotABlock { offset: offset as u64 });
            }
            let freed = slot.as_mut().is_some_and(free);
            if freed { Ok(()) } else { Err(Error::DoubleFree { offset: offset as u64 }) }
        })
    }

    /// Tries to make a block hold `size` bytes where it lies.
    pub(in crate::alloc) fn resize_in_place(&self, block: Block, size: usize) -> bool {
        match block {
            Block::Small { class, .. } => {
                size <= class.size()
                    && (size > class.size() / 2 || class_index(size) == class.index())
            }
            Block::Run { head, granules, owner } => {
                self.note_growth(granules, size);
                let Some(local) = self.local_of(owner) else { return false };
                let run = (head, granules, owner);
                if size <= MAX_SMALL || size.div_ceil(GRANULE) == granules as usize {
                    return self.resize_run(run, None, size);
                }
                let resized = local.with(|slot| self.resize_run(run, slot.as_mut(), size));
                // The thread block is somebody's own.
                resized.unwrap_or_else(|| self.resize_run(run, None, size))
            }
            Block::Large { head } => {
                size > MAX_RUN as usize * GRANULE / 2 && self.heap.resize_large(head, size)
            }
        }
    }

    /// Remembers how long runs grow, so that the next gets room for it.
    pub(in crate::alloc) fn note_growth(&self, granules: u32, size: usize) {
        let wanted = size.div_ceil(GRANULE);
        if wanted > granules as usize && wanted > self.grown.load(Relaxed) as usize {
            self.grown.store(wanted.min(MAX_RUN as usize) as u32, Relaxed);
        }
    }

    /// Tries to make a run hold `size` bytes where it lies. `thread` is the heap of the block that owns it,
    /// where the caller has it: what is free behind the run may be a run that the heap keeps.
    pub(in crate::alloc) fn resize_run(
        &self,
        (head, granules, owner): (GranuleIdx, u32, BlockId),
        thread: Option<&mut ThreadHeap>,
        size: usize,
    ) -> bool {
        let resize =
            || size > MAX_SMALL && self.heap.resize_run(self.process, owner, head, granules, size);
        let Some(thread) = thread else { return resize() };
        let resized = resize()
            || size > MAX_SMALL
                && thread.make_room_behind(&self.heap, head, granules, size)
                && resize();
        if resized {
            thread.note_resized(granules, size.div_ceil(GRANULE) as u32);
        }
        resized
    }

    /// Makes a block fit `new` where it lies, if `resize` can: `None`; otherwise how many bytes it has.
    pub(in crate::alloc) fn size_unless_resized(
        &self,
        block: OffsetPtr<u8>,
        new: Layout,
        resize: impl FnOnce(Block, usize) -> bool,
    ) -> Result<Option<usize>> {
        self.check_process()?;
        let offset = usize::try_from(block.offset()).unwrap_or(usize::MAX);
        let block = self.heap.find_block(offset)?;
        self.heap.check_live(block)?;
        let before = self.heap.block_size(block);
        let address = self.heap.base().addr() + offset;
        let resized = address.is_multiple_of(new.align()) && resize(block, new.size().max(1));
        Ok((!resized).then_some(before))
    }
}

// SAFETY: blocks come from slabs, runs and chunks that the engine marks used before it hands them
// out and that nobody else is given until they are freed; alignment is a property of the class, or
// of the granule; addresses are base + offset and never move.
unsafe impl Allocator for ThreadLocalAllocator {
    fn id(&self) -> AllocatorId {
        self.heap.region().id()
    }
    fn base(&self) -> *mut u8 {
        self.heap.base()
    }
    fn region_len(&self) -> usize {
        self.heap.region().len()
    }
    fn allocate_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        self.allocate_in(ctx, layout).map(|(offset, _)| offset)
    }
    fn allocate_zeroed_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        let (offset, zeroed) = self.allocate_in(ctx, layout)?;
        if !zeroed {
            // SAFETY: the block was just handed out with at least this size.
            unsafe { self.resolve(offset).write_bytes(0, layout.size()) };
        }
        Ok(offset)
    }
    unsafe fn reallocate_offset(
        &self,
        ctx: MemContext,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        let resize = |block, size| self.resize_in_place(block, size);
        let Some(before) = self.size_unless_resized(old, new, resize)? else { return Ok(old) };
        // SAFETY: the caller's contract is the same, and the size is the allocator's own.
        unsafe { move_block(self, ctx, old, before, new) }
    }
    unsafe fn free_offset_no_null_check(
        &self,
        _ctx: MemContext,
        block: OffsetPtr<u8>,
    ) -> Result<()> {
        let offset = usize::try_from(block.offset()).unwrap_or(usize::MAX);
        if self.free_own(offset) {
            return Ok(());
        }
        let found = self.heap.find_block(offset);
        found
            .and_then(|found| self.free_block(offset, found))
            .map_err(|error| self.refuse_free(error))
    }
    fn refuse_free(&self, error: Error) -> Error {
        self.heap.source().refused_frees.fetch_add(1, Relaxed);
        error
    }
    fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize> {
        let offset = usize::try_from(block.offset()).unwrap_or(usize::MAX);
        let found = self.heap.find_block(offset)?;
        self.heap.check_live(found)?;
        Ok(self.heap.block_size(found))
    }
    unsafe fn keep_offset(&self, block: OffsetPtr<u8>) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.transfer(block, Owner::Nobody) }
    }
    fn allocate_kept_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        let block = self.allocate_offset(ctx, layout)?;
        // What was just handed out need not be found, nor found live.
        if let Err(error) = self.heap.keep_new(block.offset() as usize) {
            // SAFETY: from just now, and nobody knows it.
            let _ = unsafe { self.free_offset_no_null_check(ctx, block) };
            return Err(error);
        }
        Ok(block)
    }
    fn currently_allocated_size(&self) -> usize {
        self.heap.bytes_allocated()
    }
    fn backing(&self) -> Option<&Region> {
        Some(self.heap.region())
    }
    fn available(&self) -> usize {
        ThreadLocalAllocator::available(self)
    }
    fn visit_blocks(&self, visit: &mut dyn FnMut(BlockInfo)) -> Result<()> {
        self.check_process()?;
        self.heap.visit_blocks(self.process, &mut |offset, size, own| {
            visit(BlockInfo { offset: OffsetPtr::new(offset as u64), size, own });
        });
        Ok(())
    }
}
