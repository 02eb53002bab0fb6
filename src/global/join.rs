//! A heap that several programs have: the region of a name, made or joined by the first allocation.
//!
//! ```text
//! open the name, or make it      `share::Meeting`: whoever is first makes it, the others wait
//! claim a process slot           watched by the kernel: `heap::liveness`
//! is the name still the region's? otherwise it was given up meanwhile, and all begins anew
//! reap                           what members that died left
//! ```
//!
//! A program leaves by ending, in whatever way; the others find out and take back what it had. There
//! is nothing that it could give back itself: until the kernel has stopped its threads, they use what
//! they have. Only the name is looked after: a program that ends as it should, and is the last one,
//! removes it, unless something was published there, or somebody made it to stay.
//!
//! The one who is about to remove the name and one who is just joining cannot miss each other. The
//! first looks whether anybody has a slot, and removes the name; the second takes a slot, and looks
//! whether there is a name. Both do it under the region's reaper's lock.

use super::heap::HEAP;
use crate::base::{Error, Result};
use crate::heap::layout::{MAX_PROCESSES, MAX_THREAD_BLOCKS, ProcessSlot, RegionHeap, TableSizes};
use crate::heap::liveness::Joining;
use crate::os;
use crate::region::{Backend, PosixShmMmap, RegionOptions};
use crate::share::{Meeting, PATIENCE};
use crate::sync::atomic::Ordering::Relaxed;

/// The tables of a heap that is made here.
const SIZES: TableSizes = TableSizes {
    processes: MAX_PROCESSES,
    thread_blocks: MAX_THREAD_BLOCKS,
    keepers: true,
    temporary: true,
};

/// Makes or joins the heap `name`. A program that cannot ends: on its own it would not be what it was
/// started for, and what it hands to others would be found nowhere.
///
/// `capacity` is the length of the region in bytes, if it is made here, and `minimum` what it may
/// shrink to where the process has limits.
pub(super) fn join_or_end(
    name: &str,
    capacity: usize,
    minimum: usize,
    joining: Joining,
) -> (RegionHeap, ProcessSlot) {
    match join(name, capacity, minimum, Joining { watched: true, ..joining }) {
        Ok(joined) => joined,
        Err(error) => {
            for part in ["hshm: cannot join the heap '", name, "': ", reason(error), "\n"] {
                os::write_stderr(part.as_bytes());
            }
            os::end_process()
        }
    }
}

fn join(
    name: &str,
    capacity: usize,
    minimum: usize,
    joining: Joining,
) -> Result<(RegionHeap, ProcessSlot)> {
    let options = RegionOptions::new().capacity(capacity).shrink_to_fit(minimum);
    let open = || RegionHeap::attach(PosixShmMmap::attach(name, &options.same_address(true))?);
    let create =
        || PosixShmMmap::create_filled(name, &options, |region| RegionHeap::create(region, SIZES));
    loop {
        let meeting = Meeting { name, patience: PATIENCE };
        let mut heap = meeting.open_or_create(open, create)?;
        let process = heap.register(joining)?;
        let guard = heap.lock_reaper();
        let has_name = heap.region().file().is_none_or(|(_, names)| names > 0);
        drop(guard);
        if has_name {
            heap.reap(process);
            return Ok((heap, process));
        }
        heap.unregister(process);
    }
}

/// Removes the name of a heap that was joined, where this program is the last in it.
pub(super) fn leave_name() {
    if HEAP.count() == 0 || !HEAP.is_joined() || HEAP.is_refused() {
        return;
    }
    let config = HEAP.config();
    let part = HEAP.part(0);
    let (heap, region) = (&part.heap, part.heap.region());
    // A forked child's copy has no name, and what is published is there for those who come later.
    let Some((file, 1..)) = region.file() else { return };
    if !heap.is_temporary() || heap.source().roots.load(Relaxed) != 0 {
        return;
    }
    let _visit = HEAP.visit();
    let _guard = heap.lock_reaper();
    if heap.is_last(part.process) {
        // Whoever removed it meanwhile did what is wanted.
        let _ = PosixShmMmap::remove_name(config.region.as_str(), file);
    }
}

/// Why a heap cannot be joined. Nothing is formatted here.
fn reason(error: Error) -> &'static str {
    match error {
        Error::BadName => "that is no name for a heap",
        Error::Relocated => "its addresses are taken in this program",
        Error::PermissionDenied => {
            "it is another user's, or others may open it, or it has two names"
        }
        Error::NotARegion => "what has that name is no heap",
        Error::Corrupt | Error::Truncated { .. } => "it is damaged",
        Error::Incompatible { .. } => "it was made by another version, or holds something else",
        Error::Busy => "a process that lives holds a lock of it and does not leave it",
        Error::TableFull { .. } => "it has as many processes as it can",
        Error::OutOfMemory { .. } | Error::TooLarge { .. } => "there is no memory for it",
        Error::TooSmall { .. } => "the capacity is too small",
        Error::Unsupported => "this system has no shared memory with names",
        _ => "the system refuses",
    }
}
