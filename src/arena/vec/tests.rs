use super::*;
use crate::base::MIB;
use std::rc::Rc;

/// Bytes that the vector that never moves grows to; all of a gigabyte in the long runs.
fn far() -> usize {
    if std::env::var_os("HSHM_LONG_TESTS").is_some() { 1024 * MIB } else { 96 * MIB }
}

#[test]
fn a_reserved_vector_never_moves() {
    let mut vec = ArenaVec::reserved(1024 * MIB + 64 * crate::base::KIB).unwrap();
    vec.push(0u64);
    let first = vec.as_ptr();
    for n in 1..(far() / 8) as u64 {
        vec.push(n);
    }
    assert_eq!(vec.as_ptr(), first);
    assert_eq!(vec.len() * 8, far());
    assert!(vec.iter().enumerate().all(|(at, &n)| at as u64 == n));
}

#[test]
fn a_full_reserved_vector_stays_as_it_is() {
    let mut vec = ArenaVec::reserved(64 * 1024).unwrap();
    let error = loop {
        match vec.try_push(vec.len() as u32) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), crate::ErrorCode::OutOfMemory);
    assert!(vec.len() > 16_000 && vec.len() * 4 < 64 * 1024, "{}", vec.len());
    assert!(vec.iter().enumerate().all(|(at, &n)| at as u32 == n));
    assert!(vec.try_reserve(usize::MAX).is_err());
    assert!(vec.try_reserve(usize::MAX / 4).is_err());
}

#[test]
fn a_chained_vector_outgrows_its_reservations() {
    let mut vec = ArenaVec::chained(MIB).unwrap();
    let mut moves = 0;
    let mut at = core::ptr::null();
    for n in 0..2_000_000u32 {
        vec.push(n);
        moves += usize::from(vec.as_ptr() != at);
        at = vec.as_ptr();
    }
    assert!((2..8).contains(&moves), "{moves}");
    assert!(vec.iter().enumerate().all(|(at, &n)| at as u32 == n));
    assert!(vec.arena().body().blocks().count() == 1, "blocks that it left are given back");
}

#[test]
fn others_in_the_arena_make_it_move() {
    let arena = Arena::new();
    let mut vec = ArenaVec::new_in(&arena);
    vec.extend(0..4u32);
    let first = vec.as_ptr();
    vec.push(4);
    assert_eq!(vec.as_ptr(), first, "in place while it is the last");
    arena.push_value(1u8);
    vec.extend(5..100);
    assert_ne!(vec.as_ptr(), first);
    assert!(vec.iter().copied().eq(0..100));
}

#[test]
fn a_dropped_vector_gives_its_room_back() {
    let arena = Arena::new();
    arena.push_value(1u64);
    let before = arena.pos();
    drop(ArenaVec::<u64>::with_capacity_in(50, &arena));
    assert_eq!(arena.pos(), before);
    let mut vec = ArenaVec::with_capacity_in(50, &arena);
    vec.push(1u64);
    assert_eq!(vec.into_slice(), [1]);
    assert_eq!(arena.pos(), before + 8);
}

#[test]
fn values_are_dropped_once() {
    let count = Rc::new(());
    let arena = Arena::new();
    let mut vec = ArenaVec::new_in(&arena);
    vec.extend((0..10).map(|_| count.clone()));
    assert_eq!(vec.drain(2..5).len(), 3);
    assert_eq!((vec.len(), Rc::strong_count(&count)), (7, 8));
    let mut some = vec.drain(..);
    drop((some.next(), some.next_back()));
    assert_eq!(Rc::strong_count(&count), 6);
    drop(some);
    assert_eq!((vec.len(), Rc::strong_count(&count)), (0, 1));
    vec.extend((0..10).map(|_| count.clone()));
    vec.truncate(8);
    drop(vec.pop());
    drop(vec.swap_remove(0));
    let mut keep = false;
    vec.retain(|_| {
        keep = !keep;
        keep
    });
    assert_eq!((vec.len(), Rc::strong_count(&count)), (3, 4));
    drop(vec);
    assert_eq!(Rc::strong_count(&count), 1);
    let owned = arena.push_owned(count.clone());
    assert_eq!(Rc::strong_count(&owned), 2);
    drop(owned);
    drop(arena.push_owned(count.clone()).into_inner());
    assert_eq!(Rc::strong_count(&count), 1);
}

/// Every change of order, against `Vec`.
#[test]
fn it_does_what_vec_does() {
    let arena = Arena::builder().growth(Growth::Reserved).capacity(MIB * 4).build().unwrap();
    let (mut ours, mut theirs) = (ArenaVec::new_in(&arena), Vec::new());
    let mut random = 1u64;
    for step in 0..4000u32 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (choice, at) = (random >> 60, (random >> 20) as usize % (theirs.len() + 1));
        match choice {
            0..6 => {
                ours.push(step);
                theirs.push(step);
            }
            6..9 => {
                ours.insert(at, step);
                theirs.insert(at, step);
            }
            9..11 if at < theirs.len() => assert_eq!(ours.remove(at), theirs.remove(at)),
            11 if at < theirs.len() => {
                assert_eq!(ours.swap_remove(at), theirs.swap_remove(at));
            }
            12 => {
                let end = (at + 7).min(theirs.len());
                assert!(ours.drain(at..end).eq(theirs.drain(at..end)));
            }
            13 => {
                ours.retain(|n| *n % 5 != 0);
                theirs.retain(|n| n % 5 != 0);
            }
            14 => {
                ours.extend_from_slice(&[step; 9]);
                theirs.extend_from_slice(&[step; 9]);
            }
            _ => assert_eq!(ours.pop(), theirs.pop()),
        }
        assert_eq!(*ours, *theirs);
    }
}

#[test]
fn values_without_size_take_none() {
    let arena = Arena::new();
    let mut vec = ArenaVec::new_in(&arena);
    vec.extend([(); 1000]);
    assert_eq!((vec.len(), arena.pos()), (1000, 0));
    assert_eq!(vec.drain(..).count(), 1000);
    assert_eq!(arena.push_iter([(); 7]).len(), 7);
}

#[test]
#[should_panic(expected = "index 3 of 3 values")]
fn an_index_past_the_end_is_told() {
    let arena = Arena::new();
    let mut vec = ArenaVec::new_in(&arena);
    vec.extend([1, 2, 3]);
    vec.remove(3);
}

#[test]
fn ranges_past_all_numbers_are_refused() {
    use core::ops::Bound::{Excluded, Included, Unbounded};
    let past = [
        (Excluded(usize::MAX), Unbounded),
        (Unbounded, Included(usize::MAX)),
        (Excluded(usize::MAX), Included(usize::MAX)),
    ];
    for range in past {
        let arena = Arena::new();
        let mut vec = ArenaVec::new_in(&arena);
        vec.extend(0..4);
        let drained =
            std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| vec.drain(range).count()));
        assert!(drained.is_err(), "{range:?}");
        assert_eq!(*vec, [0, 1, 2, 3]);
    }
}
