//! Random operations on arenas, against an oracle that remembers every push.
//!
//! `HSHM_ARENA_OPERATIONS` is how many in each mode (20 000); `.ci/long` does a million.
#![allow(unsafe_code)] // looks at what was pushed, by address

use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::NonNull;

use hshm::arena::{Arena, ArenaBuilder, ArenaVec, Growth, Temp, TempMut, Zeroing};
use hshm::{
    Allocator, AllocatorId, BuddyAllocator, Error, Heap, MIB, MallocAllocator, OffsetPtr, Region,
};

/// Who can be popped: an arena, or a scope of one.
trait Pop: Deref<Target: Sized> {
    fn arena(&self) -> &Arena<'_>;
    fn pop_to(&mut self, position: usize) -> Result<(), Error>;
    fn clear(&mut self);
    fn temp_mut(&mut self) -> TempMut<'_>;
}

struct Root<'m>(Arena<'m>);

impl<'m> Deref for Root<'m> {
    type Target = Arena<'m>;
    fn deref(&self) -> &Arena<'m> {
        &self.0
    }
}
impl Pop for Root<'_> {
    fn arena(&self) -> &Arena<'_> {
        &self.0
    }
    fn pop_to(&mut self, position: usize) -> Result<(), Error> {
        self.0.pop_to(position)
    }
    fn clear(&mut self) {
        self.0.clear();
    }
    fn temp_mut(&mut self) -> TempMut<'_> {
        self.0.temp_mut()
    }
}
impl Pop for Temp<'_> {
    fn arena(&self) -> &Arena<'_> {
        self
    }
    fn pop_to(&mut self, position: usize) -> Result<(), Error> {
        Temp::pop_to(self, position)
    }
    fn clear(&mut self) {
        Temp::clear(self);
    }
    fn temp_mut(&mut self) -> TempMut<'_> {
        Temp::temp_mut(self)
    }
}
impl Pop for TempMut<'_> {
    fn arena(&self) -> &Arena<'_> {
        self
    }
    fn pop_to(&mut self, position: usize) -> Result<(), Error> {
        TempMut::pop_to(self, position)
    }
    fn clear(&mut self) {
        TempMut::clear(self);
    }
    fn temp_mut(&mut self) -> TempMut<'_> {
        TempMut::temp_mut(self)
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// Mostly small, now and then large.
    fn size(&mut self, most: usize) -> usize {
        let most = 1usize << self.below(most.ilog2() as usize + 1);
        self.below(most + 1)
    }
}

/// One push, and what was written there.
#[derive(Clone, Copy)]
struct Live {
    at: *mut u8,
    len: usize,
    seed: u8,
    /// The position before and after it.
    before: usize,
    after: usize,
}

impl Live {
    fn byte(&self, index: usize) -> u8 {
        self.seed.wrapping_add((index as u8).wrapping_mul(31))
    }
    fn write(&self) {
        for index in 0..self.len {
            // SAFETY: the push's own bytes.
            unsafe { self.at.add(index).write(self.byte(index)) };
        }
    }
    fn check(&self, what: &str) {
        for index in 0..self.len {
            // SAFETY: the push was not taken back.
            let found = unsafe { self.at.add(index).read() };
            assert_eq!(found, self.byte(index), "byte {index} of {} bytes, {what}", self.len);
        }
    }
}

struct Model {
    random: Random,
    live: Vec<Live>,
    left: usize,
    largest: usize,
    seed: u8,
    refused: usize,
    taken: u64,
    /// Every position can be gone back to; what a mapped block skips at its end may be uncommitted.
    exact: bool,
}

impl Model {
    fn remember(&mut self, at: *mut u8, len: usize, before: usize, after: usize) {
        self.seed = self.seed.wrapping_add(1);
        let live = Live { at, len, seed: self.seed, before, after };
        assert!(after >= before + len, "the position moves by at least the length");
        live.write();
        self.live.push(live);
        self.taken += len as u64;
    }

    fn check_all(&self, what: &str) {
        self.live.iter().for_each(|live| live.check(what));
        let mut spans: Vec<_> = self.live.iter().filter(|live| live.len != 0).collect();
        spans.sort_by_key(|live| live.at.addr());
        for pair in spans.windows(2) {
            assert!(pair[0].at.addr() + pair[0].len <= pair[1].at.addr(), "overlap, {what}");
        }
    }

    /// Forgets what was taken back by going to `position`.
    fn forget(&mut self, position: usize) {
        while self.live.last().is_some_and(|live| live.after > position) {
            let live = self.live.pop().expect("there is a last one");
            // A push that is partly taken back is taken back.
            let _ = live.before;
        }
    }

    fn push(&mut self, arena: &Arena<'_>) {
        let before = arena.pos();
        let len = self.random.size(self.largest);
        let choice = self.random.below(8);
        let result: Result<(*mut u8, usize, usize), Error> = match choice {
            0 | 1 => {
                let value = self.random.next();
                arena.try_push_value(value).map(|place| {
                    assert_eq!(*place, value);
                    ((&raw mut *place).cast(), 8, 8)
                })
            }
            2 => arena.try_push_value([7u16; 3]).map(|place| ((&raw mut *place).cast(), 6, 2)),
            3 => arena.try_push(len).map(|bytes| {
                assert!(bytes.iter().all(|&byte| byte == 0), "pushed bytes are zero");
                (bytes.as_mut_ptr(), len, arena.auto_align())
            }),
            4 => arena
                .try_push_no_zero(len)
                .map(|bytes| (bytes.as_mut_ptr().cast(), len, arena.auto_align())),
            5 => {
                let most = if self.random.below(20) == 0 { 15 } else { 8 };
                let align = 1 << self.random.below(most);
                let layout = Layout::from_size_align(len, align).expect("small");
                arena.try_push_layout(layout).map(|place| (place.as_ptr(), len, align))
            }
            6 => arena.try_push_str("a text of an arena").map(|text| {
                assert_eq!(text, "a text of an arena");
                (text.as_mut_ptr(), text.len(), 1)
            }),
            _ => arena.try_push_iter((0..len as u16 / 4).map(|n| n * 3)).map(|values| {
                assert!(values.iter().zip(0u16..).all(|(&value, n)| value == n * 3));
                (values.as_mut_ptr().cast(), values.len() * 2, 2)
            }),
        };
        match result {
            Ok((at, len, align)) => {
                assert_eq!(at.addr() % align, 0, "aligned to {align}");
                self.remember(at, len, before, arena.pos());
            }
            Err(error) => {
                assert_eq!(error.code(), hshm::ErrorCode::OutOfMemory);
                // An iterator may have taken some before there was no more, and gives it back.
                assert!(arena.pos() == before || choice == 7, "a refused push changes nothing");
                self.refused += 1;
            }
        }
    }

    fn resize(&mut self, arena: &Arena<'_>, start: usize) {
        let Some(last) = self.live.last().copied() else { return };
        // A push of an outer arena is not the scope's to resize.
        if last.before < start {
            return;
        }
        let place = NonNull::new(last.at).expect("no push is null");
        let new = self.random.size(self.largest);
        let at_top = last.after == arena.pos();
        // SAFETY: the last push that is remembered, as it was pushed (or the bytes after it are
        // padding, and nothing happens).
        let done = unsafe {
            if new >= last.len {
                arena.grow_last(place, last.len, new, 1)
            } else {
                arena.shrink_last(place, last.len, new)
            }
        };
        if done {
            assert!(at_top);
            let kept = Live { len: last.len.min(new), ..last };
            kept.check("after its length changed");
            self.live.pop();
            self.remember(last.at, new, last.before, arena.pos());
        }
    }

    fn vector(&mut self, arena: &Arena<'_>) {
        let before = arena.pos();
        let mut vec = ArenaVec::new_in(arena);
        for n in 0..self.random.below(200) {
            if vec.try_push(n).is_err() {
                break;
            }
        }
        assert!(vec.iter().enumerate().all(|(at, &n)| at == n));
        if self.random.below(2) == 0 {
            let values = vec.into_slice();
            let (at, len) = (values.as_mut_ptr().cast(), size_of_val(values));
            self.remember(at, len, before, arena.pos());
        }
    }

    fn run(&mut self, arena: &mut impl Pop, start: usize, depth: usize) {
        while self.left > 0 {
            self.left -= 1;
            match self.random.below(100) {
                0..62 => self.push(arena.arena()),
                62..72 => self.resize(arena.arena(), start),
                72..76 => self.vector(arena.arena()),
                76..82 => {
                    let position = start + self.random.below(arena.arena().pos() - start + 1);
                    let some = self.live.iter().rfind(|live| live.after <= position);
                    // Not into the middle of a push every time.
                    let position = match some {
                        Some(live) if live.after >= start && self.random.below(4) != 0 => {
                            live.after
                        }
                        _ => position,
                    };
                    arena.pop_to(position).expect("a position below the top");
                    let now = arena.arena().pos();
                    if self.exact {
                        assert_eq!(now, position);
                    }
                    assert!(now <= position);
                    self.forget(position);
                    assert!(self.live.last().is_none_or(|live| live.after <= now));
                }
                82 => {
                    let now = arena.arena().pos();
                    assert!(arena.pop_to(now + 1).is_err(), "a position past the top");
                    if start > 0 {
                        assert!(depth == 0 || arena.pop_to(start - 1).is_err(), "before the scope");
                    }
                }
                83 => {
                    arena.clear();
                    assert_eq!(arena.arena().pos(), start);
                    self.forget(start);
                }
                84..86 => {
                    let align = 1 << self.random.below(7);
                    arena.arena().set_auto_align(align).expect("a power of two");
                }
                86 => {
                    let align = 1 << self.random.below(13);
                    let before = arena.arena().pos();
                    if arena.arena().push_aligner(align).is_err() {
                        assert_eq!(arena.arena().pos(), before);
                    }
                }
                87..90 if depth < 6 => {
                    let outer = arena.arena();
                    let here = outer.pos();
                    let mut temp = outer.try_temp().expect("no other scope is open");
                    assert_eq!(outer.try_push_value(1u8), Err(Error::ScopeOpen));
                    assert_eq!(outer.try_temp().err(), Some(Error::ScopeOpen));
                    assert_eq!((outer.pos(), temp.pos()), (here, here));
                    self.run(&mut temp, here, depth + 1);
                    drop(temp);
                    assert_eq!(outer.pos(), here);
                    self.forget(here);
                }
                90..92 if depth < 6 => {
                    let here = arena.arena().pos();
                    let mut temp = arena.temp_mut();
                    self.run(&mut temp, here, depth + 1);
                    drop(temp);
                    assert_eq!(arena.arena().pos(), here);
                    self.forget(here);
                }
                92..94 if depth > 0 => return,
                94 => self.check_all("while it runs"),
                _ => {
                    if let Some(live) = self.live.last() {
                        live.check("the last one");
                    }
                }
            }
        }
    }
}

fn operations() -> usize {
    let wish = std::env::var("HSHM_ARENA_OPERATIONS").ok();
    wish.map_or(20_000, |n| n.parse().expect("HSHM_ARENA_OPERATIONS is a number"))
}

/// Runs the model on one arena; gives how many pushes were refused, and the bytes pushed.
fn check(arena: Arena<'_>, largest: usize, seed: u64) -> (usize, u64) {
    let mut model = Model {
        random: Random(seed),
        live: Vec::new(),
        left: operations(),
        largest,
        seed: 0,
        refused: 0,
        taken: 0,
        exact: !format!("{arena:?}").contains("ReservedThenChained"),
    };
    let mut root = Root(arena);
    while model.left > 0 {
        model.run(&mut root, 0, 0);
    }
    model.check_all("at the end");
    root.0.trim();
    model.check_all("after unused pages went back");
    root.0.release();
    (model.refused, model.taken)
}

fn settings() -> [ArenaBuilder; 4] {
    let plain = ArenaBuilder::new().poison(false);
    [
        plain,
        plain.poison(true),
        plain.zeroing(Zeroing::OnPop),
        plain.decommit_above(64 << 10).commit_step(4096).align(1),
    ]
}

#[test]
fn chained() {
    for (seed, settings) in settings().iter().enumerate() {
        let arena = settings.growth(Growth::Chained).build().unwrap();
        let (refused, taken) = check(arena, 16 << 10, seed as u64);
        assert_eq!(refused, 0);
        assert!(taken > MIB as u64);
    }
}

#[test]
fn fixed() {
    for (seed, settings) in settings().iter().enumerate() {
        let settings = settings.growth(Growth::Fixed).capacity(32 << 10);
        let (refused, _) = check(settings.build().unwrap(), 16 << 10, seed as u64);
        assert!(refused > 0, "a fixed arena gets full");
    }
}

#[test]
fn fixed_over_lent_memory() {
    for (seed, settings) in settings().iter().enumerate() {
        // Not aligned, and full of other things.
        let mut memory = vec![MaybeUninit::new(0xA5u8); (24 << 10) + 3];
        let arena = settings.build_over(&mut memory[3..]).unwrap();
        let (refused, _) = check(arena, 8 << 10, seed as u64);
        assert!(refused > 0, "a fixed arena gets full");
    }
}

/// A buddy in a region of its own; the arenas' blocks lie side by side there.
fn buddy(minor: u32) -> BuddyAllocator {
    let (start, end) = (1 << 16, 64 * MIB as u64);
    let region = Region::anonymous(AllocatorId::new(7, minor), end as usize).unwrap();
    let heap = Heap::new(start, end).unwrap();
    BuddyAllocator::shm_init(region, OffsetPtr::new(start), heap, 16).unwrap()
}

#[test]
fn over_allocators() {
    for (seed, settings) in settings().iter().enumerate() {
        let (malloc, buddy) = (MallocAllocator::new(), buddy(seed as u32));
        for heap in [&malloc as &dyn Allocator, &buddy] {
            let before = heap.currently_allocated_size();
            let arena = settings.growth(Growth::Chained).build_in(heap).unwrap();
            let (refused, taken) = check(arena, 16 << 10, seed as u64);
            assert_eq!(refused, 0);
            assert!(taken > MIB as u64);
            let fixed = settings.growth(Growth::Fixed).capacity(32 << 10);
            let (refused, _) = check(fixed.build_in(heap).unwrap(), 16 << 10, seed as u64);
            assert!(refused > 0, "a fixed arena gets full");
            assert_eq!(heap.currently_allocated_size(), before, "all blocks went back");
        }
    }
}

#[test]
fn a_full_allocator_fills_the_arena() {
    let heap = buddy(100);
    let arena = ArenaBuilder::new().build_in(&heap).unwrap();
    let mut numbers: Vec<&mut [u64; 512]> = Vec::new();
    let error = loop {
        match arena.try_push_value([numbers.len() as u64; 512]) {
            Ok(number) => numbers.push(number),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), hshm::ErrorCode::OutOfMemory);
    assert!(numbers.len() * 4096 > 20 * MIB, "{}", numbers.len());
    assert!(numbers.iter().enumerate().all(|(at, values)| **values == [at as u64; 512]));
}

#[test]
fn reserved() {
    for (seed, settings) in settings().iter().enumerate() {
        let settings = settings.growth(Growth::Reserved).capacity(4 * MIB);
        check(settings.build().unwrap(), 64 << 10, seed as u64);
    }
}

#[test]
fn reserved_then_chained() {
    for (seed, settings) in settings().iter().enumerate() {
        let settings = settings.growth(Growth::ReservedThenChained).capacity(128 << 10);
        let (refused, taken) = check(settings.build().unwrap(), 256 << 10, seed as u64);
        assert_eq!(refused, 0);
        assert!(taken > MIB as u64);
    }
}

#[test]
fn with_larger_pages() {
    let settings = ArenaBuilder::new().page_size(2 * MIB).decommit_above(0).capacity(16 * MIB);
    let arena = settings.growth(Growth::Reserved).build().unwrap();
    assert_eq!(arena.page_size(), 2 * MIB);
    check(arena, 256 << 10, 99);
}
