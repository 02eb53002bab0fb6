//! `ThreadLocalAllocator` against an oracle that knows every live block and its contents.

use std::alloc::Layout;
use std::collections::BTreeMap;

use hshm::{
    Allocator, AllocatorId, Error, KIB, MIB, MemContext, OffsetPtr, Region, ScalablePageAllocator,
    ThreadId, ThreadLocalAllocator,
};

/// xorshift64*: the same sequence for the same seed on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

struct Live {
    size: usize,
    fill: u8,
}

fn check(alloc: &ThreadLocalAllocator, offset: u64, live: &Live) {
    let start = alloc.resolve(OffsetPtr::new(offset));
    // SAFETY: the block is live and `size` bytes long.
    let bytes = unsafe { std::slice::from_raw_parts(start, live.size) };
    assert!(bytes.iter().all(|byte| *byte == live.fill), "block at {offset:#x} was changed");
}

fn fill(alloc: &ThreadLocalAllocator, offset: u64, live: &Live) {
    // SAFETY: as above.
    unsafe { alloc.resolve(OffsetPtr::new(offset)).write_bytes(live.fill, live.size) };
}

fn run(seed: u64, region_bytes: usize, steps: u64, largest: u32) {
    let region = Region::anonymous(AllocatorId::new(77, seed as u32), region_bytes).unwrap();
    let alloc = ThreadLocalAllocator::shm_init(region).unwrap();
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut live: BTreeMap<u64, Live> = BTreeMap::new();
    let mut out_of_memory = 0;
    for step in 0..steps {
        let ctx = MemContext::new(ThreadId::new(random.below(5) as i32 - 1));
        let scale = 1 << random.below(largest as u64 + 1);
        let size = 1 + random.below(scale) as usize;
        let align = 1usize << random.below(if step % 50 == 0 { 18 } else { 7 });
        match random.below(if live.len() > 3000 { 6 } else { 10 }) {
            0..=3 if !live.is_empty() => {
                let key = *live
                    .range(random.next() % region_bytes as u64..)
                    .next()
                    .map_or_else(|| live.keys().next().unwrap(), |(key, _)| key);
                let block = live.remove(&key).unwrap();
                check(&alloc, key, &block);
                // SAFETY: the block is live and not used again.
                unsafe { alloc.free_offset(ctx, OffsetPtr::new(key)).unwrap() };
                // SAFETY: a double free is refused.
                assert!(unsafe { alloc.free_offset(ctx, OffsetPtr::new(key)) }.is_err());
            }
            4 if !live.is_empty() => {
                let key = *live.keys().nth(random.below(live.len() as u64) as usize).unwrap();
                let block = live.remove(&key).unwrap();
                let layout = Layout::from_size_align(size, 8).unwrap();
                // SAFETY: the block is live and the old offset is not used again unless it failed.
                match unsafe { alloc.reallocate_offset(ctx, OffsetPtr::new(key), layout) } {
                    Ok(moved) => {
                        let kept = Live { size: block.size.min(size), fill: block.fill };
                        check(&alloc, moved.offset(), &kept);
                        let now = Live { size, fill: block.fill };
                        fill(&alloc, moved.offset(), &now);
                        assert!(live.insert(moved.offset(), now).is_none());
                    }
                    Err(_) => {
                        check(&alloc, key, &block);
                        live.insert(key, block);
                    }
                }
            }
            choice => {
                let layout = Layout::from_size_align(size, align).unwrap();
                let result = if choice == 5 {
                    alloc.allocate_zeroed_offset(ctx, layout)
                } else {
                    alloc.allocate_offset(ctx, layout)
                };
                match result {
                    Ok(block) => {
                        let offset = block.offset();
                        assert!(alloc.resolve(block).addr() % align == 0);
                        assert!(offset + size as u64 <= region_bytes as u64);
                        if choice == 5 {
                            check(&alloc, offset, &Live { size, fill: 0 });
                        }
                        if let Some((at, before)) = live.range(..=offset).next_back() {
                            assert!(at + before.size as u64 <= offset, "overlap below");
                        }
                        if let Some((at, _)) = live.range(offset..).next() {
                            assert!(offset + size as u64 <= *at, "overlap above");
                        }
                        let now = Live { size, fill: random.next() as u8 | 1 };
                        fill(&alloc, offset, &now);
                        live.insert(offset, now);
                    }
                    Err(Error::OutOfMemory { requested, .. }) => {
                        assert_eq!(requested, size);
                        out_of_memory += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        if step % 64 == 0 {
            let report = alloc.verify().unwrap_or_else(|fault| panic!("{fault} at step {step}"));
            assert_eq!(report.blocks_in_use, live.len());
        }
    }
    for (offset, block) in &live {
        check(&alloc, *offset, block);
        // SAFETY: live, and not used again.
        unsafe { alloc.free_offset(MemContext::DEFAULT, OffsetPtr::new(*offset)).unwrap() };
    }
    assert_eq!(alloc.currently_allocated_size(), 0);
    let report = alloc.verify().unwrap();
    assert_eq!((report.in_use(), report.blocks_in_use), (0, 0));
    alloc.trim();
    let report = alloc.verify().unwrap();
    assert_eq!(report.slabs, 0);
    println!("seed {seed}: {steps} steps, {out_of_memory} out of memory");
}

#[test]
fn small_blocks() {
    for seed in 1..4 {
        run(seed, 64 << 20, 20_000, 12);
    }
}

#[test]
fn all_sizes() {
    for seed in 4..7 {
        run(seed, 256 << 20, 4_000, 23);
    }
}

#[test]
fn a_region_that_is_always_too_small() {
    for seed in 7..10 {
        run(seed, 3 << 20, 10_000, 18);
        run(seed + 10, 9 << 20, 4_000, 22);
    }
}

/// Free chunks in front of those that were never used make one room with them.
#[test]
fn free_chunks_join_the_fresh_ones() {
    let region = Region::anonymous(AllocatorId::new(78, 0), 64 << 20).unwrap();
    let alloc = ThreadLocalAllocator::shm_init(region).unwrap();
    let layout = |bytes| Layout::from_size_align(bytes, 8).unwrap();
    let first = alloc.allocate_offset(MemContext::DEFAULT, layout(30 << 20)).unwrap();
    // SAFETY: the block is live and not used again.
    unsafe { alloc.free_offset(MemContext::DEFAULT, first).unwrap() };
    let second = alloc.allocate_offset(MemContext::DEFAULT, layout(40 << 20)).unwrap();
    alloc.verify().unwrap();
    // SAFETY: as above.
    unsafe { alloc.free_offset(MemContext::DEFAULT, second).unwrap() };
    alloc.verify().unwrap();
}

/// A run moves at most once on its way, and the next that grows so far finds the room at once.
#[test]
fn what_grows_again_and_again_finds_room() {
    let layout = |granules: usize| Layout::from_size_align(granules * 64 * KIB, 8).unwrap();
    let region = |minor| Region::anonymous(AllocatorId::new(0x96, minor), 64 * MIB).unwrap();
    let allocators: [Box<dyn Allocator>; 2] = [
        Box::new(ThreadLocalAllocator::shm_init(region(0)).unwrap()),
        Box::new(ScalablePageAllocator::shm_init(region(1)).unwrap()),
    ];
    for alloc in allocators {
        // Behind the tables begins a chunk that is no whole one.
        for round in 0..8 {
            let mut block = alloc.allocate_offset(MemContext::DEFAULT, layout(1)).unwrap();
            let mut moves = 0;
            for granules in 2..=32 {
                // SAFETY: live, and only the result is used again.
                let grown = unsafe {
                    alloc.reallocate_offset(MemContext::DEFAULT, block, layout(granules))
                };
                moves += (grown != Ok(block)) as usize;
                block = grown.unwrap();
            }
            assert!(moves <= (round == 0) as usize, "moved {moves} times in round {round}");
            // SAFETY: live, and not used again.
            unsafe { alloc.free_offset(MemContext::DEFAULT, block).unwrap() };
        }
        assert_eq!(alloc.currently_allocated_size(), 0);
    }
}
