//! The allocator trait.
#![allow(unsafe_code)] // an unsafe trait, and calls of its unsafe methods

use core::alloc::Layout;
use core::ptr;

use super::objects;
use crate::base::{AllocatorId, Error, MemContext, Result};
use crate::ptr::{AtomicOffsetPtr, AtomicShmPtr, FullPtr, OffsetPtr, ShmPtr, ShmSafe};
use crate::region::Region;
use crate::sync::atomic::Ordering;

/// A block that is handed out; see [`Allocator::visit_blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Where it begins.
    pub offset: OffsetPtr<u8>,
    /// Bytes that it holds, as the allocator rounded them.
    pub size: usize,
    /// Whether it belongs to this process. Allocators that do not know whose a block is say yes.
    pub own: bool,
}

/// An allocator over a region: HSHM's allocator interface.
///
/// The required calls work on offsets; the provided ones wrap them in [`FullPtr`]s. Alignment is
/// part of every request (there is no separate aligned call among the required ones). Every call
/// takes the [`MemContext`]; allocators that have no use for it ignore it.
/// [`CtxAllocator`](crate::CtxAllocator) binds one.
///
/// Nothing here panics, except where a value's own constructor or destructor does. Sizes of zero are served like one byte. A size that overflows, alone or
/// after rounding, is [`Error::OutOfMemory`] with `requested: usize::MAX`.
///
/// # Safety
/// A block that was handed out lies inside `[base, base + region_len)`, has at least the size and
/// the alignment asked for, overlaps no other live block and none of the allocator's own data, and
/// stays where it is until it is freed or reallocated.
pub unsafe trait Allocator: Send + Sync {
    /// The id that the shared pointers of this allocator carry.
    fn id(&self) -> AllocatorId;

    /// Where this process sees offset 0. Null for allocators without a region, whose offsets are
    /// addresses.
    fn base(&self) -> *mut u8;

    /// Bytes from the base that offsets may point into.
    fn region_len(&self) -> usize;

    /// The region that the blocks lie in; `None` for allocators without one.
    fn backing(&self) -> Option<&Region>;

    /// Allocates a block for `layout`; its contents are undefined.
    fn allocate_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>>;

    /// Allocates a block for `layout`, all zero. Allocators that know fresh memory to be zero do
    /// not write it again.
    fn allocate_zeroed_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        let offset = self.allocate_offset(ctx, layout)?;
        // SAFETY: the block was just handed out with at least this size and belongs to nobody else.
        unsafe { self.resolve(offset).write_bytes(0, layout.size()) };
        Ok(offset)
    }

    /// Makes the block `new.size()` bytes long, in place where that can be; otherwise moves it,
    /// keeping the first `min(old, new)` bytes. On an error the old block is unchanged.
    ///
    /// # Safety
    /// `old` came from this allocator, in this or another process, is live, and nobody uses it
    /// during the call; afterwards only the returned block may be used.
    unsafe fn reallocate_offset(
        &self,
        ctx: MemContext,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        let old_size = self.usable_size(old)?;
        if new.size() <= old_size
            && new.size() >= old_size / 2
            && self.resolve(old).addr() & (new.align() - 1) == 0
        {
            return Ok(old);
        }
        // SAFETY: the caller's contract is the same, and the size is the allocator's own.
        unsafe { move_block(self, ctx, old, old_size, new) }
    }

    /// Frees a block. A null pointer is [`Error::NotABlock`]; what else is checked (random,
    /// interior, foreign offsets, double frees) is refused with an error and changes nothing.
    ///
    /// # Safety
    /// If `block` is live, nobody uses it any more.
    unsafe fn free_offset(&self, ctx: MemContext, block: OffsetPtr<u8>) -> Result<()> {
        if block.is_null() {
            return Err(self.refuse_free(Error::NotABlock { offset: block.offset() }));
        }
        // SAFETY: the caller's contract is the same.
        unsafe { self.free_offset_no_null_check(ctx, block) }
    }

    /// [`free_offset`](Allocator::free_offset) without the null check.
    ///
    /// # Safety
    /// As for `free_offset`, and `block` is not null.
    unsafe fn free_offset_no_null_check(&self, ctx: MemContext, block: OffsetPtr<u8>)
    -> Result<()>;

    /// Counts a free that is refused with `error`, where the allocator keeps count, and gives the
    /// error back.
    fn refuse_free(&self, error: Error) -> Error {
        error
    }

    /// Bytes that the block at `block` can hold: at least what was asked for.
    fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize>;

    /// Lets a block outlive the process that allocated it: it stays until somebody frees it, whoever
    /// that is. Nothing to do for allocators whose blocks do that anyway, which is the default.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a block of less than 32 bytes, where the allocator cannot note
    /// that; otherwise as [`usable_size`](Allocator::usable_size).
    ///
    /// # Safety
    /// The block is this process's, or nobody's while no other process takes it over.
    unsafe fn keep_offset(&self, block: OffsetPtr<u8>) -> Result<()> {
        let _ = block;
        Ok(())
    }

    /// Allocates a block for `layout` that outlives this process, as after
    /// [`keep_offset`](Allocator::keep_offset); its contents are undefined. A process that dies meanwhile
    /// takes the block with it, or leaves it kept.
    ///
    /// # Errors
    /// As for both calls; then nothing is allocated.
    fn allocate_kept_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        let block = self.allocate_offset(ctx, layout)?;
        // SAFETY: this process's own, from just now, which nobody else knows.
        unsafe {
            if let Err(error) = self.keep_offset(block) {
                let _ = self.free_offset_no_null_check(ctx, block);
                return Err(error);
            }
        }
        Ok(block)
    }

    /// Bytes in blocks that are handed out, as the allocator rounds them. Equal before and after
    /// balanced use.
    fn currently_allocated_size(&self) -> usize;

    /// Bytes that this process could still allocate, all together: no single block of that size need
    /// exist. What [`Error::OutOfMemory`] says as `available`.
    fn available(&self) -> usize;

    /// Calls `visit` for every block that is handed out, in no order. Exact while nobody else uses
    /// the allocator; otherwise blocks that come and go meanwhile may be missing. `visit` must not
    /// use the allocator itself: it may run under its lock.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the allocator's own data are damaged.
    fn visit_blocks(&self, visit: &mut dyn FnMut(BlockInfo)) -> Result<()>;

    /// The user's own header in the allocator's region (HSHM's `GetCustomHeader`); see
    /// [`Region::custom_header`]. [`Error::NotFound`] where there is none.
    fn custom_header<T: ShmSafe>(&self) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        self.backing().ok_or(Error::NotFound)?.custom_header()
    }

    /// The address of `offset` in this process. Not checked: an offset past the end gives an
    /// address that must not be used.
    #[inline]
    fn resolve(&self, offset: OffsetPtr<u8>) -> *mut u8 {
        self.base().wrapping_add(offset.offset() as usize)
    }

    /// Allocates `size` bytes, aligned for `T`.
    fn allocate<T>(&self, ctx: MemContext, size: usize) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        self.aligned_allocate(ctx, size, align_of::<T>())
    }

    /// Allocates `size` bytes at a multiple of `align`, a power of two (raised to `T`'s own
    /// alignment where that is more).
    fn aligned_allocate<T>(&self, ctx: MemContext, size: usize, align: usize) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        let layout = layout_for(self, size, align.max(align_of::<T>()))?;
        FullPtr::from_offset(self, self.allocate_offset(ctx, layout)?.cast())
    }

    /// Makes a block `size` bytes long, in place where that can be. On an error the old block is
    /// unchanged.
    ///
    /// # Safety
    /// As for [`reallocate_offset`](Allocator::reallocate_offset).
    unsafe fn reallocate<T>(
        &self,
        ctx: MemContext,
        old: FullPtr<T>,
        size: usize,
    ) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        let layout = layout_for(self, size, align_of::<T>())?;
        let old = own_offset(self, old.shm())?;
        // SAFETY: the caller vouches for the block.
        let moved = unsafe { self.reallocate_offset(ctx, old.cast(), layout)? };
        FullPtr::from_offset(self, moved.cast())
    }

    /// Frees a block; see [`free_offset`](Allocator::free_offset). A pointer of another allocator
    /// is [`Error::ForeignPointer`].
    ///
    /// # Safety
    /// As for `free_offset`.
    unsafe fn free<T>(&self, ctx: MemContext, block: FullPtr<T>) -> Result<()>
    where
        Self: Sized,
    {
        if block.is_null() {
            return Err(self.refuse_free(Error::NotABlock { offset: u64::MAX }));
        }
        let offset = own_offset(self, block.shm()).map_err(|error| self.refuse_free(error))?;
        // SAFETY: the caller vouches for the block.
        unsafe { self.free_offset(ctx, offset.cast()) }
    }

    /// Allocates room for a `T` and moves `value` there. On an error the value is dropped.
    fn new_obj<T>(&self, ctx: MemContext, value: T) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        self.new_obj_with(ctx, || value)
    }

    /// Allocates room for a `T` and makes one there. Where there is no room, `make` is not called;
    /// where it panics, the room is freed.
    fn new_obj_with<T>(&self, ctx: MemContext, make: impl FnOnce() -> T) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        objects::make(self, ctx, make)
    }

    /// Drops the value and frees its block. Where Drop panics, the block is freed all the same.
    ///
    /// # Errors
    /// As [`free`](Allocator::free), and [`Error::TooSmall`] for a block that cannot hold a `T`;
    /// then nothing is dropped.
    ///
    /// # Safety
    /// The block holds a valid `T`, which nobody uses any more; its type's Drop works in this process.
    unsafe fn del_obj<T>(&self, ctx: MemContext, object: FullPtr<T>) -> Result<()>
    where
        Self: Sized,
    {
        // SAFETY: the caller's contract is the same.
        unsafe { objects::delete(self, ctx, object, 1) }
    }

    /// Allocates an array of `count` default values. See [`new_objs_with`](Allocator::new_objs_with).
    fn new_objs<T: Default>(&self, ctx: MemContext, count: usize) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        objects::make_all(self, ctx, count, |_| T::default())
    }

    /// Allocates an array of `count` values, made by `make` in order. Where `make` panics, those that
    /// were made are dropped, and the block is freed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], with `requested: usize::MAX` where `count` times the size overflows.
    fn new_objs_with<T>(
        &self,
        ctx: MemContext,
        count: usize,
        make: impl FnMut(usize) -> T,
    ) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        objects::make_all(self, ctx, count, make)
    }

    /// Makes an array of `old_count` values one of `new_count`: in place where that can be, otherwise
    /// the values move. New ones are default values; those that are too many are dropped.
    ///
    /// On an error the array is as it was. Where a constructor panics, the whole array is dropped and
    /// freed; where a Drop panics, the array keeps its block and the values before `new_count`.
    ///
    /// # Safety
    /// The array has `old_count` valid values that nobody uses during the call; afterwards only the
    /// result may be used.
    unsafe fn reallocate_objs<T: Default>(
        &self,
        ctx: MemContext,
        array: FullPtr<T>,
        old_count: usize,
        new_count: usize,
    ) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        // SAFETY: the caller's contract is the same.
        unsafe { objects::resize(self, ctx, array, old_count, new_count, |_| T::default()) }
    }

    /// [`reallocate_objs`](Allocator::reallocate_objs) with new values made by `make`, which is given
    /// their indices.
    ///
    /// # Safety
    /// As there.
    unsafe fn reallocate_objs_with<T>(
        &self,
        ctx: MemContext,
        array: FullPtr<T>,
        old_count: usize,
        new_count: usize,
        make: impl FnMut(usize) -> T,
    ) -> Result<FullPtr<T>>
    where
        Self: Sized,
    {
        // SAFETY: the caller's contract is the same.
        unsafe { objects::resize(self, ctx, array, old_count, new_count, make) }
    }

    /// Drops an array of `count` values and frees its block. See [`del_obj`](Allocator::del_obj).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// The array has `count` valid values, which nobody uses any more.
    unsafe fn del_objs<T>(&self, ctx: MemContext, array: FullPtr<T>, count: usize) -> Result<()>
    where
        Self: Sized,
    {
        // SAFETY: the caller's contract is the same.
        unsafe { objects::delete(self, ctx, array, count) }
    }
}

macro_rules! forward {
    ($(<$($life:lifetime,)? $param:ident> $pointer:ty),*) => { $(
        // SAFETY: it is the allocator that it points to, and every call goes there.
        unsafe impl<$($life,)? $param: Allocator + ?Sized> Allocator for $pointer {
            fn id(&self) -> AllocatorId {
                (**self).id()
            }
            fn base(&self) -> *mut u8 {
                (**self).base()
            }
            fn region_len(&self) -> usize {
                (**self).region_len()
            }
            fn backing(&self) -> Option<&Region> {
                (**self).backing()
            }
            fn allocate_offset(&self, ctx: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
                (**self).allocate_offset(ctx, layout)
            }
            fn allocate_zeroed_offset(
                &self,
                ctx: MemContext,
                layout: Layout,
            ) -> Result<OffsetPtr<u8>> {
                (**self).allocate_zeroed_offset(ctx, layout)
            }
            unsafe fn reallocate_offset(
                &self,
                ctx: MemContext,
                old: OffsetPtr<u8>,
                new: Layout,
            ) -> Result<OffsetPtr<u8>> {
                // SAFETY: the caller's contract is the same.
                unsafe { (**self).reallocate_offset(ctx, old, new) }
            }
            unsafe fn free_offset(&self, ctx: MemContext, block: OffsetPtr<u8>) -> Result<()> {
                // SAFETY: the caller's contract is the same.
                unsafe { (**self).free_offset(ctx, block) }
            }
            unsafe fn free_offset_no_null_check(
                &self,
                ctx: MemContext,
                block: OffsetPtr<u8>,
            ) -> Result<()> {
                // SAFETY: the caller's contract is the same.
                unsafe { (**self).free_offset_no_null_check(ctx, block) }
            }
            fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize> {
                (**self).usable_size(block)
            }
            unsafe fn keep_offset(&self, block: OffsetPtr<u8>) -> Result<()> {
                // SAFETY: the caller's contract is the same.
                unsafe { (**self).keep_offset(block) }
            }
            fn allocate_kept_offset(
                &self,
                ctx: MemContext,
                layout: Layout,
            ) -> Result<OffsetPtr<u8>> {
                (**self).allocate_kept_offset(ctx, layout)
            }
            fn currently_allocated_size(&self) -> usize {
                (**self).currently_allocated_size()
            }
            fn available(&self) -> usize {
                (**self).available()
            }
            fn visit_blocks(&self, visit: &mut dyn FnMut(BlockInfo)) -> Result<()> {
                (**self).visit_blocks(visit)
            }
            fn resolve(&self, offset: OffsetPtr<u8>) -> *mut u8 {
                (**self).resolve(offset)
            }
        }
    )* };
}
forward!(<'a, A> &'a A, <A> std::sync::Arc<A>, <A> Box<A>);

/// Reallocates by moving: a new block for `new`, the first `min(old_size, new.size())` bytes
/// copied, the old block freed. What allocators fall back to that could not do it in place.
///
/// # Safety
/// As for [`Allocator::reallocate_offset`], and `old` has at least `old_size` bytes.
pub(crate) unsafe fn move_block<A: Allocator + ?Sized>(
    alloc: &A,
    ctx: MemContext,
    old: OffsetPtr<u8>,
    old_size: usize,
    new: Layout,
) -> Result<OffsetPtr<u8>> {
    let moved = alloc.allocate_offset(ctx, new)?;
    let (from, to) = (alloc.resolve(old), alloc.resolve(moved));
    // SAFETY: both blocks are live, and the length is within both. They are distinct in every sound
    // heap; in one that another process damages they may overlap.
    unsafe { ptr::copy(from, to, old_size.min(new.size())) };
    // SAFETY: the caller vouches for `old`, and its contents have moved.
    unsafe { alloc.free_offset_no_null_check(ctx, old)? };
    Ok(moved)
}

/// The layout of `size` bytes at `align`, with overflow and bad alignments as errors.
pub(crate) fn layout_for<A: Allocator + ?Sized>(
    alloc: &A,
    size: usize,
    align: usize,
) -> Result<Layout> {
    if !align.is_power_of_two() {
        return Err(Error::BadAlignment { align });
    }
    Layout::from_size_align(size, align).map_err(|_| overflow(alloc))
}

/// The error for a size that overflows.
#[cold]
pub(crate) fn overflow<A: Allocator + ?Sized>(alloc: &A) -> Error {
    Error::OutOfMemory { requested: usize::MAX, available: alloc.available() }
}

pub(crate) fn own_offset<A: Allocator + ?Sized, T>(
    alloc: &A,
    shm: ShmPtr<T>,
) -> Result<OffsetPtr<T>> {
    if shm.id() != alloc.id() {
        return Err(Error::ForeignPointer { found: shm.id(), expected: alloc.id() });
    }
    Ok(shm.offset())
}

impl<T> FullPtr<T> {
    /// The place `offset` of an allocator's region. An offset outside it is an error; null gives
    /// null.
    pub fn from_offset<A: Allocator + ?Sized>(
        alloc: &A,
        offset: OffsetPtr<T>,
    ) -> Result<FullPtr<T>> {
        if offset.is_null() {
            return Ok(FullPtr::NULL);
        }
        let length = alloc.region_len() as u64;
        match offset.offset().checked_add(size_of::<T>() as u64) {
            Some(end) if end <= length && offset.offset() < length => {
                let ptr = alloc.resolve(offset.cast()).cast();
                Ok(FullPtr::from_parts(ptr, ShmPtr::new(alloc.id(), offset)))
            }
            _ => Err(Error::OffsetOutOfRange { offset: offset.offset(), length }),
        }
    }

    /// [`from_offset`](FullPtr::from_offset) of what the atomic pointer holds now.
    pub fn from_atomic_offset<A: Allocator + ?Sized>(
        alloc: &A,
        offset: &AtomicOffsetPtr<T>,
    ) -> Result<FullPtr<T>> {
        Self::from_offset(alloc, offset.load(Ordering::Acquire))
    }

    /// The place that `shm` names, which must belong to `alloc`: another allocator's pointer is
    /// [`Error::ForeignPointer`]. Null gives null.
    pub fn from_allocator<A: Allocator + ?Sized>(alloc: &A, shm: ShmPtr<T>) -> Result<FullPtr<T>> {
        if shm.is_null() {
            return Ok(FullPtr::NULL);
        }
        Self::from_offset(alloc, own_offset(alloc, shm)?)
    }

    /// [`from_allocator`](FullPtr::from_allocator) of what the atomic pointer holds now.
    pub fn from_atomic<A: Allocator + ?Sized>(
        alloc: &A,
        shm: &AtomicShmPtr<T>,
    ) -> Result<FullPtr<T>> {
        Self::from_allocator(alloc, shm.load())
    }
}
