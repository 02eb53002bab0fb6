//! Who we are, what time it is, what the environment says, random numbers.
#![allow(unsafe_code)] // small system calls

use core::ffi::CStr;

use super::limits::number;
use super::{Name, read_small_file};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::futex::KeepErrno;

/// This process.
pub(crate) fn process_id() -> u32 {
    // SAFETY: no preconditions.
    unsafe { libc::getpid() as u32 }
}

/// Ends the process at once, as if killed by abort but without a core.
pub(crate) fn end_process() -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::_exit(127) }
}

/// The calling thread, as the kernel numbers it.
pub(crate) fn thread_id() -> u32 {
    // SAFETY: no preconditions, cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// A number for what this process runs, from random bytes that the kernel gives to each program that begins:
/// another one after `execve`, whatever is executed. Never 0, unless it cannot be told.
pub(crate) fn image_number() -> u32 {
    // <linux/auxvec.h>; the libc crate has no name for it on Linux.
    const AT_RANDOM: libc::c_ulong = 25;
    // SAFETY: no preconditions; what the kernel did not say is 0.
    let at = unsafe { libc::getauxval(AT_RANDOM) };
    if at == 0 {
        return 0;
    }
    let bytes = core::ptr::with_exposed_provenance::<[u64; 2]>(at as usize);
    // SAFETY: 16 bytes at the start of the stack, which stay.
    let [one, other] = unsafe { bytes.read_unaligned() };
    // They are secrets of the C library's: one half of a mixture of both tells nothing of either.
    (mix(mix(one) ^ other) >> 32) as u32 | 1
}

// <linux/membarrier.h>; the libc crate has no names for them.
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> bool {
    let _errno = KeepErrno::new();
    // SAFETY: no memory is passed; a command that the kernel does not know is an error.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Gets ready for [`barrier_everywhere`]; false where the system has none (before Linux 4.14, under
/// some filters and emulators).
pub(crate) fn register_barrier() -> bool {
    membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
        && membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

/// Runs a full memory barrier in every running thread of this process. Once registered it does not
/// fail; a forked child inherits the registration, or makes it anew here.
pub(crate) fn barrier_everywhere() {
    if !membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
        register_barrier();
    }
}

/// When a process started, in clock ticks since boot: with the pid it names a process for good.
/// `None` for a process that is not there.
pub(crate) fn process_start_time(pid: u32) -> Option<u64> {
    let mut path = Name::<40>::of(&[b"/proc/"]).ok()?;
    path.push_number(u64::from(pid)).ok()?;
    path.push(b"/stat").ok()?;
    let mut buffer = [0; 1024];
    start_time(read_small_file(path.as_c_str(), &mut buffer).ok()?)
}

/// Field 22 of a line of `/proc/<pid>/stat`. Field 2 is a name in parentheses that may hold
/// anything, so the count starts after the last closing one.
fn start_time(line: &[u8]) -> Option<u64> {
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let mut fields = line.get(end + 1..)?.split(|&byte| byte == b' ').filter(|f| !f.is_empty());
    number(fields.nth(22 - 3)?)
}

/// Sleeps, at least for this long unless a signal comes.
pub(crate) fn nap(nanoseconds: u64) {
    let _errno = KeepErrno::new();
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as libc::time_t,
        tv_nsec: (nanoseconds % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the time is readable, and what is left of it is not asked for.
    unsafe { libc::nanosleep(&time, core::ptr::null_mut()) };
}

/// Nanoseconds of a clock that never goes back; cheap.
pub(crate) fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// The same clock to some milliseconds, for a fraction of the time.
pub(crate) fn monotonic_coarse_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC_COARSE)
}

fn clock(id: libc::clockid_t) -> u64 {
    let _errno = KeepErrno::new();
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for the result.
    unsafe { libc::clock_gettime(id, &mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// The value of an environment variable, copied into `buffer`; `None` where it is not set, empty
/// where it does not fit (which no reader takes for a value). Not to be called while another thread
/// changes the environment.
///
/// A program that runs with more rights than whoever started it has no environment here.
pub(crate) fn getenv<'b>(name: &CStr, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    // <linux/auxvec.h>; the libc crate has no name for it on Linux.
    const AT_SECURE: libc::c_ulong = 23;
    // SAFETY: no preconditions; what the kernel did not say is 0.
    if unsafe { libc::getauxval(AT_SECURE) } != 0 {
        return None;
    }
    // SAFETY: `name` is a C string; the result is null or a C string that lives until the
    // environment changes, which the caller excludes for the time of the copy.
    let value = unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() {
            return None;
        }
        CStr::from_ptr(value).to_bytes()
    };
    let Some(room) = buffer.get_mut(..value.len()) else { return Some(&[]) };
    room.copy_from_slice(value);
    Some(room)
}

/// A random number. From the kernel; where that has none to give (early at boot, an old kernel, a
/// filter), from clocks, ids and addresses, which nobody should rely on for secrets.
pub(crate) fn random_u64() -> u64 {
    let _errno = KeepErrno::new();
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is writable for its length.
    let got = unsafe {
        libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), libc::GRND_NONBLOCK)
    };
    if got == bytes.len() as libc::c_long {
        return u64::from_ne_bytes(bytes);
    }
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    let stack = core::ptr::from_ref(&bytes).addr() as u64;
    let image = core::ptr::from_ref(&COUNT).addr() as u64;
    [clock(libc::CLOCK_REALTIME), monotonic_ns(), stack, image, u64::from(thread_id())]
        .into_iter()
        .fold(count, |seed, more| mix(seed ^ more))
}

/// The finalizer of splitmix64: every bit of the input reaches every bit of the output.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_strange_names() {
        let line = b"7 (a) b) ) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 19\n";
        assert_eq!(start_time(line), Some(4242));
        assert_eq!(start_time(b"7 (a) S 1"), None);
        assert_eq!(start_time(b""), None);
        assert!(process_start_time(process_id()).unwrap() > 0);
        assert_eq!(process_start_time(u32::MAX), None);
    }

    #[test]
    fn clocks_ids_and_random_numbers() {
        assert!(monotonic_ns() <= monotonic_ns());
        assert!(thread_id() != 0);
        assert_ne!(random_u64(), random_u64());
    }

    #[test]
    fn environment() {
        let mut buffer = [0; 4096];
        assert!(getenv(c"PATH", &mut buffer).is_some());
        assert_eq!(getenv(c"PATH", &mut [0; 1]), Some(&b""[..]));
        assert!(getenv(c"HSHM_NO_SUCH_VARIABLE", &mut buffer).is_none());
    }
}
