//! Sizes as programs ask for them: surveys of real heaps find most requests small and a long tail,
//! much like a Pareto distribution; this one starts at 16 bytes, with exponent 1.1, cut at 1 KiB.
//! Lifetimes are random: each step replaces one of a live set of 10,000. Bytes without alignment,
//! as strings are.
//!
//! One operation is one replacement.

use super::block::Bytes;
use super::common::{LANES, Outcome, Params, Random, on_lanes, timed};

const REPLACEMENTS: u64 = 8_000_000;
const LIVE: usize = 10_000;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let each = params.count(REPLACEMENTS).div_ceil(LANES);
    let sizes = sizes(params.random(LANES));
    Ok(timed(each * LANES, || {
        on_lanes(params.threads, |lane| {
            let mut random = params.random(lane);
            let mut live: Vec<Option<Bytes>> = (0..LIVE).map(|_| None).collect();
            let mut sum = 0u64;
            for _ in 0..each {
                let size = sizes[random.below(sizes.len())] as usize;
                let block = Bytes::new(size, random.next());
                let old = live[random.below(LIVE)].replace(block);
                sum = sum.wrapping_add(old.map_or(0, Bytes::free));
            }
            live.into_iter().flatten().fold(sum, |sum, block| sum.wrapping_add(block.free()))
        })
    }))
}

/// Drawn once, so that no power function is measured.
fn sizes(mut random: Random) -> Vec<u16> {
    let draw = |_| (16.0 * (1.0 - random.fraction()).powf(-1.0 / 1.1)).min(1024.0) as u16;
    (0..4096).map(draw).collect()
}
