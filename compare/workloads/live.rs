//! A live heap of a given size, in which random objects are replaced: a cache, an index, a database
//! of the program's own. Sizes are 16 B to 4 KiB, each doubling as frequent as the next. With a
//! large heap every free meets cold memory, and what an allocator keeps beside the blocks matters.
//!
//! Each thread has its share of the heap. The filling is not timed. One operation is one
//! replacement.

use std::sync::Barrier;
use std::time::Instant;

use super::block::Block;
use super::common::{Outcome, Params, Random};

/// Of the sizes below, in bytes.
const MEAN: usize = 764;

pub(crate) fn run(params: &Params, bytes: usize) -> Result<Outcome, String> {
    let threads = params.threads;
    // In a heap beyond all caches each takes several times as long.
    let replacements = if bytes <= 64 << 20 { 12_000_000 } else { 3_000_000 };
    let each = (params.count(replacements) / threads as u64).max(1);
    // A small scale is for trying things out, which should not take all of the heap either.
    let bytes = bytes as f64 * params.scale.min(1.0);
    let objects = (bytes as usize / MEAN / threads).max(8);
    let filled = Barrier::new(threads);
    let work = |thread: usize| {
        let mut random = params.random(thread as u64);
        let mut live: Vec<Block> = (0..objects).map(|_| object(&mut random)).collect();
        filled.wait();
        let start = Instant::now();
        let mut sum = 0u64;
        for _ in 0..each {
            let victim = random.below(objects);
            let old = std::mem::replace(&mut live[victim], object(&mut random));
            sum = sum.wrapping_add(old.free());
        }
        let end = Instant::now();
        // Nobody tears down while others are still measured.
        filled.wait();
        (live.into_iter().fold(sum, |sum, block| sum.wrapping_add(block.free())), start, end)
    };
    let results: Vec<(u64, Instant, Instant)> = std::thread::scope(|scope| {
        let work = &work;
        let handles: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        handles.into_iter().map(|h| h.join().expect("a thread failed")).collect()
    });
    // From the first thread's start to the last one's end. A clock of the main thread's would start
    // when it next gets a core.
    let start = results.iter().map(|(_, start, _)| *start).min().unwrap();
    let end = results.iter().map(|(_, _, end)| *end).max().unwrap();
    let checksum = results.iter().fold(0u64, |sum, (part, ..)| sum.wrapping_add(*part));
    Ok(Outcome { operations: each * threads as u64, checksum, elapsed: end - start })
}

fn object(random: &mut Random) -> Block {
    let low = 16usize << random.below(8);
    Block::new(random.within(low, 2 * low), random.next())
}
