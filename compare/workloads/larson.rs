//! A server after Larson and Krishnan, "Memory Allocation for Long-Running Server Applications"
//! (1998): each thread replaces random objects in an array, then starts a successor that inherits
//! the array, and ends. Objects so "bleed" from thread to thread: most are freed by a thread that
//! did not allocate them, and whose allocator of origin is gone.
//!
//! Chains of threads run side by side, one per `threads`. 5000 objects of 8 to 1000 bytes each, ten
//! replacements per object and generation. One operation is one replacement.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Scope;

use super::block::Block;
use super::common::{Outcome, Params, Random, timed};

const OBJECTS: usize = 5000;
const REPLACEMENTS: u64 = 10 * OBJECTS as u64;
const GENERATIONS: u64 = 128;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let chains = params.threads as u64;
    let generations = (params.count(GENERATIONS) / chains).max(2);
    let sum = AtomicU64::new(0);
    Ok(timed(chains * generations * REPLACEMENTS, || {
        std::thread::scope(|scope| {
            for chain in 0..chains {
                let mut random = params.random(chain);
                let sum = &sum;
                scope.spawn(move || {
                    let objects = (0..OBJECTS).map(|_| object(&mut random)).collect();
                    generation(scope, objects, random, generations, sum);
                });
            }
        });
        sum.load(Ordering::Relaxed)
    }))
}

fn object(random: &mut Random) -> Block {
    Block::new(random.within(8, 1000), random.next())
}

/// The life of one thread, with `left` generations to go, its own included.
fn generation<'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut objects: Vec<Block>,
    mut random: Random,
    left: u64,
    sum: &'scope AtomicU64,
) {
    let mut local = 0u64;
    for _ in 0..REPLACEMENTS {
        let victim = random.below(OBJECTS);
        let old = std::mem::replace(&mut objects[victim], object(&mut random));
        local = local.wrapping_add(old.free());
    }
    sum.fetch_add(local, Ordering::Relaxed);
    if left > 1 {
        scope.spawn(move || generation(scope, objects, random, left - 1, sum));
    }
}
