//! Which heaps the containers of this process live in: id -> base, length, allocator.
//!
//! A container knows its heap by id, which means the same in every process. Every look into a
//! container goes through this table, so it is made for that: the heap that was made known first has
//! a place of its own, the others 256 in an open-addressing table, all in static memory and read
//! without a lock.
//!
//! An entry's key is stored last and never changes again. The rest changes only when a heap is
//! [retired](ShmHeap::retire), or after a fork, when a child puts its own allocator there.
#![allow(unsafe_code)] // references into shared memory

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

use crate::alloc::Allocator;
use crate::base::{AllocatorId, Error, MemContext, Result};
use crate::os;
use crate::ptr::{OffsetPtr, ShmPtr, ShmSafe};
use crate::region::Region;
use crate::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::sync::lock::RawLock;

const ENTRIES: usize = 256;
/// The bases of heaps are multiples of this, and so are their lengths.
const UNIT: usize = 4096;
/// No block is smaller: allocators cannot keep smaller ones for a process that dies.
const LEAST: usize = 32;

/// What a process has for a heap, made once and never freed.
struct Home {
    /// `None` for a heap that is only read.
    alloc: Option<&'static dyn Allocator>,
    /// See `os::fork_generation`.
    generation: Option<u32>,
}

#[repr(C, align(32))] // `first_holds` reads it
struct Entry {
    /// See [`key`]; that of the null id in an empty entry.
    key: AtomicU64,
    /// Zero for an empty entry and for a retired heap, in which no place is found.
    len: AtomicUsize,
    base: AtomicUsize,
    home: AtomicPtr<Home>,
}

/// An id as one word, such that it is one load on machines that store the low half first.
#[inline(always)]
const fn key(id: AllocatorId) -> u64 {
    (id.minor() as u64) << 32 | id.major() as u64
}

const fn id_of(key: u64) -> AllocatorId {
    AllocatorId::new(key as u32, (key >> 32) as u32)
}

impl Entry {
    const fn empty() -> Entry {
        Entry {
            key: AtomicU64::new(key(AllocatorId::NULL)),
            len: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
            home: AtomicPtr::new(core::ptr::null_mut()),
        }
    }
}

/// The first heap that this process made known: mostly the only one.
static FIRST: Entry = Entry::empty();
static TABLE: [Entry; ENTRIES] = [const { Entry::empty() }; ENTRIES];
/// Never filled.
static NONE: Entry = Entry::empty();
static LOCK: RawLock = RawLock::new();

/// Registers hooks, once, that hold the lock across a fork: the child must not find it taken by a
/// thread that it does not have.
fn hold_still_across_forks() {
    static REGISTERED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn take() {
        LOCK.lock_raw();
    }
    extern "C" fn leave() {
        LOCK.unlock_raw();
    }
    if REGISTERED.load(Ordering::Acquire) == 0 {
        let _guard = LOCK.lock();
        if REGISTERED.swap(1, Ordering::AcqRel) == 0 {
            // Without hooks a fork at the wrong moment may stop the child's next heap; no more.
            let _ = os::at_fork(take, leave, leave);
        }
    }
}

/// The entry of an id, or the empty one where it would go.
fn probe(key: u64) -> Result<&'static Entry, Option<&'static Entry>> {
    let home = home_of(key);
    let others = (0..ENTRIES).map(|step| &TABLE[(home + step) & (ENTRIES - 1)]);
    for entry in core::iter::once(&FIRST).chain(others) {
        match entry.key.load(Ordering::Acquire) {
            found if found == key => return Ok(entry),
            found if found == self::key(AllocatorId::NULL) => return Err(Some(entry)),
            _ => {}
        }
    }
    Err(None)
}

#[inline(never)]
fn another(key: u64) -> &'static Entry {
    probe(key).unwrap_or(&NONE)
}

/// The entry of an id, an empty one if there is none.
#[inline(always)]
fn entry(key: u64) -> &'static Entry {
    if is_first(key) { &FIRST } else { another(key) }
}

#[inline(always)]
fn is_first(key: u64) -> bool {
    FIRST.key.load(Ordering::Acquire) == key
}

fn home(id: AllocatorId) -> Result<&'static Home> {
    // SAFETY: null, or a home, which are never freed; stored with Release.
    unsafe { entry(key(id)).home.load(Ordering::Acquire).as_ref() }
        .ok_or(Error::UnknownAllocator { id })
}

/// The allocator of a heap: [`Error::ReadOnly`] where there is none.
fn allocator(id: AllocatorId) -> Result<&'static dyn Allocator> {
    home(id)?.alloc.ok_or(Error::ReadOnly)
}

/// Whether this process may change a heap.
pub(super) fn writable(id: AllocatorId) -> Result<()> {
    allocator(id).map(|_| ())
}

/// Whether what a container of this heap owns may be dropped here. Not where the heap can only be
/// read, nor in a forked child that has not made the heap known itself: what it has are copies of its
/// parent's containers, and the parent has what they own.
pub(super) fn owned(id: AllocatorId) -> bool {
    home(id).is_ok_and(|home| home.alloc.is_some() && home.generation == os::fork_generation())
}

/// Where this process sees `count` values of `T` at `offset` of a heap. The place is all inside the
/// heap's region and aligned; what is there is not looked at. It stays mapped until the heap is
/// retired.
#[inline(always)]
pub(super) fn place<T>(id: AllocatorId, offset: u64, count: u64) -> Result<NonNull<T>> {
    match look_up::<T>(key(id), offset, count) {
        Some(address) => Ok(at(address)),
        None => Err(out_of_reach(key(id), offset, align_of::<T>())),
    }
}

/// [`place`], for who has no error to give.
#[inline(always)]
pub(super) fn reach<T>(id: AllocatorId, offset: u64, count: u64) -> NonNull<T> {
    match look_up::<T>(key(id), offset, count) {
        Some(address) => at(address),
        None => lost_at(key(id), offset, align_of::<T>()),
    }
}

/// [`reach`] for value `index` of those at `offset`, in fewer instructions: loops that index containers
/// come here each time.
#[inline(always)]
pub(super) fn reach_nth<T>(id: AllocatorId, offset: u64, index: u64) -> NonNull<T> {
    // Damaged words may wrap here; the place is inside the heap all the same.
    let place = offset.wrapping_add(index.wrapping_mul(size_of::<T>() as u64));
    // Of the offset and not of the place, so that a loop has to look once.
    if !is_aligned::<T>(offset) {
        lost_at(key(id), offset, align_of::<T>());
    }
    let found = if is_first(key(id)) {
        nth_in::<T>(&FIRST, place)
    } else {
        elsewhere(key(id)).and_then(|entry| nth_in::<T>(entry, place))
    };
    match found {
        Some(address) => at(address),
        None => lost_at(key(id), place, align_of::<T>()),
    }
}

/// [`reach_nth`] in even fewer, for loops that do nothing else. (What calls it is not inlined as readily.)
#[inline(always)]
pub(super) fn reach_element<T>(id: AllocatorId, offset: u64, index: u64) -> NonNull<T> {
    if !ends_inside::<T>() {
        return reach_nth(id, offset, index);
    }
    let place = offset.wrapping_add(index.wrapping_mul(size_of::<T>() as u64));
    if !is_aligned::<T>(offset) {
        lost_at(key(id), offset, align_of::<T>());
    }
    if let Some(base) = first_holds(key(id), place) {
        return at(base + place as usize);
    }
    match elsewhere(key(id)).and_then(|entry| nth_in::<T>(entry, place)) {
        Some(address) => at(address),
        None => lost_at(key(id), place, align_of::<T>()),
    }
}

/// The base of the first heap, if that is `key`'s, and `place` less than its length.
///
/// The compiler makes two instructions of an atomic load and a comparison with it. Here it is one, and as
/// ordered: on this machine loads are not reordered, so the base is of what the length is of.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(loom), not(miri)))]
#[inline(always)]
fn first_holds(key: u64, place: u64) -> Option<usize> {
    let base: usize;
    // SAFETY: aligned words of a static, which others change by atomic stores only; nothing is written. Neither
    // block is `pure`, so that the second is where it stands: behind the first, and if that did not leave.
    unsafe {
        core::arch::asm!(
            "cmp qword ptr [{entry} + {at_key}], {key}",
            "jne {other}",
            "cmp qword ptr [{entry} + {at_len}], {place}",
            "jbe {other}",
            entry = in(reg) &raw const FIRST,
            at_key = const core::mem::offset_of!(Entry, key),
            at_len = const core::mem::offset_of!(Entry, len),
            key = in(reg) key,
            place = in(reg) place,
            other = label { return None },
            options(nostack, readonly)
        );
        core::arch::asm!(
            "mov {base}, qword ptr [{entry} + {at_base}]",
            entry = in(reg) &raw const FIRST,
            at_base = const core::mem::offset_of!(Entry, base),
            base = lateout(reg) base,
            options(nostack, readonly, preserves_flags)
        );
    }
    Some(base)
}

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", not(loom), not(miri))))]
#[inline(always)]
fn first_holds(key: u64, place: u64) -> Option<usize> {
    let here = is_first(key) && place < FIRST.len.load(Ordering::Acquire) as u64;
    here.then(|| FIRST.base.load(Ordering::Relaxed))
}

/// Whether an aligned value that begins inside a heap ends inside: it is as long as it is aligned, and so are
/// heaps.
#[inline(always)]
const fn ends_inside<T>() -> bool {
    size_of::<T>() == align_of::<T>() && size_of::<T>() <= UNIT
}

/// [`probe`] in the table, without a call: one that may come back would take the registers from a loop
/// over the first heap.
#[inline(always)]
fn elsewhere(key: u64) -> Option<&'static Entry> {
    core::hint::cold_path();
    let home = home_of(key);
    let mut step = 0;
    while step < ENTRIES {
        let entry = &TABLE[(home + step) % ENTRIES];
        match entry.key.load(Ordering::Acquire) {
            found if found == key => return Some(entry),
            found if found == self::key(AllocatorId::NULL) => return None,
            _ => step += 1,
        }
    }
    None
}

/// Where the table is looked through from.
#[inline(always)]
const fn home_of(key: u64) -> usize {
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize
}

/// The address of a value at `offset`, which is as aligned as it has to be.
#[inline(always)]
fn nth_in<T>(entry: &Entry, offset: u64) -> Option<usize> {
    let length = entry.len.load(Ordering::Acquire) as u64;
    let begins = match ends_inside::<T>() {
        true => length,
        false => length.saturating_sub(size_of::<T>() as u64 - 1),
    };
    if offset >= begins {
        return None;
    }
    let address = entry.base.load(Ordering::Relaxed) + offset as usize;
    is_aligned_at::<T>(address).then_some(address)
}

/// Whether values may lie at this offset, as far as that does not depend on the base.
#[inline(always)]
fn is_aligned<T>(offset: u64) -> bool {
    offset & (align_of::<T>().min(UNIT) as u64 - 1) == 0
}

/// Whether values may lie at this address, whose offset [is aligned](is_aligned).
#[inline(always)]
fn is_aligned_at<T>(address: usize) -> bool {
    align_of::<T>() <= UNIT || address & (align_of::<T>() - 1) == 0
}

#[inline(always)]
fn look_up<T>(key: u64, offset: u64, count: u64) -> Option<usize> {
    let entry = entry(key);
    let length = entry.len.load(Ordering::Acquire) as u64;
    let (bytes, too_many) = count.overflowing_mul(size_of::<T>() as u64);
    if too_many || !is_aligned::<T>(offset) || offset >= length || bytes > length - offset {
        return None;
    }
    let address = entry.base.load(Ordering::Relaxed) + offset as usize;
    is_aligned_at::<T>(address).then_some(address)
}

/// The pointer to what was found.
#[inline(always)]
fn at<T>(address: usize) -> NonNull<T> {
    // SAFETY: no heap with a length begins at null (`publish`), and the address is inside the heap.
    unsafe { NonNull::new_unchecked(core::ptr::with_exposed_provenance_mut(address)) }
}

/// Why a look-up failed.
#[cold]
#[inline(never)]
fn out_of_reach(key: u64, offset: u64, align: usize) -> Error {
    let entry = entry(key);
    let length = entry.len.load(Ordering::Acquire) as u64;
    match entry.base.load(Ordering::Relaxed).wrapping_add(offset as usize) {
        _ if length == 0 => Error::UnknownAllocator { id: id_of(key) },
        address if offset < length && address & (align - 1) != 0 => Error::BadAlignment { align },
        _ => Error::OffsetOutOfRange { offset, length },
    }
}

#[cold]
#[inline(never)]
fn lost_at(key: u64, offset: u64, align: usize) -> ! {
    lost(out_of_reach(key, offset, align))
}

/// A block that outlives this process: nobody's, until somebody frees it.
pub(super) fn allocate(id: AllocatorId, layout: Layout) -> Result<u64> {
    let alloc = allocator(id)?;
    alloc.allocate_kept_offset(MemContext::DEFAULT, at_least(layout)?).map(OffsetPtr::offset)
}

/// Makes a block longer or shorter, in place where that can be. On an error it is unchanged.
///
/// # Safety
/// The block came from [`allocate`] with this id and is the caller's alone.
pub(super) unsafe fn reallocate(id: AllocatorId, block: u64, layout: Layout) -> Result<u64> {
    let alloc = allocator(id)?;
    let old = OffsetPtr::new(block);
    // SAFETY: the caller's contract.
    let new = unsafe { alloc.reallocate_offset(MemContext::DEFAULT, old, at_least(layout)?)? };
    if new != old {
        // SAFETY: this process's own, from just now, which nobody else knows. Should it fail, the block is as good as any, until we die.
        let _ = unsafe { alloc.keep_offset(new) };
    }
    Ok(new.offset())
}

/// Frees a block. In a process that may not (see [`owned`]) the block stays.
///
/// # Safety
/// As for [`reallocate`], and it is not used again.
pub(super) unsafe fn free(id: AllocatorId, block: u64) {
    if owned(id)
        && let Ok(alloc) = allocator(id)
    {
        // SAFETY: the caller's contract. What is no block is refused, and stays what it is.
        let _ = unsafe { alloc.free_offset(MemContext::DEFAULT, OffsetPtr::new(block)) };
    }
}

fn at_least(layout: Layout) -> Result<Layout> {
    Layout::from_size_align(layout.size().max(LEAST), layout.align()).map_err(|_| too_large())
}

/// The error for a size that no memory can have.
pub(super) fn too_large() -> Error {
    Error::OutOfMemory { requested: usize::MAX, available: 0 }
}

/// A container that is used where its heap is not attached, or whose own words are damaged.
#[cold]
#[track_caller]
pub(super) fn lost(error: Error) -> ! {
    panic!("a container's memory is out of reach: {error}")
}

/// A heap that containers live in: the allocator that this process has for it, made known.
///
/// Containers know their heap by its id, in every process that has it. A process makes it known once
/// ([`of`](Self::of), [`reader`](Self::reader)); from then on it can use all containers of that
/// heap, wherever the heap is mapped. It stays mapped: that is what the `'static` is for.
///
/// What containers allocate outlives the process: it is freed when the container is dropped, and
/// not when a process dies. A forked child has copies of its parent's containers; when those are
/// dropped nothing happens, as long as the child has not made the heap known anew.
///
/// ```
/// use hshm::{AllocatorId, Region, ShmHeap, ShmVec, ThreadLocalAllocator};
/// # let region = Region::anonymous(AllocatorId::new(901, 0), 16 << 20)?;
/// let alloc = Box::leak(Box::new(ThreadLocalAllocator::shm_init(region)?));
/// let heap = ShmHeap::of(alloc)?;
/// let mut primes = ShmVec::from_slice_in(&[2, 3, 5], heap)?;
/// primes.push(7)?;
/// assert_eq!(primes.iter().sum::<i32>(), 17);
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShmHeap {
    id: AllocatorId,
}

impl fmt::Debug for ShmHeap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShmHeap({})", self.id)
    }
}

impl ShmHeap {
    /// Makes `alloc` the one that this process's containers use in its heap.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where this process has one for that id (a forked child replaces its
    /// parent's), [`Error::UnknownAllocator`] for one without an id, [`Error::TableFull`] after 257
    /// different ids; [`Error::BadAlignment`] where base or length are no multiples of 4096, as those of
    /// all allocators of this library are.
    pub fn of<A: Allocator>(alloc: &'static A) -> Result<ShmHeap> {
        Self::publish(alloc.id(), alloc.base(), alloc.region_len(), Some(alloc))
    }

    /// Lets this process look into the containers of a region that it may have mapped to read only.
    /// Nothing can be allocated; what is dropped stays. The region stays mapped.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn reader(region: &Region) -> Result<ShmHeap> {
        let heap = Self::publish(region.id(), region.base(), region.len(), None)?;
        region.leak();
        Ok(heap)
    }

    fn publish(
        id: AllocatorId,
        base: *mut u8,
        len: usize,
        alloc: Option<&'static dyn Allocator>,
    ) -> Result<ShmHeap> {
        // Whose offsets are addresses has no id, and no base.
        if id.is_null() || base.is_null() {
            return Err(Error::UnknownAllocator { id });
        }
        if (base.addr() | len) & (UNIT - 1) != 0 {
            return Err(Error::BadAlignment { align: UNIT });
        }
        let generation = os::fork_generation();
        let home = Box::into_raw(Box::new(Home { alloc, generation }));
        hold_still_across_forks();
        let guard = LOCK.lock();
        let refused = |error| {
            drop(guard);
            // SAFETY: made just now, and nobody has seen it.
            drop(unsafe { Box::from_raw(home) });
            Err(error)
        };
        let entry = match probe(key(id)) {
            Ok(entry) => {
                let of_now = self::home(id).is_ok_and(|home| home.generation == generation);
                if entry.len.load(Ordering::Relaxed) != 0 && of_now {
                    return refused(Error::AlreadyExists);
                }
                entry
            }
            Err(Some(entry)) => entry,
            Err(None) => return refused(Error::TableFull { slots: ENTRIES }),
        };
        entry.home.store(home, Ordering::Release);
        entry.base.store(base.expose_provenance(), Ordering::Relaxed);
        entry.len.store(len, Ordering::Release);
        entry.key.store(key(id), Ordering::Release);
        Ok(ShmHeap { id })
    }

    /// The heap of this id, where this process made it known.
    pub fn by_id(id: AllocatorId) -> Result<ShmHeap> {
        home(id).map(|_| ShmHeap { id })
    }

    /// Its id.
    pub const fn id(self) -> AllocatorId {
        self.id
    }

    /// Forgets the heap: its allocator and region may go.
    ///
    /// # Safety
    /// From now on this process uses no container of the heap, and no reference into it.
    pub unsafe fn retire(self) {
        let _guard = LOCK.lock();
        if let Ok(entry) = probe(key(self.id)) {
            entry.len.store(0, Ordering::Release);
            entry.home.store(core::ptr::null_mut(), Ordering::Release);
        }
    }

    fn own<T>(self, place: ShmPtr<T>) -> Result<NonNull<T>> {
        if place.id() != self.id {
            return Err(Error::ForeignPointer { found: place.id(), expected: self.id });
        }
        self::place(self.id, place.offset().offset(), 1)
    }

    /// The value at a place that another process told, such as the first container of a heap.
    ///
    /// # Errors
    /// [`Error::ForeignPointer`], [`Error::OffsetOutOfRange`], [`Error::BadAlignment`] for a place
    /// that cannot be; [`Error::UnknownAllocator`] after [`retire`](Self::retire).
    ///
    /// # Safety
    /// While the reference is used, a valid `T` is there, and nobody, in any process, writes to it
    /// or to what its containers hold, or frees any of it (outside of atomics, as a
    /// [`ShmRing`](crate::ShmRing)'s). Valid means: what a container of this library holds, made by
    /// the same version of it, and not bytes that somebody else put there.
    pub unsafe fn get<T: ShmSafe>(self, place: ShmPtr<T>) -> Result<&'static T> {
        let place = self.own(place)?;
        // SAFETY: inside the heap, which stays mapped, and aligned; the rest is the caller's.
        Ok(unsafe { place.as_ref() })
    }

    /// [`get`](Self::get), to change it. [`Error::ReadOnly`] where this process has the heap to read.
    ///
    /// # Safety
    /// As for `get`, and nobody else, in any process, has a reference to the value or into it.
    pub unsafe fn get_mut<T: ShmSafe>(self, place: ShmPtr<T>) -> Result<&'static mut T> {
        writable(self.id)?;
        let mut place = self.own(place)?;
        // SAFETY: as in `get`; that nobody else has it is the caller's promise.
        Ok(unsafe { place.as_mut() })
    }
}
