//! False sharing, after the two tests of Berger et al., "Hoard" (2000). An allocator that puts the
//! small blocks of two threads into one cache line makes both wait for it at each write.
//!
//! Each thread allocates 8 bytes, writes them 1000 times and frees them, over and over. One
//! operation is one such round. With one thread, or one core, there is nothing to see.

use std::hint::black_box;
use std::sync::Mutex;

use super::common::{LANES, Outcome, Params, mix, on_threads, timed};

const ROUNDS: u64 = 256_000;
const WRITES: u64 = 1000;

/// Active: the allocator itself puts blocks of two threads side by side.
pub(crate) fn thrash(params: &Params) -> Result<Outcome, String> {
    let rounds = params.count(ROUNDS).div_ceil(LANES) * LANES;
    Ok(timed(rounds, || on_threads(params.threads, |i| write(params, i, rounds))))
}

/// Passive: one thread allocates a block for each of the others, all of them neighbours. Each frees
/// its block; an allocator that gives that memory back to the freeing thread has spread one
/// line over all threads.
pub(crate) fn scratch(params: &Params) -> Result<Outcome, String> {
    let rounds = params.count(ROUNDS).div_ceil(LANES) * LANES;
    let given: Vec<Mutex<Option<Box<u64>>>> =
        (0..params.threads).map(|_| Mutex::new(Some(Box::new(0)))).collect();
    Ok(timed(rounds, || {
        on_threads(params.threads, |i| {
            drop(given[i].lock().unwrap().take());
            write(params, i, rounds)
        })
    }))
}

fn write(params: &Params, thread: usize, rounds: u64) -> u64 {
    let mut sum = 0u64;
    for round in (thread as u64..rounds).step_by(params.threads) {
        let mut cell = Box::new(round);
        for _ in 0..WRITES {
            *black_box(&mut *cell) += 1;
        }
        sum = sum.wrapping_add(mix(*cell));
    }
    sum
}
