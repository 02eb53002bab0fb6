//! Memory that the allocator says is zero, after it was anything but.
#![allow(unsafe_code)] // writes to and reads from what was allocated

use std::alloc::Layout;

use hshm::{
    Allocator, Backend, MIB, MemContext, MemfdBackend, OffsetPtr, PosixMmap, Region, RegionOptions,
    ThreadLocalAllocator,
};

const CTX: MemContext = MemContext::DEFAULT;

fn layout(mib: usize) -> Layout {
    Layout::from_size_align(mib * MIB, 4096).unwrap()
}

fn allocators() -> [ThreadLocalAllocator; 2] {
    let options = RegionOptions::new().capacity(512 * MIB);
    let regions: [Region; 2] = [
        MemfdBackend::create("zeroed", &options).unwrap(),
        PosixMmap::create("", &options).unwrap(),
    ];
    regions.map(|region| ThreadLocalAllocator::shm_init(region).unwrap())
}

/// Writes to one byte in every page from `from` MiB on.
fn dirty(alloc: &ThreadLocalAllocator, block: OffsetPtr<u8>, from: usize, to: usize) {
    for at in (from * MIB..to * MIB).step_by(4096) {
        // SAFETY: inside the live block.
        unsafe { alloc.resolve(block).add(at).write(0xFF) };
    }
}

#[track_caller]
fn assert_zero(alloc: &ThreadLocalAllocator, block: OffsetPtr<u8>, mib: usize) {
    let words = mib * MIB / 4096;
    let dirty = (0..words).find(|page| {
        // SAFETY: inside the live block.
        unsafe { alloc.resolve(block).add(page * 4096).read() != 0 }
    });
    assert_eq!(dirty, None, "a page is not zero");
}

/// Shrinks a block through `steps`, frees it, and allocates the same room again, zeroed.
fn shrink_and_allocate_again(steps: &[usize]) {
    for alloc in allocators() {
        let mut block = alloc.allocate_offset(CTX, layout(steps[0])).unwrap();
        dirty(&alloc, block, steps[0].saturating_sub(20), steps[0]);
        for mib in &steps[1..] {
            // SAFETY: live, and replaced by the result.
            let shrunk = unsafe { alloc.reallocate_offset(CTX, block, layout(*mib)).unwrap() };
            assert_eq!(shrunk, block, "large blocks shrink in place");
            block = shrunk;
        }
        // SAFETY: live, and not used again.
        unsafe { alloc.free_offset(CTX, block).unwrap() };
        let again = alloc.allocate_zeroed_offset(CTX, layout(steps[0])).unwrap();
        assert_eq!(again, block, "the test wants the same memory");
        assert_zero(&alloc, again, steps[0]);
        // SAFETY: live, and not used again.
        unsafe { alloc.free_offset(CTX, again).unwrap() };
        alloc.verify().unwrap();
    }
}

#[test]
fn after_a_large_block_shrank_within_its_last_chunk() {
    shrink_and_allocate_again(&[104, 102]);
}

#[test]
fn after_a_large_block_shrank_by_less_than_a_chunk() {
    shrink_and_allocate_again(&[105, 103]);
}

#[test]
fn after_a_large_block_shrank_twice() {
    shrink_and_allocate_again(&[104, 102, 80]);
    shrink_and_allocate_again(&[104, 100, 96, 95, 93, 70]);
}

#[test]
fn after_runs_shrank_and_grew() {
    for alloc in allocators() {
        let kib = |kib: usize| Layout::from_size_align(kib * 1024, 8).unwrap();
        for round in 0..3 {
            let block = alloc.allocate_zeroed_offset(CTX, kib(700)).unwrap();
            let bytes = |block: OffsetPtr<u8>, len: usize| {
                // SAFETY: only used while the block is live and that long.
                unsafe { std::slice::from_raw_parts_mut(alloc.resolve(block), len) }
            };
            assert!(bytes(block, 700 * 1024).iter().all(|byte| *byte == 0), "round {round}");
            bytes(block, 700 * 1024).fill(0xEE);
            // SAFETY: live, and replaced by the result, both times.
            let block = unsafe {
                let block = alloc.reallocate_offset(CTX, block, kib(130)).unwrap();
                alloc.reallocate_offset(CTX, block, kib(500)).unwrap()
            };
            bytes(block, 500 * 1024).fill(0xEE);
            let rest = alloc.allocate_zeroed_offset(CTX, kib(570)).unwrap();
            assert!(bytes(rest, 570 * 1024).iter().all(|byte| *byte == 0), "round {round}");
            bytes(rest, 570 * 1024).fill(0xDD);
            // SAFETY: live, and not used again.
            unsafe {
                alloc.free_offset(CTX, block).unwrap();
                alloc.free_offset(CTX, rest).unwrap();
            }
            alloc.trim();
            alloc.verify().unwrap();
        }
    }
}
