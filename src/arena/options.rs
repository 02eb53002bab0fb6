//! How to make an arena.

use core::mem::MaybeUninit;

use super::Arena;
use crate::alloc::Allocator;
use crate::base::{Error, GIB, KIB, MIB, Result, align_up};
use crate::os;

/// How an arena gets more memory when what it has is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Growth {
    /// It does not: one block of the capacity, from the global allocator. (Over memory of the
    /// caller's: [`ArenaBuilder::build_over`].)
    Fixed,
    /// By another block from the global allocator, linked to the one before it; each is twice as
    /// long as the last, up to 64 MiB, and as long as a larger request needs.
    Chained,
    /// By committing more of the addresses that were reserved at the start. Nothing ever moves, and
    /// the last allocation can grow in place up to the capacity.
    Reserved,
    /// As [`Reserved`](Growth::Reserved); when the capacity is used up, another reservation of the
    /// same length (or as long as a larger request needs) is linked to it.
    ReservedThenChained,
}

impl Growth {
    /// Whether the memory is mapped for the arena, and not taken from the global allocator.
    pub(super) const fn is_mapped(self) -> bool {
        matches!(self, Growth::Reserved | Growth::ReservedThenChained)
    }
    /// Whether blocks are linked to the first one.
    pub(super) const fn is_chained(self) -> bool {
        matches!(self, Growth::Chained | Growth::ReservedThenChained)
    }
    /// Whether a lot of room can be left open in the middle of an arena.
    pub(super) const fn has_room(self) -> bool {
        !matches!(self, Growth::Chained)
    }
}

/// When memory that was used before is cleared for [`Arena::push`], whose bytes are always zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Zeroing {
    /// When it is pushed, as far as it was used before: fresh pages are zero already.
    #[default]
    OnPush,
    /// When it is popped. Costs each pop the bytes that it frees; nothing that was in the arena
    /// stays in memory.
    OnPop,
}

/// Bytes of an arena's name at the most.
pub(super) const NAME_LEN: usize = 32;

/// Everything that one [`Arena`] differs in from another.
///
/// ```
/// use hshm::arena::{Arena, Growth};
/// let arena = Arena::builder().growth(Growth::Reserved).capacity(1 << 30).name("ast").build()?;
/// let word = arena.push_str("identifier");
/// assert_eq!(word, "identifier");
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct ArenaBuilder {
    growth: Growth,
    capacity: Option<usize>,
    commit_step: usize,
    page_size: Option<usize>,
    align: usize,
    zeroing: Zeroing,
    keep: usize,
    poison: bool,
    name: [u8; NAME_LEN],
    name_len: usize,
}

/// The builder's wishes, checked and rounded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) growth: Growth,
    /// Bytes of the first block, or of each reservation.
    pub(super) capacity: usize,
    pub(super) commit_step: usize,
    pub(super) page_size: usize,
    pub(super) align: usize,
    pub(super) zeroing: Zeroing,
    /// Bytes of committed memory past the top that a pop leaves alone.
    pub(super) keep: usize,
    pub(super) poison: bool,
    pub(super) name: [u8; NAME_LEN],
    pub(super) name_len: usize,
}

impl Options {
    pub(super) fn name(&self) -> &str {
        let name = self.name.get(..self.name_len).unwrap_or_default();
        core::str::from_utf8(name).unwrap_or_default()
    }
}

impl ArenaBuilder {
    /// A chained arena with all settings at their defaults.
    pub const fn new() -> Self {
        ArenaBuilder {
            growth: Growth::Chained,
            capacity: None,
            commit_step: 64 * KIB,
            page_size: None,
            align: 8,
            zeroing: Zeroing::OnPush,
            keep: usize::MAX,
            poison: cfg!(debug_assertions),
            name: [0; NAME_LEN],
            name_len: 0,
        }
    }

    /// How the arena grows. Default: [`Growth::Chained`].
    pub const fn growth(mut self, growth: Growth) -> Self {
        self.growth = growth;
        self
    }
    /// Bytes of the only block ([`Fixed`](Growth::Fixed)), of the first one
    /// ([`Chained`](Growth::Chained)), or of each reservation, its bookkeeping (less than 256
    /// bytes) included. Default: 4 KiB, 4 KiB, 64 GiB ([`Reserved`](Growth::Reserved)), 1 GiB
    /// ([`ReservedThenChained`](Growth::ReservedThenChained)); where the process may not have so
    /// many addresses, a quarter of what it may have.
    pub const fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = Some(bytes);
        self
    }
    /// Bytes that are committed at a time at the least; rounded up to whole pages. An arena that
    /// has grown commits more at a time, a quarter of what it has, up to 4 MiB. Default: 64 KiB.
    pub const fn commit_step(mut self, bytes: usize) -> Self {
        self.commit_step = bytes;
        self
    }
    /// Bytes of the arena's pages: what reservations, commitments and decommitments are multiples
    /// of. A power of two, not less than the system's page. Default: the system's page.
    pub const fn page_size(mut self, bytes: usize) -> Self {
        self.page_size = Some(bytes);
        self
    }
    /// Alignment in bytes of untyped pushes ([`Arena::push`], [`Arena::push_no_zero`]), a power of
    /// two; typed ones have the alignment of their type. [`Arena::set_auto_align`] changes it.
    /// Default: 8.
    pub const fn align(mut self, bytes: usize) -> Self {
        self.align = bytes;
        self
    }
    /// When used memory is cleared. Default: [`Zeroing::OnPush`].
    pub const fn zeroing(mut self, zeroing: Zeroing) -> Self {
        self.zeroing = zeroing;
        self
    }
    /// Bytes of memory past the top that a pop, a clear or the end of a scope leaves to the arena;
    /// what is more than that goes back to the system, in whole pages (or to the global allocator,
    /// in whole blocks). Default: all of it stays.
    pub const fn decommit_above(mut self, bytes: usize) -> Self {
        self.keep = bytes;
        self
    }
    /// Whether popped memory is overwritten with `0xDD`, so that a stale pointer shows; in debug
    /// builds memory that is pushed without zeroing is filled with `0xCD` as well. Default: in
    /// debug builds only.
    pub const fn poison(mut self, fill: bool) -> Self {
        self.poison = fill;
        self
    }
    /// A name for messages and drawings, of at most 32 bytes; what is longer is cut.
    pub const fn name(mut self, name: &str) -> Self {
        let bytes = name.as_bytes();
        let mut len = if bytes.len() < NAME_LEN { bytes.len() } else { NAME_LEN };
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut at = 0;
        while at < len {
            self.name[at] = bytes[at];
            at += 1;
        }
        self.name_len = len;
        self
    }

    /// Makes the arena.
    ///
    /// # Errors
    /// [`Error::BadAlignment`] for a page size or an alignment that is not a power of two, or a page
    /// size below the system's; [`Error::TooSmall`] for a capacity without room for the
    /// bookkeeping, or a commit step of zero; [`Error::TooLarge`] for a capacity that rounds to
    /// more than the machine has addresses; [`Error::OutOfMemory`].
    pub fn build(&self) -> Result<Arena<'static>> {
        Arena::make(self.check()?)
    }

    /// Makes an arena over `memory`, which does not grow: [`growth`](Self::growth) and
    /// [`capacity`](Self::capacity) are ignored. Nothing else is allocated: the bookkeeping (less
    /// than 512 bytes) is in there, too.
    ///
    /// ```
    /// use core::mem::MaybeUninit;
    /// use hshm::arena::Arena;
    /// let mut room = [MaybeUninit::uninit(); 1024];
    /// let arena = Arena::builder().build_over(&mut room)?;
    /// assert_eq!(arena.push_slice(&[1, 2, 3]), [1, 2, 3]);
    /// assert!(arena.try_push(1024).is_err());
    /// # Ok::<(), hshm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TooSmall`] for memory without room for the bookkeeping; [`Error::BadAlignment`].
    pub fn build_over<'m>(&self, memory: &'m mut [MaybeUninit<u8>]) -> Result<Arena<'m>> {
        Arena::make_over(self.growth(Growth::Fixed).check()?, memory)
    }

    /// Makes an arena whose blocks come from one of the crate's allocators: in shared memory, in a
    /// file, in a process's part of a heap. It grows as [`Fixed`](Growth::Fixed) or
    /// [`Chained`](Growth::Chained) ones do; the bookkeeping is in the program's own memory. The blocks go
    /// back when the arena is dropped, except in a forked child, whose copy of the arena is the parent's
    /// where the memory is shared: it must not be pushed into there. Pools and heaps over it refuse
    /// ([`Error::Forked`]), and to drop the arena, its scopes, its vectors and what is in pools changes nothing.
    ///
    /// ```
    /// use hshm::arena::Arena;
    /// use hshm::{Allocator, MallocAllocator};
    /// let heap = MallocAllocator::new();
    /// let arena = Arena::builder().build_in(&heap)?;
    /// assert_eq!(arena.push_slice(&[1, 2, 3]), [1, 2, 3]);
    /// assert!(heap.currently_allocated_size() >= 4096);
    /// drop(arena);
    /// assert_eq!(heap.currently_allocated_size(), 0);
    /// # Ok::<(), hshm::Error>(())
    /// ```
    ///
    /// The allocator outlives the arena:
    ///
    /// ```compile_fail
    /// use hshm::arena::Arena;
    /// use hshm::MallocAllocator;
    /// let heap = MallocAllocator::new();
    /// let arena = Arena::builder().build_in(&heap).unwrap();
    /// drop(heap);
    /// arena.push(1);
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the growth modes that reserve addresses; otherwise as
    /// [`build`](Self::build), and what the allocator says.
    pub fn build_in<'a>(&self, allocator: &'a dyn Allocator) -> Result<Arena<'a>> {
        if self.growth.is_mapped() {
            return Err(Error::Unsupported);
        }
        Arena::make_in(self.check()?, allocator)
    }

    pub(super) fn check(&self) -> Result<Options> {
        let system_page = os::page_size();
        let page_size = self.page_size.unwrap_or(system_page);
        if !page_size.is_power_of_two() || page_size < system_page {
            return Err(Error::BadAlignment { align: page_size });
        }
        if !self.align.is_power_of_two() {
            return Err(Error::BadAlignment { align: self.align });
        }
        if self.commit_step == 0 {
            return Err(Error::TooSmall { given: 0, minimum: 1 });
        }
        if self.capacity == Some(0) {
            return Err(Error::TooSmall { given: 0, minimum: 1 });
        }
        let capacity = self.capacity.unwrap_or_else(|| {
            let wanted = match self.growth {
                Growth::Fixed | Growth::Chained => 4 * KIB,
                Growth::Reserved => 64 * GIB,
                Growth::ReservedThenChained => GIB,
            };
            let room = usize::try_from(os::address_room()).unwrap_or(usize::MAX);
            wanted.min((room / 4).max(MIB))
        });
        let round = |bytes: usize| {
            let maximum = isize::MAX as usize & !(page_size - 1);
            align_up(bytes, page_size)
                .filter(|&rounded| rounded <= maximum)
                .ok_or(Error::TooLarge { given: bytes, maximum })
        };
        Ok(Options {
            growth: self.growth,
            capacity: if self.growth.is_mapped() { round(capacity)? } else { capacity },
            commit_step: round(self.commit_step)?,
            page_size,
            align: self.align,
            zeroing: self.zeroing,
            keep: self.keep,
            poison: self.poison,
            name: self.name,
            name_len: self.name_len,
        })
    }
}

impl Default for ArenaBuilder {
    fn default() -> Self {
        Self::new()
    }
}
