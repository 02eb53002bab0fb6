//! What is freed goes back: to the region, and to the system.

mod support;

use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;

use hshm::{
    AllocatorId, BuddyAllocator, Error, Heap, HshmAlloc, OffsetPtr, Region, StackAllocator,
    ThreadLocalAllocator,
};
use support::{other_process_ok, role, turn};

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

const MIB: usize = 1 << 20;

/// Bytes of the heap that the kernel keeps: in memory, or swapped out where others need the memory.
fn resident() -> usize {
    let bytes = |region: Region| {
        let file = format!("/proc/self/fd/{}", region.fd().unwrap());
        std::fs::metadata(file).unwrap().blocks() as usize * 512
    };
    A.regions().map(bytes).sum()
}

#[test]
fn blocks_of_threads_that_ended() {
    let _turn = turn();
    let (sender, receiver) = mpsc::channel();
    for thread in 0..8u64 {
        let sender = sender.clone();
        let made = move || {
            let blocks: Vec<Box<[u64; 12]>> =
                (0..80_000).map(|n| Box::new([n ^ thread; 12])).collect();
            sender.send(blocks).unwrap();
        };
        std::thread::spawn(made).join().unwrap();
    }
    drop(sender);
    let blocks: Vec<Vec<Box<[u64; 12]>>> = receiver.iter().collect();
    let with_blocks = A.stats().slabs;
    assert!(with_blocks > 8 * 80_000 * 96);
    drop(blocks);
    let without = A.stats().slabs;
    assert!(without < 16 * MIB, "{without} bytes of slabs after {with_blocks}");
    A.verify().unwrap();
}

#[test]
fn trimming_leaves_next_to_nothing_resident() {
    let _turn = turn();
    let large = vec![1u8; 60 * MIB];
    let small: Vec<Box<[u64; 16]>> = (0..200_000).map(|n| Box::new([n; 16])).collect();
    assert!(resident() > 80 * MIB);
    drop((large, small));
    A.trim();
    assert!(resident() < 8 * MIB, "{} bytes resident", resident());
    A.verify().unwrap();
}

#[test]
fn most_of_a_peak_goes_back_by_itself() {
    let _turn = turn();
    let blocks: Vec<Vec<u8>> = (0..2000).map(|n| vec![1u8; 1 << (n % 21)]).collect();
    let peak = resident();
    assert!(peak > 180 * MIB);
    drop(blocks);
    assert!(resident() < peak / 2 && resident() < 100 * MIB, "{} of {peak}", resident());
    A.verify().unwrap();
}

/// A region has one engine: a second one over the same bytes would hand blocks out twice.
#[test]
fn a_second_engine_is_refused() {
    let _turn = turn();
    let global = A.regions().next().unwrap();
    let taken = Error::AlreadyExists;
    assert_eq!(ThreadLocalAllocator::shm_init(global.clone()).unwrap_err(), taken);
    let heap = || Heap::new(1 << 16, 1 << 20).unwrap();
    let offset = OffsetPtr::new(1 << 16);
    assert_eq!(BuddyAllocator::shm_init(global.clone(), offset, heap(), 16).unwrap_err(), taken);
    assert_eq!(StackAllocator::shm_init(global, offset, heap()).unwrap_err(), taken);

    let region = Region::anonymous(AllocatorId::new(79, 0), 4 * MIB).unwrap();
    let over_the_header = Heap::new(0, 1 << 20).unwrap();
    let error = BuddyAllocator::shm_init(region.clone(), OffsetPtr::new(0), over_the_header, 16);
    assert!(matches!(error, Err(Error::OffsetOutOfRange { offset: 0, .. })));
    let buddy = BuddyAllocator::shm_init(region.clone(), offset, heap(), 16).unwrap();
    assert_eq!(ThreadLocalAllocator::shm_init(region).unwrap_err(), taken);
    drop(buddy);
}

/// What a thread freed and keeps for itself goes to the heap where another of its blocks is to grow. In a new
/// heap, where runs lie one behind the other.
#[test]
fn a_kept_run_makes_room() {
    const RUN: usize = 128 << 10;
    if role("a_kept_run_makes_room").is_none() {
        let _turn = turn();
        return other_process_ok("a_kept_run_makes_room", "in a process of its own");
    }
    let mut runs: Vec<Vec<u8>> = (0..6).map(|n| vec![n; RUN]).collect();
    let places: Vec<_> = runs.iter().map(|run| run.as_ptr()).collect();
    assert!(places.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(RUN)), "{places:?}");
    drop(runs.remove(3));
    runs[2].reserve_exact(RUN);
    assert_eq!((runs[2].as_ptr(), runs[2].capacity()), (places[2], 2 * RUN));
    // Not where somebody uses it.
    runs[0].reserve_exact(RUN);
    assert_ne!(runs[0].as_ptr(), places[0]);
    assert!(runs.iter().zip([0, 1, 2, 4, 5]).all(|(run, n)| run.iter().all(|&byte| byte == n)));
    A.verify().unwrap();
}
