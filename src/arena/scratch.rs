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
//! since the arena is empty when nobody has it, its end is known beforehand: two stores, if the arena
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
use core::ptr::{self, NonNull};

use super::block::out_of_memory;
use super::bump::Body;
use super::trace::{Log, NO_LOG};
use super::{Arena, ArenaBuilder, Growth};
use crate::base::{Error, MIB, Result};
use crate::sync::atomic::{AtomicPtr, Ordering};

/// Bytes of memory that a thread's scratch arena keeps between uses.
const KEEP: usize = 64 * MIB;
/// No arena's limit.
pub(super) const NEVER: usize = usize::MAX;

/// What a guard has: a scope of a slot.
#[repr(C)]
struct Level {
    /// Dropped with the slot, if it is the bottom one's, and otherwise not at all.
    arena: ManuallyDrop<Arena<'static>>,
    /// The arena's limit with which ending the scope is only setting its top.
    calm: Cell<usize>,
    /// Where the scope begins; behind the bottom one, the top of the arena that it is a scope of.
    start: *mut u8,
    /// Whether somebody has this level.
    taken: Cell<bool>,
    /// Its guard is gone; it ends with the scope behind it.
    ended: Cell<bool>,
    slot: *const Slot,
    /// The level whose arena this one is a scope of, and the limit that it had.
    outer: Option<NonNull<Level>>,
    limit: usize,
    /// The alignment of untyped pushes, and the log, that the outer one had.
    align: usize,
    log: Log,
}

/// One arena of a thread, and the scopes that are open on it. What a scratch touches is in the first
/// cache line: across two of them it would take a third longer.
#[repr(C, align(64))]
struct Slot {
    bottom: Level,
    /// The innermost level, except the bottom.
    innermost: Cell<Option<NonNull<Level>>>,
}

/// A thread's slots. They stay where they are: guards and levels point at them.
struct Slots(RefCell<Vec<NonNull<Slot>>>);

thread_local!(static SLOTS: Slots = const { Slots(RefCell::new(Vec::new())) });

// The first two of them, which are found without a look at whether the thread ends, or has any.
thread_local!(static FIRST: Cell<&'static Slot> = const { Cell::new(&NOWHERE.0) });
thread_local!(static SECOND: Cell<&'static Slot> = const { Cell::new(&NOWHERE.0) });

/// Stands for a slot that is not there. It looks taken, so that nobody takes it.
static NOWHERE: Nowhere = Nowhere(Slot {
    bottom: Level {
        arena: ManuallyDrop::new(Arena::nowhere()),
        calm: Cell::new(NEVER),
        start: ptr::null_mut(),
        taken: Cell::new(true),
        ended: Cell::new(false),
        slot: ptr::null(),
        outer: None,
        limit: 0,
        align: 1,
        log: NO_LOG,
    },
    innermost: Cell::new(None),
});

struct Nowhere(Slot);

// SAFETY: nothing is ever written there: a slot is changed by who has taken it.
unsafe impl Sync for Nowhere {}

impl Drop for Slots {
    fn drop(&mut self) {
        FIRST.set(&NOWHERE.0);
        SECOND.set(&NOWHERE.0);
        for slot in self.0.take() {
            // SAFETY: the slot is live; it was made by `Slots::add`.
            let taken = unsafe { slot.as_ref() }.bottom.taken.get();
            if !taken {
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
    if first.is_idle(conflicts) {
        return Ok(first.take_bottom());
    }
    let second = SECOND.get();
    if second.is_idle(conflicts) {
        return Ok(second.take_bottom());
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
            return slot.take_behind();
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
            if slot.is_idle(conflicts) {
                return Ok(slot.take_bottom());
            }
            if slot.is_fit(conflicts) {
                return slot.take_behind();
            }
        }
        slots.add().map(Slot::take_bottom)
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

impl Slot {
    /// A slot that is to be at `place`.
    fn new(arena: Arena<'static>, place: *const Slot) -> Slot {
        let bottom = Level {
            calm: Cell::new(NEVER),
            start: arena.top(),
            arena: ManuallyDrop::new(arena),
            taken: Cell::new(false),
            ended: Cell::new(false),
            slot: place,
            outer: None,
            limit: 0,
            align: 1,
            log: NO_LOG,
        };
        Slot { bottom, innermost: Cell::new(None) }
    }

    #[inline(always)]
    fn conflicts(&self, conflicts: &[&Arena<'_>]) -> bool {
        conflicts.iter().any(|arena| arena.shares_memory_with(&self.bottom.arena))
    }

    /// Whether nobody has this slot, nor is it one of those.
    #[inline(always)]
    fn is_idle(&self, conflicts: &[&Arena<'_>]) -> bool {
        !self.bottom.taken.get() && !self.conflicts(conflicts)
    }

    /// Whether a scope of this slot, which somebody has (or which is not there), can be opened.
    fn is_fit(&self, conflicts: &[&Arena<'_>]) -> bool {
        !self.innermost().arena.is_closed() && !self.conflicts(conflicts)
    }

    fn innermost(&self) -> &Level {
        match self.innermost.get() {
            // SAFETY: the innermost level is live, and stays while nobody ends it.
            Some(level) => unsafe { level.as_ref() },
            None => &self.bottom,
        }
    }

    /// The first scope of an idle slot.
    #[inline(always)]
    fn take_bottom(&self) -> Scratch {
        self.bottom.taken.set(true);
        Scratch { level: NonNull::from(&self.bottom), _this_thread: PhantomData }
    }

    /// A scope of the innermost one.
    fn take_behind(&self) -> Result<Scratch> {
        let outer = self.innermost();
        // Before the level is there: it may be the first of another block.
        let (start, limit) = (outer.arena.top(), outer.arena.limit.get());
        let busy = self.busy();
        let place = outer.arena.take(size_of::<Level>(), align_of::<Level>());
        drop(busy);
        let opened = place.and_then(|place| Ok((place.cast::<Level>(), outer.arena.open()?)));
        let (place, arena) = opened.inspect_err(|_| {
            if outer.ended.get() {
                outer.end_slow();
            }
        })?;
        let level = Level {
            calm: Cell::new(NEVER),
            start,
            limit,
            arena: ManuallyDrop::new(arena),
            taken: Cell::new(true),
            ended: Cell::new(false),
            slot: self,
            outer: Some(NonNull::from(outer)),
            align: outer.arena.auto_align(),
            log: outer.arena.body().trace.log(),
        };
        level.arena.align_as_built();
        // SAFETY: fresh bytes of the slot's arena, of a level's size and alignment.
        unsafe { place.write(level) };
        self.innermost.set(Some(place));
        Ok(Scratch { level: place, _this_thread: PhantomData })
    }

    /// Until it is dropped, no level is the innermost: a log, which may do what it likes, takes no scope
    /// of this slot meanwhile, and a guard that it drops is marked.
    fn busy(&self) -> Busy<'_> {
        let nobody = NonNull::from(&NOWHERE.0.bottom);
        Busy { slot: self, innermost: self.innermost.replace(Some(nobody)) }
    }

    /// Ends the innermost scope, and those before it that only waited for that.
    fn end_innermost(&self) {
        while let Some(place) = self.innermost.get() {
            // No reference to the level lasts until its bytes are taken back.
            // SAFETY: the innermost level, which is live.
            let level = unsafe { place.as_ref() };
            let (top, now) = (level.arena.top.get(), level.arena.limit.get());
            let (limit, start, outer, log) = (level.limit, level.start, level.outer, level.log);
            level.arena.auto_align_cell().set(level.align);
            self.innermost.set(outer.filter(|outer| outer != &NonNull::from(&self.bottom)));
            let outer = self.innermost();
            let busy = self.busy();
            // With the level itself.
            outer.arena.top.set(start);
            outer.arena.end_scope(limit, top, now);
            outer.arena.body().trace.set_log(log);
            drop(busy);
            if !outer.ended.get() {
                return;
            }
        }
        self.bottom.settle();
    }
}

/// See [`Slot::busy`].
struct Busy<'s> {
    slot: &'s Slot,
    innermost: Option<NonNull<Level>>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.slot.innermost.set(self.innermost);
    }
}

impl Level {
    /// Ends the bottom scope: its arena is empty afterwards, and open.
    fn settle(&self) {
        self.arena.align_as_built();
        self.arena.rewind(self.start);
        self.arena.body().trace.set_log(NO_LOG);
        let limit = self.arena.limit.get();
        let body = self.arena.body();
        let traced = cfg!(feature = "arena-trace");
        let calm = !traced && limit - self.start.addr() <= body.easy;
        if calm {
            // All of it counts as used from now on, so that no scope has to say how far it came.
            body.current().soil(limit);
        }
        self.calm.set(if calm { limit } else { NEVER });
        self.ended.set(false);
        self.taken.set(false);
    }

    #[cold]
    #[inline(never)]
    fn end_slow(&self) {
        // SAFETY: the slot is live as long as one of its levels is taken.
        let slot = unsafe { &*self.slot };
        if !ptr::eq(slot.innermost(), self) {
            self.ended.set(true);
        } else if slot.innermost.get().is_none() {
            self.settle();
        } else {
            slot.end_innermost();
        }
    }
}

impl Drop for Scratch {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the guard's level, and with it the slot, is live until it is ended, which only
        // happens here.
        let level = unsafe { self.level.as_ref() };
        // It is the bottom, no scope of it is open, and its block is the same.
        if level.arena.limit.get() == level.calm.get() {
            level.arena.top.set(level.start);
            level.taken.set(false);
        } else {
            cold_path();
            level.end_slow();
        }
    }
}

impl Scratch {
    /// Takes back everything that was pushed into the scope, and goes on.
    ///
    /// Nothing happens while a scratch that was taken later is open on the same arena.
    pub fn clear(&mut self) {
        // SAFETY: the guard's level is live.
        let level = unsafe { self.level.as_ref() };
        // SAFETY: the slot is live as long as one of its levels is taken.
        let slot = unsafe { &*level.slot };
        if !ptr::eq(slot.innermost(), level) {
            return;
        }
        let first = match level.outer {
            Some(_) => self.level.as_ptr().wrapping_add(1).cast::<u8>(),
            None => level.start,
        };
        level.arena.rewind(first);
    }
}

impl Deref for Scratch {
    type Target = Arena<'static>;
    #[inline]
    fn deref(&self) -> &Arena<'static> {
        // SAFETY: the guard's level is live.
        unsafe { &self.level.as_ref().arena }
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

/// How many idle arenas the process keeps.
const MOST_IDLE: usize = 16;
/// What is left of the idle ones, which are empty. Without a lock: a fork may come while another
/// thread would hold it.
static IDLE: [AtomicPtr<Body>; MOST_IDLE] = [const { AtomicPtr::new(ptr::null_mut()) }; MOST_IDLE];

/// A scratch arena of the process, which may go to another thread: see [`scratch_global`].
#[derive(Debug)]
pub struct GlobalScratch(ManuallyDrop<Arena<'static>>);

/// Memory for temporaries that do not stay on one thread: an arena that no other scratch has, from
/// a list that all threads share.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn scratch_global() -> Result<GlobalScratch> {
    for place in &IDLE {
        if place.load(Ordering::Relaxed).is_null() {
            continue;
        }
        if let Some(body) = NonNull::new(place.swap(ptr::null_mut(), Ordering::Acquire)) {
            // An empty arena's, which nobody else has taken out.
            return Ok(GlobalScratch(ManuallyDrop::new(Arena::over_body(body))));
        }
    }
    let settings = ArenaBuilder::new().growth(Growth::ReservedThenChained).decommit_above(KEEP);
    let arena = settings.name("global scratch").build()?;
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
        self.0.clear();
        self.0.align_as_built();
        self.0.body().trace.set_log(NO_LOG);
        let (none, body) = (ptr::null_mut(), self.0.body.as_ptr());
        let put = |place: &AtomicPtr<_>| {
            place.compare_exchange(none, body, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        if !IDLE.iter().any(put) {
            // SAFETY: once, when the guard goes; nobody else has the body.
            unsafe { ManuallyDrop::drop(&mut self.0) };
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
    fn an_alignment_ends_with_its_scratch() {
        let built = Arena::new().auto_align();
        let changed = |scratch: &Scratch| scratch.set_auto_align(64).unwrap();
        for _ in 0..3 {
            let first = scratch(&[]);
            assert_eq!(first.auto_align(), built);
            drop(first);
            let first = scratch(&[]);
            changed(&first);
            let second = scratch(&[]);
            assert!(second.shares_memory_with(&first));
            assert_eq!(second.auto_align(), built, "behind one that changed it");
            second.set_auto_align(1).unwrap();
            drop(second);
            assert_eq!(first.auto_align(), 64, "before one that changed it");
        }
        assert_eq!(scratch(&[]).auto_align(), built);
        let global = scratch_global().unwrap();
        global.set_auto_align(64).unwrap();
        drop(global);
        let all: Vec<_> = (0..20).map(|_| scratch_global().unwrap()).collect();
        assert!(all.iter().all(|scratch| scratch.auto_align() == built));
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

    #[test]
    fn many_that_ended_early_end_at_once() {
        // On a thread with little stack.
        let work = || {
            let before = scratch(&[]).pos();
            let mut guards: Vec<_> = (0..20_000).map(|_| scratch(&[])).collect();
            let last = guards.pop().unwrap();
            drop(guards);
            assert!(last.pos() > 19_000 * size_of::<Level>());
            drop(last);
            assert_eq!(scratch(&[]).pos(), before);
        };
        std::thread::Builder::new().stack_size(64 << 10).spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn a_grown_scratch_is_zero_where_it_should_be() {
        std::thread::spawn(|| {
            for round in 1..200usize {
                let temp = scratch(&[]);
                let len = round * 7919 % (3 * MIB);
                let bytes = temp.push(len);
                assert!(bytes.iter().all(|&byte| byte == 0), "{round}");
                bytes.fill(0xFF);
                if round % 5 == 0 {
                    // Left open: its bytes were used, too.
                    let inner = ManuallyDrop::new(temp.temp());
                    inner.push(len).fill(0xFF);
                }
                if round % 7 == 0 {
                    let behind = scratch(&[]);
                    behind.push(len).fill(0xFF);
                    drop(temp);
                    behind.push(len).fill(0xFF);
                }
            }
            assert_eq!(slots(), 2);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_ends_has_none() {
        struct AtTheEnd(Cell<Option<Scratch>>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                // The slots may be gone, but what a guard has stays.
                let kept = self.0.take().unwrap();
                assert_eq!(*kept.push_value(5), 5);
                drop(kept);
                if let Ok(temp) = try_scratch(&[]) {
                    temp.push(MIB).fill(1);
                }
            }
        }
        thread_local!(static EARLY: AtTheEnd = const { AtTheEnd(Cell::new(None)) });
        thread_local!(static LATE: AtTheEnd = const { AtTheEnd(Cell::new(None)) });
        std::thread::spawn(|| {
            EARLY.with(|early| early.0.set(Some(scratch(&[]))));
            LATE.with(|late| late.0.set(Some(scratch(&[]))));
            drop(scratch(&[]));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn threads_share_the_global_ones() {
        std::thread::scope(|threads| {
            for thread in 0..4u8 {
                threads.spawn(move || {
                    for _ in 0..2000 {
                        let (a, b) = (scratch_global().unwrap(), scratch_global().unwrap());
                        let (x, y) = (a.push(100), b.push(100));
                        x.fill(thread);
                        y.fill(!thread);
                        assert!(x.iter().all(|&byte| byte == thread));
                        assert!(y.iter().all(|&byte| byte == !thread));
                    }
                });
            }
        });
    }
}
