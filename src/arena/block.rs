//! The blocks of memory that an arena is made of.
//!
//! ```text
//!  base                                         committed          end = base + len
//!   | Block | data: handed out up to the top ... | to be committed  |
//!           ^ position `before`
//! ```
//!
//! A block's header lies at its start, except in a region or in a block of another allocator, whose bytes
//! others may write: there it is a box. Invariants: `data <= committed <= end`; every byte below `committed` may be touched;
//! every byte from `max(dirty, top)` up to `committed` is zero.
#![allow(unsafe_code)] // makes, touches and gives back raw memory

use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;
use std::alloc::Layout;

use super::options::Options;
use super::poison;
use super::pool::CACHE_LINE;
use crate::alloc::Allocator;
use crate::base::{Error, KIB, MIB, MemContext, Result, align_down, align_up};
use crate::os;
use crate::ptr::OffsetPtr;
use crate::region::{BackendKind, Region};

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
    /// An allocator of the caller's; the block is a box.
    Lent,
}

/// Whose a lent block is. The allocator outlives every arena over its blocks.
#[derive(Clone, Copy)]
pub(super) struct Lender(&'static dyn Allocator);

impl Lender {
    /// # Safety
    /// It is only used while the allocator is borrowed.
    pub(super) unsafe fn new(allocator: &dyn Allocator) -> Lender {
        // SAFETY: only the lifetime differs, and the caller sees to that.
        Lender(unsafe { core::mem::transmute::<&dyn Allocator, &'static dyn Allocator>(allocator) })
    }
}

impl Lender {
    /// Whether others may have the memory, too, as far as can be known.
    fn is_shared(self) -> bool {
        let private = |kind| matches!(kind, BackendKind::PosixMmap | BackendKind::Malloc);
        self.0.backing().map_or(!self.0.base().is_null(), |region| !private(region.kind()))
    }
}

/// Whether memory is this process's that was made by `maker`: see [`Block::maker`].
#[inline(always)]
pub(super) fn is_ours(maker: u32) -> bool {
    maker == 0 || os::is_generation(maker)
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lender").field(&self.0.id()).finish()
    }
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
    /// Of a lent block: whose it is.
    pub(super) lender: Option<Lender>,
    /// Who made it, if it lies in memory that a forked child shares with its parent (see
    /// `os::generation_mark`); otherwise 0.
    pub(super) maker: Cell<u32>,
}

/// Bytes before the data of a short block.
pub(super) const LEAST_HEADER: usize = size_of::<Block>().next_multiple_of(HEAP_ALIGN);
/// Bytes before the data at the most.
pub(super) const HEADER: usize = LEAST_HEADER + CACHE_LINE - HEAP_ALIGN;
/// From this length on data begins at a cache line, so that values of 32 bytes do not lie across two.
const ALIGNED_FROM: usize = KIB;

/// The first byte that is handed out of `len` bytes at `base`, the first `header` of which, at most
/// [`LEAST_HEADER`], are not.
fn first_byte(base: *mut u8, header: usize, len: usize) -> *mut u8 {
    let data = base.wrapping_add(header);
    let gap = if len >= ALIGNED_FROM { data.addr().wrapping_neg() % CACHE_LINE } else { 0 };
    data.wrapping_add(gap)
}

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
        let data = first_byte(base, LEAST_HEADER, len);
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
            lender: None,
            maker: Cell::new(0),
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
        if len < LEAST_HEADER {
            return Err(Error::TooSmall { given: len, minimum: LEAST_HEADER });
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
        if len < LEAST_HEADER {
            return Err(Error::TooSmall { given: len, minimum: LEAST_HEADER });
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
            lender: None,
            maker: Cell::new(os::generation_mark()),
        }
    }

    /// A block of `len` bytes from an allocator of the caller's.
    pub(super) fn from_lender(lender: Lender, len: usize) -> Result<NonNull<Block>> {
        if len < LEAST_HEADER {
            return Err(Error::TooSmall { given: len, minimum: LEAST_HEADER });
        }
        let layout = Layout::from_size_align(len, HEAP_ALIGN).map_err(|_| out_of_memory(len, 0))?;
        let boxed = Layout::new::<Block>();
        // SAFETY: a block has a size.
        let place = unsafe { std::alloc::alloc(boxed) }.cast::<Block>();
        let place = NonNull::new(place).ok_or(out_of_memory(boxed.size(), 0))?;
        let base = match lender.0.allocate_offset(MemContext::DEFAULT, layout) {
            Ok(offset) => lender.0.resolve(offset),
            Err(error) => {
                // SAFETY: allocated just now with this layout; nobody has it.
                unsafe { std::alloc::dealloc(place.as_ptr().cast(), boxed) };
                return Err(error);
            }
        };
        let end = base.addr() + len;
        // Never at the very start, where another block may end: whose an address is must be clear.
        let data = first_byte(base, HEAP_ALIGN, len);
        let block = Block {
            prev: Cell::new(None),
            origin: Origin::Lent,
            base,
            len,
            data,
            end,
            committed: Cell::new(end),
            dirty: Cell::new(end),
            before: Cell::new(0),
            lender: Some(lender),
            maker: Cell::new(if lender.is_shared() { os::generation_mark() } else { 0 }),
        };
        // SAFETY: fresh memory for a block.
        unsafe { place.write(block) };
        poison::forbid(data.addr(), end - data.addr());
        Ok(place)
    }

    /// Whether the bytes are this process's to change: a forked child's copy of a block in shared memory
    /// is still its parent's.
    #[inline]
    pub(super) fn is_ours(&self) -> bool {
        is_ours(self.maker.get())
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
            (Origin::Region, Some(region)) if self.is_ours() => {
                // SAFETY: past everything that the arena handed out or published.
                unsafe { region.purge((from - self.base.addr()) as u64, len) }
            }
            _ => return,
        };
        if given.is_ok() {
            self.committed.set(from);
            if self.origin == Origin::Mapped {
                // They may be somebody else's before they are committed again.
                poison::allow(from, len);
            }
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
        let (origin, base, len, committed) = unsafe {
            let block = block.as_ref();
            (block.origin, block.base, block.len, block.committed.get())
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
                    poison::allow(base.addr(), committed - base.addr());
                    os::unmap(base.addr(), len);
                }
                Origin::Given => poison::allow(base.addr(), len),
                Origin::Lent => {
                    let block = Box::from_raw(block.as_ptr());
                    poison::allow(base.addr(), len);
                    // A forked child's copy of an arena leaves its parent's blocks alone.
                    if let Some(lender) = block.lender
                        && block.is_ours()
                    {
                        let at = base.addr().wrapping_sub(lender.0.base().addr());
                        // One that is refused was damaged by somebody else; it stays.
                        let offset = OffsetPtr::new(at as u64);
                        let _ = lender.0.free_offset(MemContext::DEFAULT, offset);
                    }
                }
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
