//! `OffsetPtr` and its atomic form.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;

use crate::sync::atomic::{AtomicU64, Ordering};

/// A typed distance in bytes from the start of a region; null is all ones (SPEC's `OffsetPtr`).
///
/// Arithmetic counts in elements of `T`. The type is a number: it is `Copy`, `Send` and `Sync`
/// whatever `T` is, and only turns into an address together with a region's base.
#[repr(transparent)]
pub struct OffsetPtr<T> {
    offset: u64,
    _type: PhantomData<fn() -> T>,
}

impl<T> OffsetPtr<T> {
    /// The null pointer: all ones, because offset 0 is the first byte of a region.
    pub const NULL: OffsetPtr<T> = OffsetPtr::new(u64::MAX);

    /// A pointer to the byte at `offset` from the region's base.
    #[inline]
    pub const fn new(offset: u64) -> Self {
        OffsetPtr { offset, _type: PhantomData }
    }
    /// The null pointer.
    #[inline]
    pub const fn null() -> Self {
        Self::NULL
    }
    /// Whether this is the null pointer.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.offset == u64::MAX
    }
    /// The distance from the region's base, in bytes.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.offset
    }
    /// The same place as another type.
    #[inline]
    pub const fn cast<U>(self) -> OffsetPtr<U> {
        OffsetPtr::new(self.offset)
    }
    /// Moves by `count` elements of `T`; wraps like pointer arithmetic, and null stays null.
    #[inline]
    #[must_use]
    pub const fn wrapping_offset(self, count: isize) -> Self {
        if self.is_null() {
            return self;
        }
        let bytes = (count as i64).wrapping_mul(size_of::<T>() as i64);
        OffsetPtr::new(self.offset.wrapping_add_signed(bytes))
    }
    /// Moves forward by `count` elements of `T`.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn add(self, count: usize) -> Self {
        self.wrapping_offset(count as isize)
    }
    /// Moves back by `count` elements of `T`.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn sub(self, count: usize) -> Self {
        self.wrapping_offset((count as isize).wrapping_neg())
    }
}

impl<T> Clone for OffsetPtr<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for OffsetPtr<T> {}
impl<T> Default for OffsetPtr<T> {
    fn default() -> Self {
        Self::NULL
    }
}
impl<T> PartialEq for OffsetPtr<T> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.offset == other.offset
    }
}
impl<T> Eq for OffsetPtr<T> {}
impl<T> PartialOrd for OffsetPtr<T> {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for OffsetPtr<T> {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.offset.cmp(&other.offset)
    }
}
impl<T> Hash for OffsetPtr<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.offset.hash(state);
    }
}
impl<T> fmt::Debug for OffsetPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_null() {
            f.write_str("OffsetPtr(null)")
        } else {
            write!(f, "OffsetPtr({:#x})", self.offset)
        }
    }
}

#[cfg(feature = "serde")]
impl<T> serde::Serialize for OffsetPtr<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.offset)
    }
}
#[cfg(feature = "serde")]
impl<'de, T> serde::Deserialize<'de> for OffsetPtr<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <u64 as serde::Deserialize>::deserialize(deserializer).map(OffsetPtr::new)
    }
}

/// An [`OffsetPtr`] that processes and threads may change at the same time.
#[repr(transparent)]
pub struct AtomicOffsetPtr<T> {
    offset: AtomicU64,
    _type: PhantomData<fn() -> T>,
}

impl<T> AtomicOffsetPtr<T> {
    /// Starts at `value`.
    #[inline]
    pub const fn new(value: OffsetPtr<T>) -> Self {
        AtomicOffsetPtr { offset: AtomicU64::new(value.offset), _type: PhantomData }
    }
    /// Starts at null.
    #[inline]
    pub const fn null() -> Self {
        Self::new(OffsetPtr::NULL)
    }
    /// Reads the pointer.
    #[inline]
    pub fn load(&self, order: Ordering) -> OffsetPtr<T> {
        OffsetPtr::new(self.offset.load(order))
    }
    /// Replaces the pointer.
    #[inline]
    pub fn store(&self, value: OffsetPtr<T>, order: Ordering) {
        self.offset.store(value.offset, order);
    }
    /// Replaces the pointer and returns the old one.
    #[inline]
    pub fn swap(&self, value: OffsetPtr<T>, order: Ordering) -> OffsetPtr<T> {
        OffsetPtr::new(self.offset.swap(value.offset, order))
    }
    /// Replaces the pointer if it is `current`; otherwise returns what it is.
    #[inline]
    pub fn compare_exchange(
        &self,
        current: OffsetPtr<T>,
        new: OffsetPtr<T>,
        success: Ordering,
        failure: Ordering,
    ) -> Result<OffsetPtr<T>, OffsetPtr<T>> {
        self.offset
            .compare_exchange(current.offset, new.offset, success, failure)
            .map(OffsetPtr::new)
            .map_err(OffsetPtr::new)
    }
    /// Like [`compare_exchange`](Self::compare_exchange), but may fail for no reason; for loops.
    #[inline]
    pub fn compare_exchange_weak(
        &self,
        current: OffsetPtr<T>,
        new: OffsetPtr<T>,
        success: Ordering,
        failure: Ordering,
    ) -> Result<OffsetPtr<T>, OffsetPtr<T>> {
        self.offset
            .compare_exchange_weak(current.offset, new.offset, success, failure)
            .map(OffsetPtr::new)
            .map_err(OffsetPtr::new)
    }
}

impl<T> Default for AtomicOffsetPtr<T> {
    fn default() -> Self {
        Self::null()
    }
}

impl<T> fmt::Debug for AtomicOffsetPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load(Ordering::Relaxed).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_counts_elements_and_null_is_sticky() {
        let p = OffsetPtr::<u32>::new(64);
        assert_eq!(p.add(3).offset(), 76);
        assert_eq!(p.sub(16).offset(), 0);
        assert_eq!(p.wrapping_offset(-1).offset(), 60);
        assert!(OffsetPtr::<u32>::NULL.add(1).is_null());
        assert!(!OffsetPtr::<u32>::new(0).is_null());
        assert_eq!(p.cast::<u8>().add(1).offset(), 65);
    }

    #[test]
    fn atomic_form_has_the_same_bytes() {
        assert_eq!(size_of::<OffsetPtr<String>>(), 8);
        assert_eq!(size_of::<AtomicOffsetPtr<String>>(), 8);
        let a = AtomicOffsetPtr::<u8>::null();
        assert!(a.load(Ordering::Relaxed).is_null());
        let one = OffsetPtr::new(1);
        assert_eq!(
            a.compare_exchange(OffsetPtr::NULL, one, Ordering::AcqRel, Ordering::Acquire),
            Ok(OffsetPtr::NULL)
        );
        assert_eq!(
            a.compare_exchange(OffsetPtr::NULL, one, Ordering::AcqRel, Ordering::Acquire),
            Err(one)
        );
        assert_eq!(a.swap(OffsetPtr::new(2), Ordering::AcqRel), one);
    }
}
