//! The table of a map: where an entry with a hash is, and where one may go.
//!
//! ```text
//! block:  entry 0 | entry 1 | ... | entry n-1 | tag 0 | ... | tag n-1 | tags 0 to 7 again
//! tag:    0xFF never used    0x80 used once    0 to 0x7F: top 7 bits of the entry's hash
//! ```
//!
//! `n` is a power of two, at least 8. Tags are looked at eight at a time, as one word, from the
//! place that the low bits of the hash say, then 8, 24, 48 ... further on, all around. A search ends
//! at a tag that was never used; at most seven of eight are. (The layout of Google's Swiss tables.)
//!
//! A [`Table`] is what a map's words say, checked against the heap: all its places are inside. The
//! tags themselves are only compared, so that damaged ones give wrong answers and nothing worse; a
//! search that meets no unused tag ends after it has been everywhere.
#![allow(unsafe_code)] // reads and writes entries by index

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ptr::NonNull;

use super::super::heap::{self, too_large};
use crate::base::{AllocatorId, Error, Result};

pub(super) const UNUSED: u8 = 0xFF;
pub(super) const DELETED: u8 = 0x80;
/// Tags that are looked at together.
pub(super) const GROUP: usize = 8;
const EACH: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// A key and its value, as they lie in the table.
#[repr(C)]
pub(super) struct Slot<K, V> {
    pub(super) key: K,
    pub(super) value: V,
}

/// The table in a heap, as this process sees it.
pub(super) struct Table<K, V> {
    slots: NonNull<Slot<K, V>>,
    tags: NonNull<u8>,
    pub(super) mask: usize,
    _type: PhantomData<Slot<K, V>>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K, V> Copy for Table<K, V> {}

/// Bytes of the tags of `n` places.
const fn tag_bytes(n: usize) -> usize {
    n + GROUP
}

/// The block for `n` places.
pub(super) fn layout<K, V>(n: usize) -> Result<Layout> {
    let slots = Layout::array::<Slot<K, V>>(n).map_err(|_| too_large())?;
    let bytes = slots.size().checked_add(tag_bytes(n)).ok_or_else(too_large)?;
    Layout::from_size_align(bytes, slots.align().max(8)).map_err(|_| too_large())
}

/// Entries that `n` places may hold.
pub(super) const fn room(n: usize) -> usize {
    n / 8 * 7
}

/// The fewest places that may hold `entries`.
pub(super) fn places_for(entries: usize) -> Result<usize> {
    let places = (entries as u128 * 8).div_ceil(7).max(GROUP as u128).next_power_of_two();
    usize::try_from(places).ok().filter(|&places| places <= 1 << 48).ok_or_else(too_large)
}

/// The bits of a group whose tag is `tag`; seldom, the bit above one, too.
#[inline]
fn equal(group: u64, tag: u8) -> u64 {
    let differ = group ^ (EACH * tag as u64);
    differ.wrapping_sub(EACH) & !differ & HIGH
}

impl<K, V> Table<K, V> {
    /// The table of `mask + 1` places in the block at `offset`, if there can be one.
    #[inline]
    pub(super) fn at(id: AllocatorId, offset: u64, mask: u64) -> Result<Self> {
        let n = mask.wrapping_add(1);
        if n < GROUP as u64 || n & mask != 0 || n > 1 << 48 {
            return Err(Error::Corrupt);
        }
        let slots = (size_of::<Slot<K, V>>() as u64).checked_mul(n).ok_or(Error::Corrupt)?;
        // All of it: the alignment of the slots here, their bytes and the tags' below.
        let first = heap::place::<Slot<K, V>>(id, offset, 0)?;
        let bytes = slots.checked_add(tag_bytes(n as usize) as u64).ok_or(Error::Corrupt)?;
        let start = heap::place::<u8>(id, offset, bytes)?;
        // SAFETY: inside the block, as was just checked.
        let tags = unsafe { start.add(slots as usize) };
        Ok(Table { slots: first, tags, mask: mask as usize, _type: PhantomData })
    }

    /// A fresh table: every tag says that its place was never used.
    pub(super) fn allocate(id: AllocatorId, n: usize) -> Result<(u64, Self)> {
        let block = heap::allocate(id, layout::<K, V>(n)?)?;
        match Self::at(id, block, n as u64 - 1) {
            Ok(table) => {
                table.forget_all();
                Ok((block, table))
            }
            Err(error) => {
                // SAFETY: fresh, and nobody knows it.
                unsafe { heap::free(id, block) };
                Err(error)
            }
        }
    }

    /// Marks every place as never used.
    pub(super) fn forget_all(&self) {
        // SAFETY: the tags of this table.
        unsafe { self.tags.as_ptr().write_bytes(UNUSED, tag_bytes(self.mask + 1)) };
    }

    /// Eight tags from place `at` (at most `mask`) on.
    #[inline]
    fn group(&self, at: usize) -> u64 {
        // SAFETY: there are eight tags more than places; any address will do.
        u64::from_le(unsafe {
            self.tags.as_ptr().add(at & self.mask).cast::<u64>().read_unaligned()
        })
    }

    /// The tag of place `at`.
    #[inline]
    pub(super) fn tag(&self, at: usize) -> u8 {
        // SAFETY: a tag of this table.
        unsafe { self.tags.as_ptr().add(at & self.mask).read() }
    }

    /// Sets the tag of place `at`, and its copy behind the end if it has one.
    #[inline]
    pub(super) fn set_tag(&self, at: usize, tag: u8) {
        let copy = (at.wrapping_sub(GROUP) & self.mask) + GROUP;
        // SAFETY: tags of this table: a place, and at most eight behind the last one.
        unsafe {
            self.tags.as_ptr().add(at & self.mask).write(tag);
            self.tags.as_ptr().add(copy).write(tag);
        }
    }

    /// The slot of place `at`. Whether there is an entry is for its tag to say.
    #[inline]
    pub(super) fn slot(&self, at: usize) -> *mut Slot<K, V> {
        self.slots.as_ptr().wrapping_add(at & self.mask)
    }

    /// The groups of a search for `hash`: where each begins.
    #[inline]
    fn path(&self, hash: u64) -> impl Iterator<Item = usize> + use<K, V> {
        let (mask, mut at, mut step) = (self.mask, hash as usize & self.mask, 0);
        (0..=mask / GROUP).map(move |_| {
            let group = at;
            step += GROUP;
            at = (at + step) & mask;
            group
        })
    }

    /// The place of the entry that has this hash and that `wanted` knows by its key.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut wanted: impl FnMut(&K) -> bool) -> Option<usize> {
        let tag = (hash >> 57) as u8;
        for start in self.path(hash) {
            let group = self.group(start);
            let mut hits = equal(group, tag);
            while hits != 0 {
                let at = (start + hits.trailing_zeros() as usize / 8) & self.mask;
                hits &= hits - 1;
                // A hit may be none: the tag decides whether there is an entry.
                // SAFETY: the place has an entry, as its tag says.
                if self.tag(at) == tag && wanted(unsafe { &(*self.slot(at)).key }) {
                    return Some(at);
                }
            }
            // Never used: 0xFF, the only tag with both upper bits.
            if group & (group << 1) & HIGH != 0 {
                return None;
            }
        }
        None
    }

    /// The first place on the path of `hash` without an entry.
    #[inline]
    pub(super) fn find_free(&self, hash: u64) -> Option<usize> {
        self.path(hash).find_map(|start| {
            let free = self.group(start) & HIGH;
            (free != 0).then(|| (start + free.trailing_zeros() as usize / 8) & self.mask)
        })
    }

    /// Empties the place `at`. Whether it counts as never used then: no search that went on past it
    /// has to go on past it any more.
    pub(super) fn erase(&self, at: usize) -> bool {
        let unused = |group: u64| group & (group << 1) & HIGH;
        let before = unused(self.group(at.wrapping_sub(GROUP) & self.mask));
        let after = unused(self.group(at));
        // The run of used tags around the place is shorter than a group: every group that has the
        // place in it has an unused tag, too.
        let run = before.leading_zeros() / 8 + after.trailing_zeros() / 8;
        let never = before != 0 && after != 0 && run < GROUP as u32;
        self.set_tag(at, if never { UNUSED } else { DELETED });
        never
    }

    /// The next place from `at` on that has an entry.
    #[inline]
    pub(super) fn next_full(&self, at: usize) -> Option<usize> {
        let mut start = at;
        while start <= self.mask {
            let full = !self.group(start) & HIGH;
            if full != 0 {
                let found = start + full.trailing_zeros() as usize / 8;
                return (found <= self.mask).then_some(found);
            }
            start += GROUP;
        }
        None
    }
}
