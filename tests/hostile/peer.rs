//! A process that writes over a heap while another one works in it.

use std::time::{Duration, Instant};

use hshm::{
    Allocator, Backend, KIB, MIB, MemContext, MemfdBackend, OffsetPtr, Region, RegionOptions,
    Roots, ThreadLocalAllocator,
};

use super::choices::Choices;
use super::heap::{LOCKS, layout};
use super::support::{other_process_ok, role, turn};

const CTX: MemContext = MemContext::DEFAULT;
const LEN: usize = 12 * MIB;

/// Writes over the first `bytes` of the region until it is killed: any word but the locks.
fn scribble(region: &Region, bytes: usize, seed: u64) -> ! {
    let words = region.base().cast::<u64>();
    let mut choices = Choices::of_round(seed, 0);
    loop {
        // Mostly where tables are in use.
        let bound = if choices.once_in(4) { bytes } else { 64 * KIB };
        let at = choices.below(bound / 8);
        if at < 512 || LOCKS.contains(&(8 * at)) {
            continue;
        }
        // SAFETY: in the region, which stays mapped.
        unsafe {
            let place = words.add(at);
            let old = place.read_volatile();
            let value = match choices.below(4) {
                0 => 0,
                1 => old ^ 1 << choices.below(64),
                2 => old.wrapping_add(choices.below(5) as u64).wrapping_sub(2),
                _ => choices.word(),
            };
            place.write_volatile(value);
            // What was sound is sound again after a moment, or nothing would work any more.
            for _ in 0..choices.below(200) {
                std::hint::spin_loop();
            }
            if !choices.once_in(50) {
                place.write_volatile(old);
            }
        }
    }
}

/// In a process that may die: some seconds of work beside one that scribbles.
fn work(seconds: f64, seed: u64) {
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(LEN)).unwrap();
    let alloc = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
    let tables = alloc.verify().unwrap().tables;
    // SAFETY: any number of seconds is fine. A hang becomes a signal.
    unsafe { libc::alarm(600 + seconds as u32) };
    // SAFETY: the child does nothing but write to memory, and is killed below.
    let scribbler = match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: no memory is passed. The child goes with its parent.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            scribble(&region, tables, seed)
        }
        pid => pid,
    };
    let mut choices = Choices::of_round(seed, 1);
    let start = Instant::now();
    let (mut operations, mut fine) = (0u64, 0u64);
    let mut mine: Vec<u64> = Vec::new();
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        for _ in 0..100 {
            operations += 1;
            let size = choices.one_of(&[8, 100, 1000, 20 * KIB, 70 * KIB, 500 * KIB, 3 * MIB]);
            if mine.len() < 8 && choices.once_in(2) {
                if let Ok(block) = alloc.allocate_offset(CTX, layout(size, 8)) {
                    let at = block.offset() as usize;
                    assert!(at >= tables && at + size <= LEN, "{size} bytes at {at:#x}");
                    // SAFETY: in the data of the region; nobody uses any block.
                    unsafe { alloc.resolve(block).add(size - 1).write_volatile(1) };
                    mine.push(at as u64);
                    fine += 1;
                }
            } else {
                let offset = match mine.pop() {
                    Some(block) if !choices.once_in(10) => block,
                    _ => choices.below(LEN) as u64 & !7,
                };
                // SAFETY: nobody uses any block; what is none is refused.
                fine +=
                    u64::from(unsafe { alloc.free_offset(CTX, OffsetPtr::new(offset)) }.is_ok());
            }
        }
        match choices.below(8) {
            0 => drop(alloc.verify()),
            1 => alloc.trim(),
            2 => drop(alloc.reap()),
            3 => drop(alloc.currently_allocated_size()),
            4 => drop(Roots::of(&alloc).find::<u64>("nothing")),
            _ => drop(ThreadLocalAllocator::shm_attach(region.clone(), 0, 2)),
        }
    }
    // SAFETY: our own child.
    unsafe {
        libc::kill(scribbler, libc::SIGKILL);
        libc::waitpid(scribbler, std::ptr::null_mut(), 0);
        libc::alarm(0);
    }
    println!("{operations} operations beside a process that scribbles, {fine} succeeded");
    // How much succeeds is the other one's to say: where it runs first, it may break the heap at once.
    assert!(operations > 0);
}

#[test]
fn scribbles() {
    const TEST: &str = "peer::scribbles";
    if let Some(seed) = role(TEST) {
        work(1.0, seed.parse().unwrap());
        return;
    }
    let _turn = turn();
    for seed in 1..4 {
        other_process_ok(TEST, &seed.to_string());
    }
}

#[test]
#[ignore = "long"]
fn scribbles_for_long() {
    const TEST: &str = "peer::scribbles_for_long";
    if let Some(seed) = role(TEST) {
        work(20.0, seed.parse().unwrap());
        return;
    }
    let _turn = turn();
    for seed in 1..10 {
        other_process_ok(TEST, &seed.to_string());
    }
}
