//! Region files of any content: attaching, looking and freeing give Ok or Err.
//!
//! Each round damages a whole heap, then uses it as a process would that trusts nobody: attaches it,
//! walks it, reads its roots, frees offsets of all kinds, allocates. Nothing may panic, hang or
//! fault. The long form: `cargo test --release --test hostile -- --include-ignored --nocapture`.
#![allow(unsafe_code)] // writes into regions under their users

mod support;

use std::alloc::Layout;
use std::time::Instant;

use hshm::{
    Allocator, Backend, KIB, MIB, MemContext, MemfdBackend, OffsetPtr, Owner, Region,
    RegionOptions, Roots, ThreadLocalAllocator,
};
use support::turn;

const CTX: MemContext = MemContext::DEFAULT;
const LEN: usize = 24 * MIB;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 20) % bound
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A heap with something of everything in it, and where its data begins.
fn heap() -> (Region, usize) {
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(LEN)).unwrap();
    let alloc = ThreadLocalAllocator::shm_init(region.clone()).unwrap();
    for size in [8, 24, 100, 100, 1000, 20 * KIB, 40 * KIB, 300 * KIB, 5 * MIB] {
        let block = alloc.allocate_offset(CTX, layout(size)).unwrap();
        if size >= 100 {
            // SAFETY: our own block.
            unsafe { alloc.transfer(block, Owner::Nobody) }.unwrap();
        }
    }
    Roots::of(&alloc).publish("root", [1u64; 8]).unwrap();
    let tables = alloc.verify().unwrap().tables;
    (region, tables)
}

/// What an attached process may do with a heap that it does not trust. `frees` are offsets that are
/// not its own to free; they are checked, whatever they are.
fn use_it(region: &Region, random: &mut Random) -> u32 {
    let mut fine = 0;
    let Ok(alloc) = ThreadLocalAllocator::shm_attach(region.clone(), 0, 2) else { return 0 };
    fine += alloc.verify().is_ok() as u32;
    alloc.currently_allocated_size();
    let roots = Roots::of(&alloc);
    fine += roots.find::<[u64; 8]>("root").is_ok() as u32;
    fine += roots.iter().count() as u32;
    let mut mine = Vec::new();
    for size in [16, 3000, 70 * KIB] {
        if let Ok(block) = alloc.allocate_offset(CTX, layout(size)) {
            assert!(block.offset() as usize + size <= region.len(), "a block outside the region");
            mine.push(block);
        }
    }
    for _ in 0..8 {
        let offset = match random.below(4) {
            0 => random.next(),
            1 => random.below(LEN as u64) & !0xFFFF,
            2 => random.below(LEN as u64) & !7,
            _ => mine.pop().map_or(0, OffsetPtr::offset),
        };
        let _ = alloc.usable_size(OffsetPtr::new(offset));
        // SAFETY: nobody uses any block of this heap; what is none is refused.
        fine += unsafe { alloc.free_offset(CTX, OffsetPtr::new(offset)) }.is_ok() as u32;
    }
    alloc.reap();
    alloc.trim();
    fine
}

/// `HOSTILE_ROUNDS` says how much.
fn rounds() -> u64 {
    std::env::var("HOSTILE_ROUNDS").map_or(1_000_000, |text| text.parse().unwrap())
}

/// `rounds` heaps, with a few words each written over.
fn mutate(rounds: u64, seed: u64) {
    let _turn = turn();
    let start = Instant::now();
    let mut random = Random(seed);
    let (region, tables) = heap();
    let base = region.base().cast::<u64>();
    // The tables' pages that are in use, and the bytes that they had.
    let words = tables / 8;
    let read = |at: usize| {
        // SAFETY: inside the region, aligned; nobody else uses it.
        unsafe { base.add(at).read_volatile() }
    };
    let used: Vec<usize> = (0..words).filter(|&at| read(at) != 0).collect();
    let near: Vec<usize> =
        used.iter().flat_map(|at| at.saturating_sub(2)..(at + 3).min(words)).collect();
    let before: Vec<(usize, u64)> = (0..words).map(|at| (at, read(at))).collect();
    let (mut mutations, mut fine) = (0u64, 0u64);
    // SAFETY: any number of seconds is fine. A hang becomes a signal.
    unsafe { libc::alarm(600) };
    for _ in 0..rounds {
        for _ in 0..1 + random.below(4) {
            let at = match random.below(8) {
                0 => random.below(words as u64) as usize,
                1 => random.below(128) as usize,
                _ => near[random.below(near.len() as u64) as usize],
            };
            let value = match random.below(6) {
                0 => 0,
                1 => u64::MAX,
                2 => read(at) ^ 1 << random.below(64),
                3 => read(at).wrapping_add(random.below(9)).wrapping_sub(4),
                4 => read(near[random.below(near.len() as u64) as usize]),
                _ => random.next(),
            };
            // A lock that a living process holds is waited for, whoever wrote that it does. Its word
            // is the lower half of three words of the heap's header; see `src/README.md`.
            let locks = [0x1080, 0x1098, 0x10a0].contains(&(8 * at));
            let value = if locks { value | 0xFFFF_0000 } else { value };
            // SAFETY: as for reading.
            unsafe { base.add(at).write_volatile(value) };
            mutations += 1;
        }
        fine += u64::from(use_it(&region, &mut random));
        for &(at, value) in &before {
            if read(at) != value {
                // SAFETY: as for reading.
                unsafe { base.add(at).write_volatile(value) };
            }
        }
    }
    // SAFETY: no preconditions.
    unsafe { libc::alarm(0) };
    println!(
        "{mutations} words of {rounds} heaps written over, {fine} calls succeeded, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    assert!(fine > 0, "nothing was tried");
}

#[test]
fn damaged_tables() {
    mutate(300, 1);
}

#[test]
#[ignore = "long"]
fn damaged_tables_for_long() {
    mutate(rounds(), 2);
}

/// Headers of any bytes, in the file and not in a mapping.
fn headers(rounds: u64) {
    use std::os::unix::fs::FileExt;
    let _turn = turn();
    let (region, _) = heap();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", region.fd().unwrap()))
        .unwrap();
    let mut good = [0u8; 4096];
    file.read_exact_at(&mut good, 0).unwrap();
    let mut random = Random(3);
    let mut refused = 0u64;
    for _ in 0..rounds {
        let mut bytes = good;
        for _ in 0..1 + random.below(3) {
            let at = random.below(112) as usize;
            bytes[at] = match random.below(3) {
                0 => random.next() as u8,
                1 => bytes[at] ^ 1 << random.below(8),
                _ => 0xFF,
            };
        }
        file.write_all_at(&bytes[..112], 0).unwrap();
        match MemfdBackend::attach_fd(region.fd().unwrap(), &RegionOptions::new()) {
            Ok(again) => assert_eq!(again.len(), region.len()),
            Err(_) => refused += 1,
        }
    }
    file.write_all_at(&good[..112], 0).unwrap();
    println!("{rounds} headers, {refused} refused");
    assert!(refused > rounds / 2);
}

#[test]
fn damaged_headers() {
    headers(2_000);
}

#[test]
#[ignore = "long"]
fn damaged_headers_for_long() {
    headers(10 * rounds());
}
