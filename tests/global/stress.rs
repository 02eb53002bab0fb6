//! Loads, sizes and alignments.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::sync_channel;

use hshm::{GIB, HshmAlloc, KIB, MIB};
use rayon::prelude::*;

use super::{Block, Random};

pub fn rayon_tasks(_: &'static HshmAlloc) {
    for round in 0..3u64 {
        // Made by some threads, ...
        let words: Vec<Vec<String>> = (0..400u64)
            .into_par_iter()
            .map(|n| (0..200).map(|i| format!("{round} {n} {}", i * n)).collect())
            .collect();
        // ... sorted and regrouped by others, ...
        let mut all: Vec<String> = words.into_par_iter().flatten().collect();
        all.par_sort_unstable();
        let lengths: BTreeMap<usize, usize> = all
            .par_iter()
            .fold(HashMap::new, |mut map: HashMap<usize, usize>, word| {
                *map.entry(word.len()).or_default() += 1;
                map
            })
            .reduce(HashMap::new, |mut a, b| {
                b.into_iter().for_each(|(length, count)| *a.entry(length).or_default() += count);
                a
            })
            .into_iter()
            .collect();
        assert_eq!(lengths.values().sum::<usize>(), 80_000);
        assert!(all.windows(2).all(|pair| pair[0] <= pair[1]));
        // ... and freed by yet others.
        let total: usize = all.into_par_iter().map(|word| word.len()).sum();
        assert_eq!(total, lengths.iter().map(|(length, count)| length * count).sum::<usize>());
    }
}

pub fn producers_and_consumers(alloc: &'static HshmAlloc) {
    let before = alloc.stats().in_use();
    std::thread::scope(|scope| {
        let mut queues = Vec::new();
        for seed in 0..2 {
            let (sender, receiver) = sync_channel::<Block>(256);
            queues.push(receiver);
            scope.spawn(move || {
                let mut random = Random(seed);
                for round in 0..40_000 {
                    let most = if round % 500 == 0 { 300 * KIB } else { 3000 };
                    let block = Block::new(alloc, random.size(most), 8, round as u8);
                    sender.send(block).unwrap();
                }
            });
        }
        for receiver in queues {
            // Every block is checked where it is dropped.
            scope.spawn(move || receiver.into_iter().for_each(drop));
        }
    });
    let after = alloc.stats().in_use();
    assert!(after < before + 48 * MIB, "{before} bytes became {after}");
}

pub fn vectors_that_grow(_: &'static HshmAlloc) {
    let mut bytes: Vec<Vec<u8>> = vec![Vec::new(); 8];
    let mut words: Vec<u64> = Vec::new();
    let mut texts: Vec<String> = vec![String::new(); 20];
    for step in 0..600_000u64 {
        let which = (step % 8) as usize;
        bytes[which].push((step * 7 + which as u64) as u8);
        words.push(step * step);
        if step % 50 == 0 {
            texts[(step / 50 % 20) as usize].push_str("grows by a little every time; ");
        }
    }
    // All the way up in odd steps, from a slab through runs to whole chunks.
    let mut exact: Vec<u8> = Vec::new();
    while exact.len() < 12 * MIB {
        let more = exact.len() / 7 + 13;
        exact.reserve_exact(more);
        let start = exact.len();
        exact.extend((start..start + more).map(|n| (n % 251) as u8));
    }
    assert!(exact.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
    while exact.len() > 100 {
        exact.truncate(exact.len() / 3 * 2);
        exact.shrink_to_fit();
        assert!(exact.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
    }
    for (which, bytes) in bytes.iter().enumerate() {
        let right = |n: usize| ((n as u64 * 8 + which as u64) * 7 + which as u64) as u8;
        assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == right(n)));
    }
    assert!(words.iter().enumerate().all(|(n, word)| *word == (n * n) as u64));
    assert!(texts.iter().all(|text| text.len() == 600 * 30));
}

pub fn alignments(alloc: &'static HshmAlloc) {
    let mut kept = Vec::new();
    for shift in 0..=26 {
        let align = 1 << shift;
        for size in [1, 3, 100, 4096, 33 * KIB, 200 * KIB + 1] {
            let mut block = Block::new(alloc, size, align, shift as u8 + 1);
            assert!(block.reallocate(size * 3));
            assert!(block.reallocate(size + size / 2));
            if shift <= 21 {
                kept.push(block);
            }
        }
        kept.iter().for_each(Block::check);
    }
    // And a large block at each.
    for shift in 16..=26 {
        let mut block = Block::new(alloc, 3 * MIB + 1, 1 << shift, 9);
        assert!(block.reallocate(9 * MIB));
        assert!(block.reallocate(100));
    }
}

pub fn zeroed_after_dirt(alloc: &'static HshmAlloc) {
    let sizes = [1, 8, 30, 64, 100, 500, 1024, 1025, 3000, 4096, 9000, 20_000, 32 * KIB];
    let large = [33 * KIB, 64 * KIB, 100 * KIB, 500 * KIB, 2 * MIB, 3 * MIB, 5 * MIB, 70 * MIB];
    for _ in 0..3 {
        for size in sizes.into_iter().chain(large) {
            let layout = Layout::from_size_align(size, 8).unwrap();
            let count = (256 * KIB / size).clamp(1, 300);
            let blocks: Vec<*mut u8> = (0..count)
                .map(|_| {
                    // SAFETY: the size is not zero.
                    let block = unsafe { alloc.alloc_zeroed(layout) };
                    assert!(!block.is_null());
                    // SAFETY: just handed out, and that long.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(block, size) };
                    assert!(bytes.iter().all(|byte| *byte == 0), "{size} bytes are not zero");
                    bytes.fill(0xFF);
                    block
                })
                .collect();
            for block in blocks {
                // SAFETY: live, and not used again.
                unsafe { alloc.dealloc(block, layout) };
            }
        }
    }
    // Shrunk inside its last chunk, then the whole again.
    let whole = Layout::from_size_align(100 * MIB, 8).unwrap();
    let part = Layout::from_size_align(98 * MIB, 8).unwrap();
    for _ in 0..2 {
        // SAFETY: sizes are not zero; every block is used while it lives only, and within its size.
        unsafe {
            let block = alloc.alloc_zeroed(whole);
            let tail = std::slice::from_raw_parts_mut(block.add(98 * MIB), 2 * MIB);
            assert!(tail.iter().all(|byte| *byte == 0));
            tail.fill(0xFF);
            let block = alloc.realloc(block, whole, part.size());
            alloc.dealloc(block, part);
        }
    }
}

pub fn large_and_untouched(alloc: &'static HshmAlloc) {
    let mut sizes = vec![GIB, GIB - 4096, 500 * MIB + 1, 128 * MIB, 64 * MIB - 1];
    sizes.extend((1..10).map(|n| n * 4 * MIB));
    for size in sizes {
        let layout = Layout::from_size_align(size, 4096).unwrap();
        // SAFETY: the size is not zero; the first and the last byte lie in the block, which is not
        // used after it is freed.
        unsafe {
            let block = alloc.alloc_zeroed(layout);
            assert!(!block.is_null(), "{size} bytes");
            assert_eq!((*block, *block.add(size - 1)), (0, 0));
            block.write(1);
            block.add(size - 1).write(2);
            let grown = alloc.realloc(block, layout, size + 4 * MIB);
            assert!(!grown.is_null());
            assert_eq!((*grown, *grown.add(size - 1)), (1, 2));
            alloc.dealloc(grown, Layout::from_size_align_unchecked(size + 4 * MIB, 4096));
        }
    }
    assert!(alloc.stats().large < 64 * MIB, "large blocks were not freed");
}

pub fn impossible_requests(alloc: &'static HshmAlloc) {
    let mut live: Vec<Block> = [10, 1000, 40 * KIB, 60 * KIB, 300 * KIB, 3 * MIB]
        .into_iter()
        .map(|size| Block::new(alloc, size, 8, 0x3C))
        .collect();
    let regions = alloc.stats().regions;
    let most = isize::MAX as usize;
    let mut sizes = vec![most - 7, most - 4095, most & !0xFFFF, 1 << 62, (1 << 62) + 1];
    sizes.extend((48..62).flat_map(|shift| [(1 << shift) - 1, 1 << shift, (1 << shift) + 40_000]));
    for size in sizes {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: the size is not zero.
        unsafe {
            assert!(alloc.alloc(layout).is_null(), "{size:#x}");
            assert!(alloc.alloc_zeroed(layout).is_null(), "{size:#x}");
        }
        for block in &mut live {
            assert!(!block.reallocate(size), "{size:#x}");
        }
    }
    for shift in 47..63 {
        for size in [1, 100, 100 * KIB, 5 * MIB] {
            let layout = Layout::from_size_align(size, 1 << shift).unwrap();
            // SAFETY: the size is not zero.
            assert!(unsafe { alloc.alloc(layout) }.is_null(), "at {:#x}", 1usize << shift);
        }
    }
    let mut vector = vec![7u8; 60 * KIB];
    assert!(vector.try_reserve(1 << 48).is_err());
    assert!(vector.try_reserve(1 << 62).is_err());
    assert!(vector.iter().all(|byte| *byte == 7));
    assert_eq!(alloc.stats().regions, regions, "regions were added in vain");
    live.iter().for_each(Block::check);
    // Everything goes on.
    live.iter_mut().for_each(|block| assert!(block.reallocate(2 * block.layout.size())));
}

/// What a thread freed and keeps for itself is no reason for its next block to move. (Others may take it first,
/// now and then; and where no two runs ever lie side by side there is nothing to see.)
pub fn runs_grow_over_kept_ones(alloc: &'static HshmAlloc) {
    const RUN: usize = 128 * KIB;
    let mut tried = 0;
    for round in 0..1000 {
        let mut blocks: Vec<_> = (0..6).map(|_| Block::new(alloc, RUN, 8, round as u8)).collect();
        blocks.sort_by_key(|block| block.at.addr());
        let Some(first) = (1..6).find(|&i| blocks[i].at == blocks[i - 1].at.wrapping_add(RUN))
        else {
            continue;
        };
        drop(blocks.remove(first));
        let block = &mut blocks[first - 1];
        let at = block.at;
        assert!(block.reallocate(2 * RUN));
        let stays = block.at == at;
        blocks.iter().for_each(Block::check);
        if stays {
            return;
        }
        tried += 1;
    }
    assert!(tried < 300, "none of {tried} runs grew in place");
}
