//! Allocators over regions as allocators of collections: the trait `Allocator` of the crate
//! `allocator-api2`, version 0.2 (feature `allocator-api2-02`) and version 0.4 (`allocator-api2-04`).
//!
//! The trait asks that blocks stay valid until the allocator and all its clones are gone, wherever it
//! is moved meanwhile. Blocks lie in the region, which each handle keeps mapped (or in the C library's
//! heap), and none of them in a handle; so all of these hold it, by value as by reference. What makes blocks invalid earlier is
//! `unsafe` (`StackAllocator::reset`, `ThreadLocalAllocator::shm_detach`).
//!
//! Collections hold addresses: others can use them where the region is mapped at the same place.
#![allow(unsafe_code)] // implements an unsafe trait

use core::alloc::Layout;
use core::ptr::NonNull;

use super::{
    Allocator as Region, BuddyAllocator, CtxAllocator, Exclusive, MallocAllocator,
    ScalablePageAllocator, StackAllocator, ThreadLocalAllocator,
};
use crate::base::MemContext;
use crate::ptr::OffsetPtr;

/// The block at `offset` as the trait wants it: exactly as long as it was asked for, so that only
/// its own layout fits it.
fn block<A: Region>(alloc: &A, offset: OffsetPtr<u8>, layout: Layout) -> Option<NonNull<[u8]>> {
    let place = NonNull::new(alloc.resolve(offset))?;
    Some(NonNull::slice_from_raw_parts(place, layout.size()))
}

fn offset<A: Region>(alloc: &A, place: NonNull<u8>) -> OffsetPtr<u8> {
    OffsetPtr::new(place.addr().get().wrapping_sub(alloc.base().addr()) as u64)
}

/// Zeroes what a block gained when it was grown.
///
/// # Safety
/// `grown` is a block of at least `new` bytes, at most `old` of which are in use; `old` is not longer
/// than `new`.
pub(crate) unsafe fn zero_gained(grown: NonNull<[u8]>, old: Layout, new: Layout) -> NonNull<[u8]> {
    let gained = new.size() - old.size();
    // SAFETY: the caller's contract.
    unsafe { grown.cast::<u8>().add(old.size()).write_bytes(0, gained) };
    grown
}

macro_rules! regions_allocate {
    ($version:ident: $($handle:ty),*) => {
        mod $version {
            use super::*;
            use ::$version::alloc::{AllocError, Allocator};

            // SAFETY: blocks lie in the region, which stays mapped while the allocator that is
            // borrowed lives, and belong to the caller until they are freed; copies of the handle
            // are the same allocator. `allocate_offset` and `reallocate_offset` make size and
            // alignment.
            unsafe impl<A: Region> Allocator for CtxAllocator<'_, A> {
                fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    let alloc = self.allocator();
                    let offset = alloc.allocate_offset(self.context(), layout);
                    offset.ok().and_then(|at| block(alloc, at, layout)).ok_or(AllocError)
                }
                fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    let alloc = self.allocator();
                    let offset = alloc.allocate_zeroed_offset(self.context(), layout);
                    offset.ok().and_then(|at| block(alloc, at, layout)).ok_or(AllocError)
                }
                unsafe fn deallocate(&self, place: NonNull<u8>, _: Layout) {
                    let alloc = self.allocator();
                    // SAFETY: the caller's block. A refusal (in a forked child) leaves it.
                    let _ = unsafe { alloc.free_offset(self.context(), offset(alloc, place)) };
                }
                unsafe fn grow(
                    &self,
                    place: NonNull<u8>,
                    _: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    let alloc = self.allocator();
                    let old = offset(alloc, place);
                    // SAFETY: the caller's block.
                    let moved = unsafe { alloc.reallocate_offset(self.context(), old, new) };
                    moved.ok().and_then(|at| block(alloc, at, new)).ok_or(AllocError)
                }
                unsafe fn grow_zeroed(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's contract is the same.
                    unsafe { self.grow(place, old, new).map(|grown| zero_gained(grown, old, new)) }
                }
                unsafe fn shrink(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's contract is the same: reallocating does both.
                    unsafe { self.grow(place, old, new) }
                }
            }

            // SAFETY: as above: blocks are the allocator's, which the handle borrows, and stay when the handle
            // goes.
            unsafe impl Allocator for Exclusive<'_> {
                #[inline]
                fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    let offset = self.allocate_offset(layout);
                    let found = offset.ok().and_then(|at| block(self.allocator(), at, layout));
                    found.ok_or(AllocError)
                }
                #[inline]
                unsafe fn deallocate(&self, place: NonNull<u8>, _: Layout) {
                    // SAFETY: the caller's block. A refusal (in a forked child) leaves it.
                    let _ = unsafe { self.free_offset(offset(self.allocator(), place)) };
                }
                unsafe fn grow(
                    &self,
                    place: NonNull<u8>,
                    _: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    let alloc = self.allocator();
                    // SAFETY: the caller's block.
                    let moved = unsafe { self.reallocate_offset(offset(alloc, place), new) };
                    moved.ok().and_then(|at| block(alloc, at, new)).ok_or(AllocError)
                }
                unsafe fn grow_zeroed(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's contract is the same.
                    unsafe { self.grow(place, old, new).map(|grown| zero_gained(grown, old, new)) }
                }
                unsafe fn shrink(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's contract is the same: reallocating does both.
                    unsafe { self.grow(place, old, new) }
                }
            }

            $(
                // SAFETY: as above: the handle keeps the region mapped, and moving or cloning it
                // moves no block.
                unsafe impl Allocator for $handle {
                    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                        Allocator::allocate(&with(self), layout)
                    }
                    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                        Allocator::allocate_zeroed(&with(self), layout)
                    }
                    unsafe fn deallocate(&self, place: NonNull<u8>, layout: Layout) {
                        // SAFETY: the caller's contract is the same.
                        unsafe { with(self).deallocate(place, layout) }
                    }
                    unsafe fn grow(
                        &self,
                        place: NonNull<u8>,
                        old: Layout,
                        new: Layout,
                    ) -> Result<NonNull<[u8]>, AllocError> {
                        // SAFETY: the caller's contract is the same.
                        unsafe { with(self).grow(place, old, new) }
                    }
                    unsafe fn grow_zeroed(
                        &self,
                        place: NonNull<u8>,
                        old: Layout,
                        new: Layout,
                    ) -> Result<NonNull<[u8]>, AllocError> {
                        // SAFETY: the caller's contract is the same.
                        unsafe { with(self).grow_zeroed(place, old, new) }
                    }
                    unsafe fn shrink(
                        &self,
                        place: NonNull<u8>,
                        old: Layout,
                        new: Layout,
                    ) -> Result<NonNull<[u8]>, AllocError> {
                        // SAFETY: the caller's contract is the same.
                        unsafe { with(self).shrink(place, old, new) }
                    }
                }
            )*
        }
    };
}

fn with<A: Region>(alloc: &A) -> CtxAllocator<'_, A> {
    CtxAllocator::new(alloc, MemContext::DEFAULT)
}

#[cfg(feature = "allocator-api2-02")]
regions_allocate!(
    allocator_api2_02: BuddyAllocator,
    MallocAllocator,
    ScalablePageAllocator,
    StackAllocator,
    ThreadLocalAllocator
);
#[cfg(feature = "allocator-api2-04")]
regions_allocate!(
    allocator_api2_04: BuddyAllocator,
    MallocAllocator,
    ScalablePageAllocator,
    StackAllocator,
    ThreadLocalAllocator
);
