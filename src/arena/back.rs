//! Taking back: the end of what is popped, and of scopes.
//!
//! The usual case is short: the top moves, and the block notes how far it was used. What else there
//! may be to do (pages and blocks that go back, bytes to fill or to clear, a scope that was leaked)
//! is in cold functions.
#![allow(unsafe_code)] // gives memory back

use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

use super::block::Block;
use super::options::Zeroing;
use super::{Arena, poison};
use crate::base::{Error, Result};

impl<'m> Arena<'m> {
    /// Takes back everything from `to` on, which must be an address that the top once had and
    /// nothing above which is in use.
    #[inline]
    pub(super) fn rewind(&self, to: *mut u8) {
        if self.is_near(to, self.limit.get()) {
            self.body().current().soil(self.top.get().addr());
            self.note(|trace, options| trace.popped(options, || self.position_of(to.addr())));
            self.top.set(to);
        } else {
            self.rewind_slow(to);
        }
    }

    #[cold]
    #[inline(never)]
    fn rewind_slow(&self, to: *mut u8) {
        let body = self.body();
        let options = &body.options;
        let top = self.farthest().addr();
        body.current().soil(top);
        self.note(|trace, options| trace.popped(options, || self.position_of(to.addr())));
        let mut used_to = top;
        while !body.current().holds(to.addr()) {
            let dropped = body.block.get();
            let Some(before) = body.current().prev.get() else { break };
            self.wipe(body.current().data, used_to);
            body.block.set(before);
            self.drop_block(dropped);
            used_to = body.current().dirty.get();
        }
        let block = body.current();
        self.wipe(to, used_to);
        if block.committed.get() - to.addr() > options.keep {
            let from = to.addr() + options.keep;
            block.decommit_from(from, options.page_size, body.region.as_ref());
        }
        self.reopen(to);
    }

    /// Fills, zeroes or forbids the current block's bytes from `to` to `end`, whatever is asked for.
    fn wipe(&self, to: *mut u8, end: usize) {
        let body = self.body();
        let block = body.current();
        let used = end.min(block.committed.get()).saturating_sub(to.addr());
        poison::allow(to.addr(), used);
        if !block.is_ours() {
            // They stay as they are, and soiled.
        } else if body.options.zeroing == Zeroing::OnPop {
            // SAFETY: bytes of the block past everything in use, which are committed.
            unsafe { poison::clear(to, used) };
            if block.dirty.get() <= end {
                block.dirty.set(block.dirty.get().min(to.addr()));
            }
        } else if body.options.poison {
            // SAFETY: as above.
            unsafe { poison::fill(to, used) };
        }
        poison::forbid(to.addr(), used);
    }

    /// Keeps a block that left the chain as the spare one, or frees it.
    fn drop_block(&self, dropped: NonNull<Block>) {
        let body = self.body();
        // SAFETY: it was the chain's last block, and is live.
        let len = unsafe { dropped.as_ref() }.len;
        let unwanted = match body.spare.get() {
            // SAFETY: the spare block is live.
            Some(spare) if unsafe { spare.as_ref() }.len >= len => Some(dropped),
            old if body.options.keep >= len => {
                body.spare.set(Some(dropped));
                old
            }
            _ => Some(dropped),
        };
        if let Some(block) = unwanted {
            // SAFETY: in no chain, and not the spare one any more.
            unsafe { Block::free(block) };
        }
    }

    /// Empties an arena: all blocks but one are given up. The one that stays is the longest, so
    /// that an arena that is cleared over and over ends up with a block that holds everything.
    pub(super) fn rewind_all(&self) {
        let body = self.body();
        let Some(first) = body.blocks().last().map(|block| block.data) else { return };
        if body.current().prev.get().is_none() {
            return self.rewind(first);
        }
        self.rewind_slow(first);
        if let Some(spare) = body.spare.take() {
            // SAFETY: the spare block is live.
            let block = unsafe { spare.as_ref() };
            if block.len <= body.current().len {
                return body.spare.set(Some(spare));
            }
            // The first block is in the way of a longer one.
            let old = body.block.replace(spare);
            block.prev.set(None);
            block.before.set(0);
            // SAFETY: the old block holds nothing, and is in no chain any more.
            unsafe { Block::free(old) };
            self.reopen(block.data);
        }
    }

    /// Frees all blocks before the current one.
    ///
    /// # Safety
    /// Nobody uses anything in them.
    pub(super) unsafe fn drop_older_blocks(&self) {
        let mut next = self.body().current().prev.take();
        while let Some(block) = next {
            // SAFETY: each was in the chain once, and nobody uses what it held.
            unsafe {
                next = block.as_ref().prev.get();
                self.wipe_freed(block.as_ref());
                Block::free(block);
            }
        }
    }

    /// Leaves nothing in memory that was in an arena which is to be dropped, if it was made so. (What
    /// lies in a region stays there for others.)
    pub(super) fn wipe_all(&self) {
        let body = self.body();
        if body.options.zeroing == Zeroing::OnPop && body.region.is_none() {
            body.current().soil(self.farthest().addr());
            body.blocks().for_each(|block| self.wipe_freed(block));
        }
    }

    /// Leaves nothing in a block that is to be freed, if the arena was made so.
    fn wipe_freed(&self, block: &Block) {
        if self.body().options.zeroing == Zeroing::OnPop && block.is_ours() {
            let (from, to) = (block.data.addr(), block.committed.get().min(block.dirty.get()));
            let used = to.saturating_sub(from);
            poison::allow(from, used);
            // SAFETY: committed bytes of a block whose contents nobody uses any more.
            unsafe { poison::clear(block.data, used) };
        }
    }

    /// Starts a scope: an arena over the same memory that goes on where this one is, which is
    /// closed meanwhile.
    #[inline(always)]
    pub(super) fn open(&self) -> Result<Arena<'m>> {
        let limit = self.limit.get();
        if limit == 0 {
            return Err(Error::ScopeOpen);
        }
        self.limit.set(0);
        Ok(Arena {
            top: Cell::new(self.top.get()),
            limit: Cell::new(limit),
            body: self.body,
            _memory: PhantomData,
        })
    }

    /// Closes this arena for good. Gives its top.
    pub(super) fn shut(&self) -> *mut u8 {
        self.limit.set(0);
        self.top.get()
    }

    /// Ends a scope of this arena, which it has closed: takes back everything from this arena's top
    /// on. The scope ends with `top` and the limit `now`. (This arena's top is not stored again: the
    /// next scope would wait for it.)
    #[inline(always)]
    pub(super) fn end_scope(&self, top: *mut u8, now: usize) {
        let start = self.top.get();
        if self.is_near(start, now) {
            self.body().current().soil(top.addr());
            self.note(|trace, options| trace.popped(options, || self.position_of(start.addr())));
            self.limit.set(now);
        } else {
            core::hint::cold_path();
            self.end_scope_slow(top, now);
        }
    }

    #[cold]
    #[inline(never)]
    fn end_scope_slow(&self, top: *mut u8, now: usize) {
        let start = self.top.get();
        if now != 0 {
            self.reopen(top);
        }
        // Otherwise a scope inside it was leaked, and may have gone on.
        self.rewind_slow(start);
    }

    /// The top, or as far as it can have come while a scope that was leaked has it.
    fn farthest(&self) -> *mut u8 {
        if self.is_closed() {
            let block = self.body().current();
            block.data.with_addr(block.committed.get())
        } else {
            self.top.get()
        }
    }
}
