//! Threads that come and go, and more of them than anything was made for.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use hshm::{HshmAlloc, KIB, MIB};

use super::{Block, Random};

pub fn a_thousand_in_turn(alloc: &'static HshmAlloc) {
    let run = |number: usize| {
        std::thread::spawn(move || {
            let mut random = Random(number as u64);
            let blocks: Vec<Block> =
                (0..200).map(|n| Block::new(alloc, random.size(20_000), 8, n)).collect();
            drop(Block::new(alloc, 100 * KIB, 8, 1));
            // Some end up with whoever comes next.
            blocks.into_iter().skip(195).collect::<Vec<_>>()
        })
        .join()
        .unwrap()
    };
    let mut left = Vec::new();
    for number in 0..50 {
        left = run(number);
    }
    let before = alloc.stats();
    for number in 0..1000 {
        left = run(number);
    }
    let after = alloc.stats();
    drop(left);
    assert!(after.in_use() <= before.in_use() + 4 * MIB, "{before:?} became {after:?}");
    assert!(after.owned <= before.owned + 8 * MIB, "{before:?} became {after:?}");
    assert_eq!(after.regions, before.regions);
}

pub fn more_than_cores(alloc: &'static HshmAlloc) {
    const THREADS: usize = 64;
    let barrier = &Barrier::new(THREADS);
    let shelf: &[Mutex<Vec<Block>>] = &[const { Mutex::new(Vec::new()) }; THREADS];
    std::thread::scope(|scope| {
        for me in 0..THREADS {
            scope.spawn(move || {
                let mut random = Random(me as u64 + 99);
                barrier.wait();
                for round in 0..400u32 {
                    let block = Block::new(alloc, random.size(6000), 8, round as u8);
                    // Changing shelves: what is taken off was somebody else's.
                    let other = random.below(THREADS);
                    let mut shelf = shelf[other].lock().unwrap();
                    shelf.push(block);
                    let taken = if shelf.len() > 10 { shelf.drain(..6).collect() } else { vec![] };
                    drop(shelf);
                    taken.iter().for_each(Block::check);
                }
                drop(Block::new(alloc, random.size(MIB), 8, 1));
            });
        }
    });
    shelf.iter().for_each(|shelf| shelf.lock().unwrap().iter().for_each(Block::check));
}

/// How often the destructors of [`EndKey`]s have run.
static ENDINGS: AtomicUsize = AtomicUsize::new(0);

/// What a thread leaves to a destructor.
struct Legacy {
    alloc: &'static HshmAlloc,
    key: libc::pthread_key_t,
    rounds_left: usize,
    blocks: Vec<Block>,
}

/// Frees what the living thread allocated, allocates, reallocates, frees, and comes back in the
/// next round: after every other destructor of the thread has run once.
unsafe extern "C" fn at_end(value: *mut c_void) {
    // SAFETY: the value is a `Legacy` that the thread, or this function, leaked.
    let mut legacy = unsafe { Box::from_raw(value.cast::<Legacy>()) };
    ENDINGS.fetch_add(1, Ordering::Relaxed);
    for block in &mut legacy.blocks {
        let size = block.layout.size();
        assert!(block.reallocate(size + 700) && block.reallocate(size));
    }
    legacy.blocks.truncate(2);
    let alloc = legacy.alloc;
    for size in [1, 8, 100, 1000, 5000, 32 * KIB, 40 * KIB] {
        legacy.blocks.extend((0..4).map(|n| Block::new(alloc, size, 8, n)));
    }
    drop(Block::new(alloc, 3 * MIB, 8, 1));
    let text: String = (0..200).map(|n| format!("{n}, ")).collect();
    assert!(text.ends_with("199, "));
    if legacy.rounds_left > 0 {
        legacy.rounds_left -= 1;
        let key = legacy.key;
        // SAFETY: the key is never deleted; the value is leaked to it.
        unsafe { libc::pthread_setspecific(key, Box::into_raw(legacy).cast()) };
    }
}

fn key() -> libc::pthread_key_t {
    let mut key = 0;
    // SAFETY: a place for the result, and a destructor of the right type.
    assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(at_end)) }, 0);
    key
}

/// A thread-local value whose destructor allocates, and frees what it held.
struct Last(&'static HshmAlloc, Vec<Block>);

impl Drop for Last {
    fn drop(&mut self) {
        ENDINGS.fetch_add(1, Ordering::Relaxed);
        self.1.push(Block::new(self.0, 500, 8, 5));
        let more: Vec<Block> = (1..60).map(|n| Block::new(self.0, n * 300, 8, 6)).collect();
        self.1.extend(more);
    }
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

pub fn allocations_while_a_thread_ends(alloc: &'static HshmAlloc) {
    const THREADS: usize = 24;
    const ROUNDS: usize = 3;
    // Keys from before and after the one that the allocator made when the program started.
    let keys = [key(), key(), key()];
    ENDINGS.store(0, Ordering::Relaxed);
    let end = move |number: usize| {
        let blocks = move |count| -> Vec<Block> {
            (0..count).map(|n| Block::new(alloc, 40 * n + 1, 8, 9)).collect()
        };
        if number.is_multiple_of(2) {
            LAST.set(Some(Last(alloc, blocks(50))));
        }
        for key in keys {
            let legacy = Legacy { alloc, key, rounds_left: ROUNDS - 1, blocks: blocks(30) };
            let value = Box::into_raw(Box::new(legacy));
            // SAFETY: the key is never deleted; the value is leaked to it.
            unsafe { libc::pthread_setspecific(key, value.cast()) };
        }
    };
    let in_turn = move |threads: usize| {
        (0..threads).for_each(|n| std::thread::spawn(move || end(n)).join().unwrap());
    };
    // Several at a time, then one after the other, which must not take more and more.
    let several: Vec<_> =
        (0..THREADS).map(|number| std::thread::spawn(move || end(number))).collect();
    several.into_iter().for_each(|thread| thread.join().unwrap());
    in_turn(THREADS);
    let before = alloc.stats();
    in_turn(8 * THREADS);
    let after = alloc.stats();
    let destructors = 10 * THREADS * (keys.len() * ROUNDS) + 5 * THREADS;
    assert_eq!(ENDINGS.load(Ordering::Relaxed), destructors);
    assert!(after.in_use() <= before.in_use() + 2 * MIB, "{before:?} became {after:?}");
    for key in keys {
        // SAFETY: no thread that has a value is alive.
        unsafe { libc::pthread_key_delete(key) };
    }
}

pub fn blocks_outlive_their_thread(alloc: &'static HshmAlloc) {
    let mut all: Vec<Block> = Vec::new();
    for round in 0..20u8 {
        let made = std::thread::spawn(move || {
            [1, 60, 900, 7000, 40 * KIB, 300 * KIB]
                .into_iter()
                .flat_map(|size| (0..10).map(move |_| Block::new(alloc, size, 8, round)))
                .collect::<Vec<_>>()
        });
        all.extend(made.join().unwrap());
        all.iter().for_each(Block::check);
    }
    // Freed by yet another thread, in an order of its own.
    std::thread::spawn(move || {
        let mut random = Random(5);
        while !all.is_empty() {
            let place = random.below(all.len());
            all.swap_remove(place);
        }
    })
    .join()
    .unwrap();
}
