//! Scopes: what is pushed in one is taken back at its end.
//!
//! ```text
//!   outer arena (closed while the scope is open)
//!   | what the outer arena pushed | what the scope pushes ...
//!                                 ^ the outer arena's top
//!
//!   scope_leaving: | outer's | room for what is returned | what the scope pushes ...
//! ```
//!
//! The borrow checker sees to it that nothing leaves a scope. That nobody pushes into the *outer*
//! arena while a scope is open, which the end of the scope would take back, it cannot see; the
//! closed outer arena refuses ([`Error::ScopeOpen`]), in every build and at no cost. Who has the arena
//! to himself needs no second one: [`TempMut`] borrows it, and only remembers where it began.
#![allow(unsafe_code)] // lends a part of an arena to another arena

use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit, size_of};
use core::ops::Deref;
use core::slice;

use super::Arena;
use super::options::ArenaBuilder;
use crate::base::{Error, Result};

/// A scope of an arena (`ArenaTemp`): an arena itself, which takes everything back that was pushed
/// into it when it is dropped. Made by [`Arena::temp`].
///
/// A scope that is leaked takes nothing back, and leaves its arena closed until that is popped or
/// cleared.
pub struct Temp<'a> {
    view: ManuallyDrop<Arena<'a>>,
    outer: &'a Arena<'a>,
}

impl Temp<'_> {
    /// Takes back everything that was pushed into the scope, and goes on.
    pub fn clear(&mut self) {
        self.view.rewind(self.outer.top());
    }

    /// Starts a scope inside this one that needs nothing closed: see [`Arena::temp_mut`].
    #[inline]
    pub fn temp_mut(&mut self) -> TempMut<'_> {
        TempMut::of(&self.view)
    }

    /// Takes back everything pushed since [`pos`](Arena::pos) was `position`.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] for a position past the top, or before the scope.
    pub fn pop_to(&mut self, position: usize) -> Result<()> {
        pop_within(&self.view, self.outer.pos(), position)
    }
}

impl<'a> Deref for Temp<'a> {
    type Target = Arena<'a>;
    #[inline]
    fn deref(&self) -> &Arena<'a> {
        &self.view
    }
}

impl Drop for Temp<'_> {
    #[inline]
    fn drop(&mut self) {
        self.outer.end_scope(self.view.top.get(), self.view.limit.get());
    }
}

impl fmt::Debug for Temp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Temp").field(&*self.view).finish()
    }
}

/// A scope of an arena that nobody else has: it borrows the arena for itself, so that nothing has to be
/// closed, and takes everything back that was pushed meanwhile when it is dropped. Made by
/// [`Arena::temp_mut`].
///
/// A scope that is leaked takes nothing back.
pub struct TempMut<'a> {
    /// Borrowed for itself, but for what is pushed through the scope.
    arena: &'a Arena<'a>,
    start: *mut u8,
    _alone: PhantomData<&'a mut ()>,
}

impl<'a> TempMut<'a> {
    /// Nobody else borrows `arena` for `'a`: nothing that was pushed into it is in use, nor is a scope of it.
    #[inline(always)]
    fn of(arena: &'a Arena<'a>) -> Self {
        TempMut { arena, start: arena.top(), _alone: PhantomData }
    }

    /// Starts a scope inside this one.
    #[inline]
    pub fn temp_mut(&mut self) -> TempMut<'_> {
        TempMut::of(self.arena)
    }

    /// Takes back everything that was pushed into the scope, and goes on.
    #[inline]
    pub fn clear(&mut self) {
        self.arena.rewind(self.start);
    }

    /// Takes back everything pushed since [`pos`](Arena::pos) was `position`.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] for a position past the top, or before the scope.
    pub fn pop_to(&mut self, position: usize) -> Result<()> {
        pop_within(self.arena, self.arena.position_of(self.start.addr()), position)
    }
}

/// Takes back what was pushed since the position was `position`, in a scope that began at `start`.
fn pop_within(arena: &Arena<'_>, start: usize, position: usize) -> Result<()> {
    if position < start {
        let length = arena.pos() as u64;
        return Err(Error::OffsetOutOfRange { offset: position as u64, length });
    }
    let place = arena.place_of(position)?;
    arena.rewind(place);
    Ok(())
}

impl<'a> Deref for TempMut<'a> {
    type Target = Arena<'a>;
    #[inline]
    fn deref(&self) -> &Arena<'a> {
        self.arena
    }
}

impl Drop for TempMut<'_> {
    #[inline]
    fn drop(&mut self) {
        self.arena.rewind(self.start);
    }
}

impl fmt::Debug for TempMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TempMut").field(self.arena).finish()
    }
}

impl Arena<'_> {
    /// Starts a scope of an arena that is borrowed for it, so that nothing of what was pushed before can
    /// be in use: what a loop does that begins each round with an empty arena. It costs no more than
    /// the pushes and two looks at the top.
    ///
    /// ```
    /// # use hshm::arena::Arena;
    /// let mut arena = Arena::new();
    /// for text in ["one two", "three"] {
    ///     let mut temp = arena.temp_mut();
    ///     let count = temp.push_iter(text.split(' ')).len();
    ///     temp.temp_mut().push(count);
    /// }
    /// assert_eq!(arena.pos(), 0);
    /// ```
    ///
    /// What was pushed cannot leave, and what was pushed before cannot be used:
    ///
    /// ```compile_fail
    /// # use hshm::arena::Arena;
    /// let mut arena = Arena::new();
    /// let kept = &*arena.push_value(1);
    /// let temp = arena.temp_mut();
    /// assert_eq!(*kept, 1);
    /// ```
    ///
    /// An arena that a leaked [`Temp`] left closed stays so until this scope ends.
    #[inline]
    pub fn temp_mut(&mut self) -> TempMut<'_> {
        TempMut::of(self)
    }

    /// Runs `work` with this arena, and takes back what it pushed: [`scope`](Self::scope) for an arena
    /// that is borrowed for it.
    ///
    /// ```
    /// # use hshm::arena::Arena;
    /// let mut arena = Arena::new();
    /// let sum: u64 = arena.scope_mut(|temp| temp.push_iter(1..=100u64).iter().sum());
    /// assert_eq!((sum, arena.pos()), (5050, 0));
    /// ```
    #[inline]
    pub fn scope_mut<R>(&mut self, work: impl for<'s> FnOnce(&'s Arena<'s>) -> R) -> R {
        let temp = self.temp_mut();
        work(&temp)
    }

    /// Starts a scope, which lasts as long as the guard.
    ///
    /// ```
    /// # use hshm::arena::Arena;
    /// let arena = Arena::new();
    /// let kept = arena.push_str("kept");
    /// let here = arena.pos();
    /// {
    ///     let temp = arena.temp();
    ///     temp.push(10_000);
    ///     assert!(arena.try_push(1).is_err(), "a scope of this arena is open");
    /// }
    /// assert_eq!((arena.pos(), &*kept), (here, "kept"));
    /// ```
    ///
    /// # Panics
    /// While another scope of this arena is open: start the inner one from that.
    #[inline]
    pub fn temp(&self) -> Temp<'_> {
        self.or_fail(self.try_temp())
    }

    /// [`temp`](Self::temp), or [`Error::ScopeOpen`].
    #[inline]
    pub fn try_temp(&self) -> Result<Temp<'_>> {
        Ok(Temp { view: ManuallyDrop::new(self.open()?), outer: self })
    }

    /// Runs `work` with a scope of this arena.
    ///
    /// ```
    /// # use hshm::arena::Arena;
    /// let arena = Arena::new();
    /// let sum: u64 = arena.scope(|temp| temp.push_iter(1..=100u64).iter().sum());
    /// assert_eq!((sum, arena.pos()), (5050, 0));
    /// ```
    ///
    /// What was pushed cannot leave:
    ///
    /// ```compile_fail
    /// # use hshm::arena::Arena;
    /// let arena = Arena::new();
    /// let gone = arena.scope(|temp| temp.push_value(1));
    /// ```
    ///
    /// # Panics
    /// As [`temp`](Self::temp).
    #[inline]
    pub fn scope<R>(&self, work: impl for<'s> FnOnce(&'s Arena<'s>) -> R) -> R {
        let temp = self.temp();
        work(&temp)
    }

    /// Runs `work` with a scope and pushes what it returns, where the scope began.
    ///
    /// # Errors
    /// [`Error::ScopeOpen`], [`Error::OutOfMemory`].
    pub fn try_push_result<R>(
        &self,
        work: impl for<'s> FnOnce(&'s Arena<'s>) -> R,
    ) -> Result<&mut R> {
        let place = self.try_push_with_uninit::<R>()?;
        let temp = self.try_temp()?;
        Ok(place.write(work(&temp)))
    }

    #[allow(clippy::mut_from_ref)] // fresh bytes
    fn try_push_with_uninit<T>(&self) -> Result<&mut MaybeUninit<T>> {
        self.try_push_value(MaybeUninit::uninit())
    }

    /// Runs `work` with a scope *behind* `room` bytes, which stay: `work` gets an arena over these
    /// bytes for what it returns, and the scope for everything else. What it leaves of the room
    /// goes back. The room's own bookkeeping (less than 512 bytes) comes on top.
    ///
    /// ```
    /// # use hshm::arena::{Arena, Growth};
    /// let arena = Arena::builder().growth(Growth::Reserved).build()?;
    /// let text = arena.scope_leaving(4096, |room, temp| {
    ///     let parts = temp.push_iter(["a", "b"].map(|part| temp.push_str(part)));
    ///     &*room.push_str(&parts.iter().map(|part| &**part).collect::<String>())
    /// })?;
    /// assert_eq!(text, "ab");
    /// # Ok::<(), hshm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for [chained](super::Growth::Chained) arenas, whose blocks are too
    /// small to leave room in; [`Error::ScopeOpen`], [`Error::OutOfMemory`].
    pub fn scope_leaving<'a, R>(
        &'a self,
        room: usize,
        work: impl for<'s> FnOnce(&'a Arena<'a>, &'s Arena<'s>) -> R,
    ) -> Result<R> {
        /// What an arena in an arena needs before its first byte, at most.
        const OVERHEAD: usize = 512;
        if !self.body().options.growth.has_room() {
            return Err(Error::Unsupported);
        }
        let too_large = Error::OutOfMemory { requested: usize::MAX, available: 0 };
        let bytes = room.checked_add(OVERHEAD - size_of::<Arena<'_>>()).ok_or(too_large)?;
        let place = self.try_push_with_uninit::<Arena<'a>>()?;
        let memory = self.take(bytes, 16)?.cast::<MaybeUninit<u8>>().as_ptr();
        // SAFETY: pushed just now into this arena, which is borrowed for `'a`.
        let memory = unsafe { slice::from_raw_parts_mut(memory, bytes) };
        let settings = ArenaBuilder::new().poison(false).align(self.auto_align()).name("room");
        // In the arena and never dropped: there is nothing to drop in an arena over lent memory.
        let inner: &'a Arena<'a> = place.write(settings.build_over(memory)?);
        inner.body().trace.remember_nothing();
        inner.body().current().maker.set(self.maker());
        let result = work(inner, &*self.try_temp()?);
        // A scope of the room that was leaked may have values up to its end.
        if !inner.is_closed() {
            let end = inner.shut();
            // The room's last byte was this arena's last push.
            self.rewind(self.top().with_addr(end.addr()));
        }
        Ok(result)
    }
}
