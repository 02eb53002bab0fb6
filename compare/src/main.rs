//! hshm beside other allocators: builds one binary per allocator, runs the workloads in turns, and
//! shows medians, ratios and memory. `README.md` says what the figures mean.
#![deny(unsafe_code)]

mod case;
mod chart;
mod child;
mod machine;
mod native;
mod peers;
mod report;
mod stats;
mod table;
mod warm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::case::Case;
use crate::child::{Failure, Job, Run};
use crate::machine::Machine;
use crate::peers::{LeftOut, Peer, Workload};
use crate::report::Report;
use crate::warm::Warmth;

/// Measures hshm beside other allocators.
#[derive(Debug, Parser)]
struct Options {
    /// Workloads or groups of workloads [default: all but those marked in --list]
    #[arg(short, long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Allocators [default: all that build or are installed]
    #[arg(short, long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Numbers of threads (in the group sharing, of processes), each 1 to 64 [default: as many as there
    /// are cores]
    #[arg(short, long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Runs of each workload with each allocator
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// Amount of work; 1 is some tenths of a second of one core
    #[arg(short, long, default_value_t = 1.0)]
    scale: f64,
    /// The allocator that others are compared to
    #[arg(short, long, default_value = "hshm")]
    baseline: String,
    /// Folder with Rust sources [default: cargo's registry folder]
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Most to take from it at scale 1, in MB
    #[arg(long, default_value_t = 5.0)]
    corpus_mb: f64,
    /// Seconds after which a run counts as hanging
    #[arg(long, default_value_t = 120)]
    timeout: u32,
    /// Name of the files with the results
    #[arg(long, default_value = "latest")]
    name: String,
    /// Folder for the results
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results"))]
    out: PathBuf,
    /// Only show the workloads and allocators
    #[arg(short, long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("hshm-compare: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every run went well.
fn run(options: &Options) -> Result<bool, String> {
    if options.rounds == 0 {
        return Err("--rounds: at least 1".into());
    }
    let (peers, left_out) = peers::prepare(&options.peers, &options.baseline)?;
    for LeftOut { name, reason } in &left_out {
        eprintln!("left out: {name}: {reason}");
    }
    let mut workloads = all_workloads(&peers)?;
    if peers.iter().any(Peer::is_for_any_program) {
        let (more, missing) = native::workloads();
        workloads.extend(more);
        for (name, reason) in missing {
            eprintln!("left out: {name}: {reason}");
        }
    }
    if options.list {
        list(&workloads, &peers);
        return Ok(true);
    }
    let workloads = select(&workloads, &options.workloads)?;
    let machine = Machine::look();
    machine.warn_if_busy();
    let threads = if options.threads.is_empty() {
        vec![machine.cores.clamp(1, 64)]
    } else {
        options.threads.clone()
    };

    let cases = measure(options, &workloads, &peers, &threads)?;
    let report = Report::new(options, machine, &peers, left_out, cases);
    println!("{}", table::summary(&report));
    report
        .write(&options.out, &options.name)
        .map_err(|e| format!("{}: {e}", options.out.display()))?;
    chart::draw_all(&report, &options.out, &options.name)?;
    println!("written to {}", options.out.join(&options.name).display());
    Ok(report.failures() == 0)
}

fn measure(
    options: &Options,
    workloads: &[Workload],
    peers: &[Peer],
    threads: &[usize],
) -> Result<Vec<Case>, String> {
    let corpus = options.corpus.clone().or_else(machine::cargo_sources);
    // The floor and other people's programs have no use for threads; of several processes on one heap,
    // only those that allocate all the time.
    let counts = |w: &Workload| match w.group.as_str() {
        "floor" | "programs" => vec![1],
        "sharing" if !w.name.starts_with("own") && !w.name.starts_with("others") => vec![2],
        _ => threads.to_vec(),
    };
    let lists: Vec<_> = peers.iter().map(peers::workloads).collect::<Result<_, _>>()?;
    // Not every peer can do everything.
    let able = |w: &Workload| -> Vec<usize> {
        let can = |which: &usize| match w.program {
            Some(_) => peers[*which].is_for_any_program(),
            None => lists[*which].iter().any(|listed| listed.name == w.name),
        };
        (0..peers.len()).filter(can).collect()
    };
    let total: usize = workloads.iter().map(|w| counts(w).len() * able(w).len()).sum();
    let bar = ProgressBar::new((total * options.rounds) as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {eta} left  {msg}");
    bar.set_style(style.map_err(|error| error.to_string())?);
    bar.enable_steady_tick(Duration::from_secs(1));

    let mut cases = Vec::new();
    let mut warmth = Warmth::new();
    for workload in workloads {
        let able = able(workload);
        for threads in counts(workload) {
            let mut case = Case::new(workload, threads, peers);
            warmth.forget_load();
            for round in 0..options.rounds {
                // In turns, and not always in the same order: what drifts hits all alike.
                for turn in 0..able.len() {
                    let which = able[(round + turn) % able.len()];
                    bar.inc(1);
                    bar.set_message(format!(
                        "{}, {threads} threads: {}",
                        workload.name, peers[which].name
                    ));
                    let job = Job {
                        workload: &workload.name,
                        program: workload.program.as_ref(),
                        threads,
                        scale: options.scale,
                        corpus: corpus.as_deref(),
                        corpus_mb: options.corpus_mb,
                        timeout: options.timeout,
                    };
                    case.add(round, which, run_warm(&job, &peers[which], &mut warmth));
                }
            }
            let baseline = baseline_for(workload, options, peers);
            case.finish(baseline);
            bar.suspend(|| println!("{}", table::case(&case, baseline)));
            cases.push(case);
        }
    }
    bar.finish_and_clear();
    Ok(cases)
}

/// Runs it where all the memory that it takes costs no more than it must.
fn run_warm(job: &Job<'_>, peer: &Peer, warmth: &mut Warmth) -> Result<Run, Failure> {
    loop {
        warmth.restore();
        let run = job.run(peer)?;
        if warmth.was_enough(run.peak_kib) {
            return Ok(run);
        }
    }
}

/// What the others are compared to: where the baseline cannot run, this crate's library, or its
/// allocator for several processes.
fn baseline_for<'a>(workload: &Workload, options: &'a Options, peers: &[Peer]) -> &'a str {
    let is_able = |peer: &Peer| peer.name == options.baseline && peer.is_for_any_program();
    if workload.group == "sharing" {
        return peers::SHARING_BASELINE;
    }
    if workload.program.is_some() && !peers.iter().any(is_able) {
        return "pre-hshm";
    }
    &options.baseline
}

/// What at least one of the allocators can do, in the order in which they say so.
fn all_workloads(peers: &[Peer]) -> Result<Vec<Workload>, String> {
    let mut all: Vec<Workload> = Vec::new();
    for peer in peers {
        for workload in peers::workloads(peer)? {
            if !all.iter().any(|known| known.name == workload.name) {
                all.push(workload);
            }
        }
    }
    Ok(all)
}

/// The workloads that are named, one by one or by group.
fn select(all: &[Workload], wanted: &[String]) -> Result<Vec<Workload>, String> {
    if wanted.is_empty() {
        return Ok(all.iter().filter(|w| w.by_default).cloned().collect());
    }
    if let Some(unknown) =
        wanted.iter().find(|n| !all.iter().any(|w| w.name == **n || w.group == **n))
    {
        return Err(format!("{unknown}: no such workload or group; --list shows them"));
    }
    let named = |w: &&Workload| {
        wanted.iter().any(|name| *name == w.name || (*name == w.group && w.by_default))
    };
    Ok(all.iter().filter(named).cloned().collect())
}

fn list(workloads: &[Workload], peers: &[Peer]) {
    let rows = workloads.iter().map(|w| {
        let mark = if w.by_default { "" } else { "by name only" };
        [w.group.as_str(), &w.name, &w.about, mark].map(String::from).to_vec()
    });
    println!("{}", table::aligned(&["group", "workload", "", ""], rows.collect(), 4));
    let rows = peers.iter().map(|p| vec![p.name.clone(), p.how.clone()]);
    println!("{}", table::aligned(&["allocator", ""], rows.collect(), 2));
}

/// The folder of this package.
fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
