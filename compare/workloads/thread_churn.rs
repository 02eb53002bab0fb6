//! Thousands of short threads, in waves of `threads`: each allocates 200 blocks, frees half, and
//! leaves the rest to the thread that started it, which frees them when all of the wave are gone.
//! What an allocator sets up per thread costs time here; what it does not take back costs memory,
//! so that a leak shows as a peak that grows with `scale`.
//!
//! One operation is one thread.

use super::block::Block;
use super::common::{Outcome, Params, timed};

const THREADS: u64 = 5_000;
const BLOCKS: usize = 200;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let threads = params.count(THREADS);
    Ok(timed(threads, || {
        let mut sum = 0u64;
        for wave in (0..threads).step_by(params.threads) {
            let end = (wave + params.threads as u64).min(threads);
            let left: Vec<Vec<Block>> = std::thread::scope(|scope| {
                let handles: Vec<_> =
                    (wave..end).map(|number| scope.spawn(move || life(params, number))).collect();
                handles.into_iter().map(|h| h.join().expect("a thread failed")).collect()
            });
            for block in left.into_iter().flatten() {
                sum = sum.wrapping_add(block.free());
            }
        }
        sum
    }))
}

fn life(params: &Params, number: u64) -> Vec<Block> {
    let mut random = params.random(number);
    let mut blocks: Vec<Block> =
        (0..BLOCKS).map(|_| Block::new(random.within(8, 2048), random.next())).collect();
    blocks.truncate(BLOCKS / 2);
    blocks
}
