//! Eight processes allocate, free and exchange blocks, by a ledger; one after another is killed at random.

use std::time::{Duration, Instant};

use hshm::{
    Allocator, Backend, MIB, MemContext, MemfdBackend, OffsetPtr, Owner, Region, RegionOptions,
    ThreadLocalAllocator,
};

use super::support::ledger::{self, Blocks};
use super::support::turn;
use super::victim::Victim;
use super::work::{Random, allocate, check, free, size};

const CTX: MemContext = MemContext::DEFAULT;
const WORKERS: usize = 8;
type Ledger = ledger::Ledger<WORKERS, 64>;

/// Blocks of at least 32 bytes by their offsets; the size is the second word.
struct Sized<'a>(&'a ThreadLocalAllocator);

impl Sized<'_> {
    fn size_word(&self, block: u64) -> *mut u64 {
        self.0.resolve(OffsetPtr::new(block)).cast::<u64>().wrapping_add(1)
    }
    fn is_nobodys(&self, block: u64) -> bool {
        self.0.is_nobodys(OffsetPtr::new(block)) == Ok(true)
    }
}

impl Blocks for Sized<'_> {
    fn make(&self, size: usize) -> u64 {
        let block = allocate(self.0, CTX, size);
        // SAFETY: our block.
        unsafe { self.size_word(block).write(size as u64) };
        block
    }
    fn check(&self, block: u64) {
        // SAFETY: the caller's block, which `make` made.
        let size = unsafe { self.size_word(block).read() };
        check(self.0, block, size as usize);
    }
    fn free(&self, block: u64) {
        self.check(block);
        free(self.0, block);
    }
    fn give(&self, block: u64, to: Owner) {
        // SAFETY: the caller's block.
        unsafe { self.0.transfer(OffsetPtr::new(block), to) }.unwrap();
    }
}

fn start(region: &Region, ledger: &Ledger, own: usize, seed: u64) -> Victim {
    Victim::fork(|| {
        let alloc = ThreadLocalAllocator::shm_attach(region.clone(), 0, 4).unwrap();
        let mut random = Random(seed | 1);
        loop {
            let size = size(&mut random).max(32);
            ledger.turn(own, &Sized(&alloc), size, |bound| random.below(bound));
        }
    })
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
    let blocks = Sized(&alloc);
    let mut random = Random(0xDEAD);
    let mut workers: Vec<Victim> =
        (0..WORKERS).map(|own| start(&region, ledger, own, random.next())).collect();
    let (mut early, mut late, mut flights) = (0, 0, 0);
    for kill in 0..kills {
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        let dead = random.below(WORKERS as u64) as usize;
        workers[dead].kill();
        ledger.stand_still(dead, u64::from(kill) + 1, |worker| workers[worker].has_failed());
        alloc.reap();
        if let Some(flying) = ledger.strike_out(dead, |block| blocks.is_nobodys(block)) {
            blocks.free(flying);
            flights += 1;
        }
        let report = alloc.verify().unwrap_or_else(|fault| panic!("{fault} after kill {kill}"));
        // Runs that others returned count until their owner looks.
        let bytes: usize =
            ledger.entries().map(|block| alloc.usable_size(OffsetPtr::new(block)).unwrap()).sum();
        let own = alloc.usable_size(place).unwrap();
        assert_eq!(alloc.currently_allocated_size(), bytes + own, "after kill {kill}");
        let used = report.total - report.tables - report.free_chunks;
        let most = if kill < 100 { &mut early } else { &mut late };
        *most = used.max(*most);
        workers[dead] = start(&region, ledger, dead, random.next());
        ledger.go_on();
    }
    drop(workers);
    alloc.reap();
    let turns = ledger.turns();
    ledger.clear(|block| blocks.is_nobodys(block), |block| blocks.free(block));
    free(&alloc, place.offset());
    alloc.trim();
    alloc.reap();
    let report = alloc.verify().unwrap();
    assert_eq!((report.blocks_in_use, report.slabs), (0, 0));
    println!(
        "{kills} kills, {turns} turns of {WORKERS} processes, {:.1} s",
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
