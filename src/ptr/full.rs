//! `FullPtr`: both halves at once.

use core::fmt;

use super::offset::OffsetPtr;
use super::shm::ShmPtr;

/// A process-local pointer and the [`ShmPtr`] of the same place.
///
/// The pointer is for use here, the shared half for telling others. Every operation keeps the two
/// halves at the same place. A `FullPtr` is found
/// - from an address alone: [`FullPtr::from_ptr`],
/// - from a shared pointer alone: [`FullPtr::from_shm`],
/// - from an allocator and an offset or a shared pointer: [`FullPtr::from_offset`],
///   [`FullPtr::from_allocator`] and their atomic forms.
pub struct FullPtr<T> {
    ptr: *mut T,
    shm: ShmPtr<T>,
}

// SAFETY is not at stake: a `FullPtr` is two numbers like `*mut T`, and like it is neither Send
// nor Sync; send the `ShmPtr` half.

impl<T> FullPtr<T> {
    /// The null pointer, null in both halves.
    pub const NULL: FullPtr<T> = FullPtr { ptr: core::ptr::null_mut(), shm: ShmPtr::NULL };

    /// Two halves that the caller knows to be the same place.
    ///
    /// Nothing is checked; wrong halves make wrong answers, and only the `unsafe` uses of the
    /// result can turn those into undefined behaviour.
    #[inline]
    pub const fn from_parts(ptr: *mut T, shm: ShmPtr<T>) -> Self {
        FullPtr { ptr, shm }
    }
    /// The null pointer.
    #[inline]
    pub const fn null() -> Self {
        Self::NULL
    }
    /// Whether the process-local half is null.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.ptr.is_null()
    }
    /// The process-local half.
    #[inline]
    pub const fn as_ptr(self) -> *mut T {
        self.ptr
    }
    /// The shared half.
    #[inline]
    pub const fn shm(self) -> ShmPtr<T> {
        self.shm
    }
    /// The offset of the shared half.
    #[inline]
    pub const fn offset(self) -> OffsetPtr<T> {
        self.shm.offset()
    }
    /// The same place as another type.
    #[inline]
    pub const fn cast<U>(self) -> FullPtr<U> {
        FullPtr { ptr: self.ptr.cast(), shm: self.shm.cast() }
    }
    /// Moves both halves by `count` elements of `T`; null stays null.
    #[inline]
    #[must_use]
    pub const fn wrapping_offset(self, count: isize) -> Self {
        if self.is_null() {
            return self;
        }
        FullPtr { ptr: self.ptr.wrapping_offset(count), shm: self.shm.wrapping_offset(count) }
    }
    /// Moves both halves forward by `count` elements of `T`.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn add(self, count: usize) -> Self {
        self.wrapping_offset(count as isize)
    }
    /// Moves both halves back by `count` elements of `T`.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn sub(self, count: usize) -> Self {
        self.wrapping_offset((count as isize).wrapping_neg())
    }
    /// A reference to the value, or `None` for null.
    ///
    /// # Safety
    /// As for [`pointer::as_ref`](https://doc.rust-lang.org/std/primitive.pointer.html#method.as_ref):
    /// the place holds a valid, aligned `T`, stays mapped for `'a`, and nobody, in any process,
    /// writes to it meanwhile (outside an `UnsafeCell`).
    #[inline]
    #[allow(unsafe_code)] // a reference that the caller vouches for
    pub const unsafe fn as_ref<'a>(self) -> Option<&'a T> {
        // SAFETY: the caller vouches for the pointee; null is handled by the call.
        unsafe { self.ptr.as_ref() }
    }
    /// An exclusive reference to the value, or `None` for null.
    ///
    /// # Safety
    /// As for [`FullPtr::as_ref`], and nobody, in any process, reads or writes the value through
    /// anything else during `'a`.
    #[inline]
    #[allow(unsafe_code)] // a reference that the caller vouches for
    pub const unsafe fn as_mut<'a>(self) -> Option<&'a mut T> {
        // SAFETY: the caller vouches for the pointee and for exclusivity.
        unsafe { self.ptr.as_mut() }
    }
}

impl<T> Clone for FullPtr<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for FullPtr<T> {}
impl<T> Default for FullPtr<T> {
    fn default() -> Self {
        Self::NULL
    }
}
impl<T> PartialEq for FullPtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.ptr == other.ptr && self.shm == other.shm
    }
}
impl<T> Eq for FullPtr<T> {}
impl<T> fmt::Debug for FullPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FullPtr").field("ptr", &self.ptr).field("shm", &self.shm).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::AllocatorId;

    #[test]
    fn both_halves_move_alike() {
        let mut values = [1u32, 2, 3, 4];
        let full = FullPtr::from_parts(
            values.as_mut_ptr(),
            ShmPtr::new(AllocatorId::new(1, 0), OffsetPtr::new(4096)),
        );
        let moved = full.add(3).sub(1);
        assert_eq!(moved.offset().offset(), 4096 + 8);
        assert_eq!(moved.as_ptr(), values.as_mut_ptr().wrapping_add(2));
        let bytes = moved.cast::<u8>().add(1);
        assert_eq!(bytes.offset().offset(), 4096 + 9);
        assert!(FullPtr::<u8>::NULL.add(4).is_null() && FullPtr::<u8>::NULL.add(4).shm().is_null());
    }
}
