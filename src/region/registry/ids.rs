//! Which record an id leads to: an open-addressing table without tombstones.
//!
//! It changes under the registry's lock, while [`CHANGES`] is odd; readers, who take no lock, look at that
//! before and after, and go round if it was.

use crate::base::{AllocatorId, Error, Result};
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::lock::Guard;

const LEN: usize = 1024;
/// Ids that can be bound at one time: probing stays short while a quarter is empty.
const MOST: usize = LEN * 3 / 4;

struct Entry {
    /// Complement of the id's bits, so that the all-zero entry is the null id, which nobody binds.
    key: AtomicU64,
    /// Record index in the low half, its sequence number in the high one.
    value: AtomicU64,
}

static ENTRIES: [Entry; LEN] =
    [const { Entry { key: AtomicU64::new(0), value: AtomicU64::new(0) } }; LEN];
static CHANGES: AtomicU32 = AtomicU32::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);

/// What `id` is bound to. Takes no lock.
#[inline]
pub(super) fn look_up(id: AllocatorId) -> Option<u64> {
    if id.is_null() {
        return None;
    }
    loop {
        let seen = CHANGES.load(Ordering::Acquire);
        let found = if seen & 1 == 0 { probe(id).ok() } else { None };
        let value = found.map(|at| ENTRIES[at & (LEN - 1)].value.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if seen & 1 == 0 && CHANGES.load(Ordering::Relaxed) == seen {
            return value;
        }
        core::hint::spin_loop();
    }
}

/// What `id` is bound to, for those who hold the lock.
pub(super) fn bound(id: AllocatorId) -> Option<u64> {
    probe(id).ok().map(|at| ENTRIES[at].value.load(Ordering::Relaxed))
}

/// [`Error::TableFull`] where no other id can be bound.
pub(super) fn check_room() -> Result<()> {
    if USED.load(Ordering::Relaxed) < MOST { Ok(()) } else { Err(Error::TableFull { slots: MOST }) }
}

/// Binds `id`; to what it is bound to already it may be bound again.
pub(super) fn bind(lock: &Guard<'_>, id: AllocatorId, value: u64) -> Result<()> {
    if id.is_null() {
        return Err(Error::UnknownAllocator { id });
    }
    match probe(id) {
        Ok(at) if ENTRIES[at].value.load(Ordering::Relaxed) == value => Ok(()),
        Ok(_) => Err(Error::AlreadyExists),
        Err(at) => {
            check_room()?;
            change(lock, || {
                ENTRIES[at].value.store(value, Ordering::Relaxed);
                ENTRIES[at].key.store(!id.to_bits(), Ordering::Relaxed);
            });
            USED.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// Lets `id` be bound to nothing.
pub(super) fn erase(lock: &Guard<'_>, id: AllocatorId) {
    if let Ok(at) = probe(id) {
        erase_at(lock, at);
    }
}

/// Lets all ids be bound to nothing whose value is such a one.
pub(super) fn erase_all(lock: &Guard<'_>, is_such: impl Fn(u64) -> bool) {
    let mut at = 0;
    while at < LEN {
        let found = &ENTRIES[at];
        if found.key.load(Ordering::Relaxed) != 0 && is_such(found.value.load(Ordering::Relaxed)) {
            // Another entry may move here: look at the same position again.
            erase_at(lock, at);
        } else {
            at += 1;
        }
    }
}

/// The position of `id`, or the empty position where it would go.
fn probe(id: AllocatorId) -> core::result::Result<usize, usize> {
    let key = !id.to_bits();
    let mut at = home(key);
    for _ in 0..LEN {
        match ENTRIES[at & (LEN - 1)].key.load(Ordering::Relaxed) {
            0 => return Err(at),
            found if found == key => return Ok(at),
            _ => at = (at + 1) & (LEN - 1),
        }
    }
    Err(at)
}

fn home(key: u64) -> usize {
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & (LEN - 1)
}

/// Changes the table; readers meanwhile go round.
fn change(_lock: &Guard<'_>, change: impl FnOnce()) {
    let seen = CHANGES.load(Ordering::Relaxed);
    CHANGES.store(seen.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    change();
    CHANGES.store(seen.wrapping_add(2), Ordering::Release);
}

/// Empties the entry at `at` and moves up those behind it that would no longer be found.
fn erase_at(lock: &Guard<'_>, at: usize) {
    change(lock, || {
        let mut hole = at;
        let mut next = (at + 1) & (LEN - 1);
        loop {
            let key = ENTRIES[next].key.load(Ordering::Relaxed);
            if key == 0 {
                break;
            }
            // The entry may move into the hole unless its home lies between the two.
            let from_home = next.wrapping_sub(home(key)) & (LEN - 1);
            let from_hole = next.wrapping_sub(hole) & (LEN - 1);
            if from_home >= from_hole {
                let value = ENTRIES[next].value.load(Ordering::Relaxed);
                ENTRIES[hole].value.store(value, Ordering::Relaxed);
                ENTRIES[hole].key.store(key, Ordering::Relaxed);
                hole = next;
            }
            next = (next + 1) & (LEN - 1);
        }
        ENTRIES[hole].key.store(0, Ordering::Relaxed);
        ENTRIES[hole].value.store(0, Ordering::Relaxed);
    });
    USED.fetch_sub(1, Ordering::Relaxed);
}

const _: () = assert!(LEN.is_power_of_two());
