//! One measured run: a process of its own, waited for with `wait4`.
#![allow(unsafe_code)] // wait4, and a timer set between fork and exec

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::native::{self, Program};
use crate::peers::Peer;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) workload: &'a str,
    /// What runs it, where the peer's own binary does not.
    pub(crate) program: Option<&'a Program>,
    pub(crate) threads: usize,
    pub(crate) scale: f64,
    pub(crate) corpus: Option<&'a Path>,
    pub(crate) corpus_mb: f64,
    /// In seconds.
    pub(crate) timeout: u32,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Run {
    /// Of the measured part, by the program's own clock.
    pub(crate) seconds: f64,
    /// From before the process started until it was gone.
    pub(crate) wall: f64,
    /// Processor time of the whole process.
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// `VmHWM` when the work was done.
    pub(crate) peak_kib: u64,
    /// `ru_maxrss`. No smaller than the harness was when it forked, hence not the figure shown.
    pub(crate) maxrss_kib: u64,
    pub(crate) operations: u64,
    pub(crate) checksum: u64,
}

/// Why there is no result.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    Start(String),
    Timeout(u32),
    Signal(i32, String),
    Exit(i32, String),
    /// The library was not loaded, so it was something else that ran.
    Preload(String),
    Output(String),
    /// The program read back other data than the rest did.
    Checksum(u64),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Start(reason) => write!(f, "did not start: {reason}"),
            Failure::Timeout(seconds) => write!(f, "timeout after {seconds} s"),
            Failure::Signal(signal, said) => write!(f, "killed by signal {signal}: {said}"),
            Failure::Exit(code, said) => write!(f, "exit code {code}: {said}"),
            Failure::Preload(said) => write!(f, "not preloaded: {said}"),
            Failure::Output(output) => write!(f, "cannot be understood: {output:?}"),
            Failure::Checksum(sum) => write!(f, "another checksum than the rest: {sum:016x}"),
        }
    }
}

impl Job<'_> {
    /// Runs it once with that allocator.
    pub(crate) fn run(&self, peer: &Peer) -> Result<Run, Failure> {
        let mut command = self.command(peer);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_in_time(&mut command, self.timeout);

        let start = Instant::now();
        let child = command.spawn().map_err(|error| Failure::Start(error.to_string()))?;
        let ended = wait(child).map_err(|error| Failure::Start(error.to_string()))?;
        let wall = start.elapsed().as_secs_f64();

        let said = gist(&ended.errors);
        if libc::WIFSIGNALED(ended.status) {
            return Err(match libc::WTERMSIG(ended.status) {
                libc::SIGALRM => Failure::Timeout(self.timeout),
                signal => Failure::Signal(signal, said),
            });
        }
        if ended.errors.contains("cannot be preloaded") {
            return Err(Failure::Preload(said));
        }
        match libc::WEXITSTATUS(ended.status) {
            0 => {}
            code => return Err(Failure::Exit(code, said)),
        }
        let usage = &ended.usage;
        let mut run = Run {
            seconds: 0.0,
            wall,
            user: seconds(usage.ru_utime),
            system: seconds(usage.ru_stime),
            peak_kib: 0,
            maxrss_kib: usage.ru_maxrss as u64,
            operations: 0,
            checksum: 0,
        };
        understand(&ended.output, &mut run).ok_or(Failure::Output(ended.output))?;
        Ok(run)
    }
}

impl Job<'_> {
    fn command(&self, peer: &Peer) -> Command {
        let mut command = match self.program {
            Some(Program::Launched(launcher, words)) => {
                let mut command = Command::new(launcher);
                command.arg(peer.library().map_or(OsStr::new("-"), |library| library.as_os_str()));
                command.args(words).current_dir(native::inputs()).env_remove("LD_PRELOAD");
                return command;
            }
            Some(Program::Built(program)) => Command::new(program),
            None => {
                let mut command = Command::new(&peer.executable);
                command.arg(self.workload);
                command
            }
        };
        command.arg(format!("threads={}", self.threads)).arg(format!("scale={}", self.scale));
        if self.program.is_none()
            && let Some(corpus) = self.corpus
        {
            command.arg(format!("corpus={}", corpus.display()));
            command.arg(format!("corpus_mb={}", self.corpus_mb));
        }
        command.env_remove("LD_PRELOAD").envs(peer.environment.iter().cloned());
        command
    }
}

/// Takes over what the program printed.
fn understand(output: &str, run: &mut Run) -> Option<()> {
    let mut seen = 0;
    for pair in output.split_whitespace() {
        let (key, value) = pair.split_once('=')?;
        match key {
            "operations" => run.operations = value.parse().ok()?,
            "checksum" => run.checksum = u64::from_str_radix(value, 16).ok()?,
            "seconds" => run.seconds = value.parse().ok()?,
            "peak_kib" => run.peak_kib = value.parse().ok()?,
            _ => return None,
        }
        seen += 1;
    }
    (seen == 4 && run.operations > 0).then_some(())
}

/// Ends the process after `timeout` seconds, and when the harness is gone. An alarm outlives `exec`,
/// is not inherited by children, and needs nobody to look at a clock meanwhile.
fn die_in_time(command: &mut Command, timeout: u32) {
    let prepare = move || {
        // SAFETY: both are async-signal-safe calls that take numbers only.
        unsafe {
            libc::alarm(timeout);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls; it allocates nothing and takes no lock, so it
    // may run between fork and exec.
    unsafe { command.pre_exec(prepare) };
}

struct Ended {
    status: libc::c_int,
    usage: libc::rusage,
    output: String,
    errors: String,
}

/// Reads what the child says until it ends, and how it ended.
fn wait(mut child: Child) -> std::io::Result<Ended> {
    let pid = child.id() as libc::pid_t;
    let errors = child.stderr.take();
    let reader = std::thread::spawn(move || read(errors));
    let output = read(child.stdout.take());
    let mut status = 0;
    // SAFETY: a `rusage` is numbers only, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live variables of the right types. The child was not waited
        // for, and `Child` does not do so when dropped, so the pid is still its.
        if unsafe { libc::wait4(pid, &mut status, 0, &mut usage) } == pid {
            break;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let errors = reader.join().unwrap_or_default();
    Ok(Ended { status, usage, output, errors })
}

fn read(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    // A broken pipe is as good as its end.
    let _ = from.map(|mut from| from.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first lines of what a program complained of, where a panic has its place and its message.
fn gist(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(2).collect::<Vec<_>>().join(" ")
}

fn seconds(time: libc::timeval) -> f64 {
    Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn shell(script: &str, timeout: u32) -> Result<Run, Failure> {
        let script = format!("#!/bin/sh\n{script}\n");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hshm-compare-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, script).unwrap();
        let peer = Peer {
            name: "shell".into(),
            how: String::new(),
            executable: "/bin/sh".into(),
            environment: Vec::new(),
        };
        let job = Job {
            workload: path.to_str().unwrap(),
            program: None,
            threads: 1,
            scale: 1.0,
            corpus: None,
            corpus_mb: 1.0,
            timeout,
        };
        let result = job.run(&peer);
        std::fs::remove_file(path).unwrap();
        result
    }

    #[test]
    fn a_result() {
        let run = shell("echo operations=5 checksum=ff seconds=0.5 peak_kib=7", 10).unwrap();
        assert_eq!((run.operations, run.checksum, run.seconds, run.peak_kib), (5, 255, 0.5, 7));
        assert!(run.wall > 0.0 && run.maxrss_kib > 0);
    }

    #[test]
    fn failures_are_told_apart() {
        assert!(matches!(shell("exec sleep 20", 1), Err(Failure::Timeout(1))));
        assert!(matches!(shell("echo no >&2; exit 3", 10), Err(Failure::Exit(3, s)) if s == "no"));
        assert!(matches!(shell("kill -SEGV $$", 10), Err(Failure::Signal(libc::SIGSEGV, _))));
        assert!(matches!(shell("echo operations=5", 10), Err(Failure::Output(_))));
        let ignored = "echo 'x.so cannot be preloaded: ignored.' >&2";
        assert!(matches!(shell(ignored, 10), Err(Failure::Preload(_))));
    }
}
