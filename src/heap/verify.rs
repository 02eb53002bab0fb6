//! Walks every invariant of a region.
//!
//! For tests, for debugging, and for whoever has to trust a region: after any sequence of
//! operations on a quiet heap the walk finds the granule map, the slabs' bitmaps, the chunk table
//! and all lists and counters to agree, and every byte accounted for. The walk reads only; on a
//! heap that is in use it may report what is merely under way.

use core::fmt;

use super::chunk::Use;
use super::granule::{GranuleIdx, Kind};
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use super::process::{MAX_RUN, SLOT_LIVE, SLOT_OTHERS};
use super::slab::{Listing, Slab};
use super::thread::ThreadHeap;
use crate::base::classes::{CLASSES, ClassId};
use crate::base::units::{CHUNK, GRANULE, GRANULES_PER_CHUNK};
use crate::sync::atomic::Ordering::Relaxed;

/// The first violated invariant that [`verify`](crate::ThreadLocalAllocator::verify) found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which invariant.
    pub what: &'static str,
    /// Where: an offset in the region, or an index where the text says so.
    pub at: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.what, self.at)
    }
}

impl core::error::Error for Fault {}

/// What a region's bytes are used for. The byte counts add up to `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapReport {
    /// Length of the region, rounded down to granules, in bytes.
    pub total: usize,
    /// Headers and tables.
    pub tables: usize,
    /// Slab blocks that are handed out (or wait in a thread's cache).
    pub small_in_use: usize,
    /// Slab blocks that are free, with what a slab has left over at its end.
    pub small_free: usize,
    /// Runs: blocks of 32 KiB to 2 MiB.
    pub runs: usize,
    /// Blocks of whole chunks, with the room they hold for growth.
    pub large: usize,
    /// Free granules in chunks that processes own, with the runs that threads keep or have been given back.
    pub free_granules: usize,
    /// Free chunks.
    pub free_chunks: usize,
    /// How many slabs there are.
    pub slabs: usize,
    /// How many blocks of any kind are handed out.
    pub blocks_in_use: usize,
}

impl HeapReport {
    /// Bytes in blocks that are handed out.
    pub fn in_use(&self) -> usize {
        self.small_in_use + self.runs + self.large
    }
}

macro_rules! ensure {
    ($condition:expr, $what:expr, $at:expr) => {
        if !$condition {
            return Err(Fault { what: $what, at: $at as u64 });
        }
    };
}

/// Walks the region. `heaps` are the thread heaps whose lists are to be checked as well.
pub(crate) fn verify<'a>(
    heap: &RegionHeap,
    heaps: impl Iterator<Item = &'a ThreadHeap> + Clone,
) -> Result<HeapReport, Fault> {
    let mut report = HeapReport {
        total: heap.granules() as usize * GRANULE,
        tables: heap.first_granule() as usize * GRANULE,
        ..HeapReport::default()
    };
    let first_chunk = heap.first_granule() / GRANULES_PER_CHUNK as u32;
    let fresh = heap.source().fresh.load(Relaxed);
    ensure!(fresh <= heap.chunk_count() && fresh >= first_chunk, "fresh chunk index", fresh);
    let mut index = first_chunk;
    while index < heap.chunk_count() {
        let chunk = ChunkIdx(index);
        index += if index >= fresh {
            report.free_chunks += heap.chunk_mask(chunk).count_ones() as usize * GRANULE;
            1
        } else {
            walk_chunk(heap, chunk, &mut report)?
        };
    }
    for slot in 0..heap.process_slots() {
        walk_process(heap, ProcessSlot(slot))?;
    }
    for thread in heaps.clone() {
        walk_lists(heap, thread)?;
    }
    let sum = report.tables
        + report.small_in_use
        + report.small_free
        + report.runs
        + report.large
        + report.free_granules
        + report.free_chunks;
    ensure!(sum == report.total, "bytes unaccounted for", sum.abs_diff(report.total));
    Ok(report)
}

fn walk_chunk(heap: &RegionHeap, chunk: ChunkIdx, report: &mut HeapReport) -> Result<u32, Fault> {
    let entry = heap.chunk(chunk);
    let at = chunk.0 as usize * CHUNK;
    let mask = heap.chunk_mask(chunk);
    let recycled = heap.recycled(chunk.0 / 64).load(Relaxed) >> (chunk.0 % 64) & 1 == 1;
    // On a full file system even to read what was never written would be a signal. Entries that
    // cannot be read are no slab's or run's: those were committed.
    let first = GranuleIdx(chunk.0 * GRANULES_PER_CHUNK as u32);
    let there = heap.commit_map(first, (heap.granules() - first.0).min(GRANULES_PER_CHUNK as u32));
    let is_free = |granule| there.is_err() || heap.entry(granule).kind() == Kind::Free;
    match entry.usage() {
        Use::Free => {
            ensure!(recycled, "free chunk is missing from the recycled ones", at);
            report.free_chunks += mask.count_ones() as usize * GRANULE;
            for bit in 0..GRANULES_PER_CHUNK as u32 {
                if mask >> bit & 1 == 1 {
                    let granule = GranuleIdx(chunk.0 * GRANULES_PER_CHUNK as u32 + bit);
                    ensure!(is_free(granule), "granule of a free chunk", at);
                }
            }
            Ok(1)
        }
        Use::LargeHead(_) => {
            ensure!(!recycled, "used chunk among the recycled ones", at);
            let span = entry.span();
            ensure!(span >= 1 && span <= heap.chunk_count() - chunk.0, "span of a large block", at);
            ensure!(entry.bytes() <= span as usize * CHUNK, "size of a large block", at);
            let head = GranuleIdx(chunk.0 * GRANULES_PER_CHUNK as u32);
            ensure!(heap.entry(head).kind() == Kind::Large, "map entry of a large block", at);
            for distance in 1..span {
                let tail = heap.chunk(ChunkIdx(chunk.0 + distance));
                ensure!(matches!(tail.usage(), Use::LargeTail(_)), "tail of a large block", at);
                ensure!(tail.span() == distance, "tail distance of a large block", at);
            }
            report.large += span as usize * CHUNK;
            report.blocks_in_use += 1;
            Ok(span)
        }
        Use::LargeTail(_) => Err(Fault { what: "tail without a large block", at: at as u64 }),
        Use::Pages(slot) => {
            ensure!(!recycled, "used chunk among the recycled ones", at);
            ensure!(slot.0 <= heap.estate().0, "owner of a chunk", at);
            let state = heap.process(slot).state.load(Relaxed);
            ensure!(
                [SLOT_LIVE, SLOT_OTHERS].contains(&state),
                "owner of a chunk is no process",
                at
            );
            let used = entry.used.load(Relaxed);
            ensure!(used & !mask == !mask, "granules outside the chunk are not marked used", at);
            let mut bit = 0;
            while bit < GRANULES_PER_CHUNK as u32 {
                if mask >> bit & 1 == 0 {
                    bit += 1;
                    continue;
                }
                let granule = GranuleIdx(chunk.0 * GRANULES_PER_CHUNK as u32 + bit);
                if used >> bit & 1 == 0 {
                    ensure!(is_free(granule), "map entry of a free granule", granule.0);
                    report.free_granules += GRANULE;
                    bit += 1;
                } else {
                    bit += walk_granules(heap, granule, used >> bit, report)?;
                }
            }
            let listed = entry.bucket.load(Relaxed) as usize;
            // Nobody takes from the estate.
            let listable = heap.list_of(chunk).filter(|_| slot != heap.estate());
            let right = listable.map_or(0, |list| list + 1);
            ensure!(listed == right, "chunk is on the wrong list", at);
            Ok(1)
        }
    }
}

fn walk_granules(
    heap: &RegionHeap,
    head: GranuleIdx,
    used: u64,
    report: &mut HeapReport,
) -> Result<u32, Fault> {
    let entry = heap.entry(head);
    let at = head.0 as usize * GRANULE;
    let kind = entry.kind();
    ensure!(kind == Kind::Slab || kind == Kind::Run, "map entry of a used granule", at);
    ensure!(entry.distance() == 0, "slab or run without a head", at);
    let holder = heap.block(entry.owner()).holder.load(Relaxed);
    ensure!(entry.owner().0 != 0 && holder != 0, "slab or run without an owner", at);
    let count = if kind == Kind::Slab {
        ensure!(entry.class_index() < CLASSES, "class of a slab", at);
        let class = ClassId::new(entry.class_index());
        walk_slab(&Slab::new(heap, head, class), report)?;
        class.slab_granules()
    } else {
        let count = heap.desc(head).run_granules.load(Relaxed);
        ensure!((1..=MAX_RUN).contains(&count), "length of a run", at);
        let desc = heap.desc(head);
        if desc.is_run_live() {
            report.runs += count as usize * GRANULE;
            report.blocks_in_use += 1;
        } else {
            report.free_granules += count as usize * GRANULE;
        }
        ensure!(
            !desc.is_run_returned() || desc.pending.load(Relaxed) != 0,
            "returned run that nobody announced",
            at
        );
        count
    };
    ensure!(used.trailing_ones() >= count, "slab or run over free granules", at);
    for distance in 1..count {
        let tail = heap.entry(GranuleIdx(head.0 + distance));
        ensure!(
            tail.kind() == kind && tail.distance() == distance && tail.owner() == entry.owner(),
            "tail of a slab or run",
            at + distance as usize * GRANULE
        );
    }
    Ok(count)
}

fn walk_slab(slab: &Slab<'_>, report: &mut HeapReport) -> Result<(), Fault> {
    let at = slab.head.0 as usize * GRANULE;
    let class = slab.class;
    let fresh = slab.desc.fresh.load(Relaxed);
    ensure!(fresh <= class.blocks(), "blocks handed out of a slab", at);
    let committed = slab.desc.committed.load(Relaxed);
    ensure!(
        committed as usize >= fresh as usize * class.size() && committed <= slab.bytes(),
        "committed bytes of a slab",
        at
    );
    let (mut free, mut returned) = (0, 0);
    for word in 0..slab.words() {
        let local = slab.local_word(word).load(Relaxed);
        let remote = slab.remote_word(word).load(Relaxed);
        ensure!(local & remote == 0, "block free twice", at);
        let first = word as u32 * 64;
        let handed_out = fresh.saturating_sub(first).min(64);
        let beyond = if handed_out == 64 { 0 } else { u64::MAX << handed_out };
        ensure!((local | remote) & beyond == 0, "free bit of a block never handed out", at);
        free += local.count_ones();
        returned += remote.count_ones();
    }
    ensure!(free == slab.free_count(), "count of free blocks", at);
    ensure!(
        returned == 0 || slab.desc.pending.load(Relaxed) != 0,
        "returned blocks that nobody announced",
        at
    );
    let in_use = (fresh - free - returned) as usize;
    report.small_in_use += in_use * class.size();
    report.small_free += slab.bytes() as usize - in_use * class.size();
    report.blocks_in_use += in_use;
    report.slabs += 1;
    if slab.listing() == Listing::Full {
        ensure!(free == 0 && fresh == class.blocks(), "slab with free blocks is on no list", at);
    }
    Ok(())
}

fn walk_process(heap: &RegionHeap, slot: ProcessSlot) -> Result<(), Fault> {
    let block = heap.process(slot);
    if block.state.load(Relaxed) != SLOT_LIVE {
        return Ok(());
    }
    let mut listed = 0u64;
    for list in 0..7 {
        let mut at = heap.list_head(slot, list);
        let mut before = 0;
        let mut left = heap.chunk_count();
        while let Some(chunk) = at {
            ensure!(left > 0, "endless list of chunks", chunk.0);
            left -= 1;
            let entry = heap.chunk(chunk);
            ensure!(entry.usage() == Use::Pages(slot), "chunk on another's list", chunk.0);
            ensure!(entry.bucket.load(Relaxed) as usize == list + 1, "list of a chunk", chunk.0);
            ensure!(entry.prev.load(Relaxed) == before, "back link of a chunk", chunk.0);
            listed += 1;
            before = chunk.0 + 1;
            let next = entry.next.load(Relaxed);
            ensure!(next <= heap.chunk_count(), "link of a chunk", chunk.0);
            at = if next == 0 { None } else { Some(ChunkIdx(next - 1)) };
        }
    }
    let fresh = heap.source().fresh.load(Relaxed).min(heap.chunk_count());
    let (mut owned, mut available, mut in_runs, mut in_slabs) = (0u64, 0u64, 0u64, 0u64);
    for index in 0..fresh {
        let entry = heap.chunk(ChunkIdx(index));
        match entry.usage() {
            Use::Pages(owner) if owner == slot => {
                owned += CHUNK as u64;
                available += heap.list_of(ChunkIdx(index)).is_some() as u64;
                let used = entry.used.load(Relaxed) & heap.chunk_mask(ChunkIdx(index));
                for bit in (0..GRANULES_PER_CHUNK as u32).filter(|bit| used >> bit & 1 == 1) {
                    let granule = GranuleIdx(index * GRANULES_PER_CHUNK as u32 + bit);
                    let granule_entry = heap.entry(granule);
                    match granule_entry.kind() {
                        _ if heap.is_estates(granule_entry) => {
                            ensure!(
                                block.adopted.load(Relaxed) & entry.adopted.load(Relaxed) == 1,
                                "the estate's in a chunk that nobody adopted",
                                granule.0
                            );
                        }
                        Kind::Slab => in_slabs += GRANULE as u64,
                        Kind::Run => in_runs += GRANULE as u64,
                        _ => {}
                    }
                }
            }
            Use::LargeHead(owner) if owner == slot => owned += entry.span() as u64 * CHUNK as u64,
            _ => {}
        }
    }
    ensure!(listed == available, "chunks with free granules that are on no list", slot.0);
    ensure!(owned == block.owns(), "bytes that a process owns", slot.0);
    ensure!(in_runs == block.in_runs.load(Relaxed), "bytes in a process's runs", slot.0);
    ensure!(in_slabs == block.in_slabs.load(Relaxed), "bytes in a process's slabs", slot.0);
    Ok(())
}

fn walk_lists(heap: &RegionHeap, thread: &ThreadHeap) -> Result<(), Fault> {
    let mut fault = None;
    thread.for_each_listed(heap, |class, head, current| {
        let entry = heap.entry(head);
        let slab = Slab::new(heap, head, class);
        let wanted = if current { Listing::Current } else { Listing::Partial };
        let sound = entry.kind() == Kind::Slab
            && entry.owner() == thread.id()
            && entry.class_index() == class.index()
            && slab.listing() == wanted;
        if !sound && fault.is_none() {
            fault = Some(Fault { what: "slab on the wrong list", at: head.0 as u64 });
        }
    });
    fault.map_or(Ok(()), Err)?;
    ensure!(thread.spares_are_sound(heap), "runs that a thread keeps", thread.id().0);
    Ok(())
}
