//! `ShmRing` beside crossbeam's `ArrayQueue`, which has no processes to think of: the same messages
//! through both, in turns.
//!
//! ```text
//! cargo bench --bench ring -- [--rounds N]
//! ```
//!
//! `alone`: one thread pushes a message and pops it. `bursts`: one thread pushes 256 and pops them.
//! `1 to 1`, `2 to 2`: so many threads push, and so many pop, as fast as they can; who finds no room or
//! no message yields. Nanoseconds are of a message, pushed and popped; ratios are taken round by round.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use hshm::{Backend, MIB, MemfdBackend, RegionOptions, ShmHeap, ShmRing, ThreadLocalAllocator};

type Message = [u64; 2];

const CAPACITY: usize = 1024;
const BURST: u64 = 256;

/// One thread's work, made for each queue on its own, so that nothing is called indirectly.
macro_rules! loads {
    ($module:ident, $queue:ty, $queue_name:ident => $handle:expr) => {
        mod $module {
            use super::*;

            pub(crate) fn alone($queue_name: &$queue, count: u64) -> u64 {
                #[allow(unused_mut)] // one of the two needs it
                let mut handle = $handle;
                let mut sum = 0u64;
                for n in 0..count {
                    let _ = std::hint::black_box(&mut handle).push([n, !n]);
                    if let Some([n, _]) = std::hint::black_box(&mut handle).pop() {
                        sum += n;
                    }
                }
                sum
            }

            pub(crate) fn bursts($queue_name: &$queue, count: u64) -> u64 {
                #[allow(unused_mut)] // one of the two needs it
                let mut handle = $handle;
                let mut sum = 0u64;
                for round in 0..count / BURST {
                    for n in 0..BURST {
                        let _ = std::hint::black_box(&mut handle).push([round * BURST + n, n]);
                    }
                    for _ in 0..BURST {
                        if let Some([n, _]) = std::hint::black_box(&mut handle).pop() {
                            sum += n;
                        }
                    }
                }
                sum
            }

            pub(crate) fn threads($queue_name: &$queue, count: u64, pairs: u64) -> u64 {
                let (sum, popped) = (AtomicU64::new(0), AtomicU64::new(0));
                let each = count / pairs;
                thread::scope(|scope| {
                    for first in 0..pairs {
                        scope.spawn(move || {
                            #[allow(unused_mut)] // one of the two needs it
                            let mut handle = $handle;
                            for n in 0..each {
                                while handle.push([first * each + n, n]).is_err() {
                                    thread::yield_now();
                                }
                            }
                        });
                        let (sum, popped) = (&sum, &popped);
                        scope.spawn(move || {
                            #[allow(unused_mut)] // one of the two needs it
                            let mut handle = $handle;
                            let (mut own, mut got) = (0u64, 0);
                            while popped.load(Ordering::Relaxed) + got < each * pairs {
                                match handle.pop() {
                                    Some([n, _]) => (own, got) = (own + n, got + 1),
                                    None => {
                                        popped
                                            .fetch_add(std::mem::take(&mut got), Ordering::Relaxed);
                                        thread::yield_now();
                                    }
                                }
                            }
                            popped.fetch_add(got, Ordering::Relaxed);
                            sum.fetch_add(own, Ordering::Relaxed);
                        });
                    }
                });
                sum.into_inner()
            }
        }
    };
}

loads!(shm, ShmRing<Message>, ring => ring.join().expect("a handle"));
loads!(array, ArrayQueue<Message>, queue => queue);

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    [at(0.25), at(0.5), at(0.75)]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rounds = arguments
        .iter()
        .position(|argument| argument == "--rounds")
        .and_then(|at| arguments.get(at + 1)?.parse().ok())
        .unwrap_or(11);
    let region = MemfdBackend::create("ring", &RegionOptions::new().capacity(16 * MIB));
    let alloc = region.and_then(ThreadLocalAllocator::shm_init).expect("an allocator");
    let heap = ShmHeap::of(Box::leak(Box::new(alloc))).expect("a heap");
    let ring = ShmRing::with_capacity_in(CAPACITY, heap).expect("a ring");
    let queue = ArrayQueue::new(CAPACITY);

    type Load<'a> = (&'a str, u64, Box<dyn Fn(u64) -> u64 + 'a>, Box<dyn Fn(u64) -> u64 + 'a>);
    let (ring, queue) = (&ring, &queue);
    let loads: [Load<'_>; 4] = [
        (
            "alone",
            2_000_000,
            Box::new(|n| shm::alone(ring, n)),
            Box::new(|n| array::alone(queue, n)),
        ),
        (
            "bursts",
            2_048_000,
            Box::new(|n| shm::bursts(ring, n)),
            Box::new(|n| array::bursts(queue, n)),
        ),
        (
            "1 to 1",
            600_000,
            Box::new(|n| shm::threads(ring, n, 1)),
            Box::new(|n| array::threads(queue, n, 1)),
        ),
        (
            "2 to 2",
            600_000,
            Box::new(|n| shm::threads(ring, n, 2)),
            Box::new(|n| array::threads(queue, n, 2)),
        ),
    ];
    println!(
        "{:<10} {:>12} {:>14}  {:>22}",
        "load", "ShmRing ns", "ArrayQueue ns", "ShmRing/ArrayQueue"
    );
    for (name, count, shm, array) in loads {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for step in 0..2 {
                let which = (round + step) % 2;
                let start = Instant::now();
                let sum = if which == 0 { shm(count) } else { array(count) };
                times[which].push(start.elapsed().as_secs_f64() * 1e9 / count as f64);
                assert_eq!(sum, count * (count - 1) / 2, "{name}: messages were lost");
            }
        }
        let [low, middle, high] =
            quartiles(times[0].iter().zip(&times[1]).map(|(a, b)| a / b).collect());
        let [a, b] = times.map(|times| quartiles(times)[1]);
        println!("{name:<10} {a:>12.1} {b:>14.1}  {middle:>8.2} [{low:.2}, {high:.2}]");
    }
}
