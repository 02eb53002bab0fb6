//! What a fork does to the heap: the child gets a copy of its own.
//!
//! ```text
//! prepare   make the heap stand still, take every lock; copy the used parts of each shared region
//! parent    forget the copies, leave the locks
//! child     map the copies where the originals were, leave the locks
//! ```
//!
//! A child for which no copy could be made ends at once, with a message: no descriptor or memory was
//! left, or the program had closed the heap's descriptor.
//!
//! The hooks run for `fork` only; `posix_spawn` and `vfork` never need them. A private heap needs
//! nothing but the locks: the kernel's copy-on-write does the rest.
//!
//! In a program with several threads the others run on while the copy is made, but none of them is
//! inside the engine: the heap's own structures are whole in the copy. What they write into their
//! data meanwhile may or may not be in it, as with any data that is being written while a fork
//! happens. What other threads' caches held is lost to the child, and so are their heaps: their
//! slabs stay as they are.
//!
//! Fork hooks that were registered before the program's first allocation run while the heap stands
//! still, and must not allocate or free.
#![allow(unsafe_code)] // runs in the hooks of a fork

use core::cell::UnsafeCell;

use super::cache::MAX_REGIONS;
use super::heap::HEAP;
use crate::os;

/// The copies of the regions, between `prepare` and the end of the fork.
struct Copies(UnsafeCell<[Option<os::Fd>; MAX_REGIONS]>);

// SAFETY: used under the heap's lock only.
unsafe impl Sync for Copies {}

static COPIES: Copies = Copies(UnsafeCell::new([const { None }; MAX_REGIONS]));

/// Registers the hooks, once.
pub(super) fn register() {
    // Without hooks a forked child would share the parent's heap; there is nothing else to try.
    if os::at_fork(prepare, parent, child).is_err() {
        os::write_stderr(b"hshm: cannot register fork hooks; do not fork\n");
    }
}

unsafe extern "C" fn prepare() {
    HEAP.stand_still();
    for part in HEAP.parts() {
        part.shared_lock.lock_raw();
        part.heap.fork_prepare(part.process);
    }
    for (index, part) in HEAP.parts().enumerate() {
        let copy = if part.heap.region().is_shared() {
            part.heap.region().copy_segment().ok()
        } else {
            None
        };
        // SAFETY: the heap's lock is held.
        unsafe { (*COPIES.0.get())[index] = copy };
    }
}

unsafe extern "C" fn parent() {
    for index in 0..HEAP.count() {
        // SAFETY: the heap's lock is held since `prepare`.
        drop(unsafe { (*COPIES.0.get())[index].take() });
    }
    for part in HEAP.parts() {
        part.heap.fork_parent(part.process);
        part.shared_lock.unlock_raw();
    }
    HEAP.go_on();
}

unsafe extern "C" fn child() {
    let pid = os::process_id();
    // Nobody else sees private memory, so nobody asks.
    let is_shared = HEAP.parts().any(|part| part.heap.region().is_shared());
    let started = if is_shared { os::process_start_time(pid).unwrap_or(0) } else { 0 };
    for (index, part) in HEAP.parts().enumerate() {
        // SAFETY: the heap's lock is held since `prepare`.
        let copy = unsafe { (*COPIES.0.get())[index].take() };
        if part.heap.region().is_shared() {
            // SAFETY: a forked child has one thread, and it is here.
            unsafe { part.heap.region().become_copy(copy) };
        }
        part.heap.fork_child(part.process, pid, started);
        part.shared_lock.unlock_raw();
    }
    HEAP.go_on();
}
