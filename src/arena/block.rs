//! The blocks of memory that an arena is made of.
//!
//! ```text
//!  base                                         committed          end = base + len
//!   | Block | data: handed out up to the top ... | to be committed  |
//!           ^ position `before`
//! ```
//!
//! A block's header lies at its start, except over a region, whose bytes others may write: there it
//! is a box. Invariants: `data <= committed <= end`; every byte below `committed` may be touched;
//! every byte from `max(dirty, top)` up to `committed` is zero.
#![allow(unsafe_code)] // makes, touches and gives back raw memory

use core::cell::Cell;
use core::ptr::NonNull;
use std::alloc::Layout;

use super::options::Options;
use super::poison;
use crate::base::{Error, MIB, Result, align_down, align_up};
use crate::os;
use crate::region::Region;

/// Steps of commitment grow up to this many bytes.
const LARGEST_STEP: usize = 4 * MIB;
/// From this many committed bytes on, steps end at multiples of [`HUGE`], and huge pages are asked
/// for: what is wasted then is little against what is there.
const HUGE_FROM: usize = 16 * MIB;
const HUGE: usize = 2 * MIB;
/// Alignment of blocks from the global allocator.
const HEAP_ALIGN: usize = 16;

/// Where a block's memory is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The global allocator.
    Heap,
    /// A reservation of its own.
    Mapped,
    /// The caller.
    Given,
    /// A region, which the arena keeps; the block is a box.
    Region,
}

#[derive(Debug)]
pub(super) struct Block {
    /// The block before this one in the chain.
    pub(super) prev: Cell<Option<NonNull<Block>>>,
    pub(super) origin: Origin,
    /// The memory as it was got.
    base: *mut u8,
    pub(super) len: usize,
    /// The first byte that is handed out.
    pub(super) data: *mut u8,
    /// Addresses.
    pub(super) end: usize,
    pub(super) committed: Cell<usize>,
    pub(super) dirty: Cell<usize>,
    /// Position of the first byte that is handed out.
    pub(super) before: Cell<usize>,
}

/// Bytes before the data: so many that values of 16 bytes and more do not begin across cache lines.
pub(super) const HEADER: usize = size_of::<Block>().next_multiple_of(HEAP_ALIGN);

pub(super) fn out_of_memory(requested: usize, available: usize) -> Error {
    Error::OutOfMemory { requested, available }
}

impl Block {
    /// A block whose header lies at the start of its memory.
    ///
    /// # Safety
    /// `[base, base + committed)` may be written and is the caller's, `base` is aligned to 16,
    /// `committed <= len`, and a header fits.
    unsafe fn place(
        base: *mut u8,
        len: usize,
        committed: usize,
        zero: bool,
        origin: Origin,
    ) -> NonNull<Block> {
        // SAFETY: a header fits into the memory.
        let data = unsafe { base.add(HEADER) };
        let header = base.cast::<Block>();
        let committed = base.addr() + committed;
        let block = Block {
            prev: Cell::new(None),
            origin,
            base,
            len,
            data,
            end: base.addr() + len,
            committed: Cell::new(committed),
            dirty: Cell::new(if zero { data.addr() } else { committed }),
            before: Cell::new(0),
        };
        // SAFETY: the memory is the caller's, aligned and large enough.
        unsafe { header.write(block) };
        poison::forbid(data.addr(), committed - data.addr());
        // SAFETY: written just now, so not null.
        unsafe { NonNull::new_unchecked(header) }
    }

    /// A block of `len` bytes from the global allocator.
    pub(super) fn from_heap(len: usize) -> Result<NonNull<Block>> {
        let none = out_of_memory(len, 0);
        let layout = Layout::from_size_align(len, HEAP_ALIGN).map_err(|_| none)?;
        if len < HEADER {
            return Err(Error::TooSmall { given: len, minimum: HEADER });
        }
        // SAFETY: the size is not zero.
        let base = unsafe { std::alloc::alloc(layout) };
        if base.is_null() {
            return Err(none);
        }
        // SAFETY: fresh memory of that length and alignment; a header fits.
        Ok(unsafe { Block::place(base, len, len, false, Origin::Heap) })
    }

    /// A reservation of `len` bytes, a multiple of the page size, with its first step committed.
    pub(super) fn from_system(len: usize, options: &Options) -> Result<NonNull<Block>> {
        let base = os::reserve_aligned(len, options.page_size)?;
        let first = options.commit_step.min(len);
        if let Err(error) = open(base, first) {
            // SAFETY: reserved just now; nobody knows it.
            unsafe { os::unmap(base, len) };
            return Err(error);
        }
        let base = core::ptr::with_exposed_provenance_mut(base);
        // SAFETY: a reservation of our own, as aligned as a page, with `first` bytes, at least a
        // page, open for writing.
        Ok(unsafe { Block::place(base, len, first, true, Origin::Mapped) })
    }

    /// A block over memory of the caller's.
    ///
    /// # Safety
    /// The memory may be written and is the arena's alone until the block is no longer used; the
    /// base is aligned to 16.
    pub(super) unsafe fn over(base: *mut u8, len: usize) -> Result<NonNull<Block>> {
        if len < HEADER {
            return Err(Error::TooSmall { given: len, minimum: HEADER });
        }
        // SAFETY: the caller's contract, and a header fits.
        Ok(unsafe { Block::place(base, len, len, false, Origin::Given) })
    }

    /// A block over the bytes `start..end` of a region, whose bytes up to offset `committed` are
    /// committed. `zero`: those from there on have never been written.
    pub(super) fn over_region(
        region: &Region,
        start: usize,
        end: usize,
        committed: usize,
        zero: bool,
    ) -> Block {
        let base = region.base();
        let at = |offset: usize| base.addr() + offset;
        Block {
            prev: Cell::new(None),
            origin: Origin::Region,
            base,
            len: end,
            data: base.wrapping_add(start),
            end: at(end),
            committed: Cell::new(at(committed)),
            dirty: Cell::new(if zero { at(start) } else { at(end) }),
            before: Cell::new(start),
        }
    }

    /// Bytes that could be handed out.
    pub(super) fn capacity(&self) -> usize {
        self.end - self.data.addr()
    }

    /// Whether an address is one that the top can have while this is the current block.
    #[inline]
    pub(super) fn holds(&self, address: usize) -> bool {
        self.data.addr() <= address && address <= self.end
    }

    /// What is used by no one and may hold anything now reaches up to `address`.
    #[inline]
    pub(super) fn soil(&self, address: usize) {
        if self.dirty.get() < address {
            self.dirty.set(address);
        }
    }

    /// Commits up to `address`, at most the block's end, and a good deal more if it can be had.
    pub(super) fn commit_to(
        &self,
        address: usize,
        options: &Options,
        region: Option<&Region>,
    ) -> Result<()> {
        let from = self.committed.get();
        let in_use = from - self.data.addr();
        let step = options.commit_step.max((in_use / 4).min(LARGEST_STEP));
        let mut wanted = align_up(address.max(from.saturating_add(step)), options.page_size)
            .unwrap_or(usize::MAX);
        let huge = in_use >= HUGE_FROM && self.origin == Origin::Mapped;
        if huge {
            wanted = align_up(wanted, HUGE).unwrap_or(usize::MAX);
        }
        let least = align_up(address, options.page_size).unwrap_or(usize::MAX).min(self.end);
        let wanted = wanted.min(self.end);
        let commit = |to: usize| match (self.origin, region) {
            (Origin::Region, Some(region)) => {
                region.commit((from - self.base.addr()) as u64, to - from)
            }
            _ if huge => open_huge(from, to - from),
            _ => open(from, to - from),
        };
        let to = match commit(wanted) {
            Ok(()) => wanted,
            Err(error) if least == wanted => return Err(error),
            Err(_) => {
                commit(least)?;
                least
            }
        };
        self.committed.set(to);
        poison::forbid(from, to - from);
        Ok(())
    }

    /// Gives the pages from `address` on back, if there are any and they are the arena's to give.
    /// What cannot be given back stays.
    pub(super) fn decommit_from(&self, address: usize, page_size: usize, region: Option<&Region>) {
        let Some(from) = align_up(address, page_size) else { return };
        let committed = self.committed.get();
        if from >= committed {
            return;
        }
        let len = committed - from;
        let given = match (self.origin, region) {
            // SAFETY: the pages are the block's, past everything in use.
            (Origin::Mapped, _) => unsafe { os::map_private_over(from, len, os::Access::None) },
            (Origin::Region, Some(region)) => {
                // SAFETY: past everything that the arena handed out or published.
                unsafe { region.purge((from - self.base.addr()) as u64, len) }
            }
            _ => return,
        };
        if given.is_ok() {
            self.committed.set(from);
            if self.dirty.get() > from {
                self.dirty.set(from);
            }
        }
    }

    /// Gives the block's memory back.
    ///
    /// # Safety
    /// Nobody uses the block or anything in it any more.
    pub(super) unsafe fn free(block: NonNull<Block>) {
        // SAFETY: a block in use has a header.
        let (origin, base, len) = unsafe {
            let block = block.as_ref();
            (block.origin, block.base, block.len)
        };
        // SAFETY: a block is freed once, the way it was made, and nobody uses it.
        unsafe {
            match origin {
                Origin::Heap => {
                    poison::allow(base.addr(), len);
                    let layout = Layout::from_size_align_unchecked(len, HEAP_ALIGN);
                    std::alloc::dealloc(base, layout);
                }
                Origin::Mapped => {
                    poison::allow(base.addr(), len);
                    os::unmap(base.addr(), len);
                }
                Origin::Given => poison::allow(base.addr(), len),
                Origin::Region => {
                    // From here on others hand these bytes out.
                    let block = Box::from_raw(block.as_ptr());
                    poison::allow(block.data.addr(), block.capacity());
                }
            }
        }
    }
}

/// Makes `len` reserved bytes at `from` fresh writable memory, with pages behind it. The range is
/// of whole pages.
fn open(from: usize, len: usize) -> Result<()> {
    // SAFETY: part of a reservation of the caller's, past everything in use.
    unsafe { os::map_private_over(from, len, os::Access::Write)? };
    populate(from, len)
}

/// [`open`], in huge pages where the system has them.
fn open_huge(from: usize, len: usize) -> Result<()> {
    // SAFETY: as in `open`.
    unsafe { os::map_private_over(from, len, os::Access::Write)? };
    let (start, end) = (align_up(from, HUGE), align_down(from + len, HUGE));
    if let Some(start) = start.filter(|&start| start < end) {
        // Only a wish.
        let _ = os::advise_huge(start, end - start);
    }
    populate(from, len)
}

fn populate(from: usize, len: usize) -> Result<()> {
    os::commit(from, len, None).map_err(|error| {
        // SAFETY: mapped just now; nobody uses it. If even that fails, the pages stay, unused.
        let _ = unsafe { os::map_private_over(from, len, os::Access::None) };
        match error {
            Error::OutOfMemory { .. } => out_of_memory(len, 0),
            other => other,
        }
    })
}
