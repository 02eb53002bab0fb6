//! Joined programs allocate, free and exchange blocks; one after another is killed at random.
//!
//! After each death what the ledger says must be there, and the walk of the heap must find nothing wrong.
//! Meanwhile each program uses the heap for all else that programs do: maps, texts, threads.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use hshm::{
    Allocator, MIB, MemContext, OffsetPtr, Owner, RegionOptions, SharedHeap, ThreadLocalAllocator,
};

use crate::A;
use crate::member::Name;
use crate::support::ledger::{self, Blocks};
use crate::support::{role, turn};

const CTX: MemContext = MemContext::DEFAULT;
const WORKERS: usize = 4;
type Ledger = ledger::Ledger<WORKERS, 32>;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ word >> 31) % bound
    }
    /// Mostly small, of all kinds.
    fn size(&mut self) -> usize {
        let bits = match self.below(100) {
            0 => 22,
            1..4 => 18,
            4..20 => 14,
            _ => 9,
        };
        (self.below(1 << bits) as usize).max(32)
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn words(block: u64) -> *mut u64 {
    std::ptr::with_exposed_provenance_mut(block as usize)
}

/// A block begins with its size and a word that follows from size and address, and ends with a byte
/// that does.
fn make(size: usize) -> u64 {
    // SAFETY: the size is not 0, the words and the byte are within it.
    unsafe {
        let start = alloc(layout(size));
        assert!(!start.is_null());
        let block = start.expose_provenance() as u64;
        words(block).write(size as u64);
        words(block).add(1).write(size as u64 ^ !block);
        start.add(size - 1).write(size as u8);
        block
    }
}

/// Checks a block and says how large it is.
fn check(block: u64) -> usize {
    // SAFETY: the caller's block, which `make` made.
    unsafe {
        let size = words(block).read();
        assert_eq!(words(block).add(1).read(), size ^ !block, "a block was written to");
        assert_eq!(words(block).cast::<u8>().add(size as usize - 1).read(), size as u8);
        size as usize
    }
}

fn free(block: u64) {
    let size = check(block);
    // SAFETY: the caller's block, of that size; a second free of it finds another word.
    unsafe {
        words(block).add(1).write(0);
        dealloc(words(block).cast(), layout(size));
    }
}

/// The program's own, by their addresses, which are the same in all programs.
struct Addresses;

impl Blocks for Addresses {
    fn make(&self, size: usize) -> u64 {
        make(size)
    }
    fn check(&self, block: u64) {
        check(block);
    }
    fn free(&self, block: u64) {
        free(block);
    }
    fn give(&self, block: u64, to: Owner) {
        // SAFETY: the caller's block, or nobody's that only the caller takes.
        unsafe { A.transfer(words(block).cast(), to) }.unwrap();
    }
}

fn work(ledger: &Ledger, own: usize, seed: u64) -> ! {
    let mut random = Random(seed);
    let mut map: BTreeMap<u64, String> = BTreeMap::new();
    loop {
        let size = random.size();
        ledger.turn(own, &Addresses, size, |bound| random.below(bound));
        match random.below(6) {
            4 => {
                let key = random.below(300);
                let text = "text ".repeat(random.below(60) as usize);
                if let Some(old) = map.insert(key, text) {
                    assert!(old.len() % 5 == 0 && old.chars().all(|c| "text ".contains(c)));
                }
            }
            5 if random.below(200) == 0 => {
                let list = std::thread::spawn(move || vec![seed; 5000]).join().unwrap();
                assert!(list.iter().all(|word| *word == seed));
                map.retain(|key, _| key % 3 != 0);
            }
            _ => {}
        }
    }
}

#[test]
fn worker() {
    let Some(role) = role("kills::worker") else { return };
    let numbers: Vec<u64> = role.split(',').map(|number| number.parse().unwrap()).collect();
    // SAFETY: the driver's ledger, which is made of atomics, at the same address here.
    let ledger: &Ledger = unsafe { &*words(numbers[0]).cast() };
    work(ledger, numbers[1] as usize, numbers[2]);
}

fn start(name: &Name, ledger: &Ledger, own: usize, seed: u64) -> Child {
    let ledger = std::ptr::from_ref(ledger).expose_provenance();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::worker", "--nocapture", "--test-threads=1"])
        .env("HSHM_TEST_ROLE", format!("kills::worker={ledger},{own},{seed}"))
        .env("HSHM_REGION", &name.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

struct Heap {
    alloc: ThreadLocalAllocator,
}

impl Heap {
    fn offset(&self, block: u64) -> OffsetPtr<u8> {
        OffsetPtr::new(block - self.alloc.base().expose_provenance() as u64)
    }
    fn is_live(&self, block: u64) -> bool {
        self.alloc.usable_size(self.offset(block)).is_ok()
    }
    fn is_nobodys(&self, block: u64) -> bool {
        self.alloc.is_nobodys(self.offset(block)) == Ok(true)
    }
    fn free(&self, block: u64) {
        check(block);
        // SAFETY: a block that is nobody's, which nobody uses.
        unsafe { self.alloc.free_offset(CTX, self.offset(block)) }.unwrap();
    }
}

fn run(kills: u64) {
    let _turn = turn();
    let begun = Instant::now();
    let name = Name::new("kills");
    let options = RegionOptions::new().capacity(512 * MIB).same_address(false);
    let alloc = SharedHeap::new(&name.0).create(&options).unwrap();
    let heap = Heap { alloc };
    let place = heap.alloc.allocate_zeroed_offset(CTX, Layout::new::<Ledger>()).unwrap();
    // SAFETY: zeroed, as large and as aligned as a ledger, which is made of atomics; freed last.
    let ledger: &Ledger = unsafe { &*heap.alloc.resolve(place).cast() };
    let mut random = Random(0xDEAD);
    let mut workers: Vec<Child> =
        (0..WORKERS).map(|own| start(&name, ledger, own, random.below(u64::MAX))).collect();
    let (mut early, mut late, mut flights, mut passed_on) = (0, 0, 0, 0);
    for kill in 0..kills {
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        let dead = random.below(WORKERS as u64) as usize;
        workers[dead].kill().unwrap();
        workers[dead].wait().unwrap();
        ledger.stand_still(dead, kill + 1, |worker| workers[worker].try_wait().unwrap().is_some());
        heap.alloc.reap();
        if let Some(flying) = ledger.strike_out(dead, |block| heap.is_nobodys(block)) {
            heap.free(flying);
            flights += 1;
        }
        for block in ledger.entries() {
            assert!(heap.is_live(block), "a living one's block is gone after kill {kill}");
            check(block);
        }
        passed_on += ledger.mailboxes.iter().filter(|word| word.load(SeqCst) != 0).count();
        let report =
            heap.alloc.verify().unwrap_or_else(|fault| panic!("{fault} after kill {kill}"));
        let used = report.total - report.tables - report.free_chunks;
        let most = if kill < kills.min(200) / 2 { &mut early } else { &mut late };
        *most = used.max(*most);
        assert_eq!(heap.alloc.refused_frees(), 0, "after kill {kill}");
        workers[dead] = start(&name, ledger, dead, random.below(u64::MAX));
        ledger.go_on();
    }
    for worker in &mut workers {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    // Those that were killed first may have been reaped by those that were killed last.
    heap.alloc.reap();
    let turns = ledger.turns();
    ledger.clear(|block| heap.is_nobodys(block), |block| heap.free(block));
    // SAFETY: nobody else is there any more.
    unsafe { heap.alloc.free_offset(CTX, place) }.unwrap();
    heap.alloc.trim();
    heap.alloc.reap();
    let report = heap.alloc.verify().unwrap();
    assert_eq!((report.blocks_in_use, report.slabs), (0, 0));
    println!(
        "{kills} kills of joined programs, {turns} turns of {WORKERS}, {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    println!(
        "ledger balanced after each, {passed_on} letters looked at, {flights} blocks in flight"
    );
    println!(
        "most bytes in chunks: {early} in the first {} kills, {late} after",
        kills.min(200) / 2
    );
    assert!(turns > 10 * kills && late <= 2 * early, "the heap grows with every death");
}

#[test]
fn killed_at_random() {
    run(60);
}

#[test]
#[ignore = "long"]
fn killed_a_thousand_times() {
    run(1000);
}
