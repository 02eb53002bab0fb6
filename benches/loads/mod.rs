//! The loads that the benchmarks run, over any `GlobalAlloc`.
//!
//! They call the allocator's methods directly, so that one program can run one load over several
//! allocators; its own global allocator stays the system's. A load is generic over the allocator:
//! its fast path is inlined here just as it would be into a program.
#![allow(unsafe_code)] // calls GlobalAlloc's methods
#![allow(dead_code, unreachable_pub)] // every benchmark uses a part

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use hshm::HshmAlloc;
use mimalloc::MiMalloc;

/// The allocators under comparison.
pub static HSHM: HshmAlloc = HshmAlloc::new();
pub static MIMALLOC: MiMalloc = MiMalloc;
pub static SYSTEM: System = System;

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;

pub const PAIR_SIZES: [usize; 12] =
    [8, 16, 32, 64, 128, 512, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB];
pub const BATCH: usize = 1000;
pub const BATCH_SIZES: [usize; 3] = [16, 64, 512];
pub const CROSS_SIZES: [usize; 3] = [16, 128, 4 * KIB];
pub const REALLOC_SIZES: [usize; 2] = [64 * KIB, 64 * MIB];
pub const ZEROED_SIZES: [usize; 5] = [4 * KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB];

/// A size as people write it.
pub fn label(size: usize) -> String {
    match size {
        size if size >= MIB => format!("{}MiB", size / MIB),
        size if size >= KIB => format!("{}KiB", size / KIB),
        size => format!("{size}B"),
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a size of a benchmark is small")
}

/// Allocates a block, writes its first word, frees it; `rounds` times.
pub fn pair<A: GlobalAlloc>(alloc: &A, size: usize, rounds: u64) {
    let layout = layout(size);
    for round in 0..rounds {
        // SAFETY: the block is at least a word, and is freed with its own layout.
        unsafe {
            let block = alloc.alloc(layout);
            assert!(!block.is_null());
            block.cast::<u64>().write(round);
            alloc.dealloc(black_box(block), layout);
        }
    }
}

/// In which order a batch is freed.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Lifo,
    Fifo,
    Random,
}

pub const ORDERS: [(Order, &str); 3] =
    [(Order::Lifo, "lifo"), (Order::Fifo, "fifo"), (Order::Random, "random")];

impl Order {
    /// The places of a batch in the order in which they are freed.
    pub fn places(self) -> Vec<usize> {
        let mut places: Vec<usize> = (0..BATCH).collect();
        match self {
            Order::Fifo => {}
            Order::Lifo => places.reverse(),
            Order::Random => {
                // Fisher and Yates' shuffle by xorshift64*: the same order in every run.
                let mut state = 0x9E37_79B9_7F4A_7C15u64;
                for last in (1..BATCH).rev() {
                    state ^= state >> 12;
                    state ^= state << 25;
                    state ^= state >> 27;
                    let random = state.wrapping_mul(0x2545_F491_4F6C_DD1D);
                    places.swap(last, (random >> 33) as usize % (last + 1));
                }
            }
        }
        places
    }
}

/// Allocates [`BATCH`] blocks, then frees them in the order of `places`; `rounds` times.
pub fn batch<A: GlobalAlloc>(alloc: &A, size: usize, places: &[usize], rounds: u64) {
    let layout = layout(size);
    let mut blocks = [ptr::null_mut::<u8>(); BATCH];
    for round in 0..rounds {
        for block in &mut blocks {
            // SAFETY: the block is at least a word.
            unsafe {
                *block = alloc.alloc(layout);
                assert!(!block.is_null());
                block.cast::<u64>().write(round);
            }
        }
        for &place in places {
            // SAFETY: `places` has every block once.
            unsafe { alloc.dealloc(blocks[place], layout) };
        }
        black_box(&mut blocks);
    }
}

/// Blocks on their way from one thread to another.
struct Ring {
    slots: Vec<AtomicPtr<u8>>,
    sent: AtomicUsize,
    taken: AtomicUsize,
}

const RING: usize = 1024;

/// One thread allocates `blocks` blocks, another frees them.
pub fn cross_thread<A: GlobalAlloc + Sync>(alloc: &A, size: usize, blocks: u64) {
    let layout = layout(size);
    let ring = Ring {
        slots: (0..RING).map(|_| AtomicPtr::default()).collect(),
        sent: AtomicUsize::new(0),
        taken: AtomicUsize::new(0),
    };
    let pause = |spins: &mut u32| {
        *spins += 1;
        if *spins < 64 { std::hint::spin_loop() } else { std::thread::yield_now() }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut taken = 0;
            while taken < blocks as usize {
                let mut spins = 0;
                while ring.sent.load(Ordering::Acquire) == taken {
                    pause(&mut spins);
                }
                let sent = ring.sent.load(Ordering::Acquire);
                for at in taken..sent {
                    let block = ring.slots[at % RING].load(Ordering::Relaxed);
                    // SAFETY: the sender gave the block up, and it is taken once.
                    unsafe { alloc.dealloc(block, layout) };
                }
                taken = sent;
                ring.taken.store(taken, Ordering::Release);
            }
        });
        for at in 0..blocks as usize {
            let mut spins = 0;
            while at - ring.taken.load(Ordering::Acquire) == RING {
                pause(&mut spins);
            }
            // SAFETY: the block is at least a word.
            let block = unsafe { alloc.alloc(layout) };
            assert!(!block.is_null());
            // SAFETY: as above.
            unsafe { block.cast::<u64>().write(at as u64) };
            ring.slots[at % RING].store(block, Ordering::Relaxed);
            ring.sent.store(at + 1, Ordering::Release);
        }
    });
}

/// Grows a block as a `Vec` does, from 64 bytes to `largest` by doubling, and fills each new part;
/// `rounds` times.
pub fn realloc<A: GlobalAlloc>(alloc: &A, largest: usize, rounds: u64) {
    for round in 0..rounds {
        let mut size = 64;
        // SAFETY: `size` is always the block's size; the written part is the new half.
        unsafe {
            let mut block = alloc.alloc(layout(size));
            assert!(!block.is_null());
            block.write_bytes(round as u8, size);
            while size < largest {
                block = alloc.realloc(block, layout(size), size * 2);
                assert!(!block.is_null());
                block.add(size).write_bytes(round as u8, size);
                size *= 2;
            }
            alloc.dealloc(black_box(block), layout(size));
        }
    }
}

/// Allocates zeroed memory and touches every page of it; `rounds` times.
pub fn zeroed<A: GlobalAlloc>(alloc: &A, size: usize, rounds: u64) {
    let layout = layout(size);
    for _ in 0..rounds {
        // SAFETY: the touched places are inside the block.
        unsafe {
            let block = alloc.alloc_zeroed(layout);
            assert!(!block.is_null());
            for at in (0..size).step_by(4 * KIB) {
                assert_eq!(block.add(at).read(), 0);
                block.add(at).write(1);
            }
            alloc.dealloc(black_box(block), layout);
        }
    }
}

/// One load over any of the three: `(which, rounds)`.
pub type Run = Box<dyn Fn(usize, u64)>;

/// The allocators' names, by the number that a [`Run`] takes.
pub const NAMES: [&str; 3] = ["hshm", "mimalloc", "system"];

macro_rules! over_all {
    (|$alloc:ident, $rounds:ident| $call:expr) => {
        Box::new(move |which: usize, $rounds: u64| match which {
            0 => {
                let $alloc = &HSHM;
                $call
            }
            1 => {
                let $alloc = &MIMALLOC;
                $call
            }
            _ => {
                let $alloc = &SYSTEM;
                $call
            }
        }) as Run
    };
}

/// The loads of a group (`pair`, `batch`, `cross_thread`, `realloc`, `zeroed`) by name.
pub fn group(name: &str) -> Vec<(String, Run)> {
    match name {
        "pair" => PAIR_SIZES
            .into_iter()
            .map(|size| (label(size), over_all!(|alloc, rounds| pair(alloc, size, rounds))))
            .collect(),
        "batch" => ORDERS
            .into_iter()
            .flat_map(|(order, name)| {
                BATCH_SIZES.into_iter().map(move |size| {
                    let places = order.places();
                    let run = over_all!(|alloc, rounds| batch(alloc, size, &places, rounds));
                    (format!("{name}-{}", label(size)), run)
                })
            })
            .collect(),
        "cross_thread" => CROSS_SIZES
            .into_iter()
            .map(|size| (label(size), over_all!(|alloc, rounds| cross_thread(alloc, size, rounds))))
            .collect(),
        "realloc" => REALLOC_SIZES
            .into_iter()
            .map(|size| (label(size), over_all!(|alloc, rounds| realloc(alloc, size, rounds))))
            .collect(),
        "zeroed" => ZEROED_SIZES
            .into_iter()
            .map(|size| (label(size), over_all!(|alloc, rounds| zeroed(alloc, size, rounds))))
            .collect(),
        _ => Vec::new(),
    }
}

/// All groups.
pub const GROUPS: [&str; 5] = ["pair", "batch", "cross_thread", "realloc", "zeroed"];
