//! [`Region`]: a counted handle to a record of the registry.
#![allow(unsafe_code)] // looks into mapped memory

use core::fmt;

use super::header::{HEADER_LEN, Header};
use super::make::{self, Names};
use super::registry::{self, RecordIndex};
use super::{Backend, BackendKind, FileId, PosixMmap, RegionOptions, ShareToken};
use crate::base::units::GRANULE;
use crate::base::{AllocatorId, Error, Result};
use crate::os;
use crate::ptr::{FullPtr, OffsetPtr, ShmPtr, ShmSafe};
use crate::sync::atomic::Ordering;

/// A mapped region.
///
/// A handle is cheap to clone; when the last one is dropped, the region is unmapped (and goes, if
/// nobody else has it and it has no name). [`leak`](Region::leak) keeps it for good.
///
/// Regions are made by the [backends](Backend).
///
/// ```
/// use hshm::{Backend, MemfdBackend, RegionOptions, Unit};
/// let region = MemfdBackend::create("", &RegionOptions::new().capacity(Unit::megabytes(1)))?;
/// assert_eq!(region.len(), Unit::megabytes(1));
/// assert!(region.is_shared());
/// # Ok::<(), hshm::Error>(())
/// ```
#[allow(clippy::len_without_is_empty)] // no region is empty
pub struct Region {
    /// The record, on which this handle has a reference.
    record: RecordIndex,
    /// Copies of what never changes while there is a reference.
    base: usize,
    len: usize,
}

/// The engine kind while an engine is being laid out.
pub(crate) const ENGINE_MAKING: u32 = u32::MAX;

impl Region {
    /// A handle that takes over a reference on `record`.
    ///
    /// # Safety
    /// The record is live and the caller gives one of its references away.
    pub(super) unsafe fn from_record(record: RecordIndex) -> Region {
        Region { record, base: record.base(), len: record.len() }
    }

    /// Private anonymous memory with this id: the short form of
    /// [`PosixMmap::create`](Backend::create).
    pub fn anonymous(id: AllocatorId, len: usize) -> Result<Region> {
        PosixMmap::create("", &RegionOptions::new().capacity(len).id(id))
    }

    /// The region of this process that `id` is bound to.
    pub fn by_id(id: AllocatorId) -> Result<Region> {
        loop {
            let (index, seen) = registry::by_id(id).ok_or(Error::UnknownAllocator { id })?;
            if registry::try_retain(index, &seen) {
                // SAFETY: the reference was just counted.
                return Ok(unsafe { Region::from_record(index) });
            }
        }
    }

    /// The region of this process that holds an address.
    pub fn containing(address: *const u8) -> Result<Region> {
        let address = address.addr();
        loop {
            let (index, seen) =
                registry::find_snapshot(address).ok_or(Error::NotInAnyRegion { address })?;
            if registry::try_retain(index, &seen) {
                // SAFETY: the reference was just counted.
                return Ok(unsafe { Region::from_record(index) });
            }
        }
    }

    /// Attaches the region that a token of another process describes, through that process's
    /// descriptor. A process that is gone is [`Error::NotFound`], a descriptor that is something
    /// else by now an error that says what; otherwise as [`Backend::attach`].
    pub fn attach_token(token: &ShareToken, options: &RegionOptions) -> Result<Region> {
        let fd = os::open_fd_of(token.pid, token.fd, !options.read_only)?;
        make::attach_shared(fd, Names::Any, Some(token.id), options)
    }

    /// Where this process sees offset 0.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.base)
    }
    /// Bytes of the region, header included.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }
    /// The id in the region's header.
    #[inline]
    pub fn id(&self) -> AllocatorId {
        self.record.id()
    }
    /// Offset of the first byte after the header, and the custom one: a multiple of the page size.
    #[inline]
    pub fn payload_offset(&self) -> usize {
        registry::entry(self.record).payload
    }
    /// Whether the region lies inside another one.
    pub fn is_nested(&self) -> bool {
        registry::entry(self.record).parent.is_some()
    }
    /// The user's own header (see [`RegionOptions::custom_header`]): `size_of::<T>()` bytes in the
    /// region, all zero at first, that every process finds at the same offset.
    ///
    /// Who reads and writes it when is for its users to agree on, so its place is given, and no
    /// reference.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none, [`Error::Incompatible`] where it has another size,
    /// or less alignment, than a `T`.
    pub fn custom_header<T: ShmSafe>(&self) -> Result<FullPtr<T>> {
        let (size, align) = self.custom().ok_or(Error::NotFound)?;
        let same = |found: usize, expected: usize, fits: bool| match fits {
            true => Ok(()),
            false => Err(Error::Incompatible { found: found as u32, expected: expected as u32 }),
        };
        same(size, size_of::<T>(), size == size_of::<T>())?;
        same(align, align_of::<T>(), align >= align_of::<T>())?;
        let offset = OffsetPtr::new(HEADER_LEN as u64);
        let address = self.base().wrapping_add(HEADER_LEN).cast();
        Ok(FullPtr::from_parts(address, ShmPtr::new(self.id(), offset)))
    }
    /// Size and alignment of the custom header, as far as they can be believed.
    fn custom(&self) -> Option<(usize, usize)> {
        let header = self.header();
        let size = header.custom_len.load(Ordering::Relaxed) as usize;
        let align = header.custom_align.load(Ordering::Relaxed) as usize;
        let room = self.payload_offset() - HEADER_LEN;
        (size != 0 && size <= room && align.is_power_of_two() && align <= HEADER_LEN)
            .then_some((size, align))
    }
    /// Whether the custom header is what the options ask for, if they ask for one.
    pub(crate) fn check_custom(&self, options: &RegionOptions) -> Result<()> {
        let Some(wanted) = options.custom else { return Ok(()) };
        let found = self.custom().unwrap_or((0, 0));
        if found == wanted {
            return Ok(());
        }
        let (found, expected) =
            if found.0 == wanted.0 { (found.1, wanted.1) } else { (found.0, wanted.0) };
        Err(Error::Incompatible { found: found as u32, expected: expected as u32 })
    }
    /// What is behind the region.
    pub fn kind(&self) -> BackendKind {
        registry::entry(self.record).kind
    }
    /// Whether other processes can attach it.
    pub fn is_shared(&self) -> bool {
        self.kind().is_shared()
    }
    /// Whether stores are allowed.
    pub fn is_writable(&self) -> bool {
        self.has(registry::WRITABLE)
    }
    /// Whether it is mapped elsewhere than where its creator had it, so that plain references
    /// inside it must not be followed.
    pub fn is_relocated(&self) -> bool {
        self.has(registry::RELOCATED)
    }
    /// Whether touching pages that were never [committed](Region::commit) could raise a signal:
    /// the file system may be full.
    pub fn must_commit(&self) -> bool {
        self.has(registry::MUST_COMMIT)
    }
    /// Whether pages that nobody ever wrote are zero. Only for regions made here, over memory that
    /// was made with them.
    pub fn known_zero(&self) -> bool {
        self.has(registry::KNOWN_ZERO)
    }
    /// Whether this process made the region (and did not attach it).
    pub fn is_creator(&self) -> bool {
        self.has(registry::CREATED)
    }
    /// The descriptor of the segment, which stays the region's.
    pub fn fd(&self) -> Option<i32> {
        registry::entry(self.record).fd
    }
    fn has(&self, flag: u32) -> bool {
        registry::flags(self.record) & flag != 0
    }

    /// Gives pages to `len` bytes at `offset` now (rounded out to whole pages): running out is
    /// [`Error::OutOfMemory`] here instead of a signal later. Contents stay as they are. Memory
    /// that was there before the region needs no commitment.
    pub fn commit(&self, offset: u64, len: usize) -> Result<()> {
        let start = self.range(offset, len)?;
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        let entry = registry::entry(self.record);
        let asks = entry.fd.is_some() && os::commit_needs_file();
        let fd = if asks { self.own_fd() } else { None };
        match (entry.kind, fd) {
            _ if len == 0 => Ok(()),
            (BackendKind::Array | BackendKind::Malloc, _) => Ok(()),
            (_, Some(fd)) => {
                let at = entry.file_at + offset;
                os::with_fd(fd, |fd| os::commit(start, len, Some((fd, at))))
            }
            (_, None) => os::commit(start, len, None),
        }
    }

    /// Gives the pages of a range back to the system (whole pages inside it only); they read as
    /// zero afterwards, here and in every process. [`Error::Unsupported`] where the memory is not
    /// ours to give, or the file system cannot.
    ///
    /// # Safety
    /// Nobody, in any process, relies on the contents.
    pub unsafe fn purge(&self, offset: u64, len: usize) -> Result<()> {
        let start = self.range(offset, len)?;
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        match self.kind() {
            BackendKind::Array | BackendKind::Malloc => Err(Error::Unsupported),
            // SAFETY: the range lies in the region, and the caller gives its contents up.
            kind => unsafe { os::purge(start, len, kind.is_shared()) },
        }
    }

    /// Bytes of a range that take up memory (or blocks of the file), in whole pages.
    pub fn resident_bytes(&self, offset: u64, len: usize) -> Result<usize> {
        let start = self.range(offset, len)?;
        match self.own_fd() {
            Some(fd) => os::with_fd(fd, |fd| {
                let at = registry::entry(self.record).file_at + offset;
                os::allocated_bytes(fd, at, at + len as u64).map(|bytes| bytes as usize)
            }),
            None if self.kind() == BackendKind::PosixMmap => os::resident(start, len),
            None => Ok(len),
        }
    }

    /// The descriptor, if it still is the segment: programs close descriptors that they do not know
    /// (`close_range`), and their numbers come to stand for other files.
    pub(crate) fn own_fd(&self) -> Option<i32> {
        let entry = registry::entry(self.record);
        let fd = entry.fd?;
        let info = os::with_fd(fd, os::stat).ok()?;
        ((info.inode, info.device) == entry.file).then_some(fd)
    }

    /// The number of byte `index` (below 2048) of those that the kernel locks for the users of this
    /// region: one that no other region of the same file has.
    pub(crate) fn lock_byte(&self, index: u32) -> u64 {
        registry::entry(self.record).file_at / GRANULE as u64 * 2048 + u64::from(index)
    }

    /// Which file the segment is, and how many names it has; `None` where the program has closed
    /// its descriptor.
    pub(crate) fn file(&self) -> Option<(FileId, u64)> {
        let info = os::with_fd(self.own_fd()?, os::stat).ok()?;
        Some((FileId::of(&info), info.links))
    }

    /// The address of a range that lies within the region.
    fn range(&self, offset: u64, len: usize) -> Result<usize> {
        let length = self.len as u64;
        match offset.checked_add(len as u64) {
            Some(end) if end <= length => Ok(self.base + offset as usize),
            _ => Err(Error::OffsetOutOfRange { offset, length }),
        }
    }

    /// Lets `id` name this region, too: several allocators may share one. Until
    /// [`unbind`](Region::unbind), or until the region goes. An id of another region is
    /// [`Error::AlreadyExists`].
    pub fn bind(&self, id: AllocatorId) -> Result<()> {
        registry::bind(id, self.record)
    }
    /// Undoes [`bind`](Region::bind).
    pub fn unbind(&self, id: AllocatorId) -> Result<()> {
        registry::unbind(id, self.record)
    }

    /// Keeps the region mapped until the process ends.
    pub fn leak(&self) {
        registry::retain(self.record);
    }

    /// What another process needs to attach this region while this one lives. Private memory is
    /// [`Error::NotShared`], a region inside another one [`Error::Unsupported`]: that one's token
    /// leads to it.
    pub fn token(&self) -> Result<ShareToken> {
        let fd = self.segment_fd()?;
        Ok(ShareToken { pid: os::process_id(), fd, id: self.id(), base: self.base, len: self.len })
    }

    /// Whether programs that this process starts keep the segment's descriptor, to attach it by
    /// number. At first they do not. Private memory is [`Error::NotShared`].
    pub fn set_inheritable(&self, inherit: bool) -> Result<()> {
        let fd = self.segment_fd()?;
        os::with_fd(fd, |fd| os::set_inheritable(fd, inherit))
    }

    /// The descriptor of the segment of which this region is the whole.
    pub(crate) fn segment_fd(&self) -> Result<i32> {
        if self.is_nested() {
            return Err(Error::Unsupported);
        }
        self.own_fd().ok_or(Error::NotShared)
    }

    /// Reserves the payload for an engine that is about to lay itself out:
    /// [`Error::AlreadyExists`] where one did before, here or in another process.
    pub(crate) fn claim_engine(&self) -> Result<()> {
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        let kind = &self.header().engine_kind;
        kind.compare_exchange(0, ENGINE_MAKING, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| ())
            .map_err(|_| Error::AlreadyExists)
    }
    /// Says which engine there is now, and where its header lies.
    pub(crate) fn finish_engine(&self, kind: u32, offset: u64) {
        self.header().engine_offset.store(offset, Ordering::Relaxed);
        self.header().engine_kind.store(kind, Ordering::Release);
    }
    /// Gives a claim up: the engine could not be made.
    pub(crate) fn abandon_engine(&self) {
        self.header().engine_kind.store(0, Ordering::Release);
    }

    /// The header, of which read-only attachments must only load.
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the first page of a region is mapped while there is a handle, is as aligned as
        // a page, holds the header, and is only ever accessed through its atomics.
        unsafe { &*core::ptr::with_exposed_provenance::<Header>(self.base) }
    }
    /// The region's record.
    #[inline]
    pub(crate) fn record(&self) -> RecordIndex {
        self.record
    }
}

impl Clone for Region {
    fn clone(&self) -> Self {
        registry::retain(self.record);
        Region { record: self.record, base: self.base, len: self.len }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(gone) = registry::release(self.record) {
            // SAFETY: this was the last handle, the record is gone, and `release` gives the entry
            // once.
            unsafe { make::unmake(&gone) };
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No address: logs travel further than pointers should.
        f.debug_struct("Region")
            .field("id", &self.id())
            .field("kind", &self.kind())
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
