//! A heap with a name: made, opened, or whichever it takes.
//!
//! Making one has steps that others can see: the name, the length, the header, the tables. Every
//! step but the last leaves a region that says "not ready", so whoever opens it too early waits, for
//! a bounded time, and then decides: a segment that is still not ready belongs to somebody who died
//! while making it. [`SharedHeap::open`] reports it; [`SharedHeap::open_or_create`] removes it and
//! begins anew.

use core::time::Duration;
use std::time::Instant;

use crate::alloc::{DEFAULT_THREAD_BLOCKS, ThreadLocalAllocator};
use crate::base::{Error, Result};
use crate::region::{Backend, PosixShmMmap, RegionOptions};

/// How to come to a [`ThreadLocalAllocator`] in a POSIX shared-memory object of some name.
///
/// ```
/// use hshm::{RegionOptions, SharedHeap};
/// let name = format!("hshm-doc-{}", std::process::id());
/// let options = RegionOptions::new().capacity(16 << 20);
/// let one = SharedHeap::new(&name).open_or_create(&options)?;
/// let two = SharedHeap::new(&name).open(&options)?;
/// assert_eq!(one.region().id(), two.region().id());
/// // The name goes, the heap stays for those who have it.
/// SharedHeap::new(&name).destroy()?;
/// assert_eq!(SharedHeap::new(&name).open(&options).err(), Some(hshm::Error::NotFound));
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SharedHeap<'n> {
    name: &'n str,
    patience: Duration,
    max_bytes: usize,
    thread_blocks: usize,
}

impl<'n> SharedHeap<'n> {
    /// The heap named `name`, as [`PosixShmMmap`] takes names.
    pub const fn new(name: &'n str) -> Self {
        SharedHeap {
            name,
            patience: Duration::from_secs(1),
            max_bytes: 0,
            thread_blocks: DEFAULT_THREAD_BLOCKS,
        }
    }
    /// How long to wait for a heap that somebody is making. Default: one second.
    ///
    /// It must be longer than making one takes: [`open_or_create`](Self::open_or_create) gives a
    /// process up that takes longer, and that one is then alone in a heap without a name.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
    /// The most memory that this process may take, in bytes; see
    /// [`ThreadLocalAllocator::shm_attach`]. Default: no limit.
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Makes the heap; a name that is taken is [`Error::AlreadyExists`].
    pub fn create(&self, options: &RegionOptions) -> Result<ThreadLocalAllocator> {
        let region = PosixShmMmap::create(self.name, options)?;
        let made = ThreadLocalAllocator::shm_init(region);
        if made.is_err() {
            // Nobody can do anything with what is there.
            let _ = PosixShmMmap::destroy(self.name);
        }
        made
    }

    /// Opens the heap. One that is not ready after the time of [`patience`](Self::patience) is
    /// [`Error::NotReady`].
    pub fn open(&self, options: &RegionOptions) -> Result<ThreadLocalAllocator> {
        let start = Instant::now();
        loop {
            let found = PosixShmMmap::attach(self.name, options).and_then(|region| {
                ThreadLocalAllocator::shm_attach(region, self.max_bytes, self.thread_blocks)
            });
            match found {
                Err(Error::NotReady) if start.elapsed() < self.patience => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other,
            }
        }
    }

    /// Opens the heap if there is one, makes it if there is none, or only one that its maker never
    /// finished. Of several processes that do this at once, one makes it.
    pub fn open_or_create(&self, options: &RegionOptions) -> Result<ThreadLocalAllocator> {
        loop {
            match self.open(options) {
                Err(Error::NotFound) => {}
                Err(Error::NotReady) => match PosixShmMmap::destroy(self.name) {
                    Ok(()) | Err(Error::NotFound) => {}
                    Err(error) => return Err(error),
                },
                other => return other,
            }
            match self.create(options) {
                Err(Error::AlreadyExists) => {}
                other => return other,
            }
        }
    }

    /// Removes the name. Those who have the heap keep it.
    pub fn destroy(&self) -> Result<()> {
        PosixShmMmap::destroy(self.name)
    }
}
