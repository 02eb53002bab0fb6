//! Phases of threads with survivors, after the stress test of mimalloc (`mstress`): in each phase
//! new threads allocate sizes of all kinds, free most of it, and exchange objects with each other
//! through shared slots; some objects of each phase live on for several more, and at the end of a
//! phase all its threads end. Fragmentation and the reuse of what dead threads left show here.
//!
//! One operation is one allocation.

use std::sync::Mutex;

use super::block::Block;
use super::common::{Outcome, Params, Random, on_threads, timed};

const PHASES: u64 = 16;
const ALLOCATIONS: u64 = 12_000_000;
const EXCHANGE: usize = 1000;
/// Phases that a survivor lives.
const SURVIVAL: usize = 4;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let threads = params.threads as u64;
    let allocations = (params.count(ALLOCATIONS) / (PHASES * threads)).max(1);
    let exchange: Vec<Mutex<Option<Block>>> = (0..EXCHANGE).map(|_| Mutex::new(None)).collect();
    Ok(timed(PHASES * threads * allocations, || {
        let mut survivors: Vec<Vec<Block>> = Vec::new();
        let mut sum = 0u64;
        for phase in 0..PHASES {
            let kept = Mutex::new(Vec::new());
            sum = sum.wrapping_add(on_threads(params.threads, |thread| {
                let random = params.random(phase * threads + thread as u64);
                work(random, allocations, &exchange, &kept)
            }));
            survivors.push(kept.into_inner().unwrap());
            if survivors.len() > SURVIVAL {
                sum = sum.wrapping_add(free_all(survivors.remove(0)));
            }
        }
        let exchanged = exchange.into_iter().filter_map(|slot| slot.into_inner().unwrap());
        survivors
            .into_iter()
            .flatten()
            .chain(exchanged)
            .fold(sum, |sum, b| sum.wrapping_add(b.free()))
    }))
}

fn free_all(blocks: Vec<Block>) -> u64 {
    blocks.into_iter().fold(0, |sum, block| sum.wrapping_add(block.free()))
}

/// Mostly small; one in 64 up to 4 KiB, one in 4096 up to 256 KiB.
fn size(random: &mut Random) -> usize {
    match random.below(4096) {
        0 => random.within(4 << 10, 256 << 10),
        1..=64 => random.within(256, 4 << 10),
        _ => 8 * random.within(1, 32),
    }
}

fn work(
    mut random: Random,
    allocations: u64,
    exchange: &[Mutex<Option<Block>>],
    kept: &Mutex<Vec<Block>>,
) -> u64 {
    let mut own: Vec<Block> = Vec::new();
    let mut survivors: Vec<Block> = Vec::new();
    let mut sum = 0u64;
    for _ in 0..allocations {
        let block = Block::new(size(&mut random), random.next());
        match random.below(100) {
            0 => survivors.push(block),
            1..=10 => {
                let slot = &exchange[random.below(exchange.len())];
                let old = slot.lock().unwrap().replace(block);
                sum = sum.wrapping_add(old.map_or(0, Block::free));
            }
            11..=55 => own.push(block),
            _ => {
                own.push(block);
                let victim = random.below(own.len());
                sum = sum.wrapping_add(own.swap_remove(victim).free());
                if own.len() > 4000 {
                    sum = sum.wrapping_add(free_all(own.split_off(2000)));
                }
            }
        }
    }
    kept.lock().unwrap().append(&mut survivors);
    sum.wrapping_add(free_all(own))
}
