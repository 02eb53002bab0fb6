//! An allocator bound to a context.
#![allow(unsafe_code)] // forwards unsafe methods

use super::traits::Allocator;
use crate::base::{MemContext, Result};
use crate::ptr::FullPtr;

/// An allocator handle with its [`MemContext`]: the same calls, less the context argument
/// (HSHM's `CtxAllocator`).
#[derive(Clone, Copy, Debug)]
pub struct CtxAllocator<'a, A: Allocator> {
    alloc: &'a A,
    ctx: MemContext,
}

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
    /// See [`Allocator::currently_allocated_size`].
    pub fn currently_allocated_size(&self) -> usize {
        self.alloc.currently_allocated_size()
    }
}
