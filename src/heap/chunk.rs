//! The heap source: hands out whole chunks (4 MiB) of a region.
//!
//! ```text
//! ChunkEntry (64 B):  owner | span | used | dirty | full | bytes | next | prev
//! owner:  0 free · (process slot + 1) << 2 | kind     kind: 1 pages, 2 large head, 3 large tail
//! ```
//!
//! A process takes one chunk at a time for its granule runs (`process`), or several neighbours for
//! one large block. The ownership word is the truth; the bitmap of recycled chunks and the `fresh`
//! index (a bump pointer: chunks at or past it were never handed out) are derived from it.
//!
//! Fresh chunks are taken last, so that memory which was touched before is used again first;
//! among recycled ones the first fit from the bottom of the region wins.
//!
//! `dirty` and `full` outlive ownership: a granule whose dirty bit is clear reads as zero and has
//! no memory behind it, one whose `full` bit is set is committed to its end.
//!
//! Everything that changes ownership happens under the source's lock.
#![allow(unsafe_code)] // clears and purges memory of chunks that are nobody's

use super::granule::{BlockId, Entry, GranuleIdx, Kind};
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use crate::base::bits::run_mask;
use crate::base::units::{CHUNK, GRANULE, GRANULES_PER_CHUNK, PAGE};
use crate::base::{Error, Result, align_up};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What a chunk is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    /// Granule runs of one process.
    Pages(ProcessSlot),
    /// The first chunk of a large block.
    LargeHead(ProcessSlot),
    /// A further chunk of a large block.
    LargeTail(ProcessSlot),
}

/// One chunk's entry in the chunk table.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct ChunkEntry {
    owner: AtomicU32,
    /// Large head: chunks of the block. Large tail: distance to the head.
    span: AtomicU32,
    /// Granules in use, a bit each. Written under the owning process's lock.
    pub(crate) used: AtomicU64,
    /// Granules that may hold anything but zeros, or memory at all.
    pub(crate) dirty: AtomicU64,
    /// Granules that are committed to their end.
    pub(crate) full: AtomicU64,
    /// Large head: bytes of the block as last asked for, rounded up to pages.
    bytes: AtomicU64,
    /// Chunk + 1 of the neighbours in a process's list; see `process`.
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// The list it is in, plus one; 0 for none.
    pub(crate) bucket: AtomicU32,
    /// Where huge pages were asked for, a bit for each 2 MiB.
    pub(super) huge: AtomicU32,
    /// 1 where it was the estate's and may hold something that still is; see `adopt`.
    pub(super) adopted: AtomicU32,
}

impl ChunkEntry {
    pub(crate) fn usage(&self) -> Use {
        let word = self.owner.load(Relaxed);
        let slot = ProcessSlot((word >> 2).wrapping_sub(1));
        match word & 3 {
            1 => Use::Pages(slot),
            2 => Use::LargeHead(slot),
            3 => Use::LargeTail(slot),
            _ => Use::Free,
        }
    }
    pub(super) fn set_usage(&self, usage: Use) {
        let word = match usage {
            Use::Free => 0,
            Use::Pages(slot) => (slot.0 + 1) << 2 | 1,
            Use::LargeHead(slot) => (slot.0 + 1) << 2 | 2,
            Use::LargeTail(slot) => (slot.0 + 1) << 2 | 3,
        };
        self.owner.store(word, crate::sync::atomic::Ordering::Release);
    }
    /// Chunks of a large block, as the entry has it; see [`RegionHeap::large_span`].
    pub(crate) fn span(&self) -> u32 {
        self.span.load(Relaxed)
    }
    /// Bytes of a large block, likewise; see [`RegionHeap::large_size`].
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed) as usize
    }
}

impl RegionHeap {
    /// Chunks of the large block that begins at `first`, whatever its entry says: at least one, and
    /// none past the end of the region.
    pub(crate) fn large_span(&self, first: ChunkIdx) -> u32 {
        let most = self.chunk_count().saturating_sub(first.0).max(1);
        self.chunk(first).span().clamp(1, most)
    }

    /// Bytes of that block, all of them in the region.
    pub(crate) fn large_size(&self, first: ChunkIdx) -> usize {
        let room = self.data().end.saturating_sub(first.0 as usize * CHUNK);
        self.chunk(first).bytes().min(self.large_span(first) as usize * CHUNK).min(room)
    }

    /// Takes one chunk for `process`'s granule runs. Its free granules are those that `used` does
    /// not mark; its `dirty` and `full` bits are as the last owner left them.
    pub(crate) fn take_chunk(&self, process: ProcessSlot) -> Result<ChunkIdx> {
        let _guard = self.lock_source();
        let chunk = self.find_chunks(1, 1, false, false).ok_or_else(|| self.no_room(CHUNK))?;
        self.commit_chunk_entries(chunk, 1)?;
        self.claim(chunk, 1);
        let entry = self.chunk(chunk);
        entry.used.store(!self.chunk_mask(chunk), Relaxed);
        entry.adopted.store(0, Relaxed);
        entry.set_usage(Use::Pages(process));
        Ok(chunk)
    }

    /// Gives a chunk back in which nothing is used any more.
    pub(crate) fn return_chunk(&self, chunk: ChunkIdx) {
        let _guard = self.lock_source();
        let entry = self.chunk(chunk);
        entry.used.store(0, Relaxed);
        entry.set_usage(Use::Free);
        self.set_recycled(chunk, 1, true);
    }

    /// Allocates a block of whole chunks for `size` bytes at a multiple of `align`, with address
    /// space for `room` bytes (at least `size`), so that it can grow in place.
    ///
    /// Returns its first granule and whether its bytes are known to be zero. Where the caller wants
    /// `zeros`, they are: what was never written, or given back since, is not written to for that.
    pub(crate) fn allocate_large(
        &self,
        process: ProcessSlot,
        owner: BlockId,
        size: usize,
        align: usize,
        room: usize,
        zeros: bool,
    ) -> Result<(GranuleIdx, bool)> {
        self.reap_now_and_then(process);
        let take = || self.take_large(process, owner, size, align, room, zeros);
        match take() {
            // The dead may have more than enough.
            Err(Error::OutOfMemory { .. }) if self.reap(process).any() => take(),
            result => result,
        }
    }

    fn take_large(
        &self,
        process: ProcessSlot,
        owner: BlockId,
        size: usize,
        align: usize,
        room: usize,
        zeros: bool,
    ) -> Result<(GranuleIdx, bool)> {
        let too_big = Error::OutOfMemory { requested: size, available: self.available_chunks() };
        let bytes = align_up(size, PAGE).ok_or(too_big)?;
        let count = bytes.div_ceil(CHUNK);
        let want = room.max(size).div_ceil(CHUNK);
        if count > self.chunk_count() as usize {
            return Err(too_big);
        }
        // No address is a multiple of more chunks than 32 bits can count.
        let Ok(step) = u32::try_from(align.div_ceil(CHUNK).max(1)) else { return Err(too_big) };
        if align > GRANULE && !self.base().addr().is_multiple_of(align.min(CHUNK)) {
            return Err(Error::BadAlignment { align });
        }
        self.within_limit(process, count * CHUNK)?;
        let (first, span) = {
            let _guard = self.lock_source();
            let roomy = if want > count && want <= self.chunk_count() as usize {
                self.find_chunks(want as u32, step, true, false).map(|first| (first, want as u32))
            } else {
                None
            };
            let (first, span) = match roomy {
                Some(found) => found,
                None => match self
                    .find_chunks(count as u32, step, true, true)
                    .or_else(|| self.find_chunks(count as u32, step, true, false))
                {
                    Some(first) => (first, count as u32),
                    None => return Err(self.no_room(size)),
                },
            };
            // Chunks that are skipped become recycled ones, with entries of their own.
            let from = first.0.min(self.source().fresh.load(Relaxed));
            self.commit_chunk_entries(ChunkIdx(from), first.0 + span - from)?;
            self.claim(first, span);
            self.write_large(process, first, span, bytes);
            self.process(process).large.fetch_add(span as u64 * CHUNK as u64, Relaxed);
            (first, span)
        };
        let head = GranuleIdx(first.0 * GRANULES_PER_CHUNK as u32);
        if let Err(error) = self.commit_large(head, 0, bytes) {
            // A part of it may be there.
            self.mark_dirty(first, 0..bytes);
            self.purge_chunks(first, count as u32);
            self.give_up_large(first, span);
            return Err(error);
        }
        let clean = self.is_clean(first, 0..bytes);
        let is_warm = self.is_dirty(first, 0..bytes);
        let zeroed = self.lazily_zero() && (clean || zeros);
        if zeroed && !clean {
            self.clear_dirty(first, bytes);
        }
        if !is_warm {
            self.hold_peak(process);
            self.choose_large_pages(first, bytes, room > size);
        }
        self.mark_dirty(first, 0..bytes);
        self.desc(head).forget_kept();
        self.set_entry(head, Entry::large(owner));
        Ok((head, zeroed))
    }

    /// Frees a block of whole chunks by its head granule; any process may. False where somebody
    /// else did.
    pub(crate) fn free_large(&self, process: ProcessSlot, head: GranuleIdx) -> bool {
        let (first, _) = Self::chunk_of(head);
        let entry = self.chunk(first);
        {
            let _guard = self.lock_source();
            let seen = self.entry(head);
            if seen.kind() != Kind::Large || !matches!(entry.usage(), Use::LargeHead(_)) {
                return false;
            }
            // It is this process's to give back, also if it dies on the way.
            let bytes = self.large_span(first) as u64 * CHUNK as u64;
            if let Some(large) = self.charge(first) {
                large.fetch_sub(bytes, Relaxed);
            }
            entry.set_usage(Use::LargeHead(process));
            self.process(process).large.fetch_add(bytes, Relaxed);
            self.set_entry(head, Entry::FREE);
            self.forget_keeper(head);
        }
        let (span, bytes) = (self.large_span(first), self.large_size(first));
        self.note_touched(first);
        let keep = self.process(process).retained().saturating_mul(2);
        let count = bytes.div_ceil(CHUNK) as u32;
        if bytes > keep {
            self.purge_chunks(first, count);
        }
        self.give_up_large(first, span);
        if self.resident_free_chunks() > keep {
            self.purge_all_but(first, count, keep);
        }
        true
    }

    /// Makes a large block `size` bytes long where it lies: within its chunks, or taking free ones
    /// behind it. False where that cannot be; then the block is as large as before.
    pub(crate) fn resize_large(&self, head: GranuleIdx, size: usize) -> bool {
        let (first, _) = Self::chunk_of(head);
        let entry = self.chunk(first);
        let (old, span) = (self.large_size(first), self.large_span(first));
        let Some(bytes) = align_up(size, PAGE) else { return false };
        let count = bytes.div_ceil(CHUNK).max(1);
        // The last chunk of a damaged heap's block may be one that is not all there.
        if first.0 as usize * CHUNK + bytes > self.data().end {
            return false;
        }
        if count > span as usize {
            let _guard = self.lock_source();
            let extra = count - span as usize;
            let from = ChunkIdx(first.0 + span);
            let Use::LargeHead(owner) = entry.usage() else { return false };
            if owner.0 >= self.process_slots()
                || !self.run_is_free(from, extra)
                || self.within_limit(owner, extra * CHUNK).is_err()
                || self.commit_chunk_entries(from, extra as u32).is_err()
            {
                return false;
            }
            self.claim(from, extra as u32);
            self.write_large(owner, first, count as u32, old);
            if let Some(large) = self.charge(first) {
                large.fetch_add(extra as u64 * CHUNK as u64, Relaxed);
            }
        }
        // Before there is memory, which nobody would give back if the process died here.
        self.mark_dirty(first, 0..bytes);
        if bytes > old && self.commit_large(head, old, bytes).is_err() {
            // A part of it may be there.
            self.trim_large(head, bytes, old, span);
            return false;
        }
        entry.bytes.store(bytes as u64, Relaxed);
        if bytes < old && old - bytes >= CHUNK {
            self.trim_large(head, old, bytes, count as u32);
        }
        true
    }

    /// Gives the chunks past `keep` back, and the memory of everything past the block's bytes.
    fn trim_large(&self, head: GranuleIdx, old: usize, bytes: usize, keep: u32) {
        let (first, _) = Self::chunk_of(head);
        let entry = self.chunk(first);
        let start = first.0 as usize * CHUNK + bytes;
        let end = (first.0 + keep) as usize * CHUNK;
        if end > start {
            // SAFETY: the block's owner gave everything past its new size up.
            unsafe { self.purge(start, end - start) };
        }
        let had = old.div_ceil(CHUNK) as u32;
        if had > keep {
            self.purge_chunks(ChunkIdx(first.0 + keep), had - keep);
        }
        let span = self.large_span(first);
        if span > keep {
            let _guard = self.lock_source();
            entry.span.store(keep, Relaxed);
            if let Some(large) = self.charge(first) {
                large.fetch_sub((span - keep) as u64 * CHUNK as u64, Relaxed);
            }
            self.release(ChunkIdx(first.0 + keep), span - keep);
        }
    }

    /// The process that a large block counts for.
    fn charge(&self, first: ChunkIdx) -> Option<&AtomicU64> {
        match self.chunk(first).usage() {
            Use::LargeHead(slot) if slot.0 < self.process_slots() => {
                Some(&self.process(slot).large)
            }
            _ => None,
        }
    }

    fn write_large(&self, process: ProcessSlot, first: ChunkIdx, span: u32, bytes: usize) {
        let head = self.chunk(first);
        for distance in 1..span {
            let tail = self.chunk(ChunkIdx(first.0 + distance));
            tail.span.store(distance, Relaxed);
            tail.used.store(u64::MAX, Relaxed);
            tail.full.store(0, Relaxed);
            tail.set_usage(Use::LargeTail(process));
        }
        head.span.store(span, Relaxed);
        head.bytes.store(bytes as u64, Relaxed);
        head.used.store(u64::MAX, Relaxed);
        // What is committed of it is not known to whom it belongs next: it may be given back meanwhile.
        head.full.store(0, Relaxed);
        head.set_usage(Use::LargeHead(process));
    }

    pub(super) fn give_up_large(&self, first: ChunkIdx, span: u32) {
        let _guard = self.lock_source();
        if let Some(large) = self.charge(first) {
            large.fetch_sub(span as u64 * CHUNK as u64, Relaxed);
        }
        self.release(first, span);
    }

    fn release(&self, first: ChunkIdx, span: u32) {
        for index in first.0..first.0 + span {
            let entry = self.chunk(ChunkIdx(index));
            entry.used.store(0, Relaxed);
            entry.span.store(0, Relaxed);
            entry.bytes.store(0, Relaxed);
            entry.set_usage(Use::Free);
        }
        self.set_recycled(first, span, true);
    }

    fn commit_large(&self, head: GranuleIdx, from: usize, to: usize) -> Result<()> {
        self.commit_tables(head, 1, false)?;
        if self.must_commit() {
            self.commit(head.0 as usize * GRANULE + from, to - from)?;
        }
        self.advise_huge_block(Self::chunk_of(head).0, to);
        Ok(())
    }

    /// The first of `count` free neighbouring chunks at a multiple of `step`, recycled ones first.
    /// With `whole` set, partial ones (behind the tables, or at the region's end) do not count; with
    /// `warm`, only those that have memory do. Under the lock.
    fn find_chunks(&self, count: u32, step: u32, whole: bool, warm: bool) -> Option<ChunkIdx> {
        let counts = |chunk: ChunkIdx| {
            (!whole || self.is_whole(chunk))
                && (!warm || self.chunk(chunk).dirty.load(Relaxed) != 0)
        };
        let fresh = self.source().fresh.load(Relaxed).min(self.chunk_count());
        let skew = (self.base().addr() / CHUNK) as u64 & (step as u64 - 1);
        let aligned = |index: u32| {
            let at = (index as u64 + skew).next_multiple_of(step as u64) - skew;
            u32::try_from(at).unwrap_or(u32::MAX)
        };
        let mut start = 0;
        let mut length = 0;
        let mut word_index = u32::MAX;
        let mut word = 0;
        let mut index = 0;
        while index < fresh {
            if index / 64 != word_index {
                word_index = index / 64;
                word = self.recycled(word_index).load(Relaxed);
                if word == 0 {
                    length = 0;
                    index = (word_index + 1) * 64;
                    continue;
                }
            }
            if word >> (index % 64) & 1 == 0 || !counts(ChunkIdx(index)) {
                length = 0;
            } else if length == 0 {
                if aligned(index) == index {
                    start = index;
                    length = 1;
                }
            } else {
                length += 1;
            }
            if length == count {
                return Some(ChunkIdx(start));
            }
            index += 1;
        }
        if warm {
            return None;
        }
        let mut at = fresh;
        if whole && at < self.chunk_count() && !self.is_whole(ChunkIdx(at)) {
            at += 1;
        }
        // Free chunks up to the fresh ones and those belong together.
        let at = if length > 0 && at == fresh { start } else { aligned(at) };
        let end = at.checked_add(count)?;
        if end > self.chunk_count() || (whole && !self.is_whole(ChunkIdx(end - 1))) {
            return None;
        }
        if self.chunk_mask(ChunkIdx(at)) == 0 {
            return None;
        }
        Some(ChunkIdx(at))
    }

    pub(super) fn is_whole(&self, index: ChunkIdx) -> bool {
        self.chunk_mask(index) == u64::MAX
    }

    /// Puts right what a process left that died with the lock: owner words are the truth. Chunks
    /// that were taken or given back half-way are free; the tails of a large block are what its
    /// head says; the sums of large blocks are counted anew. Under the lock.
    pub(super) fn repair_source(&self) {
        let fresh = self.source().fresh.load(Relaxed).min(self.chunk_count());
        let first = self.first_granule() / GRANULES_PER_CHUNK as u32;
        let mut tails = first..first;
        for slot in (0..self.process_slots()).map(ProcessSlot) {
            self.process(slot).large.store(0, Relaxed);
        }
        for index in first..fresh {
            let entry = self.chunk(ChunkIdx(index));
            match entry.usage() {
                Use::LargeHead(_) => {
                    let span = self.large_span(ChunkIdx(index));
                    tails = index + 1..(index + span).min(fresh);
                    if let Some(large) = self.charge(ChunkIdx(index)) {
                        large.fetch_add(span as u64 * CHUNK as u64, Relaxed);
                    }
                }
                Use::LargeTail(_) if !tails.contains(&index) => {
                    entry.used.store(0, Relaxed);
                    entry.span.store(0, Relaxed);
                    entry.set_usage(Use::Free);
                }
                _ => {}
            }
            let free = entry.usage() == Use::Free;
            if free {
                // It may have died between giving the memory back and saying so.
                entry.full.store(0, Relaxed);
            }
            self.set_recycled(ChunkIdx(index), 1, free);
        }
    }

    /// Whether `count` chunks from `from` are free and whole. Under the lock.
    fn run_is_free(&self, from: ChunkIdx, count: usize) -> bool {
        let fresh = self.source().fresh.load(Relaxed);
        let Some(end) = (from.0 as usize).checked_add(count) else { return false };
        end <= self.chunk_count() as usize
            && (from.0..end as u32).all(|index| {
                self.is_whole(ChunkIdx(index))
                    && (index >= fresh
                        || self.recycled(index / 64).load(Relaxed) >> (index % 64) & 1 == 1)
            })
    }

    /// Takes chunks out of the free ones: recycled, or past `fresh`. Chunks that a raised `fresh`
    /// skips become recycled ones. Under the lock.
    fn claim(&self, first: ChunkIdx, count: u32) {
        let fresh = self.source().fresh.load(Relaxed);
        let end = first.0 + count;
        if first.0 > fresh {
            self.set_recycled(ChunkIdx(fresh), first.0 - fresh, true);
        }
        if end > fresh {
            self.source().fresh.store(end, Relaxed);
        }
        if first.0 < fresh {
            self.set_recycled(first, end.min(fresh) - first.0, false);
        }
    }

    fn set_recycled(&self, first: ChunkIdx, count: u32, value: bool) {
        let end = first.0 + count;
        let mut at = first.0;
        while at < end {
            let bits = (end - at).min(64 - at % 64);
            let mask = run_mask(at % 64, bits);
            let word = self.recycled(at / 64);
            let seen = word.load(Relaxed);
            word.store(if value { seen | mask } else { seen & !mask }, Relaxed);
            at += bits;
        }
    }

    /// Bytes of all large blocks.
    pub(crate) fn large_bytes(&self) -> usize {
        let fresh = self.source().fresh.load(Relaxed).min(self.chunk_count());
        let first = self.first_granule() / GRANULES_PER_CHUNK as u32;
        (first..fresh)
            .map(ChunkIdx)
            .filter(|&chunk| matches!(self.chunk(chunk).usage(), Use::LargeHead(_)))
            .map(|chunk| self.large_size(chunk))
            .fold(0, usize::saturating_add)
    }

    /// Bytes in free chunks. The first and the last chunk of a region may have fewer than the rest.
    pub(crate) fn available_chunks(&self) -> usize {
        let fresh = self.source().fresh.load(Relaxed).min(self.chunk_count());
        let recycled: u32 = (0..fresh.div_ceil(64))
            .map(|word| self.recycled(word).load(Relaxed).count_ones())
            .sum();
        let all = (recycled as usize + (self.chunk_count() - fresh) as usize) * CHUNK;
        let first = self.first_granule() / GRANULES_PER_CHUNK as u32;
        let last = self.chunk_count() - 1;
        let missing = |index: u32| {
            let free =
                index >= fresh || self.recycled(index / 64).load(Relaxed) >> (index % 64) & 1 == 1;
            if free { self.chunk_mask(ChunkIdx(index)).count_zeros() as usize * GRANULE } else { 0 }
        };
        let partial = missing(first) + if last != first { missing(last) } else { 0 };
        all.saturating_sub(partial)
    }

    fn no_room(&self, requested: usize) -> Error {
        Error::OutOfMemory { requested, available: self.available_chunks() }
    }
}
