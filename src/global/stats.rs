//! How much the heap uses, on request and when the program ends.
#![allow(unsafe_code)] // a function in .fini_array

use super::heap::HEAP;
use crate::os;
use crate::sync::atomic::Ordering::Relaxed;

/// How much a process's heap uses, in bytes unless it says otherwise.
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
            stats.large += part.heap.bytes_in_use().saturating_sub(slabs);
            stats.refused_frees += part.heap.source().refused_frees.load(Relaxed);
        }
        stats
    }
    /// Bytes in slabs, runs and large blocks.
    pub fn in_use(&self) -> usize {
        self.slabs + self.large
    }
}

/// Runs when the program ends. Not by `atexit`, whose registration may allocate.
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".fini_array"))]
static AT_EXIT: extern "C" fn() = {
    extern "C" fn at_exit() {
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
    at_exit
};
