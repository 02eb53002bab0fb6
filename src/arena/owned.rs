//! A value in an arena that is dropped.
#![allow(unsafe_code)] // drops in place

use core::borrow::{Borrow, BorrowMut};
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr;

/// A value in an arena, and the duty to drop it: what a `Box` is to the heap. The bytes stay with
/// the arena.
///
/// ```
/// let arena = hshm::arena::Arena::new();
/// let names = arena.push_owned(vec!["a".to_owned()]);
/// assert_eq!(names.len(), 1);
/// // The vector's buffer is freed here.
/// ```
pub struct Owned<'a, T: ?Sized>(&'a mut T);

impl<'a, T: ?Sized> Owned<'a, T> {
    /// Takes a value of an arena over, which nobody else drops.
    pub(super) fn new(value: &'a mut T) -> Self {
        Owned(value)
    }

    /// Gives the duty to drop the value up.
    pub fn leak(self) -> &'a mut T {
        let mut this = ManuallyDrop::new(self);
        let value: *mut T = &mut *this.0;
        // SAFETY: the handle is forgotten, and with it the only other way to the value, which
        // lives for `'a`.
        unsafe { &mut *value }
    }
}

impl<T> Owned<'_, T> {
    /// Takes the value out.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the handle is forgotten, so the value is read and dropped once.
        unsafe { ptr::read(&*this.0) }
    }
}

impl<T: ?Sized> Drop for Owned<'_, T> {
    fn drop(&mut self) {
        // SAFETY: made of a value that nobody else drops, and dropped once.
        unsafe { ptr::drop_in_place(&mut *self.0) };
    }
}

impl<T: ?Sized> Deref for Owned<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0
    }
}
impl<T: ?Sized> DerefMut for Owned<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0
    }
}
impl<T: ?Sized> Borrow<T> for Owned<'_, T> {
    fn borrow(&self) -> &T {
        self.0
    }
}
impl<T: ?Sized> BorrowMut<T> for Owned<'_, T> {
    fn borrow_mut(&mut self) -> &mut T {
        self.0
    }
}
impl<T: ?Sized + fmt::Debug> fmt::Debug for Owned<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
impl<T: ?Sized + fmt::Display> fmt::Display for Owned<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
