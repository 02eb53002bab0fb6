//! The programs that are measured. Compiled once into every peer's binary, and without a word
//! about which allocator that is.
//!
//! ```text
//! peer-x --list                         the workloads, one a line
//! peer-x larson threads=4 scale=0.5     runs one; prints `key=value` pairs on one line
//! ```
//!
//! - A workload's input follows from its seed alone. Its checksum goes over what was read back from
//!   the blocks, so it shows damage, and every allocator has to come to the same one.
//! - The work is the same for any number of threads (`scale` changes it): more threads share it.
//! - An operation is what the workload's description says, mostly one block allocated and freed.
//! - The time goes over the work, without the making of input, and without the process's start,
//!   except where the description says otherwise.

mod block;
mod common;

mod batches;
mod cache_lines;
mod json_dom;
mod larson;
mod live;
mod maps;
mod mstress;
mod nothing;
mod pairs;
mod pareto;
mod producer_consumer;
mod realloc;
mod regex_compile;
mod rptest;
mod syn_parse;
mod thread_churn;
mod zeroed;

use std::process::ExitCode;

pub(crate) use self::common::{Outcome, Params};

/// What a workload is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// A program that allocates next to nothing: what a heap costs before it is used.
    Floor,
    /// Allocator benchmarks of the literature.
    Classical,
    /// One size, allocated and freed.
    Pairs,
    /// A live heap of a given size.
    Live,
    /// Work of real programs on real data.
    Real,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Group::Floor => "floor",
            Group::Classical => "classical",
            Group::Pairs => "pairs",
            Group::Live => "live",
            Group::Real => "real",
        }
    }
}

/// Which runs have to come to the same checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    /// All of one seed and scale.
    AnyThreads,
    /// Those with the same number of threads, since the input is dealt out by thread.
    SameThreads,
}

/// One workload.
#[derive(Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    pub(crate) agreement: Agreement,
    /// Whether it runs when nothing is said; the others take more memory than every machine has.
    pub(crate) by_default: bool,
    pub(crate) run: fn(&Params) -> Result<Outcome, String>,
    pub(crate) about: &'static str,
}

/// Every workload, in the order in which they are run and shown.
pub(crate) const ALL: &[Workload] = {
    use Agreement::{AnyThreads, SameThreads};
    use Group::{Classical, Floor, Live, Pairs, Real};

    const fn new(
        name: &'static str,
        group: Group,
        agreement: Agreement,
        run: fn(&Params) -> Result<Outcome, String>,
        about: &'static str,
    ) -> Workload {
        Workload { name, group, agreement, by_default: true, run, about }
    }

    &[
        new("nothing", Floor, AnyThreads, nothing::run, "allocates next to nothing"),
        new(
            "larson",
            Classical,
            SameThreads,
            larson::run,
            "a server: each thread inherits its predecessor's objects",
        ),
        new(
            "producer-consumer",
            Classical,
            AnyThreads,
            producer_consumer::run,
            "one side only allocates, the other only frees",
        ),
        new(
            "mstress",
            Classical,
            SameThreads,
            mstress::run,
            "phases of threads that exchange objects; some survive",
        ),
        new(
            "pareto",
            Classical,
            AnyThreads,
            pareto::run,
            "mostly small sizes, some up to 1 KiB, random lifetimes",
        ),
        new(
            "rptest",
            Classical,
            SameThreads,
            rptest::run,
            "8 B to 16 KB, some freed by another thread",
        ),
        new(
            "lifo",
            Classical,
            AnyThreads,
            batches::lifo,
            "batches freed last first, parts of them kept",
        ),
        new(
            "reverse",
            Classical,
            AnyThreads,
            batches::reverse,
            "batches freed oldest first or every other one first",
        ),
        new("cache-scratch", Classical, AnyThreads, cache_lines::scratch, "passive false sharing"),
        new("cache-thrash", Classical, AnyThreads, cache_lines::thrash, "active false sharing"),
        new(
            "thread-churn",
            Classical,
            AnyThreads,
            thread_churn::run,
            "many short threads that leave blocks behind",
        ),
        new("zeroed", Classical, AnyThreads, zeroed::run, "zeroed buffers of 5 to 25 MiB"),
        new(
            "realloc",
            Classical,
            AnyThreads,
            realloc::run,
            "vectors and strings that grow side by side",
        ),
        new("pair-8", Pairs, AnyThreads, |p| pairs::run(p, 8), "8 B, allocated and freed"),
        new("pair-64", Pairs, AnyThreads, |p| pairs::run(p, 64), "64 B"),
        new("pair-512", Pairs, AnyThreads, |p| pairs::run(p, 512), "512 B"),
        new("pair-4k", Pairs, AnyThreads, |p| pairs::run(p, 4 << 10), "4 KiB"),
        new("pair-32k", Pairs, AnyThreads, |p| pairs::run(p, 32 << 10), "32 KiB"),
        new("pair-256k", Pairs, AnyThreads, |p| pairs::run(p, 256 << 10), "256 KiB"),
        new("pair-1m", Pairs, AnyThreads, |p| pairs::run(p, 1 << 20), "1 MiB"),
        new("live-1m", Live, SameThreads, |p| live::run(p, 1 << 20), "random replacement in 1 MiB"),
        new("live-32m", Live, SameThreads, |p| live::run(p, 32 << 20), "in 32 MiB"),
        new("live-512m", Live, SameThreads, |p| live::run(p, 512 << 20), "in 512 MiB"),
        Workload {
            by_default: false,
            ..new(
                "live-4g",
                Live,
                SameThreads,
                |p| live::run(p, 4 << 30),
                "in 4 GiB; asked for by name only",
            )
        },
        new(
            "syn-parse",
            Real,
            AnyThreads,
            syn_parse::run,
            "parses the Rust sources of cargo's registry folder",
        ),
        new(
            "json-dom",
            Real,
            AnyThreads,
            json_dom::run,
            "reads, changes and prints JSON documents",
        ),
        new("maps", Real, AnyThreads, maps::run, "HashMap and BTreeMap keyed by strings"),
        new(
            "regex-compile",
            Real,
            AnyThreads,
            regex_compile::run,
            "compiles and tries regular expressions",
        ),
    ]
};

/// The `main` of every peer.
pub(crate) fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        eprintln!("which workload? --list shows them");
        return ExitCode::FAILURE;
    };
    if name == "--list" {
        for w in ALL {
            let any = (w.agreement == Agreement::AnyThreads) as u8;
            let default = w.by_default as u8;
            println!("{}\t{}\t{any}\t{default}\t{}", w.name, w.group.name(), w.about);
        }
        return ExitCode::SUCCESS;
    }
    let outcome = Params::parse(arguments).and_then(|params| run(&name, &params));
    match outcome {
        Ok(outcome) => {
            let peak = common::peak_kib().unwrap_or(0);
            let Outcome { operations, checksum, elapsed } = outcome;
            let seconds = elapsed.as_secs_f64();
            println!(
                "operations={operations} checksum={checksum:016x} seconds={seconds:.9} peak_kib={peak}"
            );
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("{name}: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the workload of that name.
pub(crate) fn run(name: &str, params: &Params) -> Result<Outcome, String> {
    let workload = ALL.iter().find(|w| w.name == name).ok_or("there is no such workload")?;
    (workload.run)(params)
}
