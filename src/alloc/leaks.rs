//! What is still allocated, by size class: leak reports, and a guard for tests.
//!
//! Nothing is remembered for them: a report walks the allocator when it is asked for, so a program that
//! asks for none pays nothing. Nor does a report allocate: it may be about the global allocator.

use core::fmt;

use super::traits::Allocator;
use crate::base::classes::{CLASSES, MAX_SMALL, class_index, class_size};
use crate::base::{AllocatorId, Result};

/// The classes of the slabs, and the powers of two above.
const ROWS: usize = CLASSES + 49;

/// Which row blocks of `size` bytes are counted in.
fn row_of(size: usize) -> usize {
    if size <= MAX_SMALL {
        return class_index(size.max(1));
    }
    let power = usize::BITS as usize - (size - 1).leading_zeros() as usize;
    (CLASSES + power - 16).min(ROWS - 1)
}

fn row_size(row: usize) -> usize {
    if row < CLASSES { class_size(row) } else { 1 << (row - CLASSES + 16) }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Row {
    blocks: usize,
    bytes: usize,
}

/// The blocks of one size class in a [`LeakReport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakClass {
    /// The most bytes that a block of this class has; the class before ends below.
    pub size: usize,
    /// How many blocks there are.
    pub blocks: usize,
    /// Their bytes, as the allocator rounded them.
    pub bytes: usize,
}

/// What is still allocated, by size class.
///
/// ```
/// use hshm::{Allocator, LeakReport, MallocAllocator, MemContext};
/// let alloc = MallocAllocator::new();
/// let block = alloc.allocate::<u8>(MemContext::DEFAULT, 1000)?;
/// let report = LeakReport::of(&alloc)?;
/// assert_eq!((report.blocks(), report.bytes()), (1, 1008));
/// assert_eq!(report.to_string(), "allocator null: 1 block of 1008 bytes is still allocated\n  \
///     1 x up to 1024 bytes: 1008 bytes\n");
/// // SAFETY: live, and not used again.
/// unsafe { alloc.free(MemContext::DEFAULT, block)? };
/// assert!(LeakReport::of(&alloc)?.is_empty());
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeakReport {
    id: AllocatorId,
    /// Here and not in a block of the heap that may be counted.
    rows: [Row; ROWS],
}

/// What a [`LeakReport`] can be made of: every [`Allocator`], and [`HshmAlloc`](crate::HshmAlloc).
pub trait LeakSource {
    /// The blocks that are handed out: all of them, or this process's own.
    ///
    /// # Errors
    /// As [`Allocator::visit_blocks`].
    fn leak_report(&self, own_only: bool) -> Result<LeakReport>;
}

impl<A: Allocator + ?Sized> LeakSource for A {
    fn leak_report(&self, own_only: bool) -> Result<LeakReport> {
        let mut report = LeakReport::empty(self.id());
        self.visit_blocks(&mut |block| {
            if block.own || !own_only {
                report.add(block.size);
            }
        })?;
        Ok(report)
    }
}

impl LeakReport {
    /// All blocks of an allocator that are handed out, all processes' together.
    ///
    /// # Errors
    /// As [`Allocator::visit_blocks`].
    pub fn of<S: LeakSource + ?Sized>(alloc: &S) -> Result<LeakReport> {
        alloc.leak_report(false)
    }

    /// Those that belong to this process: what it would leave behind.
    ///
    /// # Errors
    /// As [`Allocator::visit_blocks`].
    pub fn of_this_process<S: LeakSource + ?Sized>(alloc: &S) -> Result<LeakReport> {
        alloc.leak_report(true)
    }

    /// Nothing, of an allocator.
    pub(crate) const fn empty(id: AllocatorId) -> LeakReport {
        LeakReport { id, rows: [Row { blocks: 0, bytes: 0 }; ROWS] }
    }

    /// Counts a block of `size` bytes. Sizes may be what somebody else wrote there.
    pub(crate) fn add(&mut self, size: usize) {
        if let Some(row) = self.rows.get_mut(row_of(size)) {
            row.blocks = row.blocks.saturating_add(1);
            row.bytes = row.bytes.saturating_add(size);
        }
    }

    /// The allocator's id.
    pub fn id(&self) -> AllocatorId {
        self.id
    }
    /// How many blocks are still allocated.
    pub fn blocks(&self) -> usize {
        self.rows.iter().fold(0, |sum, row| sum.saturating_add(row.blocks))
    }
    /// Their bytes, as the allocator rounded them.
    pub fn bytes(&self) -> usize {
        self.rows.iter().fold(0, |sum, row| sum.saturating_add(row.bytes))
    }
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.blocks() == 0
    }
    /// The size classes that have blocks, the smallest first.
    pub fn classes(&self) -> impl Iterator<Item = LeakClass> + '_ {
        self.rows.iter().enumerate().filter(|(_, row)| row.blocks > 0).map(|(at, row)| LeakClass {
            size: row_size(at),
            blocks: row.blocks,
            bytes: row.bytes,
        })
    }
    /// What has come since an earlier report of the same allocator: of each class, the blocks that are
    /// more than they were.
    pub fn since(&self, before: &LeakReport) -> LeakReport {
        let mut rows = self.rows;
        for (row, was) in rows.iter_mut().zip(before.rows.iter()) {
            let blocks = row.blocks.saturating_sub(was.blocks);
            let bytes = if blocks == 0 { 0 } else { row.bytes.saturating_sub(was.bytes) };
            *row = Row { blocks, bytes };
        }
        LeakReport { id: self.id, rows }
    }
}

impl fmt::Display for LeakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (blocks, bytes) = (self.blocks(), self.bytes());
        match blocks {
            0 => return writeln!(f, "allocator {}: nothing is still allocated", self.id),
            1 => writeln!(f, "allocator {}: 1 block of {bytes} bytes is still allocated", self.id)?,
            _ => writeln!(
                f,
                "allocator {}: {blocks} blocks of {bytes} bytes are still allocated",
                self.id
            )?,
        }
        for class in self.classes() {
            let LeakClass { size, blocks, bytes } = class;
            writeln!(f, "  {blocks} x up to {size} bytes: {bytes} bytes")?;
        }
        Ok(())
    }
}

/// Notes what is allocated, and panics when it is dropped if more is then: with the
/// [`LeakReport`] of what is more. For tests.
///
/// Blocks of other threads and processes count, too: for tests that have the allocator to themselves.
/// While a panic is under way it says nothing. Of the global allocator, see
/// [what its threads' caches count as](crate::HshmAlloc::currently_allocated_size).
///
/// ```should_panic
/// use hshm::{Allocator, LeakCheck, MallocAllocator, MemContext};
/// let alloc = MallocAllocator::new();
/// let _check = LeakCheck::new(&alloc);
/// alloc.new_obj(MemContext::DEFAULT, String::from("forgotten")).unwrap();
/// ```
#[must_use = "the check is made when it is dropped"]
pub struct LeakCheck<'a, A: LeakSource + ?Sized> {
    alloc: &'a A,
    before: Option<LeakReport>,
}

impl<'a, A: LeakSource + ?Sized> LeakCheck<'a, A> {
    /// Notes what is allocated.
    ///
    /// # Panics
    /// Where the allocator's data are damaged.
    #[track_caller]
    pub fn new(alloc: &'a A) -> Self {
        LeakCheck { alloc, before: Some(report(alloc)) }
    }

    /// Makes the check now: the report of what is more, if anything is.
    ///
    /// # Panics
    /// Where the allocator's data are damaged.
    #[track_caller]
    #[expect(clippy::result_large_err, reason = "a report is in no heap that may be counted")]
    pub fn finish(mut self) -> Result<(), LeakReport> {
        match self.leaked() {
            Some(leaked) => Err(leaked),
            None => Ok(()),
        }
    }

    #[track_caller]
    fn leaked(&mut self) -> Option<LeakReport> {
        let before = self.before.take()?;
        Some(report(self.alloc).since(&before)).filter(|leaked| !leaked.is_empty())
    }
}

#[track_caller]
fn report<A: LeakSource + ?Sized>(alloc: &A) -> LeakReport {
    LeakReport::of(alloc).unwrap_or_else(|error| panic!("no leak report: {error}"))
}

impl<A: LeakSource + ?Sized> Drop for LeakCheck<'_, A> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Some(leaked) = self.leaked() {
            panic!("{leaked}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_the_row_that_holds_it() {
        let powers = (0..62).map(|shift| 1usize << shift);
        for size in powers.flat_map(|size| [size - 1, size, size + 1, size + size / 3]) {
            let row = row_of(size);
            assert!(row_size(row) >= size || row == ROWS - 1, "{size}");
            assert!(row == 0 || row_size(row - 1) < size.max(1), "{size}");
        }
        assert_eq!(row_of(usize::MAX), ROWS - 1);
    }
}
