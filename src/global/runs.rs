//! The runs that a thread keeps: blocks of more than a slab's, ready for reuse without a look at the heap.
//!
//! Part of a thread cache's [`Body`](super::cache::Body), which starts as zeros.

use crate::heap::process::MAX_RUN;

/// Runs of one length that a cache keeps.
const RUNS_KEPT: usize = 8;
/// The longest run that a cache keeps, in granules.
const RUN_LENGTHS: usize = MAX_RUN as usize;
/// Granules of runs that any thread may keep, whatever it had in use: 1 MiB.
const SPARE_RUNS: usize = 16;
/// Granules of runs that no thread keeps more of: 8 MiB.
const MOST_RUNS: usize = 128;

/// A run that a cache keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptRun {
    pub(crate) block: *mut u8,
    /// Bytes from the start that are committed.
    pub(crate) committed: usize,
}

/// Runs of one length, the one freed last at the end.
#[derive(Clone, Copy, Debug)]
struct RunBin {
    len: usize,
    runs: [KeptRun; RUNS_KEPT],
}

impl RunBin {
    /// Keeps a run; false where there is no room.
    #[inline]
    fn push(&mut self, run: KeptRun) -> bool {
        let Some(place) = self.runs.get_mut(self.len) else { return false };
        *place = run;
        self.len += 1;
        true
    }
    #[inline]
    fn last(&self) -> Option<KeptRun> {
        self.runs.get(self.len.wrapping_sub(1)).copied()
    }
    /// The last run that is aligned to `align`, a power of two.
    fn pop(&mut self, align: usize) -> Option<KeptRun> {
        let kept = self.runs.get(..self.len)?;
        let place = kept.iter().rposition(|run| run.block.addr() & (align - 1) == 0)?;
        let run = self.runs[place];
        self.runs.copy_within(place + 1..self.len, place);
        self.len -= 1;
        Some(run)
    }
}

/// The runs that a thread keeps.
///
/// What it keeps and what it has in use together never come to more than it once had in use alone
/// (but for [`SPARE_RUNS`]): keeping runs never makes a thread's peak higher. So a thread that
/// needs a length it has none of gives others back before it asks for more.
#[derive(Debug)]
pub(crate) struct RunCache {
    bins: [RunBin; RUN_LENGTHS],
    /// Granules in `bins`.
    kept: usize,
    /// Granules that the thread took and has not freed. What it frees for others counts, too, so
    /// it is a measure, no account; never below zero.
    used: usize,
    /// The most that `used` ever was.
    most_used: usize,
}

impl RunCache {
    /// Whether `kept` granules may be kept beside `used` in use.
    #[inline]
    fn may_keep(&self, kept: usize, used: usize) -> bool {
        kept <= SPARE_RUNS || (kept <= MOST_RUNS && kept + used <= self.most_used)
    }
    /// Keeps a run of `granules` that the thread frees; false where it does not fit.
    #[inline]
    pub(crate) fn keep(&mut self, granules: usize, run: KeptRun) -> bool {
        self.used = self.used.saturating_sub(granules);
        let kept = self.kept + granules;
        if !self.may_keep(kept, self.used) {
            return false;
        }
        let Some(bin) = self.bins.get_mut(granules.wrapping_sub(1)) else { return false };
        if !bin.push(run) {
            return false;
        }
        self.kept = kept;
        true
    }
    /// The last run of `granules` that was kept, which stays kept.
    #[inline]
    pub(crate) fn last(&self, granules: usize) -> Option<KeptRun> {
        self.bins.get(granules.wrapping_sub(1))?.last()
    }
    /// Takes the run that [`last`](Self::last) gave. The thread has it in use from now on.
    #[inline]
    pub(crate) fn take_last(&mut self, granules: usize) {
        if let Some(bin) = self.bins.get_mut(granules.wrapping_sub(1)) {
            bin.len -= 1;
            self.kept -= granules;
            self.note_resized(0, granules);
        }
    }
    /// The last run of `granules` that was kept and is aligned to `align`, a power of two. The
    /// thread has it in use from now on.
    pub(crate) fn take(&mut self, granules: usize, align: usize) -> Option<KeptRun> {
        let run = self.bins.get_mut(granules.wrapping_sub(1))?.pop(align)?;
        self.kept -= granules;
        self.note_resized(0, granules);
        Some(run)
    }
    /// Notes that a run in use has `now` granules, and had `before`; 0 stands for none.
    #[inline]
    pub(crate) fn note_resized(&mut self, before: usize, now: usize) {
        self.used = self.used.saturating_sub(before) + now;
        self.most_used = self.most_used.max(self.used);
    }
    /// A run that must go before the thread takes one of `granules` that it has none of: the
    /// longest, of which the next can be cut.
    pub(crate) fn take_surplus(&mut self, granules: usize) -> Option<KeptRun> {
        if self.may_keep(self.kept, self.used + granules) { None } else { self.take_longest() }
    }
    pub(crate) fn keeps_any(&self) -> bool {
        self.kept > 0
    }
    /// Keeps nothing any more; what was kept is nobody's then.
    pub(crate) fn forget(&mut self) {
        for bin in &mut self.bins {
            bin.len = 0;
        }
        (self.kept, self.used, self.most_used) = (0, 0, 0);
    }
    /// Any run that is kept.
    pub(crate) fn take_longest(&mut self) -> Option<KeptRun> {
        let longest = self.bins.iter().rposition(|bin| bin.len > 0)?;
        let run = self.bins[longest].pop(1)?;
        self.kept -= longest + 1;
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr;

    fn nothing_kept() -> RunCache {
        let none = KeptRun { block: ptr::null_mut(), committed: 0 };
        let bins = [RunBin { len: 0, runs: [none; RUNS_KEPT] }; RUN_LENGTHS];
        RunCache { bins, kept: 0, used: 0, most_used: 0 }
    }

    /// What a thread keeps and uses is no more than it once used, but for the spare.
    #[test]
    fn runs_kept_never_make_a_higher_peak() {
        let mut runs = nothing_kept();
        let run = || KeptRun { block: ptr::without_provenance_mut(1 << 21), committed: 1 << 16 };
        // Nothing was used: a spare, and no more.
        assert!((0..SPARE_RUNS / 8).all(|_| runs.keep(8, run())));
        assert!(!runs.keep(1, run()));
        assert!(runs.take_surplus(8).is_none());
        // Of 40 that were used at once, as many may be kept as are free.
        runs.note_resized(0, 40);
        let kept = [(); 5].map(|()| runs.keep(8, run()));
        assert_eq!(kept, [false, false, true, true, true]);
        assert_eq!((runs.kept, runs.used), (40, 0));
        assert!(!runs.keep(1, run()));
        // Taken again: the peak stays.
        assert!(runs.take(8, 1).is_some() && runs.take(7, 1).is_none());
        assert_eq!((runs.kept, runs.used, runs.most_used), (32, 8, 40));
        // A length there is none of makes others go, until all together are within the peak.
        while runs.take_surplus(7).is_some() {}
        assert_eq!((runs.kept, runs.used), (24, 8));
        assert_eq!(runs.take_longest().map(|run| run.committed), Some(1 << 16));
    }

    #[test]
    fn the_last_run_that_is_aligned_goes_first() {
        let mut runs = nothing_kept();
        let run =
            |at: usize| KeptRun { block: ptr::without_provenance_mut(at << 16), committed: 1 };
        assert!([4, 8, 5, 12, 7].into_iter().all(|at| runs.keep(1, run(at))));
        let mut take = |align| runs.take(1, align).map(|run| run.block.addr() >> 16);
        assert_eq!(take(1 << 18), Some(12));
        assert_eq!(take(1), Some(7));
        assert_eq!(take(1 << 19), Some(8));
        assert_eq!((take(1 << 18), take(1 << 18)), (Some(4), None));
        assert_eq!((take(8), take(8)), (Some(5), None));
        assert_eq!((runs.kept, runs.used, runs.most_used), (0, 5, 5));
    }
}
