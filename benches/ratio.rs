//! All loads over all allocators, interleaved: hshm, mimalloc, system, hshm, mimalloc, ...
//!
//! What a machine does to one of them it does to the others: the ratio of one round's times is
//! taken round by round, and the median of those ratios is what is printed, with its spread.
//!
//! ```text
//! cargo bench --bench ratio -- [--rounds N] [--millis N] [--check BAR] [LOAD]...
//! ```
//!
//! `--rounds` (11, at least 5), `--millis` for one measurement (50), `--check 1.3` ends with an
//! error when hshm's median ratio to mimalloc is above the bar for any load. `LOAD` is part of a
//! load's name, such as `pair` or `batch/lifo`.

mod loads;

use std::process::ExitCode;
use std::time::{Duration, Instant};

struct Options {
    rounds: usize,
    time: Duration,
    bar: Option<f64>,
    only: Vec<String>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { rounds: 11, time: Duration::from_millis(50), bar: None, only: Vec::new() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || {
            let text = args.next().ok_or(format!("{arg} takes a number"))?;
            text.parse::<f64>().map_err(|_| format!("{text} is no number"))
        };
        match arg.as_str() {
            "--rounds" => options.rounds = number()? as usize,
            "--millis" => options.time = Duration::from_secs_f64(number()? / 1000.0),
            "--check" => options.bar = Some(number()?),
            // Cargo's own.
            "--bench" => {}
            load if !load.starts_with('-') => options.only.push(arg),
            _ => return Err(format!("no option {arg}")),
        }
    }
    if options.rounds < 5 {
        return Err("a median wants at least 5 rounds".to_owned());
    }
    Ok(options)
}

fn time(run: &loads::Run, which: usize, count: u64) -> Duration {
    let start = Instant::now();
    run(which, count);
    start.elapsed()
}

/// How often a load is to run so that the fastest allocator takes about `time`.
fn calibrate(run: &loads::Run, wanted: Duration) -> u64 {
    let mut count = 1u64;
    loop {
        let least = (0..loads::NAMES.len()).map(|which| time(run, which, count)).min();
        let least = least.unwrap_or_default().max(Duration::from_nanos(1));
        if least >= wanted {
            return count;
        }
        let more = wanted.as_secs_f64() / least.as_secs_f64();
        count = (count as f64 * more.clamp(1.2, 10.0)).ceil() as u64;
    }
}

/// The quarter, the median and the three quarters.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    [at(0.25), at(0.5), at(0.75)]
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    println!(
        "{} rounds, about {:?} each; ns are medians, ratios medians [quarter, three quarters]",
        options.rounds, options.time
    );
    println!(
        "{:<22} {:>11} {:>11} {:>11}  {:>20}  {:>20}",
        "load", "hshm ns", "mimalloc ns", "system ns", "hshm/mimalloc", "hshm/system"
    );
    let mut worst: Option<(f64, String)> = None;
    let mut above = 0;
    for group in loads::GROUPS {
        for (load, run) in loads::group(group) {
            let name = format!("{group}/{load}");
            if !options.only.is_empty() && !options.only.iter().any(|only| name.contains(only)) {
                continue;
            }
            let count = calibrate(&run, options.time);
            let mut times = [const { Vec::new() }; 3];
            for round in 0..options.rounds {
                // Who goes first changes, so that none always finds what another left behind.
                for step in 0..times.len() {
                    let which = (round + step) % times.len();
                    let each = time(&run, which, count).as_secs_f64() * 1e9 / count as f64;
                    times[which].push(each);
                }
            }
            let ratio = |other: usize| {
                quartiles(times[0].iter().zip(&times[other]).map(|(a, b)| a / b).collect())
            };
            let show = |[low, middle, high]: [f64; 3]| format!("{middle:.2} [{low:.2}, {high:.2}]");
            let mimalloc = ratio(1);
            let [hshm_ns, mimalloc_ns, system_ns] =
                times.each_ref().map(|times| quartiles(times.clone())[1]);
            println!(
                "{name:<22} {hshm_ns:>11.1} {mimalloc_ns:>11.1} {system_ns:>11.1}  {:>20}  {:>20}",
                show(mimalloc),
                show(ratio(2))
            );
            above += usize::from(options.bar.is_some_and(|bar| mimalloc[1] > bar));
            if worst.as_ref().is_none_or(|(ratio, _)| mimalloc[1] > *ratio) {
                worst = Some((mimalloc[1], name));
            }
        }
    }
    let Some((ratio, name)) = worst else {
        eprintln!("no such load");
        return ExitCode::from(2);
    };
    println!("worst hshm/mimalloc: {ratio:.2} ({name})");
    if above > 0 {
        println!("{above} above the bar of {}", options.bar.unwrap_or_default());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
