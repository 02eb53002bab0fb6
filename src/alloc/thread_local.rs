//! `ThreadLocalAllocator`: a process block and its thread blocks over any region (A9 to A12).
//!
//! ```text
//! allocate:  the thread's block -> the process's granule runs -> the heap source
//! free:      the owner's slab, if the owner is a thread block of this process;
//!            otherwise announced to its owner (`heap::remote`)
//! ```
//!
//! Every thread block has a lock that is as good as never contended: threads are dealt out over
//! the blocks in turn, and an explicit [`ThreadId`](crate::ThreadId) picks one. So any number of
//! threads works, with any number of blocks, whatever contexts they pass.
//!
//! Who has a thread of its own for it takes a block to itself ([`Exclusive`](super::Exclusive)), and
//! needs no lock.
//!
//! Nothing is cached outside the region: the bitmaps there always say exactly what is allocated,
//! so every free is checked (interior, double, foreign) and counters are exact. The global
//! allocator [`HshmAlloc`](crate::HshmAlloc) puts a private cache in front of the same engine.
#![allow(unsafe_code)] // private heaps behind their own locks

mod blocks;

use core::cell::UnsafeCell;

use crate::base::{Error, MemContext, Result};
use crate::heap::granule::BlockId;
use crate::heap::keeper::Keeper;
use crate::heap::layout::{ProcessSlot, RegionHeap, TableSizes};
use crate::heap::liveness::Joining;
use crate::heap::reap::Stays;
use crate::heap::thread::ThreadHeap;
use crate::heap::{Fault, Fragmentation, HeapReport, verify};
use crate::os;
use crate::ptr::OffsetPtr;
use crate::region::Region;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use crate::sync::identity::thread_number;
use crate::sync::lock::RawLock;
use crate::sync::shm_lock::ShmGuard;

/// Thread blocks that a process takes where nothing else is said.
pub const DEFAULT_THREAD_BLOCKS: usize = 64;
/// Process slots of a new region where nothing else is said.
pub const DEFAULT_PROCESSES: usize = 256;

/// To whom a block is handed over; see [`ThreadLocalAllocator::transfer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The region: it stays until somebody frees it.
    Nobody,
    /// The process that calls.
    ThisProcess,
}

/// One thread block's heap, and the lock that guards it.
pub(super) struct Local {
    lock: RawLock,
    /// The block's id as soon as there is one, for lookups without the lock; 0 before.
    id: AtomicU32,
    /// The heap is an [`Exclusive`](super::Exclusive)'s: changed under the lock, and whoever finds it
    /// set there leaves the heap alone.
    taken: AtomicBool,
    heap: UnsafeCell<Option<ThreadHeap>>,
}

impl Local {
    /// Runs `work` on the heap, under the lock; `None` while it is somebody's own.
    fn with<R>(&self, work: impl FnOnce(&mut Option<ThreadHeap>) -> R) -> Option<R> {
        let _guard = self.lock.lock();
        if self.taken.load(Relaxed) {
            return None;
        }
        // SAFETY: the lock is held, and nobody has the heap to itself.
        Some(work(unsafe { &mut *self.heap.get() }))
    }
    /// Takes the heap for one's own. Null where it is another's.
    pub(super) fn take(&self) -> Option<*mut Option<ThreadHeap>> {
        let _guard = self.lock.lock();
        (!self.taken.swap(true, Relaxed)).then_some(self.heap.get())
    }
    /// Undoes [`take`](Self::take), by whoever did it.
    pub(super) fn give_back(&self) {
        let _guard = self.lock.lock();
        self.taken.store(false, Relaxed);
    }
}

/// A thread-caching allocator over a shared region: HSHM's `ThreadLocalAllocator`.
///
/// One process makes it ([`shm_init`](Self::shm_init)), others join
/// ([`shm_attach`](Self::shm_attach)); each gets a block of the process table and its own thread
/// blocks. Blocks may be freed by any thread of any attached process. A forked child must attach
/// anew: the handle it inherited answers [`Error::Forked`].
///
/// A process that dies takes what it had allocated along, at whatever instruction it was: the
/// others go on, and whoever needs memory takes it back ([`reap`](Self::reap)). What it had handed
/// over ([`transfer`](Self::transfer)) stays.
///
/// ```
/// use hshm::{Allocator, AllocatorId, MemContext, Region, RegionOptions, ThreadLocalAllocator};
///
/// let region = Region::anonymous(AllocatorId::new(1, 0), 16 << 20)?;
/// let alloc = ThreadLocalAllocator::shm_init(region)?;
/// let block = alloc.allocate::<u64>(MemContext::DEFAULT, 64)?;
/// assert!(block.as_ptr().is_aligned());
/// // SAFETY: the block came from `alloc` and is not used again.
/// unsafe { alloc.free(MemContext::DEFAULT, block)? };
/// assert_eq!(alloc.currently_allocated_size(), 0);
/// # Ok::<(), hshm::Error>(())
/// ```
pub struct ThreadLocalAllocator {
    pub(super) heap: RegionHeap,
    pub(super) process: ProcessSlot,
    /// See `os::is_generation`: a forked child has the heaps but not the process block.
    generation: u32,
    pub(super) locals: Box<[Local]>,
    /// What happens to its blocks when it leaves.
    stays: Stays,
    choice: Choice,
    /// Granules that runs grew to lately: a hint, of which each new run takes one away. Whoever grows
    /// block after block finds room behind each, instead of moving it once it is large; whoever does
    /// not fills chunks as tightly as before.
    grown: AtomicU32,
}

/// Which thread block serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The one of the context's thread.
    Thread,
    /// The first, from the one of the calling thread on, that nobody uses just now.
    Idle,
}

// SAFETY: every `Local`'s heap is reached under its lock, or by the one that has it to itself; the
// region's tables are atomics.
unsafe impl Send for ThreadLocalAllocator {}
// SAFETY: as above.
unsafe impl Sync for ThreadLocalAllocator {}

impl core::fmt::Debug for ThreadLocalAllocator {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ThreadLocalAllocator")
            .field("region", self.heap.region())
            .field("process", &self.process.0)
            .field("thread_blocks", &self.locals.len())
            .finish()
    }
}

impl ThreadLocalAllocator {
    /// Lays the allocator out in a fresh region, for up to [`DEFAULT_PROCESSES`] processes, and
    /// joins it.
    pub fn shm_init(region: Region) -> Result<Self> {
        Self::shm_init_with(region, DEFAULT_PROCESSES)
    }

    /// [`shm_init`](Self::shm_init) for up to `processes` processes at a time (1 to 1024).
    pub fn shm_init_with(region: Region, processes: usize) -> Result<Self> {
        Self::shm_init_as(region, processes, DEFAULT_THREAD_BLOCKS)
    }

    /// [`shm_init_with`](Self::shm_init_with), with as many thread blocks for this process.
    pub(crate) fn shm_init_as(
        region: Region,
        processes: usize,
        thread_blocks: usize,
    ) -> Result<Self> {
        let sizes = TableSizes { processes: processes.min(1024) as u32, ..TableSizes::default() };
        Self::join(RegionHeap::create(region, sizes)?, 0, thread_blocks, Choice::Thread)
    }

    /// Joins the allocator that another process (or this one) laid out in `region`.
    ///
    /// `max_bytes` is the most memory that this process may take from the region, in bytes, 0 for
    /// no limit. `thread_blocks` is how many thread blocks it may use (at least 1); more threads
    /// than that share them.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::NotReady`] while the allocator is being made; [`Error::Busy`] where
    /// a lock of it is held by a process that lives, for two seconds on end; [`Error::TableFull`] with as many
    /// processes as there can be; [`Error::NotARegion`], [`Error::Incompatible`] or
    /// [`Error::Corrupt`] for what is no such allocator.
    pub fn shm_attach(region: Region, max_bytes: usize, thread_blocks: usize) -> Result<Self> {
        if !region.is_writable() {
            return Err(Error::ReadOnly);
        }
        Self::join(RegionHeap::attach(region)?, max_bytes, thread_blocks, Choice::Thread)
    }

    pub(super) fn join(
        mut heap: RegionHeap,
        max_bytes: usize,
        thread_blocks: usize,
        choice: Choice,
    ) -> Result<Self> {
        let blocks = thread_blocks.clamp(1, heap.block_count() as usize - 1);
        let shared = heap.region().is_shared();
        let joining = Joining {
            max_bytes: max_bytes as u64,
            max_blocks: blocks as u32,
            watched: shared,
            global: 0,
        };
        let process = heap.register(joining)?;
        let locals = (0..blocks)
            .map(|_| Local {
                lock: RawLock::new(),
                id: AtomicU32::new(0),
                taken: AtomicBool::new(false),
                heap: UnsafeCell::new(None),
            })
            .collect();
        let stays = Stays::All;
        let generation = os::generation_mark();
        Ok(ThreadLocalAllocator {
            heap,
            process,
            generation,
            locals,
            stays,
            choice,
            grown: AtomicU32::new(0),
        })
    }

    /// The engine, for what is built on both.
    pub(crate) fn engine(&self) -> &RegionHeap {
        &self.heap
    }

    /// The lock of the directory of named roots.
    pub(crate) fn lock_roots(&self) -> Result<ShmGuard<'_>> {
        self.check_process()?;
        Ok(self.heap.lock_roots(self.process))
    }

    /// The region.
    pub fn region(&self) -> &Region {
        self.heap.region()
    }

    /// Frees that were refused so far, by all processes: double, foreign, interior.
    pub fn refused_frees(&self) -> u64 {
        self.heap.source().refused_frees.load(Relaxed)
    }

    /// Walks every invariant of the region; see [`HeapReport`].
    ///
    /// Exact while nobody else changes the heap; other processes' private lists are not seen, nor
    /// those of an [`Exclusive`](crate::Exclusive).
    pub fn verify(&self) -> Result<HeapReport, Fault> {
        if self.check_process().is_err() {
            return Err(Fault { what: "the handle is the parent process's", at: 0 });
        }
        // Returned blocks on their way are no fault, but then they are not in the lists yet.
        let guards: Vec<_> = self.locals.iter().map(|local| local.lock.lock()).collect();
        let shared = self.locals.iter().filter(|local| !local.taken.load(Relaxed));
        // SAFETY: all locks are held until the end of this function, and nobody has these heaps to
        // itself.
        let heaps = shared.filter_map(|local| unsafe { (*local.heap.get()).as_ref() });
        let report = verify::verify(&self.heap, heaps);
        drop(guards);
        report
    }

    /// Reclaims what processes owned that have died since somebody looked: everything that they
    /// had allocated and not [handed over](Self::transfer), and what was handed over to them.
    /// Returns how many they were.
    ///
    /// Nobody needs to call this: whoever needs more memory looks for the dead, at most ten times
    /// a second, and always before a request fails.
    pub fn reap(&self) -> usize {
        if self.check_process().is_err() {
            return 0;
        }
        self.heap.reap(self.process).processes
    }

    /// Whether a block is nobody's: handed over ([`Owner::Nobody`]) and not taken since, or left by a process
    /// that dropped its handle.
    ///
    /// After a death that is what a program has to ask about a block of which its own books say that it was
    /// changing hands: if it is nobody's, nobody else will ever find it. That it is live says less: it may
    /// have gone with the dead process, and have been allocated anew by another.
    ///
    /// # Errors
    /// As [`usable_size`](crate::Allocator::usable_size).
    pub fn is_nobodys(&self, block: OffsetPtr<u8>) -> Result<bool> {
        self.check_process()?;
        let offset = usize::try_from(block.offset()).unwrap_or(usize::MAX);
        let found = self.heap.find_block(offset)?;
        self.heap.check_live(found)?;
        Ok(self.heap.is_nobodys(offset, found))
    }

    /// Hands a block over. What a process allocates belongs to it and is freed when it dies or
    /// [detaches](Self::shm_detach); a block of [`Owner::Nobody`] stays until somebody frees it, one
    /// that a process took over ([`Owner::ThisProcess`]) goes with that one.
    ///
    /// A sender gives the block to nobody before it tells others where it lies, the receiver takes
    /// it over when it has been told. Where either dies in between, the block stays nobody's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for blocks of less than 32 bytes; otherwise as
    /// [`usable_size`](crate::Allocator::usable_size).
    ///
    /// # Safety
    /// The block belongs to this process, or to nobody while no other process takes it.
    pub unsafe fn transfer(&self, block: OffsetPtr<u8>, to: Owner) -> Result<()> {
        self.check_process()?;
        let offset = usize::try_from(block.offset()).unwrap_or(usize::MAX);
        let found = self.heap.find_block(offset)?;
        self.heap.check_live(found)?;
        let keeper = match to {
            Owner::Nobody => Keeper::Nobody,
            Owner::ThisProcess => Keeper::Process(self.process),
        };
        self.heap.set_keeper(offset, found, keeper)
    }

    /// Leaves the region and frees all that belongs to this process (A11); blocks that it
    /// [handed over](Self::transfer) stay. Dropping the allocator instead leaves everything where
    /// it is.
    ///
    /// # Safety
    /// Nobody, in any process, uses a block that belongs to this process any more.
    pub unsafe fn shm_detach(mut self) -> Result<()> {
        self.check_process()?;
        self.stays = Stays::HandedOver;
        drop(self);
        Ok(())
    }

    /// Gives free memory back: empty slabs to the process, empty chunks to the region, and the
    /// pages of everything free to the system.
    pub fn trim(&self) {
        if self.check_process().is_err() {
            return;
        }
        for local in &self.locals {
            local.with(|slot| slot.as_mut().map(|thread| thread.tidy(&self.heap)));
        }
        self.heap.trim(self.process);
        self.heap.reap(self.process);
    }

    /// Runs `work` on the heap that the context picks, under its lock.
    fn with_heap<R>(
        &self,
        ctx: MemContext,
        work: impl FnOnce(&mut ThreadHeap) -> Result<R>,
    ) -> Result<R> {
        self.check_process()?;
        let number = ctx.tid.number().unwrap_or_else(thread_number) as usize;
        let wanted = match self.choice {
            Choice::Thread => number % self.locals.len(),
            Choice::Idle => self.idle_from(thread_number() as usize % self.locals.len()),
        };
        let mut work = Some(work);
        for index in wanted..wanted + self.locals.len() {
            let local = &self.locals[index % self.locals.len()];
            let done = local.with(|slot| {
                // Where the region has no block left: share another thread's.
                let thread = self.populate(local, slot).ok()?;
                work.take().map(|work| work(thread))
            });
            if let Some(Some(result)) = done {
                return result;
            }
        }
        Err(Error::TableFull { slots: self.heap.block_count() as usize })
    }

    /// The first block from `wanted` on that was made already and that nobody uses just now: a hint.
    /// Blocks that were not made yet count when all others are in use.
    fn idle_from(&self, wanted: usize) -> usize {
        let count = self.locals.len();
        let at = |step: usize| (wanted + step) % count;
        let idle = |index: &usize| !self.locals[*index].lock.is_locked();
        let made = |index: &usize| self.locals[*index].id.load(Relaxed) != 0;
        let mut ready = (0..count).map(at).filter(idle);
        ready.clone().find(made).or_else(|| ready.next()).unwrap_or(wanted)
    }

    /// The heap in a slot, made now if there is none; by whoever may use the slot.
    pub(super) fn populate<'s>(
        &self,
        local: &Local,
        slot: &'s mut Option<ThreadHeap>,
    ) -> Result<&'s mut ThreadHeap> {
        match slot {
            Some(thread) => Ok(thread),
            None => {
                let id = self.heap.take_block(self.process)?;
                local.id.store(id.0 as u32, Relaxed);
                Ok(slot.insert(ThreadHeap::new(id, self.process).keeping_runs(&self.heap)))
            }
        }
    }

    /// The private half of the allocator belongs to the process that made the handle. In a forked
    /// child it is a copy, while the region is shared: using both would hand blocks out twice.
    #[inline]
    pub(super) fn check_process(&self) -> Result<()> {
        if os::is_generation(self.generation) { Ok(()) } else { Err(Error::Forked) }
    }

    fn local_of(&self, owner: BlockId) -> Option<&Local> {
        self.locals.iter().find(|local| local.id.load(Relaxed) == owner.0 as u32)
    }

    /// Bytes that this process could still allocate, all together: free blocks of its slabs (for
    /// requests of their sizes), free granules, and free chunks as far as its limit allows.
    pub fn available(&self) -> usize {
        if self.check_process().is_err() {
            return 0;
        }
        self.heap.available(self.process) + self.heap.free_in_slabs(self.process)
    }

    /// How scattered the free memory is.
    pub fn fragmentation(&self) -> Fragmentation {
        self.heap.fragmentation(self.process)
    }
}

impl Drop for ThreadLocalAllocator {
    /// Leaves the region: what is free goes back to it. Blocks that are still allocated stay where
    /// they are, usable by the other processes.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        self.heap.leave(self.process, self.stays);
    }
}
