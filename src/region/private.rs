//! Memory of this process alone: anonymous, from the C library, or the caller's.
#![allow(unsafe_code)] // regions over memory that others made

use super::header::MIN_LEN;
use super::{Backend, BackendKind, Region, RegionOptions, make};
use crate::base::units::{GRANULE, PAGE};
use crate::base::{Error, Result, align_down, align_up};
use crate::os;

/// Private anonymous memory. The url is ignored. A forked child has its own copy, as of all
/// private memory.
#[derive(Clone, Copy, Debug)]
pub struct PosixMmap;

impl Backend for PosixMmap {
    const KIND: BackendKind = BackendKind::PosixMmap;

    fn create(_url: &str, options: &RegionOptions) -> Result<Region> {
        make::create_private(options)
    }
}

/// Memory of the C library's heap, aligned to 64 KiB. The url is ignored, and so are the wishes
/// about the address. Not for use where this crate itself is the C library's heap.
#[derive(Clone, Copy, Debug)]
pub struct MallocBackend;

impl Backend for MallocBackend {
    const KIND: BackendKind = BackendKind::Malloc;

    fn create(_url: &str, options: &RegionOptions) -> Result<Region> {
        let len = make::length(options, false)?;
        let base = os::c_alloc(len, GRANULE)?;
        // SAFETY: the block is ours, aligned and long enough; the region's record owns it, and
        // gives it back with the last handle.
        let region = unsafe { make::create_over(Self::KIND, base, len, options) };
        if region.is_err() {
            // SAFETY: no record took the block over.
            unsafe { os::c_free(base) };
        }
        region
    }
}

/// An array of the caller's. It must outlive every use, so it is a static one or a leaked one,
/// which only [`ArrayBackend::over`] can be given: [`create`](Backend::create) is
/// [`Error::Unsupported`].
///
/// The region starts at the first multiple of 64 KiB inside, when the array is long enough for a
/// granule behind that; otherwise at the first whole page.
#[derive(Clone, Copy, Debug)]
pub struct ArrayBackend;

impl ArrayBackend {
    /// Makes a region over an array; see the type. [`Error::TooSmall`] when no header and page fit
    /// between the page boundaries inside.
    pub fn over(array: &'static mut [u8], options: &RegionOptions) -> Result<Region> {
        // SAFETY: the exclusive borrow lasts as long as the program.
        unsafe { Self::over_raw(array.as_mut_ptr(), array.len(), options) }
    }

    /// [`over`](ArrayBackend::over) for memory known by its address.
    ///
    /// # Safety
    /// `[ptr, ptr + len)` is readable and writable, and nobody else uses it, until the last handle
    /// of the region is dropped (or for good, after [`Region::leak`]).
    pub unsafe fn over_raw(ptr: *mut u8, len: usize, options: &RegionOptions) -> Result<Region> {
        if options.read_only {
            return Err(Error::ReadOnly);
        }
        let start = ptr.expose_provenance();
        let too_small = Error::TooSmall { given: len, minimum: MIN_LEN };
        let end = start.checked_add(len).ok_or(too_small)?;
        let inside = |align: usize| align_up(start, align).filter(|&base| base < end);
        let page = os::page_size().max(PAGE);
        let base = inside(GRANULE)
            .filter(|base| end - base >= 2 * GRANULE)
            .or_else(|| inside(page))
            .ok_or(too_small)?;
        let len = align_down(end - base, page);
        if ptr.is_null() || len < MIN_LEN {
            return Err(too_small);
        }
        // SAFETY: the range lies inside the caller's, is aligned, and long enough.
        unsafe { make::create_over(Self::KIND, base, len, options) }
    }
}

impl Backend for ArrayBackend {
    const KIND: BackendKind = BackendKind::Array;

    fn create(_url: &str, _options: &RegionOptions) -> Result<Region> {
        Err(Error::Unsupported)
    }
}
