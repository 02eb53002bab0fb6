//! A process to kill: forked off, and run instruction by instruction.

#![allow(dead_code)] // every test uses a part

use std::collections::HashMap;
use std::io::Error;

/// How many instructions a victim may execute before it is killed.
pub enum Lives {
    /// It reached the end of its operation after so many.
    Ended(u64),
    /// It was stopped before.
    Stopped,
}

/// Where a victim is that was to follow another one's [`Path`].
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    There,
    /// At another instruction: no two victims are quite alike.
    Elsewhere,
    /// At the end of its operation.
    Never,
}

/// Where an operation's instructions are, and how to have one executed up to any of them soon.
///
/// A step is two changes of process, 20 us or so; ten thousand of them are more than all else that is
/// done about a death. So a victim runs, in full speed, to a breakpoint at or before its instruction,
/// stops there each time that it comes by, and takes steps from there.
#[derive(Default)]
pub struct Path {
    /// The address of each instruction; the first is where the victim stopped.
    at: Vec<u64>,
    /// How often an instruction at that address has been reached; 0 where no breakpoint would tell,
    /// as in the middle of a repeated string instruction.
    passed: Vec<u32>,
    /// The instruction for a breakpoint that needs the fewest stops; 0 is the beginning.
    from: Vec<usize>,
    /// How often each address has been reached so far.
    seen: HashMap<u64, u32>,
}

impl Path {
    fn push(&mut self, at: u64) {
        let count = self.at.len();
        // No breakpoint is where the victim stopped: it would never get on.
        let passed = match self.seen.get_mut(&at) {
            _ if self.at.first().is_none_or(|&first| first == at)
                || self.at.last() == Some(&at) =>
            {
                0
            }
            Some(passed) => {
                *passed += 1;
                *passed
            }
            None => *self.seen.entry(at).or_insert(1),
        };
        let stops = |from: usize, passed: u32| count - from + passed as usize;
        let from = match self.from.last() {
            Some(&last) if passed == 0 || stops(last, self.passed[last]) <= passed as usize => last,
            Some(_) => count,
            None => 0,
        };
        self.at.push(at);
        self.passed.push(passed);
        self.from.push(from);
    }

    /// Where the repeated instruction begins whose turn `count` is; `count`, if it is none.
    fn first_of_repeated(&self, count: usize) -> usize {
        let same = (1..=count).rev().take_while(|&n| self.at[n] == self.at[n - 1]).count();
        count - same
    }

    /// How many instructions the operation has, each turn of a repeated one counted.
    pub fn instructions(&self) -> u64 {
        self.at.len() as u64 - 1
    }
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

    /// Executes everything, and says where it was.
    pub fn record(&self) -> Path {
        let mut path = Path::default();
        loop {
            path.push(self.instruction());
            if let Lives::Ended(_) = self.step(1) {
                return path;
            }
        }
    }

    /// Executes `count` instructions of what was [recorded](Victim::record) of another one.
    pub fn follow(&self, path: &Path, count: u64) -> Arrival {
        let count = count as usize;
        let first = path.first_of_repeated(count);
        let from = path.from[first];
        let mut steps = count;
        if from != 0 && self.set_breakpoint(path.at[from]) {
            for _ in 0..path.passed[from] {
                if !self.run() {
                    return Arrival::Never;
                }
            }
            self.clear_breakpoint();
            steps = first - from;
            if let Lives::Ended(_) = self.step(steps as u64) {
                return Arrival::Never;
            }
            // As many turns of the repeated instruction, at once.
            let turns = count - first;
            let behind = path.at[first..].iter().find(|&&at| at != path.at[first]);
            if let Some(&behind) =
                behind.filter(|_| turns != 0 && self.instruction() == path.at[first])
            {
                self.repeat(turns as u64);
                self.set_breakpoint(behind);
                let at_all = self.run();
                self.clear_breakpoint();
                return if at_all { Arrival::There } else { Arrival::Never };
            }
            steps = turns;
        }
        match self.step(steps as u64) {
            Lives::Ended(_) => Arrival::Never,
            Lives::Stopped if self.instruction() == path.at[count] => Arrival::There,
            Lives::Stopped => Arrival::Elsewhere,
        }
    }

    /// Runs to the breakpoint; false where it reached the end of its operation.
    fn run(&self) -> bool {
        self.resume(libc::PTRACE_CONT);
        match self.wait_stop() {
            libc::SIGTRAP => true,
            libc::SIGSTOP => false,
            signal => panic!("the victim got signal {signal}"),
        }
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

/// The processor's registers, as far as they are needed; without them all is done by steps.
#[cfg(target_arch = "x86_64")]
mod registers {
    use core::mem::offset_of;

    use super::Victim;

    const BREAKPOINT: usize = offset_of!(libc::user, u_debugreg);
    const CONTROL: usize = BREAKPOINT + 7 * 8;

    impl Victim {
        /// The address of the instruction that is next.
        pub(super) fn instruction(&self) -> u64 {
            let at = offset_of!(libc::user, regs) + offset_of!(libc::user_regs_struct, rip);
            // SAFETY: the child is stopped; the result is a register of its.
            unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, self.pid, at, 0) as u64 }
        }
        fn set(&self, register: usize, value: u64) -> bool {
            // SAFETY: the child is stopped; the kernel checks what a debug register gets.
            unsafe { libc::ptrace(libc::PTRACE_POKEUSER, self.pid, register, value) == 0 }
        }
        /// It stops before it executes what is at `address`. Whether there is such a thing.
        pub(super) fn set_breakpoint(&self, address: u64) -> bool {
            self.set(BREAKPOINT, address) && self.set(CONTROL, 1)
        }
        /// The repeated instruction that is next is to be done `turns` times.
        pub(super) fn repeat(&self, turns: u64) {
            let count = offset_of!(libc::user, regs) + offset_of!(libc::user_regs_struct, rcx);
            assert!(self.set(count, turns), "{}", std::io::Error::last_os_error());
        }
        pub(super) fn clear_breakpoint(&self) {
            assert!(self.set(CONTROL, 0), "{}", std::io::Error::last_os_error());
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Victim {
    fn instruction(&self) -> u64 {
        0
    }
    fn set_breakpoint(&self, _address: u64) -> bool {
        false
    }
    fn clear_breakpoint(&self) {}
    fn repeat(&self, _turns: u64) {}
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
