//! Which regions this process has mapped: address -> region and id -> region.
//!
//! ```text
//!  address >> 36 --> SLOTS[2048] --\
//!  (odd addresses: the bits of ODD) +--> RECORDS[256]: base, len, id, descriptor, flags, count
//!  id ------------> ids ------------/
//! ```
//!
//! A region may lie inside another one (`nested`). It has a record of its own, no slot, and its bit in
//! `NESTED`; the one around it counts it, and so only addresses in regions that have some inside are
//! looked up further, to the innermost one.
//!
//! All of it is static and starts as zeroes, so that it takes no allocation and no pages until it
//! is used.
//!
//! Invariants, under [`LOCK`], which every writer holds:
//! - a record with an odd sequence number is empty or being filled; with an even, nonzero one it
//!   is live, and its fields do not change except for the reference count;
//! - `SLOTS[s]` holds a live record's index + 1, or 0; a record has every slot that it reaches
//!   into, or is in `ODD`, or in `NESTED`;
//! - the ids are a table of their own ([`ids`]), an entry of which carries the sequence number of the
//!   record that it means, so that a record which was recycled in between is noticed.
//!
//! Readers take no lock. [`find`] gives a record whose range held the address at some moment;
//! [`snapshot`] reads the triple (base, length, id) between two looks at the sequence number, so
//! it is never a mixture.
//!
//! Ordering: a record is filled, then its sequence number is stored with Release, then the slots
//! and ids that lead to it; retiring goes the other way round. Fields are relaxed atomics between
//! fences, as in any sequence lock.

mod ids;

use super::place::{SLOT, SLOT_SHIFT, SLOTS};
use super::{BackendKind, place};
use crate::base::{AllocatorId, Error, Result};
use crate::os;
use crate::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::lock::{Guard, RawLock};
use crate::sync::references::References;

/// Regions that a process can have mapped at one time.
pub(crate) const RECORDS_MAX: usize = 256;

/// Which record of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct RecordIndex(u16);

impl RecordIndex {
    /// The index, below [`RECORDS_MAX`].
    #[inline(always)]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
    #[inline(always)]
    fn record(self) -> &'static Record {
        // The mask costs nothing and spares a check: indices are below 256 anyway.
        &RECORDS[self.0 as usize & (RECORDS_MAX - 1)]
    }
    /// Address of the region's first byte.
    #[inline(always)]
    pub(crate) fn base(self) -> usize {
        self.record().base.load(Ordering::Relaxed)
    }
    /// Bytes of the region.
    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        self.record().len.load(Ordering::Relaxed)
    }
    /// The region's own id.
    #[inline(always)]
    pub(crate) fn id(self) -> AllocatorId {
        AllocatorId::from_bits(self.record().id.load(Ordering::Relaxed))
    }
}

/// What the registry keeps of a region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) base: usize,
    pub(super) len: usize,
    pub(super) id: AllocatorId,
    pub(super) nonce: u64,
    /// The open file behind it.
    pub(super) fd: Option<i32>,
    /// Inode and device of that file: a descriptor that somebody closed behind our back, and that
    /// now is another file, must not be closed by us.
    pub(super) file: (u64, u64),
    pub(super) kind: BackendKind,
    pub(super) flags: u32,
    /// Where in the file the region begins: not at 0 where it is nested.
    pub(super) file_at: u64,
    /// Offset of the first byte that an engine may have.
    pub(super) payload: usize,
    /// The region around this one, on which the record has a reference.
    pub(super) parent: Option<RecordIndex>,
}

/// The region was made by this process, not attached.
pub(super) const CREATED: u32 = 1;
/// Stores are allowed.
pub(super) const WRITABLE: u32 = 2;
/// Mapped elsewhere than at the creator's address.
pub(super) const RELOCATED: u32 = 4;
/// Touching uncommitted pages may raise a signal.
pub(super) const MUST_COMMIT: u32 = 8;
/// Pages never touched are zero.
pub(super) const KNOWN_ZERO: u32 = 16;

/// What a look-up reads lies in the first cache line.
#[repr(C, align(64))]
struct Record {
    /// 0: never used. Odd: empty or being filled. Even: live.
    seq: AtomicU32,
    references: References,
    base: AtomicUsize,
    len: AtomicUsize,
    id: AtomicU64,
    /// Regions directly inside this one.
    nested: AtomicU32,
    /// The region around this one, its index + 1; 0 for none.
    parent: AtomicU32,
    nonce: AtomicU64,
    inode: AtomicU64,
    device: AtomicU64,
    /// Descriptor + 1.
    fd: AtomicU32,
    kind: AtomicU32,
    flags: AtomicU32,
    payload: AtomicU32,
    file_at: AtomicU64,
}

static LOCK: RawLock = RawLock::new();
static RECORDS: [Record; RECORDS_MAX] = [const {
    Record {
        seq: AtomicU32::new(0),
        references: References::none(),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        id: AtomicU64::new(0),
        nested: AtomicU32::new(0),
        parent: AtomicU32::new(0),
        nonce: AtomicU64::new(0),
        inode: AtomicU64::new(0),
        device: AtomicU64::new(0),
        fd: AtomicU32::new(0),
        kind: AtomicU32::new(0),
        flags: AtomicU32::new(0),
        payload: AtomicU32::new(0),
        file_at: AtomicU64::new(0),
    }
}; RECORDS_MAX];
static SLOTS_MAP: [AtomicU16; SLOTS] = [const { AtomicU16::new(0) }; SLOTS];
/// Regions that no slot leads to, a bit each.
static ODD: [AtomicU64; RECORDS_MAX / 64] = [const { AtomicU64::new(0) }; RECORDS_MAX / 64];
/// Regions inside others, a bit each.
static NESTED: [AtomicU64; RECORDS_MAX / 64] = [const { AtomicU64::new(0) }; RECORDS_MAX / 64];
/// The region that holds `address`, if one does: of those inside each other the innermost.
#[inline]
pub(crate) fn find(address: usize) -> Option<RecordIndex> {
    if let Some(slot) = SLOTS_MAP.get(address >> SLOT_SHIFT) {
        let index = slot.load(Ordering::Acquire);
        if index != 0 {
            let found = RecordIndex(index - 1);
            if address.wrapping_sub(found.base()) < found.len() {
                return Some(innermost(found, address));
            }
        }
    }
    find_odd(address)
}

#[inline]
fn innermost(found: RecordIndex, address: usize) -> RecordIndex {
    if found.record().nested.load(Ordering::Acquire) == 0 {
        found
    } else {
        find_nested(found, address)
    }
}

/// Goes down from `outer`, which holds `address`, while a region inside does, too.
#[inline(never)]
fn find_nested(outer: RecordIndex, address: usize) -> RecordIndex {
    let mut found = outer;
    // No deeper than there are records, whatever changes meanwhile.
    for _ in 0..RECORDS_MAX {
        let inside = each(&NESTED).find(|inner| {
            inner.record().parent.load(Ordering::Relaxed) == u32::from(found.0) + 1
                && address.wrapping_sub(inner.base()) < inner.len()
        });
        match inside {
            Some(inner) => found = inner,
            None => break,
        }
    }
    found
}

/// The records whose bits are set.
fn each(bits: &'static [AtomicU64]) -> impl Iterator<Item = RecordIndex> {
    bits.iter().enumerate().flat_map(|(at, word)| {
        let mut left = word.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(RecordIndex((at as u32 * 64 + bit) as u16))
        })
    })
}

/// The region directly inside `outer` that begins at address `base`, if this process has it.
pub(super) fn nested_at(outer: RecordIndex, base: usize) -> Option<(RecordIndex, Snapshot)> {
    each(&NESTED).find_map(|inner| {
        let found = snapshot(inner).filter(|found| found.base == base)?;
        let parent = inner.record().parent.load(Ordering::Relaxed);
        (parent == u32::from(outer.0) + 1).then_some((inner, found))
    })
}

#[inline(never)]
fn find_odd(address: usize) -> Option<RecordIndex> {
    let holds = |found: &RecordIndex| address.wrapping_sub(found.base()) < found.len();
    each(&ODD).find(holds).map(|found| innermost(found, address))
}

/// One consistent reading of a live record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) base: usize,
    pub(crate) len: usize,
    pub(crate) id: AllocatorId,
    pub(super) seq: u32,
}

/// Reads a record, never a mixture of two regions; `None` when it is not live.
#[inline]
pub(crate) fn snapshot(index: RecordIndex) -> Option<Snapshot> {
    let record = index.record();
    loop {
        let seq = record.seq.load(Ordering::Acquire);
        if seq == 0 || seq & 1 != 0 {
            return None;
        }
        let found = Snapshot { base: index.base(), len: index.len(), id: index.id(), seq };
        fence(Ordering::Acquire);
        if record.seq.load(Ordering::Relaxed) == seq {
            return Some(found);
        }
    }
}

/// All regions that are mapped, those inside others included.
pub(crate) fn all() -> impl Iterator<Item = Snapshot> + Clone {
    (0..RECORDS_MAX as u16).filter_map(|index| snapshot(RecordIndex(index)))
}

/// The region that holds `address`, with a consistent reading of it.
#[inline]
pub(crate) fn find_snapshot(address: usize) -> Option<(RecordIndex, Snapshot)> {
    loop {
        let index = find(address)?;
        // Retired or recycled since `find` looked: look again.
        if let Some(found) = snapshot(index)
            && address.wrapping_sub(found.base) < found.len
        {
            return Some((index, found));
        }
        core::hint::spin_loop();
    }
}

/// The region that `id` is bound to, with a consistent reading of it.
#[inline]
pub(crate) fn by_id(id: AllocatorId) -> Option<(RecordIndex, Snapshot)> {
    let value = ids::look_up(id)?;
    let index = RecordIndex(value as u16);
    // Between retiring its ids and the record itself nothing leads here; a record that was recycled
    // after the entry was read has another sequence number.
    let found = snapshot(index).filter(|found| u64::from(found.seq) == value >> 32)?;
    Some((index, found))
}

/// Binds an id to a live record.
fn bind_locked(lock: &Guard<'_>, id: AllocatorId, index: RecordIndex) -> Result<()> {
    let seq = index.record().seq.load(Ordering::Relaxed);
    ids::bind(lock, id, u64::from(seq) << 32 | u64::from(index.0))
}

/// Lets `id` name the region `index`, besides its own id. An id that names another region is
/// [`Error::AlreadyExists`].
pub(super) fn bind(id: AllocatorId, index: RecordIndex) -> Result<()> {
    bind_locked(&LOCK.lock(), id, index)
}

/// Undoes [`bind`]; an id that is not bound to `index` is [`Error::UnknownAllocator`].
pub(super) fn unbind(id: AllocatorId, index: RecordIndex) -> Result<()> {
    let lock = LOCK.lock();
    match ids::bound(id) {
        Some(value) if value as u16 == index.0 => {
            ids::erase(&lock, id);
            Ok(())
        }
        _ => Err(Error::UnknownAllocator { id }),
    }
}

/// Whether an id is bound to nothing.
pub(super) fn id_is_free(id: AllocatorId) -> bool {
    by_id(id).is_none()
}

/// Whether no region reaches into a slot.
pub(super) fn slot_is_free(slot: usize) -> bool {
    SLOTS_MAP.get(slot).is_none_or(|entry| entry.load(Ordering::Relaxed) == 0)
}

fn slots_of(base: usize, len: usize) -> core::ops::Range<usize> {
    base >> SLOT_SHIFT..((base + len - 1) >> SLOT_SHIFT) + 1
}

/// Makes a region known, with one reference. With `exclusive` the id must be free; otherwise a
/// second mapping of the same segment leaves the id with the first.
pub(super) fn publish(entry: &Entry, exclusive: bool) -> Result<RecordIndex> {
    hold_still_across_forks();
    let lock = LOCK.lock();
    let free = |record: &Record| {
        let seq = record.seq.load(Ordering::Relaxed);
        seq == 0 || seq & 1 != 0
    };
    let Some(at) = RECORDS.iter().position(free) else {
        return Err(Error::TableFull { slots: RECORDS_MAX });
    };
    let index = RecordIndex(at as u16);
    let record = index.record();
    let taken = match ids::bound(entry.id) {
        None => {
            ids::check_room()?;
            false
        }
        // The same segment again is fine; another one with this id would get wrong answers.
        Some(value) => {
            let holder = RecordIndex(value as u16).record();
            if exclusive || holder.nonce.load(Ordering::Relaxed) != entry.nonce {
                return Err(Error::AlreadyExists);
            }
            true
        }
    };

    let seq = record.seq.load(Ordering::Relaxed) | 1;
    record.seq.store(seq, Ordering::Relaxed);
    fence(Ordering::Release);
    record.base.store(entry.base, Ordering::Relaxed);
    record.len.store(entry.len, Ordering::Relaxed);
    record.id.store(entry.id.to_bits(), Ordering::Relaxed);
    record.nonce.store(entry.nonce, Ordering::Relaxed);
    record.fd.store(entry.fd.map_or(0, |fd| fd as u32 + 1), Ordering::Relaxed);
    record.inode.store(entry.file.0, Ordering::Relaxed);
    record.device.store(entry.file.1, Ordering::Relaxed);
    record.kind.store(entry.kind as u32, Ordering::Relaxed);
    record.flags.store(entry.flags, Ordering::Relaxed);
    record.payload.store(entry.payload as u32, Ordering::Relaxed);
    record.file_at.store(entry.file_at, Ordering::Relaxed);
    record.nested.store(0, Ordering::Relaxed);
    let parent = entry.parent.map_or(0, |parent| u32::from(parent.0) + 1);
    record.parent.store(parent, Ordering::Relaxed);
    record.references.begin();
    // Never 0, so that a used record differs from an unused one.
    let live = seq.wrapping_add(1).max(2);
    record.seq.store(live, Ordering::Release);

    let slots = slots_of(entry.base, entry.len);
    if let Some(parent) = entry.parent {
        NESTED[at / 64].fetch_or(1 << (at % 64), Ordering::Release);
        parent.record().nested.fetch_add(1, Ordering::Release);
    } else if entry.base.is_multiple_of(place::SLOT)
        && slots.end <= SLOTS
        && slots.clone().all(slot_is_free)
    {
        for slot in slots {
            SLOTS_MAP[slot].store(index.0 + 1, Ordering::Release);
        }
    } else {
        ODD[at / 64].fetch_or(1 << (at % 64), Ordering::Release);
    }
    if !taken {
        bind_locked(&lock, entry.id, index)?;
    }
    Ok(index)
}

/// Everything known of a live record.
pub(super) fn entry(index: RecordIndex) -> Entry {
    let record = index.record();
    let kind = BackendKind::from_bits(record.kind.load(Ordering::Relaxed));
    Entry {
        base: index.base(),
        len: index.len(),
        id: index.id(),
        nonce: record.nonce.load(Ordering::Relaxed),
        fd: record.fd.load(Ordering::Relaxed).checked_sub(1).map(|fd| fd as i32),
        file: (record.inode.load(Ordering::Relaxed), record.device.load(Ordering::Relaxed)),
        kind: kind.unwrap_or(BackendKind::Array),
        flags: record.flags.load(Ordering::Relaxed),
        file_at: record.file_at.load(Ordering::Relaxed),
        payload: record.payload.load(Ordering::Relaxed) as usize,
        parent: record
            .parent
            .load(Ordering::Relaxed)
            .checked_sub(1)
            .map(|parent| RecordIndex(parent as u16)),
    }
}

/// A record's flags and kind, for the accessors.
pub(super) fn flags(index: RecordIndex) -> u32 {
    index.record().flags.load(Ordering::Relaxed)
}

/// Counts another reference to a live record. The caller holds one.
pub(super) fn retain(index: RecordIndex) {
    index.record().references.retain();
}

/// Counts another reference to a record that may be going away: only if it is still the one that
/// `seen` was read from.
pub(super) fn try_retain(index: RecordIndex, seen: &Snapshot) -> bool {
    // Under the lock a live record stays live, though its last user may leave meanwhile.
    let _lock = LOCK.lock();
    let record = index.record();
    record.seq.load(Ordering::Relaxed) == seen.seq && record.references.try_retain()
}

/// Counts a reference less. When it was the last, forgets the record and gives what has to be
/// unmapped and closed; nobody finds the region any more, but its addresses are still mapped, so
/// no new region can be there yet.
pub(super) fn release(index: RecordIndex) -> Option<Entry> {
    let record = index.record();
    if !record.references.release() {
        return None;
    }
    let lock = LOCK.lock();
    let gone = entry(index);
    ids::erase_all(&lock, |value| value as u16 == index.0);
    for slot in slots_of(gone.base, gone.len) {
        if let Some(place) = SLOTS_MAP.get(slot)
            && place.load(Ordering::Relaxed) == index.0 + 1
        {
            place.store(0, Ordering::Release);
        }
    }
    let bit = 1 << (index.index() % 64);
    ODD[index.index() / 64].fetch_and(!bit, Ordering::Release);
    NESTED[index.index() / 64].fetch_and(!bit, Ordering::Release);
    if let Some(parent) = gone.parent {
        parent.record().nested.fetch_sub(1, Ordering::Release);
    }
    let seq = record.seq.load(Ordering::Relaxed);
    record.seq.store(seq.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    // An address that still finds this record must not match.
    record.len.store(0, Ordering::Relaxed);

    bequeath(&lock, gone.id);
    Some(gone)
}

/// A second mapping of the same segment inherits the id of one that is gone.
fn bequeath(lock: &Guard<'_>, id: AllocatorId) {
    let heir = RECORDS.iter().position(|other| {
        let seq = other.seq.load(Ordering::Relaxed);
        seq != 0
            && seq & 1 == 0
            && other.id.load(Ordering::Relaxed) == id.to_bits()
            && other.references.any()
    });
    if let Some(heir) = heir
        && ids::bound(id).is_none()
    {
        // There is room: the entry of the one that is gone was just erased.
        let _ = bind_locked(lock, id, RecordIndex(heir as u16));
    }
}

/// Puts another segment behind a live record, at the same place. The old ids go.
pub(super) fn replace(index: RecordIndex, entry: &Entry) {
    let lock = LOCK.lock();
    let record = index.record();
    let old = AllocatorId::from_bits(record.id.load(Ordering::Relaxed));
    ids::erase_all(&lock, |value| value as u16 == index.0);
    let seq = record.seq.load(Ordering::Relaxed);
    record.seq.store(seq | 1, Ordering::Relaxed);
    fence(Ordering::Release);
    record.id.store(entry.id.to_bits(), Ordering::Relaxed);
    record.nonce.store(entry.nonce, Ordering::Relaxed);
    record.fd.store(entry.fd.map_or(0, |fd| fd as u32 + 1), Ordering::Relaxed);
    record.inode.store(entry.file.0, Ordering::Relaxed);
    record.device.store(entry.file.1, Ordering::Relaxed);
    record.kind.store(entry.kind as u32, Ordering::Relaxed);
    record.flags.store(entry.flags, Ordering::Relaxed);
    record.seq.store((seq | 1).wrapping_add(1).max(2), Ordering::Release);
    // A place was just freed, if the old segment had one; its heir takes another.
    let _ = bind_locked(&lock, entry.id, index);
    bequeath(&lock, old);
}

/// Registers hooks, once, that hold the lock across a fork: the child must not find it taken by a
/// thread that it does not have.
fn hold_still_across_forks() {
    static REGISTERED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn take() {
        LOCK.lock_raw();
    }
    extern "C" fn leave() {
        LOCK.unlock_raw();
    }
    if REGISTERED.swap(1, Ordering::AcqRel) == 0 {
        // Without hooks a fork at the wrong moment may stop the child's next region; no more.
        let _ = os::at_fork(take, leave, leave);
    }
}

const _: () = assert!(SLOT == 1 << SLOT_SHIFT);

#[cfg(test)]
mod tests;
