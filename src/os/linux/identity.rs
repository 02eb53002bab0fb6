//! Who this process is, for those who see the same process table.
//!
//! The kernel is asked once. What it said is kept in a page that is empty in every child, however that
//! was made (`MADV_WIPEONFORK`): a process never takes for its own what is its parent's. It holds as
//! long as the process does, for a pid, a start time and a program do not change, and pid and time
//! namespaces change for children only. (A process of one thread may enter another time namespace: it
//! stays described as those see it who are where it was.)
#![allow(unsafe_code)] // a page of one's own

use core::ptr::{null_mut, without_provenance_mut};

use super::{At, map_private, pid_namespace, process_id, read_own_stat, unmap};
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sync::futex::KeepErrno;

/// What tells a process from all others, and from what it was before it became another program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// See [`process_start_time`](super::process_start_time). This and what follows is 0 where it
    /// could not be told.
    pub(crate) start_time: u64,
    /// See [`pid_namespace`].
    pub(crate) namespace: u64,
    /// See [`program_of`](super::program_of).
    pub(crate) program: u32,
}

/// What is kept. Zero pages are one that knows nothing.
struct Known {
    /// Whose it is, stored last; 0 for nobody's, [`WRITING`] while it is being written.
    pid: AtomicU32,
    program: AtomicU32,
    start_time: AtomicU64,
    namespace: AtomicU64,
}

/// No pid.
const WRITING: u32 = u32::MAX;

/// Null before somebody asked, [`NOWHERE`] on systems without such pages.
static KNOWN: AtomicPtr<Known> = AtomicPtr::new(null_mut());
const NOWHERE: *mut Known = without_provenance_mut(align_of::<Known>());

impl Known {
    /// The process's page, if it can have one.
    fn page() -> Option<&'static Known> {
        let mut page = KNOWN.load(Ordering::Acquire);
        if page.is_null() {
            let made = make_page();
            page = match KNOWN.compare_exchange(page, made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => made,
                Err(first) => {
                    if made != NOWHERE {
                        // SAFETY: just mapped by this function, and told nobody.
                        unsafe { unmap(made.addr(), size_of::<Known>()) };
                    }
                    first
                }
            };
        }
        // SAFETY: a page that stays mapped for good, whose bytes are atomics, for which zeroes do.
        (page != NOWHERE).then(|| unsafe { &*page })
    }

    fn get(&self, pid: u32) -> Option<Identity> {
        (self.pid.load(Ordering::Acquire) == pid).then(|| Identity {
            pid,
            start_time: self.start_time.load(Ordering::Relaxed),
            namespace: self.namespace.load(Ordering::Relaxed),
            program: self.program.load(Ordering::Relaxed),
        })
    }

    /// Keeps `own`, if nobody has before.
    fn set(&self, own: Identity) {
        let take =
            |from, to| self.pid.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        if take(0, WRITING).is_ok() {
            self.start_time.store(own.start_time, Ordering::Relaxed);
            self.namespace.store(own.namespace, Ordering::Relaxed);
            self.program.store(own.program, Ordering::Relaxed);
            self.pid.store(own.pid, Ordering::Release);
        }
    }
}

fn make_page() -> *mut Known {
    let _errno = KeepErrno::new();
    let Ok(base) = map_private(At::Anywhere, size_of::<Known>()) else { return NOWHERE };
    let page = core::ptr::with_exposed_provenance_mut(base);
    // SAFETY: the mapping was just made, and is at least so long.
    let wiped = unsafe { libc::madvise(page, size_of::<Known>(), libc::MADV_WIPEONFORK) == 0 };
    if wiped {
        return page.cast();
    }
    // SAFETY: as above; nobody knows of it.
    unsafe { unmap(base, size_of::<Known>()) };
    NOWHERE
}

/// This process; only its pid, where nobody asks for more.
pub(crate) fn identity(asked_for: bool) -> Identity {
    let pid = process_id();
    if !asked_for {
        return Identity { pid, ..Identity::default() };
    }
    let page = Known::page();
    page.and_then(|page| page.get(pid)).unwrap_or_else(|| {
        let own = look(pid);
        if let (Some(page), false) = (page, own.program == 0) {
            page.set(own);
        }
        own
    })
}

fn look(pid: u32) -> Identity {
    let namespace = pid_namespace();
    // Without its own `/proc` it would read of another process.
    let read = if namespace == 0 { None } else { read_own_stat(pid) };
    let (start_time, program) = read.unwrap_or((0, 0));
    Identity { pid, start_time, namespace, program }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{process_start_time, program_of};
    use super::*;

    #[test]
    fn it_is_what_the_process_table_says() {
        let own = identity(true);
        assert_eq!(own.pid, process_id());
        assert_eq!(Some(own.start_time), process_start_time(own.pid));
        assert_eq!((own.namespace, own.program), (pid_namespace(), program_of(own.pid)));
        assert!(own.start_time != 0 && own.namespace != 0 && own.program != 0);
        assert_eq!(identity(true), own);
        assert_eq!(Known::page().unwrap().get(own.pid), Some(own));
        // What another one wrote is not this one's.
        assert_eq!(Known::page().unwrap().get(own.pid + 1), None);
        Known::page().unwrap().set(Identity { pid: 7, ..own });
        assert_eq!(identity(true), own);
    }

    /// Without the C library's fork, too, which runs no hooks.
    #[test]
    fn children_know_nothing_of_their_parent() {
        let own = identity(true);
        // SAFETY: the child makes system calls, and ends.
        unsafe {
            let child = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::pid_t;
            if child == 0 {
                let page = Known::page().unwrap();
                let empty = page.pid.load(Ordering::Relaxed) == 0;
                let new = identity(true);
                let differs = new.pid != own.pid && new.program == own.program;
                libc::_exit(if empty && differs && new.namespace == own.namespace { 7 } else { 1 });
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
        }
    }
}
