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
use super::reserve::Reserve;
use super::slab::{Listing, Slab, uses_area};
use super::spare::Spares;
use crate::base::classes::{CLASSES, ClassId};
use crate::base::units::{GRANULE, PAGE};
use crate::base::{Error, Result};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, Ordering::Relaxed};

/// Blocks that move at a time between a cache and a heap, at most.
pub(crate) const BATCH: usize = 128;

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
    /// The same as `returned`, for runs: whoever needs one leaves the slabs alone, which gather bits
    /// meanwhile. What has changed hands may be on either.
    pub(crate) returned_runs: AtomicU32,
    _pad: [AtomicU64; 6],
}

impl ThreadBlock {
    /// The lists of what others returned.
    pub(super) fn lists(&self) -> [&AtomicU32; 2] {
        [&self.returned, &self.returned_runs]
    }
}

/// One class of a thread heap. Zero in a link is "none", otherwise granule + 1.
#[derive(Clone, Copy, Debug)]
struct HeapBin {
    current: u32,
    partial: u32,
    slabs: u32,
    /// Words of the current slab's bitmap before this one have no free block.
    hint: u32,
    /// The slab that was given up last.
    last: u32,
}

/// The private part of a thread block.
#[derive(Debug)]
pub(crate) struct ThreadHeap {
    id: BlockId,
    process: ProcessSlot,
    bins: [HeapBin; CLASSES],
    /// The deaths that this heap has looked after; see [`ThreadHeap::rescue`].
    deaths: u32,
    /// Granules that the heap ever took for slabs; wraps.
    taken: u32,
    pub(super) spares: Spares,
    pub(super) reserve: Reserve,
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
}

impl ThreadHeap {
    /// The heap of a thread block that `process` holds.
    pub(crate) const fn new(id: BlockId, process: ProcessSlot) -> ThreadHeap {
        let empty = HeapBin { current: 0, partial: 0, slabs: 0, hint: 0, last: 0 };
        let (spares, reserve) = (Spares::NONE, Reserve::NONE);
        ThreadHeap { id, process, bins: [empty; CLASSES], deaths: 0, taken: 0, spares, reserve }
    }
    #[inline]
    pub(crate) fn id(&self) -> BlockId {
        self.id
    }
    #[inline]
    pub(crate) fn process(&self) -> ProcessSlot {
        self.process
    }
    /// Granules that the heap ever took for slabs; wraps.
    #[inline]
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// Takes one block of `class`: the current slab's lowest free one, if it has any.
    #[inline]
    pub(crate) fn allocate_one(&mut self, heap: &RegionHeap, class: ClassId) -> Result<*mut u8> {
        match self.take_one(heap, class).or_else(|| self.take_fresh(heap, class)) {
            Some(offset) => Ok(heap.base().wrapping_add(offset)),
            None => self.allocate_slow(heap, class),
        }
    }

    /// The offset of the current slab's next block that was never handed out, where it is committed and
    /// none is free.
    #[inline]
    fn take_fresh(&mut self, heap: &RegionHeap, class: ClassId) -> Option<usize> {
        let bin = self.bins.get(class.index())?;
        if bin.current == 0 {
            return None;
        }
        let slab = Slab::new(heap, GranuleIdx(bin.current - 1), class);
        let block = slab.take_fresh()?;
        Some(slab.offset_of(block))
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
        let (mut looked, mut collected) = (false, false);
        // Slabs of a sound list have free blocks, all of them; a damaged one ends some time.
        let mut patience = heap.granules();
        loop {
            let bin = self.bins[class.index()];
            if bin.current != 0 {
                let slab = Slab::new(heap, GranuleIdx(bin.current - 1), class);
                // Before memory that nobody has touched, what others returned.
                if !looked
                    && slab.would_reach_further(out.len() as u32)
                    && heap.block(self.id).returned.load(Relaxed) != 0
                {
                    looked = true;
                    self.collect_from(heap, |block| &block.returned);
                    continue;
                }
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
                self.collect_from(heap, |block| &block.returned);
                if self.bins[class.index()].partial == 0 && self.reserve.is_empty() {
                    // Before more is asked for, runs as well.
                    self.collect(heap);
                }
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
        if let Some(head) = self.take_reserved(heap, class) {
            Slab::new(heap, head, class).set_listing(Listing::Current);
            let bin = &mut self.bins[class.index()];
            (bin.current, bin.hint) = (head.0 + 1, 0);
            return Ok(());
        }
        let granules = class.slab_granules();
        // Where it was before, it has the pages that the class needs, and no others.
        let last = self.last_slab(class);
        let again = last.and_then(|head| heap.take_run_again(self.process, head, granules));
        let taken = match again {
            Some(taken) => taken,
            None => heap.take_run(self.process, granules, 1, 0)?,
        };
        if let Err(error) = heap.commit_tables(taken.first, granules, uses_area(class)) {
            heap.return_untouched(self.process, taken, granules);
            return Err(error);
        }
        let slab = Slab::new(heap, taken.first, class);
        slab.init(taken.committed, taken.zeroed);
        heap.forget_dead_announcer(taken.first);
        slab.set_listing(Listing::Current);
        // One block must be possible, or the slab is of no use: find out before it counts.
        if taken.committed < class.size() as u32 {
            let first =
                (class.size().max(2 * PAGE)).next_multiple_of(PAGE).min(slab.bytes() as usize);
            if let Err(error) = heap.commit(taken.first.0 as usize * GRANULE, first) {
                // A part of it may be there.
                heap.return_run(self.process, taken.first, granules, taken.committed);
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
        self.taken = self.taken.wrapping_add(granules);
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
        self.reserve_or_release(heap, slab);
    }

    /// Counts a slab of a class in.
    pub(super) fn note_slab(&mut self, class: ClassId) {
        self.bins[class.index()].slabs += 1;
    }

    /// Counts a slab of a class out.
    pub(super) fn note_no_slab(&mut self, class: ClassId, head: GranuleIdx) {
        let bin = &mut self.bins[class.index()];
        bin.slabs = bin.slabs.saturating_sub(1);
        bin.last = head.0 + 1;
    }

    /// The slab of a class that was counted out last.
    pub(super) fn last_slab(&self, class: ClassId) -> Option<GranuleIdx> {
        Some(GranuleIdx(self.bins[class.index()].last.checked_sub(1)?))
    }

    pub(super) fn release(&mut self, heap: &RegionHeap, slab: &Slab<'_>) {
        let granules = slab.class.slab_granules();
        for distance in 0..granules {
            heap.set_entry(GranuleIdx(slab.head.0 + distance), Entry::FREE);
        }
        self.note_no_slab(slab.class, slab.head);
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
        // Before the lists are taken: what the dead announced is on them.
        let deaths = heap.source().deaths.load(Ordering::Acquire);
        for list in heap.block(self.id).lists() {
            self.take_in(heap, list);
        }
        if deaths != self.deaths {
            self.deaths = deaths;
            self.rescue(heap);
        }
    }

    /// Takes in what is on one of the lists; after a death, everything.
    pub(super) fn collect_from(
        &mut self,
        heap: &RegionHeap,
        list: impl FnOnce(&ThreadBlock) -> &AtomicU32,
    ) {
        if heap.source().deaths.load(Ordering::Acquire) == self.deaths {
            self.take_in(heap, list(heap.block(self.id)));
        } else {
            self.collect(heap);
        }
    }

    fn take_in(&mut self, heap: &RegionHeap, list: &AtomicU32) {
        let mut at = heap.take_returned(list);
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
        self.give_up_reserve(heap, usize::MAX);
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

/// For tests: a heap in memory of its own, and a thread heap of it that nobody uses yet.
#[cfg(all(test, not(loom)))]
pub(super) fn with_thread_heap(work: impl FnOnce(&RegionHeap, ThreadHeap)) {
    use super::layout::TableSizes;
    use super::liveness::Joining;
    use crate::base::units::MIB;
    use crate::region::{Backend, PosixMmap, RegionOptions};

    let region = PosixMmap::create("", &RegionOptions::new().capacity(64 * MIB)).unwrap();
    let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
    let process = heap.register(Joining { max_blocks: 1, ..Joining::default() }).unwrap();
    let thread = ThreadHeap::new(heap.take_block(process).unwrap(), process);
    work(&heap, thread);
}
