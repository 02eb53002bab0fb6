//! What is pushed, and what is popped.
#![allow(unsafe_code)] // turns fresh bytes into values

use core::alloc::Layout;
use core::mem::{MaybeUninit, align_of, size_of};
use core::ptr::NonNull;
use core::{fmt, slice, str};

use super::scratch::NEVER;
use super::{Arena, ArenaString, ArenaVec, Owned};
use crate::base::{Error, Result, align_up};

/// The layout of `len` values; what overflows is an error.
pub(super) fn array_layout<T>(len: usize) -> Result<Layout> {
    Layout::array::<T>(len).map_err(|_| Error::OutOfMemory { requested: usize::MAX, available: 0 })
}

/// Pushes. Each has a `try_` form that gives an error where the plain one panics:
/// [`Error::OutOfMemory`] where the arena cannot grow (its capacity is used up, or the system has
/// no memory), [`Error::ScopeOpen`] while a scope of this arena is open.
#[allow(clippy::mut_from_ref)] // every push gives out bytes that nobody else has
impl Arena<'_> {
    /// Pushes a value.
    ///
    /// ```
    /// let arena = hshm::arena::Arena::new();
    /// let (a, b) = (arena.push_value(1u32), arena.push_value(2u32));
    /// core::mem::swap(a, b);
    /// assert_eq!((*a, *b), (2, 1));
    /// ```
    ///
    /// # Panics
    /// Where [`try_push_value`](Self::try_push_value) fails.
    #[inline(always)]
    pub fn push_value<T>(&self, value: T) -> &mut T {
        let place = match self.bump(size_of::<T>(), align_of::<T>()) {
            Some(place) => place,
            // What fits into registers goes with the call, so that none has to be kept for it.
            None if size_of::<T>() <= 16 => return self.push_value_slow(value),
            None => self.push_layout_slow(Layout::new::<T>()),
        };
        let place = place.cast::<T>().as_ptr();
        // SAFETY: fresh bytes of the size and alignment of `T`, which nobody else has.
        unsafe {
            place.write(value);
            &mut *place
        }
    }

    #[cold]
    #[inline(never)]
    fn push_value_slow<T>(&self, value: T) -> &mut T {
        match self.try_push_value(value) {
            Ok(value) => value,
            Err(error) => self.fail(error),
        }
    }

    /// Pushes a value, or says why not.
    ///
    /// # Errors
    /// See the head of this list; the value is dropped.
    #[inline]
    pub fn try_push_value<T>(&self, value: T) -> Result<&mut T> {
        let place = self.take(size_of::<T>(), align_of::<T>())?.cast::<T>().as_ptr();
        // SAFETY: fresh bytes of the size and alignment of `T`, which nobody else has.
        Ok(unsafe {
            place.write(value);
            &mut *place
        })
    }

    /// Pushes what `make` makes; large values are made in place. `make` may itself push.
    ///
    /// # Panics
    /// Where there is no room.
    #[inline]
    pub fn push_with<T>(&self, make: impl FnOnce() -> T) -> &mut T {
        let place = self.push_layout(Layout::new::<T>()).cast::<T>().as_ptr();
        // SAFETY: as above.
        unsafe {
            place.write(make());
            &mut *place
        }
    }

    /// Pushes a value behind a handle that drops it.
    ///
    /// # Panics
    /// Where [`try_push_owned`](Self::try_push_owned) fails.
    #[inline]
    pub fn push_owned<T>(&self, value: T) -> Owned<'_, T> {
        Owned::new(self.push_value(value))
    }

    /// Pushes a value behind a handle that drops it, or says why not.
    #[inline]
    pub fn try_push_owned<T>(&self, value: T) -> Result<Owned<'_, T>> {
        self.try_push_value(value).map(Owned::new)
    }

    /// Pushes a copy of a slice.
    ///
    /// # Panics
    /// Where [`try_push_slice`](Self::try_push_slice) fails.
    #[inline]
    pub fn push_slice<T: Copy>(&self, values: &[T]) -> &mut [T] {
        self.or_fail(self.try_push_slice(values))
    }

    /// Pushes a copy of a slice, or says why not.
    #[inline]
    pub fn try_push_slice<T: Copy>(&self, values: &[T]) -> Result<&mut [T]> {
        let place = self.take(size_of_val(values), align_of::<T>())?.cast::<T>().as_ptr();
        // SAFETY: fresh bytes for as many values, which nobody else has, so they overlap nothing.
        Ok(unsafe {
            place.copy_from_nonoverlapping(values.as_ptr(), values.len());
            slice::from_raw_parts_mut(place, values.len())
        })
    }

    /// Pushes clones of a slice's values.
    ///
    /// # Panics
    /// Where there is no room.
    pub fn push_slice_clone<T: Clone>(&self, values: &[T]) -> &mut [T] {
        self.push_iter(values.iter().cloned())
    }

    /// Pushes a copy of a text.
    ///
    /// # Panics
    /// Where [`try_push_str`](Self::try_push_str) fails.
    #[inline]
    pub fn push_str(&self, text: &str) -> &mut str {
        self.or_fail(self.try_push_str(text))
    }

    /// Pushes a copy of a text, or says why not.
    #[inline]
    pub fn try_push_str(&self, text: &str) -> Result<&mut str> {
        let bytes = self.try_push_slice(text.as_bytes())?;
        // SAFETY: a copy of UTF-8.
        Ok(unsafe { str::from_utf8_unchecked_mut(bytes) })
    }

    /// Pushes all that an iterator gives, one after another. The iterator may push as well; what it
    /// pushes in between may cost a copy.
    ///
    /// ```
    /// let arena = hshm::arena::Arena::new();
    /// assert_eq!(arena.push_iter((1..5).map(|n| n * n)), [1, 4, 9, 16]);
    /// ```
    ///
    /// # Panics
    /// Where [`try_push_iter`](Self::try_push_iter) fails.
    pub fn push_iter<I: IntoIterator>(&self, values: I) -> &mut [I::Item] {
        self.or_fail(self.try_push_iter(values))
    }

    /// Pushes all that an iterator gives, or says why not; then what it gave so far is dropped.
    pub fn try_push_iter<I: IntoIterator>(&self, values: I) -> Result<&mut [I::Item]> {
        let values = values.into_iter();
        let mut all = ArenaVec::new_in(self);
        all.try_reserve(values.size_hint().0)?;
        for value in values {
            all.try_push(value)?;
        }
        Ok(all.into_slice())
    }

    /// Pushes a formatted text.
    ///
    /// ```
    /// let arena = hshm::arena::Arena::new();
    /// assert_eq!(arena.format(format_args!("{}-{:02}", 7, 3)), "7-03");
    /// ```
    ///
    /// # Panics
    /// Where [`try_format`](Self::try_format) fails.
    pub fn format(&self, text: fmt::Arguments<'_>) -> &mut str {
        self.or_fail(self.try_format(text))
    }

    /// Pushes a formatted text, or says why not. A `Display` that fails for reasons of its own is
    /// [`Error::Unsupported`].
    pub fn try_format(&self, text: fmt::Arguments<'_>) -> Result<&mut str> {
        let mut all = ArenaString::new_in(self);
        let written = fmt::write(&mut all, text);
        // A `Display` may keep the error of its own write to itself.
        match (all.take_error(), written) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(all.into_str()),
            (None, Err(fmt::Error)) => Err(Error::Unsupported),
        }
    }

    /// Pushes `len` zero bytes, aligned as [`set_auto_align`](Self::set_auto_align) says. Memory
    /// that was never used is not cleared again.
    ///
    /// # Panics
    /// Where [`try_push`](Self::try_push) fails.
    #[inline]
    pub fn push(&self, len: usize) -> &mut [u8] {
        self.or_fail(self.try_push(len))
    }

    /// Pushes `len` zero bytes, or says why not.
    #[inline]
    pub fn try_push(&self, len: usize) -> Result<&mut [u8]> {
        let place = self.try_push_layout_zeroed(self.bytes(len)?)?;
        // SAFETY: fresh bytes that nobody else has, all zero.
        Ok(unsafe { slice::from_raw_parts_mut(place.as_ptr(), len) })
    }

    /// Pushes `len` bytes that may hold anything.
    ///
    /// # Panics
    /// Where [`try_push_no_zero`](Self::try_push_no_zero) fails.
    #[inline]
    pub fn push_no_zero(&self, len: usize) -> &mut [MaybeUninit<u8>] {
        self.or_fail(self.try_push_no_zero(len))
    }

    /// Pushes `len` bytes that may hold anything, or says why not.
    #[inline]
    pub fn try_push_no_zero(&self, len: usize) -> Result<&mut [MaybeUninit<u8>]> {
        let place = self.try_push_layout(self.bytes(len)?)?;
        // SAFETY: fresh bytes that nobody else has.
        Ok(unsafe { slice::from_raw_parts_mut(place.cast().as_ptr(), len) })
    }

    fn bytes(&self, len: usize) -> Result<Layout> {
        Layout::from_size_align(len, self.auto_align())
            .map_err(|_| Error::OutOfMemory { requested: usize::MAX, available: 0 })
    }

    /// Skips bytes until the top is a multiple of `align`, a power of two; may grow the arena.
    ///
    /// # Errors
    /// [`Error::BadAlignment`]; otherwise see the head of this list.
    pub fn push_aligner(&self, align: usize) -> Result<()> {
        if !align.is_power_of_two() {
            return Err(Error::BadAlignment { align });
        }
        self.take(0, align).map(drop)
    }

    /// Alignment in bytes of untyped pushes.
    #[inline]
    pub fn auto_align(&self) -> usize {
        self.auto_align_cell().get()
    }

    /// Sets the alignment of untyped pushes, here and in every scope of this arena. (A
    /// [scratch](super::scratch()) keeps it for itself, until its end.)
    ///
    /// # Errors
    /// [`Error::BadAlignment`] for what is not a power of two.
    pub fn set_auto_align(&self, align: usize) -> Result<()> {
        if !align.is_power_of_two() {
            return Err(Error::BadAlignment { align });
        }
        self.auto_align_cell().set(align);
        if let Some(calm) = self.body().calm.get() {
            // SAFETY: lies in the slot of this arena, which outlives it.
            unsafe { calm.as_ref() }.set(NEVER);
        }
        Ok(())
    }

    /// Pushes bytes for a layout, which may hold anything.
    ///
    /// # Panics
    /// Where [`try_push_layout`](Self::try_push_layout) fails.
    #[inline(always)]
    pub fn push_layout(&self, layout: Layout) -> NonNull<u8> {
        match self.bump_layout(layout) {
            Some(place) => place,
            None => self.push_layout_slow(layout),
        }
    }

    #[cold]
    #[inline(never)]
    fn push_layout_slow(&self, layout: Layout) -> NonNull<u8> {
        self.or_fail(self.take_slow(layout.size(), layout.align()))
    }

    /// Pushes bytes for a layout, which may hold anything, or says why not.
    #[inline(always)]
    pub fn try_push_layout(&self, layout: Layout) -> Result<NonNull<u8>> {
        match self.bump_layout(layout) {
            Some(place) => Ok(place),
            None => self.take_slow(layout.size(), layout.align()),
        }
    }

    /// Pushes zero bytes for a layout, or says why not.
    #[inline]
    pub fn try_push_layout_zeroed(&self, layout: Layout) -> Result<NonNull<u8>> {
        let place = self.try_push_layout(layout)?;
        let used = self.body().current().dirty.get().saturating_sub(place.addr().get());
        if used != 0 {
            // SAFETY: the bytes were pushed just now and nobody has them yet.
            unsafe { place.write_bytes(0, used.min(layout.size())) };
        }
        Ok(place)
    }

    /// Makes the last push `new` bytes long, at least `old`, where it lies. False, and nothing has
    /// changed, where it is not the last push of this arena, cannot grow there, or does not lie at a
    /// multiple of `align`, a power of two. Bytes that are gained may hold anything.
    ///
    /// # Safety
    /// `place` and `old` are start and length of one push of this arena, not yet taken back;
    /// `old <= new <= isize::MAX`.
    #[inline(always)]
    pub unsafe fn grow_last(
        &self,
        place: NonNull<u8>,
        old: usize,
        new: usize,
        align: usize,
    ) -> bool {
        let top = self.top();
        let misplaced = place.addr().get() & (align.wrapping_sub(1));
        if (place.addr().get().wrapping_add(old) ^ top.addr()) | misplaced != 0 {
            return false;
        }
        match self.bump(new.wrapping_sub(old), 1) {
            Some(_) => true,
            None => self.grow_last_slow(new - old),
        }
    }

    #[cold]
    #[inline(never)]
    fn grow_last_slow(&self, more: usize) -> bool {
        let room = !self.is_closed() && self.body().current().end - self.top().addr() >= more;
        room && self.take(more, 1).is_ok()
    }

    /// Makes the last push `new` bytes long, at most `old`. False, and nothing has changed, where it
    /// is not the last push of this arena.
    ///
    /// # Safety
    /// `place` and `old` are start and length of one push of this arena, not yet taken back;
    /// `new <= old`, and nobody uses what is cut off.
    #[inline]
    pub unsafe fn shrink_last(&self, place: NonNull<u8>, old: usize, new: usize) -> bool {
        let top = self.top();
        let last = place.addr().get().wrapping_add(old) == top.addr() && !self.is_closed();
        if last {
            self.rewind(top.with_addr(place.addr().get() + new));
        }
        last
    }

    #[inline]
    pub(super) fn or_fail<T>(&self, result: Result<T>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => self.fail(error),
        }
    }

    /// The position: bytes from the start of the arena to its top, what alignment and the ends of
    /// chained blocks skipped included. While a scope is open, where it began.
    pub fn pos(&self) -> usize {
        self.position_of(self.top().addr())
    }

    /// Bytes that the arena has from the system or the global allocator and may use without asking
    /// for more.
    pub fn committed(&self) -> usize {
        let spare = self.body().spare.get();
        // SAFETY: the spare block is live.
        let spare = spare.map(|block| unsafe { block.as_ref() });
        let blocks = self.body().blocks().chain(spare);
        blocks.map(|block| block.committed.get() - block.data.addr()).sum()
    }

    /// Bytes that could be pushed into the current block, committed or not. (While a scope is open
    /// that has gone on to another block: none.)
    pub fn available(&self) -> usize {
        let (block, top) = (self.body().current(), self.top().addr());
        if block.holds(top) { block.end - top } else { 0 }
    }

    /// Bytes of the arena's pages.
    pub fn page_size(&self) -> usize {
        self.body().options.page_size
    }

    /// The name that the builder gave it.
    pub fn name(&self) -> &str {
        self.body().options.name()
    }
}

/// Pops. They need the arena for themselves: whatever they take back is no longer borrowed, and no
/// scope is open.
impl Arena<'_> {
    /// Takes back everything pushed since [`pos`](Self::pos) was `position`. (A position that the end
    /// of a chained block skipped counts as the end of what that block has committed.)
    ///
    /// ```
    /// # use hshm::arena::Arena;
    /// let mut arena = Arena::new();
    /// arena.push_value(1u64);
    /// let here = arena.pos();
    /// arena.push(1000);
    /// arena.pop_to(here)?;
    /// assert_eq!(arena.pos(), here);
    /// assert!(arena.pop_to(here + 1).is_err());
    /// # Ok::<(), hshm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] for a position past the top.
    #[doc(alias = "set_pos_back")]
    pub fn pop_to(&mut self, position: usize) -> Result<()> {
        let place = self.place_of(position)?;
        self.rewind(place);
        Ok(())
    }

    /// Takes back the last `bytes` bytes; all, where there are not so many.
    pub fn pop(&mut self, bytes: usize) {
        let position = self.pos().saturating_sub(bytes);
        let done = self.pop_to(position);
        debug_assert!(done.is_ok(), "a position below the top");
    }

    /// Takes back everything. Of a chain the longest block stays, so that an arena which is filled
    /// and cleared over and over comes to have one block.
    pub fn clear(&mut self) {
        self.rewind_all();
    }

    /// Gives all memory back: what dropping the arena does, by name.
    pub fn release(self) {}

    /// Gives back all pages (and the spare block) past the top.
    pub fn trim(&mut self) {
        let body = self.body();
        if let Some(spare) = body.spare.take() {
            // SAFETY: the spare block is in no chain, and nobody uses it.
            unsafe { super::block::Block::free(spare) };
        }
        let here = self.top();
        self.rewind(here);
        let page_size = self.page_size();
        // The first page has the block's header; it is never past the top.
        let Some(from) = align_up(here.addr(), page_size) else { return };
        let body = self.body();
        body.current().decommit_from(from, page_size, body.region.as_ref());
        self.reopen(here);
    }
}
