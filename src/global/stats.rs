//! How much the heap uses, on request and when the program ends.

use super::heap::HEAP;
use crate::os;
use crate::sync::atomic::Ordering::Relaxed;

/// How much a process's heap uses, in bytes unless it says otherwise. Of a heap that was joined: how
/// much of it is this process's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeapStats {
    /// How many regions there are.
    pub regions: usize,
    /// Address space of all regions.
    pub reserved: usize,
    /// Chunks that the heap took from its regions.
    pub owned: usize,
    /// Granules of slabs, free blocks included.
    pub slabs: usize,
    /// Runs and large blocks.
    pub large: usize,
    /// Frees that were refused: double, foreign, interior (a count).
    pub refused_frees: u64,
}

impl HeapStats {
    pub(super) fn of_this_process() -> HeapStats {
        let mut stats = HeapStats::default();
        for part in HEAP.parts() {
            let process = part.heap.process(part.process);
            let slabs = process.in_slabs.load(Relaxed) as usize;
            stats.regions += 1;
            stats.reserved += part.heap.region().len();
            stats.owned += process.owns() as usize;
            stats.slabs += slabs;
            stats.large += match HEAP.is_joined() {
                // The others' are not this process's.
                true => process.in_runs.load(Relaxed) + process.large.load(Relaxed),
                false => part.heap.bytes_in_use().saturating_sub(slabs) as u64,
            } as usize;
            stats.refused_frees += part.heap.source().refused_frees.load(Relaxed);
        }
        stats
    }
    /// Bytes in slabs, runs and large blocks.
    pub fn in_use(&self) -> usize {
        self.slabs + self.large
    }
}

/// Prints a line, where that was asked for.
pub(super) fn print_at_exit() {
    if HEAP.count() == 0 || !HEAP.config().stats_at_exit {
        return;
    }
    let stats = HeapStats::of_this_process();
    let mut line = os::Name::<256>::new();
    let numbers = [
        (&b"hshm: regions "[..], stats.regions),
        (b", reserved ", stats.reserved),
        (b", owned ", stats.owned),
        (b", slabs ", stats.slabs),
        (b", large ", stats.large),
        (b", refused frees ", stats.refused_frees as usize),
    ];
    for (label, number) in numbers {
        if line.push(label).and_then(|()| line.push_number(number as u64)).is_err() {
            break;
        }
    }
    let _ = line.push(b"\n");
    os::write_stderr(line.as_bytes());
}
