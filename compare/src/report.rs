//! Everything that was measured, in one JSON file, and the means over groups.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::Options;
use crate::case::{Case, Cell};
use crate::machine::Machine;
use crate::peers::{LeftOut, Peer};
use crate::stats::geometric_mean;

/// The results of one call of the harness.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) command: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) scale: f64,
    pub(crate) baseline: String,
    pub(crate) peers: Vec<PeerMeans>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) cases: Vec<Case>,
}

/// A peer over all cases.
#[derive(Debug, Serialize)]
pub(crate) struct PeerMeans {
    pub(crate) name: String,
    pub(crate) how: String,
    pub(crate) groups: Vec<GroupMeans>,
    /// Runs without a result.
    pub(crate) failures: usize,
}

/// Geometric means over a group's cases: of medians of ratios to the baseline.
#[derive(Debug, Serialize)]
pub(crate) struct GroupMeans {
    pub(crate) group: String,
    pub(crate) time: Option<f64>,
    pub(crate) memory: Option<f64>,
    /// How many of the group's cases these go over.
    pub(crate) counted: usize,
    pub(crate) cases: usize,
}

impl Report {
    pub(crate) fn new(
        options: &Options,
        machine: Machine,
        peers: &[Peer],
        left_out: Vec<LeftOut>,
        cases: Vec<Case>,
    ) -> Report {
        let groups = groups(&cases);
        let means = |(which, peer): (usize, &Peer)| PeerMeans {
            name: peer.name.clone(),
            how: peer.how.clone(),
            groups: groups.iter().map(|group| GroupMeans::of(group, which, &cases)).collect(),
            failures: cases.iter().map(|case| case.cells[which].failures.len()).sum(),
        };
        Report {
            machine,
            command: std::env::args().skip(1).collect(),
            rounds: options.rounds,
            scale: options.scale,
            baseline: options.baseline.clone(),
            peers: peers.iter().enumerate().map(means).collect(),
            left_out,
            cases,
        }
    }

    /// Runs without a result, over all peers.
    pub(crate) fn failures(&self) -> usize {
        self.peers.iter().map(|peer| peer.failures).sum()
    }

    /// The groups that were measured.
    pub(crate) fn groups(&self) -> Vec<&str> {
        groups(&self.cases)
    }

    pub(crate) fn write(&self, folder: &Path, name: &str) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join(format!("{name}.json")), serde_json::to_string_pretty(self)?)
    }
}

fn groups(cases: &[Case]) -> Vec<&str> {
    let mut groups: Vec<&str> = cases.iter().map(|case| case.group.as_str()).collect();
    groups.dedup();
    groups
}

impl GroupMeans {
    fn of(group: &str, which: usize, cases: &[Case]) -> GroupMeans {
        let cells: Vec<&Cell> = cases
            .iter()
            .filter(|case| case.group == group)
            .map(|case| &case.cells[which])
            .collect();
        let times: Vec<f64> =
            cells.iter().filter_map(|c| Some(c.time_to_baseline?.median)).collect();
        let memory = cells.iter().filter_map(|cell| Some(cell.memory_to_baseline?.median));
        GroupMeans {
            group: group.into(),
            counted: times.len(),
            time: geometric_mean(times),
            memory: geometric_mean(memory),
            cases: cells.len(),
        }
    }
}
