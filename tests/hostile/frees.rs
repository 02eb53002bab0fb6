//! Frees by offset and by handle of what is no block, or is nobody's any more: refused, and counted.

use std::alloc::Layout;

use hshm::{
    Allocator, AllocatorId, Backend, BuddyAllocator, Error, FullPtr, Heap, KIB, MIB, MemContext,
    MemfdBackend, OffsetPtr, Region, RegionOptions, ShmPtr, ThreadLocalAllocator,
};

use super::choices::Choices;
use super::support::turn;

const CTX: MemContext = MemContext::DEFAULT;
const LEN: usize = 64 * MIB;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// What both allocators say about frees.
trait Checked: Allocator {
    fn refusals(&self) -> u64;
    fn sound(&self);
    /// Whether two blocks of it may lie so that one's interior is the other's start.
    fn sizes() -> &'static [usize];
}

impl Checked for ThreadLocalAllocator {
    fn refusals(&self) -> u64 {
        self.refused_frees()
    }
    fn sound(&self) {
        self.verify().unwrap();
    }
    fn sizes() -> &'static [usize] {
        &[8, 24, 100, 700, 5000, 12 * KIB, 30 * KIB, 40 * KIB, 700 * KIB, 2 * MIB, 5 * MIB]
    }
}

impl Checked for BuddyAllocator {
    fn refusals(&self) -> u64 {
        self.refused_frees()
    }
    fn sound(&self) {
        self.verify().unwrap();
    }
    fn sizes() -> &'static [usize] {
        &[8, 32, 100, 5000, 16 * KIB, 40 * KIB, 700 * KIB, 2 * MIB]
    }
}

/// A free of `offset` that must be refused, and counted.
#[track_caller]
fn refuse<A: Checked>(alloc: &A, offset: u64) -> Error {
    let (before, used) = (alloc.refusals(), alloc.currently_allocated_size());
    // SAFETY: what is a block is nobody's; the test looks that this is none.
    let error = unsafe { alloc.free_offset(CTX, OffsetPtr::new(offset)) }.unwrap_err();
    assert_eq!(alloc.refusals(), before + 1, "{offset:#x} was refused and not counted: {error:?}");
    assert_eq!(alloc.currently_allocated_size(), used, "{offset:#x}");
    error
}

fn allocate<A: Checked>(alloc: &A, size: usize) -> u64 {
    alloc.allocate_offset(CTX, layout(size)).unwrap().offset()
}

#[track_caller]
fn free<A: Checked>(alloc: &A, block: u64) {
    // SAFETY: the caller's block.
    unsafe { alloc.free_offset(CTX, OffsetPtr::new(block)) }.unwrap();
}

/// All of it: `owner` has the blocks, `freer` frees them; `other` is another region's.
fn all_kinds<A: Checked, B: Checked>(owner: &A, freer: &A, other: &B) {
    let mut choices = Choices::of_round(5, 5);
    for &size in A::sizes() {
        let blocks = [0; 3].map(|_| allocate(owner, size));
        // Interior: every byte of small ones, the edges and some of the middle of large ones.
        let usable = owner.usable_size(OffsetPtr::new(blocks[1])).unwrap() as u64;
        let mut inside: Vec<u64> = (1..usable.min(600)).collect();
        inside.extend((0..200).map(|_| 1 + choices.below(usable as usize - 1) as u64));
        inside.extend(
            [4096, 65536, MIB as u64, 4 * MIB as u64].into_iter().filter(|at| *at < usable),
        );
        inside.push(usable - 1);
        for at in inside {
            let error = refuse(freer, blocks[1] + at);
            assert!(matches!(error, Error::NotABlock { .. }), "{size}+{at}: {error:?}");
        }
        // Twice, by either; and once more when its memory has become something else.
        free(freer, blocks[1]);
        for alloc in [freer, owner, freer] {
            let error = refuse(alloc, blocks[1]);
            let known = matches!(error, Error::DoubleFree { .. } | Error::NotABlock { .. });
            assert!(known, "{size}: {error:?}");
        }
        free(owner, blocks[0]);
        free(freer, blocks[2]);
        for block in blocks {
            refuse(freer, block);
        }
    }
    owner.sound();
    // Stale: what was a block, and lies in memory that has other blocks now.
    let old: Vec<u64> = (0..40).map(|_| allocate(owner, 1000)).collect();
    old.iter().for_each(|&block| free(owner, block));
    let new: Vec<u64> = (0..200).map(|_| allocate(owner, 24 * KIB)).collect();
    for &block in old.iter().filter(|block| !new.contains(block)) {
        refuse(freer, block);
    }
    new.iter().for_each(|&block| free(owner, block));
    // Random ones, of which none is a block.
    let kept = allocate(owner, 100);
    for _ in 0..20_000 {
        let offset = match choices.below(3) {
            0 => choices.word(),
            1 => choices.below(LEN) as u64,
            _ => choices.below(LEN) as u64 & !0xFFFF,
        };
        if offset != kept {
            refuse(freer, offset);
        }
    }
    for offset in [0, 1, 4096, LEN as u64 - 1, LEN as u64, LEN as u64 + 1, u64::MAX, u64::MAX - 1] {
        refuse(freer, offset);
    }
    // Foreign: a block, but another region's, by its handle.
    let elsewhere = allocate(other, 100);
    let theirs = FullPtr::from_offset(other, OffsetPtr::<u8>::new(elsewhere)).unwrap();
    let before = freer.refusals();
    // SAFETY: it is refused.
    let error = unsafe { freer.free(CTX, theirs) }.unwrap_err();
    assert_eq!(error, Error::ForeignPointer { found: other.id(), expected: freer.id() });
    // SAFETY: it is refused.
    assert!(unsafe { freer.free(CTX, FullPtr::<u8>::NULL) }.is_err());
    assert_eq!(freer.refusals(), before + 2);
    let made_up = ShmPtr::<u8>::new(AllocatorId::new(4_000_000, 1), OffsetPtr::new(kept));
    assert!(FullPtr::from_allocator(freer, made_up).is_err());
    free(other, elsewhere);
    free(freer, kept);
    owner.sound();
}

fn region() -> Region {
    MemfdBackend::create("", &RegionOptions::new().capacity(LEN)).unwrap()
}

fn buddy(region: &Region) -> BuddyAllocator {
    let start = region.payload_offset() as u64;
    let heap = Heap::new(start, region.len() as u64).unwrap();
    let metadata = BuddyAllocator::MIN_METADATA;
    BuddyAllocator::shm_init(region.clone(), OffsetPtr::new(start), heap, metadata).unwrap()
}

#[test]
fn of_a_heap() {
    let _turn = turn();
    let (here, there) = (region(), region());
    let owner = ThreadLocalAllocator::shm_init_with(here.clone(), 4).unwrap();
    let freer = ThreadLocalAllocator::shm_attach(here, 0, 4).unwrap();
    let other = buddy(&there);
    all_kinds(&owner, &owner, &other);
    all_kinds(&owner, &freer, &other);
}

#[test]
fn of_a_buddy() {
    let _turn = turn();
    let (here, there) = (region(), region());
    let owner = buddy(&here);
    let freer = BuddyAllocator::shm_attach(here, owner.header_offset()).unwrap();
    let other = ThreadLocalAllocator::shm_init_with(there, 4).unwrap();
    all_kinds(&owner, &owner, &other);
    all_kinds(&owner, &freer, &other);
}

/// A handle of a region that may not be written to frees nothing, and does not fault.
#[test]
fn read_only_regions_are_refused() {
    let _turn = turn();
    let here = region();
    let alloc = buddy(&here);
    let token = here.token().unwrap();
    let read_only = Region::attach_token(&token, &RegionOptions::new().read_only(true)).unwrap();
    let found = BuddyAllocator::shm_attach(read_only, alloc.header_offset());
    assert_eq!(found.err(), Some(Error::ReadOnly));
    let there = region();
    let _heap = ThreadLocalAllocator::shm_init_with(there.clone(), 4).unwrap();
    let token = there.token().unwrap();
    let read_only = Region::attach_token(&token, &RegionOptions::new().read_only(true)).unwrap();
    assert_eq!(ThreadLocalAllocator::shm_attach(read_only, 0, 1).err(), Some(Error::ReadOnly));
}
