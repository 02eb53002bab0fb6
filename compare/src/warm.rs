//! Free memory that costs every run the same.
//!
//! A hypervisor may take memory back that its guest does not use (free page reporting, balloons), seconds after it
//! was freed; the next touch then costs many times what the guest itself does for it. Whoever runs after a program
//! with less memory pays, whoever runs after one with more does not. So before each run a little more memory than the
//! load has needed so far is touched and freed, until that is nearly as fast as it ever was.
#![allow(unsafe_code)] // memory straight from the system

use std::ptr::null_mut;
use std::time::Instant;

use crate::machine;

/// Memory of loads of which nothing is known yet.
const FIRST: usize = 64 << 20;
/// Passes after which what is slow stays so.
const MOST: u32 = 4;

/// What was touched before the runs of one load, and how fast it was.
#[derive(Debug)]
pub(crate) struct Warmth {
    bytes: usize,
    /// Bytes a second.
    fastest: f64,
    most: usize,
}

impl Warmth {
    pub(crate) fn new() -> Warmth {
        // The rest is for what runs meanwhile.
        let most = machine::available_memory() / 2;
        Warmth { bytes: FIRST.min(most), fastest: 0.0, most }
    }

    /// Of another load nothing is known.
    pub(crate) fn forget_load(&mut self) {
        self.bytes = FIRST.min(self.most);
    }

    /// Touches and frees memory.
    pub(crate) fn restore(&mut self) {
        for _ in 0..MOST {
            let Some(speed) = touch(self.bytes) else { return };
            let is_warm = speed * 1.5 > self.fastest && self.fastest > 0.0;
            self.fastest = self.fastest.max(speed);
            if is_warm {
                return;
            }
        }
    }

    /// Whether a run with that peak found all of its memory warm. If not, the next will.
    pub(crate) fn was_enough(&mut self, peak_kib: u64) -> bool {
        let peak = usize::try_from(peak_kib * 1024).unwrap_or(usize::MAX);
        let before = self.bytes;
        self.bytes = before.max(peak.saturating_add(peak / 4).min(self.most));
        before >= peak || self.bytes == before
    }
}

/// Bytes a second; nothing where the system has none.
fn touch(bytes: usize) -> Option<f64> {
    const PAGE: usize = 4096;
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let bytes = bytes.max(PAGE);
    let start = Instant::now();
    // SAFETY: a new mapping, at an address of the system's choice.
    let at = unsafe { libc::mmap(null_mut(), bytes, access, kind, -1, 0) };
    if at == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: of the mapping made above. Its failure does no harm.
    unsafe { libc::madvise(at, bytes, libc::MADV_HUGEPAGE) };
    for offset in (0..bytes).step_by(PAGE) {
        // SAFETY: within that mapping, which nobody else knows.
        unsafe { at.cast::<u8>().add(offset).write_volatile(1) };
    }
    let seconds = start.elapsed().as_secs_f64();
    // SAFETY: the whole of that mapping, of which nothing is used any more.
    unsafe { libc::munmap(at, bytes) };
    Some(bytes as f64 / seconds.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_needed_more_runs_again() {
        let mut warmth = Warmth { bytes: 1 << 20, fastest: 0.0, most: 16 << 20 };
        warmth.restore();
        assert!(warmth.fastest > 0.0);
        assert!(warmth.was_enough(1024));
        assert!(!warmth.was_enough(8 << 10));
        assert_eq!(warmth.bytes, 10 << 20);
        assert!(warmth.was_enough(8 << 10));
        assert!(!warmth.was_enough(64 << 10), "more than there was");
        assert!(warmth.was_enough(64 << 10), "there is no more");
        warmth.forget_load();
        assert_eq!(warmth.bytes, 16 << 20);
    }
}
