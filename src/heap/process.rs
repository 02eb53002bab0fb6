//! Process blocks: what one process owns of a region, and its granule runs.
//!
//! A process takes chunks from the heap source and cuts them into runs of 1 to 32 granules: slabs
//! for its thread blocks, and blocks of 32 KiB to 2 MiB. A chunk's free granules are one 64-bit
//! word, so finding a run is a few shifts and coalescing is free: a bitmap buddy.
//!
//! ```text
//! ProcessBlock:  who (pid, start time, limits) | lists of chunks by longest free run | counters
//! lists[k]:      chunks whose longest free run is 2^k to 2^(k+1)-1 granules, k = 0..6
//! ```
//!
//! The chunks' `used` words are the truth, written under this process's lock; the lists and the
//! counters can be rebuilt from them.
#![allow(unsafe_code)] // calls `purge` on memory that is nobody's

use super::adopt::Worth;
use super::chunk::{ChunkEntry, Use};
use super::granule::GranuleIdx;
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use crate::base::bits::{find_run, run_mask};
use crate::base::units::{CHUNK, GRANULE, GRANULES_PER_CHUNK};
use crate::base::{Error, Result};
use crate::os;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use crate::sync::lock::Guard;

/// The longest run, in granules. Larger blocks are made of whole chunks.
pub(crate) const MAX_RUN: u32 = 32;

const LISTS: usize = 7;
/// Chunks tried in the list whose runs may or may not be long enough.
const TRIES: usize = 8;
/// What [`ProcessBlock::retain`] starts at.
const RETAIN: u64 = 32 << 20;
/// A process that takes a chunk this soon after it gave memory back should have kept it.
const REGRET_NS: u64 = 1_000_000_000;
/// Chunks without any used granule, and without memory, that a process keeps.
const KEEP_EMPTY: u32 = 1;

/// States of a process slot.
pub(crate) const SLOT_FREE: u32 = 0;
pub(crate) const SLOT_CLAIMED: u32 = 1;
pub(crate) const SLOT_LIVE: u32 = 2;
/// Claimed by a process that holds no lock of the kernel's, and so cannot be told dead yet.
pub(crate) const SLOT_UNWATCHED: u32 = 3;
/// A dead process whose things are being taken apart.
pub(crate) const SLOT_DYING: u32 = 4;
/// In `ProcessBlock::global`: the process ends, and needs the region's name no more.
pub(crate) const LEAVING: u32 = u32::MAX;
/// In a forked child's copy of a region: what other processes own there. Never taken apart.
pub(crate) const SLOT_OTHERS: u32 = 5;

/// One entry of the process table.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct ProcessBlock {
    pub(crate) state: AtomicU32,
    pub(crate) pid: AtomicU32,
    /// Start time of the process in clock ticks since boot: tells a reused pid.
    pub(crate) start_time: AtomicU64,
    /// Most bytes of chunks the process may own; 0 is no limit.
    pub(crate) max_bytes: AtomicU64,
    /// Most thread blocks it may hold at a time.
    pub(crate) max_blocks: AtomicU32,
    pub(crate) blocks: AtomicU32,
    /// The pid namespace that `pid` belongs to; 0 if unknown.
    pub(crate) namespace: AtomicU64,
    /// The number of this registration: no other ever has it. Names the holder of a lock, and who
    /// is about to announce a slab.
    pub(crate) number: AtomicU32,
    /// 1 where the kernel holds a lock on the process's behalf; see `liveness`.
    pub(crate) watched: AtomicU32,
    /// Bytes of chunks in large blocks. Changed by anybody, under the source's lock.
    pub(crate) large: AtomicU64,
    /// Which region of its process's global heap this is, from 1 on; 0 where it is none,
    /// [`LEAVING`] where the process is about to end.
    pub(crate) global: AtomicU32,
    /// See [`os::program_of`]; 0 where it could not be told.
    pub(crate) program: AtomicU32,
    _pad: AtomicU32,
    lists: [AtomicU32; LISTS],
    empty_chunks: AtomicU32,
    /// See [`os::image_number`]; 0 where it could not be told.
    pub(crate) image: AtomicU32,
    /// Bytes of chunks owned for runs. Changed by the process alone.
    pub(crate) owned: AtomicU64,
    /// Bytes of free granules in the chunks that may be resident.
    dirty_free: AtomicU64,
    /// Bytes of free granules that may stay resident for quick reuse. Doubles when memory that was
    /// just given back is needed again, and falls back when it is not.
    retain: AtomicU64,
    /// Bytes in runs and large blocks that are handed out, and in slabs.
    pub(crate) in_runs: AtomicU64,
    pub(crate) in_slabs: AtomicU64,
    /// What `retain` falls back to.
    retain_least: AtomicU64,
    /// When memory was last given back, by the monotonic clock.
    purged_at: AtomicU64,
    /// The last such time that turned out to be too early.
    regretted: AtomicU64,
    /// The most bytes of chunks that were ever owned.
    peak: AtomicU64,
    /// 0 where no chunk of the process's holds anything of the estate's; see `adopt`.
    pub(super) adopted: AtomicU32,
    /// 0 where nothing was ever handed over to the process; see `keeper`.
    pub(super) keeps: AtomicU32,
    _pad2: AtomicU64,
}

/// What a run looks like when it is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunTaken {
    pub(crate) first: GranuleIdx,
    /// Bytes from the start that are committed already.
    pub(crate) committed: u32,
    /// Whether all of it is zero.
    pub(crate) zeroed: bool,
}

/// floor(log2(longest run of set bits)); `None` for zero.
fn longest_run_log2(free: u64) -> Option<usize> {
    let mut log = None;
    let mut starts = free;
    let mut k = 0;
    while starts != 0 {
        log = Some(k);
        if k == 6 {
            break;
        }
        starts &= starts >> (1 << k);
        k += 1;
    }
    log
}

impl ProcessBlock {
    /// Bytes of chunks, for runs and in large blocks.
    pub(crate) fn owns(&self) -> u64 {
        self.owned.load(Relaxed).saturating_add(self.large.load(Relaxed))
    }
    /// Starts a registration's account.
    pub(super) fn open_account(&self, max_bytes: u64, max_blocks: u32) {
        self.max_bytes.store(max_bytes, Relaxed);
        self.max_blocks.store(max_blocks, Relaxed);
        self.retain.store(RETAIN, Relaxed);
        self.retain_least.store(RETAIN, Relaxed);
        self.blocks.store(0, Relaxed);
        self.adopted.store(0, Relaxed);
        self.keeps.store(0, Relaxed);
        self.empty_chunks.store(0, Relaxed);
        for word in [
            &self.owned,
            &self.large,
            &self.dirty_free,
            &self.purged_at,
            &self.regretted,
            &self.peak,
            &self.in_runs,
            &self.in_slabs,
        ] {
            word.store(0, Relaxed);
        }
        for list in &self.lists {
            list.store(0, Relaxed);
        }
    }
    /// Bytes of free granules that may stay resident.
    pub(crate) fn retained(&self) -> usize {
        self.retain.load(Relaxed) as usize
    }
}

impl RegionHeap {
    /// Bytes in the slabs, runs and large blocks of all processes.
    pub(crate) fn bytes_in_use(&self) -> usize {
        let live = |slot: &u32| self.process(ProcessSlot(*slot)).state.load(Relaxed) == SLOT_LIVE;
        let small: u64 = (0..self.process_slots())
            .filter(live)
            .map(|slot| self.process(ProcessSlot(slot)))
            .flat_map(|block| [block.in_runs.load(Relaxed), block.in_slabs.load(Relaxed)])
            .fold(0, u64::saturating_add);
        (small as usize).saturating_add(self.large_bytes())
    }

    /// Sets how many bytes of free granules may stay resident.
    pub(crate) fn set_retained(&self, process: ProcessSlot, bytes: usize) {
        self.process(process).retain.store(bytes as u64, Relaxed);
        self.process(process).retain_least.store(bytes as u64, Relaxed);
    }

    /// Bytes that `process` could still allocate: free granules of its chunks, and free chunks as
    /// far as its limit allows.
    pub(crate) fn available(&self, process: ProcessSlot) -> usize {
        let block = self.process(process);
        let mut free = 0;
        {
            let _guard = self.lock_process();
            for list in &block.lists {
                for chunk in self.listed(list) {
                    free += self.free_granules(chunk).count_ones() as usize * GRANULE;
                }
            }
        }
        let (limit, owned) = (block.max_bytes.load(Relaxed), block.owns());
        let more = if limit == 0 { u64::MAX } else { limit.saturating_sub(owned) };
        free + self.available_chunks().min(more as usize)
    }

    /// Whether `process` may own `more` bytes of chunks.
    pub(crate) fn within_limit(&self, process: ProcessSlot, more: usize) -> Result<()> {
        let block = self.process(process);
        let (limit, owned) = (block.max_bytes.load(Relaxed), block.owns());
        if limit != 0 && owned.saturating_add(more as u64) > limit {
            let available = limit.saturating_sub(owned) as usize;
            return Err(Error::OutOfMemory { requested: more, available });
        }
        Ok(())
    }

    /// Takes `count` neighbouring granules (1 to [`MAX_RUN`]) whose address is a multiple of
    /// `step` granules (a power of two up to [`MAX_RUN`], so that some place in a chunk always fits):
    /// at the start of `room` free ones, if the process has a chunk with so many; otherwise where they
    /// leave the longest runs to others.
    pub(crate) fn take_run(
        &self,
        process: ProcessSlot,
        count: u32,
        step: u32,
        room: u32,
    ) -> Result<RunTaken> {
        debug_assert!((1..=MAX_RUN).contains(&count) && step <= MAX_RUN);
        self.reap_now_and_then(process);
        let block = self.process(process);
        let guard = self.lock_process();
        let roomy = (room > count).then(|| self.find_listed(process, room.min(MAX_RUN), step));
        let found = roomy.flatten().or_else(|| self.find_listed(process, count, step));
        let given_back = || {
            self.take_back_adopted(&guard, process).then(|| self.find_listed(process, count, step))
        };
        if let Some((chunk, bit)) = found.or_else(|| given_back().flatten()) {
            return Ok(self.cut(&guard, process, chunk, bit, count));
        }
        // In a sound heap the second or third chunk will do.
        for _ in 0..=self.chunk_count() {
            self.within_limit(process, CHUNK)?;
            let adopt = |worth| self.adopt_chunk(&guard, process, count, step, worth);
            let chunk = match adopt(Worth::Half) {
                Some(chunk) => chunk,
                None => match self.take_chunk(process) {
                    Ok(chunk) => {
                        self.choose_pages(process, chunk);
                        chunk
                    }
                    // The dead may have more than enough.
                    Err(Error::OutOfMemory { .. }) if self.reap(process).any() => continue,
                    Err(error) => adopt(Worth::Anything).ok_or(error)?,
                },
            };
            block.owned.fetch_add(CHUNK as u64, Relaxed);
            let dirty = self.chunk(chunk).dirty.load(Relaxed) & self.free_granules(chunk);
            block.dirty_free.fetch_add(dirty.count_ones() as u64 * GRANULE as u64, Relaxed);
            self.note_growth(process);
            self.enlist(process, chunk);
            if let Some(bit) = self.fit(chunk, count, step) {
                return Ok(self.cut(&guard, process, chunk, bit, count));
            }
            // A partial chunk (behind the tables, or the region's last): kept for smaller runs.
        }
        Err(Error::OutOfMemory { requested: count as usize * GRANULE, available: 0 })
    }

    /// Takes the `count` granules from `first`, which the process had once, if they are free and its own still.
    pub(crate) fn take_run_again(
        &self,
        process: ProcessSlot,
        first: GranuleIdx,
        count: u32,
    ) -> Option<RunTaken> {
        let (chunk, bit) = Self::chunk_of(first);
        let guard = self.lock_process();
        let mask = run_mask(bit, count);
        let entry = self.chunk(chunk);
        let warm = self.free_granules(chunk) & entry.dirty.load(Relaxed);
        let is_there = entry.usage() == Use::Pages(process) && warm & mask == mask;
        is_there.then(|| self.cut(&guard, process, chunk, bit, count))
    }

    /// Where `count` granules are free in one of the process's chunks: the tightest that is found fast, of
    /// those where memory that was touched before is free, if there are any.
    fn find_listed(&self, process: ProcessSlot, count: u32, step: u32) -> Option<(ChunkIdx, u32)> {
        let sure = count.next_power_of_two().trailing_zeros() as usize;
        let maybe = (31 - count.leading_zeros()) as usize;
        let block = self.process(process);
        if block.dirty_free.load(Relaxed) >= count as u64 * GRANULE as u64 {
            for head in block.lists.iter().skip(maybe) {
                for chunk in self.listed(head).take(1) {
                    let warm = self.chunk(chunk).dirty.load(Relaxed);
                    if let Some(bit) = self.fit_in(chunk, warm, count, step) {
                        return Some((chunk, bit));
                    }
                }
            }
        }
        for (list, head) in self.process(process).lists.iter().enumerate().skip(maybe) {
            let tries = if list < sure || step > 1 { TRIES } else { 1 };
            for chunk in self.listed(head).take(tries) {
                if let Some(bit) = self.fit(chunk, count, step) {
                    return Some((chunk, bit));
                }
            }
        }
        None
    }

    /// The chunks of a list. A damaged one ends, too.
    fn listed(&self, list: &AtomicU32) -> impl Iterator<Item = ChunkIdx> {
        let mut at = list.load(Relaxed);
        (0..self.chunk_count()).map_while(move |_| {
            let chunk = self.chunk_at(at)?;
            at = self.chunk(chunk).next.load(Relaxed);
            Some(chunk)
        })
    }

    /// Gives a run back of which the first `committed` bytes are committed.
    pub(crate) fn return_run(
        &self,
        process: ProcessSlot,
        first: GranuleIdx,
        count: u32,
        committed: u32,
    ) {
        self.put_run(process, first, count, committed, false);
    }

    /// Gives slabs of a granule each back, whose entries are free.
    pub(super) fn return_slabs(&self, process: ProcessSlot, heads: &[GranuleIdx]) {
        let bytes = heads.len() as u64 * GRANULE as u64;
        self.process(process).in_slabs.fetch_sub(bytes, Relaxed);
        let guard = self.lock_process();
        for &head in heads {
            let committed = self.desc(head).committed.load(Relaxed);
            self.put_back(&guard, process, head, 1, committed, false);
        }
    }

    /// Gives a run back that nobody wrote to: what was zero is.
    pub(crate) fn return_untouched(&self, process: ProcessSlot, run: RunTaken, count: u32) {
        self.put_run(process, run.first, count, run.committed, run.zeroed);
    }

    fn put_run(
        &self,
        process: ProcessSlot,
        first: GranuleIdx,
        count: u32,
        committed: u32,
        zeroed: bool,
    ) {
        let guard = self.lock_process();
        self.put_back(&guard, process, first, count, committed, zeroed);
    }

    /// Gives a run back under the lock.
    pub(super) fn put_back(
        &self,
        _locked: &Guard<'_>,
        process: ProcessSlot,
        first: GranuleIdx,
        count: u32,
        committed: u32,
        zeroed: bool,
    ) {
        let (chunk, bit) = Self::chunk_of(first);
        let mask = run_mask(bit, count);
        let block = self.process(process);
        let entry = self.chunk(chunk);
        self.delist(process, chunk);
        entry.used.store(entry.used.load(Relaxed) & !mask, Relaxed);
        let whole = (committed / GRANULE as u32).min(count);
        let full = if whole == 0 { 0 } else { run_mask(bit, whole) };
        entry.full.store(entry.full.load(Relaxed) & !mask | full, Relaxed);
        let dirty = if zeroed { 0 } else { mask };
        entry.dirty.store(entry.dirty.load(Relaxed) & !mask | dirty, Relaxed);
        let bytes = dirty.count_ones() as u64 * GRANULE as u64;
        let dirty_free = block.dirty_free.load(Relaxed).saturating_add(bytes);
        block.dirty_free.store(dirty_free, Relaxed);
        self.enlist(process, chunk);
        let empty = entry.used.load(Relaxed) & self.chunk_mask(chunk) == 0;
        let resident = entry.dirty.load(Relaxed) != 0;
        if empty && !resident && block.empty_chunks.load(Relaxed) > KEEP_EMPTY {
            self.give_up_chunk(process, chunk);
        } else if dirty_free > block.retain.load(Relaxed) && self.lazily_zero() {
            self.purge_runs(process);
        }
    }

    /// Takes the `more` granules behind a run of `count`, where they are free, and says what they look
    /// like.
    pub(crate) fn extend_run(
        &self,
        process: ProcessSlot,
        first: GranuleIdx,
        count: u32,
        more: u32,
    ) -> Option<RunTaken> {
        let (chunk, bit) = Self::chunk_of(first);
        if bit + count + more > GRANULES_PER_CHUNK as u32 || count + more > MAX_RUN {
            return None;
        }
        let guard = self.lock_process();
        let mask = run_mask(bit + count, more);
        if self.free_granules(chunk) & mask != mask {
            return None;
        }
        Some(self.cut(&guard, process, chunk, bit + count, more))
    }

    pub(super) fn free_granules(&self, chunk: ChunkIdx) -> u64 {
        !self.chunk(chunk).used.load(Relaxed) & self.chunk_mask(chunk)
    }

    /// Where a run of `count` fits in a chunk: in memory that was touched before, if it can.
    pub(super) fn fit(&self, chunk: ChunkIdx, count: u32, step: u32) -> Option<u32> {
        self.fit_in(chunk, self.chunk(chunk).dirty.load(Relaxed), count, step)
            .or_else(|| self.fit_in(chunk, u64::MAX, count, step))
    }

    /// The same, only in granules of the mask `of`.
    fn fit_in(&self, chunk: ChunkIdx, of: u64, count: u32, step: u32) -> Option<u32> {
        let free = self.free_granules(chunk) & of;
        // The address of granule 0 may itself be off the wanted alignment.
        let base = (self.base().addr() / GRANULE) as u32 + chunk.0 * GRANULES_PER_CHUNK as u32;
        let skip = base.wrapping_neg() & (step - 1);
        find_run(free >> skip, count, step).map(|bit| bit + skip)
    }

    fn cut(
        &self,
        _locked: &Guard<'_>,
        process: ProcessSlot,
        chunk: ChunkIdx,
        bit: u32,
        count: u32,
    ) -> RunTaken {
        let entry = self.chunk(chunk);
        let mask = run_mask(bit, count);
        self.delist(process, chunk);
        entry.used.store(entry.used.load(Relaxed) | mask, Relaxed);
        self.enlist(process, chunk);
        let dirty = entry.dirty.load(Relaxed);
        let bytes = (dirty & mask).count_ones() as u64 * GRANULE as u64;
        let block = self.process(process);
        let had = block.dirty_free.load(Relaxed);
        block.dirty_free.store(had.saturating_sub(bytes), Relaxed);
        entry.dirty.store(dirty | mask, Relaxed);
        let full = (entry.full.load(Relaxed) >> bit).trailing_ones().min(count);
        RunTaken {
            first: GranuleIdx(chunk.0 * GRANULES_PER_CHUNK as u32 + bit),
            committed: full * GRANULE as u32,
            zeroed: dirty & mask == 0 && self.lazily_zero(),
        }
    }

    /// Puts a chunk on the list of its longest free run. Under the process's lock.
    fn enlist(&self, process: ProcessSlot, chunk: ChunkIdx) {
        let block = self.process(process);
        let entry = self.chunk(chunk);
        let free = self.free_granules(chunk);
        if free == self.chunk_mask(chunk) {
            block.empty_chunks.fetch_add(1, Relaxed);
        }
        let Some(list) = longest_run_log2(free) else {
            entry.bucket.store(0, Relaxed);
            return;
        };
        // First; second where none of its free memory was touched before, but perhaps some of the first's.
        let mut prev = 0;
        let mut link = &block.lists[list];
        if free & entry.dirty.load(Relaxed) == 0
            && let Some(first) = self.chunk_at(link.load(Relaxed))
        {
            prev = first.0 + 1;
            link = &self.chunk(first).next;
        }
        let next = link.load(Relaxed);
        entry.next.store(next, Relaxed);
        entry.prev.store(prev, Relaxed);
        entry.bucket.store(list as u32 + 1, Relaxed);
        if let Some(next) = self.chunk_at(next) {
            self.chunk(next).prev.store(chunk.0 + 1, Relaxed);
        }
        link.store(chunk.0 + 1, Relaxed);
    }

    /// Takes a chunk off its list, before its `used` word changes. Under the process's lock.
    fn delist(&self, process: ProcessSlot, chunk: ChunkIdx) {
        let block = self.process(process);
        let entry = self.chunk(chunk);
        if self.free_granules(chunk) == self.chunk_mask(chunk) {
            block.empty_chunks.fetch_sub(1, Relaxed);
        }
        let list = entry.bucket.load(Relaxed) as usize;
        if list == 0 || list > LISTS {
            return;
        }
        let (next, prev) = (entry.next.load(Relaxed), entry.prev.load(Relaxed));
        let link = |index: u32| -> &ChunkEntry { self.chunk(ChunkIdx(index - 1)) };
        match prev {
            0 => block.lists[list - 1].store(next, Relaxed),
            prev => link(prev).next.store(next, Relaxed),
        }
        if next != 0 {
            link(next).prev.store(prev, Relaxed);
        }
        entry.bucket.store(0, Relaxed);
    }

    /// Gives an empty chunk back to the heap source, its memory to the system. Under the lock.
    fn give_up_chunk(&self, process: ProcessSlot, chunk: ChunkIdx) {
        let block = self.process(process);
        self.purge_free(process, chunk);
        let dirty = self.chunk(chunk).dirty.load(Relaxed) & self.chunk_mask(chunk);
        let left = dirty.count_ones() as u64 * GRANULE as u64;
        block.dirty_free.store(block.dirty_free.load(Relaxed).saturating_sub(left), Relaxed);
        self.delist(process, chunk);
        block.owned.fetch_sub(CHUNK as u64, Relaxed);
        self.return_chunk(chunk);
    }

    /// Gives resident free granules back until at most half of what may be retained is left, the
    /// emptiest chunks first; empty chunks go to the heap source. Under the lock.
    fn purge_runs(&self, process: ProcessSlot) {
        let block = self.process(process);
        let now = os::monotonic_ns();
        // Nothing was needed again for a while: what was kept for that is not needed either.
        if now.saturating_sub(block.purged_at.load(Relaxed)) > 2 * REGRET_NS {
            let halved = block.retain.load(Relaxed) / 2;
            block.retain.store(halved.max(block.retain_least.load(Relaxed)), Relaxed);
        }
        block.purged_at.store(now, Relaxed);
        let keep = block.retain.load(Relaxed) / 2;
        for list in block.lists.iter().rev() {
            for chunk in self.listed(list) {
                if block.dirty_free.load(Relaxed) <= keep {
                    break;
                }
                if self.free_granules(chunk) == self.chunk_mask(chunk) {
                    self.give_up_chunk(process, chunk);
                } else {
                    self.purge_free(process, chunk);
                }
            }
        }
    }

    /// Notes that a process takes another chunk; if it gave memory back just now, it may keep more
    /// from now on, up to the most it ever had. Under the lock.
    fn note_growth(&self, process: ProcessSlot) {
        let block = self.process(process);
        let owned = block.owns();
        block.peak.fetch_max(owned, Relaxed);
        let purged = block.purged_at.load(Relaxed);
        let regretted = block.regretted.load(Relaxed) == purged;
        if !regretted && os::monotonic_ns().saturating_sub(purged) < REGRET_NS {
            let more = block.retain.load(Relaxed).saturating_mul(2);
            let least = block.retain_least.load(Relaxed);
            block.retain.store(more.min(block.peak.load(Relaxed)).max(least), Relaxed);
            // Once for each time that memory was given back.
            block.regretted.store(purged, Relaxed);
        }
    }

    /// Gives the memory of a chunk's free granules back to the system. Under the lock.
    fn purge_free(&self, process: ProcessSlot, chunk: ChunkIdx) {
        let entry = self.chunk(chunk);
        let dirty = entry.dirty.load(Relaxed);
        let mut left = dirty & self.free_granules(chunk);
        let mut purged = 0u64;
        while left != 0 {
            let bit = left.trailing_zeros();
            let count = (left >> bit).trailing_ones();
            let mask = run_mask(bit, count);
            left &= !mask;
            let granule = chunk.0 as usize * GRANULES_PER_CHUNK + bit as usize;
            // SAFETY: the granules are free, and the process's lock is held.
            if unsafe { self.purge(granule * GRANULE, count as usize * GRANULE) } {
                purged |= mask;
            }
        }
        entry.dirty.store(dirty & !purged, Relaxed);
        entry.full.store(entry.full.load(Relaxed) & !purged, Relaxed);
        let bytes = purged.count_ones() as u64 * GRANULE as u64;
        let block = self.process(process);
        block.dirty_free.store(block.dirty_free.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    /// Gives back to the system all memory of free granules that `process` holds, and its empty
    /// chunks to the heap source.
    pub(crate) fn trim(&self, process: ProcessSlot) {
        let block = self.process(process);
        let guard = self.lock_process();
        self.take_back_adopted(&guard, process);
        for list in block.lists.iter().rev() {
            for chunk in self.listed(list) {
                if self.free_granules(chunk) == self.chunk_mask(chunk) {
                    self.give_up_chunk(process, chunk);
                } else {
                    self.purge_free(process, chunk);
                }
            }
        }
        drop(guard);
        self.purge_recycled();
    }

    /// The first chunk of each of a process's lists, for `verify`.
    pub(crate) fn list_head(&self, process: ProcessSlot, list: usize) -> Option<ChunkIdx> {
        self.chunk_at(self.process(process).lists.get(list)?.load(Relaxed))
    }

    /// The list a chunk belongs on, for `verify`; `None` for a chunk without free granules.
    pub(crate) fn list_of(&self, chunk: ChunkIdx) -> Option<usize> {
        longest_run_log2(self.free_granules(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::TableSizes;
    use super::super::liveness::Joining;
    use super::*;
    use crate::base::units::MIB;
    use crate::region::{Backend, MemfdBackend, Region, RegionOptions};

    /// Purged memory has no pages, whoever purged it: nothing may call it committed.
    #[test]
    fn an_attached_process_purges_for_good() {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(32 * MIB)).unwrap();
        let token = region.token().unwrap();
        let _first = RegionHeap::create(region, TableSizes::default()).unwrap();
        let region = Region::attach_token(&token, &RegionOptions::new()).unwrap();
        let mut heap = RegionHeap::attach(region).unwrap();
        let joining = Joining { max_blocks: 4, ..Joining::default() };
        let process = heap.register(joining).unwrap();
        let run = heap.take_run(process, 4, 1, 0).unwrap();
        let (chunk, _) = RegionHeap::chunk_of(run.first);
        let bytes = 4 * GRANULE as u32;
        heap.return_run(process, run.first, 4, bytes);
        assert_ne!(heap.chunk(chunk).full.load(Relaxed), 0);
        assert_eq!(heap.process(process).dirty_free.load(Relaxed), bytes as u64);
        heap.trim(process);
        assert_eq!(heap.chunk(chunk).full.load(Relaxed), 0);
        assert_eq!(heap.chunk(chunk).dirty.load(Relaxed), 0);
        assert_eq!(heap.process(process).dirty_free.load(Relaxed), 0);
    }

    #[test]
    fn longest_run() {
        assert_eq!(longest_run_log2(0), None);
        assert_eq!(longest_run_log2(1), Some(0));
        assert_eq!(longest_run_log2(0b101), Some(0));
        assert_eq!(longest_run_log2(0b110), Some(1));
        assert_eq!(longest_run_log2(0b1110), Some(1));
        assert_eq!(longest_run_log2(u64::MAX), Some(6));
        assert_eq!(longest_run_log2(u64::MAX >> 1), Some(5));
    }
}
