//! `BuddyAllocator` against an oracle that knows every live block, and rule by rule.
#![cfg(not(loom))]
#![allow(unsafe_code)] // the calls of an allocator that are unsafe, and its memory

use std::alloc::Layout;

use hshm::{
    Allocator, AllocatorId, BuddyAllocator, Error, ErrorCode, Heap, KIB, MIB, MemContext,
    OffsetPtr, Region, StackAllocator,
};
use proptest::prelude::*;

const CTX: MemContext = MemContext::DEFAULT;
const START: u64 = 1 << 16;
const HEADER: usize = 16;

fn region(bytes: usize) -> Region {
    // Ids are unique in a process, and tests run side by side.
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let minor = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Region::anonymous(AllocatorId::new(1, minor), START as usize + bytes).unwrap()
}

/// A buddy with `bytes` for its pages.
fn with_metadata(bytes: usize, metadata: usize) -> BuddyAllocator {
    let overhead = 464;
    let heap = Heap::new(START, START + (bytes + overhead) as u64).unwrap();
    let start = OffsetPtr::new(START);
    let buddy = BuddyAllocator::shm_init(region(bytes + overhead), start, heap, metadata).unwrap();
    assert_eq!(buddy.accounting().unwrap().untouched, bytes);
    buddy
}

fn buddy(bytes: usize) -> BuddyAllocator {
    with_metadata(bytes, HEADER)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

fn take<A: Allocator>(alloc: &A, size: usize) -> Result<OffsetPtr<u8>, Error> {
    alloc.allocate_offset(CTX, layout(size, 1))
}

fn give<A: Allocator>(alloc: &A, block: OffsetPtr<u8>) -> Result<(), Error> {
    // SAFETY: the tests use no block after they freed it.
    unsafe { alloc.free_offset(CTX, block) }
}

fn resize<A: Allocator>(
    alloc: &A,
    block: OffsetPtr<u8>,
    size: usize,
    align: usize,
) -> Result<OffsetPtr<u8>, Error> {
    // SAFETY: the tests use the returned block only.
    unsafe { alloc.reallocate_offset(CTX, block, layout(size, align)) }
}

fn check(buddy: &BuddyAllocator) {
    buddy.verify().unwrap();
    assert!(buddy.accounting().unwrap().balances());
}

/// A live block and what was written into it.
#[derive(Clone, Copy, Debug)]
struct Block {
    at: OffsetPtr<u8>,
    size: usize,
    seed: u8,
}

impl Block {
    fn byte(self, index: usize) -> u8 {
        self.seed ^ (index as u8).wrapping_mul(31) ^ (index >> 8) as u8
    }
    /// Bytes to look at: all of a small block, both ends and a sample of a large one.
    fn places(size: usize) -> impl Iterator<Item = usize> {
        (0..size).filter(move |&i| size <= 4096 || i < 64 || i + 64 >= size || i % 4093 == 0)
    }
    fn fill<A: Allocator>(self, alloc: &A) {
        for index in Block::places(self.size) {
            // SAFETY: inside a live block of `size` bytes that this test alone uses.
            unsafe { alloc.resolve(self.at).add(index).write(self.byte(index)) };
        }
    }
    fn check<A: Allocator>(self, alloc: &A, size: usize) {
        for index in Block::places(self.size).take_while(|&i| i < size) {
            // SAFETY: as above.
            let found = unsafe { alloc.resolve(self.at).add(index).read() };
            assert_eq!(found, self.byte(index), "byte {index} of {self:?}");
        }
    }
}

/// What is live, and what must hold of it.
struct Oracle<'a, A> {
    alloc: &'a A,
    live: Vec<Block>,
    seed: u8,
}

impl<'a, A: Allocator> Oracle<'a, A> {
    fn new(alloc: &'a A) -> Self {
        Oracle { alloc, live: Vec::new(), seed: 1 }
    }

    fn add(&mut self, at: OffsetPtr<u8>, size: usize, align: usize) {
        let end = at.offset() + size as u64;
        assert_eq!(self.alloc.resolve(at).addr() % align, 0);
        assert!(self.alloc.usable_size(at).unwrap() >= size);
        assert!(at.offset() >= START && end <= self.alloc.region_len() as u64);
        for other in &self.live {
            let apart =
                end <= other.at.offset() || other.at.offset() + other.size as u64 <= at.offset();
            assert!(apart, "{at:?} + {size} overlaps {other:?}");
        }
        self.seed = self.seed.wrapping_add(37);
        let block = Block { at, size, seed: self.seed };
        block.fill(self.alloc);
        self.live.push(block);
    }

    fn allocate(&mut self, size: usize, align: usize) -> Result<(), Error> {
        let at = self.alloc.allocate_offset(CTX, layout(size, align))?;
        self.add(at, size, align);
        Ok(())
    }

    fn free(&mut self, index: usize) {
        let block = self.live.swap_remove(index);
        block.check(self.alloc, block.size);
        give(self.alloc, block.at).unwrap();
    }

    fn reallocate(&mut self, index: usize, size: usize, align: usize) {
        let block = self.live.swap_remove(index);
        match resize(self.alloc, block.at, size, align) {
            Ok(at) => {
                Block { at, ..block }.check(self.alloc, size);
                self.add(at, size, align);
            }
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::OutOfMemory);
                block.check(self.alloc, block.size);
                self.live.push(block);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.live.iter().map(|b| self.alloc.usable_size(b.at).unwrap()).sum()
    }
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1usize..300,
        3 => 300usize..5000,
        2 => 15_000usize..18_000,
        3 => 16_384usize..200_000,
        1 => 900_000usize..2_500_000,
        1 => prop::sample::select(vec![0, 32, 33, 16_384, 16_385, MIB, MIB + 1, usize::MAX >> 1]),
    ]
}

fn aligns() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0u32), 3 => 0u32..8, 1 => 8u32..22].prop_map(|power| 1 << power)
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize, usize),
    Free(u16),
    Reallocate(u16, usize, usize),
    Wrong(u32),
    Coalesce,
    Rebuild,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (sizes(), aligns()).prop_map(|(s, a)| Step::Allocate(s, a)),
        6 => any::<u16>().prop_map(Step::Free),
        4 => (any::<u16>(), sizes(), aligns()).prop_map(|(i, s, a)| Step::Reallocate(i, s, a)),
        2 => any::<u32>().prop_map(Step::Wrong),
        1 => Just(Step::Coalesce),
        1 => Just(Step::Rebuild),
    ]
}

fn run(alloc: &BuddyAllocator, steps: &[Step]) {
    let mut oracle = Oracle::new(alloc);
    for step in steps {
        match *step {
            Step::Allocate(size, align) if size <= isize::MAX as usize - align => {
                if let Err(error) = oracle.allocate(size, align) {
                    let available = alloc.available();
                    assert_eq!(error, Error::OutOfMemory { requested: size, available });
                }
            }
            Step::Free(index) if !oracle.live.is_empty() => {
                oracle.free(index as usize % oracle.live.len());
            }
            Step::Reallocate(index, size, align) if !oracle.live.is_empty() && size < 1 << 40 => {
                oracle.reallocate(index as usize % oracle.live.len(), size, align);
            }
            Step::Wrong(offset) => {
                let at = OffsetPtr::new(START + u64::from(offset) % (6 * MIB as u64));
                if oracle.live.iter().all(|b| b.at != at) {
                    let before = alloc.accounting();
                    assert!(give(alloc, at).is_err());
                    assert_eq!(alloc.accounting(), before);
                }
            }
            Step::Coalesce => alloc.coalesce().unwrap(),
            Step::Rebuild => alloc.rebuild().unwrap(),
            _ => {}
        }
        check(alloc);
        assert_eq!(alloc.currently_allocated_size(), oracle.bytes());
    }
    while !oracle.live.is_empty() {
        oracle.free(0);
    }
    assert_eq!(alloc.currently_allocated_size(), 0);
    alloc.coalesce().unwrap();
    check(alloc);
    let empty = alloc.accounting().unwrap();
    assert_eq!((empty.taken, empty.free_pages), (0, 0), "everything went back to the heap");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_oracle(
        steps in prop::collection::vec(steps(), 1..150),
        metadata in prop::sample::select(vec![16usize, 32, 48, 256]),
        bytes in prop::sample::select(vec![64 * KIB, MIB, 5 * MIB]),
    ) {
        run(&with_metadata(bytes, metadata), &steps);
    }
}

// A6

#[test]
fn small_requests_take_their_own_list_rounded_up() {
    let buddy = buddy(MIB);
    let at = take(&buddy, 33).unwrap();
    assert_eq!(buddy.usable_size(at), Ok(64));
    give(&buddy, at).unwrap();
    assert_eq!(take(&buddy, 64), Ok(at));
    // Exactly 16 KiB is still rounded up, one more byte is not.
    let full = take(&buddy, 16 * KIB).unwrap();
    assert_eq!(buddy.usable_size(full), Ok(16 * KIB));
    let more = take(&buddy, 16 * KIB + 1).unwrap();
    assert_eq!(buddy.usable_size(more), Ok(16 * KIB + 16));
    give(&buddy, full).unwrap();
    assert_eq!(take(&buddy, 9000), Ok(full));
    check(&buddy);
}

#[test]
fn small_requests_split_a_larger_page_of_either_kind() {
    for larger in [4096, 100_000] {
        let buddy = buddy(MIB);
        let large = take(&buddy, larger).unwrap();
        let _stop = take(&buddy, 1).unwrap();
        give(&buddy, large).unwrap();
        let taken = buddy.accounting().unwrap().taken;
        let parts = buddy.usable_size(large).is_err();
        assert!(parts);
        let count = (larger + HEADER) / (128 + HEADER);
        for index in 0..count {
            let at = take(&buddy, 100).unwrap();
            assert!(
                at.offset() >= large.offset() && at.offset() < large.offset() + larger as u64,
                "{index}"
            );
        }
        assert_eq!(buddy.accounting().unwrap().taken, taken, "the heap was not asked");
        check(&buddy);
    }
}

#[test]
fn small_requests_coalesce_before_they_ask_the_heap() {
    let buddy = buddy(MIB);
    let blocks: Vec<_> = (0..8).map(|_| take(&buddy, 32).unwrap()).collect();
    let _stop = take(&buddy, 1).unwrap();
    let taken = buddy.accounting().unwrap().taken;
    for &block in &blocks {
        give(&buddy, block).unwrap();
    }
    assert_eq!(take(&buddy, 256), Ok(blocks[0]));
    assert_eq!(buddy.accounting().unwrap().taken, taken);
    check(&buddy);
}

// A7

#[test]
fn large_requests_take_the_first_fit_of_their_own_list() {
    let buddy = buddy(4 * MIB);
    let pages: Vec<_> = [17_000, 30_000, 20_000]
        .map(|size| {
            let at = take(&buddy, size).unwrap();
            take(&buddy, 1).unwrap();
            at
        })
        .to_vec();
    for &page in &pages {
        give(&buddy, page).unwrap();
    }
    // The list reads 20000, 30000, 17000.
    assert_eq!(take(&buddy, 25_000), Ok(pages[1]));
    assert_eq!(take(&buddy, 16_500), Ok(pages[2]));
    assert_eq!(take(&buddy, 16_900), Ok(pages[0]));
    check(&buddy);
}

#[test]
fn large_requests_search_every_larger_list() {
    // The only page that fits lies several lists up: one list is not enough to look at.
    for larger in [70_000, 150_000, 300_000, 600_000, MIB + 500] {
        let buddy = buddy(4 * MIB);
        let page = take(&buddy, larger).unwrap();
        let _stop = take(&buddy, 1).unwrap();
        give(&buddy, page).unwrap();
        let taken = buddy.accounting().unwrap().taken;
        assert_eq!(take(&buddy, 20_000), Ok(page), "{larger}");
        let sum = buddy.accounting().unwrap();
        assert_eq!(sum.taken, taken);
        // Cut to the size asked for; the rest is one page with its true size.
        assert_eq!(sum.free, larger.next_multiple_of(16) - 20_000 - HEADER);
        assert_eq!(sum.free_pages, 1);
        assert_eq!(take(&buddy, sum.free.min(40_000)).unwrap().offset(), page.offset() + 20_016);
        check(&buddy);
    }
}

#[test]
fn the_cap_list_is_checked_for_fit() {
    let buddy = buddy(32 * MIB);
    let pages: Vec<_> = [3 * MIB, MIB, 2 * MIB]
        .map(|size| {
            let at = take(&buddy, size).unwrap();
            take(&buddy, 1).unwrap();
            at
        })
        .to_vec();
    for &page in &pages {
        give(&buddy, page).unwrap();
    }
    let taken = buddy.accounting().unwrap().taken;
    assert_eq!(take(&buddy, 5 * MIB / 2), Ok(pages[0]));
    assert_eq!(take(&buddy, 2 * MIB), Ok(pages[2]));
    assert_eq!(take(&buddy, MIB), Ok(pages[1]));
    assert_eq!(buddy.accounting().unwrap().taken, taken);
    assert!(take(&buddy, 4 * MIB).unwrap().offset() > pages[2].offset());
    check(&buddy);
}

#[test]
fn large_requests_coalesce_before_they_ask_the_heap() {
    let buddy = buddy(4 * MIB);
    let blocks: Vec<_> =
        [20_000, 40, 5000, 17_000].map(|size| take(&buddy, size).unwrap()).to_vec();
    let _stop = take(&buddy, 1).unwrap();
    let taken = buddy.accounting().unwrap().taken;
    for &block in blocks.iter().rev() {
        give(&buddy, block).unwrap();
    }
    assert_eq!(take(&buddy, 45_000), Ok(blocks[0]));
    assert_eq!(buddy.accounting().unwrap().taken, taken);
    check(&buddy);
}

// A8

#[test]
fn small_remainders_stay_with_the_block() {
    // Remainders of 16 to 48 bytes: below a header and 32 bytes they are slack.
    for rest in [0usize, 16, 32, 48, 64] {
        let buddy = buddy(MIB);
        let page = take(&buddy, 20_000).unwrap();
        let _stop = take(&buddy, 1).unwrap();
        give(&buddy, page).unwrap();
        let before = buddy.currently_allocated_size();
        let at = take(&buddy, 20_000 - rest).unwrap();
        assert_eq!(at, page);
        let slack = if rest < HEADER + 32 { rest } else { 0 };
        assert_eq!(buddy.usable_size(at), Ok(20_000 - rest + slack));
        assert_eq!(buddy.accounting().unwrap().free_pages, usize::from(rest >= HEADER + 32));
        check(&buddy);
        give(&buddy, at).unwrap();
        assert_eq!(buddy.currently_allocated_size(), before);
        // The slack came back with the page: all of it is there again.
        assert_eq!(take(&buddy, 20_000), Ok(page));
        check(&buddy);
    }
}

#[test]
fn a_reused_page_keeps_its_true_size() {
    let buddy = buddy(256 * KIB);
    let big = take(&buddy, 100_000).unwrap();
    let _stop = take(&buddy, 1).unwrap();
    for size in [90_000, 50, 17_000, 99_990, 16_384] {
        give(&buddy, big).unwrap();
        let part = take(&buddy, size).unwrap();
        check(&buddy);
        give(&buddy, part).unwrap();
        assert_eq!(take(&buddy, 100_000), Ok(big), "no tail leaked after {size}");
    }
}

// Sizes and the end

#[test]
fn absurd_sizes_are_errors_and_change_nothing() {
    let buddy = buddy(MIB);
    let keep = take(&buddy, 100).unwrap();
    let before = buddy.accounting();
    for size in [isize::MAX as usize, isize::MAX as usize - 1000, 1 << 62, 1 << 40, 64 * MIB] {
        let available = buddy.available();
        let error = Error::OutOfMemory { requested: size, available };
        assert_eq!(take(&buddy, size), Err(error));
        assert_eq!(resize(&buddy, keep, size, 1).unwrap_err().code(), ErrorCode::OutOfMemory);
    }
    for size in [usize::MAX, usize::MAX - 15, usize::MAX - 16, 1 << 63] {
        assert!(buddy.allocate::<u8>(CTX, size).is_err());
        assert!(buddy.aligned_allocate::<u8>(CTX, size, 4096).is_err());
    }
    let huge = layout(1, 1 << 62);
    assert_eq!(buddy.allocate_offset(CTX, huge).unwrap_err().code(), ErrorCode::OutOfMemory);
    assert_eq!(buddy.aligned_allocate::<u8>(CTX, 1, 3), Err(Error::BadAlignment { align: 3 }));
    assert_eq!(buddy.accounting(), before);
    assert_eq!(take(&buddy, 64).map(|_| ()), Ok(()), "a smaller one still succeeds");
}

#[test]
fn sizes_from_one_byte_to_64_mib() {
    let buddy = buddy(160 * MIB);
    let mut oracle = Oracle::new(&buddy);
    let mut size = 1;
    while size <= 64 * MIB {
        for size in [size, size + 1] {
            oracle.allocate(size.min(64 * MIB), 1).unwrap();
            if size >= 8 * MIB {
                oracle.free(oracle.live.len() - 1);
            }
        }
        size *= 2;
    }
    check(&buddy);
    while !oracle.live.is_empty() {
        oracle.free(0);
    }
    assert_eq!(buddy.currently_allocated_size(), 0);
}

#[test]
fn out_of_memory_tells_the_truth_and_passes() {
    let buddy = buddy(MIB);
    let mut blocks: Vec<_> = std::iter::from_fn(|| take(&buddy, 1000).ok()).collect();
    let available = buddy.available();
    assert_eq!(take(&buddy, 1000), Err(Error::OutOfMemory { requested: 1000, available }));
    assert_eq!(blocks.len(), MIB / (1024 + HEADER));
    for block in blocks.drain(..) {
        give(&buddy, block).unwrap();
    }
    // All of it as one block: scattered pages and the heap's rest are one again.
    let all = take(&buddy, MIB - HEADER).unwrap();
    assert_eq!(buddy.available(), 0);
    let full = Error::OutOfMemory { requested: 1, available: 0 };
    assert_eq!(take(&buddy, 1), Err(full));
    give(&buddy, all).unwrap();
    assert_eq!(buddy.available(), MIB - HEADER);
    check(&buddy);
}

// A14

#[test]
fn every_alignment_with_nothing_lost() {
    for metadata in [16, 32, 80] {
        let buddy = with_metadata(160 * MIB, metadata);
        let mut oracle = Oracle::new(&buddy);
        for round in 0..3 {
            for power in 0..=22 {
                for size in [1, 100, 4096, 20_000] {
                    oracle.allocate(size, 1 << power).unwrap();
                }
                check(&buddy);
                for _ in 0..2 {
                    oracle.free(round % oracle.live.len());
                }
            }
        }
        while !oracle.live.is_empty() {
            oracle.free(oracle.live.len() / 2);
        }
        buddy.coalesce().unwrap();
        check(&buddy);
        assert_eq!(buddy.accounting().unwrap().taken, 0);
    }
}

// A13

#[test]
fn wrong_frees_are_refused_and_change_nothing() {
    let buddy = buddy(MIB);
    let other = with_metadata(MIB, 32);
    let at = take(&buddy, 1000).unwrap();
    let next = take(&buddy, 20_000).unwrap();
    let before = buddy.accounting();
    let length = buddy.region_len() as u64;
    for distance in 1..=2000u64 {
        let inside = OffsetPtr::new(at.offset() + distance);
        if inside != next {
            assert_eq!(give(&buddy, inside), Err(Error::NotABlock { offset: inside.offset() }));
            assert!(buddy.usable_size(inside).is_err());
            assert!(resize(&buddy, inside, 10, 1).is_err());
        }
    }
    for offset in [0, 8, 16, START, START + 464, length - 1, length - 16] {
        assert_eq!(give(&buddy, OffsetPtr::new(offset)), Err(Error::NotABlock { offset }));
    }
    for offset in [length, length + 16, 1 << 50, u64::MAX - 1] {
        let refused = Error::OffsetOutOfRange { offset, length };
        assert_eq!(give(&buddy, OffsetPtr::new(offset)), Err(refused));
    }
    assert_eq!(give(&buddy, OffsetPtr::NULL), Err(Error::NotABlock { offset: u64::MAX }));
    assert!(give(&other, at).is_err(), "another allocator's");
    assert_eq!(buddy.accounting(), before);

    give(&buddy, at).unwrap();
    assert_eq!(give(&buddy, at), Err(Error::DoubleFree { offset: at.offset() }));
    give(&buddy, next).unwrap();
    assert_eq!(give(&buddy, next), Err(Error::DoubleFree { offset: next.offset() }));
    buddy.coalesce().unwrap();
    // Merged and gone back to the heap: no header is left to be taken for one.
    assert!(give(&buddy, at).is_err() && give(&buddy, next).is_err());
    let big = take(&buddy, 50_000).unwrap();
    assert!(big == at && give(&buddy, next).is_err());
    check(&buddy);
}

#[test]
fn copied_headers_are_no_headers() {
    let buddy = buddy(MIB);
    let from = take(&buddy, 1000).unwrap();
    let to = take(&buddy, 1000).unwrap();
    for shift in (0..900).step_by(16) {
        // SAFETY: header and payload of one live block into another.
        unsafe {
            let header = buddy.resolve(from).sub(HEADER);
            header.copy_to_nonoverlapping(buddy.resolve(to).add(shift), 64);
        }
        let fake = OffsetPtr::new(to.offset() + shift as u64 + HEADER as u64);
        assert_eq!(give(&buddy, fake), Err(Error::NotABlock { offset: fake.offset() }));
    }
    check(&buddy);
}

// Reallocation

#[test]
fn reallocation_in_place() {
    let buddy = buddy(4 * MIB);
    let at = take(&buddy, 20_000).unwrap();
    let next = take(&buddy, 50_000).unwrap();
    let last = take(&buddy, 1000).unwrap();
    // The next page is used, so this one would move; freed, it is taken from.
    give(&buddy, next).unwrap();
    assert_eq!(resize(&buddy, at, 40_000, 1), Ok(at));
    assert_eq!(buddy.accounting().unwrap().free, 30_000);
    assert_eq!(resize(&buddy, at, 70_000, 1), Ok(at));
    assert_eq!(buddy.accounting().unwrap().free, 0);
    // To the last byte, with what is too small for a page as slack.
    assert_eq!(resize(&buddy, at, 70_016, 1), Ok(at));
    check(&buddy);
    // Shrinking cuts, and joins the rest with the free page behind it.
    assert_eq!(resize(&buddy, at, 60_000, 1), Ok(at));
    assert_eq!(resize(&buddy, at, 20_000, 1), Ok(at));
    assert_eq!(buddy.accounting().unwrap().free_pages, 1);
    check(&buddy);
    // The last block grows into the heap.
    assert_eq!(resize(&buddy, last, 1_000_000, 1), Ok(last));
    assert_eq!(resize(&buddy, last, 1_000_001, 1), Ok(last));
    check(&buddy);
    // A last free page and the heap together.
    let tail = take(&buddy, 30_000).unwrap();
    give(&buddy, tail).unwrap();
    assert_eq!(resize(&buddy, last, 1_500_000, 1), Ok(last));
    check(&buddy);
    // It moves where it must, for room or for alignment.
    let moved = resize(&buddy, at, 200_000, 1).unwrap();
    assert_ne!(moved, at);
    let aligned = resize(&buddy, moved, 100, 1 << 16).unwrap();
    assert_eq!(buddy.resolve(aligned).addr() % (1 << 16), 0);
    check(&buddy);
}

// The user's part of the header

#[test]
fn page_metadata_is_the_users() {
    let buddy = with_metadata(MIB, 64);
    let at = take(&buddy, 100).unwrap();
    // SAFETY: what a header has beyond the minimum is the user's.
    unsafe { buddy.resolve(at).sub(64 - BuddyAllocator::MIN_METADATA).write_bytes(0xEE, 48) };
    check(&buddy);
    give(&buddy, at).unwrap();
    let heap = || Heap::new(START, START + 4096).unwrap();
    for (metadata, code) in
        [(0, ErrorCode::TooSmall), (24, ErrorCode::BadAlignment), (8192, ErrorCode::TooLarge)]
    {
        let made = BuddyAllocator::shm_init(region(4096), OffsetPtr::new(START), heap(), metadata);
        assert_eq!(made.unwrap_err().code(), code);
    }
    let elsewhere = BuddyAllocator::shm_init(region(4096), OffsetPtr::new(0), heap(), 16);
    assert_eq!(elsewhere.unwrap_err().code(), ErrorCode::OffsetOutOfRange);
    let tiny = Heap::new(START, START + 300).unwrap();
    let tiny = BuddyAllocator::shm_init(region(4096), OffsetPtr::new(START), tiny, 16);
    assert_eq!(tiny.unwrap_err().code(), ErrorCode::OutOfMemory);
}

// Threads

#[test]
fn four_threads_through_two_handles() {
    let first = buddy(8 * MIB);
    let second = BuddyAllocator::shm_attach(first.region().clone(), first.header_offset()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let alloc = if thread % 2 == 0 { &first } else { &second };
            scope.spawn(move || {
                let mut state = thread + 1;
                let mut random = move |below: usize| {
                    state =
                        state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 33) as usize % below
                };
                let mut live: Vec<Block> = Vec::new();
                for round in 0..20_000 {
                    if live.len() < 64 && random(2) == 0 {
                        let most = [64, 2000, 40_000][random(3)];
                        let size = 1 + random(most);
                        let align = 1 << random(9);
                        let Ok(at) = alloc.allocate_offset(CTX, layout(size, align)) else {
                            continue;
                        };
                        let block = Block { at, size, seed: round as u8 ^ (thread * 64) as u8 };
                        block.fill(alloc);
                        live.push(block);
                    } else if !live.is_empty() {
                        let block = live.swap_remove(random(live.len()));
                        block.check(alloc, block.size);
                        if random(4) == 0 {
                            let size = 1 + random(5000);
                            if let Ok(at) = resize(alloc, block.at, size, 1) {
                                Block { at, ..block }.check(alloc, size);
                                give(alloc, at).unwrap();
                                continue;
                            }
                        }
                        give(alloc, block.at).unwrap();
                    }
                }
                for block in live {
                    block.check(alloc, block.size);
                    give(alloc, block.at).unwrap();
                }
            });
        }
    });
    check(&first);
    assert_eq!(first.currently_allocated_size(), 0);
    first.coalesce().unwrap();
    assert_eq!(second.accounting().unwrap().taken, 0);
}

// A1

#[test]
fn stack_bumps_and_resets() {
    let heap = Heap::new(START, START + MIB as u64).unwrap();
    let stack = StackAllocator::shm_init(region(MIB), OffsetPtr::new(START), heap).unwrap();
    let empty = stack.available();
    let mut oracle = Oracle::new(&stack);
    for round in 0..200 {
        oracle.allocate(round * 7, 1 << (round % 13)).unwrap();
    }
    // Only the last block's bytes come back; all of them stop counting.
    let at = oracle.live[0].at;
    oracle.free(0);
    assert_eq!(give(&stack, at), Err(Error::DoubleFree { offset: at.offset() }));
    assert!(give(&stack, at.add(8)).is_err());
    let last = take(&stack, 100).unwrap();
    assert_eq!(resize(&stack, last, 5000, 1), Ok(last));
    assert_eq!(resize(&stack, last, 50, 1), Ok(last));
    let mid = take(&stack, 10).unwrap();
    assert!(mid.offset() - last.offset() < 100);
    give(&stack, mid).unwrap();
    assert_eq!(take(&stack, 10), Ok(mid));
    let there = StackAllocator::shm_attach(region(0), stack.header_offset());
    assert!(there.is_err());
    for size in [MIB, 1 << 40, isize::MAX as usize] {
        let available = stack.available();
        assert_eq!(take(&stack, size), Err(Error::OutOfMemory { requested: size, available }));
    }
    // SAFETY: no block is used any more.
    unsafe { stack.reset().unwrap() };
    assert_eq!((stack.currently_allocated_size(), stack.available()), (0, empty));
    assert!(give(&stack, last).is_err());
    let _big = take(&stack, 50_000).unwrap();
    assert!(give(&stack, last).is_err(), "from before the reset");
}

#[test]
fn stack_is_shared_by_threads() {
    let heap = Heap::new(START, START + MIB as u64).unwrap();
    let stack = StackAllocator::shm_init(region(MIB), OffsetPtr::new(START), heap).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut blocks = Vec::new();
                while let Ok(at) = take(&stack, 40) {
                    let block = Block { at, size: 40, seed: at.offset() as u8 };
                    block.fill(&stack);
                    blocks.push(block);
                }
                for block in blocks {
                    block.check(&stack, 40);
                    give(&stack, block.at).unwrap();
                }
            });
        }
    });
    assert_eq!(stack.currently_allocated_size(), 0);
}
