//! Programs that lock their memory.

use core::ops::Range;

use super::registry::{self, RECORDS_MAX};
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
    let mut regions = [const { 0..0 }; RECORDS_MAX];
    let mut count = 0;
    for (place, region) in regions.iter_mut().zip(registry::all()) {
        *place = region.base..region.base + region.len;
        count += 1;
    }
    let regions: &[Range<usize>] = &regions[..count];
    os::lock_all(future, regions)
}
