//! `ShmBox`: one value.
#![allow(unsafe_code)] // references into shared memory

use core::alloc::Layout;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::heap::{self, ShmHeap};
use crate::base::Result;
use crate::ptr::{OffsetPtr, ShmPtr, ShmSafe};

/// A value in a heap, owned: a `Box` that can lie in shared memory and be used from any process.
///
/// ```
/// use hshm::{ShmBox, ShmHeap};
/// # use hshm::{AllocatorId, Region, ThreadLocalAllocator};
/// # let region = Region::anonymous(AllocatorId::new(902, 0), 16 << 20)?;
/// # let heap = ShmHeap::of(Box::leak(Box::new(ThreadLocalAllocator::shm_init(region)?)))?;
/// let mut answer = ShmBox::new_in(41u64, heap)?;
/// *answer += 1;
/// // 16 bytes to send to another process, which takes the box over, or only looks:
/// let place = answer.into_raw();
/// // SAFETY: the place holds the number that was put there, and nobody else uses it.
/// let answer = unsafe { ShmBox::from_raw(place) };
/// assert_eq!(answer.into_inner(), 42);
/// # Ok::<(), hshm::Error>(())
/// ```
#[repr(C)]
pub struct ShmBox<T: ShmSafe> {
    place: ShmPtr<T>,
    _owns: PhantomData<T>,
}

// SAFETY: an id and an offset, and a destructor that looks the id up in the process that it runs in.
unsafe impl<T: ShmSafe> ShmSafe for ShmBox<T> {}

impl<T: ShmSafe> ShmBox<T> {
    /// Puts a value into a heap. Where there is no room, the value is dropped.
    pub fn new_in(value: T, heap: ShmHeap) -> Result<Self> {
        let block = heap::allocate(heap.id(), Layout::new::<T>())?;
        let boxed = ShmBox {
            place: ShmPtr::new(heap.id(), OffsetPtr::<T>::new(block)),
            _owns: PhantomData,
        };
        match boxed.value() {
            // SAFETY: a fresh block with room for a `T`, aligned.
            Ok(place) => unsafe { place.write(value) },
            Err(error) => {
                // SAFETY: the block is fresh, and holds nothing to drop.
                unsafe { heap::free(heap.id(), boxed.into_raw().offset().offset()) };
                return Err(error);
            }
        }
        Ok(boxed)
    }

    fn value(&self) -> Result<NonNull<T>> {
        heap::place(self.place.id(), self.place.offset().offset(), 1)
    }

    /// The heap.
    pub fn heap(&self) -> Result<ShmHeap> {
        ShmHeap::by_id(self.place.id())
    }

    /// Gives the value up to whoever is told the place: it stays until
    /// [`from_raw`](Self::from_raw), in this process or in another one.
    pub fn into_raw(self) -> ShmPtr<T> {
        let place = self.place;
        core::mem::forget(self);
        place
    }

    /// Takes over what [`into_raw`](Self::into_raw) gave up.
    ///
    /// # Safety
    /// The place came from `into_raw`, nobody else has taken it over, and nobody uses a reference to
    /// the value; otherwise as [`ShmHeap::get_mut`].
    pub unsafe fn from_raw(place: ShmPtr<T>) -> Self {
        ShmBox { place, _owns: PhantomData }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        let place = self.value().unwrap_or_else(|error| heap::lost(error));
        let raw = self.into_raw();
        // SAFETY: the box held a value there, and is gone; the block is free of it afterwards.
        unsafe {
            let value = place.read();
            heap::free(raw.id(), raw.offset().offset());
            value
        }
    }
}

impl<T: ShmSafe> Deref for ShmBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let place = heap::reach::<T>(self.place.id(), self.place.offset().offset(), 1);
        // SAFETY: the box's own value, which it has as long as it lives; mapped as long as its heap
        // is known.
        unsafe { place.as_ref() }
    }
}

impl<T: ShmSafe> DerefMut for ShmBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        let mut place = heap::reach::<T>(self.place.id(), self.place.offset().offset(), 1);
        // SAFETY: as above, and the box is borrowed for this alone.
        unsafe { place.as_mut() }
    }
}

impl<T: ShmSafe> Drop for ShmBox<T> {
    fn drop(&mut self) {
        if heap::owned(self.place.id())
            && let Ok(place) = self.value()
        {
            // SAFETY: the box's own value and block, neither used again.
            unsafe {
                place.drop_in_place();
                heap::free(self.place.id(), self.place.offset().offset());
            }
        }
    }
}

impl<T: ShmSafe + fmt::Debug> fmt::Debug for ShmBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
impl<T: ShmSafe + fmt::Display> fmt::Display for ShmBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
impl<T: ShmSafe + PartialEq> PartialEq for ShmBox<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
impl<T: ShmSafe + Eq> Eq for ShmBox<T> {}
impl<T: ShmSafe + Hash> Hash for ShmBox<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}
