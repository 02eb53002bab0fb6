//! Pools: slots of one size, taken and given back in any order, over an arena.
//!
//! ```text
//!   page:   | slot | slot | slot | ... | slot | rest |       slots never straddle a page
//!                     |             ^ fresh .. page_end
//!   free -> slot -> slot -> slot -> null                     last in, first out
//! ```
//!
//! For lifetimes inside the arena's: nodes that come and go while the tree stays. A slot that is
//! given back holds the link to the next free one; nothing is kept for a slot that is in use.
#![allow(unsafe_code)] // a list through free slots

use core::alloc::Layout;
use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::{fmt, mem};

use super::block::is_ours;
use super::{Arena, poison};
use crate::base::{Error, Result, align_up};

/// Bytes of a cache line, for slots that must not share one.
pub const CACHE_LINE: usize = 64;

/// Slots of one layout over an arena, as bytes: what [`Pool`] is made of.
pub struct RawPool<'a> {
    arena: &'a Arena<'a>,
    free: Cell<*mut u8>,
    /// The first slot of the newest page that was never taken, and the address where the last one
    /// that fits ends.
    fresh: Cell<*mut u8>,
    page_end: Cell<usize>,
    slot: Layout,
    /// Bytes that are taken from the arena at a time, a multiple of its page size.
    page: usize,
    in_use: Cell<usize>,
    slots: Cell<usize>,
    /// Whose the slots are, as the arena says.
    maker: u32,
}

impl<'a> RawPool<'a> {
    /// A pool of slots for this layout, none taken from the arena yet. A slot is at least as long as
    /// a pointer. Slots up to the arena's page size never straddle a page; longer ones lie in runs of
    /// pages, as many as keep the waste at an eighth.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a layout beyond the address space.
    pub fn new(arena: &'a Arena<'a>, layout: Layout) -> Result<RawPool<'a>> {
        let maximum = isize::MAX as usize / 16;
        let too_large = Error::TooLarge { given: layout.size(), maximum };
        let align = layout.align().max(align_of::<*mut u8>());
        let size = layout.size().max(size_of::<*mut u8>());
        let size = align_up(size, align).filter(|&size| size <= maximum).ok_or(too_large)?;
        let slot = Layout::from_size_align(size, align).map_err(|_| too_large)?;
        let page_size = arena.page_size();
        let page = if size <= page_size {
            page_size
        } else {
            // Enough slots that what the last page has left over is little.
            align_up(size * 8, page_size).ok_or(too_large)?
        };
        Ok(RawPool { slot, ..Self::of_slots(arena, size, page) })
    }

    /// A pool of slots of `size` bytes, a multiple of 8, from `page` bytes at a time, a multiple of
    /// the arena's page size.
    pub(super) fn of_slots(arena: &'a Arena<'a>, size: usize, page: usize) -> RawPool<'a> {
        RawPool {
            arena,
            free: Cell::new(ptr::null_mut()),
            fresh: Cell::new(ptr::without_provenance_mut(1)),
            page_end: Cell::new(0),
            // SAFETY: 8 is a power of two, and `size` a multiple of it that slots fit in memory with.
            slot: unsafe { Layout::from_size_align_unchecked(size, 8) },
            page,
            in_use: Cell::new(0),
            slots: Cell::new(0),
            maker: arena.maker(),
        }
    }

    /// A pool whose slots begin at cache lines, so that no two of them share one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn cache_aligned(arena: &'a Arena<'a>, layout: Layout) -> Result<RawPool<'a>> {
        let aligned = layout.align_to(CACHE_LINE);
        let maximum = isize::MAX as usize;
        let aligned = aligned.map_err(|_| Error::TooLarge { given: layout.size(), maximum })?;
        Self::new(arena, aligned.pad_to_align())
    }

    /// Bytes of a slot.
    pub fn slot_size(&self) -> usize {
        self.slot.size()
    }
    /// Slots that are taken.
    pub fn in_use(&self) -> usize {
        self.in_use.get()
    }
    /// Slots that there are, free ones included; those of the newest page that were never taken
    /// are not.
    pub fn slots(&self) -> usize {
        self.slots.get()
    }

    /// Whether the slots are this process's, and not those of the parent of a forked child.
    #[inline(always)]
    pub(super) fn is_ours(&self) -> bool {
        is_ours(self.maker)
    }

    /// Takes a slot; it may hold anything.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::ScopeOpen`]; [`Error::Forked`] in a forked child, where the
    /// arena's memory is shared.
    #[inline]
    pub fn take(&self) -> Result<NonNull<u8>> {
        if !self.is_ours() {
            core::hint::cold_path();
            return Err(Error::Forked);
        }
        let free = self.free.get();
        let slot = if let Some(slot) = NonNull::new(free) {
            poison::allow(free.addr(), self.slot.size());
            // SAFETY: a free slot holds the link to the next one.
            self.free.set(unsafe { slot.cast::<*mut u8>().read() });
            slot
        } else {
            let start = self.fresh.get();
            let end = start.addr().wrapping_add(self.slot.size());
            if end > self.page_end.get() {
                return self.take_from_new_page();
            }
            self.fresh.set(start.with_addr(end));
            self.slots.set(self.slots.get() + 1);
            // SAFETY: an address of the arena.
            unsafe { NonNull::new_unchecked(start) }
        };
        self.in_use.set(self.in_use.get() + 1);
        Ok(slot)
    }

    #[cold]
    #[inline(never)]
    fn take_from_new_page(&self) -> Result<NonNull<u8>> {
        let align = self.arena.page_size().max(self.slot.align());
        let layout =
            Layout::from_size_align(self.page, align).map_err(|_| Error::BadAlignment { align })?;
        let page = self.arena.try_push_layout(layout)?;
        self.fresh.set(page.as_ptr());
        self.page_end.set(page.addr().get() + self.page);
        self.take()
    }

    /// Gives a slot back. In a forked child, where the arena's memory is shared, nothing happens.
    ///
    /// # Safety
    /// The slot was taken from this pool and not given back since, and nobody uses it any more.
    #[inline]
    pub unsafe fn put(&self, slot: NonNull<u8>) {
        if !self.is_ours() {
            core::hint::cold_path();
            return;
        }
        #[cfg(debug_assertions)]
        // SAFETY: a slot that nobody uses.
        unsafe {
            poison::fill(slot.as_ptr(), self.slot.size());
        }
        // SAFETY: nobody uses the slot, which is long enough and aligned for a link.
        unsafe { slot.cast::<*mut u8>().write(self.free.get()) };
        self.free.set(slot.as_ptr());
        self.in_use.set(self.in_use.get() - 1);
        poison::forbid(
            slot.addr().get() + size_of::<*mut u8>(),
            self.slot.size() - size_of::<*mut u8>(),
        );
    }
}

impl fmt::Debug for RawPool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawPool")
            .field("slot", &self.slot)
            .field("in_use", &self.in_use.get())
            .field("slots", &self.slots.get())
            .finish_non_exhaustive()
    }
}

/// Values of one type, put in and taken out in any order, over an arena.
///
/// ```
/// use hshm::arena::{Arena, Pool};
/// let arena = Arena::new();
/// let pool = Pool::new(&arena)?;
/// let first = pool.put("first".to_owned());
/// let place = &*first as *const String;
/// drop(first);
/// let second = pool.put("second".to_owned());
/// assert_eq!((&*second as *const String, pool.len()), (place, 1));
/// # Ok::<(), hshm::Error>(())
/// ```
pub struct Pool<'a, T> {
    slots: RawPool<'a>,
    _values: PhantomData<T>,
}

impl<'a, T> Pool<'a, T> {
    /// An empty pool; nothing is taken from the arena yet.
    ///
    /// # Errors
    /// As [`RawPool::new`].
    pub fn new(arena: &'a Arena<'a>) -> Result<Self> {
        Ok(Pool { slots: RawPool::new(arena, Layout::new::<T>())?, _values: PhantomData })
    }

    /// A pool none of whose values shares a cache line with another.
    ///
    /// # Errors
    /// As [`RawPool::new`].
    pub fn cache_aligned(arena: &'a Arena<'a>) -> Result<Self> {
        let slots = RawPool::cache_aligned(arena, Layout::new::<T>())?;
        Ok(Pool { slots, _values: PhantomData })
    }

    /// Puts a value in; the handle gives its slot back.
    ///
    /// # Panics
    /// Where [`try_put`](Self::try_put) fails.
    #[inline]
    pub fn put(&self, value: T) -> Pooled<'_, T> {
        match self.slots.take() {
            Ok(slot) => self.fill(slot, value),
            Err(error) => self.slots.arena.fail(error),
        }
    }

    /// Puts a value in, or says why not; then it is dropped.
    ///
    /// # Errors
    /// As [`RawPool::take`].
    #[inline]
    pub fn try_put(&self, value: T) -> Result<Pooled<'_, T>> {
        Ok(self.fill(self.slots.take()?, value))
    }

    #[inline]
    fn fill(&self, slot: NonNull<u8>, value: T) -> Pooled<'_, T> {
        let value_at = slot.cast::<T>();
        // SAFETY: a slot that was taken just now, of the size and alignment of `T`.
        unsafe { value_at.write(value) };
        Pooled { value: value_at, pool: &self.slots, _value: PhantomData }
    }

    /// Values that are in the pool.
    pub fn len(&self) -> usize {
        self.slots.in_use()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Slots that there are, free ones included.
    pub fn slots(&self) -> usize {
        self.slots.slots()
    }
}

impl<T> fmt::Debug for Pool<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.slots).finish()
    }
}

/// A value in a [`Pool`], which is dropped, and its slot given back, with the handle. (Except in a
/// forked child, where the pool is over shared memory: the value is the parent's.)
pub struct Pooled<'p, T> {
    value: NonNull<T>,
    pool: &'p RawPool<'p>,
    _value: PhantomData<T>,
}

impl<T> Pooled<'_, T> {
    /// Takes the value out, and gives its slot back.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the handle is forgotten, so the value is read once, and the slot given back once.
        unsafe {
            let value = this.value.read();
            this.pool.put(this.value.cast());
            value
        }
    }

    /// Replaces the value, and gives the old one.
    pub fn replace(&mut self, value: T) -> T {
        mem::replace(self, value)
    }
}

impl<T> Drop for Pooled<'_, T> {
    #[inline]
    fn drop(&mut self) {
        /// Gives the slot back even if dropping the value panics.
        struct Give<'p>(&'p RawPool<'p>, NonNull<u8>);
        impl Drop for Give<'_> {
            #[inline]
            fn drop(&mut self) {
                // SAFETY: the handle's own slot, which it gives back once.
                unsafe { self.0.put(self.1) };
            }
        }
        if !self.pool.is_ours() {
            core::hint::cold_path();
            return;
        }
        let _give = Give(self.pool, self.value.cast());
        // SAFETY: the handle's own value, dropped once.
        unsafe { ptr::drop_in_place(self.value.as_ptr()) };
    }
}

impl<T> Deref for Pooled<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the value is there as long as the handle.
        unsafe { self.value.as_ref() }
    }
}
impl<T> DerefMut for Pooled<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the handle is borrowed alone.
        unsafe { self.value.as_mut() }
    }
}
impl<T: fmt::Debug> fmt::Debug for Pooled<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    #[test]
    fn slots_never_straddle_a_page_and_are_reused() {
        let arena = Arena::new();
        for size in [1, 8, 24, 100, 1000, 3000, 4096] {
            let pool = RawPool::new(&arena, Layout::from_size_align(size, 8).unwrap()).unwrap();
            let mut taken = BTreeMap::new();
            for _ in 0..300 {
                let slot = pool.take().unwrap();
                let (first, last) = (slot.addr().get(), slot.addr().get() + pool.slot_size() - 1);
                assert_eq!(first / 4096, last / 4096, "{size}");
                let next = taken.range(first..).next();
                assert!(next.is_none_or(|(&next, _)| next > last));
                assert!(taken.insert(first, slot).is_none());
            }
            let before = arena.pos();
            assert_eq!((pool.in_use(), pool.slots()), (300, 300));
            // SAFETY: each was taken once, and is given back once.
            taken.values().for_each(|&slot| unsafe { pool.put(slot) });
            assert_eq!(pool.in_use(), 0);
            for _ in 0..300 {
                assert!(taken.remove(&pool.take().unwrap().addr().get()).is_some());
            }
            assert_eq!(arena.pos(), before, "nothing new was needed");
        }
    }

    #[test]
    fn larger_slots_and_alignments() {
        let arena = Arena::new();
        let large = RawPool::new(&arena, Layout::from_size_align(5000, 16).unwrap()).unwrap();
        let slots: Vec<_> = (0..20).map(|_| large.take().unwrap().addr().get()).collect();
        assert!(slots.windows(2).all(|pair| pair[1] >= pair[0] + 5000 && pair[1] % 16 == 0));
        let lines = Pool::cache_aligned(&arena).unwrap();
        let values: Vec<_> = (0..100u8).map(|n| lines.put(n)).collect();
        assert!(values.iter().all(|value| (&raw const **value).addr() % CACHE_LINE == 0));
        assert!(values.iter().zip(0..).all(|(value, n)| **value == n));
        let wide = Layout::from_size_align(10, 1 << 14).unwrap();
        let wide = RawPool::new(&arena, wide).unwrap();
        assert_eq!(wide.take().unwrap().addr().get() % (1 << 14), 0);
        let huge = Layout::from_size_align(isize::MAX as usize & !7, 8).unwrap();
        assert!(matches!(RawPool::new(&arena, huge), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn values_are_dropped_once() {
        let (arena, count) = (Arena::new(), Rc::new(()));
        let pool = Pool::new(&arena).unwrap();
        let mut values: Vec<_> = (0..100).map(|_| pool.put(count.clone())).collect();
        assert_eq!((Rc::strong_count(&count), pool.len()), (101, 100));
        drop(values.drain(..50));
        let taken = values.pop().unwrap().into_inner();
        assert_eq!((Rc::strong_count(&taken), pool.len()), (51, 49));
        drop((values, taken));
        assert_eq!(Rc::strong_count(&count), 1);
        assert!(pool.is_empty() && pool.slots() == 100);
    }

    #[test]
    fn a_full_arena_is_an_error() {
        let arena = Arena::builder().growth(super::super::Growth::Fixed).capacity(20_000).build();
        let arena = arena.unwrap();
        let pool = Pool::new(&arena).unwrap();
        let mut kept = Vec::new();
        let error = loop {
            match pool.try_put([0u64; 4]) {
                Ok(value) => kept.push(value),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), crate::ErrorCode::OutOfMemory);
        assert!(kept.len() >= 3 * 128);
        kept.pop();
        assert!(pool.try_put([1; 4]).is_ok());
    }
}
