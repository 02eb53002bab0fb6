//! An arena in a region of shared memory, which other processes read and may go on with.
//!
//! ```text
//!   | region header | Shared | data, published ..... | pushed since | to be committed     |
//!                            start                   position       the writer's top      end
//! ```
//!
//! One process at a time pushes: the *writer*. It holds a byte of the region's file locked, which
//! the kernel lets go when the process ends, so that a dead one is replaced and a live one is not,
//! whatever the header says. (Where there is no such lock, in private memory or on some file systems,
//! the header says who the writer is, and the process table whether it lives; where that cannot be
//! told it is taken to live.) What it pushes are offsets to others:
//! [`Arena::pos`] of such an arena counts from the region's base. Others see what was *published*:
//! the writer stores its top in `position` with Release, a reader loads it with Acquire, and
//! everything below was written before. The arena's own bookkeeping (blocks, limits) is the
//! writer's alone and stays out of the region; what is read from the header is checked.
//!
//! A writer that dies leaves what it published; its successor goes on from there.
#![allow(unsafe_code)] // references into shared memory

use core::fmt;
use core::mem::{align_of, size_of};
use core::ops::Deref;
use core::ptr::NonNull;
use core::slice;

use super::block::Block;
use super::options::{ArenaBuilder, Options};
use super::{Arena, Growth};
use crate::base::{Error, Result, align_up};
use crate::heap::liveness::Described;
use crate::heap::words::{Atoms, Words};
use crate::os::{self, ByteLock};
use crate::ptr::{FullPtr, OffsetPtr, ShmPtr};
use crate::region::Region;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// "hshmARNA", little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"hshmARNA");
/// Changes whenever the meaning of a byte of the header does.
const VERSION: u32 = 2;
/// The byte of the file that the writer has locked.
const WRITER_BYTE: u32 = 0;
/// In the word that says who the writer is: it has the lock, and needs no other witness.
const LOCKED: u32 = 1 << 31;
/// There: somebody becomes the writer, and has not yet said who it is.
const CLAIMED: u32 = LOCKED - 1;
/// What the region header says of such a region.
const ARENA_ENGINE: u32 = 3;

#[repr(C, align(64))]
struct Shared {
    magic: AtomicU64,
    version: AtomicU32,
    /// Pid of the writer, or 0; and whether it has the lock.
    writer: AtomicU32,
    /// When it started.
    writer_start: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    position: AtomicU64,
    root: AtomicU64,
    /// The writer's pid namespace.
    namespace: AtomicU64,
}

// SAFETY: `repr(C)`, atomics without padding: 8 + 4 + 4 + 6 * 8 = 64 bytes.
unsafe impl Atoms for Shared {}
const _: () = assert!(size_of::<Shared>() == 64);

fn words_of(region: &Region) -> Result<Words> {
    if !region.base().addr().is_multiple_of(align_of::<Shared>()) {
        return Err(Error::BadAlignment { align: align_of::<Shared>() });
    }
    // SAFETY: whoever keeps the words keeps the region; what is accessed is the header, by atomics.
    Ok(unsafe { Words::new(region.base(), region.len()) })
}

/// Bounds and position of an arena, checked against each other and the region.
#[derive(Clone, Copy)]
struct Bounds {
    start: u64,
    position: u64,
    end: u64,
}

/// The header of the arena in a region.
fn find(region: &Region, words: &Words) -> Result<(u64, Bounds)> {
    let kind = region.header().engine_kind.load(Ordering::Acquire);
    if kind != ARENA_ENGINE {
        return Err(Error::Incompatible { found: kind, expected: ARENA_ENGINE });
    }
    let at = region.header().engine_offset.load(Ordering::Relaxed);
    if at < region.payload_offset() as u64 {
        return Err(Error::Corrupt);
    }
    let shared = words.place::<Shared>(at)?;
    if shared.magic.load(Ordering::Acquire) != MAGIC {
        return Err(Error::NotARegion);
    }
    let found = shared.version.load(Ordering::Relaxed);
    if found != VERSION {
        return Err(Error::Incompatible { found, expected: VERSION });
    }
    let bounds = Bounds {
        position: shared.position.load(Ordering::Acquire),
        start: shared.start.load(Ordering::Relaxed),
        end: shared.end.load(Ordering::Relaxed),
    };
    let Bounds { start, position, end } = bounds;
    let sound = at.checked_add(size_of::<Shared>() as u64).is_some_and(|after| after <= start)
        && start <= position
        && position <= end
        && end <= region.len() as u64;
    if sound { Ok((at, bounds)) } else { Err(Error::Corrupt) }
}

/// An arena that fills a region: its one writer.
///
/// It is an [`Arena`] (reserved mode) whose positions are offsets in the region. Nothing that is
/// pushed may be seen by others before [`publish`](Self::publish).
///
/// ```
/// use hshm::arena::{ArenaReader, RegionArena};
/// use hshm::{Backend, MIB, MemfdBackend, Region, RegionOptions};
///
/// let region = MemfdBackend::create("tree", &RegionOptions::new().capacity(16 * MIB))?;
/// let token = region.token()?;
/// let arena = RegionArena::create(region, &Default::default())?;
/// let squares = arena.push_iter((0..100u64).map(|n| n * n));
/// arena.set_root(arena.offset_of(&squares[0])?);
/// arena.publish();
///
/// // In another process, which got the token:
/// let there = Region::attach_token(&token, &RegionOptions::new().read_only(true))?;
/// let reader = ArenaReader::attach(there)?;
/// let root = reader.root::<u64>().expect("it was set");
/// // SAFETY: a hundred numbers are there, and their writer leaves them alone.
/// assert_eq!(unsafe { reader.get_slice(root, 100)? }[99], 99 * 99);
/// # Ok::<(), hshm::Error>(())
/// ```
///
/// After a `fork` the arena stays the parent's: the child must not push. Pools and heaps over it refuse
/// ([`Error::Forked`]), and to drop the arena, its scopes, its vectors and what is in pools changes nothing.
pub struct RegionArena {
    arena: Arena<'static>,
    region: Region,
    words: Words,
    at: u64,
    /// The offset of the first byte that can be pushed.
    start: usize,
    pid: u32,
    /// Goes with the arena, or with the process.
    _lock: Option<ByteLock>,
}

impl RegionArena {
    /// Makes an arena of what a region has behind its header. Of the settings, growth and capacity
    /// are the region's.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for a region that is something already; [`Error::ReadOnly`];
    /// [`Error::OutOfMemory`]; those of [`ArenaBuilder::build`] for the settings.
    pub fn create(region: Region, settings: &ArenaBuilder) -> Result<RegionArena> {
        let options = Self::options(settings)?;
        let words = words_of(&region)?;
        region.claim_engine()?;
        let at = region.payload_offset() as u64;
        let made = Self::lay_out(&region, &words, at, options).and_then(|arena| {
            let lock = become_writer(&region, words.place::<Shared>(at)?)?;
            Ok((arena, lock))
        });
        match made {
            Ok((arena, _lock)) => {
                region.finish_engine(ARENA_ENGINE, at);
                let start = at as usize + size_of::<Shared>();
                Ok(RegionArena { arena, region, words, at, start, pid: os::process_id(), _lock })
            }
            Err(error) => {
                region.abandon_engine();
                Err(error)
            }
        }
    }

    fn options(settings: &ArenaBuilder) -> Result<Options> {
        settings.growth(Growth::Reserved).capacity(1).check()
    }

    fn lay_out(
        region: &Region,
        words: &Words,
        at: u64,
        options: Options,
    ) -> Result<Arena<'static>> {
        let start = at as usize + size_of::<Shared>();
        let first = options.commit_step.min(region.len() - at as usize);
        region.commit(at, first)?;
        let shared = words.place::<Shared>(at)?;
        let zero = region.known_zero() && region.is_creator();
        let arena =
            Self::arena_over(region, options, start, region.len(), at as usize + first, zero)?;
        shared.version.store(VERSION, Ordering::Relaxed);
        // Whatever was here before.
        shared.writer.store(0, Ordering::Relaxed);
        shared.start.store(start as u64, Ordering::Relaxed);
        shared.end.store(region.len() as u64, Ordering::Relaxed);
        shared.position.store(start as u64, Ordering::Relaxed);
        shared.root.store(u64::MAX, Ordering::Relaxed);
        shared.magic.store(MAGIC, Ordering::Release);
        Ok(arena)
    }

    fn arena_over(
        region: &Region,
        options: Options,
        start: usize,
        end: usize,
        committed: usize,
        zero: bool,
    ) -> Result<Arena<'static>> {
        let block = Box::new(Block::over_region(region, start, end, committed, zero));
        let block = NonNull::from(Box::leak(block));
        Arena::with_block(block, options, Some(region.clone()))
    }

    /// Becomes the writer of the arena that a region has, and goes on behind what was published.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] while the writer there is lives; [`Error::Incompatible`] for a
    /// region that is something else; [`Error::Corrupt`], [`Error::ReadOnly`],
    /// [`Error::OutOfMemory`].
    pub fn attach(region: Region, settings: &ArenaBuilder) -> Result<RegionArena> {
        let options = Self::options(settings)?;
        if !region.is_writable() {
            return Err(Error::ReadOnly);
        }
        let words = words_of(&region)?;
        let (at, _) = find(&region, &words)?;
        let _lock = become_writer(&region, words.place::<Shared>(at)?)?;
        // Only the writer moves the position: what is read now stays.
        let made = find(&region, &words).and_then(|(at, bounds)| {
            let position = bounds.position as usize;
            let page = options.page_size;
            let committed = align_up(position, page).unwrap_or(region.len()).min(region.len());
            let (start, end) = (bounds.start as usize, bounds.end as usize);
            let arena = Self::arena_over(&region, options, start, end, committed.min(end), false)?;
            arena.start_at(position - start);
            Ok((arena, at, start))
        });
        match made {
            Ok((arena, at, start)) => {
                Ok(RegionArena { arena, region, words, at, start, pid: os::process_id(), _lock })
            }
            Err(error) => {
                if let Ok(shared) = words.place::<Shared>(at) {
                    shared.writer.store(0, Ordering::Release);
                }
                Err(error)
            }
        }
    }

    fn shared(&self) -> Option<&Shared> {
        // It was there when the arena was made, and the region has not become shorter.
        self.words.place::<Shared>(self.at).ok()
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Lets others see everything that was pushed so far, and tells how far that is.
    pub fn publish(&self) -> u64 {
        let position = self.arena.pos() as u64;
        if let Some(shared) = self.shared() {
            shared.position.store(position, Ordering::Release);
        }
        position
    }

    /// Where a value of this arena lies in the region.
    ///
    /// # Errors
    /// [`Error::NotInAnyRegion`] for what is not in this arena.
    pub fn offset_of<T>(&self, value: &T) -> Result<OffsetPtr<T>> {
        let address = (&raw const *value).addr();
        let offset = address.wrapping_sub(self.region.base().addr());
        let end = offset.checked_add(size_of::<T>());
        if offset < self.start || end.is_none_or(|end| end > self.region.len()) {
            return Err(Error::NotInAnyRegion { address });
        }
        Ok(OffsetPtr::new(offset as u64))
    }

    /// The pointer to a value of this arena that every process understands which has the region.
    ///
    /// # Errors
    /// As [`offset_of`](Self::offset_of).
    pub fn shm_of<T>(&self, value: &T) -> Result<ShmPtr<T>> {
        Ok(ShmPtr::new(self.region.id(), self.offset_of(value)?))
    }

    /// Both.
    ///
    /// # Errors
    /// As [`offset_of`](Self::offset_of).
    pub fn full_of<T>(&self, value: &mut T) -> Result<FullPtr<T>> {
        let shm = self.shm_of(value)?;
        Ok(FullPtr::from_parts(value, shm))
    }

    /// Says where readers start. Null for nowhere.
    pub fn set_root<T>(&self, root: OffsetPtr<T>) {
        if let Some(shared) = self.shared() {
            shared.root.store(root.offset(), Ordering::Release);
        }
    }

    /// [`Arena::pop_to`]; `position` is an offset in the region. What was published and is taken
    /// back is no longer published. Readers that still look at it are the caller's to keep away.
    ///
    /// # Errors
    /// As there.
    pub fn pop_to(&mut self, position: usize) -> Result<()> {
        if position < self.first() {
            let length = self.arena.pos() as u64;
            return Err(Error::OffsetOutOfRange { offset: position as u64, length });
        }
        if position <= self.arena.pos()
            && let Some(shared) = self.shared()
            && shared.position.load(Ordering::Relaxed) > position as u64
        {
            shared.position.store(position as u64, Ordering::Release);
        }
        self.arena.pop_to(position)
    }

    /// Takes back everything, as [`pop_to`](Self::pop_to) the start.
    pub fn clear(&mut self) {
        let done = self.pop_to(self.first());
        debug_assert!(done.is_ok(), "nothing lies before the start");
    }

    /// The offset of the first byte that can be pushed.
    pub fn first(&self) -> usize {
        self.start
    }
}

/// Makes this process the writer, unless somebody who lives is it.
fn become_writer(region: &Region, shared: &Shared) -> Result<Option<ByteLock>> {
    let lock = match region.own_fd().map(|fd| ByteLock::take(fd, region.lock_byte(WRITER_BYTE))) {
        Some(Err(Error::AlreadyExists)) => return Err(Error::AlreadyExists),
        Some(Ok(lock)) => Some(lock),
        _ => None,
    };
    let before = shared.writer.load(Ordering::Acquire);
    // Who had the lock has gone if we have it; whoever had none may live on beside it.
    let settled = lock.is_some() && before & LOCKED != 0;
    if before != 0 && !settled {
        let writer = Described {
            pid: before & !LOCKED,
            start_time: shared.writer_start.load(Ordering::Relaxed),
            namespace: shared.namespace.load(Ordering::Relaxed),
        };
        if before & !LOCKED == CLAIMED || writer.in_process_table() != Some(false) {
            return Err(Error::AlreadyExists);
        }
    }
    let locked = if lock.is_some() { LOCKED } else { 0 };
    shared
        .writer
        .compare_exchange(before, CLAIMED | locked, Ordering::AcqRel, Ordering::Relaxed)
        .map_err(|_| Error::AlreadyExists)?;
    let own = Described::own();
    shared.writer_start.store(own.start_time, Ordering::Relaxed);
    shared.namespace.store(own.namespace, Ordering::Relaxed);
    shared.writer.store(own.pid | locked, Ordering::Release);
    Ok(lock)
}

impl Deref for RegionArena {
    type Target = Arena<'static>;
    fn deref(&self) -> &Arena<'static> {
        &self.arena
    }
}

impl Drop for RegionArena {
    /// Publishes what was pushed, and lets another process become the writer.
    fn drop(&mut self) {
        if self.pid != os::process_id() {
            return;
        }
        self.publish();
        if let Some(shared) = self.shared() {
            shared.writer.store(0, Ordering::Release);
        }
    }
}

impl fmt::Debug for RegionArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionArena")
            .field("region", &self.region)
            .field("arena", &self.arena)
            .finish_non_exhaustive()
    }
}

/// Looks at an arena in a region, from any process that has the region, read-only or not.
#[derive(Debug)]
pub struct ArenaReader {
    region: Region,
    words: Words,
    at: u64,
    start: u64,
}

impl ArenaReader {
    /// Finds the arena in a region.
    ///
    /// # Errors
    /// [`Error::Incompatible`] for a region that is something else; [`Error::Corrupt`].
    pub fn attach(region: Region) -> Result<ArenaReader> {
        let words = words_of(&region)?;
        let (at, Bounds { start, .. }) = find(&region, &words)?;
        Ok(ArenaReader { region, words, at, start })
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The offset up to which everything is published.
    pub fn position(&self) -> u64 {
        let shared = self.words.place::<Shared>(self.at);
        let position = shared.map_or(0, |shared| shared.position.load(Ordering::Acquire));
        position.min(self.words.len())
    }

    /// Where the writer says to start; `None` if it did not.
    pub fn root<T>(&self) -> Option<OffsetPtr<T>> {
        let shared = self.words.place::<Shared>(self.at).ok()?;
        let root = OffsetPtr::new(shared.root.load(Ordering::Acquire));
        (!root.is_null()).then_some(root)
    }

    /// The address here of `count` values at `offset`, all of them published. For none it is
    /// aligned and means nothing.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::BadAlignment`], [`Error::TooLarge`] for a count beyond
    /// all memory.
    pub fn resolve<T>(&self, offset: OffsetPtr<T>, count: usize) -> Result<*const T> {
        let size = size_of::<T>().max(1);
        let maximum = isize::MAX as usize / size;
        if count > maximum {
            return Err(Error::TooLarge { given: count, maximum });
        }
        let (at, length) = (offset.offset(), self.position());
        let end = at.checked_add((count * size_of::<T>()) as u64);
        if at < self.start || end.is_none_or(|end| end > length) {
            return Err(Error::OffsetOutOfRange { offset: at, length });
        }
        let place = self.region.base().wrapping_add(at as usize).cast::<T>();
        if place.is_aligned() {
            Ok(place)
        } else {
            Err(Error::BadAlignment { align: align_of::<T>() })
        }
    }

    /// The value at `offset`.
    ///
    /// # Safety
    /// A value of this type lies there, which nobody changes or takes back while the reference
    /// lives. If it holds plain references, the region is not
    /// [relocated](Region::is_relocated).
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub unsafe fn get<T>(&self, offset: OffsetPtr<T>) -> Result<&T> {
        let place = self.resolve(offset, 1)?;
        // SAFETY: inside the region, which `self` keeps, and aligned; the rest is the caller's.
        Ok(unsafe { &*place })
    }

    /// `count` values from `offset` on.
    ///
    /// # Safety
    /// As [`get`](Self::get), for each of them.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub unsafe fn get_slice<T>(&self, offset: OffsetPtr<T>, count: usize) -> Result<&[T]> {
        let place = self.resolve(offset, count)?;
        // SAFETY: as above, for all of them.
        Ok(unsafe { slice::from_raw_parts(place, count) })
    }
}
