//! The thread cache: for every size class a small stack of blocks, private to one thread.
//!
//! ```text
//! bin.top ──► last block        slots of a class:  null │ block │ block │ block │ ...   │
//! bin.limit ► last usable slot                      ▲ empty: top is here        ▲ full: top == limit
//! ```
//!
//! Allocation reads the slot at `top`: null means empty, otherwise the block is taken and `top`
//! goes down. A free that finds `top` below `limit` pushes. Neither touches the block, neither
//! asks who owns it; ownership is looked up when a bin overflows and half of it goes back
//! (`slow`). Bins start with room for few blocks and get more each time they run over.
//!
//! The bins are thread-local memory themselves, so that the compiler reaches them by the thread's
//! base register and nothing has to be looked up; the rest, and the slots, are the [`Body`]. A
//! thread starts without one: bins whose `top` and `limit` both point at a null slot are empty and
//! full at once, so its first allocation and its first free end up in the slow path like any other
//! miss. The same bins are put back when the thread ends.
//!
//! In a heap that was joined frees have to ask, because a block of another process must not be kept:
//! it would go with that process. There the bins are closed: once they have room, `limit` is null,
//! below every `top`, so that each push fails and the slow path decides. Allocation knows nothing of it.
#![allow(unsafe_code)] // raw stacks of blocks

use core::alloc::Layout;
use core::ops::{Deref, DerefMut};
use core::ptr;

use super::places::{Places, SLOTS};
use super::runs::RunCache;
use crate::base::classes::{CLASSES, ClassId, MAX_SMALL, class_index, class_size};
use crate::heap::thread::{BATCH, ThreadHeap};
use crate::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed};
use crate::sync::gate::Visits;

/// Most regions that one process's heap can have.
pub(crate) const MAX_REGIONS: usize = 64;
/// Bins of a cache: class `c` has number `c + 1`. Number 0 and those past the classes are always
/// empty and full, so that any class field of a granule map entry picks a bin that exists.
pub(crate) const BINS: usize = 128;

/// Bytes of blocks that a bin has room for at first.
const FIRST_BYTES: usize = 16 << 10;
/// Bytes of blocks that a bin ever has room for if its thread only frees such blocks, or so many
/// blocks: what makes sending them home at a time worth it. They all go, since none is wanted again.
const PASSING_BYTES: usize = 16 << 10;
const PASSING_BLOCKS: usize = 8;
/// Room for so many times the blocks that the thread fetched lately is worth having.
const FETCHED_TIMES: usize = 16;
/// Each time a thread's heap took so many granules, its bins are looked through for idle ones.
const SWEEP_GRANULES: u32 = 8;
/// Bytes of blocks that make a bin worth emptying.
const IDLE_BYTES: usize = 64 << 10;
/// Bytes of blocks that all bins of a thread may have room for, but for a few blocks a class.
const ROOM_BYTES: usize = 1 << 20;

/// One class's stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bin {
    pub(crate) top: *mut *mut u8,
    pub(crate) limit: *mut *mut u8,
}

/// Where a thread is in its life, as its cache knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Phase {
    /// It has not allocated yet. The C library's threads start with these zeros.
    #[cfg_attr(feature = "c-api", allow(dead_code))]
    New = 0,
    /// It has a body.
    Live = 1,
    /// Its body was taken from it, because it is ending.
    Ended = 2,
}

/// What a free without a size needs to know of the first region, as plain words in the thread's
/// own cache. Zero granules find nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstRegion {
    pub(crate) base: usize,
    pub(crate) granules: usize,
    pub(crate) map: *const AtomicU32,
}

impl FirstRegion {
    pub(crate) const NONE: FirstRegion = FirstRegion { base: 0, granules: 0, map: ptr::null() };
}

/// A thread's cache: what lies in thread-local memory.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ThreadCache {
    pub(crate) bins: [Bin; BINS],
    pub(crate) first: FirstRegion,
    /// Null unless the phase is [`Phase::Live`].
    body: *mut Body,
    pub(crate) phase: Phase,
    /// Whether every free takes the slow path.
    pub(crate) closed: bool,
}

/// The part of a cache that fast paths do not name. Outlives its thread: the next one gets it.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Body {
    /// The region to allocate from first.
    pub(crate) region: usize,
    /// This thread's heap in each region; null where it has none yet.
    pub(crate) heaps: [*mut ThreadHeap; MAX_REGIONS],
    pub(crate) runs: RunCache,
    /// Blocks to fetch at the next refill of each class.
    pub(crate) batch: [u8; CLASSES],
    /// Blocks of others that were freed while a class had no room.
    pub(crate) strangers: [u8; CLASSES],
    /// Blocks of each class that were fetched; half of it is forgotten each time some went home.
    fetched: [u16; CLASSES],
    /// What the thread's heap had taken when idle bins were last looked for.
    swept: u32,
    /// How many blocks each bin had then, as far as 16 bits can say.
    seen: [u16; CLASSES],
    /// Where the slots of each class are.
    places: Places,
    /// Bytes that all bins have room for.
    room_bytes: usize,
    /// The next body in the pool of bodies without a thread.
    pub(crate) next: *mut Body,
    /// Whether it is in there.
    pub(crate) pooled: bool,
    /// What says whether this body's thread is inside the engine; never null, for ever valid.
    member: *const Member,
    slots: [*mut u8; SLOTS],
}

/// A body's entry in the list of all bodies there ever were, which fork walks. Apart from the body,
/// because other threads look at it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) visits: Visits,
    /// The body whose member it is.
    pub(crate) body: *mut Body,
    /// The member before this one.
    pub(crate) next: *const Member,
}

/// Most blocks that any class's stack can hold.
const MOST: usize = 16 * BATCH;

/// Most blocks that a class's stack can hold.
pub(super) const fn capacity(class: usize) -> usize {
    let size = class_size(class);
    let fit = (256 << 10) / size;
    if fit > MOST {
        MOST
    } else if fit < 8 {
        8
    } else {
        fit
    }
}

/// Blocks to fetch at a thread's first refill of each class.
static FIRST_BATCHES: [u8; CLASSES] = {
    let mut batches = [1; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        let quarter = capacity(class) / 4;
        batches[class] = if quarter > 8 { 8 } else { quarter as u8 };
        class += 1;
    }
    batches
};

pub(crate) struct NullSlot([*mut u8; 1]);
// SAFETY: never written.
unsafe impl Sync for NullSlot {}
pub(crate) static NULL_SLOT: NullSlot = NullSlot([ptr::null_mut()]);

/// Where the bins of a thread without a body point.
pub(crate) const NO_SLOT: *mut *mut u8 = NULL_SLOT.0.as_ptr().cast_mut();

/// Byte offset of a class's bin in the cache.
pub(crate) const fn bin_of(class: usize) -> u16 {
    ((class + 1) * size_of::<Bin>()) as u16
}

/// Byte offset of a bin in the cache, for sizes up to [`MAX_SMALL`] in steps of 8. One table for all
/// sizes keeps what is inlined into callers short, which decides what else the compiler inlines
/// there. A constant, not a static: a copy in the caller's crate lets the compiler fold the look-up
/// when the size is known. The C library has one copy, since nobody's code is inlined with it.
#[cfg(not(feature = "c-api"))]
const OFFSETS: [u16; MAX_SMALL / 8 + 1] = offsets();
#[cfg(feature = "c-api")]
static OFFSETS: [u16; MAX_SMALL / 8 + 1] = offsets();

const fn offsets() -> [u16; MAX_SMALL / 8 + 1] {
    let mut table = [bin_of(0); MAX_SMALL / 8 + 1];
    let mut index = 1;
    while index < table.len() {
        table[index] = bin_of(class_index(index * 8));
        index += 1;
    }
    table
}

/// The largest size that [`OFFSETS_C`] knows.
#[cfg(feature = "c-api")]
pub(crate) const MAX_FINE: usize = 1024;

/// [`OFFSETS`] for C, where blocks of more than 8 bytes are aligned to 16; indexed by the size
/// itself, which saves `malloc` two instructions of fourteen.
#[cfg(feature = "c-api")]
static OFFSETS_C: [u16; MAX_FINE + 1] = {
    let mut table = [bin_of(0); MAX_FINE + 1];
    let mut size = 9;
    while size <= MAX_FINE {
        table[size] = bin_of(class_index((size + 15) & !15));
        size += 1;
    }
    table
};

/// The byte offset of the bin for `malloc` of up to [`MAX_FINE`] bytes.
#[cfg(feature = "c-api")]
#[inline(always)]
pub(crate) fn bin_offset_c(size: usize) -> usize {
    debug_assert!(size <= MAX_FINE);
    // SAFETY: the caller keeps the size at or below MAX_FINE.
    unsafe { *OFFSETS_C.get_unchecked(size) as usize }
}

/// The size that decides the class: a multiple of the alignment. Cannot overflow for a valid
/// `Layout`, whose rounded size fits `isize`.
#[inline(always)]
pub(crate) const fn rounded(layout: Layout) -> usize {
    if layout.align() <= 8 {
        layout.size()
    } else {
        layout.size().wrapping_add(layout.align() - 1) & !(layout.align() - 1)
    }
}

/// The byte offset of the bin for a rounded size of up to [`MAX_SMALL`] bytes.
#[inline(always)]
pub(crate) fn bin_offset(size: usize) -> usize {
    debug_assert!(size <= MAX_SMALL);
    let table: &'static [u16; MAX_SMALL / 8 + 1] = &OFFSETS;
    // SAFETY: the caller keeps the size at or below MAX_SMALL.
    unsafe { *table.get_unchecked(size.wrapping_add(7) >> 3) as usize }
}

/// The class of a rounded size of up to [`MAX_SMALL`] bytes.
#[inline]
pub(crate) fn class_for(size: usize) -> ClassId {
    class_at(bin_offset(size))
}

/// Moves the top of a bin by so many slots, in one instruction: the compiler would add to the top that
/// it knows and store that, which are two, but it does not take what an atomic holds for known. It
/// costs no time where it comes before the slot is used (after it, pairs take a quarter longer).
///
/// # Safety
/// The bin is the calling thread's.
#[inline(always)]
unsafe fn move_top(bin: *mut Bin, slots: isize) {
    // SAFETY: the caller's bin; only its thread uses it.
    let top = unsafe { AtomicPtr::from_ptr(&raw mut (*bin).top) };
    top.store(top.load(Relaxed).wrapping_offset(slots), Relaxed);
}

/// Takes a block out of the bin at `offset`; null if it has none.
///
/// # Safety
/// `cache` is the calling thread's cache pointer, `offset` that of a bin.
#[inline(always)]
pub(crate) unsafe fn pop(cache: *mut ThreadCache, offset: usize) -> *mut u8 {
    // SAFETY: the pointer is to this thread's cache; `top` of a class's bin always points at a
    // slot of the class, or at the null slot of a thread without a body.
    unsafe {
        let bin = cache.byte_add(offset).cast::<Bin>();
        let top = (*bin).top;
        move_top(bin, -1);
        let block = *top;
        if block.is_null() {
            // Below the null slot there is nothing.
            move_top(bin, 1);
        }
        block
    }
}

/// Keeps a block in the bin at `offset`; false if there is no room.
///
/// # Safety
/// As for [`pop`]; the block is of the bin's class and free to be handed out again.
#[inline(always)]
pub(crate) unsafe fn push(cache: *mut ThreadCache, offset: usize, block: *mut u8) -> bool {
    // SAFETY: as in `pop`; below `limit` there is a next slot.
    unsafe {
        let bin = cache.byte_add(offset).cast::<Bin>();
        let top = (*bin).top;
        // Not "equal": the limit of a closed bin is null.
        if top >= (*bin).limit {
            return false;
        }
        move_top(bin, 1);
        *top.add(1) = block;
        true
    }
}

/// The class whose bin is at `offset`.
#[inline(always)]
pub(crate) const fn class_at(offset: usize) -> ClassId {
    ClassId::new(offset / size_of::<Bin>() - 1)
}

impl Body {
    /// In a forked child, where the thread is not that used it: forgets what its cache held.
    pub(crate) fn forget_runs(&mut self) {
        self.runs.forget();
    }
    /// Makes a body out of zeroed memory.
    ///
    /// # Safety
    /// `place` is zeroed, aligned, private and large enough; `member` lives for ever and is no other
    /// body's.
    pub(crate) unsafe fn init(place: *mut Body, member: *const Member) {
        // SAFETY: the caller's.
        unsafe { (*place).member = member };
    }
}

impl ThreadCache {
    /// The cache of a thread that has not allocated yet. In the C library it is made by hand (`tls`).
    #[cfg_attr(feature = "c-api", allow(dead_code))]
    pub(crate) const NEW: ThreadCache = ThreadCache {
        bins: [Bin { top: NO_SLOT, limit: NO_SLOT }; BINS],
        first: FirstRegion::NONE,
        body: ptr::null_mut(),
        phase: Phase::New,
        closed: false,
    };

    /// Starts to use a body, all of whose slots are free. The cache has none yet.
    ///
    /// # Safety
    /// The body is initialised and nobody else's.
    pub(crate) unsafe fn attach(&mut self, body: *mut Body, first: FirstRegion, closed: bool) {
        debug_assert!(self.bins.iter().all(|bin| bin.top == NO_SLOT && bin.limit == NO_SLOT));
        self.body = body;
        self.first = first;
        self.phase = Phase::Live;
        self.closed = closed;
        self.room_bytes = 0;
        self.strangers = [0; CLASSES];
        self.fetched = [0; CLASSES];
        self.places = Places::NEAR;
        // Not what the thread before needed: most threads are short, and need little.
        self.batch = FIRST_BATCHES;
        // The bins stay as they are until they get room. To look at a body's null slot before
        // anything was written beside it would have the page mapped twice, to be read and to be
        // written, and the second time all processors be told.
    }

    /// The counter of this thread's visits to the engine.
    pub(crate) fn visits(&self) -> &'static Visits {
        // SAFETY: a body's member is valid for ever.
        unsafe { &(*self.member).visits }
    }

    /// Lets go of the body, whose slots are all free by now, for good.
    pub(crate) fn detach(&mut self) -> *mut Body {
        let body = self.body;
        self.give_up();
        body
    }

    /// Lets go of everything: the thread must not allocate any more.
    pub(crate) fn give_up(&mut self) {
        // In place, bin by bin: a second copy of an empty cache would be a table of addresses, which
        // every process that loads the C library has to fill in.
        self.bins.fill(Bin { top: NO_SLOT, limit: NO_SLOT });
        (self.first, self.body) = (FirstRegion::NONE, ptr::null_mut());
        (self.phase, self.closed) = (Phase::Ended, false);
    }

    /// The null slot of a class.
    #[inline]
    pub(crate) fn start(&mut self, class: ClassId) -> *mut *mut u8 {
        let start = self.places.start(class.index());
        (&raw mut self.deref_mut().slots).cast::<*mut u8>().wrapping_add(start)
    }
    /// Whether a bin is still as a thread's bins start: empty and full, and of no place in the body.
    #[inline]
    fn has_no_room(&self, class: ClassId) -> bool {
        self.bins[class.index() + 1].limit == NO_SLOT
    }
    /// Blocks in a bin.
    #[inline]
    pub(crate) fn len(&mut self, class: ClassId) -> usize {
        if self.has_no_room(class) {
            return 0;
        }
        let start = self.start(class);
        (self.bins[class.index() + 1].top.addr() - start.addr()) / size_of::<*mut u8>()
    }
    /// Most blocks that a class's bin may ever hold.
    #[inline]
    pub(crate) fn capacity(class: ClassId) -> usize {
        capacity(class.index())
    }
    /// Blocks that a bin may hold now.
    #[inline]
    pub(crate) fn room(&mut self, class: ClassId) -> usize {
        if self.has_no_room(class) {
            return 0;
        }
        if self.closed {
            return capacity(class.index());
        }
        let start = self.start(class);
        (self.bins[class.index() + 1].limit.addr() - start.addr()) / size_of::<*mut u8>()
    }
    /// Lets a bin hold up to `room` blocks, no fewer than before.
    pub(crate) fn set_room(&mut self, class: ClassId, room: usize) {
        let most = capacity(class.index());
        let (had, len, size) = (self.room(class), self.len(class), class.size());
        let before = self.start(class);
        if self.closed {
            // All of it at once: nothing is kept here but what somebody puts.
            if self.has_no_room(class) {
                self.places.make_room(class.index(), most);
                let start = self.start(class);
                self.bins[class.index() + 1] = Bin { top: start, limit: ptr::null_mut() };
            }
            return;
        }
        let room = room.min(most);
        self.room_bytes = self.room_bytes.wrapping_add(room * size).wrapping_sub(had * size);
        let moves = self.places.make_room(class.index(), room);
        let start = self.start(class);
        if moves && len > 0 {
            // SAFETY: the bin's blocks, and a place for as many that nothing uses.
            unsafe { ptr::copy_nonoverlapping(before.add(1), start.add(1), len) };
        }
        self.bins[class.index() + 1] =
            Bin { top: start.wrapping_add(len), limit: start.wrapping_add(room) };
    }
    /// Whether the thread has not allocated any blocks of the class yet.
    #[inline]
    pub(crate) fn only_frees(&self, class: ClassId) -> bool {
        self.batch[class.index()] == FIRST_BATCHES[class.index()]
    }
    /// Notes that so many blocks of a class were fetched.
    pub(crate) fn note_fetched(&mut self, class: ClassId, count: usize) {
        let fetched = &mut self.fetched[class.index()];
        *fetched = fetched.saturating_add(count.min(usize::from(u16::MAX)) as u16);
    }
    /// Notes that blocks of a class went home because its bin was full.
    pub(crate) fn note_sent_home(&mut self, class: ClassId) {
        self.fetched[class.index()] /= 2;
    }
    /// Whether a heap that has taken so many granules grew enough since the last time to look for idle
    /// bins.
    #[inline]
    pub(crate) fn is_time_to_sweep(&mut self, taken: u32) -> bool {
        // Another region's heap has another count: one look too many.
        let due = taken.wrapping_sub(self.swept) >= SWEEP_GRANULES;
        if due {
            self.swept = taken;
        }
        due
    }
    /// Whether a bin has much, and as much as when this was last asked.
    pub(crate) fn is_idle(&mut self, class: ClassId) -> bool {
        let len = self.len(class);
        let before = core::mem::replace(&mut self.seen[class.index()], len as u16);
        before == len as u16 && len * class.size() >= IDLE_BYTES && !self.closed
    }
    /// Takes the room from a bin that is empty, or whose blocks somebody else has had.
    pub(crate) fn drop_room(&mut self, class: ClassId) {
        self.room_bytes -= self.room(class) * class.size();
        self.bins[class.index() + 1] = Bin { top: NO_SLOT, limit: NO_SLOT };
    }
    /// Makes room for a free that found none: the first time a little, later twice as much, as
    /// long as all bins together stay within [`ROOM_BYTES`]. False where a bin has what it may: of a
    /// class of which the thread fetches none, or few, no more than makes sending them home worth it. (It
    /// may allocate such blocks, and be given more of them than it needs.)
    pub(crate) fn widen(&mut self, class: ClassId) -> bool {
        let room = self.room(class);
        let passing = (PASSING_BYTES / class.size()).max(PASSING_BLOCKS);
        let most = passing.max(FETCHED_TIMES * self.fetched[class.index()] as usize);
        let most = most.min(capacity(class.index()));
        let wider = if room == 0 { (FIRST_BYTES / class.size()).clamp(2, 8) } else { 2 * room };
        let wider = wider.min(most);
        if wider <= room
            || (room > 0 && self.room_bytes + (wider - room) * class.size() > ROOM_BYTES)
        {
            return false;
        }
        self.set_room(class, wider);
        true
    }
    /// The first `count` slots of a class.
    pub(crate) fn slots(&mut self, class: ClassId, count: usize) -> *mut [*mut u8] {
        debug_assert!(count <= capacity(class.index()));
        ptr::slice_from_raw_parts_mut(self.start(class).wrapping_add(1), count)
    }
    /// Says that a bin holds its first `count` slots.
    pub(crate) fn set_len(&mut self, class: ClassId, count: usize) {
        debug_assert!(count <= self.room(class));
        self.bins[class.index() + 1].top = self.start(class).wrapping_add(count);
    }
    /// Puts a block into a bin that has fewer than its [`room`](Self::room).
    pub(crate) fn put(&mut self, class: ClassId, block: *mut u8) {
        let len = self.len(class);
        debug_assert!(len < self.room(class));
        // SAFETY: a slot of the class, past its last block.
        unsafe { *self.start(class).wrapping_add(len + 1) = block };
        self.set_len(class, len + 1);
    }
    /// Takes the `count` oldest blocks out of a bin, which has that many, after somebody else has
    /// had them.
    pub(crate) fn drop_oldest(&mut self, class: ClassId, count: usize) {
        let len = self.len(class);
        let first = self.start(class).wrapping_add(1);
        // SAFETY: the bin holds `len` blocks from `first`; the rest moves down over the oldest.
        unsafe { ptr::copy(first.add(count), first, len - count) };
        self.set_len(class, len - count);
    }
}

impl Deref for ThreadCache {
    type Target = Body;

    /// The body; the cache is live.
    fn deref(&self) -> &Body {
        debug_assert!(self.phase == Phase::Live);
        // SAFETY: a live cache has a body that is its alone.
        unsafe { &*self.body }
    }
}

impl DerefMut for ThreadCache {
    fn deref_mut(&mut self) -> &mut Body {
        debug_assert!(self.phase == Phase::Live);
        // SAFETY: as above.
        unsafe { &mut *self.body }
    }
}

#[cfg(test)]
mod tests;
