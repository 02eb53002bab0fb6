//! What every workload is made of: parameters, random numbers, threads, a clock.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a run is asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// Threads that share the work, 1 to [`LANES`].
    pub(crate) threads: usize,
    /// Amount of work; 1 is some tenths of a second of one core.
    pub(crate) scale: f64,
    pub(crate) seed: u64,
    /// Folder with Rust sources.
    pub(crate) corpus: Option<PathBuf>,
    /// Most bytes to take from it at scale 1, in MB.
    pub(crate) corpus_mb: f64,
}

impl Default for Params {
    fn default() -> Self {
        Params { threads: 1, scale: 1.0, seed: 1, corpus: None, corpus_mb: 5.0 }
    }
}

impl Params {
    /// From `key=value` arguments.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Params, String> {
        let mut params = Params::default();
        for argument in arguments {
            let (key, value) =
                argument.split_once('=').ok_or_else(|| format!("{argument}: not key=value"))?;
            let number = || value.parse::<f64>().map_err(|_| format!("{argument}: not a number"));
            match key {
                "threads" => params.threads = number()? as usize,
                "scale" => params.scale = number()?,
                "seed" => params.seed = number()? as u64,
                "corpus" => params.corpus = Some(value.into()),
                "corpus_mb" => params.corpus_mb = number()?,
                _ => return Err(format!("{key}: no such parameter")),
            }
        }
        if !(1..=LANES as usize).contains(&params.threads) {
            return Err(format!("threads: 1 to {LANES}"));
        }
        if !(params.scale > 0.0 && params.scale.is_finite()) {
            return Err("scale: a number above 0".into());
        }
        Ok(params)
    }
    /// `at_scale_one`, scaled; at least 1.
    pub(crate) fn count(&self, at_scale_one: u64) -> u64 {
        ((at_scale_one as f64 * self.scale) as u64).max(1)
    }
    /// The random numbers of one stream; streams are independent of each other.
    pub(crate) fn random(&self, stream: u64) -> Random {
        let mut random = Random(self.seed);
        Random(random.next() ^ stream.wrapping_mul(0xd134_2543_de82_ef95))
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) checksum: u64,
    pub(crate) elapsed: Duration,
}

/// Runs the part that counts. It returns its checksum.
pub(crate) fn timed(operations: u64, work: impl FnOnce() -> u64) -> Outcome {
    let start = Instant::now();
    let checksum = work();
    Outcome { operations, checksum, elapsed: start.elapsed() }
}

/// A splitmix64 generator: small, quick, no state to speak of.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
    /// A number below `end`, which is not 0 and fits 32 bits.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (((self.next() >> 32) * end as u64) >> 32) as usize
    }
    /// A number from `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }
    /// From 0 to below 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The output function of splitmix64.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Pieces that work is cut into where its input must not depend on the number of threads; also the
/// largest number of threads.
pub(crate) const LANES: u64 = 64;

/// Runs `body(0)` to `body(threads - 1)` in as many new threads; the sum of what they return.
pub(crate) fn on_threads(threads: usize, body: impl Fn(usize) -> u64 + Sync) -> u64 {
    std::thread::scope(|scope| {
        let body = &body;
        let handles: Vec<_> = (0..threads).map(|i| scope.spawn(move || body(i))).collect();
        handles
            .into_iter()
            .fold(0u64, |sum, h| sum.wrapping_add(h.join().expect("a thread failed")))
    })
}

/// Deals the lanes out to threads: thread `i` does `i`, `i + threads`, ... The sum of all.
pub(crate) fn on_lanes(threads: usize, body: impl Fn(u64) -> u64 + Sync) -> u64 {
    on_threads(threads, |i| {
        (i as u64..LANES).step_by(threads).fold(0, |sum, lane| sum.wrapping_add(body(lane)))
    })
}

/// The largest resident set so far, in KiB. Counts pages of shared memory that were touched.
pub(crate) fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
