//! Regions inside others: how several allocators share one segment.
//!
//! ```text
//!  outer  | header | ...                                                     |
//!  inner              | header | custom header | payload ...  |
//!                     granule                                  end
//! ```
//!
//! An inner region is a region in all respects: it has a header, an id, offsets of its own, and its
//! engine knows nothing of the outer one. It has no mapping of its own; its record holds a reference
//! on the outer region's, so that this stays mapped as long as anybody has the inner one.
//!
//! Whose bytes they are is for the layers above to know. They may be given to somebody else when the
//! inner region is gone *and nobody has it any more*, here or elsewhere: [`Region::is_nested_in_use`].
//! In a shared segment that is for the kernel to say: each record of an inner region keeps a descriptor
//! of the file that has a share in the lock of a byte of that region's. The share goes with the process,
//! however that ends, and a forked child has it, too.
#![allow(unsafe_code)] // lays regions out in memory of the caller's

use super::header::{Facts, Header, MIN_LEN};
use super::registry::{self, Entry};
use super::{Region, RegionOptions, make};
use crate::base::units::{GRANULE, PAGE};
use crate::base::{AllocatorId, Error, Result, is_aligned};
use crate::os::{self, ByteLock, Fd};

/// Whoever has an inner region has a share in this byte of its locks.
const USERS: u32 = 2046;
/// Whoever changes what lies where in a region has this byte of its locks.
const CHANGES: u32 = 2047;

impl Region {
    /// Makes a region over the bytes from `offset` on, as long as the options' capacity says. Whatever
    /// was there is gone. Options about addresses are ignored: the place is given.
    ///
    /// # Errors
    /// [`Error::BadAlignment`] for an offset or a length that is no multiple of the page, or for an
    /// offset that is none of 64 KiB in shared memory; [`Error::OffsetOutOfRange`],
    /// [`Error::AlreadyExists`] and others as for any region.
    ///
    /// # Safety
    /// The bytes are the caller's alone until nobody has the inner region any more.
    pub(crate) unsafe fn nest(&self, offset: u64, options: &RegionOptions) -> Result<Region> {
        let len = make::length(options, false)?;
        self.check_place(offset, len)?;
        let id = make::new_id(options)?;
        // SAFETY: the bytes are the caller's.
        let zero = unsafe { self.purge(offset, len) }.is_ok();
        let payload = make::payload(options)?;
        self.commit(offset, payload)?;
        let base = self.base().addr() + offset as usize;
        let facts = make::facts(self.kind(), base, len, id, payload);
        let zero = if zero { registry::KNOWN_ZERO } else { 0 };
        let region = self.publish_nested(offset, &facts, registry::CREATED | zero, true)?;
        // SAFETY: just committed, and the caller's alone; the base is a page's.
        unsafe { make::write_header(&facts, options) };
        Ok(region)
    }

    /// The region inside this one that begins at `offset` and has the id `expected`. One that this
    /// process has already is the same one.
    pub(crate) fn attach_nested(
        &self,
        offset: u64,
        expected: AllocatorId,
        options: &RegionOptions,
    ) -> Result<Region> {
        self.check_place(offset, MIN_LEN)?;
        let base = self.base().addr() + offset as usize;
        let region = match self.nested_here(base) {
            Some(found) => found,
            None => {
                let header = core::ptr::with_exposed_provenance::<Header>(base);
                // SAFETY: inside the mapping, aligned to a page; all fields are atomics.
                let bytes = unsafe { &*header }.prefix();
                let facts = Facts::decode(&bytes, self.len() as u64 - offset)?;
                if facts.kind != self.kind() {
                    return Err(Error::Corrupt);
                }
                if facts.id != expected {
                    return Err(Error::ForeignPointer { found: facts.id, expected });
                }
                let relocated = if facts.base == base { 0 } else { registry::RELOCATED };
                self.publish_nested(offset, &facts, relocated, false)?
            }
        };
        if region.id() != expected {
            return Err(Error::ForeignPointer { found: region.id(), expected });
        }
        region.check_custom(options)?;
        Ok(region)
    }

    /// Whether anybody has the region that begins at `offset`, however deep inside this one: this
    /// process or, where the memory is shared, any. What cannot be told counts as in use.
    pub(crate) fn is_nested_in_use(&self, offset: u64) -> bool {
        match self.own_fd() {
            // Those of this process have a share, too, in a file description of their own.
            Some(fd) => {
                let byte = self.nested_lock_byte(offset, USERS);
                !matches!(ByteLock::is_taken(fd, byte), Ok(false))
            }
            None if self.is_shared() => true,
            None => {
                let start = self.base().wrapping_add(offset as usize);
                Region::containing(start).is_ok_and(|found| found.base() == start)
            }
        }
    }

    /// Keeps all other processes, and other threads, from changing what lies where in this region;
    /// [`Error::AlreadyExists`] where somebody else does that just now. `None` for private memory.
    pub(crate) fn try_lock_changes(&self) -> Result<Option<ByteLock>> {
        match self.own_fd() {
            Some(fd) => ByteLock::take(fd, self.lock_byte(CHANGES)).map(Some),
            None if self.is_shared() => Err(Error::NotFound),
            None => Ok(None),
        }
    }

    fn nested_lock_byte(&self, offset: u64, index: u32) -> u64 {
        self.lock_byte(0) + offset / GRANULE as u64 * 2048 + u64::from(index)
    }

    fn nested_here(&self, base: usize) -> Option<Region> {
        loop {
            let (index, seen) = registry::nested_at(self.record(), base)?;
            if registry::try_retain(index, &seen) {
                // SAFETY: the reference was just counted.
                return Some(unsafe { Region::from_record(index) });
            }
        }
    }

    fn check_place(&self, offset: u64, len: usize) -> Result<()> {
        let step = if self.is_shared() { GRANULE } else { PAGE };
        if !is_aligned(offset as usize, step) || !is_aligned(len, PAGE) {
            return Err(Error::BadAlignment { align: step });
        }
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len() as u64 => Ok(()),
            _ => Err(Error::OffsetOutOfRange { offset, length: self.len() as u64 }),
        }
    }

    fn publish_nested(
        &self,
        offset: u64,
        facts: &Facts,
        flags: u32,
        created: bool,
    ) -> Result<Region> {
        let outer = registry::entry(self.record());
        let users = match self.own_fd() {
            Some(fd) => Some(os::share_byte(fd, self.nested_lock_byte(offset, USERS))?),
            None if self.is_shared() => return Err(Error::NotFound),
            None => None,
        };
        let inherited = registry::WRITABLE | registry::RELOCATED | registry::MUST_COMMIT;
        let entry = Entry {
            base: self.base().addr() + offset as usize,
            len: facts.len,
            id: facts.id,
            nonce: facts.nonce,
            fd: users.as_ref().map(Fd::raw),
            file: outer.file,
            kind: outer.kind,
            flags: outer.flags & inherited | flags,
            file_at: outer.file_at + offset,
            payload: facts.payload,
            parent: Some(self.record()),
        };
        // The record's reference on the outer region.
        let around = self.clone();
        let index = registry::publish(&entry, created)?;
        core::mem::forget(around);
        if let Some(users) = users {
            users.into_raw();
        }
        // SAFETY: the record was just published with one reference, which the handle takes.
        Ok(unsafe { Region::from_record(index) })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::base::MIB;
    use crate::ptr::FullPtr;
    use crate::region::{Backend, MemfdBackend, PosixMmap};

    fn id(minor: u32) -> AllocatorId {
        AllocatorId::new(0x4E57, minor)
    }

    fn options(minor: u32, len: usize) -> RegionOptions {
        RegionOptions::new().capacity(len).id(id(minor))
    }

    #[test]
    fn inner_regions_are_found_and_hold_the_outer_one() {
        let outer = MemfdBackend::create("", &options(0, 4 * MIB)).unwrap();
        let custom = options(1, MIB).custom_header(24, 8);
        // SAFETY: nobody else uses the outer region.
        let inner = unsafe { outer.nest(MIB as u64, &custom).unwrap() };
        // SAFETY: nobody else uses that part of the inner one.
        let deep = unsafe { inner.nest(GRANULE as u64, &options(2, 2 * GRANULE)).unwrap() };
        let base = outer.base().addr();
        assert_eq!(deep.base().addr(), base + MIB + GRANULE);
        let place = FullPtr::from_ptr(deep.base().wrapping_add(5000)).unwrap();
        assert_eq!((place.shm().id(), place.offset().offset()), (id(2), 5000));
        let place = FullPtr::from_ptr(inner.base().wrapping_add(GRANULE - 1)).unwrap();
        assert_eq!(place.shm().id(), id(1));
        assert_eq!(FullPtr::from_shm(place.shm()).unwrap().as_ptr(), place.as_ptr());
        assert_eq!(Region::containing(outer.base()).unwrap().id(), id(0));
        assert_eq!(Region::by_id(id(2)).unwrap().base(), deep.base());
        assert_eq!(inner.payload_offset(), 2 * PAGE);
        let header = inner.custom_header::<[u64; 3]>().unwrap();
        // SAFETY: the header is this test's alone.
        unsafe {
            assert_eq!(*header.as_ptr(), [0; 3]);
            *header.as_ptr() = [1, 2, 3];
        }
        assert_eq!(outer.custom_header::<u64>().err(), Some(Error::NotFound));
        assert!(matches!(inner.custom_header::<u64>(), Err(Error::Incompatible { .. })));
        assert!(inner.token().is_err() && inner.is_nested() && inner.is_shared());
        // Another mapping of the segment sees the same.
        let again = Region::attach_token(&outer.token().unwrap(), &RegionOptions::new()).unwrap();
        let wrong = again.attach_nested(MIB as u64, id(7), &RegionOptions::new());
        assert!(matches!(wrong, Err(Error::ForeignPointer { .. })));
        for bad in [RegionOptions::new().custom_header(16, 8), custom.custom_header(24, 16)] {
            let refused = again.attach_nested(MIB as u64, id(1), &bad);
            assert!(matches!(refused, Err(Error::Incompatible { .. })), "{refused:?}");
        }
        let there = again.attach_nested(MIB as u64, id(1), &custom).unwrap();
        let other = there.custom_header::<[u64; 3]>().unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { *other.as_ptr() }, [1, 2, 3]);
        assert_ne!(other.as_ptr(), header.as_ptr());
        for at in [0, GRANULE as u64 / 2, 3 * MIB as u64, 4 * MIB as u64, !0xFFFF] {
            assert!(again.attach_nested(at, id(1), &RegionOptions::new()).is_err(), "{at:#x}");
        }
        // The outer handles go; the memory stays.
        drop((outer, inner));
        // SAFETY: the region is this test's alone.
        unsafe { deep.base().add(PAGE).write(7) };
        assert!(again.is_nested_in_use(MIB as u64));
        drop(there);
        // The innermost region keeps its outer one in use.
        assert!(again.is_nested_in_use(MIB as u64));
        drop(deep);
        assert!(!again.is_nested_in_use(MIB as u64));
        assert_eq!(Region::by_id(id(1)).err(), Some(Error::UnknownAllocator { id: id(1) }));
    }

    #[test]
    fn changes_are_made_by_one_at_a_time() {
        let outer = MemfdBackend::create("", &options(10, MIB)).unwrap();
        let lock = outer.try_lock_changes().unwrap();
        assert!(lock.is_some());
        assert_eq!(outer.try_lock_changes().err(), Some(Error::AlreadyExists));
        drop(lock);
        assert!(outer.try_lock_changes().is_ok());
    }

    fn has_inner_regions(outer: Region) {
        // SAFETY: nobody else uses the outer region.
        let inner = unsafe { outer.nest(8 * PAGE as u64, &options(22, 2 * PAGE)).unwrap() };
        let same = outer.attach_nested(8 * PAGE as u64, id(22), &RegionOptions::new()).unwrap();
        assert_eq!(inner.base(), same.base());
        assert!(outer.is_nested_in_use(8 * PAGE as u64));
        drop((inner, same));
        assert!(!outer.is_nested_in_use(8 * PAGE as u64));
    }

    #[test]
    fn private_memory_has_inner_regions_too() {
        has_inner_regions(PosixMmap::create("", &options(20, MIB)).unwrap());
    }

    /// With the C interface `malloc` is this crate's, and what it gives lies in a region already.
    #[cfg(not(feature = "c-api"))]
    #[test]
    fn memory_of_malloc_has_inner_regions_too() {
        use crate::region::MallocBackend;
        has_inner_regions(MallocBackend::create("", &options(21, MIB)).unwrap());
    }
}
