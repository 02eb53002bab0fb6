//! Arenas as allocators, for collections that take one: the trait `Allocator` of the crate
//! `allocator-api2`, version 0.2, which hashbrown and others know (feature `allocator-api2-02`), and
//! version 0.4 (feature `allocator-api2-04`).
//!
//! What such a collection frees goes back to the arena only if it was the last push; the rest waits
//! for the end of the arena or the scope. Growing is in place under the same condition. Over
//! [`BestFit`] and [`Tiers`] everything comes back that is freed.
#![allow(unsafe_code)] // implements an unsafe trait

use core::alloc::Layout;
use core::ptr::NonNull;

use super::{Arena, BestFit, SyncArena, Tiers};
use crate::alloc::zero_gained;
use crate::base::Result;

fn block(place: NonNull<u8>, layout: Layout) -> NonNull<[u8]> {
    NonNull::slice_from_raw_parts(place, layout.size())
}

/// Gives a block of a best-fit heap another layout: where it lies if that can be, otherwise by moving. On an
/// error the block is unchanged.
///
/// # Safety
/// The block is the caller's, has the layout `old`, and is not used again if another is returned.
unsafe fn change_layout(
    heap: &BestFit<'_>,
    place: NonNull<u8>,
    old: Layout,
    new: Layout,
) -> Result<NonNull<u8>> {
    // A block that gets no longer stays where it is.
    let stays = new.size() <= old.size() && place.addr().get().is_multiple_of(new.align());
    if stays || new.align() <= old.align() {
        // SAFETY: the caller's block, which has the old layout.
        return unsafe { heap.reallocate(place, old, new.size()) };
    }
    let moved = heap.allocate(new)?;
    // SAFETY: two different blocks, both at least that long; the old one is the caller's to give up.
    unsafe {
        moved.copy_from_nonoverlapping(place, old.size().min(new.size()));
        heap.free(place)?;
    }
    Ok(moved)
}

macro_rules! arenas_allocate {
    ($version:ident) => {
        mod $version {
            use super::*;
            use ::$version::alloc::{AllocError, Allocator};

            // SAFETY: a block is one push, which stays until the arena is popped, cleared or dropped: all of
            // them need the arena for themselves, while every copy of the allocator borrows it. (Scopes end
            // before what they are borrowed from, and take back nothing of it.)
            unsafe impl Allocator for &Arena<'_> {
                #[inline]
                fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    self.try_push_layout(layout)
                        .map(|place| block(place, layout))
                        .map_err(|_| AllocError)
                }
                fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    let place = self.try_push_layout_zeroed(layout);
                    place.map(|place| block(place, layout)).map_err(|_| AllocError)
                }
                #[inline]
                unsafe fn deallocate(&self, place: NonNull<u8>, layout: Layout) {
                    // SAFETY: the caller's block, which was pushed with this length.
                    unsafe { self.shrink_last(place, layout.size(), 0) };
                }
                #[inline]
                unsafe fn grow(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's block, which was pushed with the old length, and gets no shorter.
                    if unsafe { self.grow_last(place, old.size(), new.size(), new.align()) } {
                        return Ok(block(place, new));
                    }
                    let moved = self.allocate(new)?;
                    // SAFETY: two different pushes, both at least as long as the old one.
                    unsafe { moved.cast::<u8>().copy_from_nonoverlapping(place, old.size()) };
                    Ok(moved)
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
                    if !place.addr().get().is_multiple_of(new.align()) {
                        let moved = self.allocate(new)?;
                        // SAFETY: two different pushes, both at least as long as the new one.
                        unsafe { moved.cast::<u8>().copy_from_nonoverlapping(place, new.size()) };
                        return Ok(moved);
                    }
                    // SAFETY: the caller's block, which was pushed with the old length, and gets no longer.
                    // Where it is not the last push it keeps its bytes, but a later call gives the new length,
                    // with which it does not end at the top either.
                    unsafe { self.shrink_last(place, old.size(), new.size()) };
                    Ok(block(place, new))
                }
            }

            // SAFETY: as above; the lock orders the pushes.
            unsafe impl Allocator for &SyncArena {
                fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    self.try_push_layout(layout)
                        .map(|place| block(place, layout))
                        .map_err(|_| AllocError)
                }
                unsafe fn deallocate(&self, _: NonNull<u8>, _: Layout) {}
            }

            // SAFETY: a block stays until it is freed, or until the arena goes, which the heap borrows;
            // it does not lie in the heap, which may be moved, and cannot be cloned.
            unsafe impl Allocator for BestFit<'_> {
                fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    let place = BestFit::allocate(self, layout);
                    place.map(|place| block(place, layout)).map_err(|_| AllocError)
                }
                unsafe fn deallocate(&self, place: NonNull<u8>, _: Layout) {
                    // SAFETY: the caller's block. A refusal leaves it where it is.
                    let _ = unsafe { self.free(place) };
                }
                unsafe fn grow(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's contract is the same.
                    let grown = unsafe { change_layout(self, place, old, new) };
                    grown.map(|place| block(place, new)).map_err(|_| AllocError)
                }
                unsafe fn shrink(
                    &self,
                    place: NonNull<u8>,
                    old: Layout,
                    new: Layout,
                ) -> Result<NonNull<[u8]>, AllocError> {
                    // SAFETY: the caller's contract is the same.
                    let shrunk = unsafe { change_layout(self, place, old, new) };
                    shrunk.map(|place| block(place, new)).map_err(|_| AllocError)
                }
            }

            // SAFETY: as above.
            unsafe impl Allocator for Tiers<'_> {
                fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                    let place = Tiers::allocate(self, layout);
                    place.map(|place| block(place, layout)).map_err(|_| AllocError)
                }
                unsafe fn deallocate(&self, place: NonNull<u8>, layout: Layout) {
                    // SAFETY: the caller's block, which has this layout: no other fits it, as blocks
                    // are given out as long as they were asked for.
                    let _ = unsafe { self.free(place, layout) };
                }
            }
        }
    };
}

#[cfg(feature = "allocator-api2-02")]
arenas_allocate!(allocator_api2_02);
#[cfg(feature = "allocator-api2-04")]
arenas_allocate!(allocator_api2_04);
