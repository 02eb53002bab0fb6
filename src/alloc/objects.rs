//! Values in blocks: how they are made and dropped, so that each is dropped once and no block is lost,
//! whatever panics on the way.
//!
//! Two guards do it. [`Room`] frees its block, [`Built`] drops the first values of an array; both do
//! so when they are dropped, and so also when a constructor or a destructor unwinds past them.
#![allow(unsafe_code)] // writes and drops values in blocks

use core::alloc::Layout;
use core::mem::forget;
use core::ptr;

use super::traits::{Allocator, layout_for, overflow, own_offset};
use crate::base::{Error, MemContext, Result};
use crate::ptr::{FullPtr, OffsetPtr};

/// A block that is freed when this is dropped.
struct Room<'a, A: Allocator> {
    alloc: &'a A,
    ctx: MemContext,
    block: OffsetPtr<u8>,
}

impl<A: Allocator> Room<'_, A> {
    /// Frees the block, and says how that went.
    fn free(self) -> Result<()> {
        let (alloc, ctx, block) = (self.alloc, self.ctx, self.block);
        forget(self);
        // SAFETY: the block is the guard's.
        unsafe { alloc.free_offset_no_null_check(ctx, block) }
    }
}

impl<A: Allocator> Drop for Room<'_, A> {
    fn drop(&mut self) {
        // SAFETY: the block is the guard's. A refusal could only be reported by another panic.
        let _ = unsafe { self.alloc.free_offset_no_null_check(self.ctx, self.block) };
    }
}

/// The first `count` values of an array, dropped with this.
struct Built<T> {
    first: *mut T,
    count: usize,
}

impl<T> Drop for Built<T> {
    fn drop(&mut self) {
        // SAFETY: so many were made and are nobody else's yet.
        unsafe { ptr::slice_from_raw_parts_mut(self.first, self.count).drop_in_place() };
    }
}

fn array_layout<A: Allocator, T>(alloc: &A, count: usize) -> Result<Layout> {
    let size = size_of::<T>().checked_mul(count).ok_or_else(|| overflow(alloc))?;
    layout_for(alloc, size, align_of::<T>())
}

pub(super) fn make<A: Allocator, T>(
    alloc: &A,
    ctx: MemContext,
    make: impl FnOnce() -> T,
) -> Result<FullPtr<T>> {
    let block = alloc.allocate_offset(ctx, Layout::new::<T>())?;
    let room = Room { alloc, ctx, block };
    let place = FullPtr::from_offset(alloc, block.cast::<T>())?;
    // SAFETY: the block was just handed out, for this type.
    unsafe { place.as_ptr().write(make()) };
    forget(room);
    Ok(place)
}

pub(super) fn make_all<A: Allocator, T>(
    alloc: &A,
    ctx: MemContext,
    count: usize,
    make: impl FnMut(usize) -> T,
) -> Result<FullPtr<T>> {
    let block = alloc.allocate_offset(ctx, array_layout::<A, T>(alloc, count)?)?;
    let room = Room { alloc, ctx, block };
    let place = FullPtr::from_offset(alloc, block.cast::<T>())?;
    // SAFETY: the block was just handed out with room for `count`.
    unsafe { build(place.as_ptr(), 0, count, make) };
    forget(room);
    Ok(place)
}

/// Makes the values `from..to` of the array at `first`. If one cannot be made, all from 0 on are
/// dropped.
///
/// # Safety
/// The block has room for `to` values, of which the first `from` are there and the caller's.
unsafe fn build<T>(first: *mut T, from: usize, to: usize, mut make: impl FnMut(usize) -> T) {
    let mut built = Built { first, count: from };
    for index in from..to {
        let value = make(index);
        // SAFETY: inside the block, and nothing is there yet.
        unsafe { first.add(index).write(value) };
        built.count = index + 1;
    }
    forget(built);
}

/// The block of an array, which must be one of this allocator's that are handed out, with room for
/// `count` values.
fn block_of<A: Allocator, T>(alloc: &A, array: FullPtr<T>, count: usize) -> Result<OffsetPtr<u8>> {
    if array.is_null() {
        return Err(Error::NotABlock { offset: u64::MAX });
    }
    let block = own_offset(alloc, array.shm())?.cast::<u8>();
    let needed = array_layout::<A, T>(alloc, count)?.size();
    let usable = alloc.usable_size(block)?;
    if usable < needed {
        return Err(Error::TooSmall { given: usable, minimum: needed });
    }
    if !alloc.resolve(block).cast::<T>().is_aligned() {
        return Err(Error::BadAlignment { align: align_of::<T>() });
    }
    Ok(block)
}

/// # Safety
/// As for [`Allocator::del_objs`].
pub(super) unsafe fn delete<A: Allocator, T>(
    alloc: &A,
    ctx: MemContext,
    array: FullPtr<T>,
    count: usize,
) -> Result<()> {
    let block = block_of(alloc, array, count)?;
    let room = Room { alloc, ctx, block };
    // SAFETY: the caller vouches for the values; the block has room for them, aligned.
    drop(Built { first: alloc.resolve(block).cast::<T>(), count });
    room.free()
}

/// # Safety
/// As for [`Allocator::reallocate_objs`].
pub(super) unsafe fn resize<A: Allocator, T>(
    alloc: &A,
    ctx: MemContext,
    array: FullPtr<T>,
    old_count: usize,
    new_count: usize,
    make: impl FnMut(usize) -> T,
) -> Result<FullPtr<T>> {
    let block = block_of(alloc, array, old_count)?;
    let layout = array_layout::<A, T>(alloc, new_count)?;
    if new_count < old_count {
        let first = alloc.resolve(block).cast::<T>().wrapping_add(new_count);
        drop(Built { first, count: old_count - new_count });
        // SAFETY: the caller vouches for the block. One that cannot be made smaller will do.
        let moved = unsafe { alloc.reallocate_offset(ctx, block, layout) }.unwrap_or(block);
        return FullPtr::from_offset(alloc, moved.cast());
    }
    // SAFETY: the caller vouches for the block.
    let moved = unsafe { alloc.reallocate_offset(ctx, block, layout)? };
    let room = Room { alloc, ctx, block: moved };
    // SAFETY: room for `new_count`, and the values that were there have come along.
    unsafe { build(alloc.resolve(moved).cast::<T>(), old_count, new_count, make) };
    forget(room);
    FullPtr::from_offset(alloc, moved.cast())
}
