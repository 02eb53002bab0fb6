//! Pure arithmetic and the vocabulary of the crate: errors, units, alignment, size classes, bitmaps.
//!
//! Nothing here knows an operating system, a pointer or an atomic; the folder forbids `unsafe`.
#![forbid(unsafe_code)]

pub(crate) mod align;
pub(crate) mod bits;
pub(crate) mod classes;
pub(crate) mod error;
pub(crate) mod ids;
pub(crate) mod units;

pub use align::{align_down, align_up, is_aligned};
pub use error::{Error, ErrorCode, Result};
pub use ids::{AllocatorId, MemContext, ThreadId};
pub use units::{GIB, KIB, MIB, Unit};
