//! Locks that nobody will ever leave.

use std::time::Instant;

use hshm::{
    Allocator, Backend, BuddyAllocator, Error, Heap, KIB, MIB, MemContext, MemfdBackend, OffsetPtr,
    Region, RegionOptions, ThreadLocalAllocator,
};

use super::buddy::LOCK;
use super::heap::{LOCKS, layout};
use super::support::turn;

const CTX: MemContext = MemContext::DEFAULT;

fn set(region: &Region, at: usize, value: u32) {
    let place = region.base().wrapping_add(at).cast::<u32>();
    // SAFETY: in the header of the heap; nobody else uses it now.
    unsafe { place.write_volatile(value) };
}

/// A lock of the heap whose word names somebody: whoever lives is waited for, but not for ever.
#[test]
fn held_in_a_heap() {
    let _turn = turn();
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(12 * MIB)).unwrap();
    let first = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
    for lock in LOCKS {
        // The first process lives; its number is 1. With the mark of a waiter, and without.
        for holder in [1, 1 | 1 << 31].into_iter().skip(usize::from(lock != LOCKS[0])) {
            set(&region, lock, holder);
            let start = Instant::now();
            let found = ThreadLocalAllocator::shm_attach(region.clone(), 0, 2);
            assert_eq!(found.err(), Some(Error::Busy));
            assert!(start.elapsed().as_secs_f64() < 100.0);
            set(&region, lock, 0);
        }
        // Numbers that nobody has, and those that the next ones would get.
        for holder in (2..40).chain([0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFE]) {
            set(&region, lock, holder);
            let other = ThreadLocalAllocator::shm_attach(region.clone(), 0, 2).unwrap();
            let block = other.allocate_offset(CTX, layout(5 * MIB, 8));
            // SAFETY: our own block.
            unsafe { other.free_offset(CTX, block.unwrap()) }.unwrap();
            other.reap();
        }
    }
    first.verify().unwrap();
}

/// What somebody writes into the process table makes nobody wait who is inside already.
#[test]
fn the_process_table_holds_up_nobody() {
    let _turn = turn();
    // Behind the heap's header: a slot for each of four processes, the estate's and the visitor's.
    let table = 0x10C0..0x10C0 + 6 * 192;
    for (at, value) in table.step_by(4).flat_map(|at| [1, 4, u32::MAX].map(|value| (at, value))) {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(12 * MIB)).unwrap();
        let alloc = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
        let first = alloc.allocate_offset(CTX, layout(100, 8)).unwrap();
        set(&region, at, value);
        for size in [100, 40 * KIB, 3 * MIB] {
            let _ = alloc.allocate_offset(CTX, layout(size, 8));
        }
        // SAFETY: our own block.
        let _ = unsafe { alloc.free_offset(CTX, first) };
        alloc.trim();
        alloc.reap();
    }
}

/// The buddy's lock does not say who has it: it is an error at once, and no hanging later.
#[test]
fn held_in_a_buddy() {
    let _turn = turn();
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(MIB)).unwrap();
    let start = region.payload_offset() as u64;
    let heap = Heap::new(start, MIB as u64).unwrap();
    let first = BuddyAllocator::shm_init(
        region.clone(),
        OffsetPtr::new(start),
        heap,
        BuddyAllocator::MIN_METADATA,
    )
    .unwrap();
    let header = first.header_offset();
    let attach = || BuddyAllocator::shm_attach(region.clone(), header);
    attach().unwrap();
    set(&region, header.offset() as usize + LOCK, 77);
    assert_eq!(attach().err(), Some(Error::Busy));
    set(&region, header.offset() as usize + LOCK, 0);
    let block = attach().unwrap().allocate_offset(CTX, layout(100, 8)).unwrap();
    // SAFETY: our own block.
    unsafe { first.free_offset(CTX, block) }.unwrap();
}
