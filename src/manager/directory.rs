//! Which allocators a backend has, and where: the page behind its header.
//!
//! ```text
//! Directory (64 B):  magic | version, entries | spare
//! Entry (64 B):      state, kind | id | start | length | parent + 1, spare | spare
//! state:             0 free   1 being made   2 live   3 given up
//! ```
//!
//! `start` counts from the backend's base, also where the parent is another allocator, in a block of
//! which the entry then lies. What no entry has is free.
//!
//! Changes are made by one at a time: the kernel holds a lock in the segment's file for whoever makes
//! them, and drops it when that process dies. The store of `state` is what counts; an entry that is
//! found "being made" by whoever holds the lock is a dead process's, and free. (Its block, if it has a
//! parent, stays allocated there: that death's leak.)
//!
//! An allocator is *given up* when it is destroyed: nobody finds it any more, but those who have it keep
//! it. Its bytes are free when nobody has it ([`Region::is_nested_in_use`]) and nothing lies inside.
//!
//! Everything read from the page is checked before it is used as a place.
#![allow(unsafe_code)] // a page of atomics in a mapped region

use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::kind::AllocatorKind;
use crate::base::units::{CHUNK, GRANULE, PAGE};
use crate::base::{AllocatorId, Error, Result, align_down};
use crate::os::ByteLock;
use crate::region::{ENGINE_MAKING, Region};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, Ordering::Relaxed};

/// "hshmALOC"
const MAGIC: u64 = u64::from_le_bytes(*b"hshmALOC");
const VERSION: u32 = 1;
/// What the region header's `engine_kind` says of a backend with a directory.
const ENGINE: u32 = 4;
/// Allocators that a backend can have.
pub(super) const ENTRIES: usize = 63;
/// How deep allocators may lie in each other.
const DEEPEST: usize = 8;
/// Pieces of this size and more begin where large alignments can be honoured.
const ROOMY: u64 = 64 * CHUNK as u64;
/// How long to wait for somebody else's change.
const PATIENCE: Duration = Duration::from_secs(10);

const FREE: u32 = 0;
const MAKING: u32 = 1;
const LIVE: u32 = 2;
const GIVEN_UP: u32 = 3;

#[repr(C, align(64))]
struct Entry {
    state: AtomicU32,
    kind: AtomicU32,
    id: AtomicU64,
    start: AtomicU64,
    len: AtomicU64,
    parent: AtomicU32,
    _spare: AtomicU32,
    _rest: [AtomicU64; 3],
}

#[repr(C, align(64))]
struct Page {
    magic: AtomicU64,
    version: AtomicU32,
    entries: AtomicU32,
    _rest: [AtomicU64; 6],
    entry: [Entry; ENTRIES],
}

const _: () = assert!(size_of::<Entry>() == 64 && size_of::<Page>() == PAGE);

/// What an entry says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: usize,
    pub(super) id: AllocatorId,
    pub(super) kind: AllocatorKind,
    /// From the backend's base.
    pub(super) start: u64,
    pub(super) len: u64,
    /// The index of the allocator in which it lies.
    pub(super) parent: Option<usize>,
}

/// What a backend's directory says of an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocatorInfo {
    /// Its id.
    pub id: AllocatorId,
    /// Its type.
    pub kind: AllocatorKind,
    /// Bytes of the backend that it has.
    pub size: usize,
    /// The allocator in which it lies, for a sub-allocator.
    pub parent: Option<AllocatorId>,
}

/// The directory of a backend that this process has.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    region: Region,
}

/// The right to change a directory.
pub(super) struct Changing<'d> {
    directory: &'d Directory,
    _process: Option<ByteLock>,
    _threads: MutexGuard<'static, ()>,
}

/// The first byte that allocators may have, from the backend's base.
fn data_of(region: &Region) -> usize {
    (region.payload_offset() + PAGE).next_multiple_of(GRANULE)
}

impl Directory {
    /// Makes the directory of a fresh region.
    pub(super) fn create(region: Region) -> Result<Directory> {
        let start = region.payload_offset();
        // Nothing fits that has no header, no page.
        let minimum = data_of(&region) + 2 * PAGE;
        if region.len() < minimum {
            return Err(Error::TooSmall { given: region.len(), minimum });
        }
        region.claim_engine()?;
        if let Err(error) = region.commit(start as u64, PAGE) {
            region.abandon_engine();
            return Err(error);
        }
        let directory = Directory { region };
        let page = directory.page();
        for entry in &page.entry {
            entry.state.store(FREE, Relaxed);
        }
        page.version.store(VERSION, Relaxed);
        page.entries.store(ENTRIES as u32, Relaxed);
        page.magic.store(MAGIC, Relaxed);
        directory.region.finish_engine(ENGINE, start as u64);
        Ok(directory)
    }

    /// The directory that `region` has; [`Error::NotReady`] where it is being made.
    pub(super) fn attach(region: Region) -> Result<Directory> {
        if !region.is_writable() {
            return Err(Error::ReadOnly);
        }
        let found = region.header().engine_kind.load(Ordering::Acquire);
        match found {
            ENGINE => {}
            0 | ENGINE_MAKING => return Err(Error::NotReady),
            _ => return Err(Error::Incompatible { found, expected: ENGINE }),
        }
        let start = region.payload_offset();
        if start + 2 * PAGE > region.len() {
            return Err(Error::Corrupt);
        }
        let directory = Directory { region };
        let page = directory.page();
        if page.magic.load(Relaxed) != MAGIC {
            return Err(Error::Corrupt);
        }
        let found = page.version.load(Relaxed);
        if found != VERSION {
            return Err(Error::Incompatible { found, expected: VERSION });
        }
        if page.entries.load(Relaxed) != ENTRIES as u32 {
            return Err(Error::Corrupt);
        }
        Ok(directory)
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    fn page(&self) -> &Page {
        let at = self.region.base().wrapping_add(self.region.payload_offset());
        // SAFETY: the page lies in the region (`create`, `attach`), whose mapping the handle keeps; the
        // payload begins at a page; all fields are atomics, for which any bits do.
        unsafe { &*at.cast::<Page>() }
    }

    /// Waits for the right to change the directory; [`Error::Busy`] where somebody else has had it
    /// for ten seconds.
    pub(super) fn change(&self) -> Result<Changing<'_>> {
        // Also for private memory, which has no file to lock.
        static THREADS: Mutex<()> = Mutex::new(());
        let threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let process = loop {
            match self.region.try_lock_changes() {
                Err(Error::AlreadyExists) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(Error::AlreadyExists) => return Err(Error::Busy),
                other => break other?,
            }
        };
        for entry in &self.page().entry {
            if entry.state.load(Ordering::Acquire) == MAKING {
                entry.state.store(FREE, Ordering::Release);
            }
        }
        Ok(Changing { directory: self, _process: process, _threads: threads })
    }

    /// Reads an entry in any of these states.
    fn read(&self, index: usize, states: &[u32]) -> Option<Place> {
        let entry = self.page().entry.get(index)?;
        let state = entry.state.load(Ordering::Acquire);
        let place = Place {
            index,
            id: AllocatorId::from_bits(entry.id.load(Relaxed)),
            kind: AllocatorKind::from_number(entry.kind.load(Relaxed)),
            start: entry.start.load(Relaxed),
            len: entry.len.load(Relaxed),
            parent: (entry.parent.load(Relaxed) as usize).checked_sub(1),
        };
        let end = place.start.checked_add(place.len)?;
        let sound = states.contains(&state)
            && place.start.is_multiple_of(GRANULE as u64)
            && place.start >= GRANULE as u64
            && place.len >= 2 * PAGE as u64
            && end <= self.region.len() as u64
            && !place.id.is_null()
            && place.parent.is_none_or(|parent| parent < ENTRIES && parent != index);
        sound.then_some(place)
    }

    fn all(&self, states: &'static [u32]) -> impl Iterator<Item = Place> + '_ {
        (0..ENTRIES).filter_map(|index| self.read(index, states))
    }

    /// The allocator with this id.
    pub(super) fn find(&self, id: AllocatorId) -> Option<Place> {
        self.all(&[LIVE]).find(|place| place.id == id)
    }

    /// What there is, in no order.
    pub(super) fn list(&self) -> Vec<AllocatorInfo> {
        let name = |index| self.read(index, &[LIVE, GIVEN_UP]).map(|place| place.id);
        self.all(&[LIVE])
            .map(|place| AllocatorInfo {
                id: place.id,
                kind: place.kind,
                size: place.len as usize,
                parent: place.parent.and_then(name),
            })
            .collect()
    }

    /// The allocator in which a place lies, unless it was given up.
    pub(super) fn parent_of(&self, place: &Place) -> Option<Place> {
        let parent = self.read(place.parent?, &[LIVE])?;
        (place.start >= parent.start).then_some(parent)
    }

    /// The places from the outermost allocator down to `place`; [`Error::Corrupt`] where they do not lie
    /// in each other.
    pub(super) fn way_to(&self, place: Place) -> Result<Vec<Place>> {
        let mut way = vec![place];
        let mut inner = place;
        while let Some(parent) = inner.parent {
            let outer = self.read(parent, &[LIVE, GIVEN_UP]).ok_or(Error::Corrupt)?;
            let inside =
                inner.start >= outer.start && inner.start + inner.len <= outer.start + outer.len;
            if !inside || way.len() >= DEEPEST {
                return Err(Error::Corrupt);
            }
            way.push(outer);
            inner = outer;
        }
        way.reverse();
        Ok(way)
    }
}

impl Changing<'_> {
    /// A free entry, and that nobody has the id.
    fn vacancy(&self, id: AllocatorId) -> Result<usize> {
        if id.is_null() {
            return Err(Error::UnknownAllocator { id });
        }
        if self.directory.all(&[LIVE, GIVEN_UP]).any(|place| place.id == id) {
            return Err(Error::AlreadyExists);
        }
        let free = |entry: &Entry| entry.state.load(Relaxed) == FREE;
        let found = self.directory.page().entry.iter().position(free);
        found.ok_or(Error::TableFull { slots: ENTRIES })
    }

    /// Finds room of `size` bytes that no allocator has (0: the longest), and notes that something is
    /// being made there. [`Error::OutOfMemory`] says what the longest is.
    pub(super) fn begin(&self, id: AllocatorId, kind: AllocatorKind, size: usize) -> Result<Place> {
        let index = self.vacancy(id)?;
        let (start, len) = self.room(size as u64)?;
        self.note(Place { index, id, kind, start, len, parent: None })
    }

    /// Notes that something is being made in a block of another allocator.
    pub(super) fn begin_inside(
        &self,
        id: AllocatorId,
        kind: AllocatorKind,
        parent: usize,
        range: (u64, u64),
    ) -> Result<Place> {
        let index = self.vacancy(id)?;
        let place = Place { index, id, kind, start: range.0, len: range.1, parent: Some(parent) };
        let place = self.note(place)?;
        // How deep it lies, and that it does.
        self.directory.way_to(place).inspect_err(|_| self.forget(index))?;
        Ok(place)
    }

    /// Whether [`begin_inside`](Self::begin_inside) would find an entry for this id.
    pub(super) fn check_vacancy(&self, id: AllocatorId) -> Result<()> {
        self.vacancy(id).map(drop)
    }

    fn note(&self, place: Place) -> Result<Place> {
        let entry = self.directory.page().entry.get(place.index).ok_or(Error::Corrupt)?;
        entry.id.store(place.id.to_bits(), Relaxed);
        entry.kind.store(place.kind.number(), Relaxed);
        entry.start.store(place.start, Relaxed);
        entry.len.store(place.len, Relaxed);
        entry.parent.store(place.parent.map_or(0, |parent| parent as u32 + 1), Relaxed);
        entry.state.store(MAKING, Ordering::Release);
        Ok(place)
    }

    /// What was begun is there.
    pub(super) fn finish(&self, index: usize) {
        self.set(index, LIVE);
    }
    /// An entry is free: what was begun is not to be, or what was given up nobody has any more.
    pub(super) fn forget(&self, index: usize) {
        self.set(index, FREE);
    }
    /// Gives an allocator up, and all that lies inside.
    pub(super) fn give_up(&self, index: usize) {
        self.set(index, GIVEN_UP);
        // Outer ones come first, level by level.
        for _ in 0..DEEPEST {
            for place in self.directory.all(&[LIVE]) {
                let gone = place
                    .parent
                    .is_some_and(|parent| self.directory.read(parent, &[GIVEN_UP]).is_some());
                if gone {
                    self.set(place.index, GIVEN_UP);
                }
            }
        }
    }
    fn set(&self, index: usize, state: u32) {
        if let Some(entry) = self.directory.page().entry.get(index) {
            entry.state.store(state, Ordering::Release);
        }
    }

    /// What was given up, nobody has, and has nothing inside.
    pub(super) fn reclaimable(&self) -> Vec<Place> {
        let inside: Vec<_> =
            self.directory.all(&[LIVE, GIVEN_UP]).filter_map(|place| place.parent).collect();
        self.directory
            .all(&[GIVEN_UP])
            .filter(|place| !inside.contains(&place.index))
            .filter(|place| !self.directory.region.is_nested_in_use(place.start))
            .collect()
    }

    /// A piece of `size` bytes, or the longest, that no allocator has: where, and how long.
    fn room(&self, size: u64) -> Result<(u64, u64)> {
        let mut taken: Vec<(u64, u64)> = self
            .directory
            .all(&[MAKING, LIVE, GIVEN_UP])
            .filter(|place| place.parent.is_none())
            .map(|place| (place.start, place.start + place.len))
            .collect();
        taken.sort_unstable();
        let end = align_down(self.directory.region.len(), PAGE) as u64;
        taken.push((end, end));
        let mut at = data_of(&self.directory.region) as u64;
        let mut longest = (0, 0);
        for (from, to) in taken {
            at = at.next_multiple_of(GRANULE as u64);
            let mut start = at;
            if from.saturating_sub(at) >= ROOMY && (size == 0 || size >= ROOMY / 2) {
                start = at.next_multiple_of(CHUNK as u64);
            }
            let free = from.saturating_sub(start);
            if size != 0 && free >= size {
                let whole = size.checked_next_multiple_of(GRANULE as u64).unwrap_or(size);
                return Ok((start, whole.min(free)));
            }
            if free > longest.1 {
                longest = (start, free);
            }
            at = at.max(to);
        }
        if size == 0 && longest.1 >= 2 * PAGE as u64 {
            return Ok(longest);
        }
        let (requested, available) = (size.max(2 * PAGE as u64) as usize, longest.1 as usize);
        Err(Error::OutOfMemory { requested, available })
    }
}
