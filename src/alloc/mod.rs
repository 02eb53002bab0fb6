//! The allocators that users name, and the one trait they stand behind.

#[cfg(any(feature = "allocator-api2-02", feature = "allocator-api2-04"))]
mod adapter;
mod buddy;
mod ctx;
#[cfg(all(test, not(loom)))]
mod damaged;
mod exclusive;
mod leaks;
mod malloc;
mod map;
mod objects;
mod scalable;
mod stack;
mod thread_local;
mod traits;

#[cfg(any(feature = "allocator-api2-02", feature = "allocator-api2-04"))]
pub(crate) use adapter::zero_gained;

pub use crate::heap::Fragmentation;
pub use crate::heap::Heap;
pub use crate::heap::buddy::Accounting;
pub use buddy::BuddyAllocator;
pub use ctx::CtxAllocator;
pub use exclusive::Exclusive;
pub use leaks::{LeakCheck, LeakClass, LeakReport, LeakSource};
pub use malloc::MallocAllocator;
pub(crate) use malloc::hold_still_across_forks;
pub use map::HeapMap;
pub use scalable::ScalablePageAllocator;
pub use stack::StackAllocator;
pub use thread_local::{DEFAULT_PROCESSES, DEFAULT_THREAD_BLOCKS, Owner, ThreadLocalAllocator};
pub use traits::{Allocator, BlockInfo};

use crate::base::{Error, Result};
use crate::heap::layout::IN_BAND_ENGINE;
use crate::region::Region;

/// Lays an in-band allocator out in a region that has no engine yet, from offset `start` on.
///
/// Two engines over the same bytes would hand blocks out twice, whatever the ranges that they were
/// told; so a region has one, and a second is [`Error::AlreadyExists`].
fn in_band<A>(region: &Region, start: u64, make: impl FnOnce() -> Result<A>) -> Result<A> {
    let payload = region.payload_offset() as u64;
    if start < payload {
        return Err(Error::OffsetOutOfRange { offset: start, length: region.len() as u64 });
    }
    region.claim_engine()?;
    let made = make();
    match made {
        Ok(_) => region.finish_engine(IN_BAND_ENGINE, start),
        Err(_) => region.abandon_engine(),
    }
    made
}
