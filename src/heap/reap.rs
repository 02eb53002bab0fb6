//! What becomes of a process's things when it is not there any more.
//!
//! A process goes in one of three ways, and all that it owned is settled in the same manner:
//!
//! | it | its own blocks | what it handed over | what was handed to it |
//! |---|---|---|---|
//! | died | freed | stays | freed |
//! | detached (`shm_detach`) | freed | stays | freed |
//! | left (dropped its handle) | stay | stays | stays |
//!
//! What stays moves to the **estate**: a process slot and a thread block of the region's own, in whose slabs
//! nobody allocates. Blocks in it are freed like any others, by bits in the remote bitmap;
//! whoever reaps next looks what has become free and gives it back. Chunks of the estate with room to
//! spare are there for whoever needs one; see `adopt`.
//!
//! Settling reads the truth alone: chunk owner words, `used` words, granule entries, the slabs'
//! bitmaps, keepers. It has to, since lists and counters of a process that died are in any state. In
//! the order in which the steps become true, each by one store:
//!
//! ```text
//! slot is DYING                         from now on it is whoever reaps that may touch its things
//! for each of its chunks:
//!     entries without a head: free      an allocation or a free that was under way
//!     slab, run: nothing stays: entries free, head first
//!                something does: entries name the estate's block
//!     used := what is left
//!     chunk := free, or the estate's
//! blocks elsewhere that it kept: freed, or nobody's
//! thread blocks: free
//! slot: free
//! ```
//!
//! Whoever does this may die, too: every step can be done again, and the slot is DYING until all
//! are done. One at a time does it, under the reaper's lock, which is the first in the order of
//! locks; it takes the source's lock, and no process's.
//!
//! Others run on meanwhile. They may free blocks in the dead one's slabs (bits in a bitmap that
//! settling merges, or the next to reap), may announce slabs to its thread blocks (which are
//! drained), and may free its large blocks (which then are theirs, under the source's lock).
//!
//! What a process that died in the middle of freeing *others'* blocks left: bits that nobody
//! announced, and slabs marked as announced that are on no list. The first are announced here, the
//! second found by their owners after each death ([`ThreadHeap::rescue`]).

use super::block::Block;
use super::chunk::Use;
use super::granule::{BlockId, Entry, GranuleIdx, Kind};
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use super::process::{SLOT_DYING, SLOT_LIVE};
use super::remote;
use super::slab::Slab;
use super::thread::ThreadHeap;
use crate::base::Result;
use crate::base::bits::run_mask;
use crate::base::classes::{CLASSES, ClassId};
use crate::base::units::{CHUNK, GRANULE, GRANULES_PER_CHUNK};
use crate::sync::atomic::{AtomicU32, Ordering, Ordering::Relaxed};

/// Whoever needs memory looks for the dead at most this often.
const LOOK_INTERVAL_NS: u64 = 100_000_000;
/// Chunks that the dead leave stay resident for reuse up to this many bytes in all.
const KEEP_RESIDENT: u64 = 64 << 20;

/// So many announced slabs are looked at in search of one.
const LOOK_AT: u32 = 4096;

/// What stays of the blocks that a process owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    All,
    /// Those that it handed over.
    HandedOver,
}

/// What reaping brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reaped {
    /// Dead processes, whose slots are free now.
    pub(crate) processes: usize,
    /// Chunks that became free.
    pub(crate) chunks: usize,
}

impl Reaped {
    pub(crate) fn any(self) -> bool {
        self.processes + self.chunks > 0
    }
}

impl RegionHeap {
    /// Reaps, if there may be somebody to reap and nobody here looked lately. For whoever is about
    /// to take memory.
    #[inline]
    pub(crate) fn reap_now_and_then(&self, own: ProcessSlot) {
        if self.has_company() && self.own.is_time(LOOK_INTERVAL_NS) {
            self.reap(own);
        }
    }

    /// Reclaims what processes that are dead owned, and what became free of the estate.
    ///
    /// The caller holds no lock of the region but its own process's.
    #[cold]
    pub(crate) fn reap(&self, own: ProcessSlot) -> Reaped {
        let estate = self.process(self.estate());
        let nothing =
            || estate.owned.load(Relaxed) == 0 && self.dead_slots(Some(own)).next().is_none();
        if !self.has_company() || nothing() {
            return Reaped::default();
        }
        let _guard = self.lock_reaper();
        let mut reaped = Reaped::default();
        self.look_after_naming(own);
        for slot in self.dead_slots(Some(own)) {
            self.process(slot).state.store(SLOT_DYING, Ordering::SeqCst);
            reaped.chunks += self.settle(slot, Stays::HandedOver);
            self.leave_slot(slot);
            reaped.processes += 1;
        }
        if reaped.processes > 0 {
            self.announce_forgotten();
            self.source().deaths.fetch_add(1, Ordering::Release);
        }
        reaped.chunks += self.sweep_estate();
        if reaped.chunks as u64 * CHUNK as u64 > KEEP_RESIDENT {
            self.purge_recycled();
        }
        reaped
    }

    /// This process goes and is still there to say so. Its threads are done with the region.
    pub(crate) fn leave(&self, own: ProcessSlot, stays: Stays) {
        let guard = self.lock_reaper();
        let block = self.process(own);
        if block.owns() == 0 && block.keeps.load(Ordering::SeqCst) == 0 {
            // It knows its own account: no chunk is looked at.
            self.settle_blocks(own);
        } else {
            self.settle(own, stays);
            self.sweep_estate();
            self.purge_recycled();
        }
        // A lock whose holder has no slot would be taken over.
        drop(guard);
        self.leave_slot(own);
    }

    /// Lays the estate out in a new region.
    pub(super) fn found_estate(&self) -> Result<()> {
        self.commit_block(self.estate_block())?;
        self.process(self.estate()).state.store(SLOT_LIVE, Relaxed);
        self.block(self.estate_block()).holder.store(self.estate().0 + 1, Relaxed);
        Ok(())
    }

    /// Settles all that `gone` owns. Returns how many chunks became free. Under the reaper's lock.
    fn settle(&self, gone: ProcessSlot, stays: Stays) -> usize {
        // If it died with this lock, what it protects is put right now.
        drop(self.lock_source());
        for id in self.blocks_of(gone) {
            self.drain(id);
        }
        let estate = self.process(self.estate());
        if estate.owned.load(Relaxed) == 0 {
            // Before there is anything in it: a sign for whoever comes after a death.
            estate.owned.store(1, Relaxed);
        }
        let mut freed = 0;
        self.for_each_chunk(|chunk, usage| match usage {
            Use::Pages(owner) if owner == gone => {
                freed += self.settle_chunk(chunk, gone, stays) as usize;
            }
            Use::LargeHead(owner) if owner == gone => {
                freed += self.settle_large(chunk, gone, stays);
            }
            _ => {}
        });
        match stays {
            _ if self.process(gone).keeps.load(Ordering::SeqCst) == 0 => {}
            Stays::HandedOver => self.free_kept_by(gone),
            // Whoever gets the slot next has nothing to do with them.
            Stays::All => {
                self.for_each_kept_by(gone, |offset, _| self.leave_to_nobody(offset, gone))
            }
        }
        self.settle_blocks(gone);
        freed
    }

    /// The thread blocks of `gone` are free.
    fn settle_blocks(&self, gone: ProcessSlot) {
        for id in self.blocks_of(gone) {
            let block = self.block(id);
            block.idle.store(0, Relaxed);
            block.holder.store(0, Ordering::SeqCst);
            // Announced by somebody who still saw it held.
            self.drain(id);
        }
    }

    fn blocks_of(&self, process: ProcessSlot) -> impl Iterator<Item = BlockId> {
        let high = self.source().blocks_high.load(Ordering::Acquire).min(self.block_count());
        (1..high)
            .map(|id| BlockId(id as u16))
            .filter(move |&id| self.block(id).holder.load(Ordering::Acquire) == process.0 + 1)
    }

    /// Gives back what became free of the estate. Under the reaper's lock.
    fn sweep_estate(&self) -> usize {
        let estate = self.process(self.estate());
        if estate.owned.load(Relaxed) == 0 {
            return 0;
        }
        self.drain(self.estate_block());
        let (mut freed, mut left) = (0, 0);
        self.for_each_chunk(|chunk, usage| match usage {
            Use::Pages(owner) if owner == self.estate() => {
                let free = self.settle_chunk(chunk, owner, Stays::All);
                freed += free as usize;
                left += !free as u64;
            }
            Use::LargeHead(owner) if owner == self.estate() => {
                let free = self.settle_large(chunk, owner, Stays::All);
                freed += free;
                left += (free == 0) as u64;
            }
            _ => {}
        });
        estate.owned.store(left * CHUNK as u64, Relaxed);
        // Announced by somebody who still saw them the estate's.
        self.drain(self.estate_block());
        freed
    }

    /// All chunks that were ever used, each with its use when it is looked at.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (ChunkIdx, Use)> {
        let fresh = self.source().fresh.load(Ordering::Acquire).min(self.chunk_count());
        (self.first_granule() / GRANULES_PER_CHUNK as u32..fresh)
            .map(|index| (ChunkIdx(index), self.chunk(ChunkIdx(index)).usage()))
    }

    pub(super) fn for_each_chunk(&self, mut visit: impl FnMut(ChunkIdx, Use)) {
        self.chunks().for_each(|(chunk, usage)| visit(chunk, usage));
    }

    /// One chunk of granule runs; true where it is free now.
    fn settle_chunk(&self, chunk: ChunkIdx, gone: ProcessSlot, stays: Stays) -> bool {
        let entry = self.chunk(chunk);
        let mask = self.chunk_mask(chunk);
        let used = entry.used.load(Ordering::Acquire) & mask;
        let mut left = 0u64;
        let mut bit = 0;
        while bit < GRANULES_PER_CHUNK as u32 {
            let head = GranuleIdx(chunk.0 * GRANULES_PER_CHUNK as u32 + bit);
            let room = (used >> bit).trailing_ones();
            let (count, live) = match room {
                0 => (1, false),
                room => self.settle_head(head, room, gone, stays),
            };
            if live {
                left |= run_mask(bit, count);
            } else if mask >> bit & 1 == 1 {
                for distance in 0..count {
                    let granule = GranuleIdx(head.0 + distance);
                    if self.entry(granule) != Entry::FREE {
                        self.set_entry(granule, Entry::FREE);
                    }
                }
            }
            bit += count;
        }
        // Whether what is free now is committed to its end nobody knows any more.
        entry.full.store(entry.full.load(Relaxed) & left, Relaxed);
        entry.used.store(left | !mask, Ordering::Release);
        if left == 0 {
            self.return_chunk(chunk);
            return true;
        }
        if gone != self.estate() {
            let _guard = self.lock_source();
            entry.bucket.store(0, Relaxed);
            entry.set_usage(Use::Pages(self.estate()));
        }
        false
    }

    /// The slab or run that begins at `head`, with at most `room` granules in use from there on. Gives
    /// how many granules it has (1 where none begins here) and whether anything in it stays.
    pub(super) fn settle_head(
        &self,
        head: GranuleIdx,
        room: u32,
        gone: ProcessSlot,
        stays: Stays,
    ) -> (u32, bool) {
        let entry = self.entry(head);
        let desc = self.desc(head);
        let at = head.0 as usize * GRANULE;
        // What is the estate's already is nobody's to free, in whoever's chunk it lies.
        let stays = if self.is_estates(entry) { Stays::All } else { stays };
        let kept = desc.is_kept();
        let stays = |offset| stays == Stays::All || (kept && self.is_kept_from(offset, gone));
        let (count, live) = match entry.kind() {
            Kind::Slab if entry.distance() == 0 && entry.class_index() < CLASSES => {
                let class = ClassId::new(entry.class_index());
                if class.slab_granules() > room {
                    return (1, false);
                }
                let slab = Slab::new(self, head, class);
                let left = slab.settle(
                    |index| stays(slab.offset_of(index)),
                    |word, mask| self.forget_keepers(&slab, word, mask),
                );
                (class.slab_granules(), left > 0)
            }
            Kind::Run if entry.distance() == 0 => {
                let count = self.run_granules(head);
                if count == 0 || count > room {
                    return (1, false);
                }
                let live = stays(at) && desc.is_run_live();
                if !live {
                    self.forget_keeper(head);
                }
                (count, live)
            }
            _ => return (1, false),
        };
        if live {
            let owner = self.estate_block();
            for distance in (0..count).rev() {
                let own = match entry.kind() {
                    Kind::Slab => Entry::slab(owner, ClassId::new(entry.class_index()), distance),
                    _ => Entry::run(owner, distance),
                };
                self.set_entry(GranuleIdx(head.0 + distance), own);
            }
        }
        self.forget_dead_announcer(head);
        (count, live)
    }

    /// Where a dead process was about to announce what begins at `head`, or to take it off a list that it had
    /// taken, nobody else could announce it any more: from now on somebody can. True where it was so.
    ///
    /// One that is on a list with a dead one's number stays as it is: whoever takes the list sees to it. (It
    /// may be another's list than its owner's: a push may come late.) The exchange cannot go wrong
    /// behind the look: nobody puts a dead one's number in a slab, and whoever takes a list puts its
    /// own in each first. So one that still has the number was on no list, or is found on it.
    #[inline]
    pub(super) fn forget_dead_announcer(&self, head: GranuleIdx) -> bool {
        let number = self.desc(head).pending.load(Ordering::SeqCst);
        number != 0 && self.forget_announcer(head, number)
    }

    #[cold]
    fn forget_announcer(&self, head: GranuleIdx, number: u32) -> bool {
        let pending = &self.desc(head).pending;
        !self.is_number_alive(number)
            && !self.is_on_a_list(head)
            && pending.compare_exchange(number, 0, Ordering::SeqCst, Relaxed).is_ok()
    }

    /// Whether a slab or a run is on the list of any thread block, as far as can be said soon: where more is
    /// announced than that, and in a damaged heap, it counts as being there.
    fn is_on_a_list(&self, head: GranuleIdx) -> bool {
        let high = self.source().blocks_high.load(Ordering::Acquire).min(self.block_count());
        let blocks = (1..high).map(|id| BlockId(id as u16)).chain([self.estate_block()]);
        let mut left = LOOK_AT;
        for list in blocks.flat_map(|id| self.block(id).lists()) {
            let mut at = list.load(Ordering::SeqCst);
            while let Some(here) = self.slab_at(at, 1) {
                if here == head || left == 0 {
                    return true;
                }
                left -= 1;
                at = self.desc(here).remote_next.load(Ordering::Acquire);
            }
        }
        false
    }

    /// Takes a list of what others announced to a thread block; see [`remote::take_list`].
    pub(super) fn take_returned(&self, list: &AtomicU32) -> u32 {
        remote::take_list(list, self.own.number(), self.granules(), |link| {
            let desc = self.desc(self.slab_at(link, 1)?);
            Some((&desc.pending, &desc.remote_next))
        })
    }

    /// A block of whole chunks; gives how many chunks are free now.
    fn settle_large(&self, first: ChunkIdx, gone: ProcessSlot, stays: Stays) -> usize {
        let head = GranuleIdx(first.0 * GRANULES_PER_CHUNK as u32);
        let offset = head.0 as usize * GRANULE;
        let guard = self.lock_source();
        let entry = self.chunk(first);
        if entry.usage() != Use::LargeHead(gone) {
            // Somebody frees it.
            return 0;
        }
        let kept = self.desc(head).is_kept() && self.is_kept_from(offset, gone);
        if self.entry(head).kind() == Kind::Large && (stays == Stays::All || kept) {
            if gone != self.estate() {
                self.set_entry(head, Entry::large(self.estate_block()));
                entry.set_usage(Use::LargeHead(self.estate()));
            }
            return 0;
        }
        self.forget_keeper(head);
        self.set_entry(head, Entry::FREE);
        drop(guard);
        let span = self.large_span(first);
        // It may have died before it said that there is memory.
        self.mark_dirty(first, 0..self.large_size(first));
        self.give_up_large(first, span);
        span as usize
    }

    /// Frees the blocks that were handed over to `gone`, wherever they lie. Large ones count for it until
    /// they are given back.
    fn free_kept_by(&self, gone: ProcessSlot) {
        self.for_each_kept_by(gone, |_, block| self.free_found(gone, block));
    }

    /// Visits the blocks that were handed over to `gone`, with their offsets.
    fn for_each_kept_by(&self, gone: ProcessSlot, mut visit: impl FnMut(usize, Block)) {
        self.for_each_head(|head, entry| {
            if !self.desc(head).is_kept() {
                return;
            }
            let (at, owner) = (head.0 as usize * GRANULE, entry.owner());
            // Handed out first, the dead one's then: its owner forgets the keeper before it hands a block
            // out anew, so what was handed out and afterwards was still the dead one's was never freed.
            match entry.kind() {
                Kind::Slab => {
                    let class = ClassId::new(entry.class_index());
                    let slab = Slab::new(self, head, class);
                    for index in 0..slab.fresh() {
                        let offset = slab.offset_of(index);
                        if !slab.is_free(index) && self.is_kept_by(offset, gone) {
                            visit(offset, Block::Small { head, class, index, owner });
                        }
                    }
                }
                Kind::Run if self.desc(head).is_run_live() && self.is_kept_by(at, gone) => {
                    visit(at, Block::Run { head, granules: self.run_granules(head), owner });
                }
                Kind::Large if self.is_kept_by(at, gone) => visit(at, Block::Large { head }),
                _ => {}
            }
        });
    }

    /// Announces the slabs and runs in which somebody set bits and died.
    fn announce_forgotten(&self) {
        self.for_each_head(|head, entry| {
            let desc = self.desc(head);
            if desc.pending.load(Ordering::SeqCst) != 0 {
                return;
            }
            let waiting = match entry.kind() {
                Kind::Slab => {
                    let slab = Slab::new(self, head, ClassId::new(entry.class_index()));
                    (0..slab.words()).any(|word| slab.remote_word(word).load(Relaxed) != 0)
                }
                Kind::Run => desc.is_run_returned(),
                _ => false,
            };
            if waiting {
                self.announce(head, entry.owner());
            }
        });
    }

    /// Visits all slabs, runs and large blocks of the region.
    pub(super) fn for_each_head(&self, mut visit: impl FnMut(GranuleIdx, Entry)) {
        self.for_each_chunk(|chunk, usage| {
            let first = chunk.0 * GRANULES_PER_CHUNK as u32;
            match usage {
                Use::Pages(_) => {
                    let mask = self.chunk_mask(chunk) & self.chunk(chunk).used.load(Relaxed);
                    let mut left = mask;
                    while left != 0 {
                        let head = GranuleIdx(first + left.trailing_zeros());
                        left &= left - 1;
                        let entry = self.entry(head);
                        let sound = match entry.kind() {
                            Kind::Slab => entry.class_index() < CLASSES,
                            Kind::Run => true,
                            _ => false,
                        };
                        if sound && entry.distance() == 0 {
                            visit(head, entry);
                        }
                    }
                }
                Use::LargeHead(_) => {
                    let entry = self.entry(GranuleIdx(first));
                    if entry.kind() == Kind::Large {
                        visit(GranuleIdx(first), entry);
                    }
                }
                _ => {}
            }
        });
    }

    /// Takes what others announced to a thread block off its lists; what is another's by now is
    /// announced there. The estate's own stays announced where there is something to merge, for whoever
    /// adopted its chunk.
    pub(super) fn drain(&self, id: BlockId) {
        self.block(id).lists().into_iter().for_each(|list| self.drain_list(id, list));
    }

    fn drain_list(&self, id: BlockId, list: &AtomicU32) {
        let mut at = self.take_returned(list);
        let mut left = self.granules();
        while at != 0 && at <= self.granules() && left > 0 {
            left -= 1;
            let head = GranuleIdx(at - 1);
            let desc = self.desc(head);
            at = remote::unlink(&desc.pending, &desc.remote_next);
            let entry = self.entry(head);
            let owner = entry.owner();
            let passes = owner != id || owner == self.estate_block();
            if passes && self.block(owner).holder.load(Ordering::SeqCst) != 0 {
                ThreadHeap::pass_on(self, head, entry);
            }
        }
    }
}

impl ThreadHeap {
    /// After a death: takes in what was returned to this heap's slabs and runs and cannot be
    /// announced, since it is marked as announced by a process that died on the way.
    #[cold]
    pub(super) fn rescue(&mut self, heap: &RegionHeap) {
        let id = self.id();
        heap.for_each_head(|head, entry| {
            if entry.owner() != id || !heap.forget_dead_announcer(head) {
                return;
            }
            match entry.kind() {
                Kind::Slab => {
                    let slab = Slab::new(heap, head, ClassId::new(entry.class_index()));
                    let (back, refused) = slab.collect(|word, mask| {
                        heap.forget_keepers(&slab, word, mask);
                    });
                    heap.source().refused_frees.fetch_add(refused as u64, Relaxed);
                    if back > 0 {
                        self.after_free(heap, &slab, 0);
                    }
                }
                Kind::Run => self.free_returned(heap, head),
                _ => {}
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::layout::TableSizes;
    use super::super::liveness::Joining;
    use super::super::thread::ThreadBlock;
    use super::*;
    use crate::base::classes::class_index;
    use crate::base::units::MIB;
    use crate::region::{Backend, MemfdBackend, Region, RegionOptions};

    /// A process, as the others see one: this one under another number.
    struct Peer {
        heap: RegionHeap,
        slot: ProcessSlot,
        thread: ThreadHeap,
    }

    impl Peer {
        fn new(region: Region, attach: bool) -> Peer {
            let mut heap = if attach {
                RegionHeap::attach(region).unwrap()
            } else {
                RegionHeap::create(region, TableSizes::default()).unwrap()
            };
            let joining = Joining { max_blocks: 4, ..Joining::default() };
            let slot = heap.register(joining).unwrap();
            let thread = ThreadHeap::new(heap.take_block(slot).unwrap(), slot);
            Peer { heap, slot, thread }
        }
        /// Some who have a heap together.
        fn several<const N: usize>() -> [Peer; N] {
            let options = RegionOptions::new().capacity(24 * MIB);
            let region = MemfdBackend::create("", &options).unwrap();
            core::array::from_fn(|index| match index {
                0 => Peer::new(region.clone(), false),
                _ => {
                    let again = Region::attach_token(&region.token().unwrap(), &options).unwrap();
                    Peer::new(again, true)
                }
            })
        }
        /// From now on nobody finds this process, and it does nothing more.
        fn die(&self) {
            self.heap.process(self.slot).start_time.store(1, Relaxed);
        }
        /// Blocks of so many slabs, all that there are: the offsets of each slab's.
        fn slabs(&mut self, count: usize) -> Vec<Vec<usize>> {
            let class = class();
            let slab = |_| {
                let block = |_| self.thread.allocate_one(&self.heap, class).unwrap().addr();
                (0..class.blocks()).map(block).map(|at| at - self.heap.base().addr()).collect()
            };
            (0..count).map(slab).collect()
        }
        fn free(&self, offset: usize) {
            match self.heap.find_block(offset) {
                Ok(Block::Small { head, class, owner, index }) => {
                    assert!(self.heap.return_block(head, class, owner, index));
                }
                other => panic!("{other:?}"),
            }
        }
        /// How many blocks it has in hand after a look at what came back.
        fn collected(&mut self, slabs: &[Vec<usize>]) -> u32 {
            self.thread.collect(&self.heap);
            let free = |slab: &Vec<usize>| self.heap.desc(head(slab[0])).free.load(Relaxed);
            slabs.iter().map(free).sum()
        }
        fn pending(&self, offset: usize) -> &crate::sync::atomic::AtomicU32 {
            &self.heap.desc(head(offset)).pending
        }
        fn returned(&self) -> &ThreadBlock {
            self.heap.block(self.thread.id())
        }
        /// Puts a slab on this one's list, as `freer` does it.
        fn push(&self, offset: usize, freer: &Peer) {
            let desc = self.heap.desc(head(offset));
            let list = &self.returned().returned;
            let number = freer.heap.own.number();
            let link = head(offset).0 + 1;
            assert!(remote::announce(&desc.pending, &desc.remote_next, list, link, number));
        }
    }

    /// Eight blocks of 8 KiB a slab.
    fn class() -> ClassId {
        ClassId::new(class_index(8192))
    }
    fn head(offset: usize) -> GranuleIdx {
        GranuleIdx((offset / GRANULE) as u32)
    }

    /// An owner dies with a list that it took, on which living ones had put slabs: whoever has the place
    /// next hears of what is freed there.
    #[test]
    fn a_list_that_died_with_its_taker() {
        let [mut one, mut two, dead] = Peer::several();
        let mut dead = dead;
        let slabs = dead.slabs(3);
        slabs.iter().for_each(|slab| two.free(slab[0]));
        assert_ne!(dead.heap.take_returned(&dead.returned().returned), 0);
        dead.die();
        assert_eq!(two.heap.reap(two.slot).processes, 1);
        let again = one.slabs(3);
        assert_eq!(again, slabs, "not the same place");
        again.iter().for_each(|slab| two.free(slab[0]));
        assert_eq!(one.collected(&again), 3);
        drop(two.slabs(1));
    }

    /// One dies that was about to announce what is not there any more: neither a slab nor a run that
    /// begins there later is taken for announced.
    #[test]
    fn a_place_that_a_dead_one_was_about_to_announce() {
        let [mut one, two, dead] = Peer::several();
        let place = one.slabs(1)[0][0];
        let [next, run] = [1, 2].map(|granules| place + granules * GRANULE);
        let number = dead.heap.own.number();
        [next, run].iter().for_each(|&at| one.pending(at).store(number, Relaxed));
        dead.die();
        assert_eq!(two.heap.reap(two.slot).processes, 1);
        // Nothing is there, so nobody can have found anything.
        one.thread.collect(&one.heap);
        let slab = one.slabs(1);
        assert_eq!(slab[0][0], next);
        two.free(slab[0][0]);
        assert_eq!(one.collected(&slab), 1);
        let taken = one.thread.allocate_run(&one.heap, GRANULE, 1, 0).unwrap().0;
        assert_eq!(taken, head(run));
        assert!(two.heap.return_foreign_run(taken, one.thread.id()));
        one.thread.collect(&one.heap);
        assert!(!one.heap.desc(taken).is_run_returned());
    }

    /// A slab that changed hands is on its old owner's list still when the one who put it there is
    /// dead. Its new owner leaves it there: the two lists do not become one.
    #[test]
    fn a_late_push_of_a_dead_one() {
        let [mut old, mut new, dead] = Peer::several();
        let slabs = new.slabs(3);
        let others = old.slabs(1);
        // What is behind the slab on the old owner's list, and on the new one's.
        new.free(others[0][0]);
        old.push(slabs[0][0], &dead);
        dead.die();
        assert_eq!(old.heap.reap(old.slot).processes, 1);
        assert_eq!(new.collected(&slabs), 0);
        for slab in &slabs {
            old.free(slab[1]);
        }
        // Both look, in this order: nothing is lost, and nothing has to be freed again to be seen.
        assert_eq!(old.collected(&others), 1);
        assert_eq!(new.collected(&slabs), 3);
        for at in slabs.iter().chain(&others).map(|slab| slab[0]) {
            assert_eq!(old.pending(at).load(Relaxed), 0);
        }
        old.free(slabs[0][2]);
        assert_eq!(new.collected(&slabs), 4);
    }
}
