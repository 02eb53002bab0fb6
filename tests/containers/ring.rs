//! `ShmRing` within one process; `tests/ring_processes.rs` has the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hshm::{Error, ShmRing, ShmString};

use super::common::{Counted, Place, Random};

#[test]
fn does_what_a_queue_does() {
    let place = Place::usual();
    place.balanced(|heap| {
        let mut random = Random(21);
        for capacity in [1, 2, 3, 7, 64, 65, 100] {
            let ring = ShmRing::with_capacity_in(capacity, heap).unwrap();
            let mut handles: Vec<_> = (0..3).map(|_| ring.join().unwrap()).collect();
            let mut model = VecDeque::new();
            for n in 0..20_000 {
                let handle = &mut handles[random.below(3)];
                // Mostly full, or mostly empty, by turns.
                if random.below(10) < if n / 1000 % 2 == 0 { 6 } else { 4 } {
                    match handle.push(Counted::new(n)) {
                        Ok(()) => model.push_back(n),
                        Err(back) => assert!(back.0 == n && model.len() == capacity),
                    }
                } else {
                    assert_eq!(handle.pop().map(|value| value.0), model.pop_front());
                }
                assert_eq!((ring.len(), ring.is_empty()), (model.len(), model.is_empty()));
                assert_eq!(Counted::live(), model.len() as i64);
            }
            handles[0].check().unwrap();
            drop(handles);
            drop(ring);
            assert_eq!(Counted::live(), 0);
        }
    });
}

/// Messages that own blocks: each is dropped once, wherever it is.
#[test]
fn messages_own_what_they_hold() {
    let place = Place::usual();
    place.balanced(|heap| {
        let ring = ShmRing::with_capacity_in(10, heap).unwrap();
        let mut handle = ring.join().unwrap();
        for n in 0..30 {
            let text = ShmString::format_in(format_args!("{n:>40}"), heap).unwrap();
            assert_eq!(handle.push(text).is_ok(), n < 10);
        }
        assert_eq!(handle.pop().unwrap().trim(), "0");
        assert_eq!(handle.drain().take(4).map(|text| text.len()).sum::<usize>(), 160);
        assert_eq!(ring.len(), 5);
    });
}

/// Many threads: nothing is lost or doubled, and what one pushed comes in its order.
#[test]
fn threads_push_and_pop() {
    const EACH: u64 = 30_000;
    let place = Place::usual();
    for capacity in [1, 5, 256] {
        let ring = ShmRing::<[u64; 3]>::with_capacity_in(capacity, place.heap).unwrap();
        let (sum, count) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|threads| {
            for producer in 0..3 {
                let mut handle = ring.join().unwrap();
                threads.spawn(move || {
                    for n in 0..EACH {
                        let mut message = [producer, n, producer ^ n];
                        while let Err(back) = handle.push(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                });
            }
            for _ in 0..3 {
                let mut handle = ring.join().unwrap();
                let (sum, count) = (&sum, &count);
                threads.spawn(move || {
                    let mut last = [None; 3];
                    while count.load(Ordering::Relaxed) < 3 * EACH {
                        let Some([producer, n, check]) = handle.pop() else {
                            std::thread::yield_now();
                            continue;
                        };
                        assert_eq!(producer ^ n, check);
                        let last = &mut last[producer as usize];
                        assert!(last.is_none_or(|last| last < n), "out of order");
                        *last = Some(n);
                        sum.fetch_add(n, Ordering::Relaxed);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 3 * EACH * (EACH - 1) / 2);
        assert!(ring.is_empty());
        // All room is there again.
        let mut handle = ring.join().unwrap();
        assert_eq!((0..).take_while(|&n| handle.push([n; 3]).is_ok()).count(), capacity);
    }
}

#[test]
fn waiting_ends_with_a_message_with_room_or_with_time() {
    let place = Place::usual();
    let ring = ShmRing::with_capacity_in(1, place.heap).unwrap();
    let mut handle = ring.join().unwrap();
    let start = Instant::now();
    assert_eq!(handle.pop_wait(Duration::from_millis(20)), None);
    handle.push(1u32).unwrap();
    assert_eq!(handle.push_wait(2, Duration::from_millis(20)), Err(2));
    assert!(start.elapsed() >= Duration::from_millis(40));
    let long = Duration::from_secs(1000);
    assert_eq!(handle.pop_wait(long), Some(1));
    std::thread::scope(|threads| {
        let mut other = ring.join().unwrap();
        threads.spawn(move || {
            for n in 0..2000 {
                other.push_wait(n, long).unwrap();
                if n % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for n in 0..2000 {
            assert_eq!(handle.pop_wait(long), Some(n));
        }
    });
    assert!(start.elapsed() < long, "somebody waited to the end");
}

#[test]
fn handles_are_counted() {
    let place = Place::usual();
    let ring = ShmRing::<u8>::with_handles_in(4, 2, place.heap).unwrap();
    let one = ring.join().unwrap();
    let two = ring.join().unwrap();
    assert_eq!(ring.join().err(), Some(Error::TableFull { slots: 2 }));
    drop(one);
    let mut three = ring.join().unwrap();
    assert_eq!(three.push(1), Ok(()));
    drop((two, three));
    for (capacity, handles) in [(0, 1), (1, 0), (1 << 24, 1), (1, 5000)] {
        let refused = ShmRing::<u8>::with_handles_in(capacity, handles, place.heap);
        assert!(matches!(refused, Err(Error::TooLarge { .. })));
    }
}
