//! Zeroed buffers of 5 to 25 MiB, allocated and freed in turns, as tools that read whole files or
//! hold images do. Every page of each is written once, after a look at whether it is zero. The
//! system's pages, and how an allocator keeps them, are what counts.
//!
//! Some 16 buffers are alive, shared among the threads (one per thread at least). One operation is
//! one buffer.

use super::common::{LANES, Outcome, Params, mix, on_threads, timed};

const BUFFERS: u64 = 64;
const ALIVE: usize = 16;
const PAGE: usize = 4096;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    // Counted in buffers, not lanes: a small scale has to stay small.
    let buffers = params.count(BUFFERS);
    let alive = (ALIVE / params.threads).max(1);
    debug_assert!(params.threads as u64 <= LANES);
    Ok(timed(buffers, || {
        on_threads(params.threads, |thread| {
            let mut live: Vec<Vec<u8>> = vec![Vec::new(); alive];
            let mut sum = 0u64;
            for number in (thread as u64..buffers).step_by(params.threads) {
                let mut random = params.random(number);
                let mut buffer = vec![0u8; random.within(5 << 20, 25 << 20)];
                let mut found = 0u64;
                for byte in buffer.iter_mut().step_by(PAGE) {
                    found += *byte as u64;
                    *byte = number as u8 | 1;
                }
                assert!(found == 0, "a zeroed buffer was not zero");
                sum = sum.wrapping_add(mix(buffer.len() as u64));
                let slot = random.below(alive);
                live[slot] = buffer;
            }
            sum
        })
    }))
}
