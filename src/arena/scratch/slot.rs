//! A thread's arena for scratch, and the scopes that are open on it.
#![allow(unsafe_code)] // keeps levels in the memory of their own arenas

use core::cell::Cell;
use core::hint::cold_path;
use core::mem::{self, ManuallyDrop};
use core::ptr::{self, NonNull};

use crate::arena::Arena;
use crate::arena::trace::{Log, NO_LOG};
use crate::base::Result;

/// No arena's limit.
pub(in crate::arena) const NEVER: usize = usize::MAX;

/// What a guard has: a scope of a slot.
#[repr(C)]
pub(super) struct Level {
    /// Dropped with the slot, if it is the bottom one's, and otherwise not at all.
    pub(super) arena: ManuallyDrop<Arena<'static>>,
    /// Whether somebody has this level; behind the arena's top.
    pub(super) taken: Cell<Taken>,
    /// Where the scope begins; behind the bottom one, the top of the arena that it is a scope of. And that
    /// nobody has it: what a top and `taken` are in the end.
    idle: Idle,
    /// The arena's limit with which ending the scope is only setting its top.
    pub(super) calm: Cell<usize>,
    /// Its guard is gone; it ends with the scope behind it.
    ended: Cell<bool>,
    slot: *const Slot,
    /// The level whose arena this one is a scope of.
    outer: Option<NonNull<Level>>,
    /// The alignment of untyped pushes, and the log, that the outer one had.
    align: usize,
    log: Log,
}

/// Where a level's top is, and `taken` behind it.
const TOP: usize = mem::offset_of!(Level, arena) + mem::offset_of!(Arena<'static>, top);
const _: () = assert!(mem::offset_of!(Level, taken) == TOP + mem::offset_of!(Idle, taken));

/// A word, like the top before it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Taken {
    No,
    Yes,
}

/// An idle level's top and `taken`, which lie side by side: one store sets both.
#[derive(Clone, Copy)]
#[repr(C)]
struct Idle {
    start: *mut u8,
    taken: Taken,
}

/// One arena of a thread, and the scopes that are open on it. What a scratch touches is in the first
/// cache line: across two of them it would take a third longer.
#[repr(C, align(64))]
pub(super) struct Slot {
    pub(super) bottom: Level,
    /// The innermost level, except the bottom.
    innermost: Cell<Option<NonNull<Level>>>,
}

/// Stands for a slot that is not there. It looks taken, so that nobody takes it.
pub(super) static NOWHERE: Nowhere = Nowhere(Slot {
    bottom: Level {
        arena: ManuallyDrop::new(Arena::nowhere()),
        calm: Cell::new(NEVER),
        idle: Idle { start: ptr::null_mut(), taken: Taken::No },
        taken: Cell::new(Taken::Yes),
        ended: Cell::new(false),
        slot: ptr::null(),
        outer: None,
        align: 1,
        log: NO_LOG,
    },
    innermost: Cell::new(None),
});

pub(super) struct Nowhere(pub(super) Slot);

// SAFETY: nothing is ever written there: a slot is changed by who has taken it.
unsafe impl Sync for Nowhere {}

impl Slot {
    /// A slot that is to be at `place`.
    pub(super) fn new(arena: Arena<'static>, place: *const Slot) -> Slot {
        let bottom = Level {
            calm: Cell::new(NEVER),
            idle: Idle { start: arena.top(), taken: Taken::No },
            arena: ManuallyDrop::new(arena),
            taken: Cell::new(Taken::No),
            ended: Cell::new(false),
            slot: place,
            outer: None,
            align: 1,
            log: NO_LOG,
        };
        Slot { bottom, innermost: Cell::new(None) }
    }

    #[inline(always)]
    fn conflicts(&self, conflicts: &[&Arena<'_>]) -> bool {
        conflicts.iter().any(|arena| arena.shares_memory_with(&self.bottom.arena))
    }

    /// Whether nobody has this slot. Then nobody has an arena over its memory, either, that he could name
    /// as a conflict: those are borrowed from guards.
    #[inline(always)]
    pub(super) fn is_idle(&self) -> bool {
        self.bottom.taken.get() == Taken::No
    }

    /// Whether a scope of this slot, which somebody has (or which is not there), can be opened.
    pub(super) fn is_fit(&self, conflicts: &[&Arena<'_>]) -> bool {
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
    pub(super) fn take_bottom(&self) -> NonNull<Level> {
        self.bottom.taken.set(Taken::Yes);
        NonNull::from(&self.bottom)
    }

    /// A scope of the innermost one.
    pub(super) fn take_behind(&self) -> Result<NonNull<Level>> {
        let outer = self.innermost();
        // Before the level is there: it may be the first of another block.
        let start = outer.arena.top();
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
            idle: Idle { start, taken: Taken::No },
            arena: ManuallyDrop::new(arena),
            taken: Cell::new(Taken::Yes),
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
        Ok(place)
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
            let (start, outer, log) = (level.idle.start, level.outer, level.log);
            level.arena.auto_align_cell().set(level.align);
            self.innermost.set(outer.filter(|outer| outer != &NonNull::from(&self.bottom)));
            let outer = self.innermost();
            let busy = self.busy();
            // With the level itself.
            outer.arena.top.set(start);
            outer.arena.end_scope(top, now);
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
        self.arena.rewind(self.idle.start);
        self.arena.body().trace.set_log(NO_LOG);
        let limit = self.arena.limit.get();
        let body = self.arena.body();
        let traced = cfg!(feature = "arena-trace");
        let calm = !traced && self.arena.is_near(self.idle.start, limit);
        if calm {
            // All of it counts as used from now on, so that no scope has to say how far it came.
            body.current().soil(limit);
        }
        self.calm.set(if calm { limit } else { NEVER });
        self.ended.set(false);
        self.taken.set(Taken::No);
    }

    /// Ends the scope, whose guard goes.
    #[inline(always)]
    pub(super) fn end(&self) {
        // It is the bottom, no scope of it is open, and its block is the same.
        if self.arena.limit.get() == self.calm.get() {
            // SAFETY: top and `taken` are cells, which are only reached by the slot's thread, and lie side by
            // side as in an `Idle`.
            unsafe {
                let level = NonNull::from(self).cast::<u8>();
                level.byte_add(TOP).cast::<Idle>().write(self.idle);
            }
        } else {
            cold_path();
            self.end_slow();
        }
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

    /// Takes back everything that was pushed into the scope, unless another one is open behind it.
    pub(super) fn clear(&self) {
        // SAFETY: the slot is live as long as one of its levels is taken.
        let slot = unsafe { &*self.slot };
        if !ptr::eq(slot.innermost(), self) {
            return;
        }
        let first = match self.outer {
            Some(_) => ptr::from_ref(self).wrapping_add(1).cast::<u8>().addr(),
            None => self.idle.start.addr(),
        };
        self.arena.rewind(self.arena.top().with_addr(first));
    }
}
