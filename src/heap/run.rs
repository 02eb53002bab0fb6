//! Runs: one to [`MAX_RUN`](super::process::MAX_RUN) neighbouring granules that are one block.
//!
//! A run's length and how much of it is committed are in the descriptor of its first granule; the
//! granule map says of every granule how far it is from there.

use super::granule::{BlockId, Entry, GranuleIdx, Kind};
use super::layout::{ProcessSlot, RegionHeap};
use crate::base::Result;
use crate::base::units::{GRANULE, GRANULES_PER_CHUNK, PAGE};
use crate::sync::atomic::Ordering::Relaxed;

/// Runs up to this size are committed when they are handed out.
const COMMIT_AHEAD: usize = 4 * GRANULE;

impl RegionHeap {
    /// Granules of the run that begins at `head`: 1 to [`MAX_RUN`](super::process::MAX_RUN), all in its
    /// chunk and in the region; 0 where the descriptor says anything else.
    #[inline]
    pub(crate) fn run_granules(&self, head: GranuleIdx) -> u32 {
        let granules = self.desc(head).run_granules.load(Relaxed);
        let (_, bit) = Self::chunk_of(head);
        let most = (GRANULES_PER_CHUNK as u32 - bit).min(super::process::MAX_RUN);
        if granules > most || head.0 + granules > self.granules() { 0 } else { granules }
    }

    /// Takes a run for a block of `size` bytes, where it could grow to `room` granules if there is such
    /// a place.
    pub(crate) fn allocate_run(
        &self,
        process: ProcessSlot,
        owner: BlockId,
        size: usize,
        align: usize,
        room: u32,
    ) -> Result<(GranuleIdx, bool)> {
        let count = size.div_ceil(GRANULE).max(1) as u32;
        let step = align.div_ceil(GRANULE).max(1) as u32;
        let taken = self.take_run(process, count, step, room)?;
        if let Err(error) = self.commit_tables(taken.first, count, false) {
            self.return_untouched(process, taken, count);
            return Err(error);
        }
        let desc = self.desc(taken.first);
        desc.init_run(count, taken.committed);
        self.forget_dead_announcer(taken.first);
        if let Err(error) = self.commit_run(taken.first, size) {
            desc.run_granules.store(0, Relaxed);
            // A part of it may be there.
            self.return_run(process, taken.first, count, taken.committed);
            return Err(error);
        }
        for distance in (0..count).rev() {
            self.set_entry(GranuleIdx(taken.first.0 + distance), Entry::run(owner, distance));
        }
        self.process(process).in_runs.fetch_add(count as u64 * GRANULE as u64, Relaxed);
        Ok((taken.first, taken.zeroed))
    }

    /// Makes the first `size` bytes of a run safe to touch.
    #[inline]
    pub(crate) fn commit_run(&self, head: GranuleIdx, size: usize) -> Result<()> {
        let desc = self.desc(head);
        let committed = desc.committed.load(Relaxed) as usize;
        if size <= committed {
            return Ok(());
        }
        // Small runs are mostly used to their ends, and committing ahead is cheaper than faults. Of
        // long ones nobody knows: pages come as they are touched, where that cannot be a signal.
        if self.must_commit() || size <= COMMIT_AHEAD {
            self.commit(head.0 as usize * GRANULE + committed, size - committed)?;
        }
        desc.committed.store(size.next_multiple_of(PAGE) as u32, Relaxed);
        Ok(())
    }

    /// Bytes from the start of a run that are committed.
    #[inline]
    pub(crate) fn committed(&self, head: GranuleIdx) -> usize {
        self.desc(head).committed.load(Relaxed) as usize
    }

    /// Gives a run back to the process's chunks. Only for a process's own runs. False where it is
    /// no run any more.
    pub(crate) fn free_run(&self, process: ProcessSlot, head: GranuleIdx) -> bool {
        let seen = self.entry(head);
        if seen.kind() != Kind::Run || seen.distance() != 0 {
            return false;
        }
        self.forget_keeper(head);
        let granules = self.run_granules(head);
        if granules == 0 || !self.end_entry(head, seen) {
            return false;
        }
        let committed = self.desc(head).committed.load(Relaxed);
        self.desc(head).run_granules.store(0, Relaxed);
        for distance in 1..granules {
            self.set_entry(GranuleIdx(head.0 + distance), Entry::FREE);
        }
        self.process(process).in_runs.fetch_sub(granules as u64 * GRANULE as u64, Relaxed);
        self.return_run(process, head, granules, committed);
        true
    }

    /// Announces another process's run to its owner. False where it was returned already.
    pub(crate) fn return_foreign_run(&self, head: GranuleIdx, owner: BlockId) -> bool {
        let desc = self.desc(head);
        if !desc.return_run() {
            return false;
        }
        self.announce(head, owner);
        true
    }

    /// Makes a run hold `size` bytes where it lies; false where that cannot be.
    pub(crate) fn resize_run(
        &self,
        process: ProcessSlot,
        owner: BlockId,
        head: GranuleIdx,
        granules: u32,
        size: usize,
    ) -> bool {
        // Before it is cut to 32 bits: a multiple of 2^48 bytes would come out as nothing.
        if size > super::process::MAX_RUN as usize * GRANULE {
            return false;
        }
        let want = size.div_ceil(GRANULE).max(1) as u32;
        let desc = self.desc(head);
        if want > granules {
            let more = want - granules;
            let Some(taken) = self.extend_run(process, head, granules, more) else { return false };
            let had = desc.committed.load(Relaxed);
            if had == granules * GRANULE as u32 {
                // What is committed of the new part goes on from there.
                desc.committed.store(had + taken.committed, Relaxed);
            }
            let first = GranuleIdx(head.0 + granules);
            let ready = self.commit_tables(first, more, false);
            if ready.and_then(|()| self.commit_run(head, size)).is_err() {
                desc.committed.store(had, Relaxed);
                self.return_run(process, first, more, taken.committed);
                return false;
            }
            desc.run_granules.store(want, Relaxed);
            for distance in granules..want {
                self.set_entry(GranuleIdx(head.0 + distance), Entry::run(owner, distance));
            }
            self.process(process).in_runs.fetch_add(more as u64 * GRANULE as u64, Relaxed);
        } else if want < granules {
            let keep = want * GRANULE as u32;
            let committed = desc.committed.load(Relaxed);
            desc.run_granules.store(want, Relaxed);
            desc.committed.store(committed.min(keep), Relaxed);
            for distance in want..granules {
                self.set_entry(GranuleIdx(head.0 + distance), Entry::FREE);
            }
            let less = granules - want;
            self.process(process).in_runs.fetch_sub(less as u64 * GRANULE as u64, Relaxed);
            let first = GranuleIdx(head.0 + want);
            self.return_run(process, first, less, committed.saturating_sub(keep));
        } else if self.commit_run(head, size).is_err() {
            return false;
        }
        true
    }
}
