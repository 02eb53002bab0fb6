//! Tables for a terminal.

use crate::case::{Case, Cell};
use crate::report::{GroupMeans, Report};
use crate::stats::Spread;

/// Columns as wide as they have to be; the first `left` of them to the left, the rest to the right.
pub(crate) fn aligned(header: &[&str], rows: Vec<Vec<String>>, left: usize) -> String {
    let header: Vec<String> = header.iter().map(|title| title.to_string()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&header]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in [&header].into_iter().chain(&rows) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The results of one workload, best first.
pub(crate) fn case(case: &Case, baseline: &str) -> String {
    let to_base = format!("x {baseline}");
    let header = [
        "", "time", "min..max", "ns/op", &to_base, "min..max", "x best", "cpu s", "peak MiB",
        &to_base,
    ];
    let mut cells: Vec<&Cell> = case.cells.iter().filter(|cell| !cell.runs.is_empty()).collect();
    cells.sort_by(|a, b| {
        let time = |cell: &Cell| cell.time.map_or(f64::INFINITY, |time| time.median);
        time(a).total_cmp(&time(b))
    });
    let row = |cell: &&Cell| {
        let Some(time) = cell.time else { return vec![cell.peer.clone(), "-".into()] };
        vec![
            cell.peer.clone(),
            milliseconds(time.median),
            format!("{}..{}", short(time.min * 1e3), short(time.max * 1e3)),
            short(time.median * 1e9 / case.operations.max(1) as f64),
            ratio(cell.time_to_baseline),
            range(cell.time_to_baseline),
            cell.time_to_best.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            cell.cpu.map_or("-".into(), |cpu| format!("{:.2}", cpu.median)),
            cell.peak_kib.map_or("-".into(), |kib| format!("{:.1}", kib.median / 1024.0)),
            ratio(cell.memory_to_baseline),
        ]
    };
    let title = format!(
        "{} ({}), {} {}{}, {} operations: {}\n",
        case.workload,
        case.group,
        case.threads,
        if case.group == "sharing" { "process" } else { "thread" },
        match (case.threads, case.group.as_str()) {
            (1, _) => "",
            (_, "sharing") => "es",
            _ => "s",
        },
        case.operations,
        case.about,
    );
    let failed: String = case
        .cells
        .iter()
        .filter(|cell| !cell.failures.is_empty())
        .map(|c| {
            format!(
                "FAILED {} of {}: {}: {}\n",
                c.failures.len(),
                c.runs.len(),
                c.peer,
                c.failures[0]
            )
        })
        .collect();
    title + &aligned(&header, cells.iter().map(row).collect(), 1) + &failed
}

/// Means over groups for each allocator.
pub(crate) fn summary(report: &Report) -> String {
    let groups = report.groups();
    let mut header = vec![String::new()];
    for group in &groups {
        header.push(format!("{group} time"));
        header.push("memory".into());
    }
    header.push("failed".into());
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows = report.peers.iter().map(|peer| {
        let mut row = vec![peer.name.clone()];
        for means in &peer.groups {
            row.push(mean(means.time) + &partly(means));
            row.push(mean(means.memory));
        }
        row.push(peer.failures.to_string());
        row
    });
    format!(
        "Geometric means of ratios to {} (above 1: slower, larger). {} rounds, scale {}.\n{}, {} cores, Linux {}\n{}",
        report.baseline,
        report.rounds,
        report.scale,
        report.machine.processor,
        report.machine.cores,
        report.machine.kernel,
        aligned(&header, rows.collect(), 1),
    )
}

/// Marks a mean that leaves out cases without a result.
fn partly(means: &GroupMeans) -> String {
    if means.counted == means.cases || means.counted == 0 {
        String::new()
    } else {
        format!(" ({} of {})", means.counted, means.cases)
    }
}

fn mean(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.2}"))
}

fn ratio(spread: Option<Spread>) -> String {
    mean(spread.map(|spread| spread.median))
}

fn range(spread: Option<Spread>) -> String {
    spread.map_or(String::new(), |spread| format!("{:.2}..{:.2}", spread.min, spread.max))
}

fn milliseconds(seconds: f64) -> String {
    format!("{} ms", short(seconds * 1e3))
}

/// Three digits, as far as there are decimals.
fn short(value: f64) -> String {
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "1.0".into()], vec!["long".into(), "100.0".into()]];
        assert_eq!(aligned(&["", "time"], rows, 1), "       time\na       1.0\nlong  100.0\n");
    }

    #[test]
    fn three_digits() {
        assert_eq!([0.1234, 1.234, 12.34, 123.4].map(short), ["0.12", "1.23", "12.3", "123"]);
    }
}
