//! `Heap`: the atomic bump source.
//!
//! ```text
//!   start                position                      end
//!     |  handed out         |  never handed out yet      |
//! ```
//!
//! One word moves up from `start` to `end`; every other allocator falls back to it. It lies in
//! shared memory and is used by several threads and processes at once.
//!
//! Invariant: `start <= position <= end`. The position is only ever replaced by compare-exchange,
//! with a value that was checked against the end first. (Adding first and checking afterwards
//! would leave the position past the end after a request that is too large, and wrap after a few
//! more.) So a request that fails changes nothing, and smaller ones still succeed.
//!
//! Memory ordering: the exchange is acquire-release and a load acquires, so whoever is handed
//! bytes that [`Heap::give_back_last`] returned sees the end of their earlier use. The bounds are
//! written before the heap is published and never after.
#![allow(unsafe_code)] // declares the heap fit to lie in a region

use super::words::{Atoms, next_aligned};
use crate::base::{Error, Result};
use crate::ptr::{OffsetPtr, ShmSafe};
use crate::sync::atomic::{AtomicU64, Ordering};

/// An atomic bump source over the bytes `start..end` of a region (HSHM's `Heap`).
///
/// It knows offsets only, never memory: nothing is read or written where they point. Starts out by
/// value, and is then usually placed in the shared header of the allocator that uses it.
///
/// ```
/// use hshm::{Error, Heap};
/// let heap = Heap::new(64, 1024).unwrap();
/// assert_eq!(heap.allocate(100, 1).unwrap().offset(), 64);
/// assert_eq!(heap.allocate(100, 128).unwrap().offset(), 256);
/// let full = Err(Error::OutOfMemory { requested: usize::MAX, available: 668 });
/// assert_eq!(heap.allocate(usize::MAX, 1), full);
/// assert_eq!(heap.allocate(668, 4).unwrap().offset(), 356);
/// ```
#[repr(C)]
#[derive(Debug)]
pub struct Heap {
    position: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
}

// SAFETY: `repr(C)`, three atomics.
unsafe impl Atoms for Heap {}
// SAFETY: three offsets, in a fixed layout.
unsafe impl ShmSafe for Heap {}

/// The word that moves: the machine's or the model's.
trait Cursor {
    fn read(&self) -> u64;
    fn replace(&self, current: u64, new: u64) -> Result<(), u64>;
}

macro_rules! cursor {
    ($type:ty) => {
        impl Cursor for $type {
            #[inline]
            fn read(&self) -> u64 {
                self.load(Ordering::Acquire)
            }
            #[inline]
            fn replace(&self, current: u64, new: u64) -> Result<(), u64> {
                self.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
            }
        }
    };
}
cursor!(AtomicU64);
#[cfg(loom)]
cursor!(crate::sync::atomic::model::AtomicU64);

/// Moves the cursor past what `place` puts at or after it. `place` maps a position to the start
/// of the block and the position after it. Gives the position before and the start, or the position
/// at which there was no room.
#[inline]
fn bump<C: Cursor>(
    cursor: &C,
    end: u64,
    place: impl Fn(u64) -> Option<(u64, u64)>,
) -> Result<(u64, u64), u64> {
    let mut at = cursor.read();
    loop {
        match place(at) {
            Some((start, next)) if at <= start && start <= next && next <= end => {
                match cursor.replace(at, next) {
                    Ok(()) => return Ok((at, start)),
                    Err(now) => at = now,
                }
            }
            _ => return Err(at),
        }
    }
}

impl Heap {
    /// A heap over the bytes `start..end`, counted from the region's base; an `end` before the
    /// start is [`Error::TooSmall`].
    pub const fn new(start: u64, end: u64) -> Result<Heap> {
        if end < start {
            return Err(Error::TooSmall { given: end as usize, minimum: start as usize });
        }
        Ok(Heap {
            position: AtomicU64::new(start),
            start: AtomicU64::new(start),
            end: AtomicU64::new(end),
        })
    }

    /// Makes this heap, which nobody else uses yet, a heap over `start..end`; for a heap that
    /// already lies in shared memory.
    pub fn init(&self, start: u64, end: u64) -> Result<()> {
        self.copy_from(&Heap::new(start, end)?);
        Ok(())
    }

    /// Takes over bounds and position of `other`.
    pub(crate) fn copy_from(&self, other: &Heap) {
        self.start.store(other.start(), Ordering::Relaxed);
        self.end.store(other.end(), Ordering::Relaxed);
        self.position.store(other.position(), Ordering::Release);
    }

    /// The first byte.
    pub fn start(&self) -> u64 {
        self.start.load(Ordering::Relaxed)
    }
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }
    /// The first byte that was not handed out.
    #[inline]
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }
    /// Bytes that were not handed out.
    pub fn available(&self) -> usize {
        self.end().saturating_sub(self.position()) as usize
    }

    /// Hands out `size` bytes at a multiple of `align`, a power of two; both count offsets. A size
    /// of zero is served like one byte.
    ///
    /// The bytes that alignment skips are lost to the heap.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the block does not fit before the end, however large it is;
    /// [`Error::BadAlignment`]. Either changes nothing.
    pub fn allocate(&self, size: usize, align: usize) -> Result<OffsetPtr<u8>> {
        if !align.is_power_of_two() {
            return Err(Error::BadAlignment { align });
        }
        self.allocate_seen_from(0, 0, size, align as u64).map(|(_, block)| block)
    }

    /// Hands out `lead + size` bytes so that the address of the byte after the lead is a multiple
    /// of `align` where offset 0 is seen at address `base`. Gives the position before, from which
    /// bytes may have been skipped, and the offset after the lead.
    pub(crate) fn allocate_seen_from(
        &self,
        base: u64,
        lead: u64,
        size: usize,
        align: u64,
    ) -> Result<(u64, OffsetPtr<u8>)> {
        let bytes = size.max(1) as u64;
        let place = |at: u64| {
            let body = next_aligned(base, at.checked_add(lead)?, align)?;
            Some((body - lead, body.checked_add(bytes)?))
        };
        match bump(&self.position, self.end(), place) {
            Ok((at, start)) => Ok((at, OffsetPtr::new(start + lead))),
            Err(at) => Err(Error::OutOfMemory {
                requested: size,
                available: self.end().saturating_sub(at) as usize,
            }),
        }
    }

    /// Moves the position from `from` to `to`, in one step and only if it still is `from`; `to`
    /// must lie within the bounds.
    #[inline]
    pub(crate) fn move_position(&self, from: u64, to: u64) -> bool {
        self.start() <= to && to <= self.end() && self.position.replace(from, to).is_ok()
    }

    /// Takes `size` bytes at `offset` back if they are the last that were handed out. Tells
    /// whether they were.
    pub fn give_back_last(&self, offset: OffsetPtr<u8>, size: usize) -> bool {
        match offset.offset().checked_add(size as u64) {
            Some(end) => self.move_position(end, offset.offset()),
            None => false,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn overshoot_changes_nothing() {
        let heap = Heap::new(16, 256).unwrap();
        for size in [241, 4096, usize::MAX - 15, usize::MAX] {
            let error = Error::OutOfMemory { requested: size, available: 240 };
            assert_eq!(heap.allocate(size, 1), Err(error));
        }
        assert_eq!(heap.allocate(1, 512).unwrap_err().code(), crate::ErrorCode::OutOfMemory);
        let high = Heap::new(u64::MAX - 64, u64::MAX - 1).unwrap();
        assert!(high.allocate(1, 1 << 63).is_err());
        assert!(high.allocate(64, 1).is_err());
        assert_eq!(heap.allocate(0, 3), Err(Error::BadAlignment { align: 3 }));
        assert_eq!(heap.position(), 16);
        assert_eq!(heap.allocate(240, 16).unwrap().offset(), 16);
        assert_eq!(heap.available(), 0);
        assert!(heap.allocate(0, 1).is_err());
        assert!(Heap::new(2, 1).is_err());
    }

    #[test]
    fn the_last_block_can_be_given_back() {
        let heap = Heap::new(0, 100).unwrap();
        let a = heap.allocate(40, 1).unwrap();
        let b = heap.allocate(40, 1).unwrap();
        assert!(!heap.give_back_last(a, 40));
        assert!(heap.give_back_last(b, 40));
        assert!(heap.give_back_last(a, 40));
        assert!(!heap.give_back_last(OffsetPtr::NULL, 2));
        assert_eq!(heap.position(), 0);
    }

    #[test]
    fn threads_share_every_byte_once() {
        let heap = Heap::new(0, 1 << 16).unwrap();
        let taken: Vec<u64> = std::thread::scope(|scope| {
            let work = || std::iter::from_fn(|| heap.allocate(24, 8).ok()).map(|o| o.offset());
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(move || work().collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        let mut taken = taken;
        taken.sort_unstable();
        assert!(taken.iter().enumerate().all(|(i, &at)| at == i as u64 * 24));
        assert_eq!(taken.len(), (1 << 16) / 24);
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::sync::atomic::model::AtomicU64 as ModelU64;
    use loom::sync::Arc;

    /// Three threads want 24, 40 and 24 bytes of 64: any two of them fit, or the pair of the first
    /// and the last; nothing overlaps, nothing passes the end, and what failed did not fit.
    #[test]
    fn racing_near_the_end() {
        loom::model(|| {
            let cursor = Arc::new(ModelU64::new(0));
            let take = |cursor: &ModelU64, size: u64| {
                bump(cursor, 64, |at| Some((at, at.checked_add(size)?)))
                    .map(|(_, at)| (at, at + size))
            };
            let threads: Vec<_> = [24u64, 40]
                .into_iter()
                .map(|size| {
                    let cursor = cursor.clone();
                    loom::thread::spawn(move || take(&cursor, size))
                })
                .collect();
            let mut all = vec![take(&cursor, 24)];
            all.extend(threads.into_iter().map(|t| t.join().unwrap()));
            let mut blocks: Vec<_> = all.iter().filter_map(|r| r.ok()).collect();
            blocks.sort_unstable();
            assert!(blocks.windows(2).all(|w| w[0].1 <= w[1].0));
            assert!(blocks.last().is_none_or(|last| last.1 <= 64));
            assert_eq!(blocks.len(), 2);
            assert_eq!(cursor.read(), blocks[1].1);
        });
    }

    /// One thread gives its block back while two others take: no byte is handed out twice.
    #[test]
    fn giving_back() {
        loom::model(|| {
            let cursor = Arc::new(ModelU64::new(0));
            let take = |cursor: &ModelU64| {
                bump(cursor, 32, |at| Some((at, at.checked_add(16)?))).map(|(_, at)| at)
            };
            let other = {
                let cursor = cursor.clone();
                loom::thread::spawn(move || {
                    let at = take(&cursor).ok()?;
                    cursor.replace(at + 16, at).err().map(|_| at)
                })
            };
            let mine = take(&cursor).unwrap();
            if let Some(kept) = other.join().unwrap() {
                assert_ne!(kept, mine);
            }
            assert!(cursor.read() <= 32);
        });
    }
}
