#![allow(unsafe_code)] // frees, and looks at blocks
use super::*;
use crate::arena::Growth;
use crate::base::ErrorCode;

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[test]
fn the_shortest_that_fits_is_taken() {
    let arena = Arena::new();
    let heap = BestFit::new(&arena);
    let sizes = [400, 100, 300, 200, 500];
    let blocks = sizes.map(|size| {
        let block = heap.allocate(layout(size, 8)).unwrap();
        heap.allocate(layout(8, 8)).unwrap(); // Keeps it from its neighbours.
        block
    });
    // SAFETY: each is freed once.
    blocks.iter().for_each(|&block| unsafe { heap.free(block).unwrap() });
    heap.verify().unwrap();
    for (wanted, found) in [(250, 2), (90, 1), (410, 4), (150, 3), (350, 0)] {
        assert_eq!(heap.allocate(layout(wanted, 8)).unwrap(), blocks[found]);
    }
    heap.verify().unwrap();
}

#[test]
fn neighbours_are_joined_in_every_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let arena = Arena::new();
        let heap = BestFit::new(&arena);
        let blocks = [(); 3].map(|()| heap.allocate(layout(100, 8)).unwrap());
        for index in order {
            // SAFETY: each is freed once.
            unsafe { heap.free(blocks[index]).unwrap() };
            heap.verify().unwrap();
        }
        let stats = heap.stats();
        assert_eq!((stats.free_blocks, stats.used_bytes, stats.chunks), (1, 0, 1));
    }
}

#[test]
fn bad_frees_are_refused() {
    let arena = Arena::new();
    let heap = BestFit::new(&arena);
    let [a, b] = [(); 2].map(|()| heap.allocate(layout(100, 8)).unwrap());
    // SAFETY: the second free of each is what is tested, and touches tags only.
    unsafe {
        heap.free(a).unwrap();
        assert_eq!(heap.free(a).unwrap_err().code(), ErrorCode::DoubleFree);
        assert_eq!(heap.free(b.add(4)).unwrap_err().code(), ErrorCode::NotABlock);
        b.as_ptr().write_bytes(0, 100);
        assert!(heap.free(b.add(16)).is_err());
        assert!(heap.free(NonNull::from(&mut 0u64).cast()).is_err());
        heap.free(b).unwrap();
    }
    heap.verify().unwrap();
}

#[test]
fn an_overrun_is_found() {
    let arena = Arena::new();
    let heap = BestFit::new(&arena);
    let block = heap.allocate(layout(96, 8)).unwrap();
    heap.verify().unwrap();
    // SAFETY: the footer is the heap's own memory.
    unsafe { block.add(96).write(0xFF) };
    assert_eq!(heap.verify(), Err(Error::Corrupt));
}

#[test]
fn sizes_that_overflow_and_full_arenas() {
    let arena = Arena::builder().growth(Growth::Fixed).capacity(40_000).build().unwrap();
    let heap = BestFit::new(&arena);
    for size in [isize::MAX as usize - 7, isize::MAX as usize - 100, 50_000] {
        assert_eq!(heap.allocate(layout(size, 8)).unwrap_err().code(), ErrorCode::OutOfMemory);
    }
    let far = layout(8, 1 << 62);
    assert_eq!(heap.allocate(far).unwrap_err().code(), ErrorCode::OutOfMemory);
    let mut blocks = Vec::new();
    while let Ok(block) = heap.allocate(layout(1000, 8)) {
        blocks.push(block);
    }
    assert!(blocks.len() >= 37, "{}", blocks.len());
    // SAFETY: each is freed once.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block).unwrap() });
    let stats = heap.verify().unwrap();
    assert_eq!((stats.used_blocks, stats.free_blocks), (0, stats.chunks));
}

/// Random allocations, frees and changes of length, against what was written into the blocks.
#[test]
fn a_model_of_it() {
    [0, 1, 16].into_iter().for_each(model);
}

fn model(most: u8) {
    let operations: usize = std::env::var("HSHM_ARENA_OPERATIONS")
        .map_or(30_000, |n| n.parse().expect("HSHM_ARENA_OPERATIONS is a number"));
    let arena = Arena::builder().growth(Growth::Reserved).capacity(256 * MIB).build().unwrap();
    let heap = BestFit::deferring(&arena, most);
    let mut live: Vec<(NonNull<u8>, usize, usize, u8)> = Vec::new();
    let mut random = 7u64;
    let check = |&(place, size, align, seed): &(NonNull<u8>, usize, usize, u8)| {
        assert_eq!(place.addr().get() % align, 0);
        // SAFETY: a live block of that size, every byte of which was written.
        let bytes = unsafe { core::slice::from_raw_parts(place.as_ptr(), size) };
        assert!(bytes.iter().all(|&byte| byte == seed));
    };
    for step in 0..operations {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (choice, at) = ((random >> 33) % 10, (random >> 40) as usize);
        let size = (at * 7) % (1 << ((random >> 37) % 13));
        let seed = step as u8;
        if live.is_empty() || choice < 5 && live.len() < 3000 {
            let align = if at % 4 == 0 { 1 << ((random >> 50) % 13) } else { 8 };
            let place = heap.allocate(layout(size, align)).unwrap();
            // SAFETY: allocated just now.
            unsafe { place.write_bytes(seed, size) };
            live.push((place, size, align, seed));
        } else if choice < 8 {
            let block = live.swap_remove(at % live.len());
            check(&block);
            // SAFETY: freed once.
            unsafe { heap.free(block.0).unwrap() };
        } else {
            let index = at % live.len();
            let (place, old, align, seed) = live[index];
            // SAFETY: a live block; the old pointer is forgotten.
            unsafe {
                let new = heap.reallocate(place, layout(old, 8), size).unwrap();
                let kept = old.min(size);
                assert!(core::slice::from_raw_parts(new.as_ptr(), kept).iter().all(|&b| b == seed));
                new.write_bytes(seed, size);
                let align = if new == place { align } else { 8 };
                live[index] = (new, size, align, seed);
            }
        }
        if step % 1024 == 0 {
            let stats = heap.verify().unwrap();
            assert_eq!(stats.used_blocks, live.len());
            live.iter().for_each(check);
        }
    }
    live.iter().for_each(check);
    for (place, ..) in live {
        // SAFETY: freed once.
        unsafe { heap.free(place).unwrap() };
    }
    assert_eq!(heap.join_waiting().unwrap(), most > 0);
    let stats = heap.verify().unwrap();
    assert_eq!((stats.used_bytes, stats.free_blocks), (0, stats.chunks));
}

/// Every allocation against a map of what is free: it must come from the shortest free block that is
/// long enough, and what is freed must be joined at once. Sizes lie about those where bins end.
#[test]
fn every_allocation_is_the_best_fit() {
    let operations: usize = std::env::var("HSHM_ARENA_OPERATIONS")
        .map_or(30_000, |n| n.parse().expect("HSHM_ARENA_OPERATIONS is a number"));
    let arena = Arena::builder().growth(Growth::Reserved).capacity(256 * MIB).build().unwrap();
    let heap = BestFit::new(&arena);
    let all = heap.allocate(layout(16 * MIB, 8)).unwrap();
    // SAFETY: live, and freed once.
    unsafe { heap.free(all).unwrap() };
    // Start to length: one chunk, one free block.
    let mut free =
        std::collections::BTreeMap::from([(all.addr().get() - 8, heap.stats().free_bytes)]);
    let mut live: Vec<(NonNull<u8>, usize)> = Vec::new();
    let mut random = 11u64;
    for step in 0..operations {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (choice, at) = ((random >> 60) as usize, (random >> 30) as usize);
        if live.is_empty() || choice < 8 && live.len() < 2000 {
            let size = match choice % 4 {
                0 => at % 120,
                1 => 960 + at % 120,
                2 => at % 1100,
                _ => at % 8000,
            };
            let needed = (size.next_multiple_of(8) + 16).max(SMALLEST as usize);
            let shortest = *free.values().filter(|&&len| len >= needed).min().unwrap();
            let place = heap.allocate(layout(size, 8)).unwrap();
            let start = place.addr().get() - 8;
            assert_eq!(free.remove(&start), Some(shortest), "step {step}: {size} bytes");
            let kept = if shortest - needed < SMALLEST as usize { shortest } else { needed };
            if kept != shortest {
                free.insert(start + kept, shortest - kept);
            }
            // SAFETY: a block of that many bytes.
            unsafe {
                assert_eq!(heap.usable_size(place).unwrap(), kept - 16);
                place.write_bytes(0xFF, kept - 16);
            }
            live.push((place, kept));
        } else {
            let (place, mut len) = live.swap_remove(at % live.len());
            // SAFETY: live, and freed once.
            unsafe { heap.free(place).unwrap() };
            let mut start = place.addr().get() - 8;
            if let Some(behind) = free.remove(&(start + len)) {
                len += behind;
            }
            if let Some((&before, &its)) = free.range(..start).next_back()
                && before + its == start
            {
                free.remove(&before);
                (start, len) = (before, its + len);
            }
            free.insert(start, len);
        }
        let stats = heap.stats();
        assert_eq!((stats.free_blocks, stats.chunks), (free.len(), 1));
        assert_eq!(stats.free_bytes, free.values().sum::<usize>());
        if step % 512 == 0 {
            assert_eq!(heap.verify().unwrap(), stats);
        }
    }
}

/// A free block in a bin, in the tree and in a ring whose links somebody wrote over.
#[test]
fn damaged_links_are_found() {
    for size in [100, 3000] {
        for word in 0..2 {
            let arena = Arena::new();
            let heap = BestFit::new(&arena);
            let blocks = [(); 6].map(|()| heap.allocate(layout(size, 8)).unwrap());
            // SAFETY: each is freed once; then links are damaged, which `verify` is to find.
            unsafe {
                for place in [blocks[0], blocks[2], blocks[4]] {
                    heap.free(place).unwrap();
                }
                heap.verify().unwrap();
                // In a bin the one in the middle, in the tree one of the ring.
                blocks[2].cast::<u64>().add(word).write(12);
            }
            assert_eq!(heap.verify(), Err(Error::Corrupt), "{size} {word}");
        }
    }
}

#[test]
fn what_waits_is_allocated_again_and_joined_when_it_must_be() {
    let arena = Arena::builder().growth(Growth::Fixed).capacity(40_000).build().unwrap();
    let heap = BestFit::deferring(&arena, 4);
    // One chunk that leaves no room for another.
    let whole = heap.allocate(layout(39_600, 8)).unwrap();
    // SAFETY: freed once; it is too long to wait.
    unsafe { heap.free(whole).unwrap() };
    let mut blocks = Vec::new();
    while let Ok(block) = heap.allocate(layout(400, 8)) {
        blocks.push(block);
    }
    let count = blocks.len();
    // SAFETY: each is freed once; the second free of one that waits touches its header only.
    unsafe {
        for (at, &block) in blocks[..6].iter().enumerate() {
            heap.free(block).unwrap();
            // (Within one that was joined a sanitizer sees it first.)
            let again = if at < 4 { heap.free(block).err() } else { None };
            assert_eq!(again.map(|error| error.code()), (at < 4).then_some(ErrorCode::DoubleFree));
        }
    }
    let stats = heap.verify().unwrap();
    assert_eq!(stats.used_blocks, count - 6);
    // Four wait, last in, first out; two were joined.
    for at in [3, 2, 1, 0, 4, 5] {
        assert_eq!(heap.allocate(layout(393, 8)).unwrap(), blocks[at]);
    }
    let stats = heap.verify().unwrap();
    assert_eq!((stats.used_blocks, stats.chunks), (count, 1));
    // SAFETY: each is freed once more.
    blocks.iter().for_each(|&block| unsafe { heap.free(block).unwrap() });
    // What waits is in the way of one block of all the memory, until the arena has no more.
    let whole = heap.allocate(layout(39_600, 8)).unwrap();
    let stats = heap.verify().unwrap();
    assert_eq!((stats.used_blocks, stats.free_blocks, stats.chunks), (1, 0, 1));
    assert!(!heap.join_waiting().unwrap());
    // SAFETY: freed once.
    unsafe { heap.free(whole).unwrap() };
}

/// What waits is much beside the next chunk: it is joined, and no chunk is taken.
#[test]
fn much_that_waits_is_joined_before_the_heap_grows() {
    let arena = Arena::new();
    let heap = BestFit::deferring(&arena, u8::MAX);
    let blocks: Vec<_> = (0..60).map(|_| heap.allocate(layout(984, 8)).unwrap()).collect();
    // SAFETY: each is freed once.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block).unwrap() });
    assert_eq!((heap.stats().chunks, heap.stats().free_blocks), (1, 61));
    heap.allocate(layout(50_000, 8)).unwrap();
    assert_eq!(heap.verify().unwrap().chunks, 1);
}

#[test]
fn damage_to_what_waits_is_found() {
    let arena = Arena::new();
    let heap = BestFit::deferring(&arena, 4);
    let [a, b, _c] = [(); 3].map(|()| heap.allocate(layout(96, 8)).unwrap());
    // SAFETY: each is freed once; what is damaged is the heap's own.
    unsafe {
        a.add(96).write(0xFF);
        heap.free(a).unwrap();
        heap.free(b).unwrap();
        assert_eq!(heap.verify(), Err(Error::Corrupt));
        // `b` is joined, `a` is left as it is.
        assert_eq!(heap.join_waiting().unwrap_err().code(), ErrorCode::NotABlock);
        a.add(96).write(96 + 16 + 1);
        assert_eq!(heap.verify().unwrap().used_blocks, 2);
        heap.free(a).unwrap();
        heap.verify().unwrap();
        a.cast::<u64>().write(12);
    }
    assert_eq!(heap.verify(), Err(Error::Corrupt));
}
