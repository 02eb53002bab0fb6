//! Thread blocks that one thread has to itself, beside others that are shared.
#![allow(unsafe_code)] // frees, and use of what was allocated

mod support;

use std::alloc::Layout;
use std::collections::HashSet;
use std::sync::mpsc;

use hshm::{
    Allocator, AllocatorId, Backend, Error, Exclusive, KIB, MIB, MemContext, MemfdBackend,
    OffsetPtr, Owner, Region, RegionOptions, ThreadLocalAllocator,
};
use support::forked::{fork, wait};

const CTX: MemContext = MemContext::DEFAULT;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn region(bytes: usize) -> Region {
    MemfdBackend::create("", &RegionOptions::new().capacity(bytes)).unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % bound
    }
    fn size(&mut self) -> usize {
        match self.below(20) {
            0 => 33 * KIB + self.below(500 * KIB as u64) as usize,
            1 => 3 * MIB,
            2..6 => 1000 + self.below(30_000) as usize,
            _ => 1 + self.below(600) as usize,
        }
    }
}

/// A block with its size and what is written at its ends.
#[derive(Clone, Copy)]
struct Held {
    at: OffsetPtr<u8>,
    size: usize,
}

impl Held {
    fn new(alloc: &ThreadLocalAllocator, at: OffsetPtr<u8>, size: usize) -> Held {
        let first = alloc.resolve(at);
        // SAFETY: just allocated with this size.
        unsafe {
            first.write(size as u8);
            first.add(size - 1).write(size as u8);
        }
        Held { at, size }
    }
    fn check(self, alloc: &ThreadLocalAllocator) -> OffsetPtr<u8> {
        let first = alloc.resolve(self.at);
        // SAFETY: live, and the holder's.
        let seen = unsafe { (first.read(), first.add(self.size - 1).read()) };
        assert_eq!(seen, (self.size as u8, self.size as u8), "{} bytes", self.size);
        self.at
    }
}

fn free(own: &Exclusive<'_>, held: Held) {
    let at = held.check(own.allocator());
    // SAFETY: the holder's block.
    unsafe { own.free_offset(at) }.unwrap();
}

/// Blocks of handles, of the allocator, and of another process's handle, freed through any of them.
#[test]
fn handles_and_the_allocator_free_each_others_blocks() {
    let region = region(96 * MIB);
    let one = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
    let two = ThreadLocalAllocator::shm_attach(region, 0, 8).unwrap();
    {
        let handles = [one.exclusive(), one.exclusive(), two.exclusive()].map(Result::unwrap);
        let mut random = Random(77);
        let mut held: Vec<Held> = Vec::new();
        for _ in 0..40_000 {
            let way = random.below(4) as usize;
            if held.len() < 60 && random.below(2) == 0 {
                let size = random.size();
                let at = match handles.get(way) {
                    Some(handle) => handle.allocate_offset(layout(size)),
                    None => one.allocate_offset(CTX, layout(size)),
                };
                held.push(Held::new(&one, at.unwrap(), size));
            } else if !held.is_empty() {
                let block = held.swap_remove(random.below(held.len() as u64) as usize);
                match handles.get(way) {
                    Some(handle) => free(handle, block),
                    // SAFETY: the test's own block.
                    None => unsafe { two.free_offset(CTX, block.check(&one)) }.unwrap(),
                }
            }
            if random.below(2000) == 0 {
                one.verify().unwrap();
                two.trim();
                handles[way % 3].tidy();
            }
        }
        for block in held {
            free(&handles[0], block);
        }
        assert_eq!(one.currently_allocated_size(), 0);
    }
    one.trim();
    two.trim();
    let report = one.verify().unwrap();
    assert_eq!((report.blocks_in_use, one.refused_frees()), (0, 0));
}

/// Blocks of two handles and of the allocator, made longer and shorter through a handle.
#[test]
fn blocks_grow_and_shrink() {
    let alloc = ThreadLocalAllocator::shm_init_with(region(256 * MIB), 4).unwrap();
    let (own, other) = (alloc.exclusive().unwrap(), alloc.exclusive().unwrap());
    let mut random = Random(0x9e37_79b9);
    let (mut blocks, mut stayed): (Vec<Held>, usize) = (Vec::new(), 0);
    for step in 0..20_000 {
        let size = random.size();
        if blocks.len() < 40 {
            let at = match step % 3 {
                0 => own.allocate_offset(layout(size)),
                1 => other.allocate_offset(layout(size)),
                _ => alloc.allocate_offset(CTX, layout(size)),
            };
            blocks.push(Held::new(&alloc, at.unwrap(), size));
            continue;
        }
        let index = random.below(40) as usize;
        let held = blocks[index];
        let old = held.check(&alloc);
        if step % 7 == 0 {
            free(&own, blocks.swap_remove(index));
            // SAFETY: what is refused changes nothing.
            let gone = unsafe { own.reallocate_offset(old, layout(size)) };
            let refused = matches!(gone, Err(Error::DoubleFree { .. } | Error::NotABlock { .. }));
            assert!(refused, "{gone:?}");
            continue;
        }
        // Often a granule more or less, as arrays grow.
        let size = if step % 2 == 0 { held.size + 64 * KIB } else { size };
        let align = 8 << random.below(6);
        let wanted = Layout::from_size_align(size, align).unwrap();
        // SAFETY: live, and only what comes back is used again.
        let at = unsafe { own.reallocate_offset(old, wanted) }.unwrap();
        assert!(alloc.resolve(at).addr().is_multiple_of(align));
        stayed += usize::from(at == old);
        // SAFETY: the block's first byte, which was copied if it moved.
        assert_eq!(unsafe { alloc.resolve(at).read() }, held.size as u8);
        blocks[index] = Held::new(&alloc, at, size);
        let far = Layout::from_size_align(1 << 40, 8).unwrap();
        // SAFETY: what fails changes nothing.
        assert!(unsafe { own.reallocate_offset(at, far) }.is_err());
    }
    assert!(stayed > 1000, "{stayed}");
    blocks.into_iter().for_each(|held| free(&own, held));
    drop((own, other));
    assert_eq!(alloc.currently_allocated_size(), 0);
    alloc.verify().unwrap();
}

/// Runs that a thread keeps are free to everybody who looks, and whoever has none left gets them.
#[test]
fn kept_runs_are_free_memory() {
    let region = region(256 * MIB);
    let one = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
    let two = ThreadLocalAllocator::shm_attach(region, 0, 4).unwrap();
    let sizes = [1, 2, 3, 5, 8, 13, 32].map(|granules| granules * 64 * KIB);
    let available = one.available();
    for way in 0..3 {
        let own = one.exclusive().unwrap();
        let foreign = two.exclusive().unwrap();
        let blocks: Vec<_> =
            sizes.iter().map(|&size| own.allocate_offset(layout(size)).unwrap()).collect();
        assert_eq!(one.verify().unwrap().blocks_in_use, sizes.len());
        for (index, &block) in blocks.iter().enumerate() {
            // SAFETY: the test's blocks, and frees that are refused.
            unsafe {
                match (way + index) % 3 {
                    0 => own.free_offset(block).unwrap(),
                    1 => one.free_offset(CTX, block).unwrap(),
                    _ => foreign.free_offset(block).unwrap(),
                }
                let double = Err(Error::DoubleFree { offset: block.offset() });
                assert_eq!(own.free_offset(block), double);
                assert_eq!(one.free_offset(CTX, block), double);
                assert_eq!(foreign.free_offset(block), double);
                assert!(
                    one.usable_size(block).is_err() && one.transfer(block, Owner::Nobody).is_err()
                );
            }
        }
        assert_eq!((one.currently_allocated_size(), one.verify().unwrap().in_use()), (0, 0));
        assert_eq!(one.available(), available);
        // The same runs again, and none twice.
        let again: HashSet<_> =
            sizes.iter().map(|&size| own.allocate_offset(layout(size)).unwrap().offset()).collect();
        assert_eq!(again.len(), sizes.len());
        assert!(blocks.iter().filter(|block| again.contains(&block.offset())).count() >= 5);
        for at in again {
            // SAFETY: the test's block.
            unsafe { own.free_offset(OffsetPtr::new(at)) }.unwrap();
        }
    }
    assert_eq!(one.refused_frees(), 3 * 3 * sizes.len() as u64);
    // The handles are gone, and what they keep is nobody's: all of it in one piece.
    let most = one.fragmentation().largest_free;
    one.trim();
    two.trim();
    assert!(one.fragmentation().largest_free >= most);
    let whole = one.allocate_offset(CTX, layout(200 * MIB)).unwrap();
    // SAFETY: as above.
    unsafe { one.free_offset(CTX, whole) }.unwrap();
    one.verify().unwrap();
}

/// A run that two threads free at the same moment, which is a mistake, is free once.
#[test]
fn runs_that_two_free_at_once_are_free_once() {
    let alloc = ThreadLocalAllocator::shm_init_with(region(64 * MIB), 4).unwrap();
    let (to, from) = mpsc::sync_channel::<OffsetPtr<u8>>(0);
    std::thread::scope(|scope| {
        let alloc = &alloc;
        scope.spawn(move || {
            let other = alloc.exclusive().unwrap();
            for block in from {
                // SAFETY: checked; whoever comes second is refused, now or when the owner looks.
                let _ = unsafe { other.free_offset(block) };
            }
        });
        let own = alloc.exclusive().unwrap();
        for round in 0..3000 {
            let size = (1 + round % 3) * 64 * KIB;
            let block = own.allocate_offset(layout(size)).unwrap();
            to.send(block).unwrap();
            // SAFETY: as above.
            let _ = unsafe { own.free_offset(block) };
            if round % 5 == 0 {
                own.tidy();
            }
        }
        drop(to);
    });
    // A free that came late may have been of a run that was handed out again; no run is two.
    let own = alloc.exclusive().unwrap();
    let blocks: HashSet<_> =
        (0..64).map(|_| own.allocate_offset(layout(64 * KIB)).unwrap().offset()).collect();
    assert_eq!(blocks.len(), 64);
    drop(own);
    alloc.trim();
    assert_eq!(alloc.verify().unwrap().blocks_in_use, 64);
}

#[test]
fn bad_frees_are_refused_and_counted() {
    let alloc = ThreadLocalAllocator::shm_init_with(region(24 * MIB), 4).unwrap();
    let (own, other) = (alloc.exclusive().unwrap(), alloc.exclusive().unwrap());
    for size in [8, 100, 5000, 40 * KIB, 5 * MIB] {
        let block = own.allocate_offset(layout(size)).unwrap();
        let mut refused = alloc.refused_frees();
        let mut refuse = |handle: &Exclusive<'_>, at: u64| {
            // SAFETY: it is refused.
            let error = unsafe { handle.free_offset(OffsetPtr::new(at)) }.unwrap_err();
            refused += 1;
            assert_eq!(alloc.refused_frees(), refused, "{error:?}");
        };
        for at in [1, 7, size as u64 / 2 + 1, size as u64 - 1] {
            refuse(&own, block.offset() + at);
            refuse(&other, block.offset() + at);
        }
        // SAFETY: the block is the test's.
        unsafe { own.free_offset(block) }.unwrap();
        for handle in [&own, &other, &own] {
            refuse(handle, block.offset());
        }
        // Returned by another, and not taken in yet.
        let block = own.allocate_offset(layout(size)).unwrap();
        // SAFETY: as above.
        unsafe { other.free_offset(block) }.unwrap();
        for handle in [&own, &other] {
            refuse(handle, block.offset());
        }
        for at in [0, 4096, 24 * MIB as u64, u64::MAX] {
            refuse(&own, at);
        }
    }
    own.tidy();
    assert_eq!(alloc.currently_allocated_size(), 0);
    alloc.verify().unwrap();
}

#[test]
fn handed_over_blocks() {
    let alloc = ThreadLocalAllocator::shm_init_with(region(24 * MIB), 4).unwrap();
    let own = alloc.exclusive().unwrap();
    for size in [32, 100, 5000] {
        let blocks = [0; 3].map(|_| own.allocate_offset(layout(size)).unwrap());
        for block in blocks {
            // SAFETY: the test's own block.
            unsafe {
                alloc.transfer(block, Owner::Nobody).unwrap();
                own.free_offset(block).unwrap();
                assert!(own.free_offset(block).is_err());
            }
        }
        // Whoever has the memory next owns it.
        let again = own.allocate_offset(layout(size)).unwrap();
        // SAFETY: as above.
        unsafe { own.free_offset(again) }.unwrap();
    }
    alloc.verify().unwrap();
}

#[test]
fn one_block_is_left_for_everybody() {
    let region = Region::anonymous(AllocatorId::new(0xE8C, 1), 24 * MIB).unwrap();
    let first = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
    let alloc = ThreadLocalAllocator::shm_attach(region, 0, 3).unwrap();
    let one = alloc.exclusive().unwrap();
    let two = alloc.exclusive().unwrap();
    assert_eq!(alloc.exclusive().err(), Some(Error::TableFull { slots: 2 }));
    // All threads share what is left.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let block = alloc.allocate_offset(CTX, layout(100)).unwrap();
                // SAFETY: the thread's own block.
                unsafe { alloc.free_offset(CTX, block) }.unwrap();
            });
        }
    });
    let kept = one.allocate_offset(layout(100)).unwrap();
    drop(one);
    // What the handle had goes on in the next.
    let again = alloc.exclusive().unwrap();
    // SAFETY: the test's own block.
    unsafe { again.free_offset(kept) }.unwrap();
    drop((again, two));
    let solitary = first;
    drop(alloc);
    solitary.verify().unwrap();
    assert_eq!(solitary.currently_allocated_size(), 0);
}

#[test]
fn running_out_and_going_on() {
    let alloc = ThreadLocalAllocator::shm_init_with(region(12 * MIB), 4).unwrap();
    let own = alloc.exclusive().unwrap();
    for size in [64, 3000, 100 * KIB] {
        let mut counts = [0; 3];
        for count in &mut counts {
            let mut blocks = HashSet::new();
            while let Ok(block) = own.allocate_offset(layout(size)) {
                assert!(blocks.insert(block.offset()), "handed out twice");
            }
            *count = blocks.len();
            for block in blocks {
                // SAFETY: the test's own block.
                unsafe { own.free_offset(OffsetPtr::new(block)) }.unwrap();
            }
        }
        assert!(counts[0] * size > 5 * MIB && counts[2] * 10 >= counts[0] * 9, "{counts:?}");
    }
    let error = own.allocate_offset(layout(1 << 40)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { requested, .. } if requested == 1 << 40));
    drop(own);
    alloc.verify().unwrap();
}

/// Producers with a handle each, a consumer with one: every block goes through the remote bitmaps.
#[test]
fn across_threads() {
    let alloc = ThreadLocalAllocator::shm_init_with(region(96 * MIB), 4).unwrap();
    let (send, receive) = mpsc::sync_channel::<Held>(200);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (send, alloc) = (send.clone(), &alloc);
            scope.spawn(move || {
                let own = alloc.exclusive().unwrap();
                let mut random = Random(thread + 1);
                for _ in 0..20_000 {
                    let size = 1 + random.below(2000) as usize;
                    let block = own.allocate_offset(layout(size)).unwrap();
                    send.send(Held::new(alloc, block, size)).unwrap();
                }
            });
        }
        drop(send);
        let own = alloc.exclusive().unwrap();
        let mut count = 0;
        while let Ok(block) = receive.recv() {
            free(&own, block);
            count += 1;
        }
        assert_eq!(count, 60_000);
    });
    assert_eq!(alloc.currently_allocated_size(), 0);
    alloc.trim();
    assert_eq!(alloc.verify().unwrap().blocks_in_use, 0);
}

#[test]
fn a_forked_childs_copy_is_dead() {
    let alloc = ThreadLocalAllocator::shm_init_with(region(24 * MIB), 4).unwrap();
    let own = alloc.exclusive().unwrap();
    let block = own.allocate_offset(layout(100)).unwrap();
    wait(fork(|| {
        assert_eq!(own.allocate_offset(layout(100)).err(), Some(Error::Forked));
        // SAFETY: it is refused.
        assert_eq!(unsafe { own.free_offset(block) }.err(), Some(Error::Forked));
        assert_eq!(alloc.exclusive().err(), Some(Error::Forked));
    }));
    // SAFETY: the test's own block.
    unsafe { own.free_offset(block) }.unwrap();
    drop(own);
    alloc.verify().unwrap();
}
