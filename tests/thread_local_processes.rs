//! `ThreadLocalAllocator` in two real processes, which allocate side by side and free their own
//! and each other's blocks.
#![allow(unsafe_code)] // uses what was allocated

mod support;

use std::alloc::Layout;
use std::fmt::Write;
use std::fs::File;
use std::os::fd::AsRawFd;

use hshm::{
    Allocator, Backend, Error, KIB, MIB, MemContext, MemfdBackend, OffsetPtr, Region,
    RegionOptions, ThreadId, ThreadLocalAllocator,
};
use support::forked::{fork, wait};
use support::peer::{Peer, serve};
use support::{role, turn};

const CTX: MemContext = MemContext::DEFAULT;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn fill(alloc: &ThreadLocalAllocator, offset: u64, size: usize, byte: u8) {
    // SAFETY: the caller names a live block of its own.
    unsafe { alloc.resolve(OffsetPtr::new(offset)).write_bytes(byte, size) };
}

#[track_caller]
fn check(alloc: &ThreadLocalAllocator, offset: u64, size: usize, byte: u8) {
    // SAFETY: the caller names a live block of its own.
    let bytes = unsafe { std::slice::from_raw_parts(alloc.resolve(OffsetPtr::new(offset)), size) };
    assert!(bytes.iter().all(|found| *found == byte), "{size} bytes at {offset:#x} were changed");
}

fn free(alloc: &ThreadLocalAllocator, offset: u64) -> Result<(), Error> {
    // SAFETY: live and not used again, or refused.
    unsafe { alloc.free_offset(CTX, OffsetPtr::new(offset)) }
}

/// Allocates `count` blocks and fills them.
fn allocate(alloc: &ThreadLocalAllocator, count: usize, size: usize, byte: u8) -> Vec<u64> {
    let mut blocks = Vec::new();
    for _ in 0..count {
        let block = alloc.allocate_offset(CTX, layout(size)).unwrap();
        fill(alloc, block.offset(), size, byte);
        blocks.push(block.offset());
    }
    blocks
}

#[track_caller]
fn release(alloc: &ThreadLocalAllocator, blocks: &[u64], size: usize, byte: u8) {
    for &offset in blocks {
        check(alloc, offset, size, byte);
        free(alloc, offset).unwrap();
    }
}

/// Allocates until there is no more: how many blocks, and the error.
fn exhaust(alloc: &ThreadLocalAllocator, size: usize, blocks: &mut Vec<u64>) -> Error {
    loop {
        match alloc.allocate_offset(CTX, layout(size)) {
            Ok(block) => blocks.push(block.offset()),
            Err(error) => return error,
        }
    }
}

fn list(blocks: &[u64]) -> String {
    blocks.iter().fold(String::new(), |mut text, offset| {
        write!(text, "{offset} ").unwrap();
        text
    })
}

fn offsets(words: &[&str]) -> Vec<u64> {
    words.iter().map(|word| word.parse().unwrap()).collect()
}

/// The other side. `what` is `token max_bytes thread_blocks relocate`.
fn other_side(what: &str) {
    let words: Vec<&str> = what.split(' ').collect();
    let number = |at: usize| -> usize { words[at].parse().unwrap() };
    let options = RegionOptions::new().relocate(words[3] == "true");
    let region = Region::attach_token(&words[0].parse().unwrap(), &options).unwrap();
    assert_eq!(region.is_relocated(), words[3] == "true");
    let alloc = ThreadLocalAllocator::shm_attach(region, number(1), number(2)).unwrap();
    let mut kept = Vec::new();
    serve(|words| {
        let number = |at: usize| -> usize { words[at].parse().unwrap() };
        match words[0] {
            "allocate" => list(&allocate(&alloc, number(1), number(2), number(3) as u8)),
            "release" => {
                release(&alloc, &offsets(&words[3..]), number(1), number(2) as u8);
                "done".to_owned()
            }
            "free" => match free(&alloc, number(1) as u64) {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            },
            "exhaust" => {
                let error = exhaust(&alloc, number(1), &mut kept);
                let Error::OutOfMemory { requested, available } = error else { panic!("{error}") };
                format!("{} {requested} {available}", kept.len())
            }
            "drop" => {
                kept.drain(..).for_each(|offset| free(&alloc, offset).unwrap());
                alloc.trim();
                "done".to_owned()
            }
            "reallocate" => {
                let (old, new) = (OffsetPtr::new(number(1) as u64), layout(number(2)));
                // SAFETY: live, and replaced by the result.
                match unsafe { alloc.reallocate_offset(CTX, old, new) } {
                    Ok(block) => block.offset().to_string(),
                    Err(error) => error.to_string(),
                }
            }
            // Works through rounds of its own while the first process does, too.
            "churn" => {
                for round in 0..number(1) {
                    let size = 1 + round * 7919 % 90_000;
                    let mine = allocate(&alloc, 5, size, round as u8);
                    release(&alloc, &mine, size, round as u8);
                }
                "done".to_owned()
            }
            "verify" => alloc.verify().unwrap().blocks_in_use.to_string(),
            "current" => alloc.currently_allocated_size().to_string(),
            other => panic!("{other}"),
        }
    });
}

struct Pair {
    alloc: ThreadLocalAllocator,
    peer: Peer,
}

impl Pair {
    fn new(test: &str, len: usize, max_bytes: usize, relocate: bool) -> Pair {
        let region = MemfdBackend::create(test, &RegionOptions::new().capacity(len)).unwrap();
        let token = region.token().unwrap();
        let alloc = ThreadLocalAllocator::shm_init(region).unwrap();
        let peer = Peer::start(test, &format!("{token} {max_bytes} 4 {relocate}"));
        Pair { alloc, peer }
    }
    /// Has the other process allocate.
    fn theirs(&mut self, count: usize, size: usize, byte: u8) -> Vec<u64> {
        let answer = self.peer.ask(&format!("allocate {count} {size} {byte}"));
        offsets(&answer.split_whitespace().collect::<Vec<_>>())
    }
    /// Has the other process check and free.
    #[track_caller]
    fn release_there(&mut self, blocks: &[u64], size: usize, byte: u8) {
        let answer = self.peer.ask(&format!("release {size} {byte} {}", list(blocks)));
        assert_eq!(answer, "done");
    }
    #[track_caller]
    fn finish(mut self) {
        self.alloc.trim();
        assert_eq!(self.alloc.currently_allocated_size(), 0);
        assert_eq!(self.peer.ask("current"), "0");
        self.peer.ask("drop");
        self.alloc.verify().unwrap();
        assert_eq!(self.peer.ask("verify"), "0");
        self.peer.finish();
        assert_eq!(self.alloc.verify().unwrap().blocks_in_use, 0);
    }
}

const SIZES: [usize; 9] = [1, 48, 500, 5000, 33 * KIB, 64 * KIB, 200 * KIB, 2 * MIB + 1, 5 * MIB];

fn exchange(pair: &mut Pair, rounds: usize) {
    for round in 0..rounds {
        for (index, size) in SIZES.into_iter().enumerate() {
            let count = if size > MIB { 1 } else { 20 };
            let (mine, other) = (index as u8 * 2 + 1, index as u8 * 2 + 2);
            // At the same time.
            pair.peer.send(&format!("allocate {count} {size} {other}"));
            let ours = allocate(&pair.alloc, count, size, mine);
            let answer = pair.peer.receive();
            let theirs = offsets(&answer.split_whitespace().collect::<Vec<_>>());
            assert!(theirs.iter().all(|block| !ours.contains(block)), "handed out twice");
            pair.alloc.verify().unwrap();
            // Each frees half of its own and half of the other's.
            let (our_half, gift) = ours.split_at(count / 2);
            let (their_half, bounty) = theirs.split_at(count / 2);
            pair.peer.send(&format!("release {size} {mine} {}", list(gift)));
            release(&pair.alloc, our_half, size, mine);
            release(&pair.alloc, bounty, size, other);
            assert_eq!(pair.peer.receive(), "done");
            pair.release_there(their_half, size, other);
            assert_eq!(pair.alloc.currently_allocated_size(), 0, "round {round}, {size} bytes");
        }
    }
}

#[test]
fn own_and_each_others_blocks() {
    const TEST: &str = "own_and_each_others_blocks";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 64 * MIB, 0, false);
    exchange(&mut pair, 5);
    pair.finish();
}

#[test]
fn relocated() {
    const TEST: &str = "relocated";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 64 * MIB, 0, true);
    exchange(&mut pair, 5);
    pair.finish();
}

#[test]
fn both_at_once() {
    const TEST: &str = "both_at_once";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 64 * MIB, 0, false);
    let theirs = pair.theirs(2000, 100, 9);
    pair.peer.send("churn 2000");
    // Their blocks go back while they allocate.
    release(&pair.alloc, &theirs, 100, 9);
    for round in 0..2000 {
        let size = 1 + round * 6007 % 90_000;
        let ours = allocate(&pair.alloc, 5, size, round as u8);
        release(&pair.alloc, &ours, size, round as u8);
    }
    assert_eq!(pair.peer.receive(), "done");
    pair.finish();
}

/// What the other process frees serves again, whatever the sizes: many times the region passes
/// from one process to the other.
#[test]
fn what_others_free_comes_back() {
    const TEST: &str = "what_others_free_comes_back";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 24 * MIB, 0, false);
    for (size, count, rounds) in
        [(64 * KIB, 50, 30), (700 * KIB, 6, 30), (3 * MIB, 1, 30), (900, 3000, 30)]
    {
        for round in 0..rounds {
            let ours = allocate(&pair.alloc, count, size, round);
            pair.release_there(&ours, size, round);
            let theirs = pair.theirs(count, size, round);
            release(&pair.alloc, &theirs, size, round);
        }
    }
    pair.finish();
}

/// Memory that the other process gave back to one thread block serves another one, and other
/// sizes, when there is nothing else.
#[test]
fn what_others_free_serves_other_threads_and_sizes() {
    const TEST: &str = "what_others_free_serves_other_threads_and_sizes";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 24 * MIB, 0, false);
    for (tid, size) in [(0, 48), (1, 3000), (2, 64 * KIB), (3, 20 * KIB), (4, 300 * KIB), (5, 100)]
    {
        let ctx = MemContext::new(ThreadId::new(tid));
        let mut blocks = Vec::new();
        while let Ok(block) = pair.alloc.allocate_offset(ctx, layout(size)) {
            fill(&pair.alloc, block.offset(), size, tid as u8);
            blocks.push(block.offset());
        }
        assert!(blocks.len() * size > 12 * MIB, "{} blocks of {size} bytes", blocks.len());
        for some in blocks.chunks(2000) {
            pair.release_there(some, size, tid as u8);
        }
    }
    pair.finish();
}

#[test]
fn limits_hold() {
    const TEST: &str = "limits_hold";
    const LIMIT: usize = 16 * MIB;
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 128 * MIB, LIMIT, false);
    for size in [100, 5000, 64 * KIB, 600 * KIB, 3 * MIB] {
        let answer = pair.peer.ask(&format!("exhaust {size}"));
        let numbers = offsets(&answer.split_whitespace().collect::<Vec<_>>());
        let (count, requested, available) = (numbers[0], numbers[1], numbers[2]);
        let used = count as usize * size;
        assert!(used <= LIMIT && used > LIMIT / 2, "{count} blocks of {size} bytes");
        assert_eq!(requested, size as u64);
        assert!(available as usize <= LIMIT - used, "{available} available");
        // This process has no limit.
        let ours = allocate(&pair.alloc, 100, size.min(64 * KIB), 1);
        release(&pair.alloc, &ours, size.min(64 * KIB), 1);
        assert_eq!(pair.peer.ask("drop"), "done");
    }
    pair.finish();
}

/// A block that grows where it lies counts, too.
#[test]
fn growth_in_place_is_limited() {
    const TEST: &str = "growth_in_place_is_limited";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 128 * MIB, 16 * MIB, false);
    let block = pair.theirs(1, 3 * MIB, 7)[0];
    let grow = |mib: usize| format!("reallocate {block} {}", mib * MIB);
    assert_eq!(pair.peer.ask(&grow(12)), block.to_string(), "there is nothing behind it");
    for mib in [17, 40, 100] {
        let answer = pair.peer.ask(&grow(mib));
        assert!(answer.starts_with("out of memory"), "grew to {mib} MiB: {answer}");
    }
    assert_eq!(pair.peer.ask(&grow(16)), block.to_string());
    release(&pair.alloc, &[block], 3 * MIB, 7);
    pair.finish();
}

#[test]
fn double_frees_of_two_processes() {
    const TEST: &str = "double_frees_of_two_processes";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 64 * MIB, 0, false);
    for size in SIZES {
        let refused = pair.alloc.refused_frees();
        let before = pair.alloc.currently_allocated_size();
        let (mine, other) = (allocate(&pair.alloc, 2, size, 5), pair.theirs(2, size, 6));
        // Freed here, then there; freed there, then here. Its neighbour lives.
        for (block, first_here) in [(mine[0], true), (other[0], true), (mine[1], false)] {
            let there = format!("free {block}");
            if first_here {
                free(&pair.alloc, block).unwrap();
                assert_ne!(pair.peer.ask(&there), "done", "{size}");
            } else {
                assert_eq!(pair.peer.ask(&there), "done");
                assert!(free(&pair.alloc, block).is_err(), "{size}");
            }
            assert!(free(&pair.alloc, block).is_err(), "{size}");
            assert_ne!(pair.peer.ask(&there), "done", "{size}");
        }
        check(&pair.alloc, other[1], size, 6);
        release(&pair.alloc, &other[1..], size, 6);
        assert_eq!(pair.alloc.refused_frees() - refused, 9, "{size}");
        assert_eq!(pair.alloc.currently_allocated_size(), before);
    }
    pair.finish();
}

#[test]
fn blocks_outlive_their_process() {
    const TEST: &str = "blocks_outlive_their_process";
    if let Some(what) = role(TEST) {
        return other_side(&what);
    }
    let _turn = turn();
    let mut pair = Pair::new(TEST, 64 * MIB, 0, false);
    let blocks: Vec<Vec<u64>> = SIZES.iter().map(|size| pair.theirs(3, *size, 77)).collect();
    pair.peer.finish();
    let report = pair.alloc.verify().unwrap();
    assert_eq!(report.blocks_in_use, 3 * SIZES.len());
    for (blocks, size) in blocks.iter().zip(SIZES) {
        release(&pair.alloc, blocks, size, 77);
        assert!(free(&pair.alloc, blocks[0]).is_err());
    }
    assert_eq!(pair.alloc.currently_allocated_size(), 0);
    pair.alloc.verify().unwrap();
    // There is room for the next one.
    let region = pair.alloc.region().clone();
    let second = ThreadLocalAllocator::shm_attach(region, 0, 4).unwrap();
    let mine = allocate(&second, 100, 500, 3);
    release(&pair.alloc, &mine, 500, 3);
    drop(second);
    pair.alloc.verify().unwrap();
}

/// A program that closes every descriptor it does not know, and whose own files then get their numbers:
/// neither its children nor the end of the allocator close those.
#[test]
fn numbers_of_closed_descriptors_are_other_files() {
    let _turn = turn();
    wait(fork(|| {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(16 * MIB)).unwrap();
        let alloc = ThreadLocalAllocator::shm_init(region).unwrap();
        allocate(&alloc, 3, 100, 1);
        // SAFETY: the harness's descriptors are not used any more in this child.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
        let files: Vec<File> = (0..20).map(|_| File::open("/dev/zero").unwrap()).collect();
        let are_open = || {
            files.iter().all(|file| {
                // SAFETY: it only asks.
                unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) != -1 }
            })
        };
        assert!(are_open());
        wait(fork(|| assert!(are_open(), "a child closed its parent's files")));
        drop(alloc);
        assert!(are_open(), "the allocator closed the program's files");
    }));
}

/// What is allocated to be kept stays when its process leaves, whatever kind of block it is; what is not
/// kept goes.
#[test]
fn kept_from_the_first_moment() {
    let _turn = turn();
    let region = MemfdBackend::create("kept", &RegionOptions::new().capacity(64 * MIB)).unwrap();
    let first = ThreadLocalAllocator::shm_init(region.clone()).unwrap();
    let second = ThreadLocalAllocator::shm_attach(region, 0, 4).unwrap();
    let sizes = [32, 100, 5000, 30_000, 100_000, 3 * MIB];
    let both = |size: usize| {
        let kept = second.allocate_kept_offset(CTX, layout(size)).unwrap().offset();
        fill(&second, kept, size, 9);
        (kept, second.allocate_offset(CTX, layout(size)).unwrap().offset(), size)
    };
    // Blocks that were never used, and blocks that were, before and behind others.
    let mut blocks: Vec<_> = sizes.into_iter().map(both).collect();
    for round in 0..300 {
        let (kept, plain, _) = blocks.swap_remove(round % 3);
        free(&second, kept).unwrap();
        if round % 2 == 0 {
            free(&second, plain).unwrap();
        }
        blocks.push(both(sizes[round % 5]));
        blocks.extend((round < 50).then(|| both(100)));
    }
    let before = second.currently_allocated_size();
    let small = second.allocate_kept_offset(CTX, layout(24));
    assert_eq!((small, second.currently_allocated_size()), (Err(Error::Unsupported), before));
    // SAFETY: nobody uses what is not kept.
    unsafe { second.shm_detach() }.unwrap();
    assert_eq!(first.verify().unwrap().blocks_in_use, blocks.len());
    for (kept, plain, size) in blocks {
        assert!(first.usable_size(OffsetPtr::new(plain)).is_err(), "{size}");
        check(&first, kept, size, 9);
        free(&first, kept).unwrap();
    }
    assert_eq!(first.currently_allocated_size(), 0);
    first.verify().unwrap();
}
