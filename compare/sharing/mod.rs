//! The loads of several processes on one heap: what every shared-memory peer does alike.
//!
//! ```text
//! share-x --list                            the loads that this heap can do, one a line
//! share-x others-wide threads=8 scale=0.5   runs one with so many processes
//! ```
//!
//! `boost.cpp` does the same in C++, number for number. Processes are forked before anything is
//! attached; each attaches for itself. What they need besides the heap (a barrier, rings that carry
//! offsets) lies in anonymous memory that they inherit, the same for all peers.
//!
//! - Sizes are drawn from a seeded generator; blocks carry a mark at both ends, checked before they
//!   are freed. The checksum goes over what was read back. Where blocks go from process to process,
//!   one in sixteen does: to read what another processor wrote is a cache miss, the same for all
//!   heaps, and would be most of the time.
//! - The work is the same for any number of processes, which share it.
//! - Time goes from the moment when all are attached until the last one is done.

mod control;
mod exchange;
mod life;

use std::process::ExitCode;

use control::Control;

/// A heap in shared memory.
pub(crate) trait Heap: Sized {
    /// What another process needs to attach, made before the fork.
    type Place;
    /// The largest block.
    const LARGEST: usize;
    /// Makes a heap of so many bytes.
    fn create(bytes: usize) -> Self::Place;
    fn attach(place: &Self::Place) -> Self;
    /// Removes what outlives its processes.
    fn destroy(place: &Self::Place);
    fn allocate(&self, size: usize) -> Option<u64>;
    fn free(&self, block: u64);
    /// The address of a block.
    fn at(&self, block: u64) -> *mut u8;
    /// Called now and then by whoever allocates: some have to.
    fn tidy(&self) {}
    /// All blocks of this process are to outlive it; it is done with the heap.
    fn give_all(self) {}
    /// A process that had memory has died: what it takes until others can have it. `None` where it
    /// never comes back.
    fn recover(&self) -> bool {
        false
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) checksum: u64,
    pub(crate) seconds: f64,
}

/// What a run is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    pub(crate) processes: usize,
    pub(crate) scale: f64,
}

impl Params {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Params, String> {
        let mut params = Params { processes: 2, scale: 1.0 };
        for argument in arguments {
            let (key, value) =
                argument.split_once('=').ok_or_else(|| format!("{argument}: not key=value"))?;
            let number: f64 = match (key, value.parse()) {
                // For the other groups' workloads.
                ("corpus" | "corpus_mb", _) => continue,
                (_, Ok(number)) => number,
                _ => return Err(format!("{argument}: not a number")),
            };
            match key {
                "threads" => params.processes = number as usize,
                "scale" => params.scale = number,
                _ => return Err(format!("{key}: no such parameter")),
            }
        }
        if !(1..=control::MOST).contains(&params.processes) {
            return Err(format!("threads: 1 to {}", control::MOST));
        }
        Ok(params)
    }
    /// `at_scale_one`, scaled; at least one for every process.
    fn share(&self, at_scale_one: u64) -> u64 {
        ((at_scale_one as f64 * self.scale) as u64 / self.processes as u64).max(1)
    }
}

/// Which blocks a load has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sizes {
    /// 256 B to 4 KiB in powers of two: all that rts-alloc has.
    Small,
    /// 8 B to 512 KiB, each doubling as often as the others.
    Wide,
}

impl Sizes {
    fn draw(self, random: &mut Random) -> usize {
        match self {
            Sizes::Small => 256 << random.below(5),
            Sizes::Wide => {
                let low = 8usize << random.below(16);
                low + random.below(low as u64) as usize
            }
        }
    }
}

type Run = fn(&Params) -> Result<Outcome, String>;

struct Load {
    name: &'static str,
    largest: usize,
    run: Run,
    about: &'static str,
}

fn loads<H: Heap>() -> Vec<Load> {
    const SMALL: usize = 4096;
    const WIDE: usize = 512 << 10;
    let new = |name, largest, run: Run, about| Load { name, largest, run, about };
    vec![
        new(
            "own-small",
            SMALL,
            |p| exchange::own::<H>(p, Sizes::Small),
            "256 B to 4 KiB, each its own",
        ),
        new(
            "own-wide",
            WIDE,
            |p| exchange::own::<H>(p, Sizes::Wide),
            "8 B to 512 KiB, each its own",
        ),
        new(
            "others-small",
            SMALL,
            |p| exchange::others::<H>(p, Sizes::Small),
            "256 B to 4 KiB, freed by the next process",
        ),
        new(
            "others-wide",
            WIDE,
            |p| exchange::others::<H>(p, Sizes::Wide),
            "8 B to 512 KiB, freed by the next process",
        ),
        new(
            "give-1g",
            SMALL,
            |p| life::give::<H>(p, false),
            "a gigabyte of 4 KiB blocks, given away",
        ),
        new(
            "take-1g",
            SMALL,
            |p| life::give::<H>(p, true),
            "the same, read and freed by the taker",
        ),
        new("attach-10g", SMALL, life::attach::<H>, "attaches and leaves a heap of 10 GiB"),
        new("recover", WIDE, life::recover::<H>, "a process that had 128 MiB is killed"),
    ]
}

/// The `main` of every peer.
pub(crate) fn main<H: Heap>() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        eprintln!("which load? --list shows them");
        return ExitCode::FAILURE;
    };
    let can = |load: &Load| load.largest <= H::LARGEST;
    if name == "--list" {
        for load in loads::<H>().iter().filter(|load| can(load)) {
            println!("{}\tsharing\t0\t1\t{}", load.name, load.about);
        }
        return ExitCode::SUCCESS;
    }
    let found = loads::<H>().into_iter().find(|load| load.name == name && can(load));
    let outcome = found
        .ok_or_else(|| "there is no such load".to_string())
        .and_then(|load| (load.run)(&Params::parse(arguments)?));
    match outcome {
        Ok(Outcome { operations, checksum, seconds }) => {
            let peak = peak_kib().unwrap_or(0);
            println!(
                "operations={operations} checksum={checksum:016x} seconds={seconds:.9} peak_kib={peak}"
            );
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("{name}: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The largest resident set of the process that made the heap.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn stream(stream: u64) -> Random {
        Random(mix(stream.wrapping_add(1).wrapping_mul(0xd134_2543_de82_ef95)))
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
    /// A number below `end`, which is not 0 and fits 32 bits.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((self.next() >> 32) * end) >> 32
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Marks a block of at least 8 bytes at both ends, if it has two.
fn mark<H: Heap>(heap: &H, block: u64, size: usize, value: u64) {
    let (at, last) = (heap.at(block), if size < 16 { 0 } else { size - 8 });
    // SAFETY: the caller's block, of `size` bytes, at least 8.
    unsafe {
        at.cast::<u64>().write_unaligned(value);
        at.add(last).cast::<u64>().write_unaligned(value);
    }
}

/// What the marks say: twice the same.
fn read_back<H: Heap>(heap: &H, block: u64, size: usize) -> Result<u64, String> {
    let (at, last) = (heap.at(block), if size < 16 { 0 } else { size - 8 });
    // SAFETY: as above.
    let (first, last) =
        unsafe { (at.cast::<u64>().read_unaligned(), at.add(last).cast::<u64>().read_unaligned()) };
    if first == last { Ok(first) } else { Err(format!("{size} bytes at {block:#x} were changed")) }
}
