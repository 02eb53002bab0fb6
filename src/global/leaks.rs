//! What the heap has handed out: the sum, and leak reports.
//!
//! Counted from the tables while the heap stands still, for one moment's truth. Blocks in caches are in
//! use as far as the tables know. The calling thread's cache is emptied first; other threads' change
//! at any instruction, without anybody being told, so what they keep stays counted.

use super::HshmAlloc;
use super::flush;
use super::heap::HEAP;
use crate::alloc::{LeakReport, LeakSource};
use crate::base::{AllocatorId, Error, Result};

/// Runs `count` while nobody changes the heap's tables; it must not allocate, and gets no say in whether
/// the heap goes on. [`Error::Forked`] in a forked child that has no heap.
fn while_still<R>(count: impl FnOnce() -> R) -> Result<R> {
    /// Goes on when dropped.
    struct Still;
    impl Drop for Still {
        fn drop(&mut self) {
            HEAP.go_on();
        }
    }
    if HEAP.is_refused() {
        return Err(Error::Forked);
    }
    flush::flush_own();
    HEAP.stand_still();
    let _still = Still;
    Ok(count())
}

/// Bytes in blocks that are handed out; none where there is no heap.
pub(super) fn bytes_allocated() -> usize {
    let sum =
        || HEAP.parts().fold(0, |sum: usize, part| sum.saturating_add(part.heap.bytes_allocated()));
    while_still(sum).unwrap_or(0)
}

/// See [`HshmAlloc::currently_allocated_size`] for what counts, and when. The report has the id of
/// the heap's first region.
///
/// # Errors
/// [`Error::Forked`] in a forked child that was [refused](crate::ForkPolicy::Refuse) the heap.
impl LeakSource for HshmAlloc {
    fn leak_report(&self, own_only: bool) -> Result<LeakReport> {
        while_still(|| {
            let id = HEAP.parts().next().map_or(AllocatorId::NULL, |part| part.heap.region().id());
            let mut report = LeakReport::empty(id);
            for part in HEAP.parts() {
                part.heap.visit_blocks(part.process, &mut |_, size, own| {
                    if own || !own_only {
                        report.add(size);
                    }
                });
            }
            report
        })
    }
}
