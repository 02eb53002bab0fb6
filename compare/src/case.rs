//! One workload at one number of threads, with every allocator.

use serde::Serialize;

use crate::child::{Failure, Run};
use crate::peers::{Peer, Workload};
use crate::stats::{Spread, most_frequent};

/// The runs of a workload, and what follows from them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Case {
    pub(crate) workload: String,
    pub(crate) group: String,
    pub(crate) about: String,
    pub(crate) threads: usize,
    pub(crate) operations: u64,
    pub(crate) cells: Vec<Cell>,
}

/// One allocator's part of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Cell {
    pub(crate) peer: String,
    /// By round; `None` where it failed.
    pub(crate) runs: Vec<Option<Run>>,
    pub(crate) failures: Vec<String>,
    /// Seconds: of the measured part, or of the process where that is what counts.
    pub(crate) time: Option<Spread>,
    pub(crate) cpu: Option<Spread>,
    pub(crate) peak_kib: Option<Spread>,
    /// Its time over the baseline's of the same round: above 1 is slower.
    pub(crate) time_to_baseline: Option<Spread>,
    /// Its median time over the best median.
    pub(crate) time_to_best: Option<f64>,
    /// Its peak memory over the baseline's of the same round.
    pub(crate) memory_to_baseline: Option<Spread>,
}

impl Case {
    pub(crate) fn new(workload: &Workload, threads: usize, peers: &[Peer]) -> Case {
        let cell = |peer: &Peer| Cell { peer: peer.name.clone(), ..Cell::default() };
        Case {
            workload: workload.name.clone(),
            group: workload.group.clone(),
            about: workload.about.clone(),
            threads,
            operations: 0,
            cells: peers.iter().map(cell).collect(),
        }
    }

    /// Takes in the result of a round for the peer at `which`.
    pub(crate) fn add(&mut self, round: usize, which: usize, result: Result<Run, Failure>) {
        let cell = &mut self.cells[which];
        cell.runs.resize(cell.runs.len().max(round + 1), None);
        match result {
            Ok(run) => cell.runs[round] = Some(run),
            Err(failure) => cell.failures.push(failure.to_string()),
        }
    }

    /// Works out medians and ratios.
    pub(crate) fn finish(&mut self, baseline: &str) {
        self.refuse_other_checksums();
        let from_start_to_end = self.group == "floor";
        let time = |run: &Run| if from_start_to_end { run.wall } else { run.seconds };
        let of = |cell: &Cell, figure: &dyn Fn(&Run) -> f64| {
            Spread::of(cell.runs.iter().flatten().map(figure))
        };
        for cell in &mut self.cells {
            cell.time = of(cell, &time);
            cell.cpu = of(cell, &|run| run.user + run.system);
            cell.peak_kib = of(cell, &|run| run.peak_kib as f64);
        }
        let medians = self.cells.iter().filter_map(|cell| Some(cell.time?.median));
        let best = medians.min_by(f64::total_cmp);
        let base = self.cells.iter().find(|cell| cell.peer == baseline).map(|c| c.runs.clone());
        for cell in &mut self.cells {
            cell.time_to_best = cell
                .time
                .zip(best)
                .map(|(time, best)| time.median / best)
                .filter(|r| r.is_finite());
            let Some(base) = &base else { continue };
            cell.time_to_baseline = ratios(&cell.runs, base, time);
            cell.memory_to_baseline = ratios(&cell.runs, base, |run| run.peak_kib as f64);
        }
    }

    /// A program that read back something else than the others is not a result, however fast.
    fn refuse_other_checksums(&mut self) {
        let runs = self.cells.iter().flat_map(|cell| cell.runs.iter().flatten());
        let Some((checksum, operations)) =
            most_frequent(runs.map(|run| (run.checksum, run.operations)))
        else {
            return;
        };
        self.operations = operations;
        for cell in &mut self.cells {
            for slot in &mut cell.runs {
                if let Some(run) = slot
                    && (run.checksum, run.operations) != (checksum, operations)
                {
                    cell.failures.push(Failure::Checksum(run.checksum).to_string());
                    *slot = None;
                }
            }
        }
    }
}

/// Round by round, so that what was slow for both cancels out.
fn ratios(
    runs: &[Option<Run>],
    base: &[Option<Run>],
    figure: impl Fn(&Run) -> f64,
) -> Option<Spread> {
    let pairs = runs.iter().zip(base).filter_map(|(run, base)| run.as_ref().zip(base.as_ref()));
    let ratios = pairs.map(|(run, base)| figure(run) / figure(base));
    Spread::of(ratios.filter(|ratio| ratio.is_finite() && *ratio > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: f64, checksum: u64) -> Run {
        Run {
            seconds,
            wall: 10.0 * seconds,
            user: 1.0,
            system: 0.5,
            peak_kib: 100,
            maxrss_kib: 200,
            operations: 10,
            checksum,
        }
    }

    fn case(group: &str, cells: &[(&str, &[f64])]) -> Case {
        let workload = Workload {
            name: "w".into(),
            group: group.into(),
            about: String::new(),
            by_default: true,
            program: None,
        };
        let peer = |name: &str| Peer {
            name: name.into(),
            how: String::new(),
            executable: "/".into(),
            environment: Vec::new(),
        };
        let peers: Vec<_> = cells.iter().map(|(name, _)| peer(name)).collect();
        let mut case = Case::new(&workload, 1, &peers);
        for (which, (_, times)) in cells.iter().enumerate() {
            for (round, seconds) in times.iter().enumerate() {
                case.add(round, which, Ok(run(*seconds, 7)));
            }
        }
        case
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine halves its speed in the second round; the ratio does not care.
        let mut case = case("real", &[("a", &[1.0, 2.0, 1.0]), ("b", &[3.0, 6.0, 3.0])]);
        case.finish("a");
        let ratio = case.cells[1].time_to_baseline.unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (3.0, 3.0, 3.0));
        assert_eq!(case.cells[1].time_to_best, Some(3.0));
        assert_eq!(case.cells[0].time_to_baseline.unwrap().median, 1.0);
        assert_eq!((case.cells[0].cpu.unwrap().median, case.operations), (1.5, 10));
    }

    #[test]
    fn a_wrong_checksum_is_a_failure() {
        let mut case = case("real", &[("a", &[1.0, 1.0]), ("b", &[0.1])]);
        case.add(1, 1, Ok(run(0.1, 8)));
        case.finish("a");
        assert_eq!(case.cells[1].failures.len(), 1);
        assert_eq!(case.cells[1].runs.iter().flatten().count(), 1);
    }

    #[test]
    fn a_peer_that_always_fails_has_no_figures() {
        let mut case = case("real", &[("a", &[1.0]), ("b", &[])]);
        case.add(0, 1, Err(Failure::Timeout(9)));
        case.finish("a");
        assert!(case.cells[1].time.is_none() && case.cells[1].time_to_baseline.is_none());
        assert_eq!(case.cells[1].failures, ["timeout after 9 s"]);
    }

    #[test]
    fn the_floor_counts_the_whole_process() {
        let mut case = case("floor", &[("a", &[1.0])]);
        case.finish("a");
        assert_eq!(case.cells[0].time.unwrap().median, 10.0);
    }
}
