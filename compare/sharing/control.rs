//! What the processes of a load share besides the heap: a barrier, results, rings.

use std::sync::atomic::{AtomicU64, Ordering};

/// The most processes.
pub(crate) const MOST: usize = 64;
/// Places of a ring: a power of two.
const RING: usize = 256;

#[repr(C, align(64))]
struct Line(AtomicU64);

/// From each process to the next one: blocks on their way, with their sizes.
#[repr(C)]
pub(crate) struct Ring {
    pushed: Line,
    popped: Line,
    places: [[AtomicU64; 2]; RING],
}

impl Ring {
    /// False when it is full. One process pushes, one pops.
    pub(crate) fn push(&self, block: u64, size: u64) -> bool {
        let at = self.pushed.0.load(Ordering::Relaxed);
        if at - self.popped.0.load(Ordering::Acquire) == RING as u64 {
            return false;
        }
        let place = &self.places[at as usize % RING];
        place[0].store(block, Ordering::Relaxed);
        place[1].store(size, Ordering::Relaxed);
        self.pushed.0.store(at + 1, Ordering::Release);
        true
    }
    pub(crate) fn pop(&self) -> Option<(u64, u64)> {
        let at = self.popped.0.load(Ordering::Relaxed);
        if at == self.pushed.0.load(Ordering::Acquire) {
            return None;
        }
        let place = &self.places[at as usize % RING];
        let found = (place[0].load(Ordering::Relaxed), place[1].load(Ordering::Relaxed));
        self.popped.0.store(at + 1, Ordering::Release);
        Some(found)
    }
}

#[repr(C)]
struct Result {
    /// Nanoseconds of the monotonic clock.
    began: Line,
    ended: Line,
    checksum: Line,
    /// 1 for success.
    fine: Line,
}

/// Lies in memory that all processes inherit.
#[repr(C)]
pub(crate) struct Control {
    ready: Line,
    /// For what a load has to say: offsets, stages.
    pub(crate) words: [AtomicU64; 8],
    results: [Result; MOST],
    pub(crate) rings: [Ring; MOST],
}

pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Control {
    /// Zeroed memory, shared with children.
    pub(crate) fn new() -> &'static Control {
        // SAFETY: new memory, shared, for as long as the process lives; zero is a value of all of it.
        unsafe {
            let place = libc::mmap(
                std::ptr::null_mut(),
                size_of::<Control>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(place, libc::MAP_FAILED, "no memory");
            &*place.cast::<Control>()
        }
    }

    /// Waits until `count` processes are here.
    pub(crate) fn meet(&self, count: usize) {
        self.ready.0.fetch_add(1, Ordering::AcqRel);
        while self.ready.0.load(Ordering::Acquire) < count as u64 {
            std::thread::yield_now();
        }
    }

    /// Waits for a word to be at least `value`.
    pub(crate) fn wait(&self, word: usize, value: u64) -> u64 {
        loop {
            let seen = self.words[word].load(Ordering::Acquire);
            if seen >= value {
                return seen;
            }
            std::thread::yield_now();
        }
    }

    /// Forks `count` processes that do `work` (which gets the process's number, and calls
    /// [`begin`](Self::begin)), and waits for them. The seconds from the first beginning to the last
    /// end, and the sum of what they return.
    pub(crate) fn run(
        &self,
        count: usize,
        work: impl Fn(usize) -> std::result::Result<u64, String>,
    ) -> std::result::Result<(f64, u64), String> {
        let pids: Vec<_> = (0..count).map(|number| fork(|| self.child(number, &work))).collect();
        for pid in pids {
            // SAFETY: our own child.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        let results = &self.results[..count];
        let all = |line: fn(&Result) -> &Line| {
            results.iter().map(move |result| line(result).0.load(Ordering::Acquire))
        };
        if all(|result| &result.fine).any(|fine| fine != 1) {
            return Err("a process failed".into());
        }
        let began = all(|result| &result.began).min().unwrap_or(0);
        let ended = all(|result| &result.ended).max().unwrap_or(0);
        let checksum = all(|result| &result.checksum).fold(0, u64::wrapping_add);
        Ok((ended.saturating_sub(began) as f64 / 1e9, checksum))
    }

    fn child(&self, number: usize, work: impl Fn(usize) -> std::result::Result<u64, String>) {
        match work(number) {
            Ok(checksum) => {
                let result = &self.results[number];
                if result.ended.0.load(Ordering::Relaxed) == 0 {
                    self.end(number);
                }
                result.checksum.0.store(checksum, Ordering::Release);
                result.fine.0.store(1, Ordering::Release);
            }
            Err(reason) => eprintln!("process {number}: {reason}"),
        }
    }

    /// The part that counts begins for this process.
    pub(crate) fn begin(&self, number: usize) {
        self.results[number].began.0.store(now(), Ordering::Release);
    }

    /// It ends; where this is not called, it ends with the work.
    pub(crate) fn end(&self, number: usize) {
        self.results[number].ended.0.store(now(), Ordering::Release);
    }
}

/// Forks a process that does `work` and ends.
pub(crate) fn fork(work: impl FnOnce()) -> libc::pid_t {
    // SAFETY: this program has one thread; the child ends here.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: takes numbers only. Nobody is left behind when the harness gives up.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            work();
            // SAFETY: ends the process, without what the parent registered for its own end.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}
