//! What the tests of regions share: looking for debris, and running a test's other process.
#![allow(dead_code, unreachable_pub)] // every test file uses a part
#![allow(unsafe_code)] // geteuid

pub mod forked;
pub mod ledger;
pub mod peer;

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

/// Tests that count descriptors and mappings take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Everything a region could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    shm: BTreeSet<String>,
    fds: Vec<String>,
    maps: Vec<String>,
}

impl Traces {
    pub fn now() -> Traces {
        // Other test programs use /dev/shm, too: ours have the pid in their names.
        let own = unique("");
        let shm = std::fs::read_dir("/dev/shm")
            .map(|dir| dir.flatten().map(|e| e.file_name().to_string_lossy().into_owned()))
            .map(|names| names.filter(|name| name.contains(&own)).collect())
            .unwrap_or_default();
        let mut fds = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            if let Ok(link) = std::fs::read_link(entry.path()) {
                fds.push(format!("{:?} {}", entry.file_name(), link.display()));
            }
        }
        fds.retain(|fd| !fd.contains("/proc/"));
        fds.sort();
        // Where regions go, and segments anywhere. The rest moves as the C heap and threads do.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let maps = maps.lines().filter(|line| {
            let start = line.split('-').next().unwrap();
            let start = u64::from_str_radix(start, 16).unwrap_or(0);
            let slot = (0x1000_0000_0000..0x5500_0000_0000).contains(&start);
            slot || line.contains("/dev/shm") || line.contains("memfd:") || line.contains("hshm-t")
        });
        Traces { shm, fds, maps: maps.map(str::to_owned).collect() }
    }
}

/// Waits for this test's turn. Who starts processes or keeps regions outside [`leaves_nothing`]
/// takes a turn, too: their pipes would be taken for debris.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs `f` and checks that it leaves nothing behind.
#[track_caller]
pub fn leaves_nothing<R>(f: impl FnOnce() -> R) -> R {
    let _turn = turn();
    let before = Traces::now();
    let result = f();
    let after = Traces::now();
    assert_eq!(before, after);
    result
}

/// A name that no other test process uses.
pub fn unique(name: &str) -> String {
    format!("hshm-t{}-{name}", std::process::id())
}

/// A directory for files, removed when dropped.
pub struct Dir(pub std::path::PathBuf);

impl Dir {
    pub fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(unique(name));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// In the other process: what it was asked to do.
pub fn role(test: &str) -> Option<String> {
    let role = std::env::var("HSHM_TEST_ROLE").ok()?;
    role.strip_prefix(test)?.strip_prefix('=').map(str::to_owned)
}

/// Runs `test` of this program again in another process, which finds `what` in [`role`].
pub fn other_process(test: &str, what: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env("HSHM_TEST_ROLE", format!("{test}={what}"))
        .output()
        .unwrap()
}

/// [`other_process`] that must succeed.
#[track_caller]
pub fn other_process_ok(test: &str, what: &str) {
    let output = other_process(test, what);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn is_root() -> bool {
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() == 0 }
}
