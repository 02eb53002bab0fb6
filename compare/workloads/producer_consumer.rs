//! One side only allocates, the other only frees, as in a pipeline of threads (xmalloc-test by
//! Lever and Boreham, 2000, is the well-known one). Caches that belong to a thread never see their
//! blocks again by themselves, so this measures the way back.
//!
//! `threads / 2` pairs, at least one. Batches of 100 blocks of 16 to 256 bytes go through a bounded
//! channel. One operation is one block.

use std::sync::mpsc::sync_channel;

use super::block::Block;
use super::common::{Outcome, Params, on_threads, timed};

const BATCHES: u64 = 50_000;
const BATCH: u64 = 100;
const IN_FLIGHT: usize = 32;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let pairs = (params.threads / 2).max(1);
    let batches = params.count(BATCHES);
    Ok(timed(batches * BATCH, || {
        on_threads(pairs, |pair| {
            let (send, receive) = sync_channel::<Vec<Block>>(IN_FLIGHT);
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    for number in (pair as u64..batches).step_by(pairs) {
                        let mut random = params.random(number);
                        let batch = (0..BATCH)
                            .map(|_| Block::new(random.within(16, 256), random.next()))
                            .collect();
                        if send.send(batch).is_err() {
                            return;
                        }
                    }
                });
                let mut sum = 0u64;
                for batch in receive {
                    for block in batch {
                        sum = sum.wrapping_add(block.free());
                    }
                }
                sum
            })
        })
    }))
}
