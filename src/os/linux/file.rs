//! Files, shared-memory objects and memfds.
#![allow(unsafe_code)] // file system calls

use core::ffi::CStr;
use core::mem::MaybeUninit;

use super::{errno, error_for, file_limit, last_error};
use crate::base::{Error, Result};
use crate::sync::futex::KeepErrno;

/// An open file, closed when dropped.
#[derive(Debug)]
pub(crate) struct Fd(i32);

impl Fd {
    /// Takes over an open file.
    ///
    /// # Safety
    /// `fd` is open, and whoever closes it from now on is this value.
    pub(crate) unsafe fn from_raw(fd: i32) -> Self {
        Fd(fd)
    }
    /// The number, still owned by this value.
    pub(crate) fn raw(&self) -> i32 {
        self.0
    }
    /// The number, which the caller now owns.
    pub(crate) fn into_raw(self) -> i32 {
        let fd = self.0;
        core::mem::forget(self);
        fd
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        let _errno = KeepErrno::new();
        // SAFETY: this value owns the descriptor. (On Linux an interrupted close has closed.)
        unsafe { libc::close(self.0) };
    }
}

/// A borrowed descriptor as an [`Fd`] that is not closed.
pub(crate) fn with_fd<R>(fd: i32, f: impl FnOnce(&Fd) -> R) -> R {
    let fd = core::mem::ManuallyDrop::new(Fd(fd));
    f(&fd)
}

fn owned(result: i32) -> Result<Fd> {
    if result < 0 { Err(last_error(0)) } else { Ok(Fd(result)) }
}

/// How to open something that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// Make it, for the owner alone; a name that is taken is [`Error::AlreadyExists`].
    Create,
    /// Open what is there, for loads only.
    Read,
    /// Open what is there.
    Write,
}

impl Open {
    fn flags(self) -> i32 {
        // O_NONBLOCK: a FIFO or device that somebody put there must not stop us.
        let common = libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        common
            | match self {
                Open::Create => libc::O_CREAT | libc::O_EXCL | libc::O_RDWR,
                Open::Read => libc::O_RDONLY,
                Open::Write => libc::O_RDWR,
            }
    }
}

/// Opens a file. A symbolic link as the last component is refused.
pub(crate) fn open(path: &CStr, how: Open) -> Result<Fd> {
    let _errno = KeepErrno::new();
    // SAFETY: `path` is a C string.
    owned(unsafe { libc::open(path.as_ptr(), how.flags(), 0o600) })
}

/// Opens a POSIX shared-memory object; `name` starts with a slash and has no other.
pub(crate) fn shm_open(name: &CStr, how: Open) -> Result<Fd> {
    let _errno = KeepErrno::new();
    // SAFETY: `name` is a C string.
    match owned(unsafe { libc::shm_open(name.as_ptr(), how.flags(), 0o600) }) {
        // The C library's word for a directory.
        Err(Error::Os(libc::EINVAL)) => Err(Error::NotARegion),
        other => other,
    }
}

/// Where the C library has POSIX shared-memory objects.
const SHM: &CStr = c"/dev/shm";

/// A POSIX shared-memory object without a name, for the owner alone; [`shm_link`] gives it one. An error
/// where the system has no such thing.
pub(crate) fn shm_nameless() -> Result<Fd> {
    let _errno = KeepErrno::new();
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: a C string.
    owned(unsafe { libc::open(SHM.as_ptr(), flags, 0o600) })
}

/// Gives an object that [`shm_nameless`] made a name, which starts with a slash and has no other. One that
/// is taken is [`Error::AlreadyExists`].
pub(crate) fn shm_link(fd: &Fd, name: &CStr) -> Result<()> {
    let _errno = KeepErrno::new();
    let mut from = super::Name::<40>::of(&[b"/proc/self/fd/"])?;
    from.push_number(fd.raw() as u64)?;
    let to = super::PathName::of(&[SHM.to_bytes(), name.to_bytes()])?;
    let (here, how) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: C strings.
    done(unsafe { libc::linkat(here, from.as_c_str().as_ptr(), here, to.as_c_str().as_ptr(), how) })
}

/// Opens what `/proc/<pid>/fd/<n>` leads to.
pub(crate) fn open_fd_of(pid: u32, fd: i32, writable: bool) -> Result<Fd> {
    let _errno = KeepErrno::new();
    let path = fd_path(pid, fd)?;
    let access = if writable { libc::O_RDWR } else { libc::O_RDONLY };
    let flags = access | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: the path is a C string.
    owned(unsafe { libc::open(path.as_c_str().as_ptr(), flags) })
}

fn fd_path(pid: u32, fd: i32) -> Result<super::Name<40>> {
    let fd = u64::try_from(fd).map_err(|_| Error::NotFound)?;
    let mut path = super::Name::of(&[b"/proc/"])?;
    path.push_number(u64::from(pid))?;
    path.push(b"/fd/")?;
    path.push_number(fd)?;
    Ok(path)
}

/// Removes a file's name.
pub(crate) fn unlink(path: &CStr) -> Result<()> {
    let _errno = KeepErrno::new();
    // SAFETY: `path` is a C string.
    done(unsafe { libc::unlink(path.as_ptr()) })
}

/// Removes a shared-memory object's name.
pub(crate) fn shm_unlink(name: &CStr) -> Result<()> {
    let _errno = KeepErrno::new();
    // SAFETY: `name` is a C string.
    done(unsafe { libc::shm_unlink(name.as_ptr()) })
}

fn done(result: i32) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(last_error(0)) }
}

/// Makes an anonymous file in memory for the owner alone; `label` is what `/proc` shows.
pub(crate) fn memfd_create(label: &CStr) -> Result<Fd> {
    let _errno = KeepErrno::new();
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: `label` is a C string. (The system call, since old C libraries lack the wrapper.)
    let make = |flags: libc::c_uint| unsafe {
        libc::syscall(libc::SYS_memfd_create, label.as_ptr(), flags)
    };
    let mut fd = make(flags | libc::MFD_NOEXEC_SEAL);
    if fd < 0 && errno() == libc::EINVAL {
        // Kernels before 6.3.
        fd = make(flags);
    }
    let fd = owned(fd as i32)?;
    // A memfd starts with mode 0777, and `/proc/<pid>/fd` honours the mode.
    // SAFETY: the descriptor is open.
    done(unsafe { libc::fchmod(fd.raw(), 0o600) })?;
    Ok(fd)
}

/// Sets a file's length. Beyond `RLIMIT_FSIZE` the system would raise SIGXFSZ; this is
/// [`Error::TooLarge`] instead.
pub(crate) fn set_len(fd: &Fd, len: usize) -> Result<()> {
    let _errno = KeepErrno::new();
    let limit = file_limit().min(i64::MAX as u64);
    if len as u64 > limit {
        return Err(Error::TooLarge { given: len, maximum: limit as usize });
    }
    // SAFETY: the descriptor is open.
    let result = unsafe { libc::ftruncate(fd.raw(), len as libc::off_t) };
    if result == 0 { Ok(()) } else { Err(last_error(len)) }
}

/// Makes it impossible for anybody to shrink a memfd or to change its seals.
pub(crate) fn seal_len(fd: &Fd) -> Result<()> {
    let _errno = KeepErrno::new();
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open.
    done(unsafe { libc::fcntl(fd.raw(), libc::F_ADD_SEALS, seals) })
}

/// Whether nobody can shrink the file.
pub(crate) fn is_len_sealed(fd: &Fd) -> bool {
    let _errno = KeepErrno::new();
    // SAFETY: the descriptor is open.
    let seals = unsafe { libc::fcntl(fd.raw(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0
}

/// Asks the file system for blocks behind a range of a file, keeping contents and length.
pub(crate) fn allocate_range(fd: &Fd, offset: u64, len: u64) -> Result<()> {
    let _errno = KeepErrno::new();
    let (Ok(start), Ok(size)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(Error::OutOfMemory { requested: len as usize, available: 0 });
    };
    loop {
        // SAFETY: the descriptor is open.
        let result = unsafe { libc::fallocate(fd.raw(), libc::FALLOC_FL_KEEP_SIZE, start, size) };
        if result == 0 {
            return Ok(());
        }
        if errno() != libc::EINTR {
            return Err(last_error(len as usize));
        }
    }
}

/// What is known of an open file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileInfo {
    /// Bytes.
    pub(crate) len: u64,
    /// The owner.
    pub(crate) uid: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Whether it is a regular file (shared-memory objects and memfds are).
    pub(crate) regular: bool,
    /// How many names it has.
    pub(crate) links: u64,
    /// Which file: the inode number,
    pub(crate) inode: u64,
    /// and the device.
    pub(crate) device: u64,
}

/// Asks the system about an open file.
pub(crate) fn stat(fd: &Fd) -> Result<FileInfo> {
    let _errno = KeepErrno::new();
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is a place for the result.
    if unsafe { libc::fstat(fd.raw(), stat.as_mut_ptr()) } != 0 {
        return Err(last_error(0));
    }
    // SAFETY: the call succeeded and has filled it.
    let stat = unsafe { stat.assume_init() };
    Ok(FileInfo {
        len: stat.st_size.max(0) as u64,
        uid: stat.st_uid,
        mode: stat.st_mode & 0o7777,
        regular: stat.st_mode & libc::S_IFMT == libc::S_IFREG,
        links: stat.st_nlink,
        inode: stat.st_ino,
        device: stat.st_dev,
    })
}

/// The user that this process acts for.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() }
}

/// Reads bytes at `offset`; fewer than asked for only at the end of the file.
pub(crate) fn read_at<'b>(fd: &Fd, buffer: &'b mut [u8], offset: u64) -> Result<&'b [u8]> {
    let mut have = 0;
    while have < buffer.len() {
        let Some(room) = buffer.get_mut(have..) else { break };
        match read_once(fd, room, offset.saturating_add(have as u64))? {
            0 => break,
            n => have += n,
        }
    }
    buffer.get(..have).ok_or(Error::Corrupt)
}

/// Reads as much as one call gives.
pub(super) fn read_once(fd: &Fd, room: &mut [u8], offset: u64) -> Result<usize> {
    let _errno = KeepErrno::new();
    let at = offset.min(i64::MAX as u64) as libc::off_t;
    loop {
        // SAFETY: `room` is writable for its length.
        match unsafe { libc::pread(fd.raw(), room.as_mut_ptr().cast(), room.len(), at) } {
            n if n >= 0 => return Ok(n as usize),
            _ if errno() == libc::EINTR => {}
            _ => return Err(last_error(0)),
        }
    }
}

/// Writes bytes at `offset`. Beyond `RLIMIT_FSIZE` it is [`Error::TooLarge`], not a signal.
pub(crate) fn write_at(fd: &Fd, bytes: &[u8], offset: u64) -> Result<()> {
    let _errno = KeepErrno::new();
    let end = offset.saturating_add(bytes.len() as u64);
    let limit = file_limit().min(i64::MAX as u64);
    if end > limit {
        return Err(Error::TooLarge { given: end as usize, maximum: limit as usize });
    }
    let mut rest = bytes;
    let mut at = offset;
    while !rest.is_empty() {
        // SAFETY: `rest` is readable for its length.
        let n =
            unsafe { libc::pwrite(fd.raw(), rest.as_ptr().cast(), rest.len(), at as libc::off_t) };
        if n < 0 && errno() == libc::EINTR {
            continue;
        }
        if n <= 0 {
            return Err(if n < 0 { last_error(bytes.len()) } else { Error::Os(libc::EIO) });
        }
        rest = rest.get(n as usize..).unwrap_or(&[]);
        at += n as u64;
    }
    Ok(())
}

/// Bytes of `[start, end)` that the file has blocks for.
pub(crate) fn allocated_bytes(fd: &Fd, start: u64, end: u64) -> Result<u64> {
    let mut total = 0;
    let mut at = start;
    while let Some((data, hole)) = next_data(fd, at, end)? {
        total += hole - data;
        at = hole;
    }
    Ok(total)
}

/// Writes what `from` has blocks for, out of its mapping at `base`, to the same offsets of `to`.
/// Holes stay holes.
///
/// # Safety
/// The first `len` bytes of `from` are mapped at `base`. Others may write to them meanwhile; what
/// they write may or may not be in the copy.
pub(crate) unsafe fn copy_blocks(from: &Fd, base: usize, len: usize, to: &Fd) -> Result<()> {
    const PIECE: u64 = 1 << 30;
    let _errno = KeepErrno::new();
    let end = len as u64;
    let mut at = 0;
    while let Some((data, hole)) = next_data(from, at, end)? {
        at = data;
        while at < hole {
            let piece = (hole - at).min(PIECE) as usize;
            let source = core::ptr::with_exposed_provenance::<u8>(base + at as usize);
            // SAFETY: the caller vouches for the mapping; the kernel reads it, whoever writes.
            let n = unsafe { libc::pwrite(to.raw(), source.cast(), piece, at as libc::off_t) };
            match n {
                n if n > 0 => at += n as u64,
                n if n < 0 && errno() == libc::EINTR => {}
                n if n < 0 => return Err(last_error(len)),
                _ => return Err(Error::Os(libc::EIO)),
            }
        }
    }
    Ok(())
}

/// The first piece of `[start, end)` that the file has data for, as its start and end. (Blocks
/// that were allocated but never written may count as holes.)
pub(crate) fn next_data(fd: &Fd, mut start: u64, end: u64) -> Result<Option<(u64, u64)>> {
    while start < end {
        let Some(data) = seek(fd, start, libc::SEEK_DATA)?.filter(|&data| data < end) else {
            break;
        };
        let hole = seek(fd, data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        if hole > data {
            return Ok(Some((data, hole)));
        }
        // Purged between the two questions: go on behind it.
        start = data + 1;
    }
    Ok(None)
}

/// The next data or hole at or after `at`; `None` past the last. Moves the file position, which
/// nobody uses.
fn seek(fd: &Fd, at: u64, whence: i32) -> Result<Option<u64>> {
    let _errno = KeepErrno::new();
    // SAFETY: the descriptor is open.
    let found = unsafe { libc::lseek(fd.raw(), at as libc::off_t, whence) };
    match found {
        n if n >= 0 => Ok(Some(n as u64)),
        _ if errno() == libc::ENXIO => Ok(None),
        _ => Err(error_for(errno(), 0)),
    }
}

/// Another descriptor of the same open file, closed at exec.
pub(crate) fn duplicate(fd: i32) -> Result<Fd> {
    let _errno = KeepErrno::new();
    // SAFETY: a number that is no open descriptor is EBADF.
    match owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }) {
        Err(Error::Os(libc::EBADF)) => Err(Error::NotFound),
        other => other,
    }
}

/// Whether the descriptor can be written through.
pub(crate) fn is_writable(fd: &Fd) -> bool {
    let _errno = KeepErrno::new();
    // SAFETY: the descriptor is open.
    let flags = unsafe { libc::fcntl(fd.raw(), libc::F_GETFL) };
    flags >= 0 && flags & libc::O_ACCMODE == libc::O_RDWR
}

/// Whether programs started from here keep the descriptor.
pub(crate) fn set_inheritable(fd: &Fd, inherit: bool) -> Result<()> {
    let _errno = KeepErrno::new();
    let flags = if inherit { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: the descriptor is open.
    done(unsafe { libc::fcntl(fd.raw(), libc::F_SETFD, flags) })
}

/// Writes a message to standard error, as far as it goes.
pub(crate) fn write_stderr(message: &[u8]) {
    let _errno = KeepErrno::new();
    // SAFETY: the message is readable for its length.
    unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
}

/// Reads a small file, as the system keeps them in `/proc`, into `buffer`: those give all they have, or as
/// much as fits, at once.
pub(crate) fn read_small_file<'b>(path: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    let fd = open(path, Open::Read)?;
    let got = read_once(&fd, buffer, 0)?;
    buffer.get(..got).ok_or(Error::Corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memfd_is_private_sealed_and_sparse() {
        let fd = memfd_create(c"hshm-test").unwrap();
        set_len(&fd, 1 << 20).unwrap();
        let info = stat(&fd).unwrap();
        assert_eq!((info.len, info.mode, info.regular), (1 << 20, 0o600, true));
        assert!(!is_len_sealed(&fd));
        seal_len(&fd).unwrap();
        assert!(is_len_sealed(&fd));
        assert_eq!(set_len(&fd, 4096), Err(Error::PermissionDenied));
        assert_eq!(allocated_bytes(&fd, 0, 1 << 20), Ok(0));
        write_at(&fd, b"abc", 8192).unwrap();
        assert_eq!(allocated_bytes(&fd, 0, 1 << 20), Ok(4096));
        allocate_range(&fd, 0, 4096).unwrap();
        assert_eq!(allocated_bytes(&fd, 8192, 1 << 20), Ok(4096));
        let mut buffer = [0; 4];
        assert_eq!(read_at(&fd, &mut buffer, 8192), Ok(&b"abc\0"[..]));
        let own = super::super::process_id();
        let again = open_fd_of(own, fd.raw(), true).unwrap();
        assert_eq!(stat(&again).unwrap().inode, info.inode);
        assert_eq!(duplicate(-1).unwrap_err(), Error::NotFound);
        assert!(is_writable(&duplicate(fd.raw()).unwrap()));
        assert!(!is_writable(&open_fd_of(own, fd.raw(), false).unwrap()));
    }

    #[test]
    fn names_that_are_not_there() {
        assert_eq!(open(c"/no/such/file", Open::Write).unwrap_err(), Error::NotFound);
        assert_eq!(shm_open(c"/hshm-no-such-object", Open::Read).unwrap_err(), Error::NotFound);
        assert_eq!(open_fd_of(u32::MAX, 0, false).unwrap_err(), Error::NotFound);
    }
}
