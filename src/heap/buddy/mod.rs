//! The buddy engine: pages of any size in power-of-two lists, coalesced by address.
//!
//! ```text
//!  heap start                                                     position        end
//!  | Shared | list table | page | page | page | ... pages tile ... | never used yet |
//!
//!  round-up lists    payload 32 64 128 ... 8K 16K      (0 to 9)    sizes up to 16 KiB
//!  round-down lists  payload >16K 32K ... 512K 1M..    (10 to 16)  sizes above, first fit
//! ```
//!
//! (HSHM's `BuddyAllocator`; SPEC's name for what classic buddies do with address bits is kept,
//! though pages here may have any size and place.) A page is a header and a payload
//! ([`page`](super::page)). A free page is in exactly one list, the one that suits its true size:
//! the power of two at or below its payload, capped at 1 MiB. So a list of the first group holds
//! nothing too small for its size, and its head always fits; above, the own list is searched first
//! fit, and then any page of any larger list fits.
//!
//! A request takes, in this order: its own list; a larger list, whose first page is cut; what
//! coalescing makes; the heap. What a cut leaves is a page of its own, filed by its true size. A
//! rest too small to be a page (a header and 32 bytes) stays with the block as slack, inside the
//! block's true size, and comes back with it. Nothing ever leaves the tiling.
//!
//! Coalescing moves all free pages into a red-black tree by address (joining each, on the way, with
//! the pages after it that are still listed), takes them out from the highest down, and joins those
//! that touch. A page that ends at the heap's position goes back to
//! the heap. It costs O(n log n), so it does not run when nothing was freed since the last time
//! or when all free bytes together would not do; while the heap can still serve, it also waits
//! until enough was freed to pay for it ([`MERGE_FREELY`], [`MERGE_SHARE`]).
//!
//! Invariants ([`verify`](Buddy::verify) walks them): pages tile `first..position` exactly; each
//! free page is in one list, the right one; no list holds a used page; counters and the bits of
//! non-empty lists say what the lists say; free + in use + headers = position - first.
//!
//! Truth and caches: headers and the heap's position are the truth; lists, tree and counters can be
//! [rebuilt](Buddy::rebuild) from them. Every change of the truth is one store: a new header is
//! written first where no walk looks yet (inside a page, or past the position), and the store that
//! shortens the page before it, or moves the position, makes it count. So the owner of the lock
//! may die anywhere; the next one finds `busy` set and rebuilds. A damaged list ends the same way.
//!
//! Memory ordering: everything happens under one lock, whose acquire and release order it, between
//! processes too. `busy` is set before (release fence) and cleared after (release store) every
//! change, for whoever finds the lock of a dead owner.

mod coalesce;
mod lists;
mod resize;
mod shared;
mod verify;

pub use verify::Accounting;

use lists::count;
use shared::Shared;

use super::page::{Headers, Page, State, UNIT};
use super::words::{Words, next_aligned};
use crate::base::{Error, KIB, Result};
use crate::region::Region;
use crate::sync::atomic::{Ordering, Ordering::Relaxed, fence};
use crate::sync::shm_lock::Holder;

/// The smallest payload: the smallest list's, and what the tree's links need.
const MIN_PAYLOAD: u64 = 32;
/// The largest size that is rounded up.
const MAX_ROUNDED: u64 = 16 * KIB as u64;
/// Lists that sizes are rounded up to: 2^5 to 2^14.
const ROUND_UP_LISTS: usize = 10;
/// Lists that sizes are rounded down to: 2^14 to 2^20.
const ROUND_DOWN_LISTS: usize = 7;
const LISTS: usize = ROUND_UP_LISTS + ROUND_DOWN_LISTS;

/// No page. Offset 0 could be one.
const NONE: u64 = u64::MAX;

/// Pages of a round-up list that an aligned request looks at before it tries elsewhere.
const PATIENCE: u64 = 32;
/// With at most this many free pages, coalescing is cheap enough to try whenever it may help.
const MERGE_FREELY: u64 = 256;
/// With more, it waits until one in this many was freed since the last time.
const MERGE_SHARE: u64 = 4;
/// Fresh memory is committed in steps of this many bytes, as far as there are any.
const COMMIT_STEP: u64 = 64 * KIB as u64;

/// The list that suits a page of this payload.
#[inline]
const fn list_of(payload: u64) -> usize {
    let power = payload.ilog2() as usize;
    if payload <= MAX_ROUNDED {
        power - 5
    } else if power < 20 {
        power - 14 + ROUND_UP_LISTS
    } else {
        LISTS - 1
    }
}

/// What is asked for, rounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    payload: u64,
    align: u64,
    asked: usize,
}

impl Request {
    /// `size` bytes at a multiple of `align`, a power of two.
    pub(crate) fn new(size: usize, align: usize) -> Request {
        // Half the address space is more than any region has, and rounding it cannot wrap.
        let size_capped = (size as u64).clamp(MIN_PAYLOAD, 1 << 63);
        let payload = if size_capped <= MAX_ROUNDED {
            size_capped.next_power_of_two()
        } else {
            size_capped.next_multiple_of(UNIT)
        };
        Request { payload, align: align as u64, asked: size }
    }
}

/// The engine: one process's view of a buddy in a region.
#[derive(Clone, Debug)]
pub(crate) struct Buddy {
    region: Region,
    words: Words,
    headers: Headers,
    at: u64,
    tables: u64,
    first: u64,
    end: u64,
}

impl Buddy {
    pub(crate) const fn region(&self) -> &Region {
        &self.region
    }
    /// Where the shared header lies.
    pub(crate) const fn header_offset(&self) -> u64 {
        self.at
    }
    /// Bytes of a page header.
    pub(crate) const fn metadata(&self) -> u64 {
        self.headers.metadata
    }

    #[inline]
    const fn payload(&self, page: Page) -> u64 {
        page.0.wrapping_add(self.headers.metadata)
    }

    fn shared(&self) -> Result<&Shared> {
        self.words.place(self.at)
    }

    /// The end of the pages; a position where none can be is damage.
    #[inline]
    fn position(&self, shared: &Shared) -> Result<u64> {
        let position = shared.heap.position();
        if position < self.first || position > self.end || !position.is_multiple_of(UNIT) {
            return Err(Error::Corrupt);
        }
        Ok(position)
    }

    /// Runs `change` as the only one. If the last one did not finish, or found damage, the lists
    /// are rebuilt first.
    fn locked<T>(&self, change: impl FnOnce(&Shared) -> Result<T>) -> Result<T> {
        let shared = self.shared()?;
        let _guard = shared.lock.lock(Holder::UNKNOWN);
        if shared.busy.load(Relaxed) != 0 {
            self.rebuild_caches(shared)?;
        }
        shared.busy.store(1, Relaxed);
        fence(Ordering::Release);
        let result = change(shared);
        if !matches!(result, Err(Error::Corrupt)) {
            shared.busy.store(0, Ordering::Release);
        }
        result
    }

    /// Allocates; gives the offset of the payload.
    pub(crate) fn allocate(&self, request: Request) -> Result<u64> {
        self.locked(|shared| {
            if let Some(block) = self.take_listed(shared, request, PATIENCE)? {
                return Ok(block);
            }
            if self.merging_pays(shared, request)? {
                self.merge_all(shared)?;
                if let Some(block) = self.take_listed(shared, request, PATIENCE)? {
                    return Ok(block);
                }
            }
            if let Some(block) = self.take_fresh(shared, request)? {
                return Ok(block);
            }
            // The last resort: coalescing at any price, which may also give pages back to the
            // heap, and a look at every page.
            if self.merging_helps(shared, request)? {
                self.merge_all(shared)?;
            }
            if let Some(block) = self.take_listed(shared, request, u64::MAX)? {
                return Ok(block);
            }
            match self.take_fresh(shared, request)? {
                Some(block) => Ok(block),
                None => Err(self.exhausted(shared, request)?),
            }
        })
    }

    /// The error for a request that nothing could serve.
    fn exhausted(&self, shared: &Shared, request: Request) -> Result<Error> {
        let available = self.available_in(shared)? as usize;
        Ok(Error::OutOfMemory { requested: request.asked, available })
    }

    /// Payload bytes of free pages, and what the heap has left for one more.
    fn available_in(&self, shared: &Shared) -> Result<u64> {
        let rest = (self.end - self.position(shared)?).saturating_sub(self.headers.metadata);
        Ok(self.free_in(shared)? + if rest < MIN_PAYLOAD { 0 } else { rest })
    }

    /// Payload bytes of free pages: what is neither in use nor a header.
    fn free_in(&self, shared: &Shared) -> Result<u64> {
        let pages = shared.used_pages.load(Relaxed).wrapping_add(shared.free_pages.load(Relaxed));
        let headers = pages.checked_mul(self.headers.metadata).ok_or(Error::Corrupt)?;
        (self.position(shared)? - self.first)
            .checked_sub(headers)
            .and_then(|bytes| bytes.checked_sub(shared.in_use.load(Relaxed)))
            .ok_or(Error::Corrupt)
    }

    /// Bytes to split off the front of `page` so that the payload is aligned: none, or enough for
    /// a page of their own.
    #[inline]
    fn gap(&self, page: Page, align: u64) -> Option<u64> {
        let payload = self.payload(page);
        if self.words.address(payload) & (align - 1) == 0 {
            return Some(0);
        }
        let least = payload.checked_add(self.headers.min_page())?;
        Some(next_aligned(self.words.address(0), least, align)? - payload)
    }

    /// Own list, then the larger ones. `patience` bounds the search of a round-up list, where only
    /// an aligned request can fail to take the first page.
    fn take_listed(&self, shared: &Shared, request: Request, patience: u64) -> Result<Option<u64>> {
        let least = list_of(request.payload);
        let mut lists = shared.nonempty.load(Relaxed) & ((1 << LISTS) - 1) & !0 << least;
        while lists != 0 {
            let list = lists.trailing_zeros() as usize;
            lists &= lists - 1;
            let patience = if list < ROUND_UP_LISTS { patience } else { u64::MAX };
            let found = self.first_fit(shared, list, patience, |page, size| {
                let gap = self.gap(page, request.align)?;
                let need = gap.checked_add(self.headers.metadata + request.payload)?;
                (need <= size).then_some(gap)
            })?;
            if let Some((page, size, gap)) = found {
                self.unfile(shared, page, size)?;
                return self.carve(shared, page, size, gap, request.payload).map(Some);
            }
        }
        Ok(None)
    }

    /// Cuts a used page of `payload` bytes out of a free page that is in no list, `gap` bytes
    /// behind its start, and files what is left on either side.
    fn carve(&self, shared: &Shared, page: Page, size: u64, gap: u64, payload: u64) -> Result<u64> {
        let block = page.plus(gap);
        let (keep, rest) = self.cut(size - gap, payload);
        let tail = block.plus(keep);
        if rest > 0 {
            self.headers.stamp(tail, State { size: rest, used: false })?;
        }
        let used = State { size: keep, used: true };
        if gap > 0 {
            self.headers.stamp(block, used)?;
            self.headers.commit(page, State { size: gap, used: false })?;
            self.file(shared, page, gap)?;
        } else {
            self.headers.commit(page, used)?;
        }
        if rest > 0 {
            self.file(shared, tail, rest)?;
        }
        count(&shared.used_pages, 1)?;
        count(&shared.in_use, (keep - self.headers.metadata) as i64)?;
        Ok(self.payload(block))
    }

    /// Where to cut a page of `size` bytes that keeps `payload`: the page's new size, and the size
    /// of the rest, 0 where it would be too small to be a page.
    #[inline]
    const fn cut(&self, size: u64, payload: u64) -> (u64, u64) {
        let keep = payload + self.headers.metadata;
        let rest = size - keep;
        if rest < self.headers.min_page() { (size, 0) } else { (keep, rest) }
    }

    /// A block of fresh memory, if there is enough.
    fn take_fresh(&self, shared: &Shared, request: Request) -> Result<Option<u64>> {
        let page = Page(self.position(shared)?);
        let Some(gap) = self.gap(page, request.align) else { return Ok(None) };
        let keep = self.headers.metadata + request.payload;
        let Some(size) = gap.checked_add(keep) else { return Ok(None) };
        if !self.reserve(shared, page, size) {
            return Ok(None);
        }
        let block = page.plus(gap);
        self.headers.stamp(block, State { size: keep, used: true })?;
        if gap > 0 {
            self.headers.stamp(page, State { size: gap, used: false })?;
        }
        self.advance(shared, page, size)?;
        if gap > 0 {
            self.file(shared, page, gap)?;
            count(&shared.frees, 1)?;
        }
        count(&shared.used_pages, 1)?;
        count(&shared.in_use, request.payload as i64)?;
        Ok(Some(self.payload(block)))
    }

    /// Whether the heap has `size` bytes from its position `page` on, and they could be committed.
    fn reserve(&self, shared: &Shared, page: Page, size: u64) -> bool {
        let Some(to) = page.0.checked_add(size).filter(|&to| to <= self.end) else {
            return false;
        };
        let from = shared.committed.load(Relaxed).clamp(self.first, self.end);
        if to <= from {
            return true;
        }
        // A step more than is needed where that can be had, so that small blocks share the call.
        let ahead = to.next_multiple_of(COMMIT_STEP).min(self.end);
        for to in [ahead, to] {
            if self.region.commit(from, (to - from) as usize).is_ok() {
                shared.committed.store(to, Relaxed);
                return true;
            }
        }
        false
    }

    /// Makes `size` reserved bytes, with headers in them, part of the tiling.
    fn advance(&self, shared: &Shared, page: Page, size: u64) -> Result<()> {
        #[cfg(test)]
        super::words::die::step()?;
        let moved = shared.heap.move_position(page.0, page.0 + size);
        if moved { Ok(()) } else { Err(Error::Corrupt) }
    }

    /// The page whose payload starts at `offset`, if that is a block.
    fn block(&self, shared: &Shared, offset: u64) -> Result<(Page, State)> {
        if offset >= self.words.len() {
            return Err(Error::OffsetOutOfRange { offset, length: self.words.len() });
        }
        let position = self.position(shared)?;
        let page = Page(offset.wrapping_sub(self.headers.metadata));
        if !offset.is_multiple_of(UNIT)
            || offset < self.first + self.headers.metadata
            || offset >= position
            || !self.headers.is_page(page)?
        {
            return Err(Error::NotABlock { offset });
        }
        let state = self.headers.read(page, position)?;
        if !state.used {
            return Err(Error::DoubleFree { offset });
        }
        Ok((page, state))
    }

    /// Bytes that the block at `offset` can hold.
    pub(crate) fn usable_size(&self, offset: u64) -> Result<u64> {
        let (_, state) = self.block(self.shared()?, offset)?;
        Ok(state.size - self.headers.metadata)
    }

    /// Frees the block at `offset`.
    pub(crate) fn free(&self, offset: u64) -> Result<()> {
        self.locked(|shared| {
            let (page, State { size, .. }) = self.block(shared, offset)?;
            self.headers.commit(page, State { size, used: false })?;
            self.file(shared, page, size)?;
            count(&shared.frees, 1)?;
            count(&shared.used_pages, -1)?;
            count(&shared.in_use, -((size - self.headers.metadata) as i64))
        })
    }

    /// Counts a free that was refused.
    pub(crate) fn count_refused(&self) {
        if let Ok(shared) = self.shared() {
            shared.refused.fetch_add(1, Relaxed);
        }
    }

    /// Frees that were refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.shared().map_or(0, |shared| shared.refused.load(Relaxed))
    }

    /// Payload bytes of used pages.
    pub(crate) fn in_use(&self) -> u64 {
        self.shared().map_or(0, |shared| shared.in_use.load(Relaxed))
    }

    /// See [`available_in`](Self::available_in).
    pub(crate) fn available(&self) -> Result<u64> {
        self.locked(|shared| self.available_in(shared))
    }

    /// Coalescings so far.
    pub(crate) fn merges(&self) -> u64 {
        self.shared().map_or(0, |shared| shared.merges.load(Relaxed))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
