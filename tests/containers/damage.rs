//! Containers whose words somebody wrote over: answers, errors or panics, and nothing worse.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hshm::{ShmBox, ShmHashMap, ShmRing, ShmString, ShmVec};

use super::common::{Place, Random};

/// Writes something else into a word or two of a container.
fn damage<T>(container: &mut T, first: usize, random: &mut Random) {
    let words = size_of::<T>() / 8;
    let start = std::ptr::from_mut(container).cast::<u64>();
    for _ in 0..1 + random.below(2) {
        let word = start.wrapping_add(first + random.below(words - first));
        let few =
            [0, 1, 7, 8, 63, u64::MAX, u64::MAX - 7, 1 << 63, i64::MAX as u64, 64 << 20, 4096];
        let value = match random.below(3) {
            0 => few[random.below(few.len())],
            1 => random.number() >> random.below(64),
            // SAFETY: a word of the container, which is a word of memory.
            _ => unsafe { word.read() ^ 1 << random.below(64) },
        };
        // SAFETY: as above; any words do for a container, as far as this test is concerned.
        unsafe { word.write(value) };
    }
}

thread_local!(static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });

/// Runs something that may panic, with a message of ours or of a slice.
fn tried(work: impl FnOnce()) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let _ = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
}

#[test]
fn any_words_give_an_answer() {
    let place = Place::usual();
    let mut random = Random(3);
    let mut answers = 0;
    // Elements are numbers: whatever is found is a value.
    let numbers = ShmVec::from_iter_in(0..1000u64, place.heap).unwrap();
    let pairs = ShmHashMap::from_iter_in((0..1000u64).map(|n| (n, n)), place.heap).unwrap();
    let text = ShmString::from_in(&"text ".repeat(9), place.heap).unwrap();
    let short = ShmString::from_in("text", place.heap).unwrap();
    let boxed = ShmBox::new_in(5u64, place.heap).unwrap();
    let ring = ShmRing::<u64>::with_capacity_in(5, place.heap).unwrap();
    for _ in 0..30_000 {
        // SAFETY: copies, of which none is dropped.
        let (mut numbers, mut pairs, mut text, mut short, mut boxed, mut ring) = unsafe {
            use std::mem::ManuallyDrop;
            use std::ptr::read;
            (
                ManuallyDrop::new(read(&numbers)),
                ManuallyDrop::new(read(&pairs)),
                ManuallyDrop::new(read(&text)),
                ManuallyDrop::new(read(&short)),
                ManuallyDrop::new(read(&boxed)),
                ManuallyDrop::new(read(&ring)),
            )
        };
        damage(&mut *numbers, 0, &mut random);
        damage(&mut *pairs, 0, &mut random);
        damage(&mut *text, 0, &mut random);
        damage(&mut *short, 0, &mut random);
        damage(&mut *boxed, 0, &mut random);
        damage(&mut *ring, 0, &mut random);
        tried(|| {
            answers += numbers.iter().take(5000).fold(0, |sum: u64, n| sum ^ n) as u128 % 2 + 1
        });
        tried(|| answers += (0..50).map(|n| numbers[n * 19]).fold(1, |sum, n| sum ^ n) as u128 % 2);
        tried(|| answers += numbers[random.below(2000)] as u128 % 2);
        tried(|| answers += (0..50).filter(|n| pairs.get(n).is_some()).count() as u128);
        tried(|| answers += pairs.iter().take(5000).count() as u128);
        tried(|| answers += !text.as_bytes().is_empty() as u128);
        tried(|| answers += short.as_bytes().iter().filter(|byte| **byte > 1).count() as u128);
        tried(|| answers += **boxed as u128 % 2);
        // (Pushing would write to whatever its words are said to be.)
        tried(|| answers += ring.len() as u128);
    }
    assert!(answers > 10_000, "{answers}");
    place.alloc.verify().unwrap();
}

#[test]
fn a_container_without_its_heap() {
    let place = Place::usual();
    let vec = ShmVec::from_slice_in(&[1u32, 2], place.heap).unwrap();
    let map = ShmHashMap::from_iter_in([(1, 2)], place.heap).unwrap();
    // SAFETY: what is used afterwards gives panics.
    unsafe { place.heap.retire() };
    let panic = catch_unwind(|| vec.len() + vec[0] as usize).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("out of reach") && text.contains("77000"), "{text}");
    assert!(catch_unwind(|| map.get(&1).is_some()).is_err());
    // Nothing is reached, nothing is freed, nothing happens.
    drop((vec, map));
}
