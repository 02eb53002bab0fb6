//! `ShmPtr` and its atomic form.

use core::fmt;
use core::hash::{Hash, Hasher};

use super::offset::{AtomicOffsetPtr, OffsetPtr};
use crate::base::AllocatorId;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A pointer that any process can resolve: the allocator's id and an offset in its region
/// (HSHM's `Pointer`).
///
/// 16 bytes, `repr(C)`, `Copy`; made to be put into messages and into shared memory. With the
/// `serde` feature it serializes as the id and the offset, never as an address.
#[repr(C)]
pub struct ShmPtr<T> {
    id: AllocatorId,
    offset: OffsetPtr<T>,
}

impl<T> ShmPtr<T> {
    /// The null pointer: null id, null offset.
    pub const NULL: ShmPtr<T> = ShmPtr { id: AllocatorId::NULL, offset: OffsetPtr::NULL };

    /// The place `offset` in the region of allocator `id`.
    #[inline]
    pub const fn new(id: AllocatorId, offset: OffsetPtr<T>) -> Self {
        ShmPtr { id, offset }
    }
    /// The null pointer.
    #[inline]
    pub const fn null() -> Self {
        Self::NULL
    }
    /// Whether the offset is null, whatever the id says.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.offset.is_null()
    }
    /// The allocator the pointer belongs to.
    #[inline]
    pub const fn id(self) -> AllocatorId {
        self.id
    }
    /// The offset in that allocator's region.
    #[inline]
    pub const fn offset(self) -> OffsetPtr<T> {
        self.offset
    }
    /// The same place as another type.
    #[inline]
    pub const fn cast<U>(self) -> ShmPtr<U> {
        ShmPtr { id: self.id, offset: self.offset.cast() }
    }
    /// Moves by `count` elements of `T`; null stays null.
    #[inline]
    #[must_use]
    pub const fn wrapping_offset(self, count: isize) -> Self {
        ShmPtr { id: self.id, offset: self.offset.wrapping_offset(count) }
    }
    /// Moves forward by `count` elements of `T`.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn add(self, count: usize) -> Self {
        ShmPtr { id: self.id, offset: self.offset.add(count) }
    }
    /// Moves back by `count` elements of `T`.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn sub(self, count: usize) -> Self {
        ShmPtr { id: self.id, offset: self.offset.sub(count) }
    }
}

impl<T> Clone for ShmPtr<T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for ShmPtr<T> {}
impl<T> Default for ShmPtr<T> {
    fn default() -> Self {
        Self::NULL
    }
}
impl<T> PartialEq for ShmPtr<T> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.offset == other.offset
    }
}
impl<T> Eq for ShmPtr<T> {}
impl<T> Hash for ShmPtr<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
        self.offset.hash(state);
    }
}
impl<T> fmt::Debug for ShmPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_null() {
            f.write_str("ShmPtr(null)")
        } else {
            write!(f, "ShmPtr({} + {:#x})", self.id, self.offset.offset())
        }
    }
}

#[cfg(feature = "serde")]
impl<T> serde::Serialize for ShmPtr<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.id, self.offset).serialize(serializer)
    }
}
#[cfg(feature = "serde")]
impl<'de, T> serde::Deserialize<'de> for ShmPtr<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (id, offset) = serde::Deserialize::deserialize(deserializer)?;
        Ok(ShmPtr { id, offset })
    }
}

/// A [`ShmPtr`] in memory that several threads or processes read while one may write.
///
/// It is two words, and no atomic instruction of every machine covers two. What is kept instead:
/// a reader never mixes the halves of two *different allocators'* pointers. Stores write a null
/// offset, then the id, then the offset; loads take the offset, the id, and the offset again, and
/// go round until nothing moved. For one allocator's pointers (the usual case: the id never
/// changes) every operation is as atomic as [`AtomicOffsetPtr`], and [`compare_exchange`] works
/// on the offset alone.
///
/// Several writers that store pointers of *different* allocators into the same word at the same
/// time must take turns; readers need no lock.
///
/// [`compare_exchange`]: AtomicShmPtr::compare_exchange
#[repr(C)]
pub struct AtomicShmPtr<T> {
    id: AtomicU64,
    offset: AtomicOffsetPtr<T>,
}

impl<T> AtomicShmPtr<T> {
    /// Starts at `value`.
    #[inline]
    pub const fn new(value: ShmPtr<T>) -> Self {
        AtomicShmPtr {
            id: AtomicU64::new(value.id.to_bits()),
            offset: AtomicOffsetPtr::new(value.offset),
        }
    }
    /// Starts at null.
    #[inline]
    pub const fn null() -> Self {
        Self::new(ShmPtr::NULL)
    }
    /// Reads the pointer. Sees everything that was written before the pointer was stored.
    pub fn load(&self) -> ShmPtr<T> {
        loop {
            let before = self.offset.load(Ordering::Acquire);
            let id = AllocatorId::from_bits(self.id.load(Ordering::Acquire));
            if self.offset.load(Ordering::Acquire) == before {
                return if before.is_null() { ShmPtr::NULL } else { ShmPtr::new(id, before) };
            }
            core::hint::spin_loop();
        }
    }
    /// Replaces the pointer. Publishes everything that this thread wrote before.
    pub fn store(&self, value: ShmPtr<T>) {
        if self.id.load(Ordering::Relaxed) != value.id.to_bits() {
            self.offset.store(OffsetPtr::NULL, Ordering::Release);
            self.id.store(value.id.to_bits(), Ordering::Release);
        }
        self.offset.store(value.offset, Ordering::Release);
    }
    /// Replaces the pointer by another *of the same allocator* if it is `current`; otherwise
    /// returns what it is. Fails when `new` belongs to another allocator than the word holds.
    pub fn compare_exchange(
        &self,
        current: ShmPtr<T>,
        new: ShmPtr<T>,
    ) -> Result<ShmPtr<T>, ShmPtr<T>> {
        let id = AllocatorId::from_bits(self.id.load(Ordering::Acquire));
        if id != new.id || (current.id != id && !current.is_null()) {
            return Err(self.load());
        }
        match self.offset.compare_exchange(
            current.offset,
            new.offset,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Ok(current),
            Err(found) => Err(ShmPtr::new(id, found)),
        }
    }
}

impl<T> Default for AtomicShmPtr<T> {
    fn default() -> Self {
        Self::null()
    }
}

impl<T> fmt::Debug for AtomicShmPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sixteen_bytes_and_compares_by_both_halves() {
        assert_eq!(size_of::<ShmPtr<[u64; 9]>>(), 16);
        assert_eq!(size_of::<AtomicShmPtr<u8>>(), 16);
        let a = ShmPtr::<u64>::new(AllocatorId::new(1, 0), OffsetPtr::new(8));
        let b = ShmPtr::<u64>::new(AllocatorId::new(1, 1), OffsetPtr::new(8));
        assert_ne!(a, b);
        assert_eq!(a.add(2).offset().offset(), 24);
        assert!(ShmPtr::<u64>::NULL.is_null());
    }

    #[test]
    fn atomic_form_swaps_ids_and_exchanges_offsets() {
        let id = AllocatorId::new(7, 7);
        let cell = AtomicShmPtr::<u8>::null();
        assert!(cell.load().is_null());
        let one = ShmPtr::new(id, OffsetPtr::new(1));
        let two = ShmPtr::new(id, OffsetPtr::new(2));
        cell.store(one);
        assert_eq!(cell.load(), one);
        assert_eq!(cell.compare_exchange(one, two), Ok(one));
        assert_eq!(cell.compare_exchange(one, two), Err(two));
        let other = ShmPtr::new(AllocatorId::new(8, 8), OffsetPtr::new(3));
        assert_eq!(cell.compare_exchange(two, other), Err(two));
        cell.store(other);
        assert_eq!(cell.load(), other);
    }
}
