//! Blocks of one size: eight are allocated and freed, last first. The best case of every cache, and
//! for sizes above what a cache takes, the price of the way to the pages. Only the ends of a block
//! are written.
//!
//! One operation is one block allocated and freed.

use super::block::Block;
use super::common::{LANES, Outcome, Params, on_lanes, timed};

const DEPTH: u64 = 8;

pub(crate) fn run(params: &Params, bytes: usize) -> Result<Outcome, String> {
    // Large blocks are dear with some allocators; nobody should wait for minutes.
    let pairs = match bytes.next_power_of_two().ilog2() {
        ..=12 => 24_000_000,
        13..=15 => 4_000_000,
        16..=18 => 2_000_000,
        _ => 1_000_000,
    };
    let each = params.count(pairs).div_ceil(LANES * DEPTH);
    Ok(timed(each * LANES * DEPTH, || {
        on_lanes(params.threads, |lane| {
            let mut sum = lane;
            for _ in 0..each {
                let blocks: [Block; DEPTH as usize] =
                    std::array::from_fn(|i| Block::new(bytes, sum ^ i as u64));
                for block in blocks.into_iter().rev() {
                    sum = sum.wrapping_mul(3).wrapping_add(block.free());
                }
            }
            sum
        })
    }))
}
