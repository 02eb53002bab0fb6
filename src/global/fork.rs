//! What a fork does to the heap: the child gets a copy of its own, or none.
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
//! happens. Their heaps serve the child's own threads later. What their caches held (at most 1 MiB of
//! small blocks a thread, and 4 to 16 MiB of runs) is lost to the child: caches change at any
//! instruction, so that what the fork caught of one may still name a block that is in use.
//!
//! Fork hooks that were registered before the program's first allocation run while the heap stands
//! still, and must not allocate or free.
//!
//! # A heap that was joined
//!
//! A child cannot go on in it: what it inherited are its parent's objects, and dropping one, or
//! writing to it, would be done to the parent. A copy is safe for everybody, but it is a copy of all
//! processes' objects, in which nobody else is there: a child that waits in it for others waits for
//! ever. So such a child gets nothing, unless the program says that it wants the copy. It may look at
//! what it inherited, to `exec` or to end. What it stores there stays its own (a private mapping of the
//! same file, made in the child), and its first allocation ends it, with a message. A program that it
//! executes joins like any other.
#![allow(unsafe_code)] // runs in the hooks of a fork

use core::cell::UnsafeCell;

use super::cache::MAX_REGIONS;
use super::config::ForkPolicy;
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

/// Whether a child gets the heap at all.
fn is_refused() -> bool {
    let by_default = if HEAP.is_joined() { ForkPolicy::Refuse } else { ForkPolicy::Copy };
    let is_shared = HEAP.parts().any(|part| part.heap.region().is_shared());
    is_shared && HEAP.config().fork.unwrap_or(by_default) == ForkPolicy::Refuse
}

unsafe extern "C" fn prepare() {
    // The child of a child that was refused is as its parent.
    if HEAP.is_refused() || is_refused() {
        return;
    }
    HEAP.stand_still();
    for part in HEAP.parts() {
        part.shared_lock.lock_raw();
        part.heap.fork_prepare();
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
    if HEAP.is_refused() || is_refused() {
        return;
    }
    for index in 0..HEAP.count() {
        // SAFETY: the heap's lock is held since `prepare`.
        drop(unsafe { (*COPIES.0.get())[index].take() });
    }
    for part in HEAP.parts() {
        part.heap.fork_parent();
        part.shared_lock.unlock_raw();
    }
    HEAP.go_on();
}

unsafe extern "C" fn child() {
    if HEAP.is_refused() {
        return;
    }
    if is_refused() {
        return go_without();
    }
    for (index, part) in HEAP.parts().enumerate() {
        // SAFETY: the heap's lock is held since `prepare`.
        let copy = unsafe { (*COPIES.0.get())[index].take() };
        if part.heap.region().is_shared() {
            // SAFETY: a forked child has one thread, and it is here.
            unsafe { part.heap.region().become_copy(copy) };
        }
        part.heap.fork_child(part.process);
        part.shared_lock.unlock_raw();
    }
    HEAP.adopt_orphans();
    HEAP.go_on();
}

/// In a child that does not get the heap.
fn go_without() {
    for region in HEAP.parts().map(|part| part.heap.region()).filter(|region| region.is_shared()) {
        // SAFETY: a forked child has one thread, and it is here.
        if unsafe { region.leave_to_parent() }.is_err() {
            os::write_stderr(b"hshm: cannot keep a forked child from the heap, and end it\n");
            os::end_process();
        }
    }
    HEAP.refuse();
}
