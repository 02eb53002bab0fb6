//! A vector in an arena, or in addresses of its own.
#![allow(unsafe_code)] // keeps values in raw memory

use core::alloc::Layout;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, needs_drop, size_of};
use core::ops::{Bound, Deref, DerefMut, RangeBounds};
use core::ptr::{self, NonNull};
use core::{fmt, slice};

use super::block::out_of_memory;
use super::push::array_layout;
use super::{Arena, ArenaBuilder, Growth};
use crate::base::{Error, Result};

/// A growing array (`vlarray`).
///
/// Over an arena that others push into ([`new_in`](Self::new_in)), it grows in place while it is the
/// arena's last push, and moves otherwise. With an arena of its own it is always the last:
/// [`reserved`](Self::reserved) *never moves*, so that addresses of its elements stay valid while it
/// grows; [`chained`](Self::chained) moves once per reservation that it uses up.
///
/// Pushing is O(1), amortised where the vector moves: the capacity doubles, or, in place, takes all
/// that is committed.
///
/// ```
/// use hshm::arena::ArenaVec;
/// let mut squares = ArenaVec::reserved(1 << 30)?;
/// squares.push(0u64);
/// let first = squares.as_ptr();
/// squares.extend((1..100_000).map(|n| n * n));
/// assert_eq!((squares.as_ptr(), squares[300]), (first, 90_000));
/// # Ok::<(), hshm::Error>(())
/// ```
pub struct ArenaVec<'a, T> {
    start: NonNull<T>,
    len: usize,
    capacity: usize,
    home: Home<'a>,
    _values: PhantomData<T>,
}

/// The arena, and whether it is the vector's own, in a box. Neither it nor the vector is passed by
/// reference where a push needs more room: the loop that pushes can have the vector in registers.
struct Home<'a> {
    arena: NonNull<Arena<'a>>,
    own: bool,
    _borrowed: PhantomData<&'a Arena<'a>>,
}

impl<'a> Home<'a> {
    #[inline]
    fn arena(&self) -> &Arena<'a> {
        // SAFETY: borrowed for `'a`, or the vector's own.
        unsafe { self.arena.as_ref() }
    }
}

impl Drop for Home<'_> {
    #[inline]
    fn drop(&mut self) {
        #[cold]
        #[inline(never)]
        fn free(arena: NonNull<Arena<'_>>) {
            // SAFETY: the vector's own, made by `own`, and dropped once, with its home.
            drop(unsafe { Box::from_raw(arena.as_ptr()) });
        }
        if self.own {
            free(self.arena);
        }
    }
}

impl<'a, T> ArenaVec<'a, T> {
    /// An empty vector over an arena, from which nothing is taken yet.
    pub const fn new_in(arena: &'a Arena<'a>) -> Self {
        Self::at(Home { arena: NonNull::from_ref(arena), own: false, _borrowed: PhantomData })
    }

    const fn at(home: Home<'a>) -> Self {
        ArenaVec {
            start: NonNull::dangling(),
            len: 0,
            capacity: if size_of::<T>() == 0 { usize::MAX } else { 0 },
            home,
            _values: PhantomData,
        }
    }

    /// A vector over an arena with room for `capacity` values.
    ///
    /// # Panics
    /// Where there is no room; [`try_reserve`](Self::try_reserve) gives an error instead.
    pub fn with_capacity_in(capacity: usize, arena: &'a Arena<'a>) -> Self {
        let mut vec = Self::new_in(arena);
        vec.reserve(capacity);
        vec
    }

    /// A vector with `bytes` of addresses of its own, rounded up to whole pages; memory is committed
    /// as it grows. It never moves, and is full when the addresses are used up.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`].
    pub fn reserved(bytes: usize) -> Result<ArenaVec<'static, T>> {
        Self::own(&ArenaBuilder::new().growth(Growth::Reserved).capacity(bytes))
    }

    /// A vector with an arena of its own, made by these settings. Where that is
    /// [reserved](Growth::Reserved) it never moves.
    ///
    /// # Errors
    /// As [`ArenaBuilder::build`].
    pub fn own(settings: &ArenaBuilder) -> Result<ArenaVec<'static, T>> {
        let arena = settings.build()?;
        let layout = Layout::new::<Arena<'static>>();
        // SAFETY: an arena has a size.
        let place = NonNull::new(unsafe { std::alloc::alloc(layout) }.cast::<Arena<'static>>());
        let place = place.ok_or(out_of_memory(layout.size(), 0))?;
        // SAFETY: fresh memory for an arena.
        unsafe { place.write(arena) };
        Ok(ArenaVec::at(Home { arena: place, own: true, _borrowed: PhantomData }))
    }

    /// A vector with reservations of its own, of `bytes` of addresses each: when one is used up, the
    /// vector moves to a larger one.
    ///
    /// # Errors
    /// As [`reserved`](Self::reserved).
    pub fn chained(bytes: usize) -> Result<ArenaVec<'static, T>> {
        Self::own(&ArenaBuilder::new().growth(Growth::ReservedThenChained).capacity(bytes))
    }

    fn arena(&self) -> &Arena<'_> {
        self.home.arena()
    }

    /// How many values fit before the vector has to ask its arena for more.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Appends a value.
    ///
    /// # Panics
    /// Where there is no room.
    #[inline]
    pub fn push(&mut self, value: T) {
        // Read once: as far as the compiler knows, the value may be written over the length.
        let len = self.len;
        if len == self.capacity {
            (self.start, self.capacity) =
                Self::grown_or_fail(self.home.arena, self.home.own, self.start, len);
        }
        // SAFETY: `len < capacity`.
        unsafe { self.start.add(len).write(value) };
        self.len = len + 1;
    }

    /// Appends a value, or says why not; then it is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::ScopeOpen`].
    #[inline]
    pub fn try_push(&mut self, value: T) -> Result<()> {
        let len = self.len;
        if len == self.capacity {
            self.try_reserve(1)?;
        }
        // SAFETY: `len < capacity`.
        unsafe { self.start.add(len).write(value) };
        self.len = len + 1;
        Ok(())
    }

    /// The buffer of a full vector, with room for one more.
    #[cold]
    #[inline(never)]
    fn grown_or_fail(
        arena: NonNull<Arena<'a>>,
        own: bool,
        start: NonNull<T>,
        len: usize,
    ) -> (NonNull<T>, usize) {
        // SAFETY: a vector's arena, while the vector is there.
        let arena = unsafe { arena.as_ref() };
        arena.or_fail(Self::grown(arena, own, (start, len), len, 1))
    }

    /// Makes room for `more` values.
    ///
    /// # Panics
    /// Where there is none.
    pub fn reserve(&mut self, more: usize) {
        if let Err(error) = self.try_reserve(more) {
            self.arena().fail(error);
        }
    }

    /// Makes room for `more` values, or says why not; then nothing has changed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::ScopeOpen`].
    pub fn try_reserve(&mut self, more: usize) -> Result<()> {
        if more <= self.capacity - self.len {
            return Ok(());
        }
        let old = (self.start, self.capacity);
        (self.start, self.capacity) =
            Self::grown(self.home.arena(), self.home.own, old, self.len, more)?;
        Ok(())
    }

    /// The buffer `old` of a vector with `len` values, with room for `more`, and its capacity. The values
    /// are in the new buffer then.
    fn grown(
        arena: &Arena<'a>,
        own: bool,
        (start, old): (NonNull<T>, usize),
        len: usize,
        more: usize,
    ) -> Result<(NonNull<T>, usize)> {
        let too_large = Error::OutOfMemory { requested: usize::MAX, available: 0 };
        let needed = len.checked_add(more).ok_or(too_large)?;
        let least = array_layout::<T>(needed)?;
        let wanted = needed.max(old * 2).max(4);
        let bytes = old * size_of::<T>();
        if bytes != 0 {
            // In place: all that is committed, if the arena is our own; else as much as the vector
            // would get elsewhere, or what the block has.
            let capacity = if own {
                (bytes + arena.room()) / size_of::<T>()
            } else {
                wanted.min((bytes + arena.available()) / size_of::<T>())
            };
            let capacity = capacity.max(needed);
            let layout = array_layout::<T>(capacity)?;
            // SAFETY: the buffer is one push of this arena, and gets no shorter.
            if unsafe { arena.grow_last(start.cast(), bytes, layout.size(), layout.align()) } {
                return Ok((start, capacity));
            }
        }
        let (capacity, new) = match array_layout::<T>(wanted).map(|l| arena.try_push_layout(l)) {
            Ok(Ok(place)) => (wanted, place),
            _ => (needed, arena.try_push_layout(least)?),
        };
        let new = new.cast::<T>();
        // SAFETY: the values move to a fresh buffer, which does not overlap the old one.
        unsafe { new.copy_from_nonoverlapping(start, len) };
        if own {
            // SAFETY: the blocks before the new buffer's held the old one only.
            unsafe { arena.drop_older_blocks() };
        }
        Ok((new, capacity))
    }

    /// Gives unused room back, where the vector is its arena's last push.
    pub fn shrink_to_fit(&mut self) {
        if size_of::<T>() == 0 || self.capacity == 0 {
            return;
        }
        let (old, new) = (self.capacity * size_of::<T>(), self.len * size_of::<T>());
        // SAFETY: the buffer is one push of this arena, and past `len` nobody uses it.
        let done = unsafe { self.arena().shrink_last(self.start.cast(), old, new) };
        if done {
            self.capacity = self.len;
        }
    }

    /// Removes the last value.
    pub fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: the value was there and no longer counts.
        Some(unsafe { self.start.add(self.len).read() })
    }

    /// Drops all but the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        let Some(rest) = self.len.checked_sub(len) else { return };
        self.len = len;
        // SAFETY: the values no longer count, and are dropped once.
        unsafe {
            ptr::drop_in_place(ptr::slice_from_raw_parts_mut(self.start.as_ptr().add(len), rest));
        }
    }

    /// Drops all values; the capacity stays.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Puts a value at `index`; those from there on move up.
    ///
    /// # Panics
    /// For an index past the end, or where there is no room.
    pub fn insert(&mut self, index: usize, value: T) {
        assert!(index <= self.len, "index {index} past the {} values", self.len);
        self.reserve(1);
        // SAFETY: there is room for one more; the place is written before it counts.
        unsafe {
            let place = self.start.add(index);
            place.add(1).copy_from(place, self.len - index);
            place.write(value);
        }
        self.len += 1;
    }

    /// Takes the value at `index` out; those behind it move down.
    ///
    /// # Panics
    /// For an index past the last value.
    pub fn remove(&mut self, index: usize) -> T {
        assert!(index < self.len, "index {index} of {} values", self.len);
        self.len -= 1;
        // SAFETY: the value is read once; those behind it take its place.
        unsafe {
            let place = self.start.add(index);
            let value = place.read();
            place.copy_from(place.add(1), self.len - index);
            value
        }
    }

    /// Takes the value at `index` out; the last one takes its place.
    ///
    /// # Panics
    /// For an index past the last value.
    pub fn swap_remove(&mut self, index: usize) -> T {
        let last = self.len.wrapping_sub(1);
        self.swap(index, last);
        match self.pop() {
            Some(value) => value,
            None => unreachable!("`swap` checked the index"),
        }
    }

    /// Keeps only the values for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        let len = core::mem::take(&mut self.len);
        for index in 0..len {
            // SAFETY: `index < len`, and the value was not moved: only those before it were.
            let stays = keep(unsafe { self.start.add(index).as_mut() });
            // SAFETY: `self.len <= index`; the value is either moved down or dropped, once.
            unsafe {
                let place = self.start.add(index);
                if stays {
                    self.start.add(self.len).copy_from(place, 1);
                    self.len += 1;
                } else {
                    ptr::drop_in_place(place.as_ptr());
                }
            }
        }
    }

    /// Appends copies of a slice's values.
    ///
    /// # Panics
    /// Where there is no room.
    pub fn extend_from_slice(&mut self, values: &[T])
    where
        T: Copy,
    {
        self.reserve(values.len());
        // SAFETY: room was made, behind the values that count, which nobody else has.
        unsafe {
            let place = self.start.add(self.len).as_ptr();
            place.copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
        self.len += values.len();
    }

    /// Takes a range of values out, in order. Those that were not asked for when the iterator goes
    /// are dropped; those behind the range move down then.
    ///
    /// # Panics
    /// For a range outside the vector.
    pub fn drain(&mut self, range: impl RangeBounds<usize>) -> Drain<'_, 'a, T> {
        let after = |index: usize| match index.checked_add(1) {
            Some(next) => next,
            None => panic!("a range past all numbers"),
        };
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => after(before),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => after(last),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len,
        };
        assert!(start <= end && end <= self.len, "{start}..{end} of {} values", self.len);
        let len = core::mem::replace(&mut self.len, start);
        Drain { vec: self, next: start, end, behind: end, len }
    }
}

impl<'a, T> ArenaVec<'a, T> {
    /// The values as a slice of the arena, which lives as long as that. (A vector with an arena of
    /// its own leaks that: it lives for good.)
    pub fn into_slice(mut self) -> &'a mut [T] {
        if !self.home.own {
            self.shrink_to_fit();
        }
        let this = ManuallyDrop::new(self);
        // SAFETY: the values live in the arena, which is borrowed for `'a` or never dropped, and
        // the vector is forgotten.
        unsafe { slice::from_raw_parts_mut(this.start.as_ptr(), this.len) }
    }
}

impl<T> Drop for ArenaVec<'_, T> {
    #[inline]
    fn drop(&mut self) {
        #[inline(never)]
        fn give_back(arena: NonNull<Arena<'_>>, start: NonNull<u8>, bytes: usize) {
            // SAFETY: a vector's arena, while the vector is there. The buffer is one push of it, and
            // nobody uses it any more.
            unsafe { arena.as_ref().shrink_last(start, bytes, 0) };
        }
        if needs_drop::<T>() {
            self.truncate(0);
        }
        let bytes = self.capacity.wrapping_mul(size_of::<T>());
        if !self.home.own && bytes != 0 {
            give_back(self.home.arena, self.start.cast(), bytes);
        }
    }
}

impl<T> Deref for ArenaVec<'_, T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` values are there.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}
impl<T> DerefMut for ArenaVec<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the vector is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
impl<T> Extend<T> for ArenaVec<'_, T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        let values = values.into_iter();
        self.reserve(values.size_hint().0);
        values.for_each(|value| self.push(value));
    }
}
impl<'v, T> IntoIterator for &'v ArenaVec<'_, T> {
    type Item = &'v T;
    type IntoIter = slice::Iter<'v, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
impl<'v, T> IntoIterator for &'v mut ArenaVec<'_, T> {
    type Item = &'v mut T;
    type IntoIter = slice::IterMut<'v, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
impl<T: fmt::Debug> fmt::Debug for ArenaVec<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
impl<T: PartialEq> PartialEq for ArenaVec<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
impl<T: Eq> Eq for ArenaVec<'_, T> {}

/// The values of a range, taken out of an [`ArenaVec`]: see [`ArenaVec::drain`].
#[derive(Debug)]
pub struct Drain<'v, 'a, T> {
    /// Its length is the start of the range meanwhile.
    vec: &'v mut ArenaVec<'a, T>,
    next: usize,
    end: usize,
    /// The first value behind the range, and where those end.
    behind: usize,
    len: usize,
}

impl<T> Iterator for Drain<'_, '_, T> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        self.next += 1;
        // SAFETY: in the range, and read once.
        Some(unsafe { self.vec.start.add(self.next - 1).read() })
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}
impl<T> ExactSizeIterator for Drain<'_, '_, T> {}
impl<T> DoubleEndedIterator for Drain<'_, '_, T> {
    fn next_back(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        self.end -= 1;
        // SAFETY: in the range, and read once.
        Some(unsafe { self.vec.start.add(self.end).read() })
    }
}

impl<T> Drop for Drain<'_, '_, T> {
    fn drop(&mut self) {
        let (next, left) = (self.next, self.end - self.next);
        // However dropping ends, these values are not dropped again.
        self.next = self.end;
        let rest = self.len - self.behind;
        let start = self.vec.start;
        // SAFETY: the values that are left were not read, and are dropped once; those behind the
        // range move down into its place, and count again.
        unsafe {
            ptr::drop_in_place(ptr::slice_from_raw_parts_mut(start.add(next).as_ptr(), left));
            start.add(self.vec.len).copy_from(start.add(self.behind), rest);
        }
        self.vec.len += rest;
    }
}

#[cfg(test)]
mod tests;
