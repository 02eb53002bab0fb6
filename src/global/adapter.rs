//! `HshmAlloc` as an allocator of collections, beside being the global one: the trait `Allocator` of the
//! crate `allocator-api2`, version 0.2 (feature `allocator-api2-02`) and 0.4 (`allocator-api2-04`).
//!
//! All `HshmAlloc`s of a process are handles of one heap, which stays: blocks do not depend on any of
//! them.
#![allow(unsafe_code)] // implements an unsafe trait

use core::alloc::{GlobalAlloc, Layout};
use core::num::NonZero;
use core::ptr::NonNull;

use super::HshmAlloc;
use crate::alloc::zero_gained;

/// A block as the trait wants it, `None` where there is no memory.
fn block(place: *mut u8, layout: Layout) -> Option<NonNull<[u8]>> {
    NonNull::new(place).map(|place| NonNull::slice_from_raw_parts(place, layout.size()))
}

/// Nothing is allocated for nothing.
fn nothing(layout: Layout) -> NonNull<[u8]> {
    let place =
        NonNull::without_provenance(NonZero::new(layout.align()).unwrap_or(NonZero::<usize>::MIN));
    NonNull::slice_from_raw_parts(place, 0)
}

macro_rules! the_heap_allocates {
    ($version:ident) => {
        mod $version {
            use super::*;
            use ::$version::alloc::{AllocError, Allocator};

            // SAFETY: `GlobalAlloc`'s blocks are the caller's until they are freed, by any handle; for
            // nothing there is no block.
            unsafe impl Allocator for HshmAlloc {
                #[inline]
                fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    if layout.size() == 0 {
                        return Ok(nothing(layout));
                    }
                    // SAFETY: the size is not zero.
                    block(unsafe { self.alloc(layout) }, layout).ok_or(AllocError)
                }
                #[inline]
                fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    if layout.size() == 0 {
                        return Ok(nothing(layout));
                    }
                    // SAFETY: the size is not zero.
                    block(unsafe { self.alloc_zeroed(layout) }, layout).ok_or(AllocError)
                }
                #[inline]
                unsafe fn deallocate(&self, place: NonNull<u8>, layout: Layout) {
                    if layout.size() != 0 {
                        // SAFETY: the caller's block, of this layout.
                        unsafe { self.dealloc(place.as_ptr(), layout) }
                    }
                }
                unsafe fn grow(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's block, of the old layout; both sizes are not zero where
                    // it is reallocated, and the old block is no longer than the new one.
                    unsafe {
                        if old.align() == new.align() && old.size() != 0 {
                            let moved = self.realloc(place.as_ptr(), old, new.size());
                            return block(moved, new).ok_or(AllocError);
                        }
                        let moved = self.allocate(new)?;
                        moved.cast::<u8>().copy_from_nonoverlapping(place, old.size());
                        self.deallocate(place, old);
                        Ok(moved)
                    }
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
                    // SAFETY: the caller's block, of the old layout, which is no shorter than the new
                    // one; neither size is zero where it is reallocated.
                    unsafe {
                        if old.align() == new.align() && new.size() != 0 {
                            let moved = self.realloc(place.as_ptr(), old, new.size());
                            return block(moved, new).ok_or(AllocError);
                        }
                        let moved = self.allocate(new)?;
                        moved.cast::<u8>().copy_from_nonoverlapping(place, new.size());
                        self.deallocate(place, old);
                        Ok(moved)
                    }
                }
            }
        }
    };
}

#[cfg(feature = "allocator-api2-02")]
the_heap_allocates!(allocator_api2_02);
#[cfg(feature = "allocator-api2-04")]
the_heap_allocates!(allocator_api2_04);
