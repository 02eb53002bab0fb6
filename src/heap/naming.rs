//! A block on its way to a name: nobody's for good once it has one, and nobody's loss if it never gets it.
//!
//! What is given a name must outlive whoever names it, and what has a name must be there. Two stores,
//! one in the keeper table and one in the directory, cannot both be the first; so the heap's header
//! says which block is on its way, and the block's keeper says that it is:
//!
//! ```text
//! namer, under the directory's lock            who dies behind it leaves
//!     naming := block                     (1)  its own block, which goes with it
//!     keeper := NAMING                    (2)  a block that whoever comes next frees
//!     the name: one store                 (3)  a block that has its name
//!     keeper := nobody
//!     naming := 0
//! ```
//!
//! Whoever comes next is the next to take the directory's lock, or to reap. It looks whether there is
//! a name, and finishes what was begun or takes it back. That can be done again at any point: a block
//! that is freed, or has another keeper, is none of its business any more.
//!
//! A name is an odd number in a word of the directory, the stamp; of the directory itself, which gets
//! to be known in the same manner, it is the header's word that says where it lies.
#![allow(unsafe_code)] // reads the stamp of a name

use super::block::Block;
use super::keeper::Keeper;
use super::layout::{ProcessSlot, RegionHeap};
use crate::base::Result;
use crate::sync::atomic::{AtomicU64, Ordering, Ordering::Relaxed};
use crate::sync::shm_lock::ShmGuard;

/// How long a reaper sleeps at most for the lock of a directory, in nanoseconds: once.
const ONE_SLEEP: u64 = 1;

impl RegionHeap {
    /// Takes the lock of the directory of named roots, in which a change is one store, and sees to
    /// what a dead namer left.
    pub(crate) fn lock_roots(&self, own: ProcessSlot) -> ShmGuard<'_> {
        let lock = &self.source().roots_lock;
        let guard = lock.lock_or_inherit(self.holder(), |who| self.is_dead(who)).0;
        self.settle_naming(own);
        guard
    }

    /// The same for a reaper: not if somebody who lives has the lock, for that one does it.
    pub(super) fn look_after_naming(&self, own: ProcessSlot) {
        let source = self.source();
        if source.naming.load(Relaxed) == 0 {
            return;
        }
        let dead = |who| self.is_dead(who);
        if let Some(_guard) = source.roots_lock.lock_within(ONE_SLEEP, self.holder(), dead) {
            self.settle_naming(own);
        }
    }

    /// The block at `offset` is about to get a name: an odd number in the word at `stamp`, an offset in
    /// the directory; or, with 0, the block becomes the directory. Under the directory's lock.
    ///
    /// Errors as of [`set_keeper`](Self::set_keeper); then nothing was begun.
    pub(crate) fn begin_naming(&self, offset: usize, block: Block, stamp: u64) -> Result<()> {
        let source = self.source();
        source.naming_stamp.store(stamp, Relaxed);
        source.naming.store(offset as u64, Ordering::SeqCst);
        let begun = self.set_keeper(offset, block, Keeper::Naming);
        if begun.is_err() {
            source.naming.store(0, Ordering::SeqCst);
        }
        begun
    }

    /// The block has its name. Under the directory's lock.
    pub(crate) fn end_naming(&self, offset: usize) {
        self.give_to_nobody(offset);
        self.source().naming.store(0, Ordering::Release);
    }

    /// Finishes or takes back what a namer began that is not there any more.
    fn settle_naming(&self, own: ProcessSlot) {
        let source = self.source();
        let at = source.naming.load(Ordering::Acquire);
        if at == 0 {
            return;
        }
        let offset = usize::try_from(at).unwrap_or(usize::MAX);
        if let Ok(block) = self.find_block(offset)
            && self.check_live(block).is_ok()
            && self.is_being_named(offset, block)
        {
            if self.has_name(at) {
                self.give_to_nobody(offset);
            } else {
                self.free_found(own, block);
            }
        }
        source.naming.store(0, Ordering::Release);
    }

    /// Whether the block at `at` got the name that it was to get.
    fn has_name(&self, at: u64) -> bool {
        let source = self.source();
        let directory = source.roots.load(Ordering::Acquire);
        let stamp = source.naming_stamp.load(Relaxed);
        if stamp == 0 {
            return directory == at;
        }
        let within = |block| {
            let end = directory.saturating_add(self.block_size(block) as u64);
            (directory..end.saturating_sub(7)).contains(&stamp) && stamp.is_multiple_of(8)
        };
        let offset = usize::try_from(directory).unwrap_or(usize::MAX);
        if !self.find_block(offset).is_ok_and(within) {
            return false;
        }
        let place = self.base().wrapping_add(stamp as usize).cast::<AtomicU64>();
        // SAFETY: aligned, as bases are to pages, and inside a block of the region: that of the
        // directory, which is made of atomics. Any bits will do.
        unsafe { &*place }.load(Ordering::Acquire) & 1 == 1
    }

    /// Frees a block for whoever it belonged to.
    pub(super) fn free_found(&self, own: ProcessSlot, block: Block) {
        match block {
            Block::Small { head, class, index, owner } => {
                self.return_block(head, class, owner, index);
            }
            Block::Run { head, owner, .. } => {
                self.return_foreign_run(head, owner);
            }
            Block::Large { head } => {
                self.free_large(own, head);
            }
        }
    }
}
