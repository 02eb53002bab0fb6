//! Best fit: blocks of any size, freed in any order, each from the smallest free block that it fits
//! into, joined with its free neighbours at once when it is freed (or later, if the heap is made so).
//!
//! ```text
//!  chunk: | next chunk | length | 0+used | block | block | block ... | 0+used |
//!
//!  block: | size + flags | payload ............................................ | size + used |
//!  free:  | size + flags | next | prev | ................................ ...... | size        |
//!  node:  | size + flags | next | prev | left | right | parent | ............... | size        |
//! ```
//!
//! Sizes are multiples of 8 and count header and footer, so that the low bits of a header are free
//! for flags: *used*, *in the tree*, *red*; in the tree and used is one that *waits*. A header leads to the next block, the footer before it
//! to the previous one: that is the doubly linked list by address, and it costs nothing to keep. A
//! used block of size 0 ends a chunk on either side, so that no block has to be asked whether it is
//! the first or the last.
//!
//! Free blocks are found by size (`best_fit/free.rs`). Short ones have a bin for every size, and a word
//! of bits says which bins have any: the best fit is the next bit that is set. Of the others one of
//! every size is a node of a red-black tree (the crate's only one,
//! [`heap::rbtree`](crate::heap::rbtree)), and those of that size hang on it in a ring. So the tree
//! has as many nodes as there are different sizes, however many blocks are free, and a block that is
//! not in the tree joins or leaves in a few stores. (Boundary tags are Knuth's; bins for small sizes
//! are Doug Lea's; trees inside free blocks with rings for equal sizes are an old practice, too.)
//!
//! Invariants, walked by [`BestFit::verify`]: blocks tile their chunks; header and footer agree; no
//! two free blocks touch; every free block is in the bin of its size, in the tree, or in the ring of a
//! node of its size. What waits (`best_fit/waiting.rs`) is in the list of its size.
#![allow(unsafe_code)] // keeps its books in raw memory

use core::alloc::Layout;
use core::cell::Cell;
use core::fmt;
use core::ptr::{self, NonNull};

use super::Arena;
use crate::base::{Error, KIB, MIB, Result, align_up};
use free::Free;
use waiting::Waiting;

const USED: u64 = 1;
const TREE: u64 = 2;
/// Of a block that looks used.
const WAITS: u64 = 2;
const RED: u64 = 4;
const FLAGS: u64 = 7;
/// Header and footer.
const TAGS: u64 = 16;
/// Tags and two links.
const SMALLEST: u64 = TAGS + 16;
/// Link, length, and the used block of size 0 at either end of a chunk.
const CHUNK_TAGS: u64 = 32;
/// Chunks double from the first to the last of these.
const FIRST_CHUNK: usize = 64 * KIB;
const LARGEST_CHUNK: usize = 4 * MIB;

/// What a [`BestFit`] holds: see [`BestFit::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BestFitStats {
    /// Blocks in use.
    pub used_blocks: usize,
    /// Their bytes, tags included.
    pub used_bytes: usize,
    /// Free blocks.
    pub free_blocks: usize,
    /// Their bytes, tags included.
    pub free_bytes: usize,
    /// Chunks taken from the arena.
    pub chunks: usize,
}

/// A heap inside an arena: best fit in O(1) for blocks of less than a kilobyte, in O(log n) of the
/// different sizes that are free for longer ones; freed blocks are joined with their neighbours at
/// once, which takes as long.
///
/// ```
/// use core::alloc::Layout;
/// use hshm::arena::{Arena, BestFit};
/// let arena = Arena::new();
/// let heap = BestFit::new(&arena);
/// let block = heap.allocate(Layout::new::<[u64; 20]>())?;
/// // SAFETY: allocated just now, and not used any more.
/// unsafe { heap.free(block)? };
/// assert_eq!(heap.stats().free_blocks, 1);
/// # Ok::<(), hshm::Error>(())
/// ```
pub struct BestFit<'a> {
    arena: &'a Arena<'a>,
    free: Free,
    waiting: Waiting,
    /// The newest chunk; 0 for none.
    chunks: Cell<u64>,
    next_chunk: Cell<usize>,
    /// Addresses that blocks can have.
    low: Cell<u64>,
    high: Cell<u64>,
    stats: Cell<BestFitStats>,
}

impl<'a> BestFit<'a> {
    /// An empty heap; nothing is taken from the arena yet.
    pub const fn new(arena: &'a Arena<'a>) -> Self {
        Self::deferring(arena, 0)
    }

    /// An empty heap that joins later: of every size below a kilobyte up to `most` freed blocks wait to be
    /// allocated again as they are, and are joined with their neighbours when there are many and the heap would
    /// otherwise take more from the arena, or when that has no more, or by [`join_waiting`](Self::join_waiting).
    ///
    /// Where a few sizes come and go all the time, or many blocks lie far apart, that is about twice as fast
    /// (16 is as good as more). What it costs is memory: a block that waits is in the way of longer ones, and
    /// an allocation takes the shortest *joined* block that it fits into, or one of its own size that waits.
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use hshm::arena::{Arena, BestFit};
    /// let arena = Arena::new();
    /// let heap = BestFit::deferring(&arena, 16);
    /// let block = heap.allocate(Layout::new::<[u64; 20]>())?;
    /// // SAFETY: allocated just now, and not used any more.
    /// unsafe { heap.free(block)? };
    /// assert_eq!(heap.allocate(Layout::new::<[u64; 20]>())?, block);
    /// # Ok::<(), hshm::Error>(())
    /// ```
    pub const fn deferring(arena: &'a Arena<'a>, most: u8) -> Self {
        BestFit {
            arena,
            free: Free::new(),
            waiting: Waiting::new(most),
            chunks: Cell::new(0),
            next_chunk: Cell::new(FIRST_CHUNK),
            low: Cell::new(u64::MAX),
            high: Cell::new(0),
            stats: Cell::new(BestFitStats {
                used_blocks: 0,
                used_bytes: 0,
                free_blocks: 0,
                free_bytes: 0,
                chunks: 0,
            }),
        }
    }

    #[inline]
    fn word(&self, at: u64) -> *mut u64 {
        ptr::with_exposed_provenance_mut(at as usize)
    }
    #[inline]
    fn get(&self, at: u64) -> u64 {
        // SAFETY: only called for words of the heap's own chunks: tags and links, whose places
        // follow from sizes that were checked when they were written.
        unsafe { self.word(at).read() }
    }
    #[inline]
    fn set(&self, at: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.word(at).write(value) };
    }
    #[inline]
    fn size(&self, block: u64) -> u64 {
        self.get(block) & !FLAGS
    }
    /// Writes both tags of a block.
    #[inline]
    fn tag(&self, block: u64, size: u64, used: u64) {
        self.set(block, size | used);
        self.set(block + size - 8, size | used);
    }
    #[inline]
    fn count(&self, change: impl FnOnce(&mut BestFitStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// Allocates a block; it may hold anything.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::ScopeOpen`]; [`Error::Forked`] in a forked child, where the
    /// arena's memory is shared, as all other calls but [`stats`](Self::stats).
    pub fn allocate(&self, layout: Layout) -> Result<NonNull<u8>> {
        self.arena.check_maker()?;
        let none = Error::OutOfMemory { requested: usize::MAX, available: 0 };
        let size = (layout.size() as u64).checked_next_multiple_of(8).ok_or(none)?;
        let needed = (size + TAGS).max(SMALLEST);
        let align = (layout.align() as u64).max(8);
        if align == 8
            && let Some(block) = self.take_waiting(needed)
        {
            return self.payload(block);
        }
        // Room to move a block on to its alignment, behind a block that can stand alone.
        let slack = if align > 8 { align + SMALLEST } else { 0 };
        let wide = needed.checked_add(slack).ok_or(none)?;
        let block = loop {
            if align > 8
                && let Some(block) = self.best(needed)?
            {
                let start = self.aligned(block, align);
                if start + needed <= block + self.size(block) {
                    break block;
                }
                self.file(block, self.size(block))?;
            }
            if let Some(block) = self.best(wide)? {
                break block;
            }
            self.find_room(wide)?;
        };
        let (start, end) = (self.aligned(block, align), block + self.size(block));
        if start != block {
            self.file(block, start - block)?;
        }
        let rest = end - start - needed;
        let kept = if rest >= SMALLEST {
            self.file(start + needed, rest)?;
            needed
        } else {
            needed + rest
        };
        self.tag(start, kept, USED);
        self.count(|stats| {
            stats.used_blocks += 1;
            stats.used_bytes += kept as usize;
        });
        self.payload(start)
    }

    #[inline]
    fn payload(&self, block: u64) -> Result<NonNull<u8>> {
        NonNull::new(self.word(block + 8).cast()).ok_or(Error::Corrupt)
    }

    /// Where in a free block an aligned one can begin: where what is before it can stand alone.
    fn aligned(&self, block: u64, align: u64) -> u64 {
        let payload = block + 8;
        let next = |at: u64| at.next_multiple_of(align);
        let first = next(payload);
        if first == payload { block } else { next(payload + SMALLEST) - 8 }
    }

    /// Joins what waits, if that is much beside a chunk, or takes a chunk. Joining costs a look at each block,
    /// and must not come again before many have been freed.
    #[cold]
    fn find_room(&self, needed: u64) -> Result<()> {
        if self.waiting.bytes() >= self.next_chunk.get() / 4 && self.join_waiting()? {
            return Ok(());
        }
        match self.add_chunk(needed) {
            Err(Error::OutOfMemory { .. }) if self.join_waiting()? => Ok(()),
            result => result,
        }
    }

    /// Takes a chunk from the arena, with a free block of at least `needed` bytes.
    fn add_chunk(&self, needed: u64) -> Result<()> {
        let none = Error::OutOfMemory { requested: needed as usize, available: 0 };
        let least = needed.checked_add(CHUNK_TAGS).ok_or(none)?;
        let least =
            usize::try_from(least).ok().and_then(|least| align_up(least, 16)).ok_or(none)?;
        let wanted = self.next_chunk.get().max(least);
        let push = |len: usize| {
            let layout = Layout::from_size_align(len, 16).map_err(|_| none)?;
            self.arena.try_push_layout(layout).map(|place| (place, len as u64))
        };
        let (place, len) =
            push(wanted).or_else(|error| if least < wanted { push(least) } else { Err(error) })?;
        self.next_chunk.set((self.next_chunk.get() * 2).min(LARGEST_CHUNK));
        let at = place.as_ptr().expose_provenance() as u64;
        self.set(at, self.chunks.replace(at));
        self.set(at + 8, len);
        self.set(at + 16, USED);
        self.set(at + len - 8, USED);
        self.low.set(self.low.get().min(at));
        self.high.set(self.high.get().max(at + len));
        self.count(|stats| stats.chunks += 1);
        self.file(at + 24, len - CHUNK_TAGS)
    }

    /// The block of a pointer, and its size.
    fn used_block(&self, place: NonNull<u8>) -> Result<(u64, u64)> {
        self.arena.check_maker()?;
        let at = place.addr().get() as u64;
        let not = Error::NotABlock { offset: at };
        if !at.is_multiple_of(8) || at < self.low.get() + 32 || at >= self.high.get() {
            return Err(not);
        }
        let block = at - 8;
        let header = self.get(block);
        let size = header & !FLAGS;
        if header & (USED | WAITS) != USED {
            return Err(Error::DoubleFree { offset: at });
        }
        if size < SMALLEST || size > self.high.get() - block {
            return Err(not);
        }
        Ok((block, size))
    }

    /// The footer of a used block is far from its header: a miss of its own.
    #[inline]
    fn check_footer(&self, block: u64, size: u64) -> Result<()> {
        let sound = self.get(block + size - 8) == size | USED;
        if sound { Ok(()) } else { Err(Error::NotABlock { offset: block + 8 }) }
    }

    /// Frees a block, and joins it with its neighbours if they are free (later, in a heap that
    /// [defers](Self::deferring)).
    ///
    /// # Safety
    /// The block was allocated by this heap, and nobody uses it any more.
    ///
    /// # Errors
    /// [`Error::DoubleFree`] and [`Error::NotABlock`], where the tags show it; nothing has changed
    /// then. (Of a block that is to wait only the first is looked at.)
    pub unsafe fn free(&self, place: NonNull<u8>) -> Result<()> {
        let (block, size) = self.used_block(place)?;
        if self.wait(block, size) {
            return Ok(());
        }
        self.check_footer(block, size)?;
        self.join(block, size)
    }

    /// Makes a used block a free one, joined with its neighbours if they are free.
    #[inline]
    fn join(&self, mut block: u64, mut size: u64) -> Result<()> {
        self.count(|stats| {
            stats.used_blocks -= 1;
            stats.used_bytes -= size as usize;
        });
        // A second free of this block finds this, whatever it is joined with.
        self.set(block, size);
        let next = block + size;
        if self.get(next) & USED == 0 {
            size += self.size(next);
            self.unfile(next)?;
        }
        let before = self.get(block - 8);
        if before & USED == 0 {
            block -= before;
            size += before;
            self.unfile(block)?;
        }
        self.file(block, size)
    }

    /// Makes a block `new` bytes long, where it lies if it shrinks or the block behind it is free
    /// and long enough; otherwise its bytes move.
    ///
    /// # Safety
    /// The block was allocated by this heap with the layout `old`. If the call succeeds, the old
    /// pointer is no longer used.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`free`](Self::free); nothing has changed then.
    pub unsafe fn reallocate(
        &self,
        place: NonNull<u8>,
        old: Layout,
        new: usize,
    ) -> Result<NonNull<u8>> {
        let none = Error::OutOfMemory { requested: usize::MAX, available: 0 };
        let layout = Layout::from_size_align(new, old.align()).map_err(|_| none)?;
        let (block, size) = self.used_block(place)?;
        self.check_footer(block, size)?;
        let needed = ((new as u64).checked_next_multiple_of(8).ok_or(none)? + TAGS).max(SMALLEST);
        let next = block + size;
        let more = if self.get(next) & USED == 0 { self.size(next) } else { 0 };
        if needed > size + more {
            let moved = self.allocate(layout)?;
            // SAFETY: two different blocks, both at least as long as the old layout.
            unsafe {
                moved.copy_from_nonoverlapping(place, old.size().min(new));
                self.free(place)?;
            }
            return Ok(moved);
        }
        let joins = more != 0 && needed != size;
        if joins {
            self.unfile(next)?;
        }
        let whole = if joins { size + more } else { size };
        let rest = whole - needed;
        let kept = if rest >= SMALLEST {
            self.tag(block, needed, USED);
            self.file(block + needed, rest)?;
            needed
        } else {
            whole
        };
        self.tag(block, kept, USED);
        self.count(|stats| stats.used_bytes = stats.used_bytes + kept as usize - size as usize);
        Ok(place)
    }

    /// How many bytes of a block can be used.
    ///
    /// # Safety
    /// The block was allocated by this heap, and not freed since.
    ///
    /// # Errors
    /// As [`free`](Self::free).
    pub unsafe fn usable_size(&self, place: NonNull<u8>) -> Result<usize> {
        let (block, size) = self.used_block(place)?;
        self.check_footer(block, size)?;
        Ok((size - TAGS) as usize)
    }

    /// What is there.
    pub fn stats(&self) -> BestFitStats {
        self.stats.get()
    }

    /// Walks every chunk, the bins, the tree and the rings.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where something does not agree: somebody wrote past the end of a block.
    pub fn verify(&self) -> Result<BestFitStats> {
        let sound = |yes: bool| if yes { Ok(()) } else { Err(Error::Corrupt) };
        self.arena.check_maker()?;
        let (mut seen, mut waiting) = (BestFitStats::default(), 0);
        let mut chunk = self.chunks.get();
        while chunk != 0 {
            seen.chunks += 1;
            let end = chunk + self.get(chunk + 8) - 8;
            let (mut block, mut free_before) = (chunk + 24, false);
            while block < end {
                let header = self.get(block);
                let size = header & !FLAGS;
                sound(size >= SMALLEST && size <= end - block)?;
                sound(self.get(block + size - 8) == header & !(TREE | RED))?;
                let (free, waits) = (header & USED == 0, header & FLAGS == USED | WAITS);
                sound(!(free && free_before))?;
                free_before = free;
                waiting += usize::from(waits);
                if free || waits {
                    seen.free_blocks += 1;
                    seen.free_bytes += size as usize;
                } else {
                    seen.used_blocks += 1;
                    seen.used_bytes += size as usize;
                }
                block += size;
            }
            sound(block == end && self.get(end) == USED)?;
            chunk = self.get(chunk);
        }
        sound(self.verify_waiting(waiting)? == waiting)?;
        let filed = self.verify_free(seen.free_blocks)?;
        sound(filed + waiting == seen.free_blocks && seen == self.stats.get())?;
        Ok(seen)
    }
}

impl fmt::Debug for BestFit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BestFit").field("stats", &self.stats.get()).finish_non_exhaustive()
    }
}

mod free;
#[cfg(test)]
mod tests;
mod waiting;
