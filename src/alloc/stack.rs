//! `StackAllocator`: bump, and nothing else.
//!
//! ```text
//!   | Shared | header | block | header | block |   ...   position        end
//! ```
//!
//! The heap moves up; each block has a 16-byte header before it ([`page`](crate::heap::page)), so
//! that its size is known and a free can be checked. What alignment skips begins with a header, too:
//! so the headers are a chain from the first block to the position. There is no lock: the heap is atomic, and a
//! header belongs to its block. A block's bytes are handed out by the heap's exchange and published
//! by whoever passes the block on.
//!
//! The tags of the headers are mixed with an epoch that a reset moves on, so no header from before
//! a reset passes for one after it.
#![allow(unsafe_code)] // implements an unsafe trait, and declares its header fit for a region

use core::alloc::Layout;

use super::traits::{Allocator, BlockInfo, move_block};
use crate::base::{AllocatorId, Error, MemContext, Result};
use crate::heap::Heap;
use crate::heap::page::{Headers, MIN_METADATA, Page, State, UNIT, fresh_key};
use crate::heap::words::{Atoms, Words};
use crate::ptr::OffsetPtr;
use crate::region::Region;
use crate::sync::atomic::{AtomicU64, Ordering};

/// "hshmSTCK", little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"hshmSTCK");
const METADATA: u64 = MIN_METADATA as u64;
const ALIGN: usize = 64;
/// Memory is committed in steps of this many bytes, as far as there are any.
const COMMIT_STEP: u64 = 64 << 10;

#[repr(C, align(64))]
struct Shared {
    magic: AtomicU64,
    key: AtomicU64,
    epoch: AtomicU64,
    first: AtomicU64,
    in_use: AtomicU64,
    heap: Heap,
    /// Everything before this offset was committed.
    committed: AtomicU64,
    _spare: [AtomicU64; 7],
}

// SAFETY: `repr(C)`, 16 words: 128 bytes without padding.
unsafe impl Atoms for Shared {}
const _: () = assert!(size_of::<Shared>() == 128);

/// A bump allocator over a region (HSHM's `StackAllocator`): O(1), lock-free, for many threads and
/// processes.
///
/// There is no individual free: a freed block is checked and no longer counted as allocated, but
/// its bytes only come back if it was the last block, or with [`reset`](Self::reset). For memory
/// that lives and dies together; wrong for anything long-lived that frees.
///
/// The context of a call is ignored.
#[derive(Clone, Debug)]
pub struct StackAllocator {
    region: Region,
    words: Words,
    at: u64,
}

impl StackAllocator {
    /// Creates the allocator over what `heap` has left; its shared header, into which the heap
    /// moves, is the first that it takes from there. `heap_offset` is where the heap begins.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] where the heap begins elsewhere or reaches past the region;
    /// [`Error::OutOfMemory`] where the header does not fit.
    pub fn shm_init(region: Region, heap_offset: OffsetPtr<u8>, heap: Heap) -> Result<Self> {
        let length = region.len() as u64;
        if heap_offset.offset() != heap.start() || heap.end() > length {
            return Err(Error::OffsetOutOfRange { offset: heap.end(), length });
        }
        super::in_band(&region, heap.start(), || Self::lay_out(region.clone(), heap))
    }

    fn lay_out(region: Region, heap: Heap) -> Result<Self> {
        let from = heap.position();
        let at = heap.allocate(size_of::<Shared>(), ALIGN)?.offset();
        let first = heap.position();
        region.commit(from, (first - from) as usize)?;
        let stack = StackAllocator { words: words_of(&region)?, region, at };
        let shared = stack.shared()?;
        shared.magic.store(0, Ordering::Relaxed);
        shared.key.store(fresh_key(stack.region.id().to_bits() ^ at), Ordering::Relaxed);
        shared.epoch.store(0, Ordering::Relaxed);
        shared.first.store(first, Ordering::Relaxed);
        shared.in_use.store(0, Ordering::Relaxed);
        shared.committed.store(first, Ordering::Relaxed);
        shared.heap.copy_from(&heap);
        shared.magic.store(MAGIC, Ordering::Release);
        Ok(stack)
    }

    /// Attaches the allocator whose shared header lies at `header`.
    ///
    /// # Errors
    /// [`Error::NotARegion`], [`Error::NotReady`], [`Error::Corrupt`] or
    /// [`Error::OffsetOutOfRange`] for whatever is not such a header; [`Error::ReadOnly`].
    pub fn shm_attach(region: Region, header: OffsetPtr<u8>) -> Result<Self> {
        if !region.is_writable() {
            return Err(Error::ReadOnly);
        }
        let (at, length) = (header.offset(), region.len() as u64);
        let stack = StackAllocator { words: words_of(&region)?, region, at };
        let outside = Error::OffsetOutOfRange { offset: at, length };
        let shared = stack.shared().map_err(|_| outside)?;
        match shared.magic.load(Ordering::Acquire) {
            MAGIC => {}
            0 => return Err(Error::NotReady),
            _ => return Err(Error::NotARegion),
        }
        let first = shared.first.load(Ordering::Relaxed);
        let position = shared.heap.position();
        let sound = at + size_of::<Shared>() as u64 <= first
            && shared.heap.start() <= first
            && first <= position
            && position <= shared.heap.end()
            && shared.heap.end() <= length;
        if sound { Ok(stack) } else { Err(Error::Corrupt) }
    }

    /// Where the shared header lies: what another process needs to attach.
    pub fn header_offset(&self) -> OffsetPtr<u8> {
        OffsetPtr::new(self.at)
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Bytes that the next block could have: what the heap has left, less a header.
    pub fn available(&self) -> usize {
        let left = self.shared().map_or(0, |shared| shared.heap.available());
        left.saturating_sub(MIN_METADATA) & !(UNIT as usize - 1)
    }

    /// Frees everything at once.
    ///
    /// # Safety
    /// Nobody uses any block any more, and nobody else uses the allocator during the call.
    pub unsafe fn reset(&self) -> Result<()> {
        let shared = self.shared()?;
        let first = shared.first.load(Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::Relaxed);
        shared.in_use.store(0, Ordering::Relaxed);
        let moved = shared.heap.move_position(shared.heap.position(), first);
        if moved { Ok(()) } else { Err(Error::Corrupt) }
    }

    fn shared(&self) -> Result<&Shared> {
        self.words.place(self.at)
    }

    /// Makes everything before `end`, which lies in the heap, safe to touch. What was committed once
    /// stays so, also when the heap moves back.
    #[inline]
    fn commit(&self, shared: &Shared, end: u64) -> Result<()> {
        if end <= shared.committed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.commit_more(shared, end)
    }

    #[cold]
    fn commit_more(&self, shared: &Shared, end: u64) -> Result<()> {
        let limit = shared.heap.end().min(self.words.len());
        let from = shared.committed.load(Ordering::Relaxed).min(end);
        let step = end.checked_next_multiple_of(COMMIT_STEP).unwrap_or(limit).min(limit).max(end);
        // A whole step, or what is needed, where that is all there is.
        let done = self.region.commit(from, (step - from) as usize).map(|()| step);
        let done =
            done.or_else(|_| self.region.commit(from, (end - from) as usize).map(|()| end))?;
        // Others may have committed more meanwhile.
        shared.committed.fetch_max(done, Ordering::Relaxed);
        Ok(())
    }

    fn headers(&self, shared: &Shared) -> Result<Headers> {
        let key = shared.key.load(Ordering::Relaxed);
        let epoch = shared.epoch.load(Ordering::Relaxed).rotate_right(24);
        Headers::new(self.words, MIN_METADATA, UNIT, key ^ epoch)
    }

    /// The page of the block at `offset`.
    fn block(&self, shared: &Shared, offset: u64) -> Result<(Headers, Page, State)> {
        let length = self.words.len();
        if offset >= length {
            return Err(Error::OffsetOutOfRange { offset, length });
        }
        let headers = self.headers(shared)?;
        let first = shared.first.load(Ordering::Relaxed);
        let position = shared.heap.position();
        let page = Page(offset.wrapping_sub(METADATA));
        if !offset.is_multiple_of(UNIT)
            || offset < first.saturating_add(METADATA)
            || offset >= position
            || !headers.is_page(page)?
        {
            return Err(Error::NotABlock { offset });
        }
        let state = headers.read_any(page, position)?;
        if state.used { Ok((headers, page, state)) } else { Err(Error::DoubleFree { offset }) }
    }

    /// Moves the end of the last block; false if it is not the last, or there is no room.
    fn resize_last(&self, old: u64, payload: u64) -> Result<bool> {
        let shared = self.shared()?;
        let (headers, page, State { size, .. }) = self.block(shared, old)?;
        let Some(new) = payload.checked_add(METADATA) else { return Ok(false) };
        let (end, Some(new_end)) = (page.0 + size, page.0.checked_add(new)) else {
            return Ok(false);
        };
        if new_end > shared.heap.end() || self.commit(shared, new_end).is_err() {
            return Ok(false);
        }
        // A header never reaches past the position: whoever dies in between leaves bytes that are
        // nobody's, and not a block over the next one.
        let set = |size| headers.commit(page, State { size, used: true });
        if new < size {
            if shared.heap.position() != end {
                return Ok(false);
            }
            set(new)?;
            if !shared.heap.move_position(end, new_end) {
                set(size)?;
                return Ok(false);
            }
        } else {
            if !shared.heap.move_position(end, new_end) {
                return Ok(false);
            }
            set(new)?;
        }
        shared.in_use.fetch_add(new.wrapping_sub(size), Ordering::Relaxed);
        Ok(true)
    }
}

fn words_of(region: &Region) -> Result<Words> {
    if !region.base().addr().is_multiple_of(ALIGN) {
        return Err(Error::BadAlignment { align: ALIGN });
    }
    // SAFETY: the region keeps its mapping for as long as the allocator, which holds a clone; what
    // is accessed lies in the heap that the allocator was given for itself.
    Ok(unsafe { Words::new(region.base(), region.len()) })
}

/// The payload for a size: a multiple of 16, at least 16; `None` where rounding overflows.
fn payload_of(size: usize) -> Option<u64> {
    (size.max(1) as u64).checked_next_multiple_of(UNIT)
}

// SAFETY: the heap hands out every byte once between resets, inside its bounds, and a block lies
// behind its header in bytes of its own; the alignment is the heap's.
unsafe impl Allocator for StackAllocator {
    fn id(&self) -> AllocatorId {
        self.region.id()
    }

    fn base(&self) -> *mut u8 {
        self.region.base()
    }

    fn region_len(&self) -> usize {
        self.region.len()
    }

    fn backing(&self) -> Option<&Region> {
        Some(&self.region)
    }

    fn allocate_offset(&self, _: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        let shared = self.shared()?;
        let full = |available| Error::OutOfMemory { requested: layout.size(), available };
        let payload = payload_of(layout.size()).ok_or(full(self.available()))?;
        let align = (layout.align() as u64).max(UNIT);
        let base = self.words.address(0);
        let heap = &shared.heap;
        let (from, block) = heap
            .allocate_seen_from(base, METADATA, payload as usize, align)
            .map_err(|_| full(self.available()))?;
        let page = Page(block.offset() - METADATA);
        let size = payload + METADATA;
        if page.0 + size > self.words.len() {
            return Err(Error::Corrupt);
        }
        if self.commit(shared, page.0 + size).is_err() {
            heap.give_back_last(OffsetPtr::new(from), (page.0 + size - from) as usize);
            return Err(full(self.available()));
        }
        let headers = self.headers(shared)?;
        if from < page.0 {
            // Positions are multiples of a header's size, so there is room for one.
            headers.stamp(Page(from), State { size: page.0 - from, used: false })?;
        }
        headers.stamp(page, State { size, used: true })?;
        shared.in_use.fetch_add(size, Ordering::Relaxed);
        Ok(block)
    }

    unsafe fn reallocate_offset(
        &self,
        ctx: MemContext,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        let old_size = self.usable_size(old)?;
        if self.resolve(old).addr() & (new.align() - 1) == 0 {
            let resized = match payload_of(new.size()) {
                Some(payload) => self.resize_last(old.offset(), payload)?,
                None => false,
            };
            if resized || new.size() <= old_size {
                return Ok(old);
            }
        }
        // SAFETY: the caller's contract is the same, and the size is the block's.
        unsafe { move_block(self, ctx, old, old_size, new) }
    }

    unsafe fn free_offset_no_null_check(&self, _: MemContext, block: OffsetPtr<u8>) -> Result<()> {
        let shared = self.shared()?;
        let (headers, page, State { size, .. }) = self.block(shared, block.offset())?;
        if !headers.release(page, size)? {
            return Err(Error::DoubleFree { offset: block.offset() });
        }
        shared.in_use.fetch_sub(size, Ordering::Relaxed);
        shared.heap.give_back_last(OffsetPtr::new(page.0), size as usize);
        Ok(())
    }

    fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize> {
        let (_, _, state) = self.block(self.shared()?, block.offset())?;
        Ok((state.size - METADATA) as usize)
    }

    fn currently_allocated_size(&self) -> usize {
        self.shared().map_or(0, |shared| shared.in_use.load(Ordering::Relaxed) as usize)
    }

    fn available(&self) -> usize {
        StackAllocator::available(self)
    }

    fn visit_blocks(&self, visit: &mut dyn FnMut(BlockInfo)) -> Result<()> {
        let shared = self.shared()?;
        let headers = self.headers(shared)?;
        let position = shared.heap.position();
        let mut at = shared.first.load(Ordering::Relaxed);
        while at.saturating_add(METADATA) <= position {
            // Somebody takes it just now, or died while it did.
            if !headers.is_page(Page(at))? {
                at += UNIT;
                continue;
            }
            let State { size, used } = headers.read_any(Page(at), position)?;
            if used {
                let size = (size - METADATA) as usize;
                visit(BlockInfo { offset: OffsetPtr::new(at + METADATA), size, own: true });
            }
            at += size;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::base::MIB;
    use crate::heap::words::die;

    const CTX: MemContext = MemContext::DEFAULT;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 16).unwrap()
    }

    /// Whoever dies while it resizes the last block leaves it as long as it was, or as it was to be:
    /// never over the next one.
    #[test]
    fn a_death_while_resizing_leaves_no_overlap() {
        for (old, new) in [(1000, 100), (100, 1000)] {
            for stores in 0..2 {
                let region = Region::anonymous(AllocatorId::new(0x57AC, 0), MIB).unwrap();
                let start = region.payload_offset() as u64;
                let heap = Heap::new(start, region.len() as u64).unwrap();
                let stack = StackAllocator::shm_init(region, OffsetPtr::new(start), heap).unwrap();
                let block = stack.allocate_offset(CTX, layout(old)).unwrap();
                die::after(stores);
                let _ = stack.resize_last(block.offset(), payload_of(new).unwrap());
                die::never();
                let size = stack.usable_size(block).unwrap() as u64;
                let next = stack.allocate_offset(CTX, layout(64)).unwrap();
                assert!(block.offset() + size <= next.offset() - METADATA, "{old} {new} {stores}");
                let mut seen = 0;
                stack.visit_blocks(&mut |_| seen += 1).unwrap();
                assert_eq!(seen, 2);
            }
        }
    }
}
