//! Scratch: memory for temporaries, from arenas that every thread keeps.
//!
//! ```text
//!  thread: slot 0: | View | what s1 pushed | View | what s3 pushed ...      s1 closed, s3 open
//!          slot 1: | View | what s2 pushed ...                              s2 open
//! ```
//!
//! A function that gets an arena for its result needs another one for its temporaries, or the end
//! of its scope would take the result back. So [`scratch`] is told which arenas are in use, and
//! gives a scope of one that is none of them. With one arena for results at a time, two for each
//! thread do for any depth of calls: each call takes the one that its caller did not hand down.
//! More are made when more conflict. (The idea and the name `ArenaTemp` are Ryan Fleury's.)
//!
//! A guard may be moved, and guards may be dropped in any order. So the scope's arena, which the
//! next scope on the same slot has to close and open again, lies not in the guard but in a *view* in
//! the slot's memory, where the scope begins. A scope that is dropped while another is open behind
//! it is marked, and ends with that one. A scope that is leaked is never taken back; a thread that
//! ends with one leaks the slot.
#![allow(unsafe_code)] // keeps views in the memory of their own arenas

use core::cell::{Cell, RefCell};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use super::{Arena, ArenaBuilder, Growth};
use crate::base::{Error, MIB, Result};

/// Bytes of memory that a thread's scratch arena keeps between uses.
const KEEP: usize = 64 * MIB;

/// One arena of a thread, and the innermost scope that is open on it.
struct Slot {
    root: Arena<'static>,
    innermost: Cell<Option<NonNull<View>>>,
}

/// A scope, at the place in the slot's arena where it begins.
struct View {
    arena: ManuallyDrop<Arena<'static>>,
    slot: NonNull<Slot>,
    outer: Option<NonNull<View>>,
    /// The top before this view, and the limit.
    start: *mut u8,
    limit: usize,
    /// Its guard is gone; it ends with the scope behind it.
    ended: Cell<bool>,
}

/// A thread's slots. They stay where they are: guards and views point at them.
struct Slots(RefCell<Vec<NonNull<Slot>>>);

thread_local!(static SLOTS: Slots = const { Slots(RefCell::new(Vec::new())) });

// The first two of them, where they are found without a look at whether the thread ends.
thread_local!(static FIRST: [Cell<Option<NonNull<Slot>>>; 2] =
    const { [Cell::new(None), Cell::new(None)] });

impl Drop for Slots {
    fn drop(&mut self) {
        FIRST.with(|first| first.iter().for_each(|slot| slot.set(None)));
        for slot in self.0.take() {
            // SAFETY: the slot is live; it was made by `Box::leak` below.
            let leaked = unsafe { slot.as_ref() }.innermost.get().is_some();
            if !leaked {
                // SAFETY: as above; no scope is open on it, and nobody else has it.
                drop(unsafe { Box::from_raw(slot.as_ptr()) });
            }
        }
    }
}

/// A scope of a thread's scratch arena: see [`scratch`].
pub struct Scratch {
    view: NonNull<View>,
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
    let quick = FIRST.with(|first| {
        // SAFETY: these are forgotten before the slots go.
        let fits = |slot: &NonNull<Slot>| fits(unsafe { slot.as_ref() }, conflicts);
        first[0].get().filter(fits).or_else(|| first[1].get().filter(fits))
    });
    match quick {
        Some(slot) => begin(slot),
        None => begin(find(conflicts)?),
    }
}

/// A slot that is not one of the first two, or is not there yet.
#[cold]
#[inline(never)]
fn find(conflicts: &[&Arena<'_>]) -> Result<NonNull<Slot>> {
    let slot = SLOTS.try_with(|slots| {
        for &slot in slots.0.borrow().iter() {
            // SAFETY: slots are live as long as the thread's list.
            if fits(unsafe { slot.as_ref() }, conflicts) {
                return Ok(slot);
            }
        }
        new_slot(slots)
    });
    slot.map_err(|_| Error::Unsupported)?
}

/// Whether a scope can be opened on this slot.
#[inline]
fn fits(slot: &Slot, conflicts: &[&Arena<'_>]) -> bool {
    !conflicts.iter().any(|arena| arena.shares_memory_with(&slot.root))
        && !innermost(slot).is_closed()
}

#[inline]
fn innermost(slot: &Slot) -> &Arena<'static> {
    match slot.innermost.get() {
        // SAFETY: the innermost view is live, and stays while nobody ends it.
        Some(view) => unsafe { &view.as_ref().arena },
        None => &slot.root,
    }
}

fn new_slot(slots: &Slots) -> Result<NonNull<Slot>> {
    let settings = ArenaBuilder::new().growth(Growth::ReservedThenChained).decommit_above(KEEP);
    let root = settings.name("scratch").build()?;
    let slot = Box::leak(Box::new(Slot { root, innermost: Cell::new(None) })).into();
    let mut all = slots.0.borrow_mut();
    if all.len() < 2 {
        FIRST.with(|first| first[all.len()].set(Some(slot)));
    }
    all.push(slot);
    Ok(slot)
}

#[inline]
fn begin(place: NonNull<Slot>) -> Result<Scratch> {
    // SAFETY: the slot is live: it is the thread's, which runs.
    let slot = unsafe { place.as_ref() };
    let outer = innermost(slot);
    let (start, limit) = (outer.top(), outer.limit());
    let view = outer.take(size_of::<View>(), align_of::<View>())?.cast::<View>();
    let arena = ManuallyDrop::new(outer.open()?);
    let outer = slot.innermost.replace(Some(view));
    // SAFETY: fresh bytes of the slot's arena, of a view's size and alignment.
    unsafe {
        view.write(View { arena, slot: place, outer, start, limit, ended: Cell::new(false) })
    };
    Ok(Scratch { view, _this_thread: PhantomData })
}

impl Drop for Scratch {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the guard's view, and with it the slot, is live until it is ended, which only
        // happens below.
        let slot = unsafe { self.view.as_ref().slot.as_ref() };
        if slot.innermost.get() == Some(self.view) {
            end(self.view, slot);
        } else {
            // SAFETY: as above.
            unsafe { self.view.as_ref() }.ended.set(true);
        }
    }
}

/// Ends the slot's innermost scope, and those before it that only waited for that. No reference to
/// the view lasts until its bytes are taken back.
#[inline]
fn end(view: NonNull<View>, slot: &Slot) {
    // SAFETY: the innermost view, which is live.
    let (ends, limit, start, outer) = unsafe {
        let view = view.as_ref();
        (view.arena.ends(), view.limit, view.start, view.outer)
    };
    slot.innermost.set(outer);
    innermost(slot).end_scope(ends, limit, start);
    if let Some(outer) = outer {
        // SAFETY: the innermost view now, which is live.
        let ended = unsafe { outer.as_ref() }.ended.get();
        if ended {
            end(outer, slot);
        }
    }
}

impl Scratch {
    /// Takes back everything that was pushed into the scope, and goes on.
    ///
    /// Nothing happens while a scratch that was taken later is open on the same arena.
    pub fn clear(&mut self) {
        // SAFETY: the guard's view is live.
        let view = unsafe { self.view.as_ref() };
        // SAFETY: the slot is live as long as one of its views.
        let slot = unsafe { view.slot.as_ref() };
        if slot.innermost.get() == Some(self.view) {
            let first = self.view.as_ptr().wrapping_add(1).cast::<u8>();
            view.arena.rewind(first);
        }
    }
}

impl Deref for Scratch {
    type Target = Arena<'static>;
    #[inline]
    fn deref(&self) -> &Arena<'static> {
        // SAFETY: the guard's view is live.
        unsafe { &self.view.as_ref().arena }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scratch").field(&**self).finish()
    }
}

/// An arena with `capacity` bytes of addresses of its own, all of which go back to the system at
/// once when it is dropped: for temporaries that are large, or that must not outgrow a bound.
///
/// # Errors
/// As [`ArenaBuilder::build`].
pub fn scratch_mapped(capacity: usize) -> Result<Arena<'static>> {
    ArenaBuilder::new().growth(Growth::Reserved).capacity(capacity).name("scratch").build()
}

/// Idle arenas of the whole process.
static IDLE: std::sync::Mutex<Vec<Arena<'static>>> = std::sync::Mutex::new(Vec::new());
/// How many are kept.
const MOST_IDLE: usize = 16;

/// A scratch arena of the process, which may go to another thread: see [`scratch_global`].
#[derive(Debug)]
pub struct GlobalScratch(ManuallyDrop<Arena<'static>>);

/// Memory for temporaries that do not stay on one thread: an arena that no other scratch has, from
/// a list that all threads share.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn scratch_global() -> Result<GlobalScratch> {
    let idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
    let arena = match idle {
        Some(arena) => arena,
        None => ArenaBuilder::new()
            .growth(Growth::ReservedThenChained)
            .decommit_above(KEEP)
            .name("global scratch")
            .build()?,
    };
    Ok(GlobalScratch(ManuallyDrop::new(arena)))
}

impl Deref for GlobalScratch {
    type Target = Arena<'static>;
    fn deref(&self) -> &Arena<'static> {
        &self.0
    }
}

impl Drop for GlobalScratch {
    fn drop(&mut self) {
        // SAFETY: taken once, when the guard goes.
        let mut arena = unsafe { ManuallyDrop::take(&mut self.0) };
        arena.clear();
        let mut idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if idle.len() < MOST_IDLE {
            idle.push(arena);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many arenas this thread has for scratch.
    fn slots() -> usize {
        SLOTS.with(|slots| slots.0.borrow().len())
    }

    #[test]
    fn two_do_for_any_depth() {
        /// Hands its result's arena down, and takes temporaries of its own.
        fn nested<'a>(depth: u32, out: &'a Arena<'_>) -> &'a str {
            let temp = scratch(&[out]);
            assert!(!temp.shares_memory_with(out));
            let inner = if depth == 0 { "" } else { nested(depth - 1, &temp) };
            out.format(format_args!("{inner}{depth} "))
        }
        std::thread::spawn(|| {
            let out = scratch(&[]);
            assert_eq!(nested(9, &out), "0 1 2 3 4 5 6 7 8 9 ");
            assert_eq!(slots(), 2);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn more_are_made_when_more_conflict() {
        std::thread::spawn(|| {
            let a = scratch(&[]);
            let b = scratch(&[&a]);
            let c = scratch(&[&a, &b]);
            let d = scratch(&[&a, &b, &c]);
            let all = [&a, &b, &c, &d];
            for (at, one) in all.iter().enumerate() {
                for other in all.iter().skip(at + 1) {
                    assert!(!one.shares_memory_with(other));
                }
            }
            assert_eq!(slots(), 4);
            // A scope of a conflicting arena conflicts, too.
            let inner = a.temp();
            assert!(!scratch(&[&inner]).shares_memory_with(&a));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_arena_with_an_open_scope_is_passed_over() {
        let a = scratch(&[]);
        let inner = a.temp();
        let b = scratch(&[]);
        assert!(!a.shares_memory_with(&b));
        assert_eq!((*inner.push_value(1), *b.push_value(2)), (1, 2));
    }

    #[test]
    fn guards_may_go_in_any_order() {
        let before = scratch(&[]).pos();
        let a = scratch(&[]);
        let kept = a.push_str("of a");
        let b = scratch(&[]);
        assert!(a.shares_memory_with(&b));
        assert_eq!(a.try_push_value(1u8), Err(Error::ScopeOpen));
        let of_b = b.push_str("of b");
        assert_eq!((&*kept, &*of_b), ("of a", "of b"));
        drop(a);
        assert_eq!(of_b, "of b");
        let c = scratch(&[]);
        c.push(100);
        drop(b);
        assert!(c.try_push_value(1u8).is_ok(), "the last one is open");
        drop(c);
        assert_eq!(scratch(&[]).pos(), before);
    }

    #[test]
    fn a_closed_scratch_opens_again() {
        let mut a = scratch(&[]);
        a.push_value(1u64);
        drop(scratch(&[]));
        a.push_value(2u64);
        let empty = {
            a.clear();
            a.pos()
        };
        a.push(1 << 20);
        a.clear();
        assert_eq!(a.pos(), empty);
    }

    #[test]
    fn what_is_leaked_stays() {
        let value: &'static mut [u8; 3] = std::thread::spawn(|| {
            let scratch = Box::leak(Box::new(scratch(&[])));
            scratch.push_value(*b"abc")
        })
        .join()
        .unwrap();
        assert_eq!(value, b"abc");
    }

    #[test]
    fn other_kinds() {
        let mapped = scratch_mapped(1 << 20).unwrap();
        assert!(mapped.try_push(1 << 20).is_err());
        assert_eq!(mapped.push(1 << 19).len(), 1 << 19);
        let global = scratch_global().unwrap();
        let other = scratch_global().unwrap();
        assert!(!global.shares_memory_with(&other));
        std::thread::spawn(move || global.push(1000).len()).join().unwrap();
        assert_eq!(scratch_global().unwrap().pos(), 0);
    }
}
