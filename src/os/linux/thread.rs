//! What happens when a thread ends or the process forks.
#![allow(unsafe_code)] // pthread calls

use core::ffi::{c_int, c_void};

use super::error_for;
use crate::base::Result;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A thread-specific value whose destructor runs when a thread that set it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExitKey(libc::pthread_key_t);

impl ExitKey {
    /// Makes a key. The destructor gets the ending thread's value when that is not null; it may
    /// set the value again to be called once more, a few times.
    pub(crate) fn create(destructor: unsafe extern "C" fn(*mut c_void)) -> Result<ExitKey> {
        let mut key = 0;
        // SAFETY: `key` is a place for the result.
        match unsafe { libc::pthread_key_create(&mut key, Some(destructor)) } {
            0 => Ok(ExitKey(key)),
            errno => Err(error_for(errno, 0)),
        }
    }
    /// Sets the calling thread's value. The C library may allocate here for late keys (from the
    /// 33rd on in glibc), so the caller must be ready to be entered again.
    pub(crate) fn set(self, value: *mut c_void) -> Result<()> {
        // SAFETY: the key was made by `create` and is never deleted.
        match unsafe { libc::pthread_setspecific(self.0, value) } {
            0 => Ok(()),
            errno => Err(error_for(errno, 0)),
        }
    }
}

/// Registers functions to run around every fork: `prepare` before it, then `parent` and `child`
/// on the two sides. Not run by `vfork` and `posix_spawn`.
pub(crate) fn at_fork(
    prepare: unsafe extern "C" fn(),
    parent: unsafe extern "C" fn(),
    child: unsafe extern "C" fn(),
) -> Result<()> {
    // SAFETY: the functions live as long as the program.
    match unsafe { register_at_fork(prepare, parent, child) } {
        0 => Ok(()),
        errno => Err(error_for(errno, 0)),
    }
}

type Hook = unsafe extern "C" fn();

/// `pthread_atfork`, which in glibc is a small function inside every library that calls it: there it
/// would be the only thing used of the library's last pages.
///
/// # Safety
/// The functions stay for good.
#[cfg(target_env = "gnu")]
unsafe fn register_at_fork(prepare: Hook, parent: Hook, child: Hook) -> c_int {
    unsafe extern "C" {
        // In the Linux Standard Base; null stands for the program itself, which is never unloaded.
        fn __register_atfork(a: Hook, b: Hook, c: Hook, of: *mut c_void) -> c_int;
    }
    // SAFETY: the caller's.
    unsafe { __register_atfork(prepare, parent, child, core::ptr::null_mut()) }
}

/// # Safety
/// The functions stay for good.
#[cfg(not(target_env = "gnu"))]
unsafe fn register_at_fork(prepare: Hook, parent: Hook, child: Hook) -> c_int {
    // SAFETY: the caller's.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) }
}

/// How many forks lie between this process and the one that first asked: what was made under
/// another number was made by an ancestor. Counted from the first call on; `None` where forks
/// cannot be noticed.
#[inline]
pub(crate) fn fork_generation() -> Option<u32> {
    match GENERATION.load(Ordering::Acquire) {
        NOT_YET | NEVER => begin_counting_forks(),
        generation => Some(generation),
    }
}

/// The same as one word, which is never 0: to be compared by [`is_generation`].
pub(crate) fn generation_mark() -> u32 {
    fork_generation().unwrap_or(NEVER)
}

/// Whether this process is the one that got `mark` from [`generation_mark`], as far as forks can be
/// noticed.
#[inline(always)]
pub(crate) fn is_generation(mark: u32) -> bool {
    GENERATION.load(Ordering::Relaxed) == mark
}

/// From 1 on.
static GENERATION: AtomicU32 = AtomicU32::new(NOT_YET);
const NOT_YET: u32 = 0;
/// Forks cannot be noticed.
const NEVER: u32 = u32::MAX;

#[cold]
fn begin_counting_forks() -> Option<u32> {
    unsafe extern "C" fn begins() {
        BEGUN.fetch_add(1, Ordering::SeqCst);
    }
    unsafe extern "C" fn is_over() {
        OVER.fetch_add(1, Ordering::SeqCst);
    }
    unsafe extern "C" fn count() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        // Those of the parent's other threads go on there.
        OVER.store(BEGUN.load(Ordering::Relaxed), Ordering::SeqCst);
        close_what_is_the_parents();
    }
    if GENERATION.load(Ordering::Acquire) == NOT_YET {
        // Two threads may both register; all then counts by two, which is as good.
        let first = if at_fork(begins, is_over, count).is_ok() { 1 } else { NEVER };
        let _ = GENERATION.compare_exchange(NOT_YET, first, Ordering::AcqRel, Ordering::Relaxed);
    }
    Some(GENERATION.load(Ordering::Relaxed)).filter(|&generation| generation != NEVER)
}

/// Forks of this process that have begun, and those that are over.
static BEGUN: AtomicU32 = AtomicU32::new(0);
static OVER: AtomicU32 = AtomicU32::new(0);

/// A number that is the same at two moments where no fork happened in between, and none was under way;
/// `None` while one is. As far as forks are noticed (see [`fork_generation`]).
pub(crate) fn undisturbed_by_forks() -> Option<u32> {
    // In this order: one that begins in between is not over.
    let over = OVER.load(Ordering::SeqCst);
    Some(BEGUN.load(Ordering::SeqCst)).filter(|&begun| begun == over)
}

/// A descriptor that no forked child may keep, and which file it is: where the program has closed it
/// behind our back, the number may be another file's.
struct Parents {
    /// Number + 1; zero for a free place, [`BEING_FILLED`].
    entry: AtomicU32,
    inode: AtomicU64,
    device: AtomicU64,
}

const BEING_FILLED: u32 = u32::MAX;

static PARENTS: [Parents; 256] = [const {
    Parents { entry: AtomicU32::new(0), inode: AtomicU64::new(0), device: AtomicU64::new(0) }
}; 256];

impl Parents {
    fn is(&self, (inode, device): (u64, u64)) -> bool {
        self.inode.load(Ordering::Relaxed) == inode && self.device.load(Ordering::Relaxed) == device
    }
    fn change(&self, from: u32, to: u32) -> bool {
        self.entry.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// From now on a forked child closes this descriptor of `file` (inode, device) first of all. Only as far
/// as forks are noticed (see [`fork_generation`]) and there is room; otherwise the child keeps it.
pub(crate) fn at_fork_close(fd: i32, file: (u64, u64)) {
    if let Some(place) = PARENTS.iter().find(|place| place.change(0, BEING_FILLED)) {
        place.inode.store(file.0, Ordering::Relaxed);
        place.device.store(file.1, Ordering::Relaxed);
        place.entry.store(fd as u32 + 1, Ordering::Release);
    }
}

/// Undoes [`at_fork_close`]: the descriptor is about to be closed, or is not ours any more.
pub(crate) fn at_fork_keep(fd: i32, file: (u64, u64)) {
    let entry = fd as u32 + 1;
    let _ = PARENTS.iter().find(|place| {
        place.entry.load(Ordering::Acquire) == entry && place.is(file) && place.change(entry, 0)
    });
}

/// In a forked child.
fn close_what_is_the_parents() {
    for place in &PARENTS {
        let entry = place.entry.swap(0, Ordering::Relaxed);
        if entry == 0 || entry == BEING_FILLED {
            continue;
        }
        let fd = entry as i32 - 1;
        let info = super::with_fd(fd, super::stat);
        if info.is_ok_and(|info| place.is((info.inode, info.device))) {
            // SAFETY: the number was put there by its owner, which takes it out before it closes it, and
            // the file is the one that it was: here it is the child's copy of that descriptor.
            drop(unsafe { super::Fd::from_raw(fd) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ENDED: AtomicU32 = AtomicU32::new(0);

    unsafe extern "C" fn ended(value: *mut c_void) {
        ENDED.fetch_add(value.addr() as u32, Ordering::Relaxed);
    }

    #[test]
    fn the_destructor_runs_for_threads_that_set_a_value() {
        let key = ExitKey::create(ended).unwrap();
        for value in [0, 5, 37] {
            std::thread::spawn(move || {
                key.set(core::ptr::without_provenance_mut(value)).unwrap();
            })
            .join()
            .unwrap();
        }
        assert_eq!(ENDED.load(Ordering::Relaxed), 42);
    }
}
