//! Eight processes allocate, free and exchange blocks; one after another is killed at random.
//!
//! The application keeps a ledger in the heap: what each worker owns, what lies in the mailboxes,
//! and which block a worker is handing over or taking over right now. After each death the others
//! are stopped for a moment between two operations, and the heap must hold exactly what the ledger
//! says: what the dead one owned is gone, what it had put into a mailbox is there.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use hshm::{
    Allocator, Backend, MIB, MemContext, MemfdBackend, OffsetPtr, Owner, Region, RegionOptions,
    ThreadLocalAllocator,
};

use super::support::turn;
use super::victim::Victim;
use super::work::{Random, allocate, check, free, size};

const CTX: MemContext = MemContext::DEFAULT;
const WORKERS: usize = 8;
const OWNED: usize = 32;
const MAILBOXES: usize = 64;
/// Nobody is that slow; a worker that does not get here hangs.
const PATIENCE: Duration = Duration::from_secs(300);

#[repr(C)]
struct Worker {
    parked: AtomicU64,
    operations: AtomicU64,
    /// The block that changes hands.
    flight: AtomicU64,
    owned: [AtomicU64; OWNED],
}

#[repr(C)]
struct Ledger {
    pause: AtomicU64,
    workers: [Worker; WORKERS],
    mailboxes: [AtomicU64; MAILBOXES],
}

/// The block's size is its second word.
fn size_word(alloc: &ThreadLocalAllocator, block: u64) -> *mut u64 {
    alloc.resolve(OffsetPtr::new(block)).cast::<u64>().wrapping_add(1)
}

fn make(alloc: &ThreadLocalAllocator, size: usize) -> u64 {
    let block = allocate(alloc, CTX, size);
    // SAFETY: our block, of at least 32 bytes.
    unsafe { size_word(alloc, block).write(size as u64) };
    block
}

fn check_block(alloc: &ThreadLocalAllocator, block: u64) {
    // SAFETY: the caller's block, which `make` made.
    let size = unsafe { size_word(alloc, block).read() };
    check(alloc, block, size as usize);
}

fn give(alloc: &ThreadLocalAllocator, block: u64, to: Owner) {
    // SAFETY: the caller's block.
    unsafe { alloc.transfer(OffsetPtr::new(block), to) }.unwrap();
}

fn work(alloc: &ThreadLocalAllocator, ledger: &Ledger, own: usize, seed: u64) -> ! {
    let me = &ledger.workers[own];
    let mut random = Random(seed | 1);
    loop {
        // Each pause has a number, so that one is not taken for the next.
        let pause = ledger.pause.load(SeqCst);
        if pause != 0 {
            me.parked.store(pause, SeqCst);
            while ledger.pause.load(SeqCst) == pause {
                std::thread::yield_now();
            }
            continue;
        }
        me.operations.fetch_add(1, SeqCst);
        let slot = &me.owned[random.below(OWNED as u64) as usize];
        let mailbox = &ledger.mailboxes[random.below(MAILBOXES as u64) as usize];
        let block = slot.load(SeqCst);
        match random.below(4) {
            0 | 1 if block == 0 => slot.store(make(alloc, size(&mut random).max(32)), SeqCst),
            0 if block != 0 => {
                check_block(alloc, block);
                free(alloc, block);
                slot.store(0, SeqCst);
            }
            // Send.
            2 if block != 0 => {
                me.flight.store(block, SeqCst);
                give(alloc, block, Owner::Nobody);
                if mailbox.compare_exchange(0, block, SeqCst, SeqCst).is_ok() {
                    slot.store(0, SeqCst);
                } else {
                    give(alloc, block, Owner::ThisProcess);
                }
                me.flight.store(0, SeqCst);
            }
            // Receive.
            3 if block == 0 => {
                let letter = mailbox.load(SeqCst);
                if letter != 0 {
                    me.flight.store(letter, SeqCst);
                    if mailbox.compare_exchange(letter, 0, SeqCst, SeqCst).is_ok() {
                        give(alloc, letter, Owner::ThisProcess);
                        check_block(alloc, letter);
                        slot.store(letter, SeqCst);
                    }
                    me.flight.store(0, SeqCst);
                }
            }
            _ => {}
        }
    }
}

fn start(region: &Region, ledger: &Ledger, own: usize, seed: u64) -> Victim {
    Victim::fork(|| {
        let alloc = ThreadLocalAllocator::shm_attach(region.clone(), 0, 4).unwrap();
        work(&alloc, ledger, own, seed)
    })
}

/// What the living own and what is in the mailboxes.
fn entries(ledger: &Ledger) -> impl Iterator<Item = u64> {
    let owned = ledger.workers.iter().flat_map(|worker| &worker.owned);
    owned.chain(&ledger.mailboxes).map(|word| word.load(SeqCst)).filter(|&block| block != 0)
}

fn stand_still(ledger: &Ledger, workers: &[Victim], dead: usize, pause: u64) {
    ledger.pause.store(pause, SeqCst);
    let start = Instant::now();
    for (index, worker) in ledger.workers.iter().enumerate().filter(|(index, _)| *index != dead) {
        while worker.parked.load(SeqCst) != pause {
            assert!(!workers[index].has_failed(), "worker {index} found something wrong");
            assert!(start.elapsed() < PATIENCE, "worker {index} hangs");
            std::thread::yield_now();
        }
    }
}

fn run(kills: u32) {
    let _turn = turn();
    let start_time = Instant::now();
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(128 * MIB)).unwrap();
    let alloc = ThreadLocalAllocator::shm_init(region.clone()).unwrap();
    let layout = std::alloc::Layout::new::<Ledger>();
    let place = alloc.allocate_zeroed_offset(CTX, layout).unwrap();
    // SAFETY: zeroed, as large and as aligned as a ledger, which is made of atomics; freed last.
    let ledger: &Ledger = unsafe { &*alloc.resolve(place).cast() };
    let mut random = Random(0xDEAD);
    let mut workers: Vec<Victim> =
        (0..WORKERS).map(|own| start(&region, ledger, own, random.next())).collect();
    let (mut early, mut late, mut flights) = (0, 0, 0);
    for kill in 0..kills {
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        let dead = random.below(WORKERS as u64) as usize;
        workers[dead].kill();
        stand_still(ledger, &workers, dead, u64::from(kill) + 1);
        alloc.reap();
        let entry = &ledger.workers[dead];
        entry.owned.iter().for_each(|word| word.store(0, SeqCst));
        // A block that was nobody's for the moment: the application knows it and frees it.
        let flying = entry.flight.swap(0, SeqCst);
        let lost = flying != 0
            && alloc.usable_size(OffsetPtr::new(flying)).is_ok()
            && entries(ledger).all(|block| block != flying);
        if lost {
            free(&alloc, flying);
            flights += 1;
        }
        let report = alloc.verify().unwrap_or_else(|fault| panic!("{fault} after kill {kill}"));
        // Runs that others returned count until their owner looks.
        let bytes: usize =
            entries(ledger).map(|block| alloc.usable_size(OffsetPtr::new(block)).unwrap()).sum();
        let own = alloc.usable_size(place).unwrap();
        assert_eq!(alloc.currently_allocated_size(), bytes + own, "after kill {kill}");
        let used = report.total - report.tables - report.free_chunks;
        let most = if kill < 100 { &mut early } else { &mut late };
        *most = used.max(*most);
        workers[dead] = start(&region, ledger, dead, random.next());
        ledger.pause.store(0, SeqCst);
    }
    let operations: u64 = ledger.workers.iter().map(|worker| worker.operations.load(SeqCst)).sum();
    drop(workers);
    alloc.reap();
    for mailbox in &ledger.mailboxes {
        let letter = mailbox.load(SeqCst);
        if letter != 0 {
            check_block(&alloc, letter);
            free(&alloc, letter);
        }
    }
    for worker in &ledger.workers {
        let flying = OffsetPtr::new(worker.flight.load(SeqCst));
        if flying.offset() != 0 && alloc.usable_size(flying).is_ok() {
            free(&alloc, flying.offset());
        }
    }
    free(&alloc, place.offset());
    alloc.trim();
    alloc.reap();
    let report = alloc.verify().unwrap();
    assert_eq!((report.blocks_in_use, report.slabs), (0, 0));
    println!(
        "{kills} kills, {operations} turns of {WORKERS} processes, {:.1} s",
        start_time.elapsed().as_secs_f64()
    );
    println!(
        "ledger balanced after each; {flights} blocks in flight were freed by the application"
    );
    println!("most bytes in chunks: {early} in the first 100 kills, {late} after");
    assert!(late <= 2 * early, "the heap grows with every death");
}

#[test]
fn killed_at_random() {
    run(120);
}

#[test]
#[ignore = "long"]
fn killed_ten_thousand_times() {
    run(10_000);
}
