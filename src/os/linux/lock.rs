//! Memory that is not to leave memory (`mlockall`), next to address space that is mostly empty.
//!
//! The kernel fills what it locks, all of it: a heap's 64 GiB of addresses, of which a program uses some MiB,
//! would be 64 GiB of memory. So empty ranges are locked for when they are touched, and all the others as they
//! would have been.
#![allow(unsafe_code)] // mlock and its kin

use core::ops::Range;

use super::{Open, at, errno, open, process_id, read_once};
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};
use crate::sync::futex::KeepErrno;

/// The process that has locked its memory, or once had.
static LOCKING: AtomicU32 = AtomicU32::new(0);

/// Flags of `mlockall`: what is mapped, and what will be.
#[cfg(feature = "c-api")]
pub(crate) const LOCK_CURRENT: i32 = libc::MCL_CURRENT;
#[cfg(feature = "c-api")]
pub(crate) const LOCK_FUTURE: i32 = libc::MCL_FUTURE;

/// Whether the kernel may fill what this process maps, and refuse to take back what it has, as far as is known here.
pub(super) fn is_locking() -> bool {
    // A forked child has no locks.
    let process = LOCKING.load(Relaxed);
    process != 0 && process == process_id()
}

/// Has the pages of a mapping that was made just now locked when they are touched, if the kernel has locked it;
/// not if the process has unlocked all since.
///
/// # Safety
/// Nobody has used what the range holds.
pub(super) unsafe fn lock_on_fault(base: usize, len: usize) {
    let _errno = KeepErrno::new();
    // Of what is locked nothing can be dropped.
    // SAFETY: the caller's: there is nothing yet, or it is a file's.
    let dropped = unsafe { libc::madvise(at(base), len, libc::MADV_DONTNEED) };
    if dropped != 0 {
        lock_pages_on_fault(base, len);
    }
}

fn lock_pages_on_fault(base: usize, len: usize) {
    let _errno = KeepErrno::new();
    // SAFETY: changes no contents.
    unsafe { libc::syscall(libc::SYS_mlock2, base, len, libc::MLOCK_ONFAULT) };
}

/// Does what the kernel refuses for locked memory, whose pages are locked again when they are touched.
/// `errno` is as `act` leaves it.
pub(super) fn unlocked(base: usize, len: usize, act: impl Fn() -> bool) -> bool {
    // SAFETY: changes no contents.
    unsafe { libc::munlock(at(base), len) };
    let done = act();
    lock_pages_on_fault(base, len);
    done
}

/// Locks all that the process has mapped, and with `future` what it will map, as `mlockall` does; but of each
/// mapping only what `pieces` says is filled: it gives the first such piece of a range. Of the rest pages are
/// locked that somebody has touched, and the others when they are.
/// Otherwise the `errno` of the system.
pub(crate) fn lock_all(
    future: bool,
    pieces: impl Fn(Range<usize>) -> Option<Range<usize>>,
) -> core::result::Result<(), i32> {
    let _errno = KeepErrno::new();
    lock_by(libc::MCL_CURRENT | libc::MCL_ONFAULT)?;
    if future {
        // Leaves what is mapped as it is.
        lock_by(libc::MCL_FUTURE)?;
    }
    let _ = for_each_mapping(|range| {
        let mut start = range.start;
        while let Some(piece) = pieces(start..range.end) {
            // What cannot be had is left out, as `mlockall` does.
            // SAFETY: changes no contents.
            unsafe { libc::mlock(at(piece.start), piece.len()) };
            start = piece.end;
        }
    });
    Ok(())
}

/// The system call itself: in the C library the function of that name is ours.
pub(crate) fn lock_by(flags: i32) -> core::result::Result<(), i32> {
    // Before another thread maps anything.
    LOCKING.store(process_id(), Relaxed);
    // SAFETY: takes numbers only, and changes no contents.
    if unsafe { libc::syscall(libc::SYS_mlockall, flags) } == 0 { Ok(()) } else { Err(errno()) }
}

/// Visits the mappings that can be read, as the kernel lists them.
fn for_each_mapping(mut visit: impl FnMut(Range<usize>)) -> crate::base::Result<()> {
    let list = open(c"/proc/self/maps", Open::Read)?;
    let mut buffer = [0; 4096];
    let (mut have, mut offset) = (0, 0);
    loop {
        let got = read_once(&list, &mut buffer[have..], offset)?;
        if got == 0 {
            return Ok(());
        }
        offset += got as u64;
        have += got;
        let mut done = 0;
        while let Some(len) = buffer[done..have].iter().position(|&byte| byte == b'\n') {
            if let Some(range) = readable(&buffer[done..done + len]) {
                visit(range);
            }
            done += len + 1;
        }
        buffer.copy_within(done..have, 0);
        have -= done;
        if have == buffer.len() {
            // A name longer than any: what comes after it does not matter, nor does its rest look like a range.
            have = 0;
        }
    }
}

/// The range of a line `start-end r... `, in hexadecimal; nothing where it cannot be read.
fn readable(line: &[u8]) -> Option<Range<usize>> {
    // Names come later.
    let text = core::str::from_utf8(&line[..line.len().min(40)]).ok()?;
    let (range, rest) = text.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |digits| usize::from_str_radix(digits, 16).ok();
    (rest.starts_with('r')).then_some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_list() {
        assert_eq!(readable(b"7f0a-7f0b r--p 0 0:0 0  /a b"), Some(0x7f0a..0x7f0b));
        assert_eq!(readable(b"7f0a-7f0b ---p 0 0:0 0"), None);
        assert_eq!(readable(b"7f0a r--p"), None);
        assert_eq!(readable(b""), None);
        let mut long = b"7f0a-7f0b rw-p 00000000 00:00 0                          ".to_vec();
        long.extend([0xff; 40]);
        assert_eq!(readable(&long), Some(0x7f0a..0x7f0b));
    }

    /// The list names this test's own memory, once.
    #[test]
    fn mappings_are_listed() {
        let here = std::ptr::from_ref(&LOCKING).addr();
        let (mut found, mut count, mut last) = (0, 0, 0);
        for_each_mapping(|range| {
            assert!(range.start >= last && range.start < range.end);
            last = range.end;
            count += 1;
            found += u32::from(range.contains(&here));
        })
        .unwrap();
        assert_eq!(found, 1);
        assert!(count > 10);
    }
}
