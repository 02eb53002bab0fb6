//! What the model does not reach: sizes at the edges, pages, leaked scopes, threads.
#![allow(unsafe_code)] // looks at bytes that were popped

use super::*;
use crate::alloc::Allocator;
use crate::base::{Error, ErrorCode, KIB, MIB};
use std::alloc::Layout;
use std::mem::MaybeUninit;

fn reserved(capacity: usize) -> Arena<'static> {
    Arena::builder().growth(Growth::Reserved).capacity(capacity).build().unwrap()
}

#[test]
fn wrong_settings_are_refused() {
    let code = |builder: ArenaBuilder| builder.build().map_err(|error| error.code()).err();
    let builder = Arena::builder();
    assert_eq!(code(builder.page_size(4096 * 3)), Some(ErrorCode::BadAlignment));
    assert_eq!(code(builder.page_size(64)), Some(ErrorCode::BadAlignment));
    assert_eq!(code(builder.align(12)), Some(ErrorCode::BadAlignment));
    assert_eq!(code(builder.commit_step(0)), Some(ErrorCode::TooSmall));
    assert_eq!(code(builder.capacity(8)), Some(ErrorCode::TooSmall));
    let mapped = builder.growth(Growth::Reserved);
    assert_eq!(code(mapped.capacity(usize::MAX)), Some(ErrorCode::TooLarge));
    assert_eq!(code(mapped.commit_step(usize::MAX)), Some(ErrorCode::TooLarge));
    assert_eq!(code(mapped.capacity(isize::MAX as usize & !4095)), Some(ErrorCode::OutOfMemory));
    assert_eq!(code(builder.capacity(isize::MAX as usize)), Some(ErrorCode::OutOfMemory));
    // No room for the bookkeeping, and with larger pages no page either.
    assert_eq!(code(mapped.capacity(0)), Some(ErrorCode::TooSmall));
    assert_eq!(code(mapped.capacity(0).page_size(2 * MIB)), Some(ErrorCode::TooSmall));
    assert_eq!(ArenaVec::<u8>::reserved(0).unwrap_err().code(), ErrorCode::TooSmall);
    let mut little = [MaybeUninit::uninit(); 100];
    let error = builder.build_over(&mut little).unwrap_err();
    assert!(matches!(error, Error::TooSmall { given: 100, minimum: 101.. }));
    assert_eq!(Arena::new().set_auto_align(3), Err(Error::BadAlignment { align: 3 }));
    assert_eq!(Arena::new().push_aligner(0), Err(Error::BadAlignment { align: 0 }));
}

#[test]
fn names_are_cut_between_characters() {
    let long = "a name of thirty-one bytes, an\u{e9}\u{e9}";
    let arena = Arena::builder().name(long).build().unwrap();
    assert_eq!(arena.name(), &long[..32]);
    assert_eq!(Arena::builder().name(&long[1..]).build().unwrap().name(), &long[1..32]);
    assert_eq!(
        Arena::builder()
            .name("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\u{e9}")
            .build()
            .unwrap()
            .name()
            .len(),
        31
    );
}

#[test]
fn sizes_that_overflow_are_errors() {
    let mut room = [MaybeUninit::uninit(); 2048];
    let arenas = [
        Arena::new(),
        reserved(MIB),
        Arena::builder().growth(Growth::ReservedThenChained).capacity(MIB).build().unwrap(),
        Arena::builder().build_over(&mut room).unwrap(),
    ];
    for arena in arenas {
        let before = arena.pos();
        for size in [usize::MAX, usize::MAX - 7, isize::MAX as usize, isize::MAX as usize - 4095] {
            assert_eq!(arena.try_push(size).unwrap_err().code(), ErrorCode::OutOfMemory);
            assert_eq!(arena.try_push_no_zero(size).unwrap_err().code(), ErrorCode::OutOfMemory);
        }
        let far = Layout::from_size_align(0, 1 << 63).unwrap();
        assert_eq!(arena.try_push_layout(far).unwrap_err().code(), ErrorCode::OutOfMemory);
        assert_eq!(arena.pos(), before);
        arena.push_value(1u64);
    }
}

#[test]
fn alignments_above_the_page() {
    for growth in [Growth::Chained, Growth::Reserved, Growth::ReservedThenChained] {
        let arena = Arena::builder().growth(growth).capacity(32 * MIB).build().unwrap();
        for shift in 12..24 {
            let layout = Layout::from_size_align(100, 1 << shift).unwrap();
            let place = arena.push_layout(layout);
            assert_eq!(place.addr().get() % (1 << shift), 0);
        }
        arena.set_auto_align(64 * KIB).unwrap();
        assert_eq!(arena.push(3).as_ptr().addr() % (64 * KIB), 0);
    }
}

#[test]
#[should_panic(expected = "arena `small`: out of memory: 5000 bytes requested")]
fn a_full_arena_says_so() {
    Arena::builder().growth(Growth::Fixed).name("small").build().unwrap().push(5000);
}

#[test]
#[should_panic(expected = "a scope of this arena is open")]
fn a_closed_arena_says_so() {
    let arena = Arena::new();
    let _temp = arena.temp();
    arena.push_value(1u32);
}

#[test]
fn pages_go_back_past_the_threshold() {
    let builder = Arena::builder().growth(Growth::Reserved).capacity(64 * MIB);
    let mut arena = builder.decommit_above(MIB).build().unwrap();
    arena.push(32 * MIB).fill(1);
    assert!(arena.committed() >= 32 * MIB);
    arena.pop(31 * MIB);
    assert!(arena.committed() <= 2 * MIB + 4096, "{}", arena.committed());
    arena.clear();
    assert!(arena.committed() <= MIB + 4096, "{}", arena.committed());
    assert!(arena.push(32 * MIB).iter().all(|&byte| byte == 0));
    arena.temp().push(8 * MIB).fill(2);
    assert!(arena.committed() <= 33 * MIB + 4096, "{}", arena.committed());
    arena.clear();
    arena.trim();
    assert!(arena.committed() <= 4096, "{}", arena.committed());
    let mut kept = builder.build().unwrap();
    kept.push(32 * MIB);
    kept.clear();
    assert!(kept.committed() >= 32 * MIB);
}

#[test]
fn a_cleared_chain_comes_to_be_one_block() {
    let mut arena = Arena::new();
    for _ in 0..4 {
        for n in 0..10_000u64 {
            arena.push_value(n);
        }
        arena.clear();
    }
    let committed = arena.committed();
    let before = arena.body().blocks().count();
    for n in 0..10_000u64 {
        arena.push_value(n);
    }
    assert_eq!((before, arena.body().blocks().count()), (1, 1));
    assert_eq!(arena.committed(), committed);
}

#[test]
fn popped_bytes_are_zeroed_or_filled() {
    let look = |arena: &mut Arena<'_>| {
        let place = arena.push(100).as_mut_ptr();
        // SAFETY: pushed just now.
        unsafe { place.write_bytes(7, 100) };
        arena.clear();
        // The bytes are the arena's, which lives, and no one has them.
        // SAFETY: the block stays.
        unsafe { std::slice::from_raw_parts(place, 100) }.to_vec()
    };
    let mut wiped = Arena::builder().poison(false).zeroing(Zeroing::OnPop).build().unwrap();
    let mut filled = Arena::builder().poison(true).build().unwrap();
    let mut plain = Arena::builder().poison(false).build().unwrap();
    if cfg!(hshm_asan) {
        return; // Looking at popped bytes is what the sanitizer reports.
    }
    assert_eq!(look(&mut wiped), [0; 100]);
    assert_eq!(look(&mut filled), [0xDD; 100]);
    assert_eq!(look(&mut plain), [7; 100]);
}

#[test]
fn a_leaked_scope_closes_its_arena_until_it_is_popped() {
    let mut arena = Arena::builder().decommit_above(0).build().unwrap();
    let kept = arena.pos();
    let here: &'static str = {
        std::mem::forget(arena.temp());
        "leaked"
    };
    assert_eq!(arena.try_push_value(here).err(), Some(Error::ScopeOpen));
    arena.pop_to(kept).unwrap();
    assert_eq!(*arena.push_value(here), "leaked");
    let temp = arena.temp();
    std::mem::forget(temp.temp());
    assert_eq!(temp.try_push(1).unwrap_err(), Error::ScopeOpen);
    drop(temp);
    arena.push_value(1u8);
}

#[test]
fn scopes_end_where_they_began_however_they_grew() {
    let growths = [Growth::Chained, Growth::Reserved, Growth::ReservedThenChained];
    // Bytes that the outer scope pushes before and after an inner one, and those of the inner one.
    let sizes = [0, 1, 3000, 9000, 70_000];
    for (growth, before) in growths.iter().flat_map(|&growth| sizes.map(|size| (growth, size))) {
        for (inner, after) in sizes.iter().flat_map(|&inner| sizes.map(|size| (inner, size))) {
            let capacity = if growth == Growth::Reserved { 1 << 20 } else { 8192 };
            let arena = Arena::builder().growth(growth).capacity(capacity).commit_step(4096);
            let arena = arena.build().unwrap();
            let kept = arena.push_slice(&[7u8; 128]);
            arena.push_aligner(64).unwrap();
            let (start, place) = (arena.pos(), arena.push(0).as_ptr());
            for _ in 0..3 {
                let temp = arena.temp();
                temp.push(before).fill(1);
                let here = temp.pos();
                temp.scope(|scope| scope.push(inner).fill(2));
                assert_eq!(temp.pos(), here);
                let bytes = temp.push(after);
                assert!(bytes.iter().all(|&byte| byte == 0), "{growth:?} {before} {inner} {after}");
                bytes.fill(3);
                drop(temp);
                assert_eq!((arena.pos(), arena.push(0).as_ptr()), (start, place));
                arena.scope(|scope| assert!(scope.push(50).iter().all(|&byte| byte == 0)));
            }
            assert!(kept.iter().all(|&byte| byte == 7));
        }
    }
}

#[test]
fn scopes_of_a_borrowed_arena_end_where_they_began() {
    for growth in [Growth::Fixed, Growth::Chained, Growth::Reserved, Growth::ReservedThenChained] {
        let chained = growth != Growth::Fixed && growth != Growth::Reserved;
        let capacity = if chained { 8192 } else { MIB };
        let arena = Arena::builder().growth(growth).capacity(capacity).commit_step(4096);
        let mut arena = arena.decommit_above(4096).build().unwrap();
        arena.push(104).fill(7);
        let (start, place) = (arena.pos(), arena.push(0).as_ptr());
        for bytes in [0, 1, 3000, 70_000, 300_000, 10] {
            let mut temp = arena.temp_mut();
            temp.push(bytes).fill(1);
            let here = temp.pos();
            let mut inner = temp.temp_mut();
            inner.push(bytes).fill(2);
            // A scope that is leaked leaves it closed until the inner one ends.
            std::mem::forget(inner.temp());
            assert_eq!(inner.try_push(1).unwrap_err(), Error::ScopeOpen);
            inner.clear();
            inner.push(bytes).fill(3);
            std::mem::forget(inner.temp());
            drop(inner);
            assert_eq!(temp.pos(), here);
            assert!(temp.pop_to(start - 1).is_err() && temp.pop_to(here + 1).is_err());
            temp.pop_to(start).unwrap();
            assert!(temp.push(bytes).iter().all(|&byte| byte == 0), "{growth:?} {bytes}");
            // One that is leaked itself takes nothing back: the one around it does.
            std::mem::forget(temp.temp_mut());
            drop(temp);
            assert_eq!((arena.pos(), arena.push(0).as_ptr()), (start, place));
        }
    }
    let mut arena = Arena::new();
    let work = || {
        arena.scope_mut(|temp| {
            temp.push(100);
            panic!("in a scope");
        })
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
    assert_eq!(arena.pos(), 0);
    arena.push_value(1u8);
}

#[test]
fn what_a_closed_arena_says_of_its_room() {
    let arena = Arena::builder().capacity(KIB).build().unwrap();
    arena.push(100);
    let here = arena.available();
    let temp = arena.temp();
    assert_eq!((arena.available(), temp.available()), (here, here));
    temp.push(MIB);
    assert_eq!(arena.available(), 0, "its block is not the current one");
    assert!(temp.available() > 0);
}

#[test]
fn a_spare_reservation_counts_as_far_as_it_is_committed() {
    let chained = Arena::builder().growth(Growth::ReservedThenChained).capacity(MIB);
    let mut arena = chained.build().unwrap();
    arena.push(MIB - KIB);
    let here = arena.pos();
    arena.push(8 * KIB);
    let both = arena.committed();
    arena.pop_to(here).unwrap();
    assert_eq!(arena.committed(), both);
}

#[test]
fn what_is_zeroed_on_pop_is_gone_after_the_drop() {
    let mut room = vec![MaybeUninit::new(7u8); 4 * KIB];
    let arena = Arena::builder().zeroing(Zeroing::OnPop).build_over(&mut room).unwrap();
    let secret = arena.push_str("a secret, and more of it").as_ptr().addr();
    // In a scope that is leaked, too.
    let temp = core::mem::ManuallyDrop::new(arena.temp());
    let deeper = temp.push_str("another one").as_ptr().addr();
    drop(arena);
    for (place, len) in [(secret, 24), (deeper, 11)] {
        let at = place - room.as_ptr().addr();
        // SAFETY: initialised at the start, and written since.
        let left = room[at..at + len].iter().map(|byte| unsafe { byte.assume_init() });
        assert!(left.into_iter().all(|byte| byte == 0));
    }
}

#[test]
fn a_panic_ends_its_scope() {
    let arena = Arena::new();
    let here = arena.pos();
    let work = || {
        arena.scope(|temp| {
            temp.push(100);
            panic!("in a scope");
        })
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
    assert_eq!(arena.pos(), here);
    arena.push_value(1u8);
}

#[test]
fn results_are_left_behind() {
    let arena = reserved(MIB);
    let sum = arena.try_push_result(|temp| temp.push_iter(0..1000u64).iter().sum::<u64>()).unwrap();
    assert_eq!((*sum, arena.pos()), (499_500, 8));
    let before = arena.pos();
    let words = arena
        .scope_leaving(64 * KIB, |room, temp| {
            let text = temp.push_str("a b c");
            assert!(arena.try_push(1).is_err(), "the scope is open");
            room.push_iter(text.split(' ').map(|word| &*room.push_str(word)))
        })
        .unwrap();
    assert_eq!(words, ["a", "b", "c"]);
    assert!(arena.pos() - before < 1024, "what is left of the room goes back");
    arena.push(100).fill(0xFF);
    assert_eq!(words, ["a", "b", "c"]);
    let full = arena.scope_leaving(MIB, |_, _| ());
    assert_eq!(full.unwrap_err().code(), ErrorCode::OutOfMemory);
    let room = arena.scope_leaving(100, |room, _| room).unwrap();
    assert_eq!(room.try_push_value(1u8), Err(Error::ScopeOpen), "it ended with the scope");
    assert_eq!(Arena::new().scope_leaving(1, |_, _| ()), Err(Error::Unsupported));
}

#[test]
fn threads_share_one() {
    let arena =
        SyncArena::build(&Arena::builder().growth(Growth::Reserved).capacity(16 * MIB)).unwrap();
    let all: Vec<&mut [u64]> = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let arena = &arena;
            move || (0..1000).map(|n| arena.push_slice(&[thread, n, 7])).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for (at, values) in all.iter().enumerate() {
        assert_eq!(**values, [at as u64 / 1000, at as u64 % 1000, 7]);
    }
    assert_eq!(arena.pos(), 4 * 1000 * 24);
    assert_eq!(arena.push(10), [0; 10]);
    assert_eq!(arena.push_str("text"), "text");
}

/// What a debug text is written to may use the arena that it is of.
#[test]
fn a_shared_arena_is_not_locked_while_it_is_written() {
    struct Pushes<'a>(&'a SyncArena);
    impl std::fmt::Write for Pushes<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.push_str(text);
            Ok(())
        }
    }
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let arena = SyncArena::new();
        std::fmt::write(&mut Pushes(&arena), format_args!("{arena:?}")).unwrap();
        done.send(arena.pos()).unwrap();
    });
    let pos = wait.recv_timeout(std::time::Duration::from_secs(300)).expect("it waits for itself");
    assert!(pos > 20);
}

/// An iterator that pushes into the arena that it is pushed into.
#[test]
fn an_iterator_may_push() {
    let arena = Arena::new();
    let names = arena.push_iter((0..100).map(|n| &*arena.format(format_args!("name {n}"))));
    assert!(names.iter().enumerate().all(|(n, name)| *name == format!("name {n}")));
    let made = arena.push_with(|| *arena.push_value(5u8) + 1);
    assert_eq!(*made, 6);
}

#[cfg(hshm_asan)]
#[test]
fn the_sanitizer_knows_what_was_popped() {
    unsafe extern "C" {
        fn __asan_address_is_poisoned(address: *const u8) -> i32;
    }
    // SAFETY: the address is only looked up.
    let poisoned = |address: *const u8| unsafe { __asan_address_is_poisoned(address) != 0 };
    for growth in [Growth::Fixed, Growth::Chained, Growth::Reserved] {
        let mut arena = Arena::builder().growth(growth).capacity(8192).build().unwrap();
        let kept = arena.push(64).as_ptr();
        let here = arena.pos();
        let gone = arena.push(256).as_ptr();
        assert!(!poisoned(kept) && !poisoned(gone.wrapping_add(255)));
        assert!(poisoned(gone.wrapping_add(256)), "nobody has that yet");
        arena.pop_to(here).unwrap();
        assert!(!poisoned(kept.wrapping_add(63)) && poisoned(gone));
        let pool = Pool::new(&arena).unwrap();
        let value = pool.put([0u64; 8]);
        let place = (&raw const *value).cast::<u8>();
        assert!(!poisoned(place));
        drop(value);
        assert!(poisoned(place.wrapping_add(16)));
    }
}

/// Touches, one in each child process, what was pushed and taken back in every way that there is.
#[cfg(hshm_asan)]
#[test]
fn the_sanitizer_stops_who_touches_what_was_taken_back() {
    const ROLE: &str = "HSHM_TOUCH";
    fn arena(growth: Growth) -> &'static mut Arena<'static> {
        let builder = Arena::builder().growth(growth).capacity(64 * KIB).poison(false);
        Box::leak(Box::new(builder.build().unwrap()))
    }
    fn popped(growth: Growth) -> *mut u8 {
        let arena = arena(growth);
        let here = arena.pos();
        let place = arena.push(100).as_mut_ptr();
        arena.pop_to(here).unwrap();
        place
    }
    let touches: [(&str, bool, fn() -> *mut u8); 10] = [
        ("pushed", false, || arena(Growth::Chained).push(100).as_mut_ptr()),
        ("popped of a chain", true, || popped(Growth::Chained)),
        ("popped of a reservation", true, || popped(Growth::Reserved)),
        ("behind the top", true, || arena(Growth::Chained).push(64).as_mut_ptr().wrapping_add(64)),
        ("a scope's", true, || arena(Growth::Chained).scope(|temp| temp.push(64).as_mut_ptr())),
        ("a scratch's", true, || scratch(&[]).push(64).as_mut_ptr()),
        ("a dropped vector's", true, || {
            ArenaVec::<u64>::with_capacity_in(50, arena(Growth::Fixed)).as_mut_ptr().cast()
        }),
        ("lent", true, || {
            let heap = Box::leak(Box::new(crate::alloc::MallocAllocator::new()));
            let mut arena = Arena::builder().build_in(heap).unwrap();
            let place = arena.push(100).as_mut_ptr();
            arena.clear();
            core::mem::forget(arena);
            place
        }),
        ("a pool's", true, || {
            let pool = Box::leak(Box::new(Pool::new(arena(Growth::Chained)).unwrap()));
            let mut value = pool.put([0u64; 8]);
            (&raw mut *value).cast::<u8>().wrapping_add(32)
        }),
        ("of a free block", true, || {
            let heap = Box::leak(Box::new(BestFit::new(arena(Growth::Chained))));
            let place = heap.allocate(Layout::new::<[u64; 20]>()).unwrap();
            // SAFETY: allocated just now.
            unsafe { heap.free(place).unwrap() };
            place.as_ptr().wrapping_add(80)
        }),
    ];
    if let Ok(kind) = std::env::var(ROLE) {
        let (.., touch) = touches.iter().find(|(name, ..)| *name == kind).unwrap();
        // SAFETY: none: the sanitizer is to say so.
        std::process::exit(unsafe { touch().read_volatile() }.into());
    }
    for (kind, fatal, _) in touches {
        let name = "arena::tests::the_sanitizer_stops_who_touches_what_was_taken_back";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args([name, "--exact", "--nocapture"]).env(ROLE, kind).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), !fatal, "{kind}: {said}");
        assert_eq!(said.contains("use-after-poison"), fatal, "{kind}: {said}");
    }
}

/// A `Display` that keeps the error of its own write to itself.
#[test]
fn a_text_that_does_not_fit_is_never_cut() {
    struct Careless;
    impl std::fmt::Display for Careless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let _ = f.write_str(&"x".repeat(10_000));
            Ok(())
        }
    }
    let arena = Arena::builder().growth(Growth::Fixed).build().unwrap();
    let error = arena.try_format(format_args!("{Careless}")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::OutOfMemory);
    assert_eq!(arena.format(format_args!("{}", 12)), "12");
}

#[test]
fn data_begins_at_cache_lines() {
    let heap = crate::alloc::MallocAllocator::new();
    for growth in [Growth::Chained, Growth::Reserved] {
        assert_eq!(Arena::builder().growth(growth).build().unwrap().top().addr() % 64, 0);
    }
    for _ in 0..20 {
        let arena = Arena::builder().capacity(2000).build_in(&heap).unwrap();
        assert_eq!(arena.top().addr() % 64, 0);
        arena.push(5000);
        assert_eq!(arena.body().current().data.addr() % 64, 0);
    }
}

#[test]
fn an_arena_over_an_allocator_says_what_it_says() {
    let heap = crate::alloc::MallocAllocator::new();
    for growth in [Growth::Reserved, Growth::ReservedThenChained] {
        let refused = Arena::builder().growth(growth).build_in(&heap);
        assert_eq!(refused.err(), Some(Error::Unsupported));
    }
    let code = |capacity| {
        let arena = Arena::builder().capacity(capacity).build_in(&heap);
        arena.map_err(|error| error.code()).err()
    };
    assert_eq!(code(8), Some(ErrorCode::TooSmall));
    assert_eq!(code(isize::MAX as usize), Some(ErrorCode::OutOfMemory));
    assert_eq!(heap.currently_allocated_size(), 0);
}
