//! One operation of an arena, over and over, for counting instructions:
//! `arena_ops <operation> <rounds>`; see `benches/arena_instructions.sh`.
#![allow(unsafe_code)] // calls the raw forms

use std::alloc::Layout;
use std::hint::black_box;
use std::ptr::NonNull;

use hshm::arena::{Arena, Growth};

#[inline(never)]
fn push_u32<'a>(arena: &'a Arena<'_>, value: u32) -> &'a mut u32 {
    arena.push_value(value)
}

#[inline(never)]
fn push_layout(arena: &Arena<'_>, layout: Layout) -> NonNull<u8> {
    arena.push_layout(layout)
}

#[inline(never)]
fn try_push_layout(arena: &Arena<'_>, layout: Layout) -> Option<NonNull<u8>> {
    arena.try_push_layout(layout).ok()
}

/// # Safety
/// As `Arena::grow_last`.
#[inline(never)]
unsafe fn grow(arena: &Arena<'_>, place: NonNull<u8>, old: usize, new: Layout) -> bool {
    // SAFETY: the caller's contract is the same.
    unsafe { arena.grow_last(place, old, new.size(), new.align()) }
}

#[inline(never)]
fn scope(arena: &Arena<'_>) {
    black_box(&*arena.temp());
}

fn main() {
    let mut args = std::env::args().skip(1);
    let operation = args.next().unwrap_or_default();
    let rounds: usize = args.next().and_then(|n| n.parse().ok()).expect("a number of rounds");
    // One block that is never used up, committed at the start: only the operation itself counts.
    let arena = Arena::builder()
        .growth(Growth::Reserved)
        .capacity(1 << 30)
        .commit_step(64 << 20)
        .build()
        .expect("there is memory");
    let layout = black_box(Layout::new::<[u64; 3]>());
    let size = |n: usize| Layout::from_size_align(n * 8, 8).expect("small");
    let mut place = arena.push_layout(size(1));
    for round in 1..=rounds {
        match operation.as_str() {
            "u32" => drop(black_box(push_u32(&arena, round as u32))),
            "layout" => drop(black_box(push_layout(&arena, layout))),
            "try_layout" => drop(black_box(try_push_layout(&arena, layout))),
            // SAFETY: the last push, `round` words long by now.
            "grow" => assert!(unsafe { grow(&arena, place, round * 8, size(round + 1)) }),
            "scope" => scope(&arena),
            "nothing" => drop(black_box(&mut place)),
            _ => panic!("u32, layout, try_layout, grow, scope or nothing, and a number of rounds"),
        }
    }
}
