//! Letting another process read the heap where it lies.
//!
//! A heap is one region or several. [`HeapToken`] names them all, as a line of text; the other
//! process turns it into an [`AttachedHeap`], and a [`ShmPtr`] that it was told into a reference:
//!
//! ```text
//! resolve          any type      an address, checked to lie in the heap     anywhere
//! get              any type      a reference; what it refers to holds, too  same address only
//! get_shm(_slice)  T: ShmSafe    a reference; links are offsets             anywhere
//! ```
//!
//! Checked is what can be: that the place is in one of the heap's regions, all of it, aligned, and
//! for `get` that no region was moved. That a `T` lives there is the other process's word, so
//! making references is `unsafe`.
#![allow(unsafe_code)] // references into another process's heap

use core::fmt;
use core::str::FromStr;

use super::cache::MAX_REGIONS;
use super::find;
use super::heap::{HEAP, Part};
use crate::alloc::Owner;
use crate::base::{AllocatorId, Error, Result};
use crate::heap::keeper::Keeper;
use crate::heap::layout::RegionHeap;
use crate::ptr::{ShmPtr, ShmSafe};
use crate::region::{Region, RegionOptions, ShareToken};

/// What another process needs to attach a heap while its owner lives: as text, one
/// [`ShareToken`] for each region, with `;` between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapToken {
    regions: Vec<ShareToken>,
}

impl HeapToken {
    /// The token of this process's own heap. Where it lives in private memory, the reason: by
    /// choice [`Error::NotShared`], otherwise what making shared memory failed with.
    pub(crate) fn of_this_process() -> Result<HeapToken> {
        let shared = |part: &Part| part.heap.region().is_shared();
        if !HEAP.parts().all(shared) {
            return Err(HEAP.why_unshared());
        }
        let regions: Result<Vec<_>> = HEAP.parts().map(|part| part.heap.region().token()).collect();
        let regions = regions?;
        if regions.is_empty() { Err(Error::NotFound) } else { Ok(HeapToken { regions }) }
    }
    /// The token of another process's heap, by the process's id. Only what it has open is looked at,
    /// and only files that attaching would accept: its user's, and nobody else's.
    ///
    /// Which of its regions are its heap is the process's own word, as all that is in them is. As
    /// with any token, regions that it adds later are not named.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such process, [`Error::PermissionDenied`] where this one
    /// may not look at it, [`Error::NotShared`] where it has no heap that can be shared,
    /// [`Error::Incompatible`] where that is another version's.
    ///
    #[cfg_attr(not(feature = "c-api"), doc = "```")]
    // There the C library's memory is private, and a program's allocator a handle of the same heap.
    #[cfg_attr(feature = "c-api", doc = "```no_run")]
    /// use hshm::{AttachedHeap, HeapToken, HshmAlloc, RegionOptions};
    ///
    /// #[global_allocator]
    /// static A: HshmAlloc = HshmAlloc::new();
    ///
    /// let pid = std::process::id();
    /// let token = HeapToken::of_process(pid)?;
    /// assert_eq!(token, A.share()?);
    /// let heap = AttachedHeap::attach(&token, &RegionOptions::new().read_only(true))?;
    /// # Ok::<(), hshm::Error>(())
    /// ```
    pub fn of_process(pid: u32) -> Result<HeapToken> {
        find::heap_of(pid).map(|regions| HeapToken { regions })
    }
    /// The regions' tokens, oldest first.
    pub fn regions(&self) -> &[ShareToken] {
        &self.regions
    }
}

/// Hands over the block at an address.
pub(super) fn transfer(address: usize, to: Owner) -> Result<()> {
    let (_, part, offset) = HEAP.find(address).ok_or(Error::NotInAnyRegion { address })?;
    let block = part.heap.find_block(offset)?;
    part.heap.check_live(block)?;
    let keeper = match to {
        Owner::Nobody => Keeper::Nobody,
        Owner::ThisProcess => Keeper::Process(part.process),
    };
    let _visit = HEAP.visit();
    part.heap.set_keeper(offset, block, keeper)
}

impl fmt::Display for HeapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, region) in self.regions.iter().enumerate() {
            if index > 0 {
                f.write_str(";")?;
            }
            write!(f, "{region}")?;
        }
        Ok(())
    }
}

impl FromStr for HeapToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let regions: Result<Vec<ShareToken>> = text.split(';').map(str::parse).collect();
        let regions = regions?;
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(Error::BadName);
        }
        Ok(HeapToken { regions })
    }
}

/// Another process's heap, mapped here. Unmapped when dropped.
///
/// [`get`](AttachedHeap::get) turns a pointer that the owner sent into a reference, checked as far
/// as checking goes. While the heap is attached,
/// [`FullPtr::from_shm`](crate::FullPtr::from_shm) finds its objects, too, with fewer checks.
///
/// It has the regions that the token names. Should the owner's heap grow by a region afterwards,
/// pointers into that one are [`Error::UnknownAllocator`]: take the token after the data is made.
///
#[cfg_attr(not(feature = "c-api"), doc = "```")]
// As for `HeapToken::of_process`.
#[cfg_attr(feature = "c-api", doc = "```no_run")]
/// use hshm::{AttachedHeap, FullPtr, HeapToken, HshmAlloc, RegionOptions};
///
/// #[global_allocator]
/// static A: HshmAlloc = HshmAlloc::new();
///
/// // One process has a number and says where.
/// let mut answer = Box::new(42u64);
/// let pointer = FullPtr::from_ptr(&raw mut *answer)?.shm();
/// let token = A.share()?.to_string();
///
/// // Another one (here the same, which sees its heap a second time, elsewhere) reads it in place.
/// let token: HeapToken = token.parse()?;
/// let heap = AttachedHeap::attach(&token, &RegionOptions::new().read_only(true))?;
/// // SAFETY: a `u64` lives there, and nobody writes to it.
/// assert_eq!(unsafe { heap.get_shm(pointer)? }, &42);
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Debug)]
pub struct AttachedHeap {
    regions: Vec<Region>,
}

impl AttachedHeap {
    /// Maps all regions of a heap; `options` says whether read-only, whether at the same address
    /// or elsewhere. Takes time for each region, whatever its size.
    pub fn attach(token: &HeapToken, options: &RegionOptions) -> Result<AttachedHeap> {
        let regions: Result<Vec<_>> =
            token.regions.iter().map(|region| Region::attach_token(region, options)).collect();
        Ok(AttachedHeap { regions: regions? })
    }
    /// The regions, oldest first.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }
    /// Whether any region is mapped elsewhere than in its owner: plain references inside it must
    /// not be followed then, only offsets.
    pub fn is_relocated(&self) -> bool {
        self.regions.iter().any(Region::is_relocated)
    }
    /// Bytes that the owner has in slabs, runs and large blocks, free blocks of slabs included.
    pub fn bytes_in_use(&self) -> Result<usize> {
        let mut bytes = 0;
        for region in &self.regions {
            bytes += RegionHeap::attach(region.clone())?.bytes_in_use();
        }
        Ok(bytes)
    }

    /// Where this process sees `count` elements of `T` from `pointer` on.
    ///
    /// Nothing is read. The place is all inside one region of this heap and aligned for `T`;
    /// whether a `T` is there is for the caller to know. `count` may be 0, for a place that is
    /// only to be checked.
    ///
    /// # Errors
    /// [`Error::UnknownAllocator`] for a pointer into no region of this heap,
    /// [`Error::OffsetOutOfRange`] for null and for a place that is not all inside its region,
    /// [`Error::TooLarge`] for a `count` of more bytes than there are addresses,
    /// [`Error::BadAlignment`] for a place that is not aligned for `T`.
    pub fn resolve<T>(&self, pointer: ShmPtr<T>, count: usize) -> Result<*const T> {
        let id = pointer.id();
        let (offset, region) = (pointer.offset().offset(), self.region(id));
        let Some(region) = region.filter(|_| !pointer.is_null()) else {
            let length = region.map_or(0, |region| region.len() as u64);
            let null = Error::OffsetOutOfRange { offset, length };
            return Err(if pointer.is_null() { null } else { Error::UnknownAllocator { id } });
        };
        let maximum = isize::MAX as usize / size_of::<T>().max(1);
        if count > maximum {
            return Err(Error::TooLarge { given: count, maximum });
        }
        let (length, bytes) = (region.len() as u64, (count * size_of::<T>()) as u64);
        match offset.checked_add(bytes) {
            Some(end) if end <= length && offset < length => {}
            _ => return Err(Error::OffsetOutOfRange { offset, length }),
        }
        let place = region.base().wrapping_add(offset as usize).cast_const().cast::<T>();
        match place.is_aligned() {
            true => Ok(place),
            false => Err(Error::BadAlignment { align: align_of::<T>() }),
        }
    }

    /// The value at `pointer`, of any type, plain references and all. Only in a heap that is
    /// mapped where its owner has it: otherwise [`Error::Relocated`], because whatever the value
    /// refers to is elsewhere here. Attach with
    /// [`same_address(true)`](RegionOptions::same_address) to learn that at once.
    ///
    /// The reference lives as long as the attachment.
    ///
    /// # Errors
    /// As for [`resolve`](AttachedHeap::resolve), and [`Error::Relocated`].
    ///
    /// # Safety
    /// While the reference is used:
    /// - a valid `T` is there, laid out as in this program: the owner is the same program, or
    ///   every type that is reached has a fixed layout;
    /// - everything that is reached from it lies in this heap: no vtable, no function pointer, no
    ///   reference to a static (an empty `HashMap` of std holds one);
    /// - nobody, in any process, writes to any of it, or frees it (outside an `UnsafeCell`);
    /// - nothing of it is dropped or changed here: the heap belongs to its owner.
    pub unsafe fn get<T>(&self, pointer: ShmPtr<T>) -> Result<&T> {
        let place = self.resolve(pointer, 1)?;
        if self.is_relocated() {
            return Err(Error::Relocated);
        }
        // SAFETY: the place is mapped for as long as `self` and aligned, as `resolve` checked; the
        // caller vouches for the value, and with equal addresses for what it refers to.
        Ok(unsafe { &*place })
    }

    /// The value at `pointer`, of a type that means the same at any address: the heap may be
    /// relocated.
    ///
    /// # Errors
    /// As for [`resolve`](AttachedHeap::resolve).
    ///
    /// # Safety
    /// While the reference is used, a valid `T` is there, and nobody, in any process, writes to it
    /// or frees it (outside an atomic).
    pub unsafe fn get_shm<T: ShmSafe>(&self, pointer: ShmPtr<T>) -> Result<&T> {
        let place = self.resolve(pointer, 1)?;
        // SAFETY: as in `get`; a `ShmSafe` type refers to nothing by address.
        Ok(unsafe { &*place })
    }

    /// The `count` values from `pointer` on; as [`get_shm`](AttachedHeap::get_shm).
    ///
    /// # Errors
    /// As for [`resolve`](AttachedHeap::resolve).
    ///
    /// # Safety
    /// As for [`get_shm`](AttachedHeap::get_shm), for each of the values.
    pub unsafe fn get_shm_slice<T: ShmSafe>(
        &self,
        pointer: ShmPtr<T>,
        count: usize,
    ) -> Result<&[T]> {
        let place = self.resolve(pointer, count)?;
        // SAFETY: as in `get_shm`, for `count` values, whose bytes `resolve` checked to be mapped,
        // and to be no more than `isize::MAX`.
        Ok(unsafe { core::slice::from_raw_parts(place, count) })
    }

    fn region(&self, id: AllocatorId) -> Option<&Region> {
        self.regions.iter().find(|region| region.id() == id)
    }
}
