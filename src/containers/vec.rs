//! `ShmVec`: a growing array.
//!
//! ```text
//! ShmVec: heap's id | data: offset of a block | length | capacity       32 bytes
//! ```
//!
//! Every look at the elements finds the heap, and checks that they are inside it: a loop that minds takes
//! the slice once. Without capacity there is no block. Elements of no size need none;
//! their capacity is all numbers.
#![allow(unsafe_code)] // moves elements in shared memory

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ops::{
    Deref, DerefMut, Index, IndexMut, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo,
    RangeToInclusive,
};
use core::ptr::{self, NonNull};
use core::slice;

use super::heap::{self, ShmHeap, too_large};
use crate::base::{AllocatorId, Result};
use crate::ptr::{OffsetPtr, ShmSafe};

/// A growing array in a heap: a `Vec` that can lie in shared memory and be used from any process.
///
/// What allocates can fail, and says so; the value that found no room is dropped, the others stay
/// as they are. Everything else is a slice's. As with a `Vec`, one owner changes it at a time: where
/// several processes do, they take turns, by a lock of theirs.
///
/// ```
/// use hshm::{ShmHeap, ShmString, ShmVec};
/// # use hshm::{AllocatorId, Region, ThreadLocalAllocator};
/// # let region = Region::anonymous(AllocatorId::new(903, 0), 16 << 20)?;
/// # let heap = ShmHeap::of(Box::leak(Box::new(ThreadLocalAllocator::shm_init(region)?)))?;
/// // The elements own what they hold, too: all of it is in the heap.
/// let mut lines = ShmVec::new_in(heap);
/// for line in ["to be", "or not", "to be"] {
///     lines.push(ShmString::from_in(line, heap)?)?;
/// }
/// lines.sort();
/// lines.dedup();
/// assert_eq!(lines.iter().map(|line| line.as_str()).collect::<Vec<_>>(), ["or not", "to be"]);
/// # Ok::<(), hshm::Error>(())
/// ```
#[repr(C)]
pub struct ShmVec<T: ShmSafe> {
    heap: AllocatorId,
    data: OffsetPtr<T>,
    len: u64,
    cap: u64,
    _owns: PhantomData<T>,
}

// SAFETY: an id, an offset and counts; the destructor looks the id up where it runs.
unsafe impl<T: ShmSafe> ShmSafe for ShmVec<T> {}

#[cold]
#[inline(never)]
#[track_caller]
fn no_element(index: usize, len: usize) -> ! {
    panic!("index out of bounds: the len is {len} but the index is {index}")
}

/// The block for `count` elements.
fn layout<T>(count: u64) -> Result<Layout> {
    let count = usize::try_from(count).map_err(|_| too_large())?;
    Layout::array::<T>(count).map_err(|_| too_large())
}

impl<T: ShmSafe> ShmVec<T> {
    const NO_SIZE: bool = size_of::<T>() == 0;
    /// Capacity of the first block: a cache line, or a few elements.
    const FIRST: u64 =
        if size_of::<T>() <= 16 { 64 / (size_of::<T>() as u64 | Self::NO_SIZE as u64) } else { 4 };

    /// An empty vector, which takes no memory yet.
    pub const fn new_in(heap: ShmHeap) -> Self {
        let cap = if Self::NO_SIZE { u64::MAX } else { 0 };
        ShmVec { heap: heap.id(), data: OffsetPtr::NULL, len: 0, cap, _owns: PhantomData }
    }

    /// An empty vector with room for `capacity` elements.
    pub fn with_capacity_in(capacity: usize, heap: ShmHeap) -> Result<Self> {
        let mut vec = Self::new_in(heap);
        vec.reserve_exact(capacity)?;
        Ok(vec)
    }

    /// A vector of what an iterator gives.
    #[inline(never)] // the registers of who calls it, maybe before a loop over the elements, are not for this
    pub fn from_iter_in(items: impl IntoIterator<Item = T>, heap: ShmHeap) -> Result<Self> {
        let mut vec = Self::new_in(heap);
        vec.extend(items)?;
        Ok(vec)
    }

    /// A copy of a slice.
    pub fn from_slice_in(items: &[T], heap: ShmHeap) -> Result<Self>
    where
        T: Copy,
    {
        let mut vec = Self::with_capacity_in(items.len(), heap)?;
        vec.extend_from_slice(items)?;
        Ok(vec)
    }

    /// The heap that the elements are in.
    pub fn heap(&self) -> Result<ShmHeap> {
        ShmHeap::by_id(self.heap)
    }
    /// How many elements there are.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }
    /// Whether there are none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// How many elements there is room for.
    #[inline]
    pub const fn capacity(&self) -> usize {
        self.cap as usize
    }

    /// The first of `count` places for elements, all of them inside the heap.
    #[inline]
    fn places(&self, count: u64) -> NonNull<T> {
        if Self::NO_SIZE || count == 0 {
            return NonNull::dangling();
        }
        heap::reach(self.heap, self.data.offset(), count)
    }

    /// The element at `index`; panics if there is none.
    #[inline(always)]
    #[track_caller]
    fn nth(&self, index: usize) -> NonNull<T> {
        if index >= self.len() {
            no_element(index, self.len());
        }
        match Self::NO_SIZE {
            true => NonNull::dangling(),
            false => heap::reach_element(self.heap, self.data.offset(), index as u64),
        }
    }

    /// The elements.
    #[inline]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: so many elements are there, inside the heap, and stay while `self` is borrowed;
        // their bytes fit the region, so that the slice is no longer than an object may be.
        unsafe { slice::from_raw_parts(self.places(self.len).as_ptr(), self.len()) }
    }
    /// The elements, to change them.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for this alone.
        unsafe { slice::from_raw_parts_mut(self.places(self.len).as_ptr(), self.len()) }
    }

    /// Makes room for `more` elements, at least, and so that many pushes need few of these.
    pub fn reserve(&mut self, more: usize) -> Result<()> {
        let needed = self.len.checked_add(more as u64).ok_or_else(too_large)?;
        if needed <= self.cap {
            return Ok(());
        }
        self.set_capacity(needed.max(self.cap.saturating_mul(2)).max(Self::FIRST))
    }

    /// Makes room for `more` elements, and not for more than that.
    pub fn reserve_exact(&mut self, more: usize) -> Result<()> {
        let needed = self.len.checked_add(more as u64).ok_or_else(too_large)?;
        if needed <= self.cap { Ok(()) } else { self.set_capacity(needed) }
    }

    /// Gives back what has room for no element. A failure leaves the capacity as it is.
    pub fn shrink_to_fit(&mut self) -> Result<()> {
        let spare = self.len < self.cap && !Self::NO_SIZE;
        if spare { self.set_capacity(self.len) } else { Ok(()) }
    }

    #[cold]
    fn set_capacity(&mut self, cap: u64) -> Result<()> {
        if Self::NO_SIZE {
            return Err(too_large());
        }
        let new = layout::<T>(cap)?;
        if cap == 0 {
            let old = core::mem::replace(&mut self.data, OffsetPtr::NULL);
            self.cap = 0;
            // SAFETY: the vector's own block, with nothing in it.
            unsafe { heap::free(self.heap, old.offset()) };
            return Ok(());
        }
        let block = if self.cap == 0 {
            heap::allocate(self.heap, new)?
        } else {
            // SAFETY: the vector's own block.
            unsafe { heap::reallocate(self.heap, self.data.offset(), new)? }
        };
        self.data = OffsetPtr::new(block);
        self.cap = cap;
        Ok(())
    }

    /// Appends a value.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<()> {
        if self.len >= self.cap {
            return self.push_grown(value);
        }
        self.put(value);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn push_grown(&mut self, value: T) -> Result<()> {
        self.reserve(1)?;
        self.put(value);
        Ok(())
    }

    /// Appends a value, for which there is room.
    #[inline(always)]
    fn put(&mut self, value: T) {
        let place = match Self::NO_SIZE {
            true => NonNull::dangling(),
            false => heap::reach_nth::<T>(self.heap, self.data.offset(), self.len),
        };
        // SAFETY: the place behind the last element, inside the capacity.
        unsafe { place.write(value) };
        self.len += 1;
    }

    /// Takes the last element.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        let place = self.places(self.len);
        self.len = last;
        // SAFETY: it was the last element, and counts no more.
        Some(unsafe { place.as_ptr().add(last as usize).read() })
    }

    /// Puts a value before the element at `index`, which moves up with all behind it.
    ///
    /// # Panics
    /// If `index` is more than the length.
    pub fn insert(&mut self, index: usize, value: T) -> Result<()> {
        assert!(index <= self.len(), "insertion at {index} into {} elements", self.len);
        self.reserve(1)?;
        // SAFETY: there is room for one more; what moves stays inside, and the place is then free.
        unsafe {
            let place = self.places(self.len + 1).as_ptr().add(index);
            ptr::copy(place, place.add(1), self.len() - index);
            place.write(value);
        }
        self.len += 1;
        Ok(())
    }

    /// Takes the element at `index`; all behind it move down.
    ///
    /// # Panics
    /// If there is none.
    pub fn remove(&mut self, index: usize) -> T {
        assert!(index < self.len(), "removal at {index} from {} elements", self.len);
        let places = self.places(self.len);
        self.len -= 1;
        // SAFETY: an element, which the others then move over; as many as were behind it.
        unsafe {
            let place = places.as_ptr().add(index);
            let value = place.read();
            ptr::copy(place.add(1), place, self.len() - index);
            value
        }
    }

    /// Takes the element at `index`; the last one comes into its place.
    ///
    /// # Panics
    /// If there is none.
    pub fn swap_remove(&mut self, index: usize) -> T {
        assert!(index < self.len(), "removal at {index} from {} elements", self.len);
        let last = self.len() - 1;
        self.swap(index, last);
        match self.pop() {
            Some(value) => value,
            None => unreachable!("it has an element at {index}"),
        }
    }

    /// Drops all elements from `len` on.
    pub fn truncate(&mut self, len: usize) {
        let Some(gone) = self.len().checked_sub(len).filter(|&gone| gone > 0) else { return };
        let places = self.places(self.len);
        // First, so that none is dropped twice should a destructor panic.
        self.len = len as u64;
        // SAFETY: elements that count no more.
        unsafe { ptr::slice_from_raw_parts_mut(places.as_ptr().add(len), gone).drop_in_place() };
    }

    /// Drops all elements; the capacity stays.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Drops all elements that do not satisfy `keep`, and keeps the order of the others.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.filter(|_, value| keep(value));
    }

    /// Drops elements that equal the one before them.
    pub fn dedup(&mut self)
    where
        T: PartialEq,
    {
        self.filter(|before, value| before != Some(&*value));
    }

    /// Drops what `keep` does not want; it sees the element kept last.
    fn filter(&mut self, mut keep: impl FnMut(Option<&T>, &mut T) -> bool) {
        let len = self.len();
        let places = self.places(self.len).as_ptr();
        // A panic in `keep` or in a destructor leaves a shorter vector, and leaks.
        self.len = 0;
        let mut kept = 0;
        for at in 0..len {
            // SAFETY: elements below `kept` are kept, those from `at` on not looked at yet; a kept
            // one moves down into a place that is free, or stays where it is.
            unsafe {
                let value = places.add(at);
                let before = if kept > 0 { Some(&*places.add(kept - 1)) } else { None };
                if keep(before, &mut *value) {
                    ptr::copy(value, places.add(kept), 1);
                    kept += 1;
                } else {
                    value.drop_in_place();
                }
            }
        }
        self.len = kept as u64;
    }

    /// Appends a copy of a slice.
    pub fn extend_from_slice(&mut self, items: &[T]) -> Result<()>
    where
        T: Copy,
    {
        self.reserve(items.len())?;
        let len = self.len + items.len() as u64;
        // SAFETY: the places behind the last element, inside the capacity; `items` is borrowed, so
        // it is no part of a block that is this vector's alone.
        unsafe {
            let end = self.places(len).as_ptr().add(self.len());
            ptr::copy_nonoverlapping(items.as_ptr(), end, items.len());
        }
        self.len = len;
        Ok(())
    }

    /// Appends what an iterator gives. On an error, what came before it is in.
    pub fn extend(&mut self, items: impl IntoIterator<Item = T>) -> Result<()> {
        let mut items = items.into_iter();
        while let Some(value) = items.next() {
            if self.len >= self.cap {
                self.reserve(items.size_hint().0.saturating_add(1))?;
            }
            self.push(value)?;
        }
        Ok(())
    }

    /// Moves the elements of `other` to the end of this one.
    pub fn append(&mut self, other: &mut Self) -> Result<()> {
        self.reserve(other.len())?;
        let len = self.len.saturating_add(other.len);
        // SAFETY: two vectors, so two blocks; the elements count in one of them at a time.
        unsafe {
            let end = self.places(len).as_ptr().add(self.len());
            ptr::copy_nonoverlapping(other.places(other.len).as_ptr(), end, other.len());
        }
        other.len = 0;
        self.len = len;
        Ok(())
    }
}

impl<T: ShmSafe> Drop for ShmVec<T> {
    fn drop(&mut self) {
        if Self::NO_SIZE {
            self.truncate(0);
        }
        if Self::NO_SIZE || self.cap == 0 {
            return;
        }
        // Where the heap is not known, nothing can be reached, and nothing freed.
        if heap::owned(self.heap)
            && let Ok(places) = heap::place::<T>(self.heap, self.data.offset(), self.len)
        {
            let elements = ptr::slice_from_raw_parts_mut(places.as_ptr(), self.len());
            // SAFETY: the vector's own elements and block, neither used again.
            unsafe {
                elements.drop_in_place();
                heap::free(self.heap, self.data.offset());
            }
        }
    }
}

impl<T: ShmSafe> Deref for ShmVec<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: ShmSafe> DerefMut for ShmVec<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

/// One element: found by itself, without making a slice of all.
impl<T: ShmSafe> Index<usize> for ShmVec<T> {
    type Output = T;
    #[inline]
    fn index(&self, index: usize) -> &T {
        // SAFETY: an element, inside the heap, which stays while `self` is borrowed.
        unsafe { self.nth(index).as_ref() }
    }
}

impl<T: ShmSafe> IndexMut<usize> for ShmVec<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        // SAFETY: as above, and `self` is borrowed for this alone.
        unsafe { self.nth(index).as_mut() }
    }
}

macro_rules! indexed_by_ranges {
    ($($range:ty)*) => { $(
        impl<T: ShmSafe> Index<$range> for ShmVec<T> {
            type Output = [T];
            #[inline]
            fn index(&self, range: $range) -> &[T] {
                &self.as_slice()[range]
            }
        }
        impl<T: ShmSafe> IndexMut<$range> for ShmVec<T> {
            #[inline]
            fn index_mut(&mut self, range: $range) -> &mut [T] {
                &mut self.as_mut_slice()[range]
            }
        }
    )* };
}
indexed_by_ranges!(
    Range<usize> RangeFrom<usize> RangeTo<usize> RangeFull RangeInclusive<usize> RangeToInclusive<usize>
);

/// The elements of a [`ShmVec`], by value. What is not taken is dropped with it.
#[derive(Debug)]
pub struct IntoIter<T: ShmSafe> {
    /// Holds the block. Its length is zero: the elements are counted here.
    vec: ShmVec<T>,
    next: u64,
    end: u64,
}

impl<T: ShmSafe> IntoIter<T> {
    fn rest(&self) -> *mut [T] {
        let places = self.vec.places(self.end).as_ptr();
        let count = (self.end - self.next) as usize;
        ptr::slice_from_raw_parts_mut(places.wrapping_add(self.next as usize), count)
    }
}

impl<T: ShmSafe> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        let first = self.rest().cast::<T>();
        self.next += 1;
        // SAFETY: an element that was not given out, and counts no more.
        Some(unsafe { first.read() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.end - self.next) as usize;
        (left, Some(left))
    }
}

impl<T: ShmSafe> DoubleEndedIterator for IntoIter<T> {
    fn next_back(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        let rest = self.rest();
        self.end -= 1;
        // SAFETY: as in `next`: the last of them.
        Some(unsafe { rest.cast::<T>().add(rest.len() - 1).read() })
    }
}

impl<T: ShmSafe> ExactSizeIterator for IntoIter<T> {}

impl<T: ShmSafe> Drop for IntoIter<T> {
    fn drop(&mut self) {
        let reached = || {
            let place = heap::place::<T>(self.vec.heap, self.vec.data.offset(), self.end);
            heap::owned(self.vec.heap) && place.is_ok()
        };
        if self.next != self.end && (ShmVec::<T>::NO_SIZE || reached()) {
            let rest = self.rest();
            self.next = self.end;
            // SAFETY: elements that were not given out. The block goes with `vec`.
            unsafe { rest.drop_in_place() };
        }
    }
}

impl<T: ShmSafe> IntoIterator for ShmVec<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(mut self) -> IntoIter<T> {
        let end = core::mem::take(&mut self.len);
        IntoIter { vec: self, next: 0, end }
    }
}

impl<'a, T: ShmSafe> IntoIterator for &'a ShmVec<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.as_slice().iter()
    }
}

impl<'a, T: ShmSafe> IntoIterator for &'a mut ShmVec<T> {
    type Item = &'a mut T;
    type IntoIter = slice::IterMut<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.as_mut_slice().iter_mut()
    }
}
