//! Charts as SVG files.
//!
//! - `<name>-summary.svg`, `<name>-<group>.svg`: a row per group or workload, a dot per allocator,
//!   placed by its time (or memory) over the baseline's, on a logarithmic axis; a line from the
//!   least to the largest ratio of a round.
//! - `<name>-threads-<workload>.svg`: cost per operation over the number of threads, where there
//!   was more than one.
//! - `<name>-heap.svg`: cost per operation over the size of the live heap.

use std::path::Path;

use plotters::prelude::*;

use crate::case::{Case, Cell};
use crate::report::Report;
use crate::stats::Spread;

/// Draws what there is something to draw of.
pub(crate) fn draw_all(report: &Report, folder: &Path, name: &str) -> Result<(), String> {
    let file = |what: &str| folder.join(format!("{name}-{what}.svg"));
    let peers: Vec<&str> = report.peers.iter().map(|peer| peer.name.as_str()).collect();
    let base = &report.baseline;

    let groups = report.groups();
    let mut rows = Vec::new();
    for (which, group) in groups.iter().enumerate() {
        let means = |of: &dyn Fn(usize) -> Option<f64>| {
            (0..peers.len()).map(|p| of(p).map(Spread::exact)).collect()
        };
        rows.push(Row {
            label: format!("{group}: time"),
            dots: means(&|p| report.peers[p].groups[which].time),
        });
        rows.push(Row {
            label: format!("{group}: memory"),
            dots: means(&|p| report.peers[p].groups[which].memory),
        });
    }
    dots(
        &file("summary"),
        &format!("Geometric means, {base} = 1 (left is better)"),
        &peers,
        &rows,
    )?;

    type Figure = fn(&Cell) -> Option<Spread>;
    let figures: [(&str, Figure); 2] =
        [("time", |cell| cell.time_to_baseline), ("memory", |cell| cell.memory_to_baseline)];
    for group in &groups {
        for (what, figure) in figures {
            let cases = report.cases.iter().filter(|case| case.group == *group);
            let rows: Vec<Row> = cases
                .map(|case| Row {
                    label: format!("{}, {} thr.", case.workload, case.threads),
                    dots: case.cells.iter().map(figure).collect(),
                })
                .collect();
            let title = format!("{group}: {what}, {base} = 1 (left is better)");
            dots(&file(&format!("{group}-{what}")), &title, &peers, &rows)?;
        }
    }

    let mut workloads: Vec<&str> = report.cases.iter().map(|case| case.workload.as_str()).collect();
    workloads.dedup();
    for workload in workloads {
        let cases: Vec<&Case> = report.cases.iter().filter(|c| c.workload == workload).collect();
        if cases.len() > 1 {
            let places: Vec<String> = cases.iter().map(|case| case.threads.to_string()).collect();
            let title = format!("{workload}: ns per operation by threads");
            lines(&file(&format!("threads-{workload}")), &title, &peers, &places, &cases)?;
        }
    }
    let live: Vec<&Case> = report.cases.iter().filter(|case| case.group == "live").collect();
    if live.len() > 1 && live.iter().all(|case| case.threads == live[0].threads) {
        let places: Vec<String> =
            live.iter().map(|case| case.workload.replace("live-", "")).collect();
        lines(&file("heap"), "ns per replacement by live heap", &peers, &places, &live)?;
    }
    Ok(())
}

impl Spread {
    fn exact(value: f64) -> Spread {
        Spread { median: value, min: value, max: value, q1: value, q3: value }
    }
}

struct Row {
    label: String,
    /// By peer.
    dots: Vec<Option<Spread>>,
}

const LEGEND: i32 = 150;

/// Colours that stay apart; hshm, which comes first, is black.
fn colour(peer: usize) -> RGBColor {
    const COLOURS: [RGBColor; 13] = [
        RGBColor(0, 0, 0),
        RGBColor(127, 127, 127),
        RGBColor(214, 39, 40),
        RGBColor(31, 119, 180),
        RGBColor(150, 200, 240),
        RGBColor(44, 160, 44),
        RGBColor(255, 127, 14),
        RGBColor(148, 103, 189),
        RGBColor(23, 190, 207),
        RGBColor(255, 187, 120),
        RGBColor(140, 86, 75),
        RGBColor(227, 119, 194),
        RGBColor(188, 189, 34),
    ];
    COLOURS[peer % COLOURS.len()]
}

type Drawn = Result<(), String>;

fn dots(path: &Path, title: &str, peers: &[&str], rows: &[Row]) -> Drawn {
    try_dots(path, title, peers, rows).map_err(|error| format!("{}: {error}", path.display()))
}

fn try_dots(
    path: &Path,
    title: &str,
    peers: &[&str],
    rows: &[Row],
) -> Result<(), Box<dyn std::error::Error>> {
    let medians = || rows.iter().flat_map(|row| row.dots.iter().flatten()).map(|dot| dot.median);
    if medians().next().is_none() {
        return Ok(());
    }
    let low = medians().fold(0.8, f64::min) * 0.9;
    let high = medians().fold(1.25, f64::max) * 1.1;
    let count = rows.len();
    let height = 90 + (26 * count as u32).max(18 * peers.len() as u32);
    let root = SVGBackend::new(path, (900, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plot, side) = root.split_horizontally(900 - LEGEND);
    let mut chart = ChartBuilder::on(&plot)
        .caption(title, ("sans-serif", 17))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(170)
        .build_cartesian_2d(low.log2()..high.log2(), 0.0..count as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_label_formatter(&|x| format!("{:.2}", x.exp2()))
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series([PathElement::new(vec![(0.0, 0.0), (0.0, count as f64)], BLACK)])?;
    for (number, row) in rows.iter().enumerate() {
        let y = (count - number) as f64 - 0.5;
        let (_, pixel) = chart.backend_coord(&(0.0, y));
        plot.draw(&Text::new(row.label.clone(), (8, pixel - 7), ("sans-serif", 13)))?;
        for (peer, dot) in row.dots.iter().enumerate() {
            let Some(dot) = dot else { continue };
            // A little apart, so that equals do not hide each other.
            let y = y + 0.6 * (0.5 - (peer as f64 + 0.5) / peers.len() as f64);
            let colour = colour(peer);
            let ends = vec![(dot.min.max(low).log2(), y), (dot.max.min(high).log2(), y)];
            chart.draw_series([PathElement::new(ends, colour.mix(0.5))])?;
            chart.draw_series([Circle::new((dot.median.log2(), y), 3, colour.filled())])?;
        }
    }
    legend(&side, peers)?;
    root.present()?;
    Ok(())
}

fn lines(path: &Path, title: &str, peers: &[&str], places: &[String], cases: &[&Case]) -> Drawn {
    let drawn = try_lines(path, title, peers, places, cases);
    drawn.map_err(|error| format!("{}: {error}", path.display()))
}

fn try_lines(
    path: &Path,
    title: &str,
    peers: &[&str],
    places: &[String],
    cases: &[&Case],
) -> Result<(), Box<dyn std::error::Error>> {
    let cost = |case: &Case, peer: usize| {
        case.cells[peer].time.map(|time| time.median * 1e9 / case.operations.max(1) as f64)
    };
    let all = || cases.iter().flat_map(|case| (0..peers.len()).filter_map(|peer| cost(case, peer)));
    let (low, high) = (all().fold(f64::INFINITY, f64::min) * 0.8, all().fold(0.0, f64::max) * 1.25);
    if !(low > 0.0 && low < high) {
        return Ok(());
    }
    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plot, side) = root.split_horizontally(900 - LEGEND);
    let mut chart = ChartBuilder::on(&plot)
        .caption(title, ("sans-serif", 17))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..(cases.len() - 1) as f64, (low..high).log_scale())?;
    let place = |x: &f64| match places.get(x.round() as usize) {
        Some(place) if x.fract() == 0.0 => place.clone(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .x_labels(cases.len())
        .x_label_formatter(&place)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for peer in 0..peers.len() {
        let points: Vec<(f64, f64)> = cases
            .iter()
            .enumerate()
            .filter_map(|(x, case)| Some((x as f64, cost(case, peer)?)))
            .collect();
        chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour(peer).filled())))?;
        chart.draw_series(LineSeries::new(points, colour(peer).stroke_width(2)))?;
    }
    legend(&side, peers)?;
    root.present()?;
    Ok(())
}

fn legend<B: DrawingBackend>(
    side: &DrawingArea<B, plotters::coord::Shift>,
    peers: &[&str],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    for (number, peer) in peers.iter().enumerate() {
        let y = 44 + 17 * number as i32;
        side.draw(&Circle::new((10, y), 4, colour(number).filled()))?;
        side.draw(&Text::new(peer.to_string(), (22, y - 7), ("sans-serif", 13)))?;
    }
    Ok(())
}
