//! Batches of small blocks with an order to their frees, in the manner of MicroQuill's SmartHeap
//! benchmarks (sh6bench: last first; sh8bench: other orders), written from their descriptions.
//!
//! Sizes are 8 to 1000 bytes, the smaller the more frequent. One operation is one block.

use super::block::Block;
use super::common::{LANES, Outcome, Params, Random, on_lanes, timed};

const BATCHES: u64 = 19_200;
const BATCH: usize = 1000;

/// Each batch is freed last first. A third of each is kept while the next two batches come and go,
/// which tears holes.
pub(crate) fn lifo(params: &Params) -> Result<Outcome, String> {
    run(params, |mut batch, kept, sum| {
        kept.push(batch.drain(..).step_by(3).collect::<Vec<_>>());
        while let Some(block) = batch.pop() {
            *sum = sum.wrapping_add(block.free());
        }
        if kept.len() > 2 {
            *sum = sum.wrapping_add(free_all(kept.remove(0).into_iter().rev()));
        }
    })
}

/// Each batch stays for one more. Then it is freed oldest first or, in turns, every other block
/// first and then the rest, oldest last.
pub(crate) fn reverse(params: &Params) -> Result<Outcome, String> {
    let mut params = params.clone();
    params.seed ^= 1 << 40;
    run(&params, |batch, kept, sum| {
        kept.push(batch);
        if kept.len() < 2 {
            return;
        }
        let oldest = kept.remove(0);
        if sum.is_multiple_of(2) {
            *sum = sum.wrapping_add(free_all(oldest.into_iter()));
            return;
        }
        let (even, odd): (Vec<_>, Vec<_>) =
            oldest.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
        let blocks = even.into_iter().chain(odd.into_iter().rev()).map(|(_, block)| block);
        *sum = sum.wrapping_add(free_all(blocks));
    })
}

type Batch = Vec<Block>;

fn run(
    params: &Params,
    dispose: impl Fn(Batch, &mut Vec<Batch>, &mut u64) + Sync,
) -> Result<Outcome, String> {
    let each = params.count(BATCHES).div_ceil(LANES);
    Ok(timed(each * LANES * BATCH as u64, || {
        on_lanes(params.threads, |lane| {
            let mut random = params.random(lane);
            let mut kept = Vec::new();
            let mut sum = 0;
            for _ in 0..each {
                let batch = (0..BATCH).map(|_| block(&mut random)).collect();
                dispose(batch, &mut kept, &mut sum);
            }
            sum.wrapping_add(free_all(kept.into_iter().flatten()))
        })
    }))
}

fn block(random: &mut Random) -> Block {
    // The product of two: half of the sizes are below 200.
    let size = 8 + random.below(32) * random.below(32);
    Block::new(size, random.next())
}

fn free_all(blocks: impl Iterator<Item = Block>) -> u64 {
    blocks.fold(0, |sum, block| sum.wrapping_add(block.free()))
}
