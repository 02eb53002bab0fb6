//! Runs a group of loads under criterion: one criterion group for each load, and in it the
//! allocators, so that criterion draws them together.

use std::time::{Duration, Instant};

use criterion::Criterion;

use super::loads;

/// Measures the group `name`; a round of it works on `elements` blocks.
pub(crate) fn run(name: &str) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    for (load, run) in loads::group(name) {
        let mut group = criterion.benchmark_group(format!("{name}/{load}"));
        for (which, allocator) in loads::NAMES.into_iter().enumerate() {
            group.bench_function(allocator, |bencher| {
                bencher.iter_custom(|rounds| {
                    let start = Instant::now();
                    run(which, rounds);
                    start.elapsed()
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
