//! A program that allocates next to nothing: what every process pays for having this allocator.
//! One operation is the process; its time is that from start to end as the harness sees it, and its
//! memory is the floor.

use super::common::{Outcome, Params, timed};

pub(crate) fn run(_: &Params) -> Result<Outcome, String> {
    Ok(timed(1, || *std::hint::black_box(Box::new(7))))
}
