//! Address space and pages.
//!
//! Addresses are plain numbers here: a mapping is owned by a record of the region registry, and
//! becomes a pointer there.
#![allow(unsafe_code)] // mmap and its kin

use core::ffi::c_void;
use core::num::NonZeroUsize;
use core::ptr;

use once_cell::race::OnceNonZeroUsize;

use super::lock::{is_locking, lock_on_fault, unlocked};
use super::{Fd, errno, error_for, last_error};
use crate::base::units::PAGE;
use crate::base::{Error, Result, align_down, align_up};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::futex::KeepErrno;

/// Bytes of a page of this machine.
pub(crate) fn page_size() -> usize {
    static SIZE: OnceNonZeroUsize = OnceNonZeroUsize::new();
    let ask = || {
        // Not `sysconf`: its table of all there is to ask for lies in pages that nothing else
        // touches, and every process would have them.
        // SAFETY: no preconditions.
        let size = unsafe { libc::getauxval(libc::AT_PAGESZ) };
        usize::try_from(size).ok().and_then(NonZeroUsize::new).unwrap_or(SMALLEST)
    };
    SIZE.get_or_init(ask).get()
}

/// What a machine that does not say has.
const SMALLEST: NonZeroUsize = NonZeroUsize::new(PAGE).unwrap();

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Where the kernel likes.
    Anywhere,
    /// Exactly here, and only if nothing is there yet: otherwise [`Error::AlreadyExists`].
    Free(usize),
}

/// What may be done with the pages of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: the addresses are only kept from others.
    None,
    /// Loads.
    Read,
    /// Loads and stores.
    Write,
}

impl Access {
    fn prot(self) -> i32 {
        match self {
            Access::None => libc::PROT_NONE,
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// Every mapping is made here. `fixed` replaces what is at the address.
///
/// # Safety
/// With `fixed`, the range belongs to the caller and nobody uses what it holds.
unsafe fn map(
    address: usize,
    len: usize,
    access: Access,
    fd: Option<&Fd>,
    flags: i32,
) -> Result<usize> {
    let _errno = KeepErrno::new();
    let flags = flags
        | libc::MAP_NORESERVE
        | if fd.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    // What the kernel fills because the process locks all that it maps has to wait until it is told not to.
    let waits = access != Access::None && is_locking();
    let first = if waits { Access::None } else { access };
    // SAFETY: without MAP_FIXED the kernel touches no existing mapping; with it, the caller
    // vouches for the range.
    let got = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(address),
            len,
            first.prot(),
            flags,
            fd.map_or(-1, Fd::raw),
            0,
        )
    };
    if got == libc::MAP_FAILED {
        return Err(last_error(len));
    }
    if waits {
        // SAFETY: the mapping was made just now; nobody has used what it holds.
        unsafe { lock_on_fault(got.addr(), len) };
        // SAFETY: as above.
        if unsafe { libc::mprotect(got, len, access.prot()) } != 0 {
            let error = last_error(len);
            if flags & libc::MAP_FIXED == 0 {
                // SAFETY: as above. What was the caller's stays reserved for him.
                unsafe { unmap(got.addr(), len) };
            }
            return Err(error);
        }
    }
    Ok(got.expose_provenance())
}

fn map_at(at: At, len: usize, access: Access, fd: Option<&Fd>) -> Result<usize> {
    match at {
        // SAFETY: no MAP_FIXED.
        At::Anywhere => unsafe { map(0, len, access, fd, 0) },
        At::Free(wanted) => {
            // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
            let got = unsafe { map(wanted, len, access, fd, libc::MAP_FIXED_NOREPLACE)? };
            if got != wanted {
                // Kernels before 4.17 take the flag for a hint.
                // SAFETY: the mapping was made just now and nobody knows it.
                unsafe { unmap(got, len) };
                return Err(Error::AlreadyExists);
            }
            Ok(got)
        }
    }
}

/// Keeps `len` bytes of addresses from everybody else; touching them is a fault.
pub(crate) fn reserve(at: At, len: usize) -> Result<usize> {
    map_at(at, len, Access::None, None)
}

/// [`reserve`] at an address of the kernel's choice that is a multiple of `align`, a power of two.
pub(crate) fn reserve_aligned(len: usize, align: usize) -> Result<usize> {
    let page = page_size();
    if align <= page {
        return reserve(At::Anywhere, len);
    }
    let too_large = Error::OutOfMemory { requested: usize::MAX, available: 0 };
    let wide = len.checked_add(align - page).ok_or(too_large)?;
    let start = reserve(At::Anywhere, wide).map_err(|error| match error {
        // Say what was asked for, not what we made of it.
        Error::OutOfMemory { .. } => Error::OutOfMemory { requested: len, available: 0 },
        other => other,
    })?;
    let base = align_up(start, align).ok_or(too_large)?;
    let (head, tail) = (base - start, start + wide - (base + len));
    // SAFETY: both ends lie in the reservation made above, outside the part that is kept.
    unsafe {
        if head != 0 {
            unmap(start, head);
        }
        if tail != 0 {
            unmap(base + len, tail);
        }
    }
    Ok(base)
}

/// Maps `len` bytes of a file from its start, shared with everybody who maps it.
pub(crate) fn map_shared(fd: &Fd, at: At, len: usize, access: Access) -> Result<usize> {
    map_at(at, len, access, Some(fd))
}

/// Maps `len` bytes of a file over a reservation.
///
/// # Safety
/// `[base, base + len)` is page-aligned, reserved by the caller, and nobody uses it.
pub(crate) unsafe fn map_shared_over(
    fd: &Fd,
    base: usize,
    len: usize,
    access: Access,
) -> Result<()> {
    // SAFETY: the caller's contract is the same.
    unsafe { map(base, len, access, Some(fd), libc::MAP_FIXED).map(|_| ()) }
}

/// Maps `len` bytes of fresh private memory, all zero.
pub(crate) fn map_private(at: At, len: usize) -> Result<usize> {
    map_at(at, len, Access::Write, None)
}

/// Maps fresh private memory over a reservation or over memory that is to be forgotten.
///
/// # Safety
/// `[base, base + len)` is page-aligned, belongs to the caller, and nobody uses it.
pub(crate) unsafe fn map_private_over(base: usize, len: usize, access: Access) -> Result<()> {
    // SAFETY: the caller's contract is the same.
    unsafe { map(base, len, access, None, libc::MAP_FIXED).map(|_| ()) }
}

/// Replaces a mapping of a file by one in which stores are this process's own: nobody else sees them.
/// What is not written to goes on showing what others write.
///
/// # Safety
/// `[base, base + len)` is page-aligned and a mapping of `fd` from its start, the caller's.
pub(crate) unsafe fn map_copy_on_write(fd: &Fd, base: usize, len: usize) -> Result<()> {
    let _errno = KeepErrno::new();
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's; every address holds what it held.
    let got = unsafe { libc::mmap(at(base), len, access, flags, fd.raw(), 0) };
    if got == libc::MAP_FAILED { Err(last_error(len)) } else { Ok(()) }
}

/// From now on a mapping can be read and not be written.
///
/// # Safety
/// The range is page-aligned and belongs to the caller. A store to it is a fault.
pub(crate) unsafe fn forbid_stores(base: usize, len: usize) -> Result<()> {
    let _errno = KeepErrno::new();
    // SAFETY: the caller's.
    let result = unsafe { libc::mprotect(at(base), len, libc::PROT_READ) };
    if result == 0 { Ok(()) } else { Err(last_error(len)) }
}

/// Gives addresses back. Cannot fail for a range that is mapped, except when the process has no
/// more mappings to split one; then the range stays reserved.
///
/// # Safety
/// The range is page-aligned, belongs to the caller, and nobody uses it from now on.
pub(crate) unsafe fn unmap(base: usize, len: usize) {
    let _errno = KeepErrno::new();
    // SAFETY: the caller owns the range.
    unsafe { libc::munmap(at(base), len) };
}

/// Gives pages to a range now, so that touching it later cannot fault for want of memory. The
/// contents stay as they are. The range is widened to whole pages.
///
/// `backing` is the file behind the range and where in it the range starts, for kernels before
/// 5.14, which must be asked through the file; private memory needs nothing there.
pub(crate) fn commit(base: usize, len: usize, backing: Option<(&Fd, u64)>) -> Result<()> {
    let _errno = KeepErrno::new();
    let page = page_size();
    let start = align_down(base, page);
    let slack = base - start;
    let none = Error::OutOfMemory { requested: len, available: 0 };
    let Some(span) = len.checked_add(slack).and_then(|n| align_up(n, page)) else {
        return Err(none);
    };
    for _ in 0..16 {
        // SAFETY: populating changes no contents; a range that is not mapped is ENOMEM.
        if unsafe { libc::madvise(at(start), span, libc::MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        match errno() {
            libc::EAGAIN | libc::EINTR => {}
            // Either the kernel does not know the advice, or the pages may not be written.
            libc::EINVAL if can_populate() => return Err(Error::ReadOnly),
            libc::EINVAL => {
                let Some((fd, offset)) = backing else { return Ok(()) };
                return super::allocate_range(fd, offset - slack as u64, span as u64).map_err(
                    |error| match error {
                        Error::OutOfMemory { .. } => none,
                        other => other,
                    },
                );
            }
            libc::ENOMEM | libc::EFAULT | libc::ENOSPC | libc::EDQUOT => return Err(none),
            other => return Err(error_for(other, len)),
        }
    }
    Err(none)
}

/// Whether [`commit`] of a file's pages needs the file's descriptor: on kernels before 5.14.
pub(crate) fn commit_needs_file() -> bool {
    !can_populate()
}

/// Whether the kernel knows `MADV_POPULATE_WRITE` (5.14).
fn can_populate() -> bool {
    static ANSWER: AtomicU32 = AtomicU32::new(NOT_ASKED);
    knows(libc::MADV_POPULATE_WRITE, &ANSWER)
}

/// Whether it knows `MADV_COLLAPSE` (6.1).
fn can_collapse() -> bool {
    static ANSWER: AtomicU32 = AtomicU32::new(NOT_ASKED);
    knows(libc::MADV_COLLAPSE, &ANSWER)
}

const NOT_ASKED: u32 = 0;

/// Whether the kernel knows an advice, which it is asked once: it looks at that before it sees that there is
/// nothing to do.
fn knows(advice: libc::c_int, known: &AtomicU32) -> bool {
    const NO: u32 = 1;
    const YES: u32 = 2;
    let mut answer = known.load(Ordering::Relaxed);
    if answer == NOT_ASKED {
        let _errno = KeepErrno::new();
        // SAFETY: an empty range.
        let result = unsafe { libc::madvise(at(page_size()), 0, advice) };
        answer = if result == 0 { YES } else { NO };
        known.store(answer, Ordering::Relaxed);
    }
    answer == YES
}

/// Gives the pages of a range back; it reads as zero afterwards. Only whole pages inside the range
/// are given back.
///
/// # Safety
/// The range is mapped, belongs to the caller, and nobody relies on its contents. With `shared`
/// the pages are taken from every process that maps the file.
pub(crate) unsafe fn purge(base: usize, len: usize, shared: bool) -> Result<()> {
    let _errno = KeepErrno::new();
    let page = page_size();
    let end = align_down(base.saturating_add(len), page);
    let Some(start) = align_up(base, page).filter(|&start| start < end) else { return Ok(()) };
    let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    // SAFETY: the caller gives the contents up.
    let purge = || unsafe { libc::madvise(at(start), end - start, advice) == 0 };
    let done =
        purge() || errno() == libc::EINVAL && is_locking() && unlocked(start, end - start, purge);
    if done { Ok(()) } else { Err(last_error(len)) }
}

/// Asks for huge pages behind a range as it is touched. A wish: errors tell, and change nothing.
pub(crate) fn advise_huge(base: usize, len: usize) -> Result<()> {
    advise(base, len, libc::MADV_HUGEPAGE)
}

/// Bytes of a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Puts huge pages behind a range of shared memory, now, whatever the setting for shared memory is.
/// [`Error::Unsupported`] where the kernel does not know how (before Linux 6.1), with nothing done, or says that
/// it is not to be tried again: mostly for good, as for most files; but a full `tmpfs` is told the same.
/// Any other error leaves some of the range as it was. The contents stay.
pub(crate) fn populate_huge(base: usize, len: usize) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    if !can_collapse() {
        return Err(Error::Unsupported);
    }
    let _errno = KeepErrno::new();
    for start in (base..base + len).step_by(HUGE_PAGE) {
        // Of a range without any page there is nothing to collapse.
        commit(start, 1, None)?;
    }
    // SAFETY: changes no contents.
    match unsafe { libc::madvise(at(base), len, libc::MADV_COLLAPSE) } {
        0 => Ok(()),
        _ if errno() == libc::EINVAL => Err(Error::Unsupported),
        _ => Err(last_error(len)),
    }
}

/// Takes the wish of [`advise_huge`] back.
pub(crate) fn advise_ordinary(base: usize, len: usize) -> Result<()> {
    advise(base, len, libc::MADV_NOHUGEPAGE)
}

/// For advice that changes no contents.
fn advise(base: usize, len: usize, advice: libc::c_int) -> Result<()> {
    let _errno = KeepErrno::new();
    // SAFETY: changes no contents.
    let result = unsafe { libc::madvise(at(base), len, advice) };
    if result == 0 { Ok(()) } else { Err(last_error(len)) }
}

/// Pages of a range that are in memory, in bytes.
pub(crate) fn resident(base: usize, len: usize) -> Result<usize> {
    let _errno = KeepErrno::new();
    let page = page_size();
    let start = align_down(base, page);
    let end = align_up(base.saturating_add(len), page).unwrap_or(align_down(usize::MAX, page));
    let mut flags = [0u8; 1024];
    let mut at_page = start;
    let mut pages = 0;
    while at_page < end {
        let step = (end - at_page).min(flags.len() * page);
        // SAFETY: the vector has a byte for every page of the step.
        if unsafe { libc::mincore(at(at_page), step, flags.as_mut_ptr()) } != 0 {
            return Err(last_error(len));
        }
        pages += flags.iter().take(step / page).filter(|&&flag| flag & 1 != 0).count();
        at_page += step;
    }
    Ok(pages * page)
}

/// Takes `len` bytes at a multiple of `align` from the C library's heap.
pub(crate) fn c_alloc(len: usize, align: usize) -> Result<usize> {
    let _errno = KeepErrno::new();
    let mut block: *mut c_void = ptr::null_mut();
    // SAFETY: `block` is a place for the result.
    match unsafe { libc::posix_memalign(&mut block, align, len) } {
        0 if !block.is_null() => Ok(block.expose_provenance()),
        _ => Err(Error::OutOfMemory { requested: len, available: 0 }),
    }
}

/// Gives a block of [`c_alloc`] back.
///
/// # Safety
/// `block` came from [`c_alloc`], and nobody uses it from now on.
pub(crate) unsafe fn c_free(block: usize) {
    let _errno = KeepErrno::new();
    // SAFETY: the caller vouches for the block.
    unsafe { libc::free(at(block)) };
}

/// Makes a block of [`c_alloc`] `len` bytes long, as the C library's `realloc`: it may move, to a place
/// that is aligned as `malloc`'s blocks are. On an error it is unchanged.
///
/// # Safety
/// As for [`c_free`], unless there is an error.
pub(crate) unsafe fn c_realloc(block: usize, len: usize) -> Result<usize> {
    let _errno = KeepErrno::new();
    // SAFETY: the caller vouches for the block; the length is not 0, which would free it.
    let moved = unsafe { libc::realloc(at(block), len.max(1)) };
    match moved.is_null() {
        false => Ok(moved.expose_provenance()),
        true => Err(Error::OutOfMemory { requested: len, available: 0 }),
    }
}

pub(super) fn at(address: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::MIB;

    #[test]
    fn reservations_are_aligned_and_refuse_to_replace() {
        let base = reserve_aligned(3 * PAGE, 4 * MIB).unwrap();
        assert_eq!(base % (4 * MIB), 0);
        assert_eq!(reserve(At::Free(base), PAGE), Err(Error::AlreadyExists));
        // SAFETY: the reservation is ours.
        unsafe { unmap(base, 3 * PAGE) };
    }

    #[test]
    fn commit_then_purge_private() {
        let base = map_private(At::Anywhere, 16 * PAGE).unwrap();
        assert_eq!(resident(base, 16 * PAGE), Ok(0));
        commit(base + 1, PAGE, None).unwrap();
        assert_eq!(resident(base, 16 * PAGE), Ok(2 * PAGE));
        // SAFETY: the mapping is ours and unused.
        unsafe {
            purge(base + 1, 2 * PAGE, false).unwrap();
            assert_eq!(resident(base, 16 * PAGE), Ok(PAGE));
            unmap(base, 16 * PAGE);
        }
    }

    #[test]
    fn commit_of_what_cannot_be_written_is_an_error() {
        let base = reserve(At::Anywhere, PAGE).unwrap();
        assert_eq!(commit(base, PAGE, None), Err(Error::ReadOnly));
        // SAFETY: the reservation is ours.
        unsafe { unmap(base, PAGE) };
        // Nothing is ever mapped in the second page of all.
        assert!(matches!(commit(PAGE, PAGE, None), Err(Error::OutOfMemory { .. })));
    }
}
