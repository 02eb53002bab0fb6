//! A block of memory, marked at both ends, as the classical workloads use it.

use std::mem::MaybeUninit;

/// What blocks are made of: their size and alignment.
pub(crate) trait Unit: Copy + Eq + Send + 'static {
    /// As many bits of `mark` as fit.
    fn of(mark: u64) -> Self;
    /// As a number.
    fn number(self) -> u64;
}

impl Unit for u64 {
    fn of(mark: u64) -> Self {
        mark
    }
    fn number(self) -> u64 {
        self
    }
}

impl Unit for u8 {
    fn of(mark: u64) -> Self {
        mark as u8
    }
    fn number(self) -> u64 {
        self as u64
    }
}

/// One allocation. Only its first and last unit are written and read: a workload measures the
/// allocator, not memset, and real programs write what they fill at their own pace.
///
/// Invariant: there is at least one unit, and the first and the last are initialised.
#[derive(Debug)]
pub(crate) struct Block<U: Unit = u64>(Box<[MaybeUninit<U>]>);

/// A block of bytes, alignment 1.
pub(crate) type Bytes = Block<u8>;

impl<U: Unit> Block<U> {
    /// Of `bytes`, rounded down to whole units, at least one.
    #[inline]
    pub(crate) fn new(bytes: usize, mark: u64) -> Self {
        let units = (bytes / size_of::<U>()).max(1);
        let mut memory = Box::new_uninit_slice(units);
        memory[0].write(U::of(mark));
        memory[units - 1].write(U::of(mark));
        Block(memory)
    }

    /// The mark, which must be the same at both ends.
    #[inline]
    pub(crate) fn mark(&self) -> u64 {
        // SAFETY: `new` initialised the first unit, and nothing takes that back.
        let first = unsafe { self.0[0].assume_init() };
        // SAFETY: as for the first.
        let last = unsafe { self.0[self.0.len() - 1].assume_init() };
        assert!(first == last, "a block was damaged");
        first.number()
    }

    /// Frees it; its mark.
    #[inline]
    pub(crate) fn free(self) -> u64 {
        self.mark()
    }
}
