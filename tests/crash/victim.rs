//! A process to kill: forked off, and run instruction by instruction.

use std::io::Error;

/// How many instructions a victim may execute before it is killed.
pub enum Lives {
    /// It reached the end of its operation after so many.
    Ended(u64),
    /// It was stopped before.
    Stopped,
}

/// A forked child. Killed and waited for when dropped.
pub struct Victim {
    pid: libc::pid_t,
}

impl Victim {
    /// Forks a child that runs `life` and then sleeps until it is killed.
    ///
    /// Other threads of this process are not in the child, and the locks that they hold stay
    /// locked there: the caller sees to it that none matters.
    pub fn fork(life: impl FnOnce()) -> Victim {
        // SAFETY: the child runs `life` and ends here, whatever happens.
        match unsafe { libc::fork() } {
            -1 => panic!("{}", Error::last_os_error()),
            0 => {
                end_with_parent();
                let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life)).is_ok();
                if !fine {
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(101) };
                }
                loop {
                    // SAFETY: no preconditions.
                    unsafe { libc::pause() };
                }
            }
            pid => Victim { pid },
        }
    }

    /// Forks a child that waits to be [stepped](Victim::step) through what lies between its two
    /// calls of [`stop`].
    pub fn traced(life: impl FnOnce()) -> Victim {
        let victim = Victim::fork(|| {
            // SAFETY: no memory is passed.
            let done =
                unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, core::ptr::null_mut::<u8>(), 0) };
            assert_eq!(done, 0, "{}", Error::last_os_error());
            life();
        });
        // A child of its own may have ended meanwhile.
        while victim.wait_stop() != libc::SIGSTOP {
            victim.resume(libc::PTRACE_CONT);
        }
        victim
    }

    pub fn pid(&self) -> u32 {
        self.pid as u32
    }

    fn wait_stop(&self) -> i32 {
        let mut status = 0;
        // SAFETY: `status` is a place for the result.
        let got = unsafe { libc::waitpid(self.pid, &mut status, libc::__WALL) };
        assert_eq!(got, self.pid, "{}", Error::last_os_error());
        assert!(libc::WIFSTOPPED(status), "the victim ended by itself: status {status:#x}");
        libc::WSTOPSIG(status)
    }

    fn resume(&self, how: libc::c_uint) {
        // SAFETY: the child is stopped, and no memory is passed.
        let result = unsafe { libc::ptrace(how, self.pid, core::ptr::null_mut::<u8>(), 0) };
        assert_eq!(result, 0, "{}", Error::last_os_error());
    }

    /// Executes up to `count` instructions.
    pub fn step(&self, count: u64) -> Lives {
        for done in 0..count {
            self.resume(libc::PTRACE_SINGLESTEP);
            match self.wait_stop() {
                libc::SIGTRAP => {}
                libc::SIGSTOP => return Lives::Ended(done),
                signal => panic!("the victim got signal {signal} after {done} instructions"),
            }
        }
        Lives::Stopped
    }

    /// Kills it. It is dead when this returns, and a zombie until it is dropped.
    pub fn kill(&self) {
        // SAFETY: the pid is that of our child, which nobody has waited for; `info` is a place
        // for the result.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            let mut info = core::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, flags);
        }
    }

    /// Whether it ended by itself, after a panic.
    pub fn has_failed(&self) -> bool {
        // SAFETY: as in `kill`.
        unsafe {
            let mut info: libc::siginfo_t = core::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
            libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, flags);
            info.si_signo == libc::SIGCHLD && info.si_code == libc::CLD_EXITED
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
        // SAFETY: our child, a zombie by now.
        unsafe { libc::waitpid(self.pid, core::ptr::null_mut(), libc::__WALL) };
    }
}

/// The calling process is killed when its parent ends: nothing stays behind a test that fails.
pub fn end_with_parent() {
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// In a victim: where the operation begins, and where it ends.
pub fn stop() {
    // SAFETY: no preconditions.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Keeps the calling thread, and what it forks, on the processor where it runs now: a step is two
/// changes from one process to another, which cost a fraction of what they do across processors.
pub fn stay_on_one_processor() {
    // SAFETY: all zeroes are an empty set; the set is valid for its size.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
