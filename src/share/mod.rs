//! Meeting in a heap: making or opening one by name, passing one over a socket, and finding one
//! another's objects in it.
//!
//! ```text
//! open    SharedHeap: create, open, open_or_create a heap with a name
//! pass    a region's descriptor over a Unix socket
//! roots   the directory of named objects
//! ```
//!
//! # What is promised, and the tests that show it
//!
//! | promise | tests |
//! |---|---|
//! | a process may be killed at any instruction: the others never wait for it for ever, and find no damage | `crash::steps`, `crash::load` |
//! | who is dead is told right: zombies, reused pids, other pid namespaces, children that hold everything open | `crash::detect` |
//! | what a dead process owned comes back, all but the one block that it was handing over | `crash::steps`, `crash::load` |
//! | running out (file system, address space, length of files, private memory, mappings) is an error, and over when something is freed; never a signal | `running_out`, `limits` |
//! | a region of any bytes attaches with Ok or Err; no later call panics, hangs or leads outside it | `hostile`, `fuzz/` |
//! | a peer cannot shrink a sealed segment under one's feet | `attach::a_sealed_segment_cannot_be_shrunk` |
//! | frees by offset or handle: random, interior, double, foreign, stale ones are refused and counted | `hostile::frees` |
//! | nobody else gets in: mode 0600, owner, links and symbolic links looked at | `backends::files_that_are_not_to_be_trusted`, `backends::no_permission` |
//! | read-only attachments cannot write | `attach::a_store_through_a_read_only_attachment_faults`, `hostile::frees` |
//! | nothing is left in `/dev/shm` or `/tmp` by a kill | `crash::detect::no_debris` |
//! | a fork never damages the parent; a child that inherits a handle is told | `fork`, `thread_local_processes` |
//! | names appear and go in one step; a root found before its name went is known to be stale | `roots`, `crash::steps` |
//! | nobody finds half of a heap that is being made, however slow its maker is | `roots::nobody_finds_half_a_heap` |
//! | a half-made heap is waited for, for a bounded time | `roots::a_half_made_heap_is_waited_for_and_given_up` |
//! | attaching touches as little of a heap of any size (and takes less than 1 ms) | `roots::attaching_is_quick` |
//!
//! There is no helper process, no thread, and no signal handler.
//!
//! # What is not: a hostile peer with write access
//!
//! Whoever may write to a region may write to all of it, at any time. What it then can do:
//!
//! - **read** everything that is or was in the heap, and **change** it: other processes' values, the
//!   pointers in them, names and types of roots. What a reference of this process shows is that peer's
//!   word; a type that has invalid bits must not be read from a heap with such a peer.
//! - **break the heap**: hand the same block out to two, lose memory, have frees refused, make others
//!   take a living process for a dead one. Nothing of this leads outside the region.
//! - **hold a lock**: a lock is waited for as long as its holder lives. Whoever attaches gives up after
//!   two seconds ([`Error::Busy`](crate::Error::Busy)); whoever had attached before waits.
//! - **fill** the region, or the file system behind it; others then have errors.
//!
//! What it cannot do: make an allocation, a free, a search or a walk of this crate panic, run for ever
//! but for a held lock, or touch memory outside the region's mapping. Peers that must not be able to
//! do these things get the region read-only, and do not get the descriptor.

mod open;
mod pass;
mod roots;

pub use open::SharedHeap;
pub(crate) use open::{Meeting, PATIENCE};
pub use pass::{receive_region, send_region};
pub use roots::{Root, RootInfo, Roots};
