//! Scratch: memory for temporaries, from arenas that every thread keeps.
//!
//! ```text
//!  thread: slot 0: bottom -> | what s1 pushed | Level | what s3 pushed ...   s1 closed, s3 open
//!          slot 1: bottom -> | what s2 pushed ...                            s2 open
//! ```
//!
//! A function that gets an arena for its result needs another one for its temporaries, or the end
//! of its scope would take the result back. So [`scratch`] is told which arenas are in use, and
//! gives a scope of one that is none of them. With one arena for results at a time, two for each
//! thread do for any depth of calls: each call takes the one that its caller did not hand down.
//! More are made when more conflict. (The idea and the name `ArenaTemp` are Ryan Fleury's.)
//!
//! Every guard has a *level*, which has the arena that its user pushes into. The first guard of a
//! slot has the slot's bottom level, with the slot's own arena: nothing has to be closed for it, and
//! since the arena is empty when nobody has it, its end is known beforehand: one store, if the arena
//! has neither grown nor been left closed. (No value goes from one scope to the next through memory,
//! so that one after another they do not wait for each other.) A guard that is taken while the
//! bottom is in use gets a scope of the innermost level.
//!
//! A guard may be moved, and guards may be dropped in any order. So a level, which the next one on
//! the same slot has to close and open again, lies not in the guard but in the slot's memory, where
//! the scope begins. A scope that is dropped while another is open behind it is marked, and ends with
//! that one. A scope that is leaked is never taken back; a thread that ends with one leaks the slot.
#![allow(unsafe_code)] // keeps levels in the memory of their own arenas

use core::alloc::Layout;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::hint::cold_path;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use self::slot::{Level, NOWHERE, Slot, Taken};
use super::block::out_of_memory;
use super::{Arena, ArenaBuilder, Growth};
use crate::base::{Error, MIB, Result};

mod global;
mod slot;
#[cfg(test)]
mod tests;

pub use global::{GlobalScratch, scratch_global, scratch_mapped};
pub(super) use slot::NEVER;

/// Bytes of memory that a thread's scratch arena keeps between uses.
const KEEP: usize = 64 * MIB;
/// A thread's slots. They stay where they are: guards and levels point at them.
struct Slots(RefCell<Vec<NonNull<Slot>>>);

thread_local!(static SLOTS: Slots = const { Slots(RefCell::new(Vec::new())) });

// The first two of them, which are found without a look at whether the thread ends, or has any.
thread_local!(static FIRST: Cell<&'static Slot> = const { Cell::new(&NOWHERE.0) });
thread_local!(static SECOND: Cell<&'static Slot> = const { Cell::new(&NOWHERE.0) });

impl Drop for Slots {
    fn drop(&mut self) {
        FIRST.set(&NOWHERE.0);
        SECOND.set(&NOWHERE.0);
        for slot in self.0.take() {
            // SAFETY: the slot is live; it was made by `Slots::add`.
            let taken = unsafe { slot.as_ref() }.bottom.taken.get();
            if taken == Taken::No {
                // SAFETY: nobody has the slot, nor finds it any more. Its arena is dropped once,
                // and there is nothing else in it.
                unsafe {
                    ManuallyDrop::drop(&mut (*slot.as_ptr()).bottom.arena);
                    std::alloc::dealloc(slot.as_ptr().cast(), Layout::new::<Slot>());
                }
            }
        }
    }
}

/// A scope of a thread's scratch arena: see [`scratch`].
pub struct Scratch {
    level: NonNull<Level>,
    _this_thread: PhantomData<*mut u8>,
}

/// Memory for temporaries until the guard is dropped: a scope of one of this thread's arenas which
/// is none of `conflicts`, nor has a scope of one of them open. Name every arena there that is in
/// use for what outlives the guard.
///
/// ```
/// use hshm::arena::{Arena, scratch};
/// fn joined<'a>(out: &'a Arena<'_>, parts: &[&str]) -> &'a str {
///     let temp = scratch(&[out]);
///     let longest = temp.push_iter(parts.iter().map(|part| part.len())).iter().max().copied();
///     out.format(format_args!("{} ({})", parts.join("+"), longest.unwrap_or(0)))
/// }
/// let temp = scratch(&[]);
/// assert_eq!(joined(&temp, &["a", "bcd"]), "a+bcd (3)");
/// ```
///
/// A scratch that is not named may be closed by one that is taken later, until that is dropped;
/// pushing into it then fails, as [`Error::ScopeOpen`].
///
/// # Panics
/// Where [`try_scratch`] fails.
#[inline]
pub fn scratch(conflicts: &[&Arena<'_>]) -> Scratch {
    match try_scratch(conflicts) {
        Ok(scratch) => scratch,
        Err(error) => panic!("no scratch arena: {error}"),
    }
}

/// [`scratch`], or why not.
///
/// # Errors
/// [`Error::OutOfMemory`]; [`Error::Unsupported`] while the thread ends.
#[inline]
pub fn try_scratch(conflicts: &[&Arena<'_>]) -> Result<Scratch> {
    let first = FIRST.get();
    if first.is_idle() {
        return Ok(Scratch::of(first.take_bottom()));
    }
    let second = SECOND.get();
    if second.is_idle() {
        return Ok(Scratch::of(second.take_bottom()));
    }
    cold_path();
    // By value, so that nobody has to write a list of one down.
    match conflicts {
        [one] => find_beside(one),
        more => find(more),
    }
}

#[cold]
#[inline(never)]
fn find_beside(conflict: &Arena<'_>) -> Result<Scratch> {
    find(&[conflict])
}

/// A scope of a slot that is in use, or far, or not there yet.
#[cold]
#[inline(never)]
fn find(conflicts: &[&Arena<'_>]) -> Result<Scratch> {
    for slot in [FIRST.get(), SECOND.get()] {
        if slot.is_fit(conflicts) {
            return slot.take_behind().map(Scratch::of);
        }
    }
    find_far(conflicts)
}

#[cold]
#[inline(never)]
fn find_far(conflicts: &[&Arena<'_>]) -> Result<Scratch> {
    let found = SLOTS.try_with(|slots| {
        for &slot in slots.0.borrow().iter().skip(2) {
            // SAFETY: slots are live as long as the thread's list.
            let slot = unsafe { slot.as_ref() };
            if slot.is_idle() {
                return Ok(Scratch::of(slot.take_bottom()));
            }
            if slot.is_fit(conflicts) {
                return slot.take_behind().map(Scratch::of);
            }
        }
        slots.add().map(|slot| Scratch::of(slot.take_bottom()))
    });
    found.map_err(|_| Error::Unsupported)?
}

impl Slots {
    fn add(&self) -> Result<&Slot> {
        let settings = ArenaBuilder::new().growth(Growth::ReservedThenChained).decommit_above(KEEP);
        let arena = settings.name("scratch").build()?;
        let mut all = self.0.borrow_mut();
        all.try_reserve(1).map_err(|_| out_of_memory(size_of::<NonNull<Slot>>(), 0))?;
        // SAFETY: the layout is not of size zero.
        let place = NonNull::new(unsafe { std::alloc::alloc(Layout::new::<Slot>()) });
        let place = place.ok_or(out_of_memory(size_of::<Slot>(), 0))?.cast::<Slot>();
        // SAFETY: fresh memory for a slot, which is freed when the list goes; then `FIRST` no longer
        // has it.
        let slot: &'static Slot = unsafe {
            place.write(Slot::new(arena, place.as_ptr()));
            place.as_ref()
        };
        slot.bottom.arena.body().calm.set(Some(NonNull::from(&slot.bottom.calm)));
        match all.len() {
            0 => FIRST.set(slot),
            1 => SECOND.set(slot),
            _ => {}
        }
        all.push(place);
        Ok(slot)
    }
}

impl Scratch {
    #[inline(always)]
    fn of(level: NonNull<Level>) -> Scratch {
        Scratch { level, _this_thread: PhantomData }
    }

    #[inline(always)]
    fn level(&self) -> &Level {
        // SAFETY: the guard's level, and with it the slot, is live until it is ended, which only
        // happens when the guard is dropped.
        unsafe { self.level.as_ref() }
    }

    /// Takes back everything that was pushed into the scope, and goes on.
    ///
    /// Nothing happens while a scratch that was taken later is open on the same arena.
    pub fn clear(&mut self) {
        self.level().clear();
    }
}

impl Drop for Scratch {
    #[inline]
    fn drop(&mut self) {
        self.level().end();
    }
}

impl Deref for Scratch {
    type Target = Arena<'static>;
    #[inline]
    fn deref(&self) -> &Arena<'static> {
        &self.level().arena
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scratch").field(&**self).finish()
    }
}
