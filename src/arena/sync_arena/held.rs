//! The locks of all [`SyncArena`](super::SyncArena)s, which a fork holds.
//!
//! They lie on the heap, in a list, which has a lock of its own. `prepare` takes that one and then the
//! others. Nobody waits for the list's lock with another one held, and whoever holds an arena's lock
//! waits for nothing but the arena's allocator: whose hooks, if they hold locks, have to run after
//! these, and so to be registered before. The C library's own locks come last in any case.
#![allow(unsafe_code)] // a list of what is on the heap

use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;
use std::alloc::Layout;

use crate::alloc::hold_still_across_forks;
use crate::arena::block::out_of_memory;
use crate::base::Result;
use crate::os;
use crate::sync::lock::RawLock;

struct Node {
    lock: RawLock,
    /// Under the list's lock.
    next: Cell<Option<NonNull<Node>>>,
    prev: Cell<Option<NonNull<Node>>>,
}

struct List {
    lock: RawLock,
    state: UnsafeCell<State>,
}

struct State {
    first: Option<NonNull<Node>>,
    hooked: bool,
}

// SAFETY: the state, and the links of the nodes, are used under the lock only.
unsafe impl Sync for List {}

static LIST: List =
    List { lock: RawLock::new(), state: UnsafeCell::new(State { first: None, hooked: false }) };

/// A lock that is free in a forked child, and what it guards whole.
pub(super) struct Lock(NonNull<Node>);

// SAFETY: what is used of a node by others is its lock, and the links under the list's.
unsafe impl Send for Lock {}
// SAFETY: as above.
unsafe impl Sync for Lock {}

impl Lock {
    pub(super) fn new() -> Result<Lock> {
        let layout = Layout::new::<Node>();
        // SAFETY: a node has a size.
        let place = NonNull::new(unsafe { std::alloc::alloc(layout) }.cast::<Node>());
        let place = place.ok_or(out_of_memory(layout.size(), 0))?;
        let node = Node { lock: RawLock::new(), next: Cell::new(None), prev: Cell::new(None) };
        // SAFETY: fresh memory for a node.
        unsafe { place.write(node) };
        // These have to run after ours, and an arena may come to be over such an allocator.
        hold_still_across_forks();
        LIST.with(|state| {
            if !state.hooked {
                state.hooked = true;
                // Without hooks a lock that is held at a fork stays so in the child.
                let _ = os::at_fork(take_all, leave_all, leave_all);
            }
            // SAFETY: nodes in the list are live, and this one is about to be.
            unsafe {
                place.as_ref().next.set(state.first);
                if let Some(first) = state.first {
                    first.as_ref().prev.set(Some(place));
                }
            }
            state.first = Some(place);
        });
        Ok(Lock(place))
    }

    #[inline]
    pub(super) fn get(&self) -> &RawLock {
        // SAFETY: live as long as this.
        unsafe { &self.0.as_ref().lock }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        LIST.with(|state| {
            // SAFETY: this node and its neighbours are in the list, and so live.
            unsafe {
                let (prev, next) = (self.0.as_ref().prev.get(), self.0.as_ref().next.get());
                match prev {
                    Some(prev) => prev.as_ref().next.set(next),
                    None => state.first = next,
                }
                if let Some(next) = next {
                    next.as_ref().prev.set(prev);
                }
            }
        });
        // SAFETY: allocated with this layout; it is in no list any more, so that nobody else has it.
        unsafe { std::alloc::dealloc(self.0.as_ptr().cast(), Layout::new::<Node>()) };
    }
}

impl List {
    fn with(&self, work: impl FnOnce(&mut State)) {
        let _guard = self.lock.lock();
        // SAFETY: under the lock; the reference does not leave, and `work` comes here no second time.
        work(unsafe { &mut *self.state.get() });
    }

    /// All nodes.
    ///
    /// # Safety
    /// The list's lock is held, as long as the iterator is used.
    unsafe fn nodes(&self) -> impl Iterator<Item = &RawLock> {
        // SAFETY: the caller's contract.
        let first = unsafe { (*self.state.get()).first };
        // SAFETY: nodes in the list are live.
        let follow = |node: &NonNull<Node>| unsafe { node.as_ref() }.next.get();
        // SAFETY: as above.
        core::iter::successors(first, follow).map(|node| unsafe { &(*node.as_ptr()).lock })
    }
}

extern "C" fn take_all() {
    LIST.lock.lock_raw();
    // SAFETY: locked.
    unsafe { LIST.nodes() }.for_each(RawLock::lock_raw);
}

extern "C" fn leave_all() {
    // SAFETY: locked since `take_all`, by this thread or the one that it is a copy of.
    unsafe { LIST.nodes() }.for_each(RawLock::unlock_raw);
    LIST.lock.unlock_raw();
}
