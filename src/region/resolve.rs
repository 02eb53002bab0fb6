//! `FullPtr` from one half alone: the registry knows the other.

use super::registry;
use crate::base::{Error, Result};
use crate::ptr::{AtomicShmPtr, FullPtr, OffsetPtr, ShmPtr};

impl<T> FullPtr<T> {
    /// The place of a process-local pointer: finds the region by the address. A pointer outside
    /// every region of this process is [`Error::NotInAnyRegion`]; null gives null.
    ///
    /// The shared half carries the region's own id. Finding the region takes no lock.
    ///
    /// ```
    /// use hshm::{Backend, FullPtr, MemfdBackend, RegionOptions, Unit};
    /// let region = MemfdBackend::create("", &RegionOptions::new().capacity(Unit::megabytes(1)))?;
    /// let place = FullPtr::from_ptr(region.base().wrapping_add(4096))?;
    /// assert_eq!(place.shm().id(), region.id());
    /// assert_eq!(place.shm().offset().offset(), 4096);
    /// assert_eq!(FullPtr::from_shm(place.shm())?.as_ptr(), place.as_ptr());
    /// assert!(FullPtr::from_ptr(&mut 0).is_err());
    /// # Ok::<(), hshm::Error>(())
    /// ```
    #[inline]
    pub fn from_ptr(ptr: *mut T) -> Result<FullPtr<T>> {
        if ptr.is_null() {
            return Ok(FullPtr::NULL);
        }
        let address = ptr.addr();
        let (_, region) =
            registry::find_snapshot(address).ok_or(Error::NotInAnyRegion { address })?;
        let offset = (address - region.base) as u64;
        if size_of::<T>() > region.len - offset as usize {
            return Err(Error::NotInAnyRegion { address });
        }
        Ok(FullPtr::from_parts(ptr, ShmPtr::new(region.id, OffsetPtr::new(offset))))
    }

    /// The place that a shared pointer names: finds the region by the id. An id that is not bound
    /// in this process is [`Error::UnknownAllocator`], an offset that leaves no room for a `T` in
    /// the region [`Error::OffsetOutOfRange`]; null gives null.
    #[inline]
    pub fn from_shm(shm: ShmPtr<T>) -> Result<FullPtr<T>> {
        if shm.is_null() {
            return Ok(FullPtr::NULL);
        }
        let id = shm.id();
        let (_, region) = registry::by_id(id).ok_or(Error::UnknownAllocator { id })?;
        let (offset, length) = (shm.offset().offset(), region.len as u64);
        match offset.checked_add(size_of::<T>() as u64) {
            Some(end) if end <= length && offset < length => {
                let address = region.base + offset as usize;
                let ptr = core::ptr::with_exposed_provenance_mut(address);
                Ok(FullPtr::from_parts(ptr, shm))
            }
            _ => Err(Error::OffsetOutOfRange { offset, length }),
        }
    }

    /// [`from_shm`](FullPtr::from_shm) of what the atomic pointer holds now.
    pub fn from_atomic_shm(shm: &AtomicShmPtr<T>) -> Result<FullPtr<T>> {
        Self::from_shm(shm.load())
    }
}
