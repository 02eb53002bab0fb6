//! [`MemoryManager`], and its backends.

use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::allocators::Open;
use super::directory::Directory;
use super::url::{self, Calls};
use crate::alloc::{Allocator, LeakReport};
use crate::base::{AllocatorId, Error, Result};
use crate::region::{Backend, Region, RegionOptions};

/// How long to wait for a backend that another process is making.
const PATIENCE: Duration = Duration::from_secs(1);

/// Names a backend in this process (HSHM's `MemoryBackendId::Get(n)`). Other processes may call the same
/// backend by another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemoryBackendId(u32);

impl MemoryBackendId {
    /// The id of this number.
    pub const fn get(number: u32) -> Self {
        MemoryBackendId(number)
    }
    /// The number.
    pub const fn number(self) -> u32 {
        self.0
    }
    fn unknown(self) -> Error {
        Error::UnknownBackend { id: self.0 }
    }
}

impl fmt::Display for MemoryBackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A backend that this process has.
pub(super) struct Backing {
    pub(super) directory: Directory,
    name: String,
    destroy: fn(&str) -> Result<()>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) backends: BTreeMap<MemoryBackendId, Arc<Backing>>,
    pub(super) open: BTreeMap<AllocatorId, Open>,
    pub(super) default: Option<Arc<dyn Allocator>>,
    /// Who is told what is left at detach.
    pub(super) report: Option<fn(&LeakReport)>,
}

/// Makes, attaches and finds backends and allocators (HSHM's `HSHM_MEMORY_MANAGER`).
///
/// A *backend* is a region with a directory of the allocators in it; an *allocator* has an id by which
/// every process that attaches the backend finds it. Several allocators share a backend, and an
/// allocator can have others inside. [`global`](Self::global) is the process's manager; others can be
/// made.
///
/// What the manager hands out holds on to its memory. A backend can be detached or destroyed while its
/// allocators are in use: they go on working, and the memory goes with the last of them.
///
/// ```
/// use hshm::{Allocator, AllocatorId, MemContext, MemoryBackendId, MemoryManager};
/// use hshm::{ScalablePageAllocator, ThreadLocalAllocator, AllocatorOptions, Unit};
///
/// let manager = MemoryManager::new();
/// let backend = MemoryBackendId::get(0);
/// manager.create_backend(backend, Unit::megabytes(64), "memfd:")?;
/// let options = AllocatorOptions::new().size(Unit::megabytes(32));
/// let pages = AllocatorId::new(1, 0);
/// manager.create_allocator_with::<ScalablePageAllocator>(backend, pages, &options)?;
/// // All that is left, without a custom header.
/// manager.create_allocator::<ThreadLocalAllocator>(backend, AllocatorId::new(1, 1), 0)?;
///
/// // Another process is given this address, and finds the same allocators.
/// let address = manager.backend_url(backend)?;
/// let there = MemoryManager::new();
/// there.attach_backend(MemoryBackendId::get(7), &address)?;
/// let alloc = manager.get_allocator::<ScalablePageAllocator>(pages)?;
/// let same = there.get_allocator::<ScalablePageAllocator>(pages)?;
/// let number = alloc.new_obj(MemContext::DEFAULT, 42u64)?;
/// let seen = hshm::FullPtr::from_allocator(&*same, number.shm())?;
/// // SAFETY: a number was put there, and nobody writes to it.
/// assert_eq!(unsafe { seen.as_ref() }, Some(&42));
/// # // SAFETY: made above.
/// # unsafe { same.del_obj(MemContext::DEFAULT, seen)? };
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Default)]
pub struct MemoryManager {
    state: Mutex<State>,
}

impl fmt::Debug for MemoryManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("MemoryManager")
            .field("backends", &state.backends.keys())
            .field("allocators", &state.open.keys())
            .finish()
    }
}

impl MemoryManager {
    /// A manager without backends.
    pub const fn new() -> Self {
        MemoryManager {
            state: Mutex::new(State {
                backends: BTreeMap::new(),
                open: BTreeMap::new(),
                default: None,
                report: None,
            }),
        }
    }

    /// The process's manager.
    pub fn global() -> &'static MemoryManager {
        static GLOBAL: MemoryManager = MemoryManager::new();
        &GLOBAL
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // What a panic could leave half-done is in no step of the manager's.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a backend of `size` bytes at an address: `shm://name`, `memfd:` (with a label for `/proc`
    /// behind it, or none), `file:///path`, `anon:`, `malloc:`. Names are taken as they are, nothing in
    /// them is an escape.
    ///
    /// # Errors
    /// [`Error::BadName`] for another address, [`Error::AlreadyExists`] for an id or a name that is
    /// taken, [`Error::TooSmall`] below 72 KiB, and others as [`Backend::create`].
    pub fn create_backend(&self, id: MemoryBackendId, size: usize, url: &str) -> Result<Region> {
        let (calls, name) = url::parse(url)?;
        self.create(id, calls, name, &RegionOptions::new().capacity(size))
    }

    /// [`create_backend`](Self::create_backend) for a backend that is known by its type, with its own
    /// name for the segment or an address.
    pub fn create_backend_with_url<B: Backend>(
        &self,
        id: MemoryBackendId,
        size: usize,
        url: &str,
    ) -> Result<Region> {
        self.create_backend_with::<B>(id, url, &RegionOptions::new().capacity(size))
    }

    /// [`create_backend_with_url`](Self::create_backend_with_url) with all that can be asked of a region.
    pub fn create_backend_with<B: Backend>(
        &self,
        id: MemoryBackendId,
        url: &str,
        options: &RegionOptions,
    ) -> Result<Region> {
        self.create(id, Calls::of::<B>(), url::name_for::<B>(url)?, options)
    }

    fn create(
        &self,
        id: MemoryBackendId,
        calls: Calls,
        name: &str,
        options: &RegionOptions,
    ) -> Result<Region> {
        let mut state = self.state();
        if state.backends.contains_key(&id) {
            return Err(Error::AlreadyExists);
        }
        let region = (calls.create)(name, options)?;
        let directory = Directory::create(region.clone()).inspect_err(|_| {
            // Nobody can do anything with what is there.
            let _ = (calls.destroy)(name);
        })?;
        let backing = Backing { directory, name: name.to_owned(), destroy: calls.destroy };
        state.backends.insert(id, Arc::new(backing));
        Ok(region)
    }

    /// Makes a backend of a fresh region that came by other ways: over an array, for example. One in
    /// which an engine lies is [`Error::AlreadyExists`].
    pub fn create_backend_in(&self, id: MemoryBackendId, region: Region) -> Result<()> {
        self.add(id, "", |_| Ok(()), || Directory::create(region))
    }

    /// Attaches the backend at an address that another process made: as for
    /// [`create_backend`](Self::create_backend), but `memfd:` goes on as [`backend_url`](Self::backend_url)
    /// says there, or with `fd:N` or `pid:P:fd:N`. One that is being made is waited for, for a second.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for an id that is taken; [`Error::NotFound`]; [`Error::Incompatible`]
    /// for a region without a directory; [`Error::NotShared`] for private memory; others as
    /// [`Backend::attach`].
    pub fn attach_backend(&self, id: MemoryBackendId, url: &str) -> Result<()> {
        self.attach_backend_with(id, url, &RegionOptions::new())
    }

    /// [`attach_backend`](Self::attach_backend) with all that can be asked of a region. Read-only is
    /// [`Error::ReadOnly`]: allocators write.
    pub fn attach_backend_with(
        &self,
        id: MemoryBackendId,
        url: &str,
        options: &RegionOptions,
    ) -> Result<()> {
        let (calls, name) = url::parse(url)?;
        self.add(id, name, calls.destroy, || {
            let start = Instant::now();
            loop {
                match (calls.attach)(name, options).and_then(Directory::attach) {
                    Err(Error::NotReady) if start.elapsed() < PATIENCE => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    other => return other,
                }
            }
        })
    }

    /// Attaches the backend in a region that this process has: received over a socket, for example.
    pub fn attach_backend_in(&self, id: MemoryBackendId, region: Region) -> Result<()> {
        self.add(id, "", |_| Ok(()), || Directory::attach(region))
    }

    fn add(
        &self,
        id: MemoryBackendId,
        name: &str,
        destroy: fn(&str) -> Result<()>,
        directory: impl FnOnce() -> Result<Directory>,
    ) -> Result<()> {
        let mut state = self.state();
        if state.backends.contains_key(&id) {
            return Err(Error::AlreadyExists);
        }
        let backing = Backing { directory: directory()?, name: name.to_owned(), destroy };
        state.backends.insert(id, Arc::new(backing));
        Ok(())
    }

    /// The region of a backend.
    pub fn backend(&self, id: MemoryBackendId) -> Result<Region> {
        Ok(self.state().backing(id)?.directory.region().clone())
    }

    /// The numbers of all backends.
    pub fn backends(&self) -> Vec<MemoryBackendId> {
        self.state().backends.keys().copied().collect()
    }

    /// The address by which other processes attach a backend; for a memfd only as long as this process
    /// has it. Private memory is [`Error::NotShared`].
    pub fn backend_url(&self, id: MemoryBackendId) -> Result<String> {
        let backing = self.state().backing(id)?;
        url::address_of(backing.directory.region(), &backing.name)
    }

    /// Forgets a backend and its allocators here. Allocators that somebody holds go on working.
    pub fn detach_backend(&self, id: MemoryBackendId) -> Result<()> {
        self.drop_backend(id, false).map(drop)
    }

    /// Forgets a backend here, and removes its name, so that nobody attaches it any more. Those who have
    /// it keep it: the memory goes with its last user, in whichever process.
    pub fn destroy_backend(&self, id: MemoryBackendId) -> Result<()> {
        let backing = self.drop_backend(id, true)?;
        (backing.destroy)(&backing.name)
    }

    fn drop_backend(&self, id: MemoryBackendId, all: bool) -> Result<Arc<Backing>> {
        let mut state = self.state();
        let backing = state.backends.remove(&id).ok_or(id.unknown())?;
        let ids: Vec<_> =
            state.open.iter().filter(|(_, open)| open.backend == id).map(|(id, _)| *id).collect();
        let gone: Vec<_> = ids.iter().filter_map(|id| state.open.remove(id)).collect();
        let report = state.report;
        drop(state);
        if let Some(report) = report {
            gone.iter().filter_map(|open| open.left(all)).for_each(|left| report(&left));
        }
        Ok(backing)
    }

    /// From now on `report` is called with what is still allocated when an allocator is detached (what
    /// belongs to this process) or destroyed (everything), if anything is. `None`, as at first, costs
    /// nothing.
    ///
    /// ```
    /// hshm::MemoryManager::global().set_leak_report(Some(|report| eprint!("{report}")));
    /// # hshm::MemoryManager::global().set_leak_report(None);
    /// ```
    pub fn set_leak_report(&self, report: Option<fn(&LeakReport)>) {
        self.state().report = report;
    }
}

impl State {
    pub(super) fn backing(&self, id: MemoryBackendId) -> Result<Arc<Backing>> {
        self.backends.get(&id).cloned().ok_or(id.unknown())
    }
}
