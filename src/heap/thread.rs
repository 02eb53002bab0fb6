//! Thread blocks and thread heaps: what one thread allocates from.
//!
//! A **thread block** is the shared part: an entry of the region's thread table that says which
//! process holds it and where others announce returned blocks. Slabs and runs carry its id in the
//! granule map.
//!
//! A **thread heap** is the private part, in the memory of the process that holds the block: for
//! every class the current slab and the list of partial ones. The lists link descriptors in the
//! region by granule index; heads and counters are private, because they can be rebuilt.
//!
//! ```text
//! ThreadHeap.bins[class]:  current -> slab     partial -> slab <-> slab <-> slab
//! full slabs are in no list; a block that comes back puts them on the partial list
//! ```
//!
//! One thread at a time uses a heap. Blocks move in batches: a thread cache is refilled with
//! [`ThreadHeap::allocate_batch`] and flushed with [`ThreadHeap::free_group`] for the heap's own
//! slabs and [`RegionHeap::free_remote`] for everybody else's.

use super::granule::{BlockId, Entry, GranuleIdx, Kind};
use super::layout::{ProcessSlot, RegionHeap};
use super::remote;
use super::slab::{Listing, Slab, uses_area};
use super::spare::Spares;
use crate::base::classes::{CLASSES, ClassId};
use crate::base::units::{CHUNK, GRANULE, GRANULES_PER_CHUNK, PAGE};
use crate::base::{Error, Result};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, Ordering::Relaxed};

/// Blocks that move at a time between a cache and a heap, at most.
pub(crate) const BATCH: usize = 128;

/// Runs up to this size are committed when they are handed out.
const COMMIT_AHEAD: usize = 4 * GRANULE;

/// One entry of the thread table.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct ThreadBlock {
    /// Process slot + 1 of the holder; 0 is free.
    pub(crate) holder: AtomicU32,
    /// Granule + 1 of the first slab with remote frees; see `remote`.
    pub(crate) returned: AtomicU32,
    /// 1 while no thread uses the block's heap: what is returned to it waits for somebody to look.
    pub(crate) idle: AtomicU32,
    _pad0: AtomicU32,
    _pad: [AtomicU64; 6],
}

/// One class of a thread heap. Zero in a link is "none", otherwise granule + 1.
#[derive(Clone, Copy, Debug)]
struct HeapBin {
    current: u32,
    partial: u32,
    slabs: u32,
    /// Words of the current slab's bitmap before this one have no free block.
    hint: u32,
}

/// The private part of a thread block.
#[derive(Debug)]
pub(crate) struct ThreadHeap {
    id: BlockId,
    process: ProcessSlot,
    bins: [HeapBin; CLASSES],
    /// The deaths that this heap has looked after; see [`ThreadHeap::rescue`].
    deaths: u32,
    pub(super) spares: Spares,
}

/// What a block is, as the granule map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Block `index` of the slab at `head`.
    Small { head: GranuleIdx, class: ClassId, index: u32, owner: BlockId },
    /// A run.
    Run { head: GranuleIdx, granules: u32, owner: BlockId },
    /// Whole chunks.
    Large { head: GranuleIdx },
}

impl RegionHeap {
    /// Takes a thread block of the region for `process`; where there is none, after a look for those
    /// of dead processes.
    ///
    /// The caller holds no lock of the region.
    pub(crate) fn take_block(&self, process: ProcessSlot) -> Result<BlockId> {
        match self.take_free_block(process) {
            Err(Error::TableFull { .. }) if self.reap(process).processes > 0 => {
                self.take_free_block(process)
            }
            result => result,
        }
    }

    fn take_free_block(&self, process: ProcessSlot) -> Result<BlockId> {
        let owner = self.process(process);
        let full = Error::TableFull { slots: owner.max_blocks.load(Relaxed) as usize };
        if owner.blocks.fetch_add(1, Relaxed) >= owner.max_blocks.load(Relaxed) {
            owner.blocks.fetch_sub(1, Relaxed);
            return Err(full);
        }
        for index in 1..self.block_count() {
            let id = BlockId(index as u16);
            if let Err(error) = self.commit_block(id) {
                owner.blocks.fetch_sub(1, Relaxed);
                return Err(error);
            }
            let block = self.block(id);
            if block.holder.load(Relaxed) == 0
                && block
                    .holder
                    .compare_exchange(0, process.0 + 1, Ordering::Acquire, Relaxed)
                    .is_ok()
            {
                self.source().blocks_high.fetch_max(index + 1, Relaxed);
                return Ok(id);
            }
        }
        owner.blocks.fetch_sub(1, Relaxed);
        Err(full)
    }

    /// Gives a thread block back that was never used.
    pub(crate) fn give_block_back(&self, process: ProcessSlot, id: BlockId) {
        self.block(id).holder.store(0, Ordering::Release);
        self.process(process).blocks.fetch_sub(1, Relaxed);
    }

    /// What lies at `offset`, which may be anything. Only the start of a block that was handed out
    /// is one; free blocks of a slab are told by [`RegionHeap::check_live`].
    #[inline(always)]
    pub(crate) fn find_block(&self, offset: usize) -> Result<Block> {
        let wrong = Error::NotABlock { offset: offset as u64 };
        let granule = offset / GRANULE;
        if granule >= self.granules() as usize {
            return Err(Error::OffsetOutOfRange {
                offset: offset as u64,
                length: self.region().len() as u64,
            });
        }
        let granule = GranuleIdx(granule as u32);
        if granule.0 < self.first_granule() {
            return Err(wrong);
        }
        let entry = self.entry(granule);
        let owner = entry.owner();
        match entry.kind() {
            Kind::Free => Err(wrong),
            Kind::Slab => {
                if entry.class_index() >= CLASSES || entry.distance() > granule.0 {
                    return Err(wrong);
                }
                let head = GranuleIdx(granule.0 - entry.distance());
                let class = ClassId::new(entry.class_index());
                let at = (offset - head.0 as usize * GRANULE) as u32;
                let end = head.0 + class.slab_granules();
                if at >= class.slab_granules() * GRANULE as u32 || end > self.granules() {
                    return Err(wrong);
                }
                let index = class.block_of(at);
                if index >= class.blocks() || index * class.size() as u32 != at {
                    return Err(wrong);
                }
                Ok(Block::Small { head, class, index, owner })
            }
            Kind::Run => {
                if entry.distance() != 0 || !offset.is_multiple_of(GRANULE) {
                    return Err(wrong);
                }
                match self.run_granules(granule) {
                    0 => Err(wrong),
                    granules => Ok(Block::Run { head: granule, granules, owner }),
                }
            }
            Kind::Large => {
                if !offset.is_multiple_of(CHUNK) {
                    return Err(wrong);
                }
                Ok(Block::Large { head: granule })
            }
        }
    }

    /// Granules of the run that begins at `head`: 1 to [`MAX_RUN`](super::process::MAX_RUN), all in its
    /// chunk and in the region; 0 where the descriptor says anything else.
    #[inline]
    pub(crate) fn run_granules(&self, head: GranuleIdx) -> u32 {
        let granules = self.desc(head).run_granules.load(Relaxed);
        let (_, bit) = Self::chunk_of(head);
        let most = (GRANULES_PER_CHUNK as u32 - bit).min(super::process::MAX_RUN);
        if granules > most || head.0 + granules > self.granules() { 0 } else { granules }
    }

    /// The slab block at `offset`, if it is one of the thread block `owner`: what
    /// [`find_block`](Self::find_block) says, for the case that is asked for most.
    #[inline(always)]
    pub(crate) fn find_own(
        &self,
        offset: usize,
        owner: BlockId,
    ) -> Option<(GranuleIdx, ClassId, u32)> {
        let granule = offset / GRANULE;
        if granule >= self.granules() as usize {
            return None;
        }
        let entry = self.entry(GranuleIdx(granule as u32));
        if !entry.is_slab_of(owner) || entry.class_index() >= CLASSES {
            return None;
        }
        let class = ClassId::new(entry.class_index());
        let head = (granule as u32).checked_sub(entry.distance())?;
        let at = (offset - head as usize * GRANULE) as u32;
        let index = class.block_of(at);
        let sound = index * class.size() as u32 == at
            && index < class.blocks()
            && head >= self.first_granule()
            && head + class.slab_granules() <= self.granules();
        sound.then_some((GranuleIdx(head), class, index))
    }

    /// Bytes that a block can hold.
    #[inline]
    pub(crate) fn block_size(&self, block: Block) -> usize {
        match block {
            Block::Small { class, .. } => class.size(),
            // What is not committed must not be touched, if only to be copied.
            Block::Run { head, granules, .. } => {
                let committed = self.desc(head).committed.load(Relaxed) as usize;
                committed.min(granules as usize * GRANULE)
            }
            Block::Large { head } => self.large_size(Self::chunk_of(head).0),
        }
    }

    /// Refuses blocks that are free already, or that another process has returned.
    pub(crate) fn check_live(&self, block: Block) -> Result<()> {
        let (free, offset) = match block {
            Block::Small { head, class, index, .. } => (
                Slab::new(self, head, class).is_free(index),
                head.0 as u64 * GRANULE as u64 + index as u64 * class.size() as u64,
            ),
            Block::Run { head, .. } => {
                (!self.desc(head).is_run_live(), head.0 as u64 * GRANULE as u64)
            }
            Block::Large { .. } => (false, 0),
        };
        if free { Err(Error::DoubleFree { offset }) } else { Ok(()) }
    }

    /// Returns blocks of one slab that another heap owns: bits of `mask` are blocks of the 64 from
    /// `word * 64`. False where one of them was returned before.
    pub(crate) fn free_remote(
        &self,
        head: GranuleIdx,
        class: ClassId,
        owner: BlockId,
        word: usize,
        mask: u64,
    ) -> bool {
        let slab = Slab::new(self, head, class);
        let before = slab.remote_word(word).fetch_or(mask, Ordering::SeqCst);
        self.announce(head, owner);
        before & mask == 0
    }

    /// Returns one block, if it is handed out: it is in neither bitmap, and was handed out once. False
    /// where it is not.
    #[inline]
    pub(crate) fn return_block(
        &self,
        head: GranuleIdx,
        class: ClassId,
        owner: BlockId,
        index: u32,
    ) -> bool {
        let slab = Slab::new(self, head, class);
        let returned = slab.return_live(index);
        if returned {
            self.announce(head, owner);
        }
        returned
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
        if let Err(error) = self.commit_run(taken.first, size) {
            desc.run_granules.store(0, Relaxed);
            self.return_untouched(process, taken, count);
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

    /// Puts a slab or a run on the list of its owner; see `remote`.
    #[inline]
    pub(super) fn announce(&self, head: GranuleIdx, owner: BlockId) {
        // Mostly it is announced already: then nothing but the line with the bits is touched.
        if self.desc(head).pending.load(Ordering::SeqCst) == 0 {
            self.put_on_list(head, owner);
        }
    }

    #[inline(never)]
    fn put_on_list(&self, head: GranuleIdx, owner: BlockId) {
        let (desc, block) = (self.desc(head), self.block(owner));
        let (next, list) = (&desc.remote_next, &block.returned);
        let put = remote::announce(&desc.pending, next, list, head.0 + 1, self.own.number());
        // The owner may have died, and its lists been looked through, before this came to them. That
        // is for whoever put it there to see to: until then it is announced, and nobody else's.
        if put && block.holder.load(Ordering::SeqCst) == 0 {
            self.drain(owner);
        }
    }

    /// The thread block that the block at `offset` belongs to; block 0, nobody's, if there is none.
    pub(crate) fn owner_of(&self, offset: usize) -> BlockId {
        let granule = (offset / GRANULE).min(self.granules() as usize - 1);
        self.entry(GranuleIdx(granule as u32)).owner()
    }

    /// Whether the thread block `id` is `process`'s.
    #[inline]
    pub(crate) fn is_held_by(&self, id: BlockId, process: ProcessSlot) -> bool {
        self.block(id).holder.load(Relaxed) == process.0 + 1
    }

    /// Whether the block at `offset` is `process`'s own, and was not handed over nor are others of its
    /// slab: nobody but the process itself can come to free it.
    #[inline]
    pub(crate) fn is_plainly_of(&self, offset: usize, process: ProcessSlot) -> bool {
        let granule = (offset / GRANULE).min(self.granules() as usize - 1) as u32;
        let entry = self.entry(GranuleIdx(granule));
        let head = GranuleIdx(granule.saturating_sub(entry.distance()));
        self.is_held_by(entry.owner(), process) && !self.desc(head).is_kept()
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

impl ThreadHeap {
    /// The heap of a thread block that `process` holds.
    pub(crate) const fn new(id: BlockId, process: ProcessSlot) -> ThreadHeap {
        let empty = HeapBin { current: 0, partial: 0, slabs: 0, hint: 0 };
        ThreadHeap { id, process, bins: [empty; CLASSES], deaths: 0, spares: Spares::NONE }
    }
    #[inline]
    pub(crate) fn id(&self) -> BlockId {
        self.id
    }
    #[inline]
    pub(crate) fn process(&self) -> ProcessSlot {
        self.process
    }

    /// Takes one block of `class`: the current slab's lowest free one, if it has any.
    #[inline]
    pub(crate) fn allocate_one(&mut self, heap: &RegionHeap, class: ClassId) -> Result<*mut u8> {
        match self.take_one(heap, class) {
            Some(offset) => Ok(heap.base().wrapping_add(offset)),
            None => self.allocate_slow(heap, class),
        }
    }

    /// The offset of the current slab's lowest free block.
    #[inline(always)]
    pub(crate) fn take_one(&mut self, heap: &RegionHeap, class: ClassId) -> Option<usize> {
        let bin = self.bins.get_mut(class.index())?;
        if bin.current == 0 {
            return None;
        }
        let slab = Slab::new(heap, GranuleIdx(bin.current - 1), class);
        let block = slab.take_one(&mut bin.hint)?;
        Some(slab.offset_of(block))
    }

    #[cold]
    fn allocate_slow(&mut self, heap: &RegionHeap, class: ClassId) -> Result<*mut u8> {
        let mut out = [core::ptr::null_mut()];
        self.allocate_batch(heap, class, &mut out)?;
        Ok(out[0])
    }

    /// Frees a block of one of this heap's own slabs, if it is handed out. False where it is not.
    #[inline(always)]
    pub(crate) fn free_live(
        &mut self,
        heap: &RegionHeap,
        head: GranuleIdx,
        class: ClassId,
        index: u32,
    ) -> bool {
        let slab = Slab::new(heap, head, class);
        if slab.desc.is_kept() {
            return self.free_kept(heap, head, class, index);
        }
        let freed = slab.free_live(index);
        if freed {
            match slab.listing() {
                Listing::Current => {
                    let bin = &mut self.bins[class.index()];
                    bin.hint = bin.hint.min(index / 64);
                }
                // Full once more, or empty: there is something to do.
                Listing::Partial if !slab.is_empty() => {}
                _ => self.after_last_free(heap, head, class),
            }
        }
        freed
    }

    #[cold]
    #[inline(never)]
    fn free_kept(
        &mut self,
        heap: &RegionHeap,
        head: GranuleIdx,
        class: ClassId,
        index: u32,
    ) -> bool {
        !Slab::new(heap, head, class).is_free(index) && self.free_local(heap, head, class, index)
    }

    #[inline(never)]
    fn after_last_free(&mut self, heap: &RegionHeap, head: GranuleIdx, class: ClassId) {
        self.after_free(heap, &Slab::new(heap, head, class), 0);
    }

    /// Takes up to `out.len()` blocks of `class`, as addresses: a stack whose top, the last of those
    /// it returns the number of, has the lowest address. At least one, or an error.
    pub(crate) fn allocate_batch(
        &mut self,
        heap: &RegionHeap,
        class: ClassId,
        out: &mut [*mut u8],
    ) -> Result<usize> {
        let mut collected = false;
        // Slabs of a sound list have free blocks, all of them; a damaged one ends some time.
        let mut patience = heap.granules();
        loop {
            let bin = self.bins[class.index()];
            if bin.current != 0 {
                let slab = Slab::new(heap, GranuleIdx(bin.current - 1), class);
                let got = Self::take(heap, &slab, out, bin.slabs);
                if got > 0 {
                    return Ok(got);
                }
                if slab.fresh() < class.blocks() {
                    return self.without_commit(heap, &slab, out);
                }
                slab.set_listing(Listing::Full);
                self.bins[class.index()].current = 0;
            }
            let partial = self.bins[class.index()].partial;
            if partial != 0 && patience > 0 {
                patience -= 1;
                let slab = Slab::new(heap, GranuleIdx(partial - 1), class);
                self.unlist(heap, &slab);
                slab.set_listing(Listing::Current);
                self.bins[class.index()].current = partial;
                self.bins[class.index()].hint = 0;
            } else if !collected {
                collected = true;
                self.collect(heap);
            } else {
                self.new_slab(heap, class)?;
            }
        }
    }

    /// The system has no memory for more of the current slab: blocks that came back to others of
    /// its class will do.
    #[cold]
    fn without_commit(
        &mut self,
        heap: &RegionHeap,
        current: &Slab<'_>,
        out: &mut [*mut u8],
    ) -> Result<usize> {
        let class = current.class;
        self.collect(heap);
        for slab in Self::listed(heap, class, self.bins[class.index()].partial) {
            let got = slab.take_free(heap.granule_addr(slab.head), out);
            if got > 0 {
                out.copy_within(out.len() - got.., 0);
                return Ok(got);
            }
        }
        let got = current.take_free(heap.granule_addr(current.head), out);
        if got == 0 {
            return Err(Error::OutOfMemory { requested: class.size(), available: 0 });
        }
        out.copy_within(out.len() - got.., 0);
        Ok(got)
    }

    /// Takes one block of `class` that is known to be zero, if there is one at hand.
    pub(crate) fn allocate_fresh(
        &mut self,
        heap: &RegionHeap,
        class: ClassId,
    ) -> Result<Option<*mut u8>> {
        let bin = self.bins[class.index()];
        if bin.current == 0 {
            return Ok(None);
        }
        let slab = Slab::new(heap, GranuleIdx(bin.current - 1), class);
        if !slab.desc.is_zeroed() {
            return Ok(None);
        }
        let mut out = [core::ptr::null_mut()];
        Ok((Self::extend(heap, &slab, &mut out, bin.slabs) == 1).then_some(out[0]))
    }

    /// Blocks of `slab` that are free, then blocks that were never handed out; lowest last.
    fn take(heap: &RegionHeap, slab: &Slab<'_>, out: &mut [*mut u8], slabs: u32) -> usize {
        let wanted = out.len();
        let mut got = slab.take_free(heap.granule_addr(slab.head), out);
        if got < wanted {
            got += Self::extend(heap, slab, &mut out[..wanted - got], slabs);
            out.copy_within(wanted - got.., 0);
        }
        got
    }

    /// Blocks of `slab` that were never handed out, committed as far as they go. Fills `out` from
    /// its end.
    fn extend(heap: &RegionHeap, slab: &Slab<'_>, out: &mut [*mut u8], slabs: u32) -> usize {
        let fresh = slab.fresh();
        let size = slab.class.size() as u32;
        let mut count = (slab.class.blocks() - fresh).min(out.len() as u32);
        if count == 0 {
            return 0;
        }
        let committed = slab.desc.committed.load(Relaxed);
        let end = (fresh + count) * size;
        if end > committed {
            // As much again as there is, and more at once where the class has many slabs already.
            let least = if slabs > 1 { GRANULE as u32 } else { 2 * PAGE as u32 };
            let goal = (committed + committed.max(least)).max(end).min(slab.bytes());
            let goal = goal.next_multiple_of(PAGE as u32);
            let at = slab.head.0 as usize * GRANULE + committed as usize;
            if heap.commit(at, (goal - committed) as usize).is_ok() {
                slab.desc.committed.store(goal, Relaxed);
            } else {
                count = (committed / size).saturating_sub(fresh);
            }
        }
        let base = heap.granule_addr(slab.head);
        for (index, place) in out.iter_mut().rev().take(count as usize).enumerate() {
            *place = base.wrapping_add((fresh as usize + index) * size as usize);
        }
        slab.desc.fresh.store(fresh + count, Relaxed);
        count as usize
    }

    fn new_slab(&mut self, heap: &RegionHeap, class: ClassId) -> Result<()> {
        let granules = class.slab_granules();
        let taken = heap.take_run(self.process, granules, 1, 0)?;
        if let Err(error) = heap.commit_tables(taken.first, granules, uses_area(class)) {
            heap.return_untouched(self.process, taken, granules);
            return Err(error);
        }
        let slab = Slab::new(heap, taken.first, class);
        slab.init(taken.committed, taken.zeroed);
        slab.set_listing(Listing::Current);
        // One block must be possible, or the slab is of no use: find out before it counts.
        if taken.committed < class.size() as u32 {
            let first =
                (class.size().max(2 * PAGE)).next_multiple_of(PAGE).min(slab.bytes() as usize);
            if let Err(error) = heap.commit(taken.first.0 as usize * GRANULE, first) {
                heap.return_untouched(self.process, taken, granules);
                return Err(error);
            }
            slab.desc.committed.store(taken.committed.max(first as u32), Relaxed);
        }
        for distance in (0..granules).rev() {
            let entry = Entry::slab(self.id, class, distance);
            heap.set_entry(GranuleIdx(taken.first.0 + distance), entry);
        }
        let bytes = granules as u64 * GRANULE as u64;
        heap.process(self.process).in_slabs.fetch_add(bytes, Relaxed);
        let bin = &mut self.bins[class.index()];
        bin.current = taken.first.0 + 1;
        bin.hint = 0;
        bin.slabs += 1;
        Ok(())
    }

    /// Frees a block of one of this heap's own slabs. False where it was free already.
    #[inline]
    pub(crate) fn free_local(
        &mut self,
        heap: &RegionHeap,
        head: GranuleIdx,
        class: ClassId,
        index: u32,
    ) -> bool {
        let slab = Slab::new(heap, head, class);
        if slab.desc.is_kept() {
            heap.forget_keepers(&slab, index as usize / 64, 1 << (index % 64));
        }
        if !slab.free_block(index) {
            return false;
        }
        self.after_free(heap, &slab, index / 64);
        true
    }

    /// Frees blocks of one of this heap's own slabs: as many of the first ones as are in it.
    /// Returns how many that is, and how many of those were refused.
    #[inline]
    pub(crate) fn free_group(
        &mut self,
        heap: &RegionHeap,
        head: GranuleIdx,
        class: ClassId,
        blocks: &[*mut u8],
    ) -> (usize, u32) {
        let slab = Slab::new(heap, head, class);
        if slab.desc.is_kept() {
            heap.forget_all_keepers(&slab, blocks);
        }
        let (seen, refused) = slab.free_blocks(heap.granule_addr(head), blocks);
        if seen as u32 > refused {
            self.after_free(heap, &slab, 0);
        }
        (seen, refused)
    }

    /// Lists a slab that got blocks back, in word `word` of its bitmap or later ones, or gives it up
    /// when it has all of them.
    #[inline]
    pub(super) fn after_free(&mut self, heap: &RegionHeap, slab: &Slab<'_>, word: u32) {
        match slab.listing() {
            Listing::Current => {
                let bin = &mut self.bins[slab.class.index()];
                bin.hint = bin.hint.min(word);
            }
            Listing::Full => {
                self.list(heap, slab);
                if slab.is_empty() {
                    self.retire(heap, slab);
                }
            }
            Listing::Partial if slab.is_empty() => self.retire(heap, slab),
            _ => {}
        }
    }

    /// An empty partial slab: kept where it is the class's only one in reserve.
    fn retire(&mut self, heap: &RegionHeap, slab: &Slab<'_>) {
        let bin = self.bins[slab.class.index()];
        if bin.current == 0 && bin.partial == slab.head.0 + 1 && slab.desc.next.load(Relaxed) == 0 {
            return;
        }
        self.unlist(heap, slab);
        self.release(heap, slab);
    }

    fn release(&mut self, heap: &RegionHeap, slab: &Slab<'_>) {
        let granules = slab.class.slab_granules();
        for distance in 0..granules {
            heap.set_entry(GranuleIdx(slab.head.0 + distance), Entry::FREE);
        }
        let bin = &mut self.bins[slab.class.index()];
        bin.slabs = bin.slabs.saturating_sub(1);
        let bytes = granules as u64 * GRANULE as u64;
        heap.process(self.process).in_slabs.fetch_sub(bytes, Relaxed);
        let committed = slab.desc.committed.load(Relaxed);
        heap.return_run(self.process, slab.head, granules, committed);
    }

    fn list(&mut self, heap: &RegionHeap, slab: &Slab<'_>) {
        let bin = &mut self.bins[slab.class.index()];
        slab.desc.next.store(bin.partial, Relaxed);
        slab.desc.prev.store(0, Relaxed);
        if bin.partial != 0 {
            heap.desc(GranuleIdx(bin.partial - 1)).prev.store(slab.head.0 + 1, Relaxed);
        }
        bin.partial = slab.head.0 + 1;
        slab.set_listing(Listing::Partial);
    }

    fn unlist(&mut self, heap: &RegionHeap, slab: &Slab<'_>) {
        let granules = slab.class.slab_granules();
        let next = heap.slab_at(slab.desc.next.load(Relaxed), granules);
        let prev = heap.slab_at(slab.desc.prev.load(Relaxed), granules);
        let link = |head: Option<GranuleIdx>| head.map_or(0, |head| head.0 + 1);
        let bin = &mut self.bins[slab.class.index()];
        match prev {
            Some(prev) if bin.partial != slab.head.0 + 1 => {
                heap.desc(prev).next.store(link(next), Relaxed);
            }
            _ => bin.partial = link(next),
        }
        if let Some(next) = next {
            heap.desc(next).prev.store(link(prev), Relaxed);
        }
        slab.set_listing(Listing::Full);
    }

    /// The slabs of a class from a link on. A damaged list ends, too.
    fn listed(heap: &RegionHeap, class: ClassId, first: u32) -> impl Iterator<Item = Slab<'_>> {
        let mut at = first;
        (0..heap.granules()).map_while(move |_| {
            let slab = Slab::new(heap, heap.slab_at(at, class.slab_granules())?, class);
            at = slab.desc.next.load(Relaxed);
            Some(slab)
        })
    }

    /// Takes in what others returned to this heap's slabs and runs.
    pub(crate) fn collect(&mut self, heap: &RegionHeap) {
        // Before the list is taken: what the dead announced is on it.
        let deaths = heap.source().deaths.load(Ordering::Acquire);
        let block = heap.block(self.id);
        let mut at = remote::take_list(&block.returned);
        // A sound list has every granule at most once; a damaged one must end too.
        let mut left = heap.granules();
        while at != 0 && at <= heap.granules() && left > 0 {
            left -= 1;
            let head = GranuleIdx(at - 1);
            let desc = heap.desc(head);
            at = remote::unlink(&desc.pending, &desc.remote_next);
            let entry = heap.entry(head);
            if entry.owner() != self.id || entry.distance() != 0 {
                Self::pass_on(heap, head, entry);
                continue;
            }
            match entry.kind() {
                Kind::Slab if entry.class_index() < CLASSES => {
                    let slab = Slab::new(heap, head, ClassId::new(entry.class_index()));
                    let (back, refused) = slab.collect(|word, mask| {
                        heap.forget_keepers(&slab, word, mask);
                    });
                    if refused > 0 {
                        heap.source().refused_frees.fetch_add(refused as u64, Relaxed);
                    }
                    if back > 0 {
                        self.after_free(heap, &slab, 0);
                    }
                }
                Kind::Run => self.free_returned(heap, head),
                _ => {}
            }
        }
        if deaths != self.deaths {
            self.deaths = deaths;
            self.rescue(heap);
        }
    }

    /// Takes a run of this heap's back that somebody returned. Its keeper goes first: with a keeper, and
    /// live, it would be a block in use if the process died in between.
    pub(super) fn free_returned(&mut self, heap: &RegionHeap, head: GranuleIdx) {
        let desc = heap.desc(head);
        if !desc.is_run_returned() {
            return;
        }
        heap.forget_keeper(head);
        if desc.take_returned_run() {
            self.keep_run(heap, head);
        } else {
            heap.source().refused_frees.fetch_add(1, Relaxed);
        }
    }

    /// A slab that changed hands while a freer was on its way to this heap's list.
    pub(super) fn pass_on(heap: &RegionHeap, head: GranuleIdx, entry: Entry) {
        let desc = heap.desc(head);
        let waiting = match entry.kind() {
            Kind::Slab if entry.class_index() < CLASSES && entry.distance() == 0 => {
                let slab = Slab::new(heap, head, ClassId::new(entry.class_index()));
                (0..slab.words()).any(|word| slab.remote_word(word).load(Ordering::SeqCst) != 0)
            }
            Kind::Run => entry.distance() == 0 && desc.is_run_returned(),
            _ => false,
        };
        if waiting {
            heap.announce(head, entry.owner());
        }
    }

    /// Gives up everything that is not in use: for a heap whose thread has ended.
    pub(crate) fn tidy(&mut self, heap: &RegionHeap) {
        self.collect(heap);
        self.give_up_spares(heap);
        for index in 0..CLASSES {
            let class = ClassId::new(index);
            let current = self.bins[index].current;
            if current != 0 {
                let slab = Slab::new(heap, GranuleIdx(current - 1), class);
                self.bins[index].current = 0;
                if slab.is_empty() {
                    self.release(heap, &slab);
                } else if slab.free_count() > 0 || slab.fresh() < class.blocks() {
                    self.list(heap, &slab);
                } else {
                    slab.set_listing(Listing::Full);
                }
            }
            for slab in Self::listed(heap, class, self.bins[index].partial) {
                if slab.is_empty() {
                    self.unlist(heap, &slab);
                    self.release(heap, &slab);
                }
            }
        }
    }

    /// The slabs in this heap's lists, for `verify`: calls `visit` with each class's current slab
    /// (true) and partial ones (false).
    pub(crate) fn for_each_listed(
        &self,
        heap: &RegionHeap,
        mut visit: impl FnMut(ClassId, GranuleIdx, bool),
    ) {
        for (index, bin) in self.bins.iter().enumerate() {
            let class = ClassId::new(index);
            if bin.current != 0 {
                visit(class, GranuleIdx(bin.current - 1), true);
            }
            for slab in Self::listed(heap, class, bin.partial) {
                visit(class, slab.head, false);
            }
        }
    }
}
