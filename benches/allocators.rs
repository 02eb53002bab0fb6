//! The allocators beside each other, for the guide to choosing one: `cargo bench --bench allocators`.
//!
//! All of them over memory of the same kind (a memfd; the C library's heap for `MallocAllocator`), in one
//! run, in turns. Times are medians of the turns, with the least and the greatest; memory is counted by
//! the allocators themselves.
#![allow(unsafe_code)] // frees what it allocated

use std::alloc::Layout;
use std::hint::black_box;
use std::time::Instant;

use hshm::{
    Allocator, AllocatorId, AllocatorOptions, BuddyAllocator, KIB, MIB, MallocAllocator,
    MemContext, MemoryBackendId, MemoryManager, OffsetPtr, ScalablePageAllocator, StackAllocator,
    ThreadLocalAllocator,
};

const CTX: MemContext = MemContext::DEFAULT;
const TURNS: usize = 9;

type Load = fn(&dyn Allocator) -> f64;

struct Candidate {
    name: &'static str,
    alloc: std::sync::Arc<dyn Allocator>,
    /// Frees everything at once.
    reset: Option<std::sync::Arc<StackAllocator>>,
}

impl Candidate {
    fn start_over(&self) {
        if let Some(stack) = &self.reset {
            // SAFETY: every load has freed what it allocated.
            unsafe { stack.reset().unwrap() };
        }
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

fn take(alloc: &dyn Allocator, size: usize) -> OffsetPtr<u8> {
    let block = alloc.allocate_offset(CTX, layout(size)).unwrap();
    // SAFETY: just allocated, and not empty.
    unsafe { alloc.resolve(block).write(1) };
    block
}

fn give(alloc: &dyn Allocator, block: OffsetPtr<u8>) {
    // SAFETY: live, and not used again.
    unsafe { alloc.free_offset_no_null_check(CTX, block).unwrap() };
}

/// Nanoseconds for an operation.
fn per(operations: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / operations as f64
}

fn pairs(alloc: &dyn Allocator, count: usize) {
    for _ in 0..count {
        give(alloc, black_box(take(alloc, 64)));
    }
}

fn pair(alloc: &dyn Allocator) -> f64 {
    per(200_000, || pairs(alloc, 200_000))
}

fn two_threads(alloc: &dyn Allocator) -> f64 {
    per(200_000, || {
        std::thread::scope(|scope| {
            (0..2).for_each(|_| drop(scope.spawn(|| pairs(alloc, 200_000))));
        });
    })
}

/// A thousand blocks of 16 to 512 bytes, and back again, the last one first.
fn batch(alloc: &dyn Allocator) -> f64 {
    let mut state = 7;
    let sizes: Vec<usize> = (0..1000).map(|_| random(&mut state) % 497 + 16).collect();
    per(100_000, || {
        let mut blocks = Vec::with_capacity(1000);
        for _ in 0..100 {
            blocks.extend(sizes.iter().map(|size| take(alloc, *size)));
            while let Some(block) = blocks.pop() {
                give(alloc, block);
            }
        }
    })
}

/// Ten thousand blocks of 16 to 2048 bytes, each replaced many times in no order.
fn churn(alloc: &dyn Allocator) -> f64 {
    let mut state = 99;
    let mut blocks: Vec<_> =
        (0..10_000).map(|_| take(alloc, random(&mut state) % 2033 + 16)).collect();
    let time = per(100_000, || {
        for _ in 0..100_000 {
            let at = random(&mut state) % blocks.len();
            give(alloc, blocks[at]);
            blocks[at] = take(alloc, random(&mut state) % 2033 + 16);
        }
    });
    while let Some(block) = blocks.pop() {
        give(alloc, block);
    }
    time
}

/// A block that grows from 64 KiB to 1 MiB by 64 KiB, with nothing behind it.
fn grow(alloc: &dyn Allocator) -> f64 {
    per(20 * 15, || {
        for _ in 0..20 {
            let mut block = take(alloc, 64 * KIB);
            for step in 2..=16 {
                // SAFETY: live, and only the result is used again.
                block = unsafe {
                    alloc.reallocate_offset(CTX, block, layout(step * 64 * KIB)).unwrap()
                };
            }
            give(alloc, block);
        }
    })
}

/// Bytes of the region for a byte that was asked for: a hundred thousand blocks of 16 to 2048 bytes.
fn cost(alloc: &dyn Allocator) -> f64 {
    let mut state = 5;
    let before = alloc.available();
    let mut asked = 0;
    let mut blocks = Vec::with_capacity(100_000);
    for _ in 0..100_000 {
        let size = random(&mut state) % 2033 + 16;
        asked += size;
        blocks.push(take(alloc, size));
    }
    let used = before.saturating_sub(alloc.available()) as f64 / asked as f64;
    while let Some(block) = blocks.pop() {
        give(alloc, block);
    }
    used
}

fn main() {
    // What `cargo test --benches` runs is a look whether it works.
    let turns = if std::env::args().any(|arg| arg == "--bench") { TURNS } else { 1 };
    let manager = MemoryManager::new();
    let backend = MemoryBackendId::get(0);
    manager.create_backend(backend, 4096 * MIB, "memfd:").unwrap();
    let options = AllocatorOptions::new().size(768 * MIB);
    let id = |minor| AllocatorId::new(0xBE, minor);
    let stack = manager.create_allocator_with::<StackAllocator>(backend, id(1), &options).unwrap();
    let candidates = [
        Candidate { name: "Stack", alloc: stack.clone(), reset: Some(stack) },
        Candidate {
            name: "ThreadLocal",
            alloc: manager
                .create_allocator_with::<ThreadLocalAllocator>(backend, id(2), &options)
                .unwrap(),
            reset: None,
        },
        Candidate {
            name: "ScalablePage",
            alloc: manager
                .create_allocator_with::<ScalablePageAllocator>(backend, id(3), &options)
                .unwrap(),
            reset: None,
        },
        Candidate {
            name: "Buddy",
            alloc: manager
                .create_allocator_with::<BuddyAllocator>(backend, id(4), &options)
                .unwrap(),
            reset: None,
        },
        Candidate {
            name: "Malloc",
            alloc: std::sync::Arc::new(MallocAllocator::new()),
            reset: None,
        },
    ];
    // The first over fresh memory: later there are slabs about.
    let loads: [(&str, Load); 5] = [
        ("grow by 64 KiB to 1 MiB, nothing behind", grow),
        ("pair of 64 B", pair),
        ("the same, two threads", two_threads),
        ("batch of 1000, 16 to 512 B", batch),
        ("churn, 16 to 2048 B", churn),
    ];
    println!("ns an operation: median (least to greatest) of {turns} turns");
    for (name, load) in loads {
        let mut times = vec![Vec::new(); candidates.len()];
        for turn in 0..turns {
            for at in 0..candidates.len() {
                let at = (at + turn) % candidates.len();
                times[at].push(load(&*candidates[at].alloc));
                candidates[at].start_over();
            }
        }
        println!("{name}");
        for (candidate, times) in candidates.iter().zip(&mut times) {
            times.sort_by(f64::total_cmp);
            let (least, middle) = (times[0], times[times.len() / 2]);
            let most = times[times.len() - 1];
            println!("  {:13} {middle:8.1} ({least:.1} to {most:.1})", candidate.name);
        }
    }
    println!("bytes of memory for a byte asked for, 16 to 2048 B");
    for candidate in &candidates[..4] {
        println!("  {:13} {:8.3}", candidate.name, cost(&*candidate.alloc));
        candidate.start_over();
    }
}
