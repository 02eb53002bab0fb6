//! Blocks by address: what the granule map says of an offset, whose it is, and how it gets back to its
//! owner.

use super::granule::{BlockId, GranuleIdx, Kind};
use super::layout::{ProcessSlot, RegionHeap};
use super::remote;
use super::slab::Slab;
use crate::base::classes::{CLASSES, ClassId};
use crate::base::units::{CHUNK, GRANULE};
use crate::base::{Error, Result};
use crate::sync::atomic::{Ordering, Ordering::Relaxed};

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
        let list = match self.entry(head).kind() {
            Kind::Run => &block.returned_runs,
            _ => &block.returned,
        };
        let (pending, next) = (&desc.pending, &desc.remote_next);
        let put = remote::announce(pending, next, list, head.0 + 1, self.own.number());
        // The owner may have died, and its lists been looked through, before this came to them. That
        // is for whoever put it there to see to: until then it is announced, and nobody else's. The same
        // goes for the estate, whose list is only looked at while there is something in it.
        let is_late = || owner == self.estate_block() && self.entry(head).owner() != owner;
        if put && (block.holder.load(Ordering::SeqCst) == 0 || is_late()) {
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
}
