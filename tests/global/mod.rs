//! What every program whose global allocator is `HshmAlloc` relies on, whatever the settings.
//!
//! Each test program has settings of its own and runs all of it: `global_tests!`.
#![allow(dead_code, unreachable_pub)] // every program uses a part
#![allow(unsafe_code)] // calls the allocator directly

pub mod model;
pub mod stress;
pub mod threads;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard};

use hshm::HshmAlloc;

/// Tests look at the heap of the whole process, so they take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs a test alone and checks the heap afterwards.
pub fn alone(alloc: &'static HshmAlloc, test: impl FnOnce(&'static HshmAlloc)) {
    let _turn = turn();
    let refused = alloc.stats().refused_frees;
    test(alloc);
    assert_eq!(alloc.stats().refused_frees, refused, "good frees were refused");
    verify(alloc);
}

/// Every invariant holds.
#[track_caller]
pub fn verify(alloc: &HshmAlloc) {
    match alloc.verify() {
        Ok(reports) => assert_eq!(reports.len(), alloc.stats().regions),
        Err(fault) => panic!("{fault}"),
    }
}

/// A block allocated directly, filled with a byte; checked and freed when dropped.
pub struct Block {
    alloc: &'static HshmAlloc,
    pub at: *mut u8,
    pub layout: Layout,
    pub byte: u8,
}

// SAFETY: a block is memory that only its owner uses.
unsafe impl Send for Block {}

impl Block {
    #[track_caller]
    pub fn new(alloc: &'static HshmAlloc, size: usize, align: usize, byte: u8) -> Block {
        Block::try_new(alloc, size, align, byte).expect("out of memory")
    }
    pub fn try_new(
        alloc: &'static HshmAlloc,
        size: usize,
        align: usize,
        byte: u8,
    ) -> Option<Block> {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: the size is not zero.
        let at = unsafe { alloc.alloc(layout) };
        if at.is_null() {
            return None;
        }
        assert!(at.addr().is_multiple_of(align));
        let block = Block { alloc, at, layout, byte };
        block.fill();
        Some(block)
    }
    fn bytes(&self) -> &[u8] {
        // SAFETY: live, and that long.
        unsafe { std::slice::from_raw_parts(self.at, self.layout.size()) }
    }
    fn fill(&self) {
        // SAFETY: live, and that long.
        unsafe { self.at.write_bytes(self.byte, self.layout.size()) };
    }
    #[track_caller]
    pub fn check(&self) {
        let wrong = self.bytes().iter().position(|byte| *byte != self.byte);
        assert_eq!(wrong, None, "{:?} at {:?} was changed", self.layout, self.at);
    }
    /// Whether it was reallocated.
    #[track_caller]
    pub fn reallocate(&mut self, size: usize) -> bool {
        // SAFETY: live, with this layout; the size is not zero.
        let at = unsafe { self.alloc.realloc(self.at, self.layout, size) };
        if at.is_null() {
            return false;
        }
        assert!(at.addr().is_multiple_of(self.layout.align()));
        let kept = self.layout.size().min(size);
        (self.at, self.layout) = (at, Layout::from_size_align(size, self.layout.align()).unwrap());
        let whole = Block { layout: Layout::from_size_align(kept, 1).unwrap(), ..*self };
        whole.check();
        std::mem::forget(whole);
        self.fill();
        true
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
        // SAFETY: live, with this layout, and not used again.
        unsafe { self.alloc.dealloc(self.at, self.layout) };
    }
}

/// The same numbers on every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = self.0 ^ self.0 >> 29;
        (mixed >> 16) as usize % n
    }
    /// A size: mostly small, sometimes up to `most`.
    pub fn size(&mut self, most: usize) -> usize {
        let scale = 1 << self.below(most.ilog2() as usize + 1);
        1 + self.below(scale)
    }
}

macro_rules! global_tests {
    ($alloc:ident; $($module:ident::$test:ident)*) => { $(
        #[test]
        fn $test() {
            crate::global::alone(&$alloc, crate::global::$module::$test);
        }
    )* };
    ($alloc:ident) => {
        crate::global::global_tests! { $alloc;
            stress::rayon_tasks
            stress::producers_and_consumers
            stress::vectors_that_grow
            stress::alignments
            stress::zeroed_after_dirt
            stress::large_and_untouched
            stress::impossible_requests
            stress::runs_grow_over_kept_ones
            threads::a_thousand_in_turn
            threads::more_than_cores
            threads::allocations_while_a_thread_ends
            threads::blocks_outlive_their_thread
            model::against_an_oracle
        }
    };
}
pub(crate) use global_tests;
