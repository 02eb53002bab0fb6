//! Who a block belongs to, where that is not the process whose slab it lies in.
//!
//! What a process allocates is its own, and goes with it. A block can be handed over: then the word
//! of its first 32 bytes in the keeper table says whose it is.
//!
//! ```text
//! 0          the process that owns the slab, run or chunk: the usual case
//! slot + 1   the process in that slot, and it goes with that one
//! 65535      nobody: it stays until somebody frees it
//! 65534      nobody yet: it is on its way to a name (see `naming`)
//! ```
//!
//! Invariant: a word that is not 0 belongs to a block that is handed out or on its way back to its
//! owner, and the `KEPT` flag of its slab, run or large block is set. So a block that can be
//! allocated never has a keeper, and only flagged descriptors make anybody look at the table. The words
//! of a whole slab are committed before its flag is set: whoever sees it may read any of them.
//!
//! To hand over is one store. To free is one, too: whoever returns a block to another process's slab
//! leaves the word alone, for if it died between the two, the block would belong to a process that
//! does not know it. The slab's owner clears the word when it takes the block back.
//!
//! Only the one to whom a block belongs may do either, and only at one place at a time: that is the
//! caller's promise, as with any pointer.
//!
//! A process to which anything was ever handed over says so in its slot, before that is so: whoever
//! settles what another one had looks through the whole heap for it, or not at all.
//!
//! Blocks of less than 32 bytes share their words and cannot be handed over.

use super::block::Block;
use super::granule::{GranuleIdx, Kind};
use super::layout::{KEEPER_UNIT, ProcessSlot, RegionHeap};
use super::slab::Slab;
use crate::base::classes::{CLASSES, ClassId};
use crate::base::units::GRANULE;
use crate::base::{Error, Result};
use crate::sync::atomic::Ordering;

/// Nobody's.
const NOBODY: u16 = u16::MAX;
/// On its way to a name.
const NAMING: u16 = u16::MAX - 1;

/// To whom a block goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    Process(ProcessSlot),
    Nobody,
    /// Whoever names it, or finds that its namer died.
    Naming,
}

impl RegionHeap {
    /// Hands the block at `offset` over. [`Error::Unsupported`] for blocks of less than 32 bytes,
    /// and in heaps without keepers.
    pub(crate) fn set_keeper(&self, offset: usize, block: Block, keeper: Keeper) -> Result<()> {
        let (head, granules) = match block {
            Block::Small { class, .. } if class.size() < KEEPER_UNIT => {
                return Err(Error::Unsupported);
            }
            Block::Small { head, class, .. } => (head, class.slab_granules()),
            Block::Run { head, .. } | Block::Large { head } => (head, 1),
        };
        let value = match keeper {
            Keeper::Process(slot) => slot.0 as u16 + 1,
            Keeper::Nobody => NOBODY,
            Keeper::Naming => NAMING,
        };
        if let Keeper::Process(slot) = keeper {
            let keeps = &self.process(slot).keeps;
            if keeps.load(Ordering::Relaxed) == 0 {
                keeps.store(1, Ordering::SeqCst);
            }
        }
        self.write_keeper(offset, head, granules, value)
    }

    /// Makes nobody the keeper of the block at `offset`, which this process was handed just now. Errors
    /// as for [`set_keeper`](Self::set_keeper).
    #[inline]
    pub(crate) fn keep_new(&self, offset: usize) -> Result<()> {
        let granule = GranuleIdx((offset / GRANULE) as u32);
        let entry = self.entry(granule);
        let (head, granules) = match entry.kind() {
            // In a damaged heap the distance may be anything.
            Kind::Slab if entry.class_index() < CLASSES && entry.distance() <= granule.0 => {
                let class = ClassId::new(entry.class_index());
                if class.size() < KEEPER_UNIT {
                    return Err(Error::Unsupported);
                }
                (GranuleIdx(granule.0 - entry.distance()), class.slab_granules())
            }
            Kind::Run | Kind::Large => (granule, 1),
            Kind::Slab | Kind::Free => return Err(Error::NotABlock { offset: offset as u64 }),
        };
        self.write_keeper(offset, head, granules, NOBODY)
    }

    #[inline]
    fn write_keeper(
        &self,
        offset: usize,
        head: GranuleIdx,
        granules: u32,
        value: u16,
    ) -> Result<()> {
        self.commit_keepers(head, granules)?;
        let word = self.keeper(offset).ok_or(Error::Unsupported)?;
        let desc = self.desc(head);
        // Once set, it stays for as long as any block of the slab is out, as this one is.
        if !desc.is_kept() {
            desc.set_kept();
        }
        word.store(value, Ordering::SeqCst);
        Ok(())
    }

    /// Whether the block at `offset`, under a flagged descriptor, is somebody else's than `owner`'s.
    pub(super) fn is_kept_from(&self, offset: usize, owner: ProcessSlot) -> bool {
        self.keeper(offset).is_some_and(|word| {
            let value = word.load(Ordering::SeqCst);
            value != 0 && value != owner.0 as u16 + 1
        })
    }

    /// Whether the block at `offset`, under a flagged descriptor, was handed over to `slot`.
    pub(super) fn is_kept_by(&self, offset: usize, slot: ProcessSlot) -> bool {
        self.keeper(offset).is_some_and(|word| word.load(Ordering::SeqCst) == slot.0 as u16 + 1)
    }

    /// Whether the block at `offset` is nobody's: handed over, or left by a process that is gone.
    pub(crate) fn is_nobodys(&self, offset: usize, block: Block) -> bool {
        let (Block::Small { head, .. } | Block::Run { head, .. } | Block::Large { head }) = block;
        let keeper = match self.keeper(offset) {
            Some(word) if self.desc(head).is_kept() => word.load(Ordering::SeqCst),
            _ => 0,
        };
        match keeper {
            NOBODY => true,
            0 => self.entry(head).owner() == self.estate_block(),
            _ => false,
        }
    }

    /// Whether the block at `offset` is on its way to a name.
    pub(super) fn is_being_named(&self, offset: usize, block: Block) -> bool {
        let (Block::Small { head, .. } | Block::Run { head, .. } | Block::Large { head }) = block;
        self.desc(head).is_kept()
            && self.keeper(offset).is_some_and(|word| word.load(Ordering::SeqCst) == NAMING)
    }

    /// The block at `offset` was on its way to a name, and is nobody's now; if nobody took it meanwhile.
    pub(super) fn give_to_nobody(&self, offset: usize) {
        self.pass_to_nobody(offset, NAMING);
    }

    /// The same for a block of `gone`'s, which leaves what it had where it is.
    pub(super) fn leave_to_nobody(&self, offset: usize, gone: ProcessSlot) {
        self.pass_to_nobody(offset, gone.0 as u16 + 1);
    }

    fn pass_to_nobody(&self, offset: usize, from: u16) {
        if let Some(word) = self.keeper(offset) {
            let _ = word.compare_exchange(from, NOBODY, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// The block at `offset` has no keeper any more: it is about to be freed.
    #[cold]
    pub(super) fn clear_keeper(&self, offset: usize) {
        if let Some(word) = self.keeper(offset)
            && word.load(Ordering::Relaxed) != 0
        {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// The same for a run or a large block.
    #[inline]
    pub(crate) fn forget_keeper(&self, head: GranuleIdx) {
        if self.desc(head).is_kept() {
            self.clear_keeper(head.0 as usize * GRANULE);
        }
    }

    /// The same for the blocks of a slab that the bits of `mask` stand for, from `word * 64` on.
    #[cold]
    pub(super) fn forget_keepers(&self, slab: &Slab<'_>, word: usize, mask: u64) {
        let mut left = mask;
        while left != 0 {
            let index = word * 64 + left.trailing_zeros() as usize;
            left &= left - 1;
            self.clear_keeper(slab.offset_of(index as u32));
        }
    }

    /// The same for those of `blocks` that come first and lie in the slab.
    #[cold]
    pub(super) fn forget_all_keepers(&self, slab: &Slab<'_>, blocks: &[*mut u8]) {
        let base = self.granule_addr(slab.head).addr();
        for block in blocks {
            let at = block.addr().wrapping_sub(base);
            if at >= slab.bytes() as usize {
                break;
            }
            self.clear_keeper(slab.head.0 as usize * GRANULE + at);
        }
    }
}
