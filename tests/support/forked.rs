//! Forked children.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `child` in a forked process, which ends then; whether it panicked is what [`wait`] asks.
pub fn fork(child: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child runs `child` on this thread's copy of everything and then ends at once.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: no preconditions. A child that hangs ends by a signal, and the test fails; one
            // that is slow must not.
            unsafe { libc::alarm(600) };
            let result = catch_unwind(AssertUnwindSafe(child));
            // SAFETY: no preconditions; the test harness does not go on here.
            unsafe { libc::_exit(if result.is_ok() { 0 } else { 1 }) }
        }
        pid => pid,
    }
}

/// Waits for a forked child, which must end well.
#[track_caller]
pub fn wait(pid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: a place for the result.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "status {status:#x}");
}
