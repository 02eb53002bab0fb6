//! A heap with a name: made, opened, or whichever it takes.
//!
//! The name comes last, in one step: whoever finds it finds all of the heap, and whoever dies before has
//! left nothing. Where the system has no files without names (`O_TMPFILE`, `/proc`), and where a program
//! makes the region first and the heap later, there are steps that others can see: the name, the
//! length, the header, the tables. Every step but the last leaves a region that says "not ready", so
//! whoever opens it too early waits, for a bounded time, and then decides: a segment that is still not
//! ready belongs to somebody who died while making it. [`SharedHeap::open`] reports it;
//! [`SharedHeap::open_or_create`] removes it and begins anew.
//!
//! The time counts for one file: when another one turns up under the name, its maker gets all of it.
//! And only the file that was waited for is removed: of many who run out of patience at the same
//! moment none removes what another has just made.

use core::time::Duration;

use crate::alloc::{DEFAULT_THREAD_BLOCKS, ThreadLocalAllocator};
use crate::base::{Error, Result};
use crate::os;
use crate::region::{Backend, FileId, PosixShmMmap, RegionOptions};

/// How long to wait for somebody who makes a heap, where nothing else is said.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// So long between two looks, in nanoseconds.
const NAP: u64 = 1_000_000;

/// A name under which processes meet. Allocates nothing itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meeting<'n> {
    pub(crate) name: &'n str,
    pub(crate) patience: Duration,
}

impl Meeting<'_> {
    /// Opens what is there. Where that is not ready in time, also which file it was.
    fn open_in_time<T>(
        &self,
        open: &mut impl FnMut() -> Result<T>,
    ) -> Result<T, (Error, Option<FileId>)> {
        let (mut file, mut since) = (None, os::monotonic_ns());
        loop {
            match open() {
                Ok(opened) => return Ok(opened),
                Err(Error::NotReady) => {}
                Err(error) => return Err((error, None)),
            }
            let (now, seen) = (os::monotonic_ns(), PosixShmMmap::file_of(self.name).ok());
            if seen != file {
                (file, since) = (seen, now);
            } else if u128::from(now.saturating_sub(since)) >= self.patience.as_nanos() {
                return Err((Error::NotReady, file));
            }
            os::nap(NAP);
        }
    }

    /// Opens what is there.
    pub(crate) fn open<T>(&self, mut open: impl FnMut() -> Result<T>) -> Result<T> {
        self.open_in_time(&mut open).map_err(|(error, _)| error)
    }

    /// Opens what is there, or makes it, by [`PosixShmMmap::create_filled`].
    pub(crate) fn open_or_create<T>(
        &self,
        mut open: impl FnMut() -> Result<T>,
        mut create: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        loop {
            let abandoned = match self.open_in_time(&mut open) {
                Ok(opened) => return Ok(opened),
                Err((Error::NotReady, file)) => file,
                Err((Error::NotFound, _)) => match create() {
                    // Somebody was quicker; or what has the name was given up, and whoever did that
                    // died before the name was gone.
                    Err(Error::AlreadyExists) => match self.given_up(&mut open) {
                        Some(file) => Some(file),
                        None => continue,
                    },
                    other => return other,
                },
                Err((error, _)) => return Err(error),
            };
            if let Some(file) = abandoned {
                match PosixShmMmap::remove_name(self.name, file) {
                    Ok(()) | Err(Error::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// The file that has the name and can, all the same, not be found.
    fn given_up<T>(&self, open: &mut impl FnMut() -> Result<T>) -> Option<FileId> {
        let before = PosixShmMmap::file_of(self.name).ok()?;
        let gone = matches!(open(), Err(Error::NotFound));
        let after = PosixShmMmap::file_of(self.name).ok()?;
        (gone && before == after).then_some(before)
    }
}

/// How to come to a [`ThreadLocalAllocator`] in a POSIX shared-memory object of some name.
///
/// Programs whose global allocator is [`HshmAlloc`](crate::HshmAlloc) can have all of their memory
/// in the same heap: see [`HshmAllocBuilder::region`](crate::HshmAllocBuilder::region).
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
    meeting: Meeting<'n>,
    max_bytes: usize,
    thread_blocks: usize,
}

impl<'n> SharedHeap<'n> {
    /// The heap named `name`, as [`PosixShmMmap`] takes names.
    pub const fn new(name: &'n str) -> Self {
        SharedHeap {
            meeting: Meeting { name, patience: PATIENCE },
            max_bytes: 0,
            thread_blocks: DEFAULT_THREAD_BLOCKS,
        }
    }
    /// How long to wait for a heap of that name that is not ready. Default: one second.
    ///
    /// What [`create`](Self::create) and [`open_or_create`](Self::open_or_create) make is ready when it
    /// gets its name, on systems that have `O_TMPFILE` and `/proc`. Elsewhere, and where a program makes
    /// the region first and the heap in it later, the time must be longer than that takes:
    /// `open_or_create` gives a process up that takes longer, and that one is then alone in a heap
    /// without a name.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.meeting.patience = patience;
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
        PosixShmMmap::create_filled(self.meeting.name, options, ThreadLocalAllocator::shm_init)
    }

    fn attach(&self, options: &RegionOptions) -> Result<ThreadLocalAllocator> {
        let region = PosixShmMmap::attach(self.meeting.name, options)?;
        ThreadLocalAllocator::shm_attach(region, self.max_bytes, self.thread_blocks)
    }

    /// Opens the heap. One that is not ready after the time of [`patience`](Self::patience) is
    /// [`Error::NotReady`].
    pub fn open(&self, options: &RegionOptions) -> Result<ThreadLocalAllocator> {
        self.meeting.open(|| self.attach(options))
    }

    /// Opens the heap if there is one, makes it if there is none, or only one that its maker never
    /// finished. Of several processes that do this at once, one makes it.
    pub fn open_or_create(&self, options: &RegionOptions) -> Result<ThreadLocalAllocator> {
        self.meeting.open_or_create(|| self.attach(options), || self.create(options))
    }

    /// Removes the name. Those who have the heap keep it.
    pub fn destroy(&self) -> Result<()> {
        PosixShmMmap::destroy(self.meeting.name)
    }
}
