//! Containers in shared memory: this crate's beside Boost.Interprocess's `vector`, `basic_string` and
//! `unordered_map`, on the same work.
//!
//! ```text
//! containers [--rounds N] [--scale X] [--check] [LOAD]...   both, in turns
//! containers --list                                         the loads, one a line
//! containers --run map-find scale=0.5                       one load over this crate's
//! ```
//!
//! Both run in processes of their own, Boost's (`boost.cpp`, compiled here) and this program again,
//! A B, B A, A B. The ratio of each round's times is taken, and the median of those printed: above 1,
//! this crate's are faster. What was read back has to come to the same checksum. `--check` ends with an
//! error where a median is below 1.

mod loads;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hshm::{Backend, MemfdBackend, RegionOptions, ShmHeap, ThreadLocalAllocator};

use loads::{LOADS, Load, Run};

const HEAP: usize = 1 << 30;

fn heap() -> hshm::Result<ShmHeap> {
    // The tables take their part of it.
    let options = RegionOptions::new().capacity(HEAP + HEAP / 4);
    let alloc = ThreadLocalAllocator::shm_init(MemfdBackend::create("containers", &options)?)?;
    ShmHeap::of(Box::leak(Box::new(alloc)))
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn load(name: &str) -> Result<&'static Load, String> {
    LOADS.iter().find(|(known, ..)| *known == name).ok_or(format!("{name}: there is no such load"))
}

/// One load, here.
fn run_one(name: &str, scale: f64) -> Result<(), String> {
    let (_, work, _) = load(name)?;
    let outcome = heap().and_then(|heap| work(&Run { heap, scale }));
    let (operations, checksum, seconds) = outcome.map_err(|error| format!("{name}: {error}"))?;
    let peak = peak_kib();
    println!(
        "operations={operations} checksum={checksum:016x} seconds={seconds:.9} peak_kib={peak}"
    );
    Ok(())
}

/// What a process said.
struct Said {
    operations: f64,
    checksum: String,
    seconds: f64,
    peak_mib: f64,
}

fn ask(program: &Path, words: &[&str], scale: f64) -> Result<Said, String> {
    let output = Command::new(program).args(words).arg(format!("scale={scale}")).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |key: &str| {
        let pair =
            text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        pair.ok_or(format!("no {key} in {text}"))
    };
    let number = |key| value(key)?.parse::<f64>().map_err(|error| format!("{key}: {error}"));
    Ok(Said {
        operations: number("operations")?,
        checksum: value("checksum")?.to_owned(),
        seconds: number("seconds")?,
        peak_mib: number("peak_kib")? / 1024.0,
    })
}

/// Compiles `boost.cpp`, beside this program.
fn compile(own: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("containers/boost.cpp");
    let program = own.with_file_name("containers-boost");
    let output = Command::new("c++")
        .args(["-std=c++17", "-O3", "-DNDEBUG", "-o"])
        .args([&program, &source])
        .args(["-pthread", "-lrt"])
        .output()
        .map_err(|error| format!("c++: {error}"))?;
    if output.status.success() {
        return Ok(program);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = errors.lines().find(|line| line.contains("error")).unwrap_or("no reason").to_owned();
    Err(format!("boost.cpp does not build (Debian: g++, libboost-dev): {line}"))
}

fn median(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

/// Both, in turns. Whether none is slower, and all came to the same.
fn compare(names: &[String], rounds: usize, scale: f64) -> Result<bool, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let boost = compile(&own)?;
    let chosen: Vec<&Load> = match names {
        [] => LOADS.iter().collect(),
        names => names.iter().map(|name| load(name)).collect::<Result<_, _>>()?,
    };
    println!(
        "{rounds} rounds, scale {scale}; ns of an operation, medians; Boost's time over hshm's"
    );
    println!(
        "{:<14} {:>9} {:>9}  {:>19}  {:>15}",
        "load", "hshm ns", "Boost ns", "median [least, most]", "MiB hshm, Boost"
    );
    let mut fine = true;
    for (name, _, about) in chosen {
        let (mut ours, mut theirs, mut peaks) = (Vec::new(), Vec::new(), [0.0; 2]);
        for round in 0..rounds {
            for step in 0..2 {
                let which = (round + step) % 2;
                let said = match which {
                    0 => ask(&own, &["--run", name], scale)?,
                    _ => ask(&boost, &[name], scale)?,
                };
                peaks[which] = said.peak_mib;
                if which == 0 { ours.push(said) } else { theirs.push(said) }
            }
        }
        if ours.iter().chain(&theirs).any(|said| said.checksum != ours[0].checksum) {
            return Err(format!("{name}: what was read back is not the same"));
        }
        let each = |said: &Said| said.seconds * 1e9 / said.operations;
        let pairs = ours.iter().zip(&theirs);
        let [least, middle, most] = median(pairs.map(|(a, b)| b.seconds / a.seconds).collect());
        let [_, a, _] = median(ours.iter().map(each).collect());
        let [_, b, _] = median(theirs.iter().map(each).collect());
        let [own_peak, boost_peak] = peaks;
        println!(
            "{name:<14} {a:>9.1} {b:>9.1}  {middle:>6.2} [{least:.2}, {most:.2}]  {own_peak:>6.1} {boost_peak:>6.1}   {about}"
        );
        fine &= middle >= 1.0;
    }
    Ok(fine)
}

fn run() -> Result<bool, String> {
    let (mut rounds, mut scale, mut check, mut names) = (5, 1.0, false, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<f64, String> {
            let text = arguments.next().ok_or(format!("{argument} takes a number"))?;
            text.parse().map_err(|_| format!("{text} is no number"))
        };
        match argument.as_str() {
            "--list" => {
                LOADS
                    .iter()
                    .for_each(|(name, _, about)| println!("{name}\tcontainers\t0\t1\t{about}"));
                return Ok(true);
            }
            "--run" => {
                let name = arguments.next().ok_or("--run takes a load")?;
                let scale = arguments.find_map(|word| word.strip_prefix("scale=")?.parse().ok());
                return run_one(&name, scale.unwrap_or(1.0)).map(|()| true);
            }
            "--rounds" => rounds = (number()? as usize).max(1),
            "--scale" => scale = number()?,
            "--check" => check = true,
            name if !name.starts_with('-') => names.push(argument),
            _ => return Err(format!("no option {argument}")),
        }
    }
    Ok(compare(&names, rounds, scale)? || !check)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("containers: {reason}");
            ExitCode::FAILURE
        }
    }
}
