//! Free granules in chunks of the estate: whoever needs some takes the chunk, and leaves in it what is
//! the estate's.
//!
//! One block that stays keeps a slab, and the slab a chunk of 64 granules. Nobody allocates in the
//! estate, so a program that attaches, leaves one small block and goes would cost 4 MiB each time. So
//! a process that is about to take another chunk looks for one of the estate's first, half of which
//! is free at least; before a request fails any that fits will do.
//!
//! ```text
//! chunk:     the adopter's: its lists, its account, its lock
//! granules:  | estate's slab | adopter's slab | free | estate's run | free ... |
//! ```
//!
//! Only what lies in the chunk says whose it is (the granule map's thread block); the chunk's owner says
//! who has the free granules. To adopt is one store, of the chunk's owner word, under the reaper's
//! lock and the source's. When the adopter goes, what is the estate's stays, whatever becomes of the
//! adopter's own; then the chunk is the estate's again, or free.
//!
//! What becomes free of the estate in an adopted chunk only the adopter can give back, since `used` is
//! under its lock: it does when it needs a chunk, and in [`trim`](RegionHeap::trim). It takes the reaper's lock
//! for that, as whoever settles slabs does.

use super::chunk::Use;
use super::granule::{Entry, GranuleIdx, Kind};
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use super::reap::Stays;
use crate::base::units::GRANULES_PER_CHUNK;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::lock::Guard;

/// How much of a chunk must be free for somebody to adopt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    Half,
    Anything,
}

impl RegionHeap {
    /// Makes a chunk of the estate the process's, in which `count` granules are free at a multiple of
    /// `step`. Under the process's lock, which it is not on a list of yet.
    #[cold]
    pub(super) fn adopt_chunk(
        &self,
        _locked: &Guard<'_>,
        process: ProcessSlot,
        count: u32,
        step: u32,
        worth: Worth,
    ) -> Option<ChunkIdx> {
        if self.process(self.estate()).owned.load(Relaxed) == 0 {
            return None;
        }
        let fits = |chunk| {
            let (mask, free) = (self.chunk_mask(chunk), self.free_granules(chunk));
            (worth == Worth::Anything || 2 * free.count_ones() >= mask.count_ones())
                && self.fit(chunk, count, step).is_some()
        };
        let is_worth_it =
            |&(chunk, usage): &(_, Use)| usage == Use::Pages(self.estate()) && fits(chunk);
        // Without the lock, which may take its time, mostly to find that there is none.
        self.chunks().find(is_worth_it)?;
        let _reaper = self.lock_reaper();
        let (chunk, _) = self.chunks().find(is_worth_it)?;
        let entry = self.chunk(chunk);
        self.process(process).adopted.store(1, Relaxed);
        let _source = self.lock_source();
        entry.bucket.store(0, Relaxed);
        entry.adopted.store(1, Relaxed);
        entry.set_usage(Use::Pages(process));
        Some(chunk)
    }

    /// Gives back what has become free of the estate in the process's chunks. True where there was any.
    /// Under the process's lock.
    #[cold]
    pub(super) fn take_back_adopted(&self, locked: &Guard<'_>, process: ProcessSlot) -> bool {
        let block = self.process(process);
        if block.adopted.load(Relaxed) == 0 {
            return false;
        }
        let _reaper = self.lock_reaper();
        self.drain(self.estate_block());
        let (mut left, mut freed) = (0, false);
        self.for_each_chunk(|chunk, usage| {
            let entry = self.chunk(chunk);
            if usage == Use::Pages(process) && entry.adopted.load(Relaxed) != 0 {
                let (still, back) = self.take_back_in(locked, process, chunk);
                freed |= back;
                left |= still as u32;
            }
        });
        block.adopted.store(left, Relaxed);
        // Announced by somebody who still saw them the estate's.
        self.drain(self.estate_block());
        freed
    }

    /// The same in one chunk: whether anything of the estate's is left, and whether anything was free.
    fn take_back_in(
        &self,
        locked: &Guard<'_>,
        process: ProcessSlot,
        chunk: ChunkIdx,
    ) -> (bool, bool) {
        let entry = self.chunk(chunk);
        let used = entry.used.load(Relaxed) & self.chunk_mask(chunk);
        let (mut still, mut freed) = (false, false);
        let mut bit = 0;
        while bit < GRANULES_PER_CHUNK as u32 {
            let head = GranuleIdx(chunk.0 * GRANULES_PER_CHUNK as u32 + bit);
            let room = (used >> bit).trailing_ones();
            if room == 0 || !self.is_estates(self.entry(head)) {
                bit += 1;
                continue;
            }
            let (count, live) = self.settle_head(head, room, self.estate(), Stays::All);
            if live {
                still = true;
            } else {
                for distance in 0..count {
                    self.set_entry(GranuleIdx(head.0 + distance), Entry::FREE);
                }
                freed = true;
                self.put_back(locked, process, head, count, 0, false);
            }
            bit += count;
        }
        if !still {
            entry.adopted.store(0, Relaxed);
        }
        (still, freed)
    }

    /// Whether a slab or a run is the estate's, whoever's chunk it lies in.
    pub(super) fn is_estates(&self, entry: Entry) -> bool {
        matches!(entry.kind(), Kind::Slab | Kind::Run) && entry.owner() == self.estate_block()
    }

    /// Whether a slab, a run or a large block is plainly `process`'s, but for what was handed over.
    pub(super) fn is_in_own(&self, head: GranuleIdx, process: ProcessSlot) -> bool {
        let usage = self.chunk(Self::chunk_of(head).0).usage();
        matches!(usage, Use::Pages(slot) | Use::LargeHead(slot) if slot == process)
            && !self.is_estates(self.entry(head))
    }
}
