//! `ShmRing` between processes that are killed: between any two instructions, and under load.
#![allow(unsafe_code)] // forks, and looks at what another process made
#![allow(dead_code, unreachable_pub)] // the modules of other tests

#[path = "crash/victim.rs"]
mod victim;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hshm::{
    Backend, MIB, MemfdBackend, RegionOptions, ShmBox, ShmHeap, ShmRing, ThreadLocalAllocator,
};
use victim::{Lives, Victim, stay_on_one_processor, stop};

/// A message with a check.
type Message = [u64; 4];

fn message(number: u64) -> Message {
    [number, !number, number.rotate_left(17), number ^ 0x5555]
}

#[track_caller]
fn number(got: Message) -> u64 {
    assert_eq!(got, message(got[0]), "half a message");
    got[0]
}

/// One test at a time: they fork, and are slow.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Room for a ring of 5 KiB at each death, of which none is given back.
fn heap() -> ShmHeap {
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(256 * MIB)).unwrap();
    let alloc = Box::leak(Box::new(ThreadLocalAllocator::shm_init(region).unwrap()));
    ShmHeap::of(alloc).unwrap()
}

/// A ring that children share, in shared memory as they would find it.
fn ring(capacity: usize, heap: ShmHeap) -> &'static ShmRing<Message> {
    let ring = ShmRing::with_capacity_in(capacity, heap).unwrap();
    let place = ShmBox::new_in(ring, heap).unwrap().into_raw();
    // SAFETY: it stays, and is only used by shared references.
    unsafe { heap.get(place) }.unwrap()
}

const CAPACITY: usize = 4;
/// Nobody is that slow: whoever waits so long waits for nothing.
const LONG: Duration = Duration::from_secs(300);

/// What a victim is stepped through.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    Push,
    Pop,
    /// The ring is full: somebody has to look for lost cells, and there is one.
    PushWithLost,
    Join,
}

/// Kills a process after `count` instructions of an operation on a ring with two messages; then the
/// ring must have them, but for one that was being taken, and all its room.
fn die_at(heap: ShmHeap, operation: Operation, count: u64) -> Lives {
    let ring = ring(CAPACITY, heap);
    let mut survivor = ring.join().unwrap();
    for n in 0..2 {
        survivor.push(message(n)).unwrap();
    }
    if operation == Operation::PushWithLost {
        // Somebody died with a cell.
        let victim = pusher(ring);
        victim.step(with_a_cell(heap));
        victim.kill();
    }
    let victim = Victim::traced(|| {
        if operation == Operation::Join {
            stop();
            std::mem::forget(ring.join().unwrap());
            stop();
        } else {
            let mut handle = ring.join().unwrap();
            stop();
            match operation {
                Operation::Pop => assert!(handle.pop().is_some()),
                _ => (0..2).for_each(|_| handle.push(message(9)).unwrap_or(())),
            }
            stop();
            std::mem::forget(handle);
        }
    });
    let lives = victim.step(count);
    victim.kill();

    // Nobody waits for anybody: a survivor gets on at once.
    let start = Instant::now();
    let mut got: Vec<u64> = survivor.drain().map(number).collect();
    let ended = matches!(lives, Lives::Ended(_));
    let right: &[&[u64]] = match operation {
        Operation::Pop if ended => &[&[1]],
        Operation::Pop => &[&[0, 1], &[1]],
        Operation::Push if ended => &[&[0, 1, 9, 9]],
        Operation::Push => &[&[0, 1], &[0, 1, 9], &[0, 1, 9, 9]],
        Operation::PushWithLost if ended => &[&[0, 1, 9, 9]],
        Operation::PushWithLost => &[&[0, 1], &[0, 1, 9], &[0, 1, 9, 9]],
        Operation::Join => &[&[0, 1]],
    };
    assert!(right.contains(&got.as_slice()), "{operation:?} {count}: {got:?}");
    // All of the room comes back.
    for n in 0..CAPACITY as u64 {
        let given = survivor.push_wait(message(n), LONG);
        assert!(given.is_ok(), "{operation:?} {count}: only {n} places left");
    }
    assert!(survivor.push(message(99)).is_err());
    got = survivor.drain().map(number).collect();
    assert_eq!(got, [0, 1, 2, 3]);
    survivor.check().unwrap();
    assert!(start.elapsed() < LONG, "somebody waited to the end");
    drop(victim);
    // The place among the members, too.
    let handles: Vec<_> = (0..63).map(|_| ring.join().unwrap()).collect();
    drop(handles);
    lives
}

/// A process that is about to push.
fn pusher(ring: &ShmRing<Message>) -> Victim {
    Victim::traced(|| {
        let mut handle = ring.join().unwrap();
        stop();
        let _ = handle.push(message(90));
        stop();
    })
}

/// After how many instructions it has a cell, and no message in the ring.
fn with_a_cell(heap: ShmHeap) -> u64 {
    static FOUND: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        let has = |&count: &u64| {
            let ring = ring(CAPACITY, heap);
            let victim = pusher(ring);
            assert!(matches!(victim.step(count), Lives::Stopped), "it never had");
            let mut here = ring.join().unwrap();
            here.is_empty() && (0..).take_while(|&n| here.push(message(n)).is_ok()).count() == 3
        };
        (0..).step_by(5).find(has).unwrap()
    })
}

fn step_through(offsets: u64) {
    let _turn = turn();
    stay_on_one_processor();
    let heap = heap();
    for operation in [Operation::Push, Operation::Pop, Operation::PushWithLost, Operation::Join] {
        let Lives::Ended(instructions) = die_at(heap, operation, u64::MAX) else { panic!() };
        let offsets = offsets.min(instructions);
        for index in 0..offsets {
            die_at(heap, operation, index * instructions / offsets);
        }
        println!("{operation:?}: {instructions} instructions, {offsets} deaths");
    }
}

#[test]
fn killed_at_some_instructions() {
    step_through(25);
}

#[test]
#[ignore = "long"]
fn killed_at_every_instruction() {
    step_through(u64::MAX);
}

/// A stopped process holds nobody up.
#[test]
fn a_stopped_process_keeps_one_place() {
    let _turn = turn();
    let heap = heap();
    let ring = ring(CAPACITY, heap);
    let mut here = ring.join().unwrap();
    for count in (0..60).step_by(3) {
        let victim = Victim::traced(|| {
            let mut handle = ring.join().unwrap();
            stop();
            let _ = handle.push(message(7));
            stop();
        });
        victim.step(count);
        for n in 0..200 {
            assert!(here.push(message(n)).is_ok());
            let got: Vec<u64> = here.drain().map(number).collect();
            assert!(got.ends_with(&[n]) && got.iter().all(|&got| got == n || got == 7));
        }
        // All places but one.
        let room = (0..).take_while(|&n| here.push(message(n)).is_ok()).count();
        assert!(room >= CAPACITY - 1, "{room}");
        here.drain().for_each(drop);
    }
}

/// Producers and consumers at work; one after another is killed.
fn under_load(kills: u32) {
    const PRODUCERS: usize = 3;
    const CONSUMERS: usize = 3;
    let _turn = turn();
    let heap = heap();
    let ring = ring(16, heap);
    // What each producer began and finished to push, and how many were taken.
    #[repr(C)]
    struct Ledger {
        pushed: AtomicU64,
        taken: AtomicU64,
        next: [AtomicU64; 64],
    }
    // SAFETY: atomics.
    unsafe impl hshm::ShmSafe for Ledger {}
    let ledger = Ledger {
        pushed: AtomicU64::new(0),
        taken: AtomicU64::new(0),
        next: [const { AtomicU64::new(0) }; 64],
    };
    let ledger = ShmBox::new_in(ledger, heap).unwrap().into_raw();
    // SAFETY: it stays, and is only used by shared references.
    let ledger: &Ledger = unsafe { heap.get(ledger) }.unwrap();
    let producer = |lane: usize| {
        Victim::fork(|| {
            let mut handle = ring.join().unwrap();
            loop {
                let n = ledger.next[lane].fetch_add(1, Ordering::SeqCst);
                handle.push_wait(message((lane as u64) << 40 | n), LONG).unwrap();
                ledger.pushed.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let consumer = || {
        Victim::fork(|| {
            let mut handle = ring.join().unwrap();
            let mut last = [None; 64];
            loop {
                let got = number(handle.pop_wait(LONG).expect("nothing came for so long"));
                let lane = &mut last[(got >> 40) as usize];
                assert!(lane.is_none_or(|last| last < got), "out of order");
                *lane = Some(got);
                ledger.taken.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let mut producers: Vec<_> = (0..PRODUCERS).map(producer).collect();
    let mut consumers: Vec<_> = (0..CONSUMERS).map(|_| consumer()).collect();
    for kill in 0..kills {
        let before = ledger.taken.load(Ordering::SeqCst);
        let start = Instant::now();
        while ledger.taken.load(Ordering::SeqCst) < before + 200 {
            assert!(start.elapsed() < LONG, "no progress after {kill} kills");
            assert!(!producers.iter().chain(&consumers).any(Victim::has_failed));
            std::thread::sleep(Duration::from_micros(100));
        }
        // Killed at a time of its own, not of the loop's.
        std::thread::sleep(Duration::from_micros(u64::from(kill) * 37 % 300));
        let which = kill as usize % (PRODUCERS + CONSUMERS);
        if which < PRODUCERS {
            producers[which].kill();
            producers[which] = producer(which);
        } else {
            consumers[which - PRODUCERS].kill();
            consumers[which - PRODUCERS] = consumer();
        }
    }
    drop(producers);
    // The rest comes out, and then everything that was pushed was taken, but for one a killed
    // consumer, and one that each killed producer had pushed and not counted.
    let mut handle = ring.join().unwrap();
    let start = Instant::now();
    while !ring.is_empty() {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
    drop(consumers);
    let (pushed, taken) =
        (ledger.pushed.load(Ordering::SeqCst), ledger.taken.load(Ordering::SeqCst));
    let deaths = u64::from(kills) + (PRODUCERS + CONSUMERS) as u64;
    assert!(taken <= pushed + deaths && pushed <= taken + deaths, "{pushed} {taken} {deaths}");
    for n in 0..16 {
        assert!(handle.push_wait(message(n), LONG).is_ok(), "{n} places left");
    }
    println!("{kills} kills, {pushed} messages");
}

#[test]
fn killed_under_load() {
    under_load(40);
}

#[test]
#[ignore = "long"]
fn killed_under_load_for_long() {
    under_load(2000);
}
