//! Freed blocks of a deferring [`BestFit`] that wait: nobody has them, and they are joined with nothing yet.
//!
//! ```text
//!  lists:  48 -> [48] -> [48]      header: size + used + waits      the last one freed is the first
//!          56 -> [56]
//! ```
//!
//! To its neighbours a block that waits looks used, so that a free and an allocation touch no other block
//! than their own. A list has a bound; who finds it reached joins his block at once. All of them are joined
//! before the heap takes a chunk, if they are much beside it, or if it cannot have one.
use core::cell::Cell;

use super::free::{BINS, NEXT, TREE_FROM};
use super::{BestFit, FLAGS, USED, WAITS};
use crate::arena::poison;
use crate::base::{Error, Result};

pub(super) struct Waiting {
    /// How many of a size wait.
    most: u8,
    lists: [Cell<u64>; BINS],
    lengths: [Cell<u8>; BINS],
}

impl Waiting {
    pub(super) const fn new(most: u8) -> Waiting {
        Waiting {
            most,
            lists: [const { Cell::new(0) }; BINS],
            lengths: [const { Cell::new(0) }; BINS],
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        let lengths = self.lengths.iter().map(|length| usize::from(length.get()));
        lengths.zip((0..).step_by(8)).map(|(length, size)| length * size).sum()
    }
}

impl BestFit<'_> {
    /// Lets a used block wait. False, and nothing has changed, where there are enough of its size.
    #[inline]
    pub(super) fn wait(&self, block: u64, size: u64) -> bool {
        if size >= TREE_FROM {
            return false;
        }
        let index = (size / 8) as usize % BINS;
        let length = self.waiting.lengths[index].get();
        if length >= self.waiting.most {
            return false;
        }
        self.waiting.lengths[index].set(length + 1);
        self.set(block, size | USED | WAITS);
        self.set(block + NEXT, self.waiting.lists[index].replace(block));
        poison::forbid((block + NEXT + 8) as usize, (size - NEXT - 16) as usize);
        self.count(|stats| {
            stats.used_blocks -= 1;
            stats.used_bytes -= size as usize;
            stats.free_blocks += 1;
            stats.free_bytes += size as usize;
        });
        true
    }

    /// A block of exactly `size` bytes that waits, used again.
    #[inline]
    pub(super) fn take_waiting(&self, size: u64) -> Option<u64> {
        if size >= TREE_FROM {
            return None;
        }
        let index = (size / 8) as usize % BINS;
        let block = self.waiting.lists[index].get();
        if block == 0 {
            return None;
        }
        self.waiting.lists[index].set(self.get(block + NEXT));
        self.waiting.lengths[index].update(|length| length - 1);
        poison::allow(block as usize, size as usize);
        self.set(block, size | USED);
        self.count(|stats| {
            stats.used_blocks += 1;
            stats.used_bytes += size as usize;
            stats.free_blocks -= 1;
            stats.free_bytes -= size as usize;
        });
        Some(block)
    }

    /// Joins all freed blocks that wait with their free neighbours. Says whether there were any.
    ///
    /// # Errors
    /// [`Error::Forked`], as all other calls; [`Error::NotABlock`] for one that somebody wrote past the end of,
    /// which is left out from then on (and [`verify`](Self::verify) says so).
    pub fn join_waiting(&self) -> Result<bool> {
        self.arena.check_maker()?;
        let mut any = false;
        for index in 0..BINS as u64 {
            while let Some(block) = self.take_waiting(index * 8) {
                // One that somebody wrote past the end of is not used again, nor joined.
                self.check_footer(block, index * 8)?;
                self.join(block, index * 8)?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Walks the lists; gives how many blocks are there, of at most `most`.
    pub(super) fn verify_waiting(&self, most: usize) -> Result<usize> {
        let sound = |yes: bool| if yes { Ok(()) } else { Err(Error::Corrupt) };
        let mut seen = 0;
        for (index, list) in self.waiting.lists.iter().enumerate() {
            let (mut block, mut length) = (list.get(), 0);
            while block != 0 {
                sound(self.is_place(block) && seen < most)?;
                sound(self.get(block) & FLAGS == USED | WAITS)?;
                sound(self.size(block) == 8 * index as u64)?;
                seen += 1;
                length += 1;
                block = self.get(block + NEXT);
            }
            sound(length == usize::from(self.waiting.lengths[index].get()))?;
        }
        Ok(seen)
    }
}
