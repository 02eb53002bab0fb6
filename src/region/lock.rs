//! Programs that lock their memory.

use core::ops::Range;

use super::place::{FIRST, LAST, SLOT};
use super::registry;
use crate::base::Result;
use crate::os;

/// Keeps all memory of this process in memory, as `mlockall(MCL_CURRENT)` does, and with `future` what it maps
/// later, too (`MCL_FUTURE`): for programs that must not wait for a page.
///
/// The system's own call fills all addresses that it locks. A heap reserves many more than it uses, 64 GiB by
/// default, so that it would take all memory there is, and the process with it. Here regions, those
/// that come later included, are locked page by page, when a page is first touched; everything else as
/// the system does it. What has been freed and given back to the system comes back as such a first touch:
/// [`HshmAllocBuilder::retain`](crate::HshmAllocBuilder::retain) says how much is kept.
///
/// A forked child has no locks, as ever. `munlockall` ends them.
///
/// # Errors
/// The system's: [`PermissionDenied`](crate::Error::PermissionDenied) without the right to lock memory,
/// [`OutOfMemory`](crate::Error::OutOfMemory) where the limit `RLIMIT_MEMLOCK` is less than all addresses of the
/// process together (it counts empty ones; the heap's [capacity](crate::HshmAllocBuilder::capacity) can be
/// less).
pub fn lock_memory(future: bool) -> Result<()> {
    lock_memory_or_errno(future).map_err(|errno| os::error_for(errno, 0))
}

/// The same, for those who want to know the `errno`.
pub(crate) fn lock_memory_or_errno(future: bool) -> core::result::Result<(), i32> {
    os::lock_all(future, |range| {
        // Where one is being made, or goes, that nobody knows of.
        if range.start.is_multiple_of(SLOT) && (FIRST..LAST).contains(&range.start) {
            return None;
        }
        next_outside(range, registry::all().map(|region| region.base..region.base + region.len))
    })
}

/// The first piece of `range` that is in none of `holes`.
fn next_outside(
    range: Range<usize>,
    holes: impl Iterator<Item = Range<usize>> + Clone,
) -> Option<Range<usize>> {
    let mut start = range.start;
    // They may lie in each other.
    while let Some(hole) = holes.clone().find(|hole| hole.contains(&start)) {
        start = hole.end;
    }
    let starts = holes.map(|hole| hole.start).filter(|&at| at > start);
    let end = starts.fold(range.end, usize::min);
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_outside_of_holes() {
        let holes = [10..20, 15..18, 30..40, 40..50];
        let pieces = |range: Range<usize>| {
            let (mut start, mut found) = (range.start, Vec::new());
            while let Some(piece) = next_outside(start..range.end, holes.iter().cloned()) {
                start = piece.end;
                found.push((piece.start, piece.end));
            }
            found
        };
        assert_eq!(pieces(0..60), [(0, 10), (20, 30), (50, 60)]);
        assert_eq!(pieces(12..16), []);
        assert_eq!(pieces(12..20), []);
        assert_eq!(pieces(20..21), [(20, 21)]);
        assert_eq!(pieces(16..35), [(20, 30)]);
    }
}
