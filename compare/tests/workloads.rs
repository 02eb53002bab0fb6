//! Every workload at a tiny size: it ends, and comes to the same checksum for any number of threads
//! and with every allocator that needs no building.

#[allow(dead_code)] // its `main` is for the peers
#[path = "../workloads/mod.rs"]
mod workloads;

use std::path::Path;
use std::process::Command;

use workloads::{Agreement, Params, Workload};

/// Rust sources that are sure to be there.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src");

fn tiny(threads: usize) -> Params {
    let corpus = Some(Path::new(CORPUS).to_path_buf());
    Params { threads, scale: 0.002, seed: 5, corpus, corpus_mb: 50.0 }
}

fn checksum(workload: &Workload, threads: usize) -> u64 {
    let outcome = (workload.run)(&tiny(threads)).expect(workload.name);
    assert!(outcome.operations > 0, "{}", workload.name);
    outcome.checksum
}

#[test]
fn checksums_do_not_depend_on_threads() {
    for workload in workloads::ALL {
        let one = checksum(workload, 1);
        for threads in [2, 3, 7] {
            let many = checksum(workload, threads);
            if workload.agreement == Agreement::AnyThreads {
                assert_eq!(one, many, "{} with {threads} threads", workload.name);
            } else {
                assert_eq!(many, checksum(workload, threads), "{} twice", workload.name);
            }
        }
    }
}

#[test]
fn checksums_do_not_depend_on_the_allocator() {
    for workload in workloads::ALL {
        for threads in [1, 4] {
            let expected = format!("checksum={:016x}", checksum(workload, threads));
            for binary in [env!("CARGO_BIN_EXE_peer-system"), env!("CARGO_BIN_EXE_peer-hshm")] {
                let output = Command::new(binary)
                    .args([workload.name, &format!("threads={threads}"), "scale=0.002", "seed=5"])
                    .args([format!("corpus={CORPUS}"), "corpus_mb=50".into()])
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success() && said.contains(&expected),
                    "{} on {binary}, {threads} threads: {} {said} {errors}, not {expected}",
                    workload.name,
                    output.status,
                );
            }
        }
    }
}

#[test]
fn more_threads_than_the_limit_are_refused() {
    let parse = |text: &str| Params::parse([text.to_string()].into_iter());
    assert!(parse("threads=64").is_ok());
    for bad in ["threads=65", "threads=0", "scale=0", "scale=-1", "scale=nan", "colour=1", "x"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert!(workloads::run("no-such", &tiny(1)).is_err());
}
