//! What processes leave behind, and who uses the room around it.

use hshm::{
    Backend, KIB, MIB, MemContext, MemfdBackend, OffsetPtr, Owner, Region, RegionOptions, Roots,
    ThreadLocalAllocator,
};

use super::support::turn;
use super::victim::Victim;
use super::work::{Random, allocate, check, free, operate, size};

const CTX: MemContext = MemContext::DEFAULT;

fn home(capacity: usize) -> (Region, ThreadLocalAllocator) {
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(capacity)).unwrap();
    let alloc = ThreadLocalAllocator::shm_init(region.clone()).unwrap();
    (region, alloc)
}

fn visit(region: &Region) -> ThreadLocalAllocator {
    ThreadLocalAllocator::shm_attach(region.clone(), 0, 4).unwrap()
}

#[track_caller]
fn assert_empty(alloc: &ThreadLocalAllocator, free_chunks: usize) {
    alloc.trim();
    alloc.reap();
    let report = alloc.verify().unwrap();
    assert_eq!((report.blocks_in_use, report.slabs, report.free_granules), (0, 0, 0));
    assert_eq!(report.free_chunks, free_chunks);
}

/// One that leaves a block needs the granules of that block, and no chunk of its own.
#[test]
fn many_leave_a_little() {
    let _turn = turn();
    let (region, alloc) = home(64 * MIB);
    let free_chunks = alloc.verify().unwrap().free_chunks;
    let mut left = Vec::new();
    for number in 0..300 {
        let visitor = visit(&region);
        let sizes = if number % 10 == 0 { &[100, 100 * KIB][..] } else { &[100] };
        for &size in sizes {
            left.push((allocate(&visitor, CTX, size), size));
        }
        drop(visitor);
    }
    alloc.verify().unwrap();
    for &(block, size) in &left {
        check(&alloc, block, size);
        free(&alloc, block);
    }
    assert_empty(&alloc, free_chunks);
}

/// The same for processes that die behind a block that they handed over, and for published values.
#[test]
fn many_hand_over_and_die() {
    let _turn = turn();
    let (region, alloc) = home(64 * MIB);
    let roots = Roots::of(&alloc);
    roots.publish("first", 1u64).unwrap();
    for number in 0..60u64 {
        let victim = Victim::fork(|| {
            let own = visit(&region);
            operate(&own, 200, number);
            allocate(&own, CTX, 300 * KIB);
            Roots::of(&own).publish(&number.to_string(), [number; 5]).unwrap();
            std::mem::forget(own);
            // SAFETY: ends the process without ado.
            unsafe { libc::_exit(0) };
        });
        while !victim.has_failed() {
            std::thread::yield_now();
        }
        alloc.reap();
        assert_eq!(alloc.verify().unwrap().blocks_in_use, 3 + number as usize);
    }
    for number in 0..60u64 {
        let root = roots.find::<[u64; 5]>(&number.to_string()).unwrap();
        // SAFETY: nobody writes to it, or frees it, meanwhile.
        assert_eq!(unsafe { roots.get(root) }.unwrap(), &[number; 5]);
        free(&alloc, roots.unpublish(root).unwrap().offset());
    }
    alloc.trim();
    let report = alloc.verify().unwrap();
    assert_eq!((report.blocks_in_use, report.slabs), (2, 2));
}

/// A chunk in which nothing is left comes back although its adopter never frees anything itself.
#[test]
fn what_others_free_in_an_adopted_chunk_is_used_again() {
    let _turn = turn();
    let (region, alloc) = home(24 * MIB);
    let free_chunks = alloc.verify().unwrap().free_chunks;
    let visitor = visit(&region);
    let left: Vec<u64> = (0..25).map(|_| allocate(&visitor, CTX, 60 * KIB)).collect();
    drop(visitor);
    let adopter = visit(&region);
    let own = allocate(&adopter, CTX, 100);
    left.iter().for_each(|&block| free(&alloc, block));
    // All that there is, but for the granule of `own`.
    let mut all = Vec::new();
    while let Ok(block) = adopter_block(&adopter) {
        all.push(block);
    }
    let used = (all.len() + 1) * 64 * KIB;
    assert!(free_chunks - used < 64 * KIB, "{} bytes are missing", free_chunks - used);
    all.into_iter().for_each(|block| free(&alloc, block));
    free(&alloc, own);
    adopter.trim();
    drop(adopter);
    assert_empty(&alloc, free_chunks);
}

fn adopter_block(alloc: &ThreadLocalAllocator) -> Result<u64, hshm::Error> {
    use hshm::Allocator;
    Ok(alloc.allocate_offset(CTX, super::work::layout(60 * KIB))?.offset())
}

struct Block {
    at: u64,
    size: usize,
    /// Whose it is, by the number of the handle; `None` where it stays.
    whose: Option<u64>,
}

/// Handles come, leave and detach, allocate, hand over, and free one another's blocks, at random; the
/// list of what must be there is the oracle.
fn come_and_go(seed: u64, turns: usize) {
    let (region, alloc) = home(96 * MIB);
    let free_chunks = alloc.verify().unwrap().free_chunks;
    let mut random = Random(seed | 1);
    let mut handles: Vec<(u64, ThreadLocalAllocator)> = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    let mut number = 0;
    for turn in 0..turns {
        let pick = random.below(handles.len().max(1) as u64) as usize;
        match random.below(40) {
            0 | 1 if handles.len() < 5 => {
                number += 1;
                handles.push((number, visit(&region)));
            }
            2 if !handles.is_empty() => {
                // It leaves: what was its own stays.
                let (gone, handle) = handles.swap_remove(pick);
                drop(handle);
                for block in blocks.iter_mut().filter(|block| block.whose == Some(gone)) {
                    block.whose = None;
                }
            }
            3 if !handles.is_empty() => {
                let (gone, handle) = handles.swap_remove(pick);
                // SAFETY: nobody uses its blocks: they are taken off the list.
                unsafe { handle.shm_detach() }.unwrap();
                blocks.retain(|block| block.whose != Some(gone));
            }
            4 if !handles.is_empty() => handles[pick].1.trim(),
            5..10 if !blocks.is_empty() && !handles.is_empty() => {
                let (who, handle) = &handles[pick];
                let index = random.below(blocks.len() as u64) as usize;
                let block = &mut blocks[index];
                // Own ones are handed over, what is nobody's is taken.
                let to = match block.whose {
                    Some(whose) if whose == *who => Owner::Nobody,
                    None => Owner::ThisProcess,
                    _ => continue,
                };
                // SAFETY: the handle's own block, or nobody's.
                let done = unsafe { handle.transfer(OffsetPtr::new(block.at), to) };
                assert_eq!(done.is_err(), block.size <= 24, "{done:?}, {} bytes", block.size);
                if done.is_ok() {
                    block.whose = (to == Owner::ThisProcess).then_some(*who);
                }
            }
            10..24 if !handles.is_empty() && blocks.len() < 400 => {
                let (who, handle) = &handles[pick];
                let size = size(&mut random).max(8);
                let at = allocate(handle, CTX, size);
                blocks.push(Block { at, size, whose: Some(*who) });
            }
            24.. if !blocks.is_empty() => {
                let index = random.below(blocks.len() as u64) as usize;
                let block = blocks.swap_remove(index);
                check(&alloc, block.at, block.size);
                free(handles.get(pick).map_or(&alloc, |(_, handle)| handle), block.at);
            }
            _ => {}
        }
        if turn % 64 == 0 {
            for block in &blocks {
                check(&alloc, block.at, block.size);
                let nobodys = alloc.is_nobodys(OffsetPtr::new(block.at));
                assert_eq!(nobodys, Ok(block.whose.is_none()), "seed {seed}");
            }
            let report = alloc.verify().unwrap_or_else(|fault| panic!("{fault}, seed {seed}"));
            assert_eq!(report.blocks_in_use, blocks.len(), "seed {seed}");
        }
    }
    for (_, handle) in handles {
        drop(handle);
    }
    blocks.iter().for_each(|block| free(&alloc, block.at));
    assert_empty(&alloc, free_chunks);
}

#[test]
fn handles_come_and_go() {
    let _turn = turn();
    (1..=8).for_each(|seed| come_and_go(seed * 0x9E37, 3000));
}

#[test]
#[ignore = "long"]
fn handles_come_and_go_for_long() {
    let _turn = turn();
    (1..=300).for_each(|seed| come_and_go(seed * 0x7F4A_7C15, 20_000));
}
