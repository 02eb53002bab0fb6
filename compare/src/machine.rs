//! Where the figures come from.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde::Serialize;

use crate::package;

/// A machine, and what was measured on it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) transparent_huge_pages: String,
    pub(crate) rustc: String,
    /// The commit of this project.
    pub(crate) commit: String,
    /// The mean of the last minute, before anything ran.
    pub(crate) load: f64,
    /// Seconds since 1970.
    pub(crate) when: u64,
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let processor = field("/proc/cpuinfo", "model name").unwrap_or_default();
        let load = first_word("/proc/loadavg").parse().unwrap_or(0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Machine {
            processor,
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            memory_mib: memory_kib("MemTotal") / 1024,
            kernel: first_word("/proc/sys/kernel/osrelease"),
            transparent_huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled"),
            rustc: said("rustc", &["--version"]),
            commit: said("git", &["describe", "--always", "--dirty"]),
            load,
            when: now.map_or(0, |since| since.as_secs()),
        }
    }

    pub(crate) fn warn_if_busy(&self) {
        if self.load > 0.3 {
            eprintln!("the machine is busy (load {:.2}): expect wide spreads", self.load);
        }
    }
}

/// Bytes that programs can still have.
pub(crate) fn available_memory() -> usize {
    usize::try_from(memory_kib("MemAvailable")).map_or(usize::MAX, |kib| kib.saturating_mul(1024))
}

/// A line of `/proc/meminfo`; 0 where there is none.
fn memory_kib(name: &str) -> u64 {
    let text = field("/proc/meminfo", name).unwrap_or_default();
    text.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Cargo's copies of the packages that it has built.
pub(crate) fn cargo_sources() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")))?;
    Some(home.join("registry/src")).filter(|path| path.is_dir())
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn first_word(path: &str) -> String {
    text(path).split_whitespace().next().unwrap_or_default().to_string()
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = text(path);
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(package()).output();
    output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_string())
}
