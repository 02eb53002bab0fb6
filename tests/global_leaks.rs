//! What leak reports and `currently_allocated_size` say of the program's own heap.
//!
//! Every block of the process counts, so the tests run one after another in a `main` of their own: the
//! test harness allocates beside them.
#![allow(unsafe_code)] // calls the allocator directly

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use hshm::{HshmAlloc, KIB, LeakCheck, LeakClass, LeakReport, MIB};

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

/// A block that does not free itself.
#[derive(Clone, Copy)]
struct Raw(usize, Layout);

fn take(size: usize) -> Raw {
    let layout = Layout::from_size_align(size, 8).unwrap();
    // SAFETY: the size is not zero.
    let block = unsafe { A.alloc(layout) };
    assert!(!block.is_null());
    Raw(block.expose_provenance(), layout)
}

fn give(block: Raw) {
    // SAFETY: taken by a test, which gives it back once.
    unsafe { A.dealloc(std::ptr::with_exposed_provenance_mut(block.0), block.1) };
}

const SIZES: [usize; 10] =
    [1, 8, 100, 777, 5000, 30 * KIB, 33 * KIB, 700 * KIB, 2 * MIB + 1, 9 * MIB];

/// Runs `work` in a thread, which has ended when this returns.
fn elsewhere<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::spawn(work).join().unwrap()
}

/// The blocks of the class that `size` bytes are in.
fn class(report: &LeakReport, size: usize) -> LeakClass {
    let none = LeakClass { size, blocks: 0, bytes: 0 };
    report.classes().find(|class| class.size >= size).unwrap_or(none)
}

fn balanced_use_changes_nothing() {
    let before = A.currently_allocated_size();
    assert_eq!(A.currently_allocated_size(), before);
    for _ in 0..3 {
        let mut blocks: Vec<Raw> = Vec::with_capacity(400);
        blocks.extend((0..400).map(|n| take(SIZES[n % 8])));
        blocks.extend(SIZES.map(take));
        let during = A.currently_allocated_size();
        assert!(during >= before + blocks.iter().map(|block| block.1.size()).sum::<usize>());
        // Half of them by another thread.
        let rest = blocks.split_off(200);
        elsewhere(move || rest.into_iter().for_each(give));
        blocks.into_iter().for_each(give);
    }
    let mut grown = vec![1u8; 10];
    for size in SIZES {
        grown.resize(size, 1);
    }
    drop(grown);
    assert_eq!(A.currently_allocated_size(), before);
}

fn what_is_forgotten_is_reported() {
    let check = LeakCheck::new(&A);
    let before = LeakReport::of(&A).unwrap();
    let mut kept: Vec<Raw> = [100, 100, 100, 5000, 300 * KIB, 5 * MIB].map(take).into();
    let leaked = LeakReport::of(&A).unwrap().since(&before);
    // The vector is a block, too.
    let counts: Vec<usize> = leaked.classes().map(|class| class.blocks).collect();
    assert_eq!((leaked.blocks(), &counts[..]), (7, &[3, 1, 1, 1, 1][..]), "{leaked}");
    assert!((300 * KIB..=320 * KIB).contains(&class(&leaked, 300 * KIB).bytes), "{leaked}");
    assert!(leaked.bytes() >= 5 * MIB + 300 * KIB + 5300);
    assert!(leaked.to_string().contains("7 blocks"), "{leaked}");
    assert_eq!(LeakReport::of(&A).unwrap().id(), A.regions().next().unwrap().id());
    drop(counts);
    kept.drain(..).for_each(give);
    drop(kept);
    assert_eq!(check.finish(), Ok(()));
    // The same sum both ways.
    assert_eq!(LeakReport::of(&A).unwrap().bytes(), A.currently_allocated_size());
    assert_eq!(LeakReport::of(&A), LeakReport::of_this_process(&A), "nobody joined this heap");
}

fn the_guard_fails_with_the_report() {
    let text = |size: usize| {
        let failed = catch_unwind(AssertUnwindSafe(|| {
            let _check = LeakCheck::new(&A);
            black_box(vec![1u8; 100]);
            take(size)
        }));
        *failed.err().expect("nothing was missed").downcast::<String>().unwrap()
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let texts = [text(40 * KIB), text(600)];
    std::panic::set_hook(hook);
    assert!(
        texts[0].contains("1 block of") && texts[0].contains("1 x up to 65536 bytes"),
        "{texts:?}"
    );
    assert!(texts[1].contains("1 x up to 640 bytes: 640 bytes"), "{}", texts[1]);
}

/// A thread that does what it is told.
struct Worker {
    orders: Sender<fn()>,
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn new() -> Worker {
        let (orders, incoming) = channel::<fn()>();
        let (told, done) = channel();
        let thread = std::thread::spawn(move || {
            for order in incoming {
                order();
                told.send(()).unwrap();
            }
        });
        Worker { orders, done, thread }
    }
    fn does(&self, order: fn()) {
        self.orders.send(order).unwrap();
        self.done.recv().unwrap();
    }
    fn ends(self) {
        drop(self.orders);
        self.thread.join().unwrap();
    }
}

/// As the documentation of `currently_allocated_size` says.
fn caches_of_living_threads_count() {
    const SIZE: usize = 19 * KIB;
    let before = class(&LeakReport::of(&A).unwrap(), SIZE).blocks;
    let count = || class(&LeakReport::of(&A).unwrap(), SIZE).blocks - before;
    // One's own do not.
    give(take(SIZE));
    assert_eq!(count(), 0);
    let worker = Worker::new();
    worker.does(|| {
        let blocks = [take(SIZE), take(SIZE), take(SIZE)];
        blocks.into_iter().for_each(give);
    });
    assert!((1..=13).contains(&count()), "{}", count());
    // What it is doing itself it knows.
    worker.does(|| assert!(A.currently_allocated_size() > 0));
    assert_eq!(count(), 0);
    worker.does(|| give(take(SIZE)));
    assert!((1..=13).contains(&count()), "{}", count());
    worker.ends();
    assert_eq!(count(), 0);
}

/// What busy threads hold is there in every report, and no more than caches can keep beside it.
fn counted_while_others_allocate() {
    const THREADS: usize = 3;
    const SIZES: [usize; 3] = [200, 11 * KIB, 100 * KIB];
    const HELD: usize = 40;
    static STOP: AtomicBool = AtomicBool::new(false);
    static READY: AtomicUsize = AtomicUsize::new(0);
    let before = LeakReport::of(&A).unwrap();
    let work = || {
        let mut held: Vec<Raw> = (0..HELD).flat_map(|_| SIZES.map(take)).collect();
        READY.fetch_add(1, Ordering::SeqCst);
        let mut at = 0;
        while !STOP.load(Ordering::Relaxed) {
            // First the new one: there are never fewer than so many.
            let new = take(held[at].1.size());
            give(std::mem::replace(&mut held[at], new));
            at = (at + 7) % held.len();
        }
        held.into_iter().for_each(give);
    };
    let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(work)).collect();
    while READY.load(Ordering::SeqCst) < THREADS {
        std::thread::yield_now();
    }
    for _ in 0..100 {
        let report = LeakReport::of(&A).unwrap().since(&before);
        for (size, spare) in SIZES.iter().zip([256 * KIB / 200, 23, 8]) {
            let blocks = class(&report, *size).blocks;
            let range = THREADS * HELD..=THREADS * (HELD + 1 + spare);
            assert!(range.contains(&blocks), "{blocks} blocks of {size} bytes");
        }
        assert!(A.currently_allocated_size() >= THREADS * HELD * SIZES.iter().sum::<usize>());
    }
    STOP.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let left = LeakReport::of(&A).unwrap();
    for size in SIZES {
        assert_eq!(class(&left, size), class(&before, size));
    }
}

/// A forked child counts its copy.
fn in_forked_children() {
    let before = A.currently_allocated_size();
    // SAFETY: the child only asks, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let same = A.currently_allocated_size() == before;
        // SAFETY: ends the child.
        unsafe { libc::_exit(if same { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: this process's child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the copy has the same blocks");
}

fn main() {
    let tests: [(&str, fn()); 6] = [
        ("balanced_use_changes_nothing", balanced_use_changes_nothing),
        ("what_is_forgotten_is_reported", what_is_forgotten_is_reported),
        ("the_guard_fails_with_the_report", the_guard_fails_with_the_report),
        ("caches_of_living_threads_count", caches_of_living_threads_count),
        ("counted_while_others_allocate", counted_while_others_allocate),
        ("in_forked_children", in_forked_children),
    ];
    // What a filter leaves out is left out; a list for tools that ask for it.
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if std::env::args().any(|word| word == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let mut passed = 0;
    for (name, test) in tests.into_iter().filter(|(name, _)| wanted(name)) {
        println!("test {name} ...");
        test();
        A.verify().unwrap();
        passed += 1;
    }
    println!("test result: ok. {passed} passed; 0 failed");
}
