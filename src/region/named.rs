//! Segments with a name: POSIX shared memory and files.

use super::make::{self, Names};
use super::{Backend, BackendKind, Region, RegionOptions};
use crate::base::{Error, Result};
use crate::os::{self, ByteLock, Fd, FileInfo, Open, PathName, ShortName};

/// A name that was made just now, and is removed again unless the creation succeeds.
struct NewName<F: FnMut() -> Result<()>> {
    remove: F,
    keep: bool,
}

impl<F: FnMut() -> Result<()>> Drop for NewName<F> {
    fn drop(&mut self) {
        if !self.keep {
            // It was there a moment ago; whoever removed it did what is wanted.
            let _ = (self.remove)();
        }
    }
}

/// Checks that cost nothing come before the name is made.
fn create_named(
    open: impl FnOnce() -> Result<Fd>,
    remove: impl FnMut() -> Result<()>,
    kind: BackendKind,
    options: &RegionOptions,
) -> Result<Region> {
    make::length(options, true)?;
    let fd = open()?;
    let mut name = NewName { remove, keep: false };
    let region = make::create_shared(fd, kind, options)?;
    name.keep = true;
    Ok(region)
}

/// Marks a segment as destroyed and removes its name. What is not a region is left alone; one that
/// its creator never finished, or that is damaged, is removed.
fn destroy_named(
    fd: &Fd,
    open: impl Fn() -> Result<Fd>,
    remove: impl FnOnce() -> Result<()>,
) -> Result<()> {
    match make::inspect(fd, Names::Any) {
        Err(error @ (Error::NotARegion | Error::PermissionDenied)) => return Err(error),
        Ok(_) => {
            let state = super::header::STATE_DESTROYED.to_ne_bytes();
            // Not being able to mark it only means that a late attach may still succeed.
            let _ = os::write_at(fd, &state, super::header::STATE_OFFSET);
        }
        Err(_) => {}
    }
    remove_file(fd, open, remove)
}

/// The byte of a segment's file whose lock gives the right to remove the file's name. Behind those
/// of all process slots.
const NAME_LOCK: u64 = (1 << 42) - 1;

/// Removes the name by which `open` opens a file, if it still is the name of `fd`'s file; otherwise
/// [`Error::NotFound`].
///
/// Whoever removes a name holds a lock of the file that has it, and a new file cannot have the name
/// before that. So nobody removes the name of a file that somebody else just made.
fn remove_file(
    fd: &Fd,
    open: impl Fn() -> Result<Fd>,
    remove: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let _lock = match ByteLock::take(fd.raw(), NAME_LOCK) {
        // Somebody removes it right now.
        Err(Error::AlreadyExists) => return Err(Error::NotFound),
        // Without locks (no `/proc`) there is nothing better than to look.
        other => other.ok(),
    };
    let (own, now) = (os::stat(fd)?, os::stat(&open()?)?);
    if FileId::of(&own) == FileId::of(&now) { remove() } else { Err(Error::NotFound) }
}

/// POSIX shared memory (`shm_open`; on Linux a file in `/dev/shm`).
///
/// The url is the object's name, with or without the leading slash: 1 to 254 bytes without another
/// slash or a zero byte, and neither `.` nor `..`; anything else is [`Error::BadName`]. The object
/// is made for its user alone (mode 0600) and stays until [`destroy`](Backend::destroy).
#[derive(Clone, Copy, Debug)]
pub struct PosixShmMmap;

fn shm_name(url: &str) -> Result<ShortName> {
    let bytes = url.as_bytes();
    let name = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let fine = !name.is_empty()
        && name.len() <= 254
        && !name.contains(&b'/')
        && name != b"."
        && name != b"..";
    if fine { ShortName::of(&[b"/", name]) } else { Err(Error::BadName) }
}

impl Backend for PosixShmMmap {
    const KIND: BackendKind = BackendKind::PosixShm;

    fn create(url: &str, options: &RegionOptions) -> Result<Region> {
        let name = shm_name(url)?;
        let name = name.as_c_str();
        create_named(
            || os::shm_open(name, Open::Create),
            || os::shm_unlink(name),
            Self::KIND,
            options,
        )
    }

    fn attach(url: &str, options: &RegionOptions) -> Result<Region> {
        let how = if options.read_only { Open::Read } else { Open::Write };
        let fd = os::shm_open(shm_name(url)?.as_c_str(), how)?;
        make::attach_shared(fd, Names::One, None, options)
    }

    fn destroy(url: &str) -> Result<()> {
        let name = shm_name(url)?;
        let open = || os::shm_open(name.as_c_str(), Open::Write);
        destroy_named(&open()?, open, || os::shm_unlink(name.as_c_str()))
    }
}

/// Which file has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    pub(super) fn of(info: &FileInfo) -> FileId {
        FileId(info.inode, info.device)
    }
}

impl PosixShmMmap {
    /// Makes an object of that name with what `fill` puts into it. The name comes last, where the system
    /// can do that: then nobody finds half of it, however slow this is, and nothing is left of it if
    /// the process dies.
    pub(crate) fn create_filled<T>(
        url: &str,
        options: &RegionOptions,
        fill: impl Fn(Region) -> Result<T>,
    ) -> Result<T> {
        let name = shm_name(url)?;
        if Self::file_of(url).is_ok() {
            return Err(Error::AlreadyExists);
        }
        make::length(options, true)?;
        if let Ok(fd) = os::shm_nameless() {
            let region = make::create_shared(fd, Self::KIND, options)?;
            let filled = fill(region.clone())?;
            let fd = region.own_fd().ok_or(Error::NotFound)?;
            match os::with_fd(fd, |fd| os::shm_link(fd, name.as_c_str())) {
                Ok(()) => return Ok(filled),
                Err(Error::AlreadyExists) => return Err(Error::AlreadyExists),
                // Without `/proc`, for example.
                Err(_) => {}
            }
        }
        let region = Self::create(url, options)?;
        let file = region.file();
        let filled = fill(region);
        if let (Err(_), Some((file, _))) = (&filled, file) {
            // Nobody can do anything with what is there.
            let _ = Self::remove_name(url, file);
        }
        filled
    }

    /// Which object has the name now.
    pub(crate) fn file_of(url: &str) -> Result<FileId> {
        let info = os::stat(&os::shm_open(shm_name(url)?.as_c_str(), Open::Read)?)?;
        Ok(FileId::of(&info))
    }

    /// Removes the name if that object has it, whatever is in it; otherwise [`Error::NotFound`].
    pub(crate) fn remove_name(url: &str, file: FileId) -> Result<()> {
        let name = shm_name(url)?;
        let open = || os::shm_open(name.as_c_str(), Open::Write);
        let fd = open()?;
        let info = os::stat(&fd)?;
        if FileId::of(&info) != file {
            return Err(Error::NotFound);
        }
        remove_file(&fd, open, || os::shm_unlink(name.as_c_str()))
    }
}

/// A file; on a file system with DAX, persistent memory without a copy.
///
/// The url is the path: not empty, below 4096 bytes, no zero byte, else [`Error::BadName`]. The
/// last component must not be a symbolic link. The file is made for its user alone (mode 0600),
/// sparse, and stays until [`destroy`](Backend::destroy).
#[derive(Clone, Copy, Debug)]
pub struct FileBackend;

fn file_path(url: &str) -> Result<PathName> {
    if url.is_empty() { Err(Error::BadName) } else { PathName::of(&[url.as_bytes()]) }
}

impl Backend for FileBackend {
    const KIND: BackendKind = BackendKind::File;

    fn create(url: &str, options: &RegionOptions) -> Result<Region> {
        let path = file_path(url)?;
        let path = path.as_c_str();
        create_named(|| os::open(path, Open::Create), || os::unlink(path), Self::KIND, options)
    }

    fn attach(url: &str, options: &RegionOptions) -> Result<Region> {
        let how = if options.read_only { Open::Read } else { Open::Write };
        let fd = os::open(file_path(url)?.as_c_str(), how)?;
        make::attach_shared(fd, Names::One, None, options)
    }

    fn destroy(url: &str) -> Result<()> {
        let path = file_path(url)?;
        let open = || os::open(path.as_c_str(), Open::Write);
        destroy_named(&open()?, open, || os::unlink(path.as_c_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(shm_name("/a").unwrap().as_bytes(), b"/a");
        assert_eq!(shm_name("a").unwrap().as_bytes(), b"/a");
        let long = "x".repeat(255);
        for bad in ["", "/", "a/b", "//a", ".", "/..", "a\0b", &long] {
            assert_eq!(shm_name(bad).err(), Some(Error::BadName), "{bad:?}");
        }
        assert!(file_path("").is_err() && file_path("a\0").is_err());
        assert!(file_path(&"y".repeat(4096)).is_err());
    }
}
