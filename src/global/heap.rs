//! The process's heap: its regions, the caches of its threads, and the pool they go back to.
//!
//! One static, made on the first allocation. `lock` protects making regions, the pool, the private
//! memory, and the shared heaps; none of it is on a path that a warm cache takes.
//!
//! ```text
//! PARTS[0..HEAP.count]     RegionHeap + this process's slot + one heap that threads without a
//!                          block of their own share
//! HEAP.pool                caches (with their heaps) of threads that have ended
//! HEAP.meta                private memory that caches and heaps are made of
//! ```
#![allow(unsafe_code)] // statics behind a lock, private memory

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use super::cache::{Body, FirstRegion, MAX_REGIONS, Member, Phase, ThreadCache};
use super::config::{Config, HeapBackend, MINIMUM_CAPACITY};
use super::grow::add_unless_grown;
use super::{flush, fork, join, tls};
use crate::base::units::{CHUNK, GIB, GRANULE, KIB, MIB};
use crate::base::{Error, Result, align_up};
use crate::heap::layout::{MAX_THREAD_BLOCKS, ProcessSlot, RegionHeap, TableSizes};
use crate::heap::liveness::Joining;
use crate::heap::thread::ThreadHeap;
use crate::os;
use crate::region::{Backend, MemfdBackend, PosixMmap, Region, RegionOptions};
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::sync::gate::{Gate, Visit, Visits};
use crate::sync::lock::RawLock;

/// One region of the heap.
pub(crate) struct Part {
    pub(crate) heap: RegionHeap,
    pub(crate) process: ProcessSlot,
    /// Guards `shared`.
    pub(crate) shared_lock: RawLock,
    /// The heap of threads that have none: too many threads, or threads that are ending.
    pub(crate) shared: UnsafeCell<Option<ThreadHeap>>,
}

/// The process's heap.
pub(crate) struct Heap {
    pub(crate) lock: RawLock,
    count: AtomicUsize,
    config: UnsafeCell<Config>,
    ready: AtomicU32,
    /// Bytes returned to heaps without a thread since somebody looked after them.
    unattended: AtomicUsize,
    pool: UnsafeCell<*mut Body>,
    /// Closed while a fork copies the heap, or `verify` walks it.
    gate: Gate,
    /// The member of every body there ever was.
    members: AtomicPtr<Member>,
    /// Private memory not handed out yet: address and bytes.
    meta: UnsafeCell<(usize, usize)>,
    exit_key: UnsafeCell<Option<os::ExitKey>>,
    /// Why the heap is private, if it is.
    unshared: UnsafeCell<Error>,
    /// 1 in a heap that other programs have, too; see `join`.
    joined: AtomicU32,
    /// 1 in a forked child that has no heap of its own; see `fork`.
    refused: AtomicU32,
}

// SAFETY: everything in a cell is used under `lock` only.
unsafe impl Sync for Heap {}

/// The regions. Apart from the rest, which is small: most programs touch one.
struct Parts(UnsafeCell<[MaybeUninit<Part>; MAX_REGIONS]>);

// SAFETY: those below `HEAP.count` never change after the release store of `count`, but for what is
// used under `shared_lock`; the others are written under `HEAP.lock`.
unsafe impl Sync for Parts {}

static PARTS: Parts = Parts(UnsafeCell::new([const { MaybeUninit::uninit() }; MAX_REGIONS]));

impl Parts {
    /// Where region `index` is, which is below [`MAX_REGIONS`].
    #[inline(always)]
    fn at(&self, index: usize) -> *mut MaybeUninit<Part> {
        debug_assert!(index < MAX_REGIONS);
        self.0.get().cast::<MaybeUninit<Part>>().wrapping_add(index)
    }
}

/// The one heap.
pub(crate) static HEAP: Heap = Heap {
    lock: RawLock::new(),
    count: AtomicUsize::new(0),
    config: UnsafeCell::new(Config::DEFAULT),
    ready: AtomicU32::new(0),
    unattended: AtomicUsize::new(0),
    pool: UnsafeCell::new(ptr::null_mut()),
    gate: Gate::new(),
    members: AtomicPtr::new(ptr::null_mut()),
    meta: UnsafeCell::new((0, 0)),
    exit_key: UnsafeCell::new(None),
    unshared: UnsafeCell::new(Error::NotShared),
    joined: AtomicU32::new(0),
    refused: AtomicU32::new(0),
};

/// Later regions are up to this large where the capacity is less.
const LARGEST_GROWN: usize = 64 * GIB;
/// So many bytes may wait in heaps without a thread.
const UNATTENDED: usize = 4 * MIB;

/// Private memory is taken from the system in pieces of this size.
const META_STEP: usize = 256 * KIB;

impl Heap {
    /// How many regions there are.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Region `index`, which is below [`count`](Heap::count).
    #[inline]
    pub(crate) fn part(&self, index: usize) -> &'static Part {
        debug_assert!(index < self.count());
        // SAFETY: parts below `count` are initialised, for good.
        unsafe { &*PARTS.at(index).cast::<Part>() }
    }

    /// All regions.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &'static Part> {
        (0..self.count()).map(|index| HEAP.part(index))
    }

    /// The region that contains an address, and the address's offset there.
    #[inline]
    pub(crate) fn find(&self, address: usize) -> Option<(usize, &'static Part, usize)> {
        for index in 0..self.count() {
            let part = self.part(index);
            if let Some(offset) = part.heap.offset_of(address) {
                return Some((index, part, offset));
            }
        }
        None
    }

    /// The settings in force. The heap is ready.
    pub(crate) fn config(&self) -> Config {
        // SAFETY: written once, before `ready`, under the lock.
        unsafe { *self.config.get() }
    }

    /// Why the heap is in private memory: [`Error::NotShared`] by choice, or what making shared
    /// memory failed with.
    pub(crate) fn why_unshared(&self) -> Error {
        let _guard = self.lock.lock();
        // SAFETY: the lock is held.
        unsafe { *self.unshared.get() }
    }

    /// Whether the heap has, or had when this process was forked, other programs' blocks in it.
    #[inline]
    pub(crate) fn is_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed) == 1
    }
    /// Whether this is a forked child that must not use the heap.
    #[inline]
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed) == 1
    }
    /// In a forked child: from now on it must not use the heap.
    pub(crate) fn refuse(&self) {
        self.refused.store(1, Ordering::Relaxed);
        // SAFETY: the child's one thread's own cache, which nothing else refers to now.
        unsafe { (*tls::get()).give_up() };
    }
    /// Ends a forked child that was about to use the heap all the same.
    #[cold]
    fn end_if_refused(&self) {
        if self.is_refused() {
            os::write_stderr(
                b"hshm: a forked child has no heap of its own here (HSHM_FORK=copy gives it one) \
                and ends\n",
            );
            os::end_process();
        }
    }

    /// Makes the heap on the first call. False where no region of any kind can be had.
    pub(crate) fn ensure(&self, config: &Config) -> bool {
        if self.ready.load(Ordering::Acquire) == 1 {
            return true;
        }
        let guard = self.lock.lock();
        if self.ready.load(Ordering::Acquire) == 1 {
            return true;
        }
        // SAFETY: the lock is held, and nobody reads the settings before `ready`.
        unsafe { *self.config.get() = config.with_environment() };
        if add_unless_grown(&self.count, 0, || (), |index| self.place_region(index, 0)).is_err() {
            return false;
        }
        if os::register_barrier() {
            self.gate.rely_on_closers();
        }
        // SAFETY: the lock is held.
        unsafe { *self.exit_key.get() = os::ExitKey::create(on_thread_exit).ok() };
        self.ready.store(1, Ordering::Release);
        drop(guard);
        // Without the lock: registering may allocate.
        fork::register();
        true
    }

    /// Adds a region that can hold a block of `size` bytes, unless somebody added one since the
    /// caller saw `seen` of them.
    pub(crate) fn grow(&self, seen: usize, size: usize) -> Result<()> {
        let lock = || self.lock.lock();
        add_unless_grown(&self.count, seen, lock, |index| self.place_region(index, size))
    }

    /// Makes region `index`, the one past `count`. Under the lock.
    fn place_region(&self, index: usize, size: usize) -> Result<()> {
        if index == MAX_REGIONS {
            return Err(Error::TableFull { slots: MAX_REGIONS });
        }
        let config = self.config();
        // Tables take a fiftieth of a region; a large block needs whole chunks besides.
        let wanted = size
            .checked_add(size / 16)
            .and_then(|size| align_up(size, CHUNK)?.checked_add(4 * CHUNK))
            .ok_or(Error::OutOfMemory { requested: size, available: 0 })?;
        let minimum = if size == 0 { MINIMUM_CAPACITY } else { wanted };
        // A limited address space is also for the program's stacks and libraries, and for the heaps
        // that it attaches: a quarter of what is left now, and of the rest when that is full.
        // And so with private memory, of which the limit counts what nobody touches, too.
        let is_private =
            config.backend == HeapBackend::Private && config.region.as_str().is_empty();
        let private = if is_private { os::private_room() } else { u64::MAX };
        let room = os::address_room().min(private) / 4;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        // Regions of a small capacity grow, or the table of regions would be a limit.
        let usual = config.capacity.saturating_mul(1 << (index / 4)).min(LARGEST_GROWN);
        let usual = usual.max(config.capacity);
        let capacity = usual.max(wanted).min(room.max(minimum)) & !(GRANULE - 1);
        // One block more than threads may have: the shared heap's.
        let max_blocks = config.thread_blocks + 1;
        let global = index as u32 + 1;
        let joining = Joining { max_bytes: 0, max_blocks, watched: false, global };
        let (mut heap, process) = if config.region.as_str().is_empty() {
            // SAFETY: the lock is held.
            let why = unsafe { &mut *self.unshared.get() };
            let region = make_region(&config, capacity, minimum, why)?;
            let sizes = TableSizes {
                processes: if region.is_shared() { 256 } else { 1 },
                thread_blocks: MAX_THREAD_BLOCKS,
                keepers: false,
                temporary: false,
            };
            let mut heap = RegionHeap::create(region, sizes)?;
            let process = heap.register(joining)?;
            (heap, process)
        } else if index == 0 {
            self.joined.store(1, Ordering::Relaxed);
            join::join_or_end(config.region.as_str(), capacity, minimum, joining)
        } else {
            // What others are to find must be where they look.
            return Err(Error::OutOfMemory { requested: size, available: 0 });
        };
        heap.set_huge(config.huge_pages);
        heap.set_retained(process, config.retain);
        heap.region().leak();
        let shared_lock = RawLock::new();
        let shared = heap.take_block(process).ok().map(|id| ThreadHeap::new(id, process));
        let part = Part { heap, process, shared_lock, shared: UnsafeCell::new(shared) };
        // SAFETY: the lock is held, and the place is past `count`: nobody reads it.
        unsafe { PARTS.at(index).write(MaybeUninit::new(part)) };
        Ok(())
    }

    /// Zeroed private memory for ever. Null where the system has none.
    fn meta_locked(&self, size: usize, align: usize) -> *mut u8 {
        // SAFETY: the lock is held.
        let (at, left) = unsafe { &mut *self.meta.get() };
        let skip = at.wrapping_neg() & (align - 1);
        if *at == 0 || skip + size > *left {
            let bytes = META_STEP.max(size + align).next_multiple_of(META_STEP);
            match os::map_private(os::At::Anywhere, bytes) {
                Ok(base) => (*at, *left) = (base, bytes),
                Err(_) => return ptr::null_mut(),
            }
        }
        let skip = at.wrapping_neg() & (align - 1);
        let place = *at + skip;
        *at += skip + size;
        *left -= skip + size;
        ptr::with_exposed_provenance_mut(place)
    }

    /// A heap for the calling thread in region `index`; null where it has to share.
    pub(crate) fn thread_heap(&self, index: usize) -> *mut ThreadHeap {
        let part = self.part(index);
        let Ok(id) = part.heap.take_block(part.process) else { return ptr::null_mut() };
        let _guard = self.lock.lock();
        let place = self.meta_locked(size_of::<ThreadHeap>(), align_of::<ThreadHeap>());
        let place = place.cast::<ThreadHeap>();
        if !place.is_null() {
            // SAFETY: fresh private memory, large enough and aligned.
            unsafe { place.write(ThreadHeap::new(id, part.process).keeping_slabs()) };
        } else {
            part.heap.give_block_back(part.process, id);
        }
        place
    }

    /// A cache's body for the calling thread: one from the pool, or a new one. Null where there is
    /// no memory for it.
    fn take_body(&self) -> *mut Body {
        let _guard = self.lock.lock();
        // SAFETY: the lock is held; the pool's bodies are nobody's.
        unsafe {
            let pool = self.pool.get();
            let body = *pool;
            if !body.is_null() {
                *pool = (*body).next;
                (*body).pooled = false;
                self.set_idle(body, 0);
                return body;
            }
            let member = self.meta_locked(size_of::<Member>(), align_of::<Member>());
            let body = self.meta_locked(size_of::<Body>(), align_of::<Body>());
            if member.is_null() || body.is_null() {
                return ptr::null_mut();
            }
            let (member, body) = (member.cast::<Member>(), body.cast::<Body>());
            // Only here, under the lock, does the list change.
            let next = self.members.load(Ordering::Relaxed);
            member.write(Member { visits: Visits::new(), body, next });
            Body::init(body, member);
            // Before the body's thread comes to the gate: a swap, which no later load passes.
            self.members.swap(member, Ordering::SeqCst);
            body
        }
    }

    /// Enters the engine: whatever changes slabs, runs, chunks or thread blocks does so on a visit.
    /// Visits of threads without a cache must not nest.
    #[inline]
    pub(crate) fn visit(&self) -> Visit<'_> {
        // SAFETY: the pointer is to this thread's cache.
        let cache = unsafe { &*tls::get() };
        if cache.phase == Phase::Live {
            self.gate.enter(cache.visits())
        } else {
            self.end_if_refused();
            self.gate.enter_stray()
        }
    }

    /// Makes the heap stand still: nobody is inside the engine, or gets in, until
    /// [`go_on`](Heap::go_on). Threads with something in their caches run on.
    ///
    /// The calling thread must not allocate or free meanwhile.
    pub(crate) fn stand_still(&self) {
        self.end_if_refused();
        // SAFETY: the pointer is to this thread's cache.
        let cache = unsafe { &*tls::get() };
        let own: *const Visits =
            if cache.phase == Phase::Live { cache.visits() } else { ptr::null() };
        self.gate.close(os::barrier_everywhere, || {
            // A fork by a signal handler that interrupted the engine would wait for itself.
            self.members().map(|member| &member.visits).filter(move |&v| !ptr::eq(v, own))
        });
        self.lock.lock_raw();
    }

    /// The members of all bodies there ever were.
    fn members(&self) -> impl Iterator<Item = &'static Member> {
        let mut next = self.members.load(Ordering::SeqCst).cast_const();
        core::iter::from_fn(move || {
            // SAFETY: null, or a member, which lives for ever and does not change its place.
            let member: &'static Member = unsafe { next.as_ref() }?;
            next = member.next;
            Some(member)
        })
    }

    /// In a forked child, before anybody goes on: what other threads used is nobody's now.
    ///
    /// Their heaps go to the pool, for the child's own threads. A heap changes on visits only, so
    /// that it is whole. What their caches and their kept runs hold stays in use: those change at any
    /// instruction, and what the fork caught of them cannot be trusted.
    ///
    /// A visitor that was just finding the gate closed counts as inside, and is not there to go.
    pub(crate) fn adopt_orphans(&self) {
        // SAFETY: the pointer is to this thread's cache.
        let cache = unsafe { &*tls::get() };
        let own: *const Visits =
            if cache.phase == Phase::Live { cache.visits() } else { ptr::null() };
        self.gate.forget_strays();
        for member in self.members().filter(|member| !ptr::eq(&member.visits, own)) {
            member.visits.forget();
            // SAFETY: the lock is held (since before the fork), and the body is in the pool or its
            // thread's, which is not there any more.
            unsafe {
                if !(*member.body).pooled {
                    (*member.body).forget_runs();
                    self.pool_locked(member.body);
                }
            }
        }
    }

    /// Ends what [`stand_still`](Heap::stand_still) began.
    pub(crate) fn go_on(&self) {
        self.lock.unlock_raw();
        self.gate.open();
    }

    fn pool_body(&self, body: *mut Body) {
        let _guard = self.lock.lock();
        // SAFETY: the lock is held, and the body's thread has let go of it.
        unsafe { self.pool_locked(body) };
    }

    /// # Safety
    /// The lock is held; the body is nobody's and not in the pool.
    unsafe fn pool_locked(&self, body: *mut Body) {
        // SAFETY: the caller's.
        unsafe {
            self.set_idle(body, 1);
            (*body).pooled = true;
            (*body).next = *self.pool.get();
            *self.pool.get() = body;
        }
    }

    /// Marks a body's thread blocks as without a thread, or not.
    ///
    /// # Safety
    /// The body is the caller's.
    unsafe fn set_idle(&self, body: *mut Body, idle: u32) {
        for index in 0..self.count() {
            // SAFETY: the caller's; a body's heaps live as long as it does.
            if let Some(heap) = unsafe { (*body).heaps[index].as_ref() } {
                self.part(index).heap.block(heap.id()).idle.store(idle, Ordering::Relaxed);
            }
        }
    }

    /// Counts bytes that were returned to heaps without a thread, and looks after those heaps when
    /// it is worth it.
    pub(crate) fn note_unattended(&self, bytes: usize) {
        if self.unattended.fetch_add(bytes, Ordering::Relaxed) + bytes >= UNATTENDED {
            self.unattended.store(0, Ordering::Relaxed);
            self.tidy_pool();
        }
    }

    /// Collects for the pooled heaps what others returned to them, so that their empty slabs can
    /// be used again.
    pub(crate) fn tidy_pool(&self) {
        let _guard = self.lock.lock();
        // SAFETY: the lock is held; pooled bodies and their heaps are nobody's.
        unsafe {
            let mut body = *self.pool.get();
            while !body.is_null() {
                for index in 0..self.count() {
                    let heap = (*body).heaps[index];
                    if !heap.is_null() {
                        (*heap).tidy(&self.part(index).heap);
                    }
                }
                body = (*body).next;
            }
        }
    }

    /// The cache of the calling thread, made now if need be; null where it has none any more, or
    /// cannot have one.
    pub(crate) fn thread_cache(&self, config: &Config) -> *mut ThreadCache {
        let cache = tls::get();
        // SAFETY: the pointer is to this thread's cache.
        match unsafe { (*cache).phase } {
            Phase::Live => cache,
            Phase::Ended => ptr::null_mut(),
            Phase::New => {
                self.end_if_refused();
                if !self.ensure(config) {
                    return ptr::null_mut();
                }
                // SAFETY: as above. Making the heap may have allocated, and so have been here.
                if unsafe { (*cache).phase } == Phase::Live {
                    return cache;
                }
                let body = self.take_body();
                if body.is_null() {
                    return ptr::null_mut();
                }
                let heap = &self.part(0).heap;
                let first = FirstRegion {
                    base: heap.base().addr(),
                    granules: heap.granules() as usize,
                    map: heap.granule_map(),
                };
                // First the cache, then the key: setting the key may allocate.
                // SAFETY: this thread's cache, and a body that was just taken for it.
                unsafe { (*cache).attach(body, first, self.is_joined()) };
                // SAFETY: written once under the lock, before `ready`.
                if let Some(key) = unsafe { (*self.exit_key.get()).as_ref() } {
                    // Without it the body merely stays with its thread for good.
                    let _ = key.set(cache.cast());
                }
                cache
            }
        }
    }
}

/// Runs when a thread ends: everything it kept goes back, and its heaps to the next thread.
unsafe extern "C" fn on_thread_exit(_value: *mut c_void) {
    // SAFETY: the ending thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *tls::get() };
    if cache.phase == Phase::Live {
        flush::flush_cache(cache);
        HEAP.pool_body(cache.detach());
    }
}

/// A region for the heap: shared where it can be, private otherwise; `why` says why not.
fn make_region(
    config: &Config,
    capacity: usize,
    minimum: usize,
    why: &mut Error,
) -> Result<Region> {
    let options = RegionOptions::new().capacity(capacity).shrink_to_fit(minimum);
    if config.backend == HeapBackend::Memfd {
        match MemfdBackend::create(config.name.as_str(), &options) {
            Ok(region) => return Ok(region),
            Err(error) => *why = error,
        }
    }
    PosixMmap::create("", &options)
}

const _: () = assert!(MINIMUM_CAPACITY >= MIB);
