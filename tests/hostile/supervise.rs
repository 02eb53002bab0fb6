//! Rounds in a process of their own, and somebody who watches it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::choices::Choices;
use super::support::{Dir, role, turn};

/// A round that takes longer hangs. The longest wait that there is on purpose is one for a lock.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many rounds the long forms have, all together: `part` per cent of them.
pub fn long(part: u64) -> u64 {
    number("HOSTILE_ROUNDS").unwrap_or(10_000_000) * part / 100
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// What a round did.
#[derive(Default)]
pub struct Done {
    /// Words or bytes written over.
    pub written: u64,
    /// Whether it could be attached.
    pub attached: bool,
    /// Calls that succeeded all the same.
    pub fine: u64,
}

/// Runs rounds, each from its number alone, and sees that every one of them ends well. `begin` makes
/// what they work on.
#[track_caller]
pub fn rounds<R: FnMut(&mut Choices<'_>) -> Done>(
    test: &str,
    rounds: u64,
    begin: impl FnOnce() -> R,
) {
    let seed = number("HOSTILE_SEED").unwrap_or(1);
    if let Some(what) = role(test) {
        let (path, rounds) = what.split_once(':').unwrap();
        work(path, rounds.parse().unwrap(), seed, begin());
        return;
    }
    if let Ok(one) = std::env::var("HOSTILE_ROUND") {
        if let Some(round) = one.strip_prefix(test).and_then(|rest| rest.strip_prefix(':')) {
            begin()(&mut Choices::of_round(seed, round.parse().unwrap()));
        }
        return;
    }
    let _turn = turn();
    let dir = Dir::new(&format!("hostile-{}", test.replace(':', "-")));
    watch(test, &dir.file("progress"), rounds);
}

/// In the process that may die.
fn work(path: &str, rounds: u64, seed: u64, mut round: impl FnMut(&mut Choices<'_>) -> Done) {
    let progress = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let start = Instant::now();
    let (mut written, mut fine, mut attached) = (0, 0, 0);
    let mut note = [0; 8];
    for number in 0..rounds {
        note.copy_from_slice(&number.to_ne_bytes());
        progress.write_all_at(&note, 0).unwrap();
        let done = round(&mut Choices::of_round(seed, number));
        written += done.written;
        fine += done.fine;
        attached += u64::from(done.attached);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "rounds: {rounds}, {written} places written over, {attached} attached, {fine} calls \
         succeeded, {seconds:.1} s"
    );
    assert!(fine > 0, "nothing was tried");
}

#[track_caller]
fn watch(test: &str, path: &str, rounds: u64) {
    let progress =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env("HSHM_TEST_ROLE", format!("{test}={path}:{rounds}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let at = || {
        let mut bytes = [0; 8];
        progress.read_at(&mut bytes, 0).unwrap();
        u64::from_ne_bytes(bytes)
    };
    let (mut seen, mut since) = (0, Instant::now());
    let hangs = loop {
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        std::thread::sleep(Duration::from_millis(20));
        if at() != seen {
            (seen, since) = (at(), Instant::now());
        } else if since.elapsed() > PATIENCE {
            child.kill().unwrap();
            break true;
        }
    };
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let fine = output.status.success() && text.contains("1 passed");
    assert!(
        fine && !hangs,
        "{test}: round {} {}: {}\nHOSTILE_ROUND={test}:{} runs it again\n{}",
        at(),
        if hangs { "hangs" } else { "failed" },
        output.status,
        at(),
        String::from_utf8_lossy(&output.stderr)
    );
    if let Some(line) = text.lines().find(|line| line.contains("rounds: ")) {
        println!("{test}: {}", line.trim_start_matches("test ").trim());
    }
}
