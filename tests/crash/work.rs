//! What survivors do: allocate, check and free blocks of all kinds.

use std::alloc::Layout;

use hshm::{Allocator, KIB, MIB, MemContext, OffsetPtr, ThreadId, ThreadLocalAllocator};

/// A small generator of numbers; the same seed, the same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 32) % bound
    }
}

pub fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A size of 8 B to 512 KiB, small ones more often.
pub fn size(random: &mut Random) -> usize {
    match random.below(200) {
        0 => 64 * KIB + random.below(448 * KIB as u64) as usize,
        1..10 => 1 + random.below(40 * KIB as u64) as usize,
        _ => 8 + random.below(1000) as usize,
    }
}

/// What the first and the last 8 bytes of a block say.
fn ends(alloc: &ThreadLocalAllocator, block: u64, size: usize) -> [*mut u64; 2] {
    let base = alloc.resolve(OffsetPtr::new(block));
    [base.cast(), base.wrapping_add((size.max(16) - 8) & !7).cast()]
}

/// Writes `block`'s own offset to its ends; blocks of less than 16 bytes have one.
pub fn mark(alloc: &ThreadLocalAllocator, block: u64, size: usize) {
    let [first, last] = ends(alloc, block, size);
    // SAFETY: the caller's block, at least 8 bytes long, and at least `size`.
    unsafe {
        first.write(block);
        if size >= 16 {
            last.write(!block);
        }
    }
}

#[track_caller]
pub fn check(alloc: &ThreadLocalAllocator, block: u64, size: usize) {
    let [first, last] = ends(alloc, block, size);
    // SAFETY: as in `mark`.
    let (first, last) = unsafe { (first.read(), if size >= 16 { last.read() } else { !block }) };
    assert_eq!((first, last), (block, !block), "{size} bytes at {block:#x} were changed");
}

#[track_caller]
pub fn allocate(alloc: &ThreadLocalAllocator, ctx: MemContext, size: usize) -> u64 {
    let block = alloc.allocate_offset(ctx, layout(size.max(8))).unwrap().offset();
    mark(alloc, block, size.max(8));
    block
}

#[track_caller]
pub fn free(alloc: &ThreadLocalAllocator, block: u64) {
    // SAFETY: the caller's block, not used again.
    unsafe { alloc.free_offset(MemContext::DEFAULT, OffsetPtr::new(block)).unwrap() };
}

/// So many operations, half of them allocations. Leaves nothing allocated.
pub fn operate(alloc: &ThreadLocalAllocator, operations: u64, seed: u64) {
    let mut random = Random(seed | 1);
    let mut live: Vec<(u64, usize)> = Vec::with_capacity(256);
    let mut freed = 0;
    while freed < operations / 2 {
        let full = live.len() == 256;
        if !full && (live.is_empty() || random.below(2) == 0) {
            let size = size(&mut random).max(8);
            let ctx = MemContext::new(ThreadId::new(random.below(4) as i32));
            live.push((allocate(alloc, ctx, size), size));
        } else {
            let (block, size) = live.swap_remove(random.below(live.len() as u64) as usize);
            check(alloc, block, size);
            free(alloc, block);
            freed += 1;
        }
    }
    for (block, size) in live {
        check(alloc, block, size);
        free(alloc, block);
    }
    // And one of whole chunks.
    let large = allocate(alloc, MemContext::DEFAULT, 5 * MIB);
    check(alloc, large, 5 * MIB);
    free(alloc, large);
}
