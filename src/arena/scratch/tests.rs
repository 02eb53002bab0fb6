use std::cell::Cell;
use std::mem::{ManuallyDrop, size_of};

use super::slot::Level;
use super::*;
use crate::base::MIB;

/// How many arenas this thread has for scratch.
fn slots() -> usize {
    SLOTS.with(|slots| slots.0.borrow().len())
}

#[test]
fn two_do_for_any_depth() {
    /// Hands its result's arena down, and takes temporaries of its own.
    fn nested<'a>(depth: u32, out: &'a Arena<'_>) -> &'a str {
        let temp = scratch(&[out]);
        assert!(!temp.shares_memory_with(out));
        let inner = if depth == 0 { "" } else { nested(depth - 1, &temp) };
        out.format(format_args!("{inner}{depth} "))
    }
    std::thread::spawn(|| {
        let out = scratch(&[]);
        assert_eq!(nested(9, &out), "0 1 2 3 4 5 6 7 8 9 ");
        assert_eq!(slots(), 2);
    })
    .join()
    .unwrap();
}

#[test]
fn more_are_made_when_more_conflict() {
    std::thread::spawn(|| {
        let a = scratch(&[]);
        let b = scratch(&[&a]);
        let c = scratch(&[&a, &b]);
        let d = scratch(&[&a, &b, &c]);
        let all = [&a, &b, &c, &d];
        for (at, one) in all.iter().enumerate() {
            for other in all.iter().skip(at + 1) {
                assert!(!one.shares_memory_with(other));
            }
        }
        assert_eq!(slots(), 4);
        // A scope of a conflicting arena conflicts, too.
        let inner = a.temp();
        assert!(!scratch(&[&inner]).shares_memory_with(&a));
    })
    .join()
    .unwrap();
}

#[test]
fn an_arena_with_an_open_scope_is_passed_over() {
    let a = scratch(&[]);
    let inner = a.temp();
    let b = scratch(&[]);
    assert!(!a.shares_memory_with(&b));
    assert_eq!((*inner.push_value(1), *b.push_value(2)), (1, 2));
}

#[test]
fn guards_may_go_in_any_order() {
    let before = scratch(&[]).pos();
    let a = scratch(&[]);
    let kept = a.push_str("of a");
    let b = scratch(&[]);
    assert!(a.shares_memory_with(&b));
    assert_eq!(a.try_push_value(1u8), Err(Error::ScopeOpen));
    let of_b = b.push_str("of b");
    assert_eq!((&*kept, &*of_b), ("of a", "of b"));
    drop(a);
    assert_eq!(of_b, "of b");
    let c = scratch(&[]);
    c.push(100);
    drop(b);
    assert!(c.try_push_value(1u8).is_ok(), "the last one is open");
    drop(c);
    assert_eq!(scratch(&[]).pos(), before);
}

#[test]
fn a_closed_scratch_opens_again() {
    let mut a = scratch(&[]);
    a.push_value(1u64);
    drop(scratch(&[]));
    a.push_value(2u64);
    let empty = {
        a.clear();
        a.pos()
    };
    a.push(1 << 20);
    a.clear();
    assert_eq!(a.pos(), empty);
}

#[test]
fn what_is_leaked_stays() {
    let value: &'static mut [u8; 3] = std::thread::spawn(|| {
        let scratch = Box::leak(Box::new(scratch(&[])));
        scratch.push_value(*b"abc")
    })
    .join()
    .unwrap();
    assert_eq!(value, b"abc");
}

#[test]
fn an_alignment_ends_with_its_scratch() {
    let built = Arena::new().auto_align();
    let changed = |scratch: &Scratch| scratch.set_auto_align(64).unwrap();
    for _ in 0..3 {
        let first = scratch(&[]);
        assert_eq!(first.auto_align(), built);
        drop(first);
        let first = scratch(&[]);
        changed(&first);
        let second = scratch(&[]);
        assert!(second.shares_memory_with(&first));
        assert_eq!(second.auto_align(), built, "behind one that changed it");
        second.set_auto_align(1).unwrap();
        drop(second);
        assert_eq!(first.auto_align(), 64, "before one that changed it");
    }
    assert_eq!(scratch(&[]).auto_align(), built);
    let global = scratch_global().unwrap();
    global.set_auto_align(64).unwrap();
    drop(global);
    let all: Vec<_> = (0..20).map(|_| scratch_global().unwrap()).collect();
    assert!(all.iter().all(|scratch| scratch.auto_align() == built));
}

#[test]
fn other_kinds() {
    let mapped = scratch_mapped(1 << 20).unwrap();
    assert!(mapped.try_push(1 << 20).is_err());
    assert_eq!(mapped.push(1 << 19).len(), 1 << 19);
    let global = scratch_global().unwrap();
    let other = scratch_global().unwrap();
    assert!(!global.shares_memory_with(&other));
    std::thread::spawn(move || global.push(1000).len()).join().unwrap();
    assert_eq!(scratch_global().unwrap().pos(), 0);
}

#[test]
fn many_that_ended_early_end_at_once() {
    // On a thread with little stack.
    let work = || {
        let before = scratch(&[]).pos();
        let mut guards: Vec<_> = (0..20_000).map(|_| scratch(&[])).collect();
        let last = guards.pop().unwrap();
        drop(guards);
        assert!(last.pos() > 19_000 * size_of::<Level>());
        drop(last);
        assert_eq!(scratch(&[]).pos(), before);
    };
    std::thread::Builder::new().stack_size(64 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn a_grown_scratch_is_zero_where_it_should_be() {
    std::thread::spawn(|| {
        for round in 1..200usize {
            let temp = scratch(&[]);
            let len = round * 7919 % (3 * MIB);
            let bytes = temp.push(len);
            assert!(bytes.iter().all(|&byte| byte == 0), "{round}");
            bytes.fill(0xFF);
            if round % 5 == 0 {
                // Left open: its bytes were used, too.
                let inner = ManuallyDrop::new(temp.temp());
                inner.push(len).fill(0xFF);
            }
            if round % 7 == 0 {
                let behind = scratch(&[]);
                behind.push(len).fill(0xFF);
                drop(temp);
                behind.push(len).fill(0xFF);
            }
        }
        assert_eq!(slots(), 2);
    })
    .join()
    .unwrap();
}

#[test]
fn a_thread_that_ends_has_none() {
    struct AtTheEnd(Cell<Option<Scratch>>);
    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            // The slots may be gone, but what a guard has stays.
            let kept = self.0.take().unwrap();
            assert_eq!(*kept.push_value(5), 5);
            drop(kept);
            if let Ok(temp) = try_scratch(&[]) {
                temp.push(MIB).fill(1);
            }
        }
    }
    thread_local!(static EARLY: AtTheEnd = const { AtTheEnd(Cell::new(None)) });
    thread_local!(static LATE: AtTheEnd = const { AtTheEnd(Cell::new(None)) });
    std::thread::spawn(|| {
        EARLY.with(|early| early.0.set(Some(scratch(&[]))));
        LATE.with(|late| late.0.set(Some(scratch(&[]))));
        drop(scratch(&[]));
    })
    .join()
    .unwrap();
}

#[test]
fn threads_share_the_global_ones() {
    std::thread::scope(|threads| {
        for thread in 0..4u8 {
            threads.spawn(move || {
                for _ in 0..2000 {
                    let (a, b) = (scratch_global().unwrap(), scratch_global().unwrap());
                    let (x, y) = (a.push(100), b.push(100));
                    x.fill(thread);
                    y.fill(!thread);
                    assert!(x.iter().all(|&byte| byte == thread));
                    assert!(y.iter().all(|&byte| byte == !thread));
                }
            });
        }
    });
}
