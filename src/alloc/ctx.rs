//! An allocator bound to a context.
#![allow(unsafe_code)] // forwards unsafe methods

use core::alloc::Layout;

use super::traits::Allocator;
use crate::base::{MemContext, Result};
use crate::ptr::{FullPtr, OffsetPtr};

/// An allocator handle with its [`MemContext`]: the same calls, less the context argument
/// (HSHM's `CtxAllocator`).
#[derive(Debug)]
pub struct CtxAllocator<'a, A: Allocator> {
    alloc: &'a A,
    ctx: MemContext,
}

// By hand: derived, they would ask for allocators that can be copied.
impl<A: Allocator> Clone for CtxAllocator<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: Allocator> Copy for CtxAllocator<'_, A> {}

impl<'a, A: Allocator> CtxAllocator<'a, A> {
    /// Binds `alloc` to `ctx`.
    pub fn new(alloc: &'a A, ctx: MemContext) -> Self {
        CtxAllocator { alloc, ctx }
    }
    /// The allocator.
    pub fn allocator(&self) -> &'a A {
        self.alloc
    }
    /// The context.
    pub fn context(&self) -> MemContext {
        self.ctx
    }
    /// See [`Allocator::allocate`].
    pub fn allocate<T>(&self, size: usize) -> Result<FullPtr<T>> {
        self.alloc.allocate(self.ctx, size)
    }
    /// See [`Allocator::aligned_allocate`].
    pub fn aligned_allocate<T>(&self, size: usize, align: usize) -> Result<FullPtr<T>> {
        self.alloc.aligned_allocate(self.ctx, size, align)
    }
    /// See [`Allocator::reallocate`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn reallocate<T>(&self, old: FullPtr<T>, size: usize) -> Result<FullPtr<T>> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.reallocate(self.ctx, old, size) }
    }
    /// See [`Allocator::free`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn free<T>(&self, block: FullPtr<T>) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.free(self.ctx, block) }
    }
    /// See [`Allocator::allocate_offset`].
    pub fn allocate_offset(&self, layout: Layout) -> Result<OffsetPtr<u8>> {
        self.alloc.allocate_offset(self.ctx, layout)
    }
    /// See [`Allocator::allocate_zeroed_offset`].
    pub fn allocate_zeroed_offset(&self, layout: Layout) -> Result<OffsetPtr<u8>> {
        self.alloc.allocate_zeroed_offset(self.ctx, layout)
    }
    /// See [`Allocator::reallocate_offset`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn reallocate_offset(
        &self,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.reallocate_offset(self.ctx, old, new) }
    }
    /// See [`Allocator::free_offset`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn free_offset(&self, block: OffsetPtr<u8>) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.free_offset(self.ctx, block) }
    }
    /// See [`Allocator::free_offset_no_null_check`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn free_offset_no_null_check(&self, block: OffsetPtr<u8>) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.free_offset_no_null_check(self.ctx, block) }
    }
    /// See [`Allocator::new_obj`].
    pub fn new_obj<T>(&self, value: T) -> Result<FullPtr<T>> {
        self.alloc.new_obj(self.ctx, value)
    }
    /// See [`Allocator::new_obj_with`].
    pub fn new_obj_with<T>(&self, make: impl FnOnce() -> T) -> Result<FullPtr<T>> {
        self.alloc.new_obj_with(self.ctx, make)
    }
    /// See [`Allocator::del_obj`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn del_obj<T>(&self, object: FullPtr<T>) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.del_obj(self.ctx, object) }
    }
    /// See [`Allocator::new_objs`].
    pub fn new_objs<T: Default>(&self, count: usize) -> Result<FullPtr<T>> {
        self.alloc.new_objs(self.ctx, count)
    }
    /// See [`Allocator::new_objs_with`].
    pub fn new_objs_with<T>(
        &self,
        count: usize,
        make: impl FnMut(usize) -> T,
    ) -> Result<FullPtr<T>> {
        self.alloc.new_objs_with(self.ctx, count, make)
    }
    /// See [`Allocator::reallocate_objs`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn reallocate_objs<T: Default>(
        &self,
        array: FullPtr<T>,
        old_count: usize,
        new_count: usize,
    ) -> Result<FullPtr<T>> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.reallocate_objs(self.ctx, array, old_count, new_count) }
    }
    /// See [`Allocator::reallocate_objs_with`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn reallocate_objs_with<T>(
        &self,
        array: FullPtr<T>,
        old_count: usize,
        new_count: usize,
        make: impl FnMut(usize) -> T,
    ) -> Result<FullPtr<T>> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.reallocate_objs_with(self.ctx, array, old_count, new_count, make) }
    }
    /// See [`Allocator::del_objs`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn del_objs<T>(&self, array: FullPtr<T>, count: usize) -> Result<()> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.alloc.del_objs(self.ctx, array, count) }
    }
    /// See [`Allocator::usable_size`].
    pub fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize> {
        self.alloc.usable_size(block)
    }
    /// See [`Allocator::currently_allocated_size`].
    pub fn currently_allocated_size(&self) -> usize {
        self.alloc.currently_allocated_size()
    }
}
