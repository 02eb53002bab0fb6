//! [`Arena`]: the bump itself, its slow paths, and taking back.
//!
//! ```text
//!  Arena (24 bytes: body, limit, top)
//!    |
//!    v                     prev                  prev
//!  Body: block -> [ Block 3 ] -> [ Block 2 ] -> [ Block 1 ]       spare -> [ Block ]
//!                     ^ top .. limit
//! ```
//!
//! What a push needs lies in the arena itself: `top`, the first free byte, and `limit`, the end of
//! what is committed. A scope ([`Temp`](super::Temp), a scratch) is an `Arena` of its own over the
//! same body: it takes the limit over and goes on from the top, and leaves the outer arena *closed*,
//! with a limit of zero. A push on a closed arena fails the test that every push makes anyway, and so
//! comes to `make_room`, which says that a scope is open. So the depth is always checked, and it
//! costs nothing.
//!
//! Invariants. Of all the arenas over one body exactly one is open, unless its guard was leaked. In
//! the open one, `data <= top <= limit` for the current block, and `limit` is its `committed`. The
//! top of a closed one stays where it was: there its scope began, and there it goes on. What it had
//! handed out lies below that, and the open one's top never falls below it.
//!
//! A place is taken back by address: blocks are dropped until one holds it. No address below a live
//! scope's start can be in two blocks, because blocks below are not freed.
#![allow(unsafe_code)] // hands out raw memory

use core::alloc::Layout;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{MaybeUninit, align_of, size_of};
use core::ptr::NonNull;

use super::block::{Block, HEADER, LEAST_HEADER, Lender, Origin, is_ours, out_of_memory};
use super::options::{ArenaBuilder, Options, Zeroing};
use super::poison;
use super::trace::Trace;
use crate::alloc::Allocator;
use crate::base::{Error, MIB, Result, align_up};
use crate::region::Region;

/// Blocks of a chain double up to this many bytes.
const LARGEST_BLOCK: usize = 64 * MIB;

/// What all arenas over the same memory share.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) block: Cell<NonNull<Block>>,
    /// A block that was dropped and may be needed again soon.
    pub(super) spare: Cell<Option<NonNull<Block>>>,
    /// A pop that leaves at most this many committed bytes free has nothing else to do than to
    /// move the top.
    easy: usize,
    /// As far below its limit an open arena's top may go and have nothing else to do: the address is in
    /// the current block, and there is nothing to give back. See [`Arena::is_near`].
    near: Cell<usize>,
    auto_align: Cell<usize>,
    /// Of a thread's scratch arena: where its slot says how it may end (see `Level::calm`). It lies in the
    /// slot, which outlives the arena.
    pub(super) calm: Cell<Option<NonNull<Cell<usize>>>>,
    pub(super) options: Options,
    pub(super) region: Option<Region>,
    pub(super) trace: Trace,
}

impl Body {
    #[inline]
    pub(super) fn current(&self) -> &Block {
        // SAFETY: the body's block is live, and only accessed through its cells.
        unsafe { self.block.get().as_ref() }
    }

    /// The blocks from the newest to the first.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        // SAFETY: all blocks of the chain are live, and only accessed through their cells.
        let follow = |block: NonNull<Block>| unsafe { block.as_ref() };
        core::iter::successors(Some(self.current()), move |block| block.prev.get().map(follow))
    }
}

/// Memory that is handed out piece by piece and taken back all at once, or from the top.
///
/// See the [module](super) for what it is for and how it grows. Pushing takes `&self`; what it
/// gives out lives until the arena is popped, cleared or dropped, all of which need the arena
/// for themselves, so that nothing that is taken back is still borrowed.
///
/// Values are not dropped with the arena: a pushed `Vec` leaks its buffer. [`push_owned`] gives a
/// handle that drops its value.
///
/// An arena may move to another thread, but it is used by one at a time; for several at once there
/// is [`SyncArena`](super::SyncArena).
///
/// `'m` is how long the caller's memory is lent, for arenas made by
/// [`build_over`](ArenaBuilder::build_over); `'static` for the others.
///
/// [`push_owned`]: Arena::push_owned
#[repr(C)] // a scratch's `Level` goes on behind the top
pub struct Arena<'m> {
    pub(super) body: NonNull<Body>,
    pub(super) limit: Cell<usize>,
    pub(super) top: Cell<*mut u8>,
    pub(super) _memory: PhantomData<&'m mut [MaybeUninit<u8>]>,
}

// SAFETY: an arena owns its memory; what it hands out borrows it, so it only moves to another
// thread when nothing is borrowed. The views of scopes never move apart from it: their guards
// borrow the outer arena, which is not `Sync`.
unsafe impl Send for Arena<'_> {}

impl Arena<'static> {
    /// A chained arena with default settings.
    ///
    /// # Panics
    /// Where there is no memory; [`ArenaBuilder::build`] gives an error instead.
    pub fn new() -> Arena<'static> {
        match ArenaBuilder::new().build() {
            Ok(arena) => arena,
            Err(error) => panic!("cannot make an arena: {error}"),
        }
    }

    /// Settings for a new arena.
    pub const fn builder() -> ArenaBuilder {
        ArenaBuilder::new()
    }

    pub(super) fn make(options: Options) -> Result<Arena<'static>> {
        let block = if options.growth.is_mapped() {
            Block::from_system(options.capacity, &options)?
        } else {
            Block::from_heap(options.capacity)?
        };
        Self::with_block(block, options, None)
    }

    /// An arena whose first block is this one, which it takes over, even where that fails.
    pub(super) fn with_block(
        block: NonNull<Block>,
        options: Options,
        region: Option<Region>,
    ) -> Result<Arena<'static>> {
        let layout = Layout::new::<Body>();
        // SAFETY: the layout is not of size zero.
        let place = unsafe { std::alloc::alloc(layout) }.cast::<Body>();
        let Some(body) = NonNull::new(place) else {
            // SAFETY: the block was made for this arena, which is not to be.
            unsafe { Block::free(block) };
            return Err(out_of_memory(layout.size(), 0));
        };
        // SAFETY: fresh memory for a body.
        unsafe { body.write(Body::new(block, options, region)) };
        Ok(Arena::over_body(body))
    }
}

impl Default for Arena<'static> {
    fn default() -> Self {
        Self::new()
    }
}

impl Body {
    fn new(block: NonNull<Block>, options: Options, region: Option<Region>) -> Body {
        let plain = options.zeroing == Zeroing::OnPush && !options.poison && !cfg!(hshm_asan);
        // What is given back is whole pages: less than one more may stay.
        let easy = if plain { options.keep.saturating_add(options.page_size - 1) } else { 0 };
        Body {
            block: Cell::new(block),
            spare: Cell::new(None),
            easy,
            near: Cell::new(0),
            auto_align: Cell::new(options.align),
            calm: Cell::new(None),
            options,
            region,
            trace: Trace::new(),
        }
    }
}

impl<'m> Arena<'m> {
    /// An arena over blocks of an allocator.
    pub(super) fn make_in(options: Options, allocator: &'m dyn Allocator) -> Result<Arena<'m>> {
        // SAFETY: blocks are asked for and freed by arenas over this body, whose lifetime is the
        // borrow's or less; that Arena has a Drop makes it a use of the borrow, too.
        let lender = unsafe { Lender::new(allocator) };
        Arena::with_block(Block::from_lender(lender, options.capacity)?, options, None)
    }

    pub(super) fn make_over(
        options: Options,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<Arena<'m>> {
        let base = memory.as_mut_ptr().cast::<u8>();
        let skip = base.addr().wrapping_neg() % align_of::<Body>().max(16);
        let body_len = size_of::<Body>().next_multiple_of(16);
        let needed = skip + body_len + LEAST_HEADER;
        if memory.len() < needed {
            return Err(Error::TooSmall { given: memory.len(), minimum: needed });
        }
        // SAFETY: the memory is lent to the arena for `'m`; the body comes first, aligned, then
        // the block, at a multiple of 16 from it, and both fit.
        let body = unsafe {
            let body = base.add(skip).cast::<Body>();
            let rest = memory.len() - skip - body_len;
            let block = Block::over(base.add(skip + body_len), rest)?;
            body.write(Body::new(block, options, None));
            NonNull::new_unchecked(body)
        };
        Ok(Arena::over_body(body))
    }

    /// The first arena over a body: it starts at the current block's first byte.
    pub(super) fn over_body(body: NonNull<Body>) -> Arena<'m> {
        // SAFETY: the caller just made the body.
        let data = unsafe { body.as_ref() }.current().data;
        let arena = Arena { top: Cell::new(data), limit: Cell::new(0), body, _memory: PhantomData };
        arena.reopen(data);
        arena
    }

    /// An arena that is closed, and of nothing. Only its top and limit may be asked for.
    pub(super) const fn nowhere() -> Arena<'m> {
        Arena {
            top: Cell::new(core::ptr::without_provenance_mut(1)),
            limit: Cell::new(0),
            body: NonNull::dangling(),
            _memory: PhantomData,
        }
    }

    /// Makes a new arena start `bytes` behind its first byte, at most at its limit: what is before
    /// that was pushed by another process.
    pub(super) fn start_at(&self, bytes: usize) {
        let top = self.top.get();
        let to = (top.addr() + bytes).min(self.limit.get());
        self.top.set(top.with_addr(to));
    }

    #[inline(always)]
    pub(super) fn body(&self) -> &Body {
        // SAFETY: the body is live as long as any arena over it, and accessed through cells only.
        unsafe { self.body.as_ref() }
    }

    /// Whether two arenas are over the same memory: one is the other, or a scope of it.
    #[inline]
    pub fn shares_memory_with(&self, other: &Arena<'_>) -> bool {
        self.body == other.body
    }

    /// Who made the memory, if a forked child shares it with its parent; otherwise 0.
    #[inline]
    pub(super) fn maker(&self) -> u32 {
        self.body().current().maker.get()
    }

    /// An error in a forked child, where this is a copy of its parent's arena over the same memory.
    #[inline]
    pub(super) fn check_maker(&self) -> Result<()> {
        if is_ours(self.maker()) { Ok(()) } else { Err(Error::Forked) }
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.limit.get() == 0
    }

    /// Whether `place`, an address that the top of this arena, or of one that it is a scope of, has or
    /// had, lies in the current block, and there is nothing to give back behind it. `limit` is this
    /// arena's: zero, while it is closed, is near nothing.
    #[inline(always)]
    pub(super) fn is_near(&self, place: *mut u8, limit: usize) -> bool {
        // What is in another block is further away, or wraps to more than any block has.
        limit.wrapping_sub(place.addr()) <= self.body().near.get()
    }

    /// Opens this arena (again) with its top at `top`, an address in the current block.
    pub(super) fn reopen(&self, top: *mut u8) {
        let body = self.body();
        let (from, to) = (body.current().data.addr(), body.current().committed.get());
        self.top.set(top);
        self.limit.set(to);
        body.near.set(body.easy.min(to - from));
    }

    /// Where this arena's top is; while it is closed, where its scope began.
    #[inline]
    pub(super) fn top(&self) -> *mut u8 {
        self.top.get()
    }

    /// Committed bytes past the top.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.limit.get().saturating_sub(self.top.get().addr())
    }

    /// Takes `size` bytes at a multiple of `align`, a power of two, where they are committed.
    /// `size`, rounded up to `align`, is at most `isize::MAX`.
    #[inline(always)]
    pub(super) fn bump(&self, size: usize, align: usize) -> Option<NonNull<u8>> {
        let top = self.top.get();
        // Neither sum wraps: addresses, sizes and alignments are at most half of all numbers.
        let start = top.map_addr(|at| at.wrapping_add(align - 1) & !(align - 1));
        let end = start.addr().wrapping_add(size);
        if end > self.limit.get() {
            core::hint::cold_path();
            return None;
        }
        self.top.set(start.with_addr(end));
        self.handed_out(top.addr(), start, size);
        // SAFETY: `start >= top >= 1`: the sum did not wrap.
        Some(unsafe { NonNull::new_unchecked(start) })
    }

    /// [`bump`](Self::bump) for a layout that is known at run time only: one sum less has to wait for
    /// the top. (Where the alignment is a constant, this takes one instruction more.)
    #[inline(always)]
    pub(super) fn bump_layout(&self, layout: Layout) -> Option<NonNull<u8>> {
        let (size, align) = (layout.size(), layout.align());
        let top = self.top.get();
        // The last multiple of `align` before the top. No sum wraps: with its alignment, a layout is at
        // most half of all numbers, as addresses are, and the top is not zero.
        let before = top.map_addr(|at| at.wrapping_sub(1) & align.wrapping_neg());
        let end = before.addr().wrapping_add(align.wrapping_add(size));
        if end > self.limit.get() {
            core::hint::cold_path();
            return None;
        }
        let start = before.wrapping_add(align);
        self.top.set(before.with_addr(end));
        self.handed_out(top.addr(), start, size);
        // SAFETY: `start >= top >= 1`: the sum did not wrap.
        Some(unsafe { NonNull::new_unchecked(start) })
    }

    /// What a sanitizer, a debug build or a trace has to do about new bytes; nothing otherwise.
    #[inline(always)]
    pub(super) fn handed_out(&self, top: usize, start: *mut u8, size: usize) {
        poison::allow(start.addr(), size);
        #[cfg(debug_assertions)]
        if self.body().options.poison {
            // Bytes past `dirty` are zero, and stay so for those that count on it.
            let used = self.body().current().dirty.get().saturating_sub(start.addr());
            // SAFETY: the bytes were handed out just now and nobody has them yet.
            unsafe { start.write_bytes(poison::PUSHED, size.min(used)) };
        }
        let position = || self.position_of(start.addr());
        self.note(|trace, options| trace.pushed(options, position, start.addr() - top, size));
    }

    /// Tells the trace something. A log is the user's code: while it runs, this arena is closed, so
    /// that it can neither push here, nor take anything back, in the middle of either.
    #[inline(always)]
    pub(super) fn note(&self, what: impl FnOnce(&Trace, &Options)) {
        let body = self.body();
        if cfg!(feature = "arena-trace") {
            let limit = self.limit.replace(0);
            what(&body.trace, &body.options);
            self.limit.set(limit);
        } else {
            what(&body.trace, &body.options);
        }
    }

    /// [`bump`](Self::bump), with growth.
    #[inline(always)]
    pub(super) fn take(&self, size: usize, align: usize) -> Result<NonNull<u8>> {
        match self.bump(size, align) {
            Some(start) => Ok(start),
            None => self.take_slow(size, align),
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn take_slow(&self, size: usize, align: usize) -> Result<NonNull<u8>> {
        self.make_room(size, align)?;
        // It fits now.
        self.bump(size, align).ok_or(Error::Corrupt)
    }

    /// Sees to it that the next [`bump`](Self::bump) of these numbers succeeds.
    fn make_room(&self, size: usize, align: usize) -> Result<()> {
        if self.is_closed() {
            return Err(Error::ScopeOpen);
        }
        self.check_maker()?;
        let body = self.body();
        let block = body.current();
        let top = self.top.get().addr();
        let too_large = out_of_memory(usize::MAX, block.end - top);
        let end = align_up(top, align).and_then(|start| start.checked_add(size));
        if let Some(end) = end.filter(|&end| end <= block.end) {
            let before = block.committed.get();
            block.commit_to(end, &body.options, body.region.as_ref()).map_err(
                |error| match error {
                    Error::OutOfMemory { .. } => {
                        out_of_memory(size, block.committed.get().saturating_sub(top))
                    }
                    other => other,
                },
            )?;
            self.note(|trace, options| trace.committed(options, block.committed.get() - before));
            self.reopen(self.top.get());
            return Ok(());
        }
        if !body.options.growth.is_chained() {
            return Err(out_of_memory(size, block.end - top));
        }
        let needed =
            size.checked_add(align).and_then(|bytes| bytes.checked_add(HEADER)).ok_or(too_large)?;
        let next = self.next_block(needed)?;
        // SAFETY: a block of this arena, in no chain yet.
        let fresh = unsafe { next.as_ref() };
        block.soil(top);
        self.note(|trace, options| trace.chained(options, block.end - top));
        fresh.before.set(block.before.get() + block.capacity());
        fresh.prev.set(Some(body.block.get()));
        body.block.set(next);
        self.reopen(fresh.data);
        // The start of a mapped block need not hold all of it.
        self.reach(size, align)
    }

    /// [`make_room`](Self::make_room) in a block that is long enough.
    fn reach(&self, size: usize, align: usize) -> Result<()> {
        let start = align_up(self.top.get().addr(), align);
        match start.and_then(|start| start.checked_add(size)) {
            Some(end) if end <= self.limit.get() => Ok(()),
            _ => self.make_room(size, align),
        }
    }

    /// A block for a request that needs `needed` bytes, header included: the spare one, or a new
    /// one.
    fn next_block(&self, needed: usize) -> Result<NonNull<Block>> {
        let body = self.body();
        if let Some(spare) = body.spare.get() {
            // SAFETY: the spare block is the body's, and live.
            if unsafe { spare.as_ref() }.len >= needed {
                body.spare.set(None);
                return Ok(spare);
            }
        }
        let options = &body.options;
        if options.growth.is_mapped() {
            let len = align_up(needed, options.page_size).ok_or(out_of_memory(needed, 0))?;
            Block::from_system(len.max(options.capacity), options)
        } else {
            let block = body.current();
            let another = |len| match block.lender {
                Some(lender) => Block::from_lender(lender, len),
                None => Block::from_heap(len),
            };
            let double = block.len.saturating_mul(2).min(LARGEST_BLOCK);
            another(double.max(needed))
                .or_else(|error| if double > needed { another(needed) } else { Err(error) })
        }
    }

    /// The position of an address that the top has or had.
    pub(super) fn position_of(&self, address: usize) -> usize {
        let holder = self.body().blocks().find(|block| block.holds(address));
        holder.map_or(0, |block| block.before.get() + (address - block.data.addr()))
    }

    /// The place of a position at or below the top.
    pub(super) fn place_of(&self, position: usize) -> Result<*mut u8> {
        let now = self.pos();
        let outside = Error::OffsetOutOfRange { offset: position as u64, length: now as u64 };
        if position > now {
            return Err(outside);
        }
        let holder = self.body().blocks().find(|block| block.before.get() <= position);
        let block = holder.ok_or(outside)?;
        // The tail that a block had left when it was chained may not be committed.
        let place = block.data.wrapping_add(position - block.before.get());
        Ok(place.with_addr(place.addr().min(block.committed.get())))
    }

    #[inline]
    pub(super) fn auto_align_cell(&self) -> &Cell<usize> {
        &self.body().auto_align
    }

    /// Puts the alignment of untyped pushes back to what the builder said.
    pub(super) fn align_as_built(&self) {
        self.auto_align_cell().set(self.body().options.align);
    }

    /// Says what went wrong, and panics.
    #[cold]
    #[inline(never)]
    pub(super) fn fail(&self, error: Error) -> ! {
        match self.body().options.name() {
            "" => panic!("arena: {error}"),
            name => panic!("arena `{name}`: {error}"),
        }
    }
}

impl Drop for Arena<'_> {
    fn drop(&mut self) {
        let body = self.body;
        let given = self.body().current().origin == Origin::Given;
        self.wipe_all();
        let mut next = Some(self.body().block.get());
        if let Some(spare) = self.body().spare.take() {
            // SAFETY: nobody uses the spare block.
            unsafe { Block::free(spare) };
        }
        while let Some(block) = next {
            // SAFETY: the arena goes, and with it all that was borrowed from it; each block is in
            // the chain once.
            unsafe {
                next = block.as_ref().prev.get();
                Block::free(block);
            }
        }
        // SAFETY: the last arena over the body goes: scopes borrow the arena, and never drop
        // their view of it. The body was made by `with_block`, or lies in the caller's memory.
        unsafe {
            body.drop_in_place();
            if !given {
                std::alloc::dealloc(body.as_ptr().cast(), Layout::new::<Body>());
            }
        }
    }
}

impl fmt::Debug for Arena<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No addresses: logs travel further than pointers should.
        let options = &self.body().options;
        f.debug_struct("Arena")
            .field("name", &options.name())
            .field("growth", &options.growth)
            .field("pos", &self.pos())
            .field("scope_open", &self.is_closed())
            .finish_non_exhaustive()
    }
}
