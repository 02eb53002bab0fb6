//! Whether other processes live, and telling them that this one does.
//!
//! Two witnesses, since neither sees everything:
//!
//! - **The process table** (`/proc`): who has a pid, since when, and whether it has ended and merely
//!   waits to be noticed. Exact, but only for processes of this pid namespace (and of this time
//!   namespace: elsewhere the same process started at another time).
//! - **A lock of one byte in the segment's file**, far behind its end, that the kernel holds for an
//!   open file description and drops when the last descriptor of it is closed, at the latest when
//!   the process ends. Seen in every namespace. (`F_OFD_SETLK` and not `F_SETLK`: a lock of the older
//!   kind goes as soon as *any* descriptor of that file is closed, whoever opened it.)
//!
//! A forked child inherits the descriptor, and with it a share in the lock. So descriptors of this
//! kind are kept in a table, and closed in the child before it runs on.
#![allow(unsafe_code)] // small system calls

use core::ffi::CStr;

use super::limits::number;
use super::{Fd, Name, at_fork_close, duplicate, errno, process_id, read_small_file};
use crate::base::{Error, Result};
use crate::sync::futex::KeepErrno;

/// What is known about a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nobody has it, or who has it has ended.
    Gone,
    /// A process that started then, in clock ticks since boot.
    Running {
        /// See [`process_start_time`](super::process_start_time).
        start_time: u64,
    },
    /// No `/proc`, or one of another pid namespace.
    Unknown,
}

/// A number for the process table that this process sees: for its pid namespace, and for its time
/// namespace, by whose clock the table says when processes started. 0 where it cannot be told. Its
/// lower half serves as well.
pub(crate) fn pid_namespace() -> u64 {
    let _errno = KeepErrno::new();
    if !proc_is_ours() {
        return 0;
    }
    let number = |path: &CStr| {
        // SAFETY: all zeroes are a valid `stat`, and the path is a C string.
        unsafe {
            let mut stat: libc::stat = core::mem::zeroed();
            match libc::stat(path.as_ptr(), &mut stat) {
                0 => stat.st_ino,
                _ => 0,
            }
        }
    };
    match number(c"/proc/self/ns/pid") {
        0 => 0,
        // Kernels without time namespaces have no such file.
        pids => pids ^ number(c"/proc/self/ns/time").wrapping_mul(0x9E37_79B9_7F4A_7C15),
    }
}

/// Whether `/proc` shows the pid namespace of this process.
fn proc_is_ours() -> bool {
    let _errno = KeepErrno::new();
    let mut text = [0u8; 24];
    // SAFETY: the path is a C string, the buffer writable for its length.
    let got =
        unsafe { libc::readlink(c"/proc/self".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    let Some(text) = usize::try_from(got).ok().and_then(|got| text.get(..got)) else {
        return false;
    };
    number(text) == Some(u64::from(process_id()))
}

/// What the process table says about a pid of this namespace.
pub(crate) fn presence(pid: u32) -> Presence {
    if !proc_is_ours() {
        return Presence::Unknown;
    }
    let Ok(mut path) = Name::<40>::of(&[b"/proc/"]) else { return Presence::Unknown };
    if path.push_number(u64::from(pid)).and_then(|()| path.push(b"/stat")).is_err() {
        return Presence::Unknown;
    }
    let mut buffer = [0; 1024];
    match read_small_file(path.as_c_str(), &mut buffer) {
        Ok(line) => read_presence(line),
        // It may end between the opening and the reading.
        Err(Error::NotFound | Error::Os(libc::ESRCH)) => Presence::Gone,
        Err(_) => Presence::Unknown,
    }
}

/// A number for the program that a process runs now: another one after it has executed a program, even
/// itself. 0 where it cannot be told (no `/proc`, no right to know). The same for two programs where
/// nothing is random (`setarch -R`) or by accident.
pub(crate) fn program_of(pid: u32) -> u32 {
    read_own_stat(pid).map_or(0, |(_, program)| program)
}

/// When a process that is there started, and what [`program_of`] says of it.
pub(super) fn read_own_stat(pid: u32) -> Option<(u64, u32)> {
    let mut path = Name::<40>::of(&[b"/proc/"]).ok()?;
    path.push_number(u64::from(pid)).and_then(|()| path.push(b"/stat")).ok()?;
    let mut buffer = [0; 1024];
    read_program(read_small_file(path.as_c_str(), &mut buffer).ok()?)
}

/// Field 22 of a line of `/proc/<pid>/stat`, and of fields 26 to 28 a number: where the code is, and
/// where the stack begins, which nobody changes (what is behind them is changed to show other names and
/// arguments). 0 where the kernel does not say that.
fn read_program(line: &[u8]) -> Option<(u64, u32)> {
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let mut fields = line.get(end + 1..)?.split(|&byte| byte == b' ').filter(|f| !f.is_empty());
    let mut next = |skip| fields.nth(skip).and_then(number);
    let start_time = next(22 - 3)?;
    let (code, end, stack) = (next(26 - 23)?, next(0)?, next(0)?);
    if stack == 0 {
        return Some((start_time, 0));
    }
    let mix =
        |one: u64, other: u64| (one ^ other).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    Some((start_time, (mix(mix(mix(1, code), end), stack) >> 32) as u32 | 1))
}

/// Reads a line of `/proc/<pid>/stat`. A process whose first thread has ended is a zombie in name
/// only, as long as it has others.
fn read_presence(line: &[u8]) -> Presence {
    let fields = || {
        let end = line.iter().rposition(|&byte| byte == b')')?;
        Some(line.get(end + 1..)?.split(|&byte| byte == b' ').filter(|field| !field.is_empty()))
    };
    let field = |index: usize| fields()?.nth(index - 3);
    let (Some(state), Some(threads), Some(start_time)) =
        (field(3), field(20).and_then(number), field(22).and_then(number))
    else {
        return Presence::Unknown;
    };
    match state {
        b"X" | b"x" => Presence::Gone,
        b"Z" if threads <= 1 => Presence::Gone,
        _ => Presence::Running { start_time },
    }
}

/// A lock on one byte of a file, held until dropped or until this process ends.
#[derive(Debug)]
pub(crate) struct ByteLock {
    fd: Option<Fd>,
    /// Inode and device: the program may close the descriptor behind our back, and its number then
    /// becomes another file's.
    file: (u64, u64),
    index: u64,
    generation: Option<u32>,
}

/// Far behind the end of every segment.
const LOCKS_AT: i64 = 1 << 62;

fn byte(kind: i32, index: u64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        // Indices are below 2^42.
        l_start: LOCKS_AT + index as i64,
        l_len: 1,
        // Must be zero for locks of this kind.
        l_pid: 0,
    }
}

/// A descriptor of the file behind `fd` with a file description of its own: the one behind `fd` may be
/// shared with other processes.
fn open_own(fd: i32) -> Result<Fd> {
    let _errno = KeepErrno::new();
    let mut path = Name::<40>::of(&[b"/proc/self/fd/"])?;
    path.push_number(u64::try_from(fd).map_err(|_| Error::NotFound)?)?;
    let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: the path is a C string.
    let opened = unsafe { libc::open(path.as_c_str().as_ptr(), flags) };
    if opened < 0 {
        return Err(super::last_error(0));
    }
    // SAFETY: it was just opened, and is nobody else's.
    let own = unsafe { Fd::from_raw(opened) };
    // The places of the standard streams are the program's.
    if own.raw() < 3 { duplicate(own.raw()) } else { Ok(own) }
}

/// Locks byte `index` for a file description; where another one has a lock that stands against it,
/// [`Error::AlreadyExists`].
fn lock(own: &Fd, kind: i32, index: u64) -> Result<()> {
    let _errno = KeepErrno::new();
    let lock = byte(kind, index);
    // SAFETY: the descriptor is open, the description of the lock is valid.
    if unsafe { libc::fcntl(own.raw(), libc::F_OFD_SETLK, &lock) } != 0 {
        return Err(match errno() {
            libc::EAGAIN | libc::EACCES => Error::AlreadyExists,
            _ => super::last_error(0),
        });
    }
    Ok(())
}

/// A share in the lock of byte `index`: many may have one. It ends when the descriptor and all copies
/// of it are closed, so a forked child has a share as long as it lives.
pub(crate) fn share_byte(fd: i32, index: u64) -> Result<Fd> {
    let own = open_own(fd)?;
    lock(&own, libc::F_RDLCK, index)?;
    Ok(own)
}

/// How often to open the file anew where another thread forks at the same time, and the pause before each
/// other try, in nanoseconds.
const TRIES: u32 = 100;
const PAUSE: u64 = 1_000_000;

impl ByteLock {
    /// Locks byte `index` of the file behind `fd`, if nobody has it: [`Error::AlreadyExists`].
    pub(crate) fn take(fd: i32, index: u64) -> Result<ByteLock> {
        let generation = super::fork_generation();
        let (own, file) = Self::open_for_this_process(fd)?;
        // From here on dropping it forgets the descriptor, too.
        let taken = ByteLock { fd: Some(own), file, index, generation };
        if let Some(own) = &taken.fd {
            lock(own, libc::F_WRLCK, index)?;
        }
        Ok(taken)
    }

    /// A description that no forked child shares, not locked yet. A fork between the opening and the note
    /// that the child is to close it would give the child a share for good: then another one is opened.
    ///
    /// Patience ends: the fork that is under way may be waiting for a lock of the caller's. Such a one
    /// copies no descriptor before the caller is done.
    fn open_for_this_process(fd: i32) -> Result<(Fd, (u64, u64))> {
        for left in (0..TRIES).rev() {
            let before = super::undisturbed_by_forks();
            let own = open_own(fd)?;
            #[cfg(test)]
            tests::opened();
            let info = super::stat(&own)?;
            let file = (info.inode, info.device);
            at_fork_close(own.raw(), file);
            if left == 0 || before.is_some() && before == super::undisturbed_by_forks() {
                return Ok((own, file));
            }
            super::at_fork_keep(own.raw(), file);
            drop(own);
            super::nap(PAUSE);
        }
        Err(Error::NotFound)
    }

    /// Whether another file description has byte `index` locked, or a share in it; an error where it cannot be told.
    pub(crate) fn is_taken(fd: i32, index: u64) -> Result<bool> {
        let _errno = KeepErrno::new();
        let mut lock = byte(libc::F_WRLCK, index);
        // SAFETY: a number that is no open descriptor is EBADF; `lock` is a place for the answer.
        match unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, &mut lock) } {
            0 => Ok(lock.l_type != libc::F_UNLCK as i16),
            _ => Err(super::last_error(0)),
        }
    }
}

impl Drop for ByteLock {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        let mine = super::fork_generation() == self.generation;
        let is_it = super::stat(&fd).is_ok_and(|info| (info.inode, info.device) == self.file);
        if mine && is_it {
            let _errno = KeepErrno::new();
            // Closing is not enough: a process that is just being started has a copy of the
            // descriptor until it becomes its program.
            let unlock = byte(libc::F_UNLCK, self.index);
            // SAFETY: the descriptor is open, the description of the lock is valid.
            unsafe { libc::fcntl(fd.raw(), libc::F_OFD_SETLK, &unlock) };
            super::at_fork_keep(fd.raw(), self.file);
        } else {
            // The program has closed it, or the child's hook; the number may be another file's by now.
            if mine {
                super::at_fork_keep(fd.raw(), self.file);
            }
            fd.into_raw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

    #[test]
    fn a_line_of_the_process_table() {
        let line = |state: &str, threads: u32| {
            format!(
                "7 (a) b) ) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 18 4242 19"
            )
        };
        let running = Presence::Running { start_time: 4242 };
        assert_eq!(read_presence(line("S", 1).as_bytes()), running);
        assert_eq!(read_presence(line("Z", 1).as_bytes()), Presence::Gone);
        assert_eq!(read_presence(line("Z", 3).as_bytes()), running);
        assert_eq!(read_presence(line("X", 1).as_bytes()), Presence::Gone);
        assert_eq!(read_presence(b"7 (a) S 1"), Presence::Unknown);
        assert_eq!(presence(u32::MAX), Presence::Gone);
        let own = super::super::process_start_time(process_id()).unwrap();
        assert_eq!(presence(process_id()), Presence::Running { start_time: own });
        assert_ne!(pid_namespace(), 0);
    }

    #[test]
    fn what_a_process_runs() {
        let line = |code: u64, stack: u64| {
            let between = " 1".repeat(18);
            format!("7 (a) b) ) S{between} 4242 23 24 25 {code} 99 {stack} 29 30")
        };
        let read = |code, stack| read_program(line(code, stack).as_bytes());
        assert!(read(4096, 5000).is_some_and(|(started, program)| started == 4242 && program != 0));
        assert_eq!(read(4096, 5000), read(4096, 5000));
        assert_ne!(read(4096, 5000), read(4096, 5016));
        assert_ne!(read(4096, 5000), read(8192, 5000));
        assert_eq!((read(1, 0), read_program(b"7 (a) S 1")), (Some((4242, 0)), None));
        assert_ne!(program_of(process_id()), 0);
        assert_eq!(program_of(process_id()), program_of(process_id()));
        assert_eq!(program_of(u32::MAX), 0);
    }

    #[test]
    fn one_description_has_the_byte() {
        let file = super::super::memfd_create(c"hshm-test").unwrap();
        assert_eq!(ByteLock::is_taken(file.raw(), 5), Ok(false));
        let lock = ByteLock::take(file.raw(), 5).unwrap();
        assert_eq!(ByteLock::is_taken(file.raw(), 5), Ok(true));
        assert_eq!(ByteLock::is_taken(file.raw(), 4), Ok(false));
        assert_eq!(ByteLock::take(file.raw(), 5).unwrap_err(), Error::AlreadyExists);
        // Other descriptors of the file come and go.
        drop(duplicate(file.raw()).unwrap());
        assert_eq!(ByteLock::is_taken(file.raw(), 5), Ok(true));
        // A copy of the descriptor, as a process has that is just being started.
        let copy = duplicate(lock.fd.as_ref().unwrap().raw()).unwrap();
        drop(lock);
        assert_eq!(ByteLock::is_taken(file.raw(), 5), Ok(false));
        drop(copy);
    }

    /// What happens right after a file was opened for a lock, once.
    static OPENED: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
    static HELD: AtomicU32 = AtomicU32::new(0);

    pub(super) fn opened() {
        if !OPENED.swap(core::ptr::null_mut(), Ordering::Relaxed).is_null() {
            fork_and_stay();
        }
    }

    /// A child that stays as long as somebody has the writing end of the pipe.
    fn fork_and_stay() {
        // SAFETY: the child makes system calls only, and ends.
        unsafe {
            if libc::fork() == 0 {
                let mut byte = 0u8;
                libc::read(HELD.load(Ordering::Relaxed) as i32, (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
        }
    }

    /// A thread forks while another one is about to take a lock: with the process the lock goes, though
    /// the child lives on.
    #[test]
    fn a_fork_at_the_wrong_moment_gives_no_share() {
        let file = super::super::memfd_create(c"hshm-test").unwrap();
        let mut ends = [0; 2];
        // SAFETY: a place for two descriptors; the child makes system calls and takes the lock, ends,
        // and is waited for.
        unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let child = libc::fork();
            if child == 0 {
                libc::close(ends[1]);
                HELD.store(ends[0] as u32, Ordering::Relaxed);
                OPENED.store((&raw const HELD).cast_mut().cast(), Ordering::Relaxed);
                let lock = ByteLock::take(file.raw(), 9);
                let good = lock.is_ok() && OPENED.load(Ordering::Relaxed).is_null();
                core::mem::forget(lock);
                libc::_exit(if good { 0 } else { 1 });
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            assert_eq!(status, 0);
            let taken = ByteLock::is_taken(file.raw(), 9);
            libc::close(ends[1]);
            libc::close(ends[0]);
            assert_eq!(taken, Ok(false));
        }
    }

    #[test]
    fn many_descriptions_share_a_byte() {
        let file = super::super::memfd_create(c"hshm-test").unwrap();
        let shares = [0, 1].map(|_| share_byte(file.raw(), 1 << 41).unwrap());
        assert_eq!(ByteLock::is_taken(file.raw(), 1 << 41), Ok(true));
        assert_eq!(ByteLock::take(file.raw(), 1 << 41).unwrap_err(), Error::AlreadyExists);
        let [first, second] = shares;
        drop(first);
        assert_eq!(ByteLock::is_taken(file.raw(), 1 << 41), Ok(true));
        drop(second);
        let lock = ByteLock::take(file.raw(), 1 << 41).unwrap();
        assert_eq!(share_byte(file.raw(), 1 << 41).unwrap_err(), Error::AlreadyExists);
        drop(lock);
    }
}
