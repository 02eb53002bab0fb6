//! A heap for each test, and values whose lives are counted.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use hshm::{
    Allocator, AllocatorId, Backend, MIB, MemfdBackend, Region, RegionOptions, ShmHeap, ShmSafe,
    ThreadLocalAllocator,
};

/// An allocator that stays, over a region of its own, and its heap.
pub struct Place {
    pub alloc: &'static ThreadLocalAllocator,
    pub heap: ShmHeap,
}

pub fn region(len: usize) -> Region {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = AllocatorId::new(77_000, NEXT.fetch_add(1, Ordering::Relaxed));
    MemfdBackend::create("", &RegionOptions::new().capacity(len).id(id)).unwrap()
}

impl Place {
    pub fn usual() -> Place {
        Place::with(64 * MIB)
    }
    pub fn with(len: usize) -> Place {
        let alloc = Box::leak(Box::new(ThreadLocalAllocator::shm_init(region(len)).unwrap()));
        Place { alloc, heap: ShmHeap::of(alloc).unwrap() }
    }
    /// Runs `work`, which must leave nothing allocated, and a heap in order.
    #[track_caller]
    pub fn balanced<R>(&self, work: impl FnOnce(ShmHeap) -> R) -> R {
        let before = self.alloc.currently_allocated_size();
        let result = work(self.heap);
        assert_eq!(self.alloc.currently_allocated_size(), before);
        self.alloc.verify().unwrap();
        result
    }
}

/// A small generator of numbers; the same seed, the same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.number() >> 32) % bound as u64) as usize
    }
}

thread_local!(static LIVE: Cell<i64> = const { Cell::new(0) });

/// A value whose life is counted.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Counted(pub u64);

// SAFETY: a number; the destructor only counts.
unsafe impl ShmSafe for Counted {}

impl Counted {
    pub fn new(number: u64) -> Counted {
        LIVE.set(LIVE.get() + 1);
        Counted(number)
    }
    pub fn live() -> i64 {
        LIVE.get()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        LIVE.set(LIVE.get() - 1);
    }
}
