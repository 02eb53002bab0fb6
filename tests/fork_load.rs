//! Many forks beside eight threads that allocate: what the parent has stays as it is, and every child
//! has a heap that works.
//!
//! `cargo test --test fork_load` runs a short form. The full figures, and what a fork costs:
//!
//! ```sh
//! cargo test --release --test fork_load -- --include-ignored --nocapture --test-threads=1
//! ```
#![allow(unsafe_code)] // fork

mod support;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use hshm::HshmAlloc;
use support::forked::{fork, wait};
use support::{other_process_ok, role, turn};

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

/// How many threads allocate in the parent.
const THREADS: usize = 8;

#[track_caller]
fn verify() {
    if let Err(fault) = A.verify() {
        panic!("{fault}");
    }
}

/// Objects of all sizes, and what their checksum is.
struct Objects {
    blocks: Vec<Vec<u8>>,
    map: BTreeMap<u32, String>,
    sum: u64,
}

impl Objects {
    fn new(seed: usize) -> Objects {
        let blocks = [3, 24, 100, 900, 5000, 20_000, 70_000]
            .into_iter()
            .flat_map(|size| (0..2).map(move |n| vec![(size + n + seed) as u8; size + n]))
            .collect();
        let map = (0..100).map(|n| (n, "text ".repeat(n as usize % 40 + seed % 3))).collect();
        let mut objects = Objects { blocks, map, sum: 0 };
        objects.sum = objects.checksum();
        objects
    }
    fn checksum(&self) -> u64 {
        let bytes =
            self.blocks.iter().flatten().chain(self.map.values().flat_map(|v| v.as_bytes()));
        bytes.fold(0, |sum: u64, byte| (sum ^ *byte as u64).wrapping_mul(0x100_0000_01B3))
    }
    #[track_caller]
    fn check(&self) {
        assert_eq!(self.checksum(), self.sum, "somebody else wrote into these objects");
    }
    /// Writes over all of them, grows and drops them.
    fn wreck(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.fill(0xDD));
        self.blocks.iter_mut().for_each(|block| block.extend_from_slice(&[0xEE; 700]));
        self.blocks.retain(|block| block.len() % 2 == 0);
        self.map.values_mut().for_each(|text| text.make_ascii_uppercase());
        self.map.retain(|key, _| key % 3 == 0);
    }
}

/// Replaces blocks among many until it is told to stop, and looks whether they are what they were. With
/// pauses, so that eight threads leave something of two processors to the rest.
fn churn(seed: usize, stop: &AtomicBool, turns: &AtomicU64) {
    let mut blocks: Vec<Vec<u8>> = vec![Vec::new(); 64];
    let mut round = seed;
    while !stop.load(Relaxed) {
        round =
            round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let size = match (round >> 40) % 200 {
            0 => 150_000,
            1..4 => 20_000,
            _ => (round >> 33) % 2000,
        };
        let block = &mut blocks[(round >> 50) % 64];
        assert!(block.iter().all(|byte| *byte == block[0]), "another's byte in a thread's block");
        *block = vec![round as u8; size];
        if turns.fetch_add(1, Relaxed).is_multiple_of(256) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Runs `work` beside [`THREADS`] threads that allocate, and says how often they did.
fn beside_allocating_threads(work: impl FnOnce()) -> u64 {
    let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (stop, turns) = (&stop, &turns);
        for seed in 0..THREADS {
            scope.spawn(move || churn(seed, stop, turns));
        }
        // The threads end even if the work fails.
        let result = catch_unwind(AssertUnwindSafe(work));
        stop.store(true, Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    turns.load(Relaxed)
}

/// What the children do, one after another.
fn live(round: usize, objects: &mut Objects, program: &CString) {
    match round % 6 {
        0 => {}
        1 => {
            let arguments = [program.as_ptr(), std::ptr::null()];
            // SAFETY: C strings, and a null at the end.
            unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
            panic!("{}", std::io::Error::last_os_error());
        }
        2 => {
            verify();
            objects.check();
            objects.wreck();
            verify();
        }
        3 => {
            let grandchild = fork(|| {
                objects.check();
                objects.wreck();
                verify();
            });
            let mut own = Objects::new(round);
            wait(grandchild);
            objects.check();
            own.wreck();
            verify();
        }
        4 => {
            let threads: Vec<_> = (0..3)
                .map(|seed| {
                    std::thread::spawn(move || {
                        let mut own = Objects::new(seed);
                        own.check();
                        own.wreck();
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            objects.check();
        }
        _ => {
            objects.blocks.clear();
            let own = Objects::new(round);
            objects.map.clear();
            own.check();
        }
    }
}

fn run(forks: usize) {
    let _turn = turn();
    let start = Instant::now();
    let mut objects = Objects::new(0);
    let program = CString::new("/bin/true").unwrap();
    let before = A.stats();
    let turns = beside_allocating_threads(|| {
        for round in 0..forks {
            let child = fork(|| live(round, &mut objects, &program));
            // The parent writes, too, while the child runs.
            drop(Objects::new(round));
            wait(child);
            objects.check();
        }
    });
    objects.check();
    verify();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{forks} forks beside {THREADS} threads, {turns} allocations of theirs, {seconds:.1} s: \
         {:.2} ms a fork, checksums unchanged",
        seconds * 1000.0 / forks as f64
    );
    let grown = A.stats().in_use().saturating_sub(before.in_use());
    assert!(grown < 64 << 20, "the heap grew by {grown} bytes");
}

#[test]
fn beside_eight_allocating_threads() {
    run(200);
}

#[test]
#[ignore = "long"]
fn ten_thousand_beside_eight_allocating_threads() {
    run(10_000);
}

/// Forks of forks of forks, each beside threads of its own that were not there before.
#[test]
fn nested_beside_threads() {
    fn descend(depth: u32) {
        if depth > 0 {
            beside_allocating_threads(|| {
                for _ in 0..5 {
                    wait(fork(|| descend(depth - 1)));
                }
                verify();
            });
        }
    }
    let _turn = turn();
    descend(3);
}

/// What the parent's other threads had free in their slabs the child's threads can have.
#[test]
fn heaps_of_other_threads_serve_the_child() {
    const BLOCKS: usize = 10_000;
    const TEST: &str = "heaps_of_other_threads_serve_the_child";
    let _turn = turn();
    if role(TEST).is_none() {
        // In a process of its own: other tests' threads have heaps, too.
        return other_process_ok(TEST, "x");
    }
    let (ready, all_ready) = sync_channel(THREADS);
    let go = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (ready, go) = (ready.clone(), &go);
            scope.spawn(move || {
                let mut blocks: Vec<Box<[u8; 1000]>> =
                    (0..BLOCKS).map(|_| Box::new([7; 1000])).collect();
                let mut index = 0;
                blocks.retain(|_| {
                    index += 1;
                    index % 20 == 0
                });
                ready.send(()).unwrap();
                while !go.load(Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert!(blocks.iter().all(|block| block.iter().all(|byte| *byte == 7)));
            });
        }
        (0..THREADS).for_each(|_| all_ready.recv().unwrap());
        let result = catch_unwind(|| {
            wait(fork(|| {
                let before = A.stats().in_use();
                // All of them at once: the heap of one that ends early would serve one that begins late.
                static ALL_HAVE: Barrier = Barrier::new(THREADS);
                let threads: Vec<_> = (0..THREADS)
                    .map(|_| {
                        std::thread::spawn(|| {
                            let blocks: Vec<_> =
                                (0..BLOCKS * 8 / 10).map(|_| Box::new([8u8; 1000])).collect();
                            ALL_HAVE.wait();
                            blocks
                        })
                    })
                    .collect();
                let own: Vec<_> =
                    threads.into_iter().map(|thread| thread.join().unwrap()).collect();
                let grown = A.stats().in_use().saturating_sub(before);
                let bytes = THREADS * BLOCKS * 800;
                assert!(grown < bytes / 4, "{grown} bytes more for {bytes}");
                assert!(own.iter().flatten().all(|block| block.iter().all(|byte| *byte == 8)));
                verify();
            }));
        });
        go.store(true, Relaxed);
        result.unwrap();
    });
    verify();
}

/// No hook runs where a program is started without a fork.
#[test]
fn starting_programs_runs_no_hook() {
    static HOOKS: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count() {
        HOOKS.fetch_add(1, Relaxed);
    }
    let _turn = turn();
    // SAFETY: the function lives as long as the program.
    assert_eq!(unsafe { libc::pthread_atfork(Some(count), None, None) }, 0);
    for round in 0..20 {
        let output = Command::new("/bin/echo").arg(round.to_string()).output().unwrap();
        assert_eq!(output.stdout, format!("{round}\n").as_bytes());
    }
    assert_eq!(HOOKS.load(Relaxed), 0);
    wait(fork(|| ()));
    assert_eq!(HOOKS.load(Relaxed), 1);
}

fn is_refusing() -> bool {
    std::env::var("HSHM_FORK").is_ok_and(|value| value == "refuse")
}

#[test]
fn a_refused_child_leaves_its_parent_alone() {
    let _turn = turn();
    if !is_refusing() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_refused_child_leaves_its_parent_alone", "--nocapture"])
            .env("HSHM_FORK", "refuse")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("a forked child has no heap of its own here"), "{said}");
        return;
    }
    let mut objects = Objects::new(0);
    let program = CString::new("/bin/true").unwrap();
    beside_allocating_threads(|| {
        for round in 0..100 {
            // SAFETY: the child does what follows and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let right = objects.checksum() == objects.sum;
                objects.blocks.iter_mut().for_each(|block| block.fill(0xDD));
                objects.blocks.pop();
                match round % 3 {
                    0 => {
                        let arguments = [program.as_ptr(), std::ptr::null()];
                        // SAFETY: C strings, and a null at the end.
                        unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
                    }
                    1 => drop(std::hint::black_box(Box::new(1))),
                    _ => {}
                }
                // SAFETY: no preconditions.
                unsafe { libc::_exit(if right { 3 } else { 4 }) };
            }
            let mut status = 0;
            // SAFETY: a place for the result.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert!(libc::WIFEXITED(status));
            assert_eq!(libc::WEXITSTATUS(status), [0, 127, 3][round % 3]);
            objects.check();
        }
    });
    verify();
}

/// What a fork costs, by the heap in use.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let _turn = turn();
    let mut ballast: Vec<Vec<u8>> = Vec::new();
    for megabytes in [0, 64, 256, 1024] {
        while ballast.len() < megabytes / 4 {
            ballast.push(vec![1; 4 << 20]);
        }
        let mut times: Vec<(f64, f64)> = (0..5)
            .map(|_| {
                let start = Instant::now();
                let child = fork(|| ());
                let returned = start.elapsed().as_secs_f64();
                wait(child);
                (returned * 1e3, start.elapsed().as_secs_f64() * 1e3)
            })
            .collect();
        times.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (fork, whole) = times[2];
        let start = Instant::now();
        assert!(Command::new("/bin/true").status().unwrap().success());
        let spawn = start.elapsed().as_secs_f64() * 1e3;
        println!(
            "{megabytes} MiB in use: fork {fork:.2} ms, with its child's end {whole:.2} ms; Command {spawn:.2} ms"
        );
    }
}
