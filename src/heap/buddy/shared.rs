//! The buddy's shared header: creation, attachment, and what is believed of it.
#![allow(unsafe_code)] // declares the header fit to lie in a region

use super::{Buddy, LISTS, MIN_PAYLOAD};
use crate::base::{Error, Result, align_down, align_up};
use crate::heap::bump::Heap;
use crate::heap::page::{Headers, UNIT, fresh_key};
use crate::heap::words::{Atoms, Words};
use crate::ptr::OffsetPtr;
use crate::region::Region;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::shm_lock::{Holder, ShmLock};

/// "hshmBDDY", little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"hshmBDDY");
const VERSION: u32 = 1;
/// How long whoever attaches waits for the lock, in nanoseconds of sleep.
const LOCK_PATIENCE: u64 = 2_000_000_000;

/// What lies in the region: first what never changes, then what the lock guards.
#[repr(C, align(64))]
pub(crate) struct Shared {
    magic: AtomicU64,
    version: AtomicU32,
    metadata: AtomicU32,
    key: AtomicU64,
    tables: AtomicU64,
    first: AtomicU64,
    _unused: [AtomicU64; 3],

    pub(super) lock: ShmLock,
    /// Not 0 while an operation is under way; found set by the next owner of the lock, it says
    /// that the last one did not finish.
    pub(super) busy: AtomicU32,
    pub(super) heap: Heap,
    /// A bit for every list that is not empty.
    pub(super) nonempty: AtomicU64,
    /// Payload bytes of used pages.
    pub(super) in_use: AtomicU64,
    pub(super) used_pages: AtomicU64,
    pub(super) free_pages: AtomicU64,

    /// Pages that were freed since the last coalescing: 0 means that there is nothing to merge.
    pub(super) frees: AtomicU64,
    /// Everything before this offset was committed.
    pub(super) committed: AtomicU64,
    /// Coalescings so far.
    pub(super) merges: AtomicU64,
    /// Frees that were refused.
    pub(super) refused: AtomicU64,
    _rest: [AtomicU64; 4],
}

// SAFETY: `repr(C)`; 8 words, then a word of two halves, 3 of the heap and 4, then 8: no padding.
unsafe impl Atoms for Shared {}
const _: () = assert!(size_of::<Shared>() == 192);

/// The words of `region`; its length and base are a mapping that the region keeps.
fn words_of(region: &Region) -> Result<Words> {
    if !region.base().addr().is_multiple_of(64) {
        return Err(Error::BadAlignment { align: 64 });
    }
    // SAFETY: a region keeps its mapping, readable and writable, for as long as it or a clone of
    // it lives, and the engine that holds the words holds a clone. What the engine accesses lies
    // in the heap that it was given for itself, and it does so through `Words` alone.
    Ok(unsafe { Words::new(region.base(), region.len()) })
}

impl Buddy {
    /// Creates a buddy over the rest of `heap`, whose header and tables are the first that it
    /// takes from there.
    pub(crate) fn create(region: Region, heap: Heap, metadata: usize) -> Result<Buddy> {
        let words = words_of(&region)?;
        let key = fresh_key(region.id().to_bits() ^ heap.position());
        let headers = Headers::new(words, metadata, MIN_PAYLOAD, key)?;
        if heap.end() > words.len() {
            return Err(Error::OffsetOutOfRange { offset: heap.end(), length: words.len() });
        }
        let from = heap.position();
        let at = heap.allocate(size_of::<Shared>(), 64)?.offset();
        let tables = heap.allocate(LISTS * 16, 16)?.offset();
        // The place before the first page is skipped now, so that every page lies at a unit.
        let first = align_up(heap.position() as usize, UNIT as usize).ok_or(Error::Corrupt)? as u64;
        if first > heap.end() || !heap.move_position(heap.position(), first) {
            return Err(Error::OutOfMemory { requested: UNIT as usize, available: 0 });
        }
        region.commit(from, (first - from) as usize)?;

        let shared = words.place::<Shared>(at)?;
        shared.magic.store(0, Ordering::Relaxed);
        shared.lock.reset();
        shared.version.store(VERSION, Ordering::Relaxed);
        shared.metadata.store(metadata as u32, Ordering::Relaxed);
        shared.key.store(key, Ordering::Relaxed);
        shared.tables.store(tables, Ordering::Relaxed);
        shared.first.store(first, Ordering::Relaxed);
        shared.heap.copy_from(&heap);
        shared.committed.store(first, Ordering::Relaxed);
        shared.merges.store(0, Ordering::Relaxed);
        shared.refused.store(0, Ordering::Relaxed);
        let end = align_down(heap.end() as usize, UNIT as usize) as u64;
        let buddy = Buddy { region, words, headers, at, tables, first, end };
        buddy.reset_caches(shared)?;
        shared.busy.store(0, Ordering::Relaxed);
        shared.magic.store(MAGIC, Ordering::Release);
        Ok(buddy)
    }

    /// Attaches the buddy whose header lies at `at`, and believes nothing of it unchecked.
    pub(crate) fn attach(region: Region, at: OffsetPtr<u8>) -> Result<Buddy> {
        if !region.is_writable() {
            return Err(Error::ReadOnly);
        }
        let words = words_of(&region)?;
        let at = at.offset();
        let outside = Error::OffsetOutOfRange { offset: at, length: words.len() };
        let shared = words.place::<Shared>(at).map_err(|_| outside)?;
        match shared.magic.load(Ordering::Acquire) {
            MAGIC => {}
            0 => return Err(Error::NotReady),
            _ => return Err(Error::NotARegion),
        }
        let found = shared.version.load(Ordering::Relaxed);
        if found != VERSION {
            return Err(Error::Incompatible { found, expected: VERSION });
        }
        let metadata = shared.metadata.load(Ordering::Relaxed) as usize;
        let key = shared.key.load(Ordering::Relaxed);
        let headers =
            Headers::new(words, metadata, MIN_PAYLOAD, key).map_err(|_| Error::Corrupt)?;
        let tables = shared.tables.load(Ordering::Relaxed);
        let first = shared.first.load(Ordering::Relaxed);
        let (start, end) = (shared.heap.start(), shared.heap.end());
        let header_end = at + size_of::<Shared>() as u64;
        let sound = start <= at
            && header_end <= tables
            && tables % 16 == 0
            && first % UNIT == 0
            && tables.checked_add(LISTS as u64 * 16).is_some_and(|tables_end| tables_end <= first)
            && first <= end
            && end <= words.len();
        if !sound {
            return Err(Error::Corrupt);
        }
        let end = align_down(end as usize, UNIT as usize) as u64;
        let buddy = Buddy { region, words, headers, at, tables, first, end };
        buddy.position(shared)?;
        // Its holders are not known by name. One that does not come back would be waited for, by
        // every call, for ever.
        let lock = shared.lock.lock_within(LOCK_PATIENCE, Holder::UNKNOWN, |_| false);
        drop(lock.ok_or(Error::Busy)?);
        Ok(buddy)
    }
}
