//! Which regions this process has mapped: address -> region and id -> region.
//!
//! ```text
//!  address >> 36 --> SLOTS[2048] --\
//!  (odd addresses: the bits of ODD) +--> RECORDS[256]: base, len, id, descriptor, flags, count
//!  id ------------> IDS[1024] -----/
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
//! - `IDS` is an open-addressing table without tombstones; it changes only while `IDS_SEQ` is odd.
//!
//! Readers take no lock. [`find`] gives a record whose range held the address at some moment;
//! [`snapshot`] reads the triple (base, length, id) between two looks at the sequence number, so
//! it is never a mixture. An entry of `IDS` carries the sequence number of the record it means, so
//! that a record which was recycled in between is noticed.
//!
//! Ordering: a record is filled, then its sequence number is stored with Release, then the slots
//! and ids that lead to it; retiring goes the other way round. Fields are relaxed atomics between
//! fences, as in any sequence lock.

use super::place::{SLOT, SLOT_SHIFT, SLOTS};
use super::{BackendKind, place};
use crate::base::{AllocatorId, Error, Result};
use crate::os;
use crate::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::lock::{Guard, RawLock};
use crate::sync::references::References;

/// Regions that a process can have mapped at one time.
pub(crate) const RECORDS_MAX: usize = 256;
const IDS_LEN: usize = 1024;
/// Ids that can be bound at one time: probing stays short while a quarter is empty.
const IDS_MAX: usize = IDS_LEN * 3 / 4;

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

struct IdEntry {
    /// Complement of the id's bits, so that the all-zero entry is the null id, which nobody binds.
    key: AtomicU64,
    /// Record index in the low half, its sequence number in the high one.
    value: AtomicU64,
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
static IDS: [IdEntry; IDS_LEN] =
    [const { IdEntry { key: AtomicU64::new(0), value: AtomicU64::new(0) } }; IDS_LEN];
static IDS_SEQ: AtomicU32 = AtomicU32::new(0);
static IDS_USED: AtomicUsize = AtomicUsize::new(0);

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
    if id.is_null() {
        return None;
    }
    loop {
        let seq = IDS_SEQ.load(Ordering::Acquire);
        let found = if seq & 1 == 0 { probe(id).ok() } else { None };
        let value = found.map(|at| IDS[at & (IDS_LEN - 1)].value.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if seq & 1 == 0 && IDS_SEQ.load(Ordering::Relaxed) == seq {
            let value = value?;
            let index = RecordIndex(value as u16);
            // Between retiring its ids and the record itself nothing leads here; a record that
            // was recycled after we read the entry has another sequence number.
            return snapshot(index)
                .filter(|found| u64::from(found.seq) == value >> 32)
                .map(|found| (index, found));
        }
        core::hint::spin_loop();
    }
}

/// The position of `id`, or the empty position where it would go.
fn probe(id: AllocatorId) -> core::result::Result<usize, usize> {
    let key = !id.to_bits();
    let mut at = home(key);
    for _ in 0..IDS_LEN {
        match IDS[at & (IDS_LEN - 1)].key.load(Ordering::Relaxed) {
            0 => return Err(at),
            found if found == key => return Ok(at),
            _ => at = (at + 1) & (IDS_LEN - 1),
        }
    }
    Err(at)
}

fn home(key: u64) -> usize {
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & (IDS_LEN - 1)
}

/// Changes the id table; readers meanwhile go round.
fn change_ids<R>(_lock: &Guard<'_>, change: impl FnOnce() -> R) -> R {
    let seq = IDS_SEQ.load(Ordering::Relaxed);
    IDS_SEQ.store(seq.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    let result = change();
    IDS_SEQ.store(seq.wrapping_add(2), Ordering::Release);
    result
}

fn bind_locked(lock: &Guard<'_>, id: AllocatorId, index: RecordIndex) -> Result<()> {
    if id.is_null() {
        return Err(Error::UnknownAllocator { id });
    }
    let seq = index.record().seq.load(Ordering::Relaxed);
    let value = u64::from(seq) << 32 | u64::from(index.0);
    match probe(id) {
        Ok(at) if IDS[at].value.load(Ordering::Relaxed) == value => Ok(()),
        Ok(_) => Err(Error::AlreadyExists),
        Err(_) if IDS_USED.load(Ordering::Relaxed) >= IDS_MAX => {
            Err(Error::TableFull { slots: IDS_MAX })
        }
        Err(at) => {
            change_ids(lock, || {
                IDS[at].value.store(value, Ordering::Relaxed);
                IDS[at].key.store(!id.to_bits(), Ordering::Relaxed);
            });
            IDS_USED.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// Empties the entry at `at` and moves up those behind it that would no longer be found.
fn erase_locked(lock: &Guard<'_>, at: usize) {
    change_ids(lock, || {
        let mut hole = at;
        let mut next = (at + 1) & (IDS_LEN - 1);
        loop {
            let key = IDS[next].key.load(Ordering::Relaxed);
            if key == 0 {
                break;
            }
            // The entry may move into the hole unless its home lies between the two.
            let from_home = next.wrapping_sub(home(key)) & (IDS_LEN - 1);
            let from_hole = next.wrapping_sub(hole) & (IDS_LEN - 1);
            if from_home >= from_hole {
                let value = IDS[next].value.load(Ordering::Relaxed);
                IDS[hole].value.store(value, Ordering::Relaxed);
                IDS[hole].key.store(key, Ordering::Relaxed);
                hole = next;
            }
            next = (next + 1) & (IDS_LEN - 1);
        }
        IDS[hole].key.store(0, Ordering::Relaxed);
        IDS[hole].value.store(0, Ordering::Relaxed);
    });
    IDS_USED.fetch_sub(1, Ordering::Relaxed);
}

/// Lets `id` name the region `index`, besides its own id. An id that names another region is
/// [`Error::AlreadyExists`].
pub(super) fn bind(id: AllocatorId, index: RecordIndex) -> Result<()> {
    bind_locked(&LOCK.lock(), id, index)
}

/// Undoes [`bind`]; an id that is not bound to `index` is [`Error::UnknownAllocator`].
pub(super) fn unbind(id: AllocatorId, index: RecordIndex) -> Result<()> {
    let lock = LOCK.lock();
    match probe(id) {
        Ok(at) if IDS[at].value.load(Ordering::Relaxed) as u16 == index.0 => {
            erase_locked(&lock, at);
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
    let taken = match probe(entry.id) {
        Err(_) if IDS_USED.load(Ordering::Relaxed) >= IDS_MAX => {
            return Err(Error::TableFull { slots: IDS_MAX });
        }
        Err(_) => false,
        // The same segment again is fine; another one with this id would get wrong answers.
        Ok(at) => {
            let holder = RecordIndex(IDS[at].value.load(Ordering::Relaxed) as u16).record();
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
    let mut at = 0;
    while at < IDS_LEN {
        let found = &IDS[at];
        let bound = found.key.load(Ordering::Relaxed) != 0
            && found.value.load(Ordering::Relaxed) as u16 == index.0;
        if bound {
            // Another entry may move here: look at the same position again.
            erase_locked(&lock, at);
        } else {
            at += 1;
        }
    }
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

    // A second mapping of the same segment inherits the id.
    let heir = RECORDS.iter().position(|other| {
        let seq = other.seq.load(Ordering::Relaxed);
        seq != 0
            && seq & 1 == 0
            && other.id.load(Ordering::Relaxed) == gone.id.to_bits()
            && other.references.any()
    });
    if let Some(heir) = heir
        && probe(gone.id).is_err()
    {
        // There is room: this region's own entry was just erased.
        let _ = bind_locked(&lock, gone.id, RecordIndex(heir as u16));
    }
    Some(gone)
}

/// Puts another segment behind a live record, at the same place. The old id goes.
pub(super) fn replace(index: RecordIndex, entry: &Entry) {
    let lock = LOCK.lock();
    let record = index.record();
    if let Ok(at) = probe(AllocatorId::from_bits(record.id.load(Ordering::Relaxed))) {
        erase_locked(&lock, at);
    }
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
    // The id's own place was just freed.
    let _ = bind_locked(&lock, entry.id, index);
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

const _: () = assert!(SLOT == 1 << SLOT_SHIFT && IDS_LEN.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicBool;

    /// Records without memory behind them: what is tested here only looks at the numbers. Every
    /// field follows from `n`, so that a mixture shows.
    fn fake(n: usize) -> Entry {
        Entry {
            base: 0x10_0000 * (n + 1),
            len: 4096 * (n + 1),
            id: AllocatorId::new(0x0FAC_0000 + n as u32, 0),
            nonce: n as u64,
            fd: None,
            file: (0, 0),
            kind: BackendKind::Array,
            flags: 0,
            file_at: 0,
            payload: 4096,
            parent: None,
        }
    }

    fn is_whole(found: &Snapshot, n: usize) -> bool {
        let whole = fake(n);
        (found.base, found.len, found.id) == (whole.base, whole.len, whole.id)
    }

    #[test]
    fn readers_never_see_a_mixture() {
        let stop = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let readers = [0, 1].map(|turn| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut seen = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        for n in [turn, 1 - turn, 2] {
                            if let Some((_, found)) = by_id(fake(n).id) {
                                assert!(is_whole(&found, n), "{n}: {found:?}");
                                seen += 1;
                            }
                            if let Some((_, found)) = find_snapshot(fake(n).base + 1) {
                                assert!(is_whole(&found, n), "{n}: {found:?}");
                                seen += 1;
                            }
                        }
                    }
                    seen
                })
            });
            // Three regions take turns in the same record, with every kind of neighbour in the
            // id table.
            for round in 0..60_000 {
                let index = publish(&fake(round % 3), true).unwrap();
                assert!(release(index).is_some());
            }
            stop.store(true, Ordering::Relaxed);
            readers.map(|reader| reader.join().unwrap())
        });
        assert!(seen.iter().sum::<u64>() > 0);
    }

    #[test]
    fn slots_and_odd_places() {
        let slot = |n: usize| n << SLOT_SHIFT;
        // Above what is placed at random, and below what the kernel picks.
        let (first, long) = (slot(1500), slot(1502));
        let entry = |n: usize, base, len| Entry { base, len, ..fake(n) };
        let a = publish(&entry(10, first, SLOT), true).unwrap();
        let b = publish(&entry(11, long, 2 * SLOT + 4096), true).unwrap();
        let found = |address: usize| find_snapshot(address).map(|(index, _)| index);
        assert_eq!(found(first), Some(a));
        assert_eq!(found(first + SLOT - 1), Some(a));
        assert_eq!(found(first + SLOT), None);
        assert_eq!(found(long + 2 * SLOT + 4095), Some(b));
        assert_eq!(found(long + 2 * SLOT + 4096), None);
        assert!(!slot_is_free(1504) && slot_is_free(1505));
        // A region in the unused rest of a slot is found all the same, and leaves the slot alone.
        let c = publish(&entry(12, long + 2 * SLOT + 8192, 4096), true).unwrap();
        assert_eq!(found(long + 2 * SLOT + 8192), Some(c));
        assert_eq!(publish(&entry(12, 0x1000, 4096), true), Err(Error::AlreadyExists));
        for index in [a, c, b] {
            assert!(release(index).is_some());
        }
        assert_eq!((found(first), found(long + 2 * SLOT)), (None, None));
        assert!((1500..1506).all(slot_is_free));
        assert_eq!(found(usize::MAX), None);
        assert_eq!(found(0), None);
    }

    #[test]
    fn the_innermost_region_is_found() {
        let outer = Entry { base: 0x7_0000_0000, len: 0x10_0000, ..fake(30) };
        let outer_index = publish(&outer, true).unwrap();
        let found = |address: usize| find_snapshot(address).map(|(index, _)| index);
        let inside = |n, base, len, parent| {
            publish(&Entry { base, len, parent: Some(parent), ..fake(n) }, true).unwrap()
        };
        let first = inside(31, 0x7_0001_0000, 0x2_0000, outer_index);
        let second = inside(32, 0x7_0004_0000, 0x1_0000, outer_index);
        let deep = inside(33, 0x7_0002_0000, 0x1_0000, first);
        for (address, wanted) in [
            (0x7_0000_0000, outer_index),
            (0x7_0001_0000, first),
            (0x7_0001_FFFF, first),
            (0x7_0002_0000, deep),
            (0x7_0002_FFFF, deep),
            (0x7_0003_0000, outer_index),
            (0x7_0004_8000, second),
            (0x7_000F_FFFF, outer_index),
        ] {
            assert_eq!(found(address), Some(wanted), "{address:#x}");
        }
        assert_eq!(found(0x7_0010_0000), None);
        assert_eq!(nested_at(outer_index, 0x7_0004_0000).map(|found| found.0), Some(second));
        assert!(nested_at(outer_index, 0x7_0002_0000).is_none());
        assert!(release(deep).is_some() && release(first).is_some());
        assert_eq!(found(0x7_0002_0000), Some(outer_index));
        assert!(release(second).is_some() && release(outer_index).is_some());
        assert_eq!(found(0x7_0004_0000), None);
    }

    #[test]
    fn references_keep_a_record() {
        let index = publish(&fake(20), true).unwrap();
        let seen = snapshot(index).unwrap();
        retain(index);
        assert!(try_retain(index, &seen));
        assert!(release(index).is_none() && release(index).is_none());
        assert!(release(index).is_some());
        assert!(!try_retain(index, &seen));
        assert_ne!(snapshot(index), Some(seen));
    }
}
