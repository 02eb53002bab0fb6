//! The kinds of segment, and what they have in common.

use super::{Region, RegionOptions};
use crate::base::{Error, Result};

/// What is behind a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum BackendKind {
    /// POSIX shared memory: [`PosixShmMmap`](crate::PosixShmMmap).
    PosixShm = 1,
    /// An anonymous file in memory: [`MemfdBackend`](crate::MemfdBackend).
    Memfd = 2,
    /// A file: [`FileBackend`](crate::FileBackend).
    File = 3,
    /// Private anonymous memory: [`PosixMmap`](crate::PosixMmap).
    PosixMmap = 4,
    /// The C library's heap: [`MallocBackend`](crate::MallocBackend).
    Malloc = 5,
    /// The caller's array: [`ArrayBackend`](crate::ArrayBackend).
    Array = 6,
}

impl BackendKind {
    pub(crate) const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits {
            1 => BackendKind::PosixShm,
            2 => BackendKind::Memfd,
            3 => BackendKind::File,
            4 => BackendKind::PosixMmap,
            5 => BackendKind::Malloc,
            6 => BackendKind::Array,
            _ => return None,
        })
    }
    /// Whether other processes can attach such a region.
    pub const fn is_shared(self) -> bool {
        matches!(self, BackendKind::PosixShm | BackendKind::Memfd | BackendKind::File)
    }
}

/// A way to get the memory of a region (HSHM's memory backend).
///
/// The `url` is what names the segment: a name, a path, or nothing; each backend says.
///
/// Errors that every backend may give: [`Error::TooSmall`] for a capacity of zero or one without
/// room for the header and a page, [`Error::TooLarge`] for one beyond the format or beyond
/// `RLIMIT_FSIZE`, [`Error::BadAlignment`], [`Error::OutOfMemory`], [`Error::TableFull`] when the
/// process has 256 regions, [`Error::AlreadyExists`] for an id that another region of this process
/// has, [`Error::Relocated`] when the address was required. A creation that fails leaves nothing
/// behind.
pub trait Backend {
    /// Which backend this is.
    const KIND: BackendKind;

    /// Makes a segment and maps it.
    fn create(url: &str, options: &RegionOptions) -> Result<Region>;

    /// Maps a segment that is there.
    ///
    /// The segment must be a regular file of this user that nobody else may open (mode `0600` or
    /// less, no second hard link), or else it is [`Error::PermissionDenied`]; and it must be a
    /// complete region: otherwise [`Error::NotARegion`], [`Error::Truncated`],
    /// [`Error::Incompatible`], [`Error::Corrupt`] or [`Error::NotReady`]. Private kinds give
    /// [`Error::NotShared`].
    fn attach(url: &str, options: &RegionOptions) -> Result<Region> {
        let _ = (url, options);
        Err(Error::NotShared)
    }

    /// Removes the segment's name, so that nobody attaches it any more; those who have it keep it.
    /// For kinds without names there is nothing to do: the segment goes with its last user.
    fn destroy(url: &str) -> Result<()> {
        let _ = url;
        Ok(())
    }
}
