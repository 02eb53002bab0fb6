//! How often a thread locks a cache line for an allocation: never while it keeps to itself, rarely
//! where blocks go from thread to thread. Counted by the crate's own atomics:
//!
//! ```text
//! RUSTFLAGS="--cfg hshm_count_rmw" cargo test --release --test read_modify_writes
//! ```
#![cfg(hshm_count_rmw)]

use std::sync::mpsc;
use std::thread;

use hshm::{HshmAlloc, read_modify_writes};

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

/// Sizes of all kinds that a cache serves.
const SIZES: [usize; 12] = [8, 24, 32, 64, 100, 256, 700, 1500, 4000, 20_000, 70_000, 500_000];

/// The count over `work`, without that of a first run that warms up.
fn counted(mut work: impl FnMut()) -> u64 {
    work();
    let before = read_modify_writes();
    work();
    read_modify_writes() - before
}

#[test]
fn none_for_pairs() {
    for size in SIZES {
        let pairs = || (0..10_000).for_each(|_| drop(std::hint::black_box(vec![1u8; size])));
        assert_eq!(counted(pairs), 0, "{size} bytes");
    }
}

/// A live heap that never fits into the cache: refills and flushes, all in the thread's own slabs.
#[test]
fn none_for_a_thread_that_replaces_blocks_of_its_own() {
    let mut random = 7u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize
    };
    let mut live: Vec<Vec<u8>> = (0..20_000).map(|n| vec![n as u8; 16 + n % 500]).collect();
    let operations = 400_000;
    let count = counted(|| {
        for _ in 0..operations {
            let slot = next() % live.len();
            live[slot] = vec![slot as u8; 16 + slot % 500];
        }
    });
    println!("{count} read-modify-writes in {operations} replacements");
    assert_eq!(count, 0);
}

/// One side allocates, the other frees: what the receiving side locks, for each of its frees, and
/// what the sending side does to have its blocks back.
#[test]
fn at_most_one_in_sixteen_across_threads() {
    const ROUNDS: usize = 200;
    const BLOCKS: usize = 2_000;
    let (to, blocks) = mpsc::channel::<Vec<Box<[u8; 48]>>>();
    let (done, answers) = mpsc::channel::<u64>();
    let freer = thread::spawn(move || {
        for batch in blocks {
            let before = read_modify_writes();
            drop(batch);
            done.send(read_modify_writes() - before).unwrap();
        }
    });
    let (mut allocating, mut freeing) = (0, 0);
    for round in 0..ROUNDS {
        let before = read_modify_writes();
        let batch: Vec<Box<[u8; 48]>> = (0..BLOCKS).map(|n| Box::new([n as u8; 48])).collect();
        let own = read_modify_writes() - before;
        to.send(batch).unwrap();
        let others = answers.recv().unwrap();
        // The first rounds take slabs from the process.
        if round >= ROUNDS / 4 {
            allocating += own;
            freeing += others;
        }
    }
    drop(to);
    freer.join().unwrap();
    let frees = (ROUNDS - ROUNDS / 4) * BLOCKS;
    println!("{freeing} in {frees} frees, {allocating} in as many allocations");
    assert!(freeing as usize * 16 <= frees, "{freeing} in {frees} frees");
    assert!(allocating as usize * 16 <= frees, "{allocating} in {frees} allocations");
}
