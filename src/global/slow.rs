//! What happens when a cache has nothing, or too much: refill, flush, runs, large blocks.
#![allow(unsafe_code)] // works on the calling thread's cache and on raw blocks

use core::alloc::Layout;
use core::ptr;

use super::cache::{MAX_REGIONS, Phase, ThreadCache, bin_offset, class_at, rounded};
use super::config::Config;
use super::heap::{HEAP, Part};
use super::runs::KeptRun;
use super::tls;
use crate::base::Result;
use crate::base::classes::{CLASSES, ClassId, MAX_SMALL};
use crate::base::units::GRANULE;
use crate::heap::block::Block;
use crate::heap::granule::{BlockId, GranuleIdx};
use crate::heap::process::MAX_RUN;
use crate::heap::slab::Slab;
use crate::heap::thread::{BATCH, ThreadHeap};
use crate::sync::atomic::Ordering::Relaxed;

/// Bytes that a block should have room for that has to move in order to grow from `old` to `new` bytes,
/// so that it may stay where it is the next time. A run that grows fast is better off with one that the
/// thread keeps: it would move again all the same.
fn growth_room(old: usize, new: usize) -> usize {
    let longest = MAX_RUN as usize * GRANULE;
    if new <= old {
        0
    } else if new > longest {
        new.saturating_mul(2)
    } else if new - old <= old / 4 * 3 {
        (new + new / 2).min(longest)
    } else {
        0
    }
}

/// Allocates when the bin at byte `offset` of the cache is empty; null where there is no memory, or
/// where the thread has no cache.
#[cold]
#[inline(never)]
pub(crate) fn refill(offset: usize) -> *mut u8 {
    let cache = tls::get();
    // SAFETY: the pointer is to this thread's cache.
    if unsafe { (*cache).phase } != Phase::Live {
        return ptr::null_mut();
    }
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    fill(unsafe { &mut *cache }, class_at(offset))
}

/// What is left to try where [`refill`] came back with nothing: a thread's first allocation, and
/// those that come after its end.
///
/// Apart from `refill`, so that the settings' address is nothing that a loop around an allocation
/// keeps in a register.
#[cold]
#[inline(never)]
pub(crate) fn first_refill(config: &Config, offset: usize) -> *mut u8 {
    // SAFETY: the pointer is to this thread's cache.
    if unsafe { (*tls::get()).phase } == Phase::Live {
        return ptr::null_mut();
    }
    let class = class_at(offset);
    let cache = HEAP.thread_cache(config);
    if cache.is_null() {
        return without_cache(config, class);
    }
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *cache };
    if cache.len(class) > 0 {
        // Making the cache allocated, and filled this bin.
        // SAFETY: the calling thread's own cache, and a bin of it.
        return unsafe { super::cache::pop(cache, offset) };
    }
    fill(cache, class)
}

/// Fills an empty bin and takes a block out of it.
fn fill(cache: &mut ThreadCache, class: ClassId) -> *mut u8 {
    let most = (ThreadCache::capacity(class) / 2).clamp(1, BATCH);
    let want = (cache.batch[class.index()] as usize).clamp(1, most);
    cache.batch[class.index()] = (want * 2).min(most) as u8;
    if cache.room(class) < want {
        cache.set_room(class, want);
    }
    // Straight into the empty bin.
    let slots = cache.slots(class, want);
    let got = in_some_region(cache, 0, |part, heap| {
        // SAFETY: the slots are this cache's, and nothing else refers to them now.
        heap.allocate_batch(&part.heap, class, unsafe { &mut *slots })
    });
    let Some(got) = got else { return ptr::null_mut() };
    cache.set_len(class, got - 1);
    // SAFETY: as above; there is at least one.
    unsafe { (&*slots)[got - 1] }
}

/// Allocates a block of zeros when the bin at byte `offset` of the cache is empty: one that was
/// never used, if there is one.
#[cold]
#[inline(never)]
pub(crate) fn refill_zeroed(config: &Config, offset: usize, size: usize) -> *mut u8 {
    let class = class_at(offset);
    let cache = tls::get();
    // SAFETY: the pointer is to this thread's cache.
    if unsafe { (*cache).phase } == Phase::Live && class.size() >= FRESH_MATTERS {
        // SAFETY: the calling thread's own cache.
        let cache = unsafe { &mut *cache };
        let region = cache.region;
        let part = HEAP.part(region);
        let heap = cache.heaps[region];
        if !heap.is_null() {
            let _visit = HEAP.visit();
            // SAFETY: this thread's heap.
            if let Ok(Some(block)) = unsafe { (*heap).allocate_fresh(&part.heap, class) } {
                return block;
            }
        }
    }
    let mut block = refill(offset);
    if block.is_null() {
        block = first_refill(config, offset);
    }
    if !block.is_null() {
        // SAFETY: the block has at least the class's size.
        unsafe { block.write_bytes(0, size) };
    }
    block
}

/// Blocks from this size on are worth asking for fresh ones: clearing them costs more.
const FRESH_MATTERS: usize = 1024;

/// Frees a block of rounded size `size` that the cache did not take.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
#[cold]
#[inline(never)]
pub(crate) unsafe fn free(block: *mut u8, size: usize) {
    // SAFETY: the caller's contract.
    unsafe { if size <= MAX_SMALL { overflow(block, bin_offset(size)) } else { free_large(block) } }
}

/// Frees when the bin at byte `offset` of the cache is full.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
#[cold]
#[inline(never)]
pub(crate) unsafe fn overflow(block: *mut u8, offset: usize) {
    let class = class_at(offset);
    // There is a heap, or there would be no block: its settings stand.
    let cache = HEAP.thread_cache(&Config::DEFAULT);
    if cache.is_null() {
        if !HEAP.is_refused() {
            flush(None, class, &[block]);
        }
        return;
    }
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *cache };
    if cache.closed {
        return free_joined(cache, class, block);
    }
    let room = cache.room(class);
    if cache.len(class) == room {
        if room == 0 && sent_home(cache, class, block) {
            return;
        }
        if !cache.widen(class) {
            flush_oldest(cache, class, room);
        }
    }
    // SAFETY: there is room now.
    unsafe { super::cache::push(cache, offset, block) };
}

/// Frees in a heap that was joined: keeps the process's own blocks, and returns others at once.
fn free_joined(cache: &mut ThreadCache, class: ClassId, block: *mut u8) {
    let Some((_, part, offset)) = HEAP.find(block.addr()) else { return refuse() };
    if !part.heap.is_plainly_of(offset, part.process) {
        return flush(Some(cache), class, &[block]);
    }
    if cache.room(class) == 0 {
        cache.set_room(class, 1);
    }
    let room = cache.room(class);
    if cache.len(class) == room {
        flush_oldest(cache, class, room);
    }
    cache.put(class, block);
}

/// Sends the older half of a full bin back.
fn flush_oldest(cache: &mut ThreadCache, class: ClassId, room: usize) {
    let count = room.div_ceil(2);
    let slots = cache.slots(class, count);
    // SAFETY: the bin holds `room` blocks, and the flush does not touch the cache's slots.
    flush(Some(cache), class, unsafe { &*slots });
    cache.drop_oldest(class, count);
}

/// Sends a block back to the heap it came from, where the thread has no room for its class yet and
/// the block is another's. Kept, it would be the next that this thread gets and writes to, while its
/// neighbours in the cache line are still being written by the thread it came from. A thread that
/// goes on freeing such blocks only passes them on, and better in batches.
fn sent_home(cache: &mut ThreadCache, class: ClassId, block: *mut u8) -> bool {
    let index = class.index();
    if cache.strangers[index] == STRANGERS {
        return false;
    }
    let Some((region, part, offset)) = HEAP.find(block.addr()) else { return false };
    let heap = cache.heaps[region];
    // SAFETY: a heap of this thread's cache is this thread's.
    let own = unsafe { heap.as_ref() }.map(ThreadHeap::id);
    if own == Some(part.heap.owner_of(offset)) {
        return false;
    }
    cache.strangers[index] += 1;
    flush(Some(cache), class, &[block]);
    true
}

/// So many blocks of others a thread sends back one by one.
const STRANGERS: u8 = 4;

/// One block for a thread without a cache: from a region's shared heap.
fn without_cache(config: &Config, class: ClassId) -> *mut u8 {
    let mut out = [ptr::null_mut()];
    in_some_shared(config, 0, |part, heap| heap.allocate_batch(&part.heap, class, &mut out));
    out[0]
}

/// [`in_some_region`] for a thread without a cache: on the regions' shared heaps.
fn in_some_shared<R>(
    config: &Config,
    size: usize,
    mut work: impl FnMut(&Part, &mut ThreadHeap) -> Result<R>,
) -> Option<R> {
    if !HEAP.ensure(config) {
        return None;
    }
    let _visit = HEAP.visit();
    HEAP.parts().for_each(|part| part.heap.forget_shortage());
    let mut growths = GROWTHS;
    let mut seen = 0;
    loop {
        while seen < HEAP.count() {
            let part = HEAP.part(seen);
            if let Some(Ok(result)) = with_shared(part, |heap| work(part, heap)) {
                return Some(result);
            }
            seen += 1;
        }
        if !may_retry(seen, size, &mut growths) {
            return None;
        }
    }
}

/// So many regions may be added for one request: others may fill those that are, but not for ever.
const GROWTHS: u32 = 3;

/// Whether a request that failed in all of `count` regions may try again, in one more.
fn may_retry(count: usize, size: usize, growths: &mut u32) -> bool {
    // Where it is memory that is missing, more address space is no help.
    let short = HEAP.parts().any(|part| part.heap.is_short_of_memory());
    if *growths == 0 || short || HEAP.grow(count, size).is_err() {
        return false;
    }
    *growths -= 1;
    true
}

/// Runs `work` on a region's shared heap, if it has one.
fn with_shared<R>(part: &Part, work: impl FnOnce(&mut ThreadHeap) -> R) -> Option<R> {
    let _guard = part.shared_lock.lock();
    // SAFETY: the lock is held.
    unsafe { (*part.shared.get()).as_mut() }.map(work)
}

/// Runs `work` in the thread's region, then in the others, then in a new one that can hold
/// `size` bytes; `None` if all fail.
fn in_some_region<R>(
    cache: &mut ThreadCache,
    size: usize,
    mut work: impl FnMut(&Part, &mut ThreadHeap) -> Result<R>,
) -> Option<R> {
    let first = cache.region;
    let _visit = HEAP.visit();
    let mut tidied = false;
    let mut growths = GROWTHS;
    loop {
        let count = HEAP.count();
        HEAP.parts().for_each(|part| part.heap.forget_shortage());
        for step in 0..count {
            let index = (first + step) % count;
            if let Ok(result) = in_region(cache, index, &mut work) {
                cache.region = index;
                return Some(result);
            }
        }
        if !tidied {
            // Heaps without a thread may sit on memory that others gave back to them.
            tidied = true;
            drop_runs(cache);
            tidy_all(cache);
            continue;
        }
        if !may_retry(count, size, &mut growths) {
            return None;
        }
    }
}

fn in_region<R>(
    cache: &mut ThreadCache,
    index: usize,
    work: &mut impl FnMut(&Part, &mut ThreadHeap) -> Result<R>,
) -> Result<R> {
    let part = HEAP.part(index);
    if cache.heaps[index].is_null() {
        cache.heaps[index] = HEAP.thread_heap(index);
    }
    let heap = cache.heaps[index];
    if heap.is_null() {
        let full = crate::base::Error::TableFull { slots: MAX_REGIONS };
        return with_shared(part, |heap| work(part, heap)).unwrap_or(Err(full));
    }
    // SAFETY: this thread's heap, used by nobody else.
    work(part, unsafe { &mut *heap })
}

/// Blocks on their way to slabs of other heaps, gathered by word.
struct Outgoing {
    len: usize,
    words: [(GranuleIdx, BlockId, usize, u64); 16],
}

impl Outgoing {
    const fn new() -> Self {
        Outgoing { len: 0, words: [(GranuleIdx(0), BlockId(0), 0, 0); 16] }
    }
    /// Adds blocks of one word of a slab; how many of them are refused, having been added before.
    #[inline(never)]
    fn add(
        &mut self,
        part: &Part,
        class: ClassId,
        (head, owner): (GranuleIdx, BlockId),
        word: usize,
        mask: u64,
    ) -> u32 {
        for entry in &mut self.words[..self.len] {
            if entry.0 == head && entry.2 == word {
                let twice = entry.3 & mask;
                entry.3 |= mask;
                return twice.count_ones();
            }
        }
        if self.len == self.words.len() {
            self.send(part, class);
        }
        self.words[self.len] = (head, owner, word, mask);
        self.len += 1;
        0
    }
    #[inline(never)]
    fn send(&mut self, part: &Part, class: ClassId) {
        let mut unattended = 0;
        for &(head, owner, word, mask) in &self.words[..self.len] {
            if !part.heap.free_remote(head, class, owner, word, mask) {
                part.heap.source().refused_frees.fetch_add(1, Relaxed);
            }
            if part.heap.block(owner).idle.load(Relaxed) == 1 {
                unattended += mask.count_ones() as usize * class.size();
            }
        }
        self.len = 0;
        if unattended > 0 {
            HEAP.note_unattended(unattended);
        }
    }
}

/// Returns blocks of one class to their slabs. `cache` is the calling thread's, if it has one.
fn flush(cache: Option<&ThreadCache>, class: ClassId, blocks: &[*mut u8]) {
    let _visit = HEAP.visit();
    let mut outgoing = Outgoing::new();
    let mut last: Option<(usize, &'static Part)> = None;
    let mut rest = blocks;
    while let Some(&block) = rest.first() {
        let found = match last {
            Some((index, part)) => part.heap.offset_of(block.addr()).map(|at| (index, part, at)),
            None => None,
        };
        let Some((index, part, offset)) = found.or_else(|| HEAP.find(block.addr())) else {
            refuse();
            rest = &rest[1..];
            continue;
        };
        if let Some((before, old)) = last
            && before != index
        {
            outgoing.send(old, class);
        }
        last = Some((index, part));
        let heap = cache.map_or(ptr::null_mut(), |cache| cache.heaps[index]);
        // One look at the granule map for all that follow in the same slab.
        let (done, refused) = match part.heap.find_block(offset) {
            Ok(Block::Small { head, class: found, owner, .. }) if found == class => {
                // SAFETY: a heap of this thread's cache is this thread's.
                match unsafe { heap.as_mut() } {
                    Some(heap) if heap.id() == owner => {
                        heap.free_group(&part.heap, head, class, rest)
                    }
                    _ => {
                        let slab = Slab::new(&part.heap, head, class);
                        let mut twice = 0;
                        let (seen, refused) =
                            slab.gather(part.heap.granule_addr(head), rest, |word, mask| {
                                twice += outgoing.add(part, class, (head, owner), word, mask);
                            });
                        (seen, refused + twice)
                    }
                }
            }
            _ => (1, 1),
        };
        if refused > 0 {
            part.heap.source().refused_frees.fetch_add(refused as u64, Relaxed);
        }
        rest = &rest[done.max(1)..];
    }
    if let Some((_, part)) = last {
        outgoing.send(part, class);
    }
}

/// Counts a free of something that is no block of this heap.
#[cold]
fn refuse() {
    if HEAP.count() > 0 {
        HEAP.part(0).heap.source().refused_frees.fetch_add(1, Relaxed);
    }
}

/// Empties a cache whose thread ends, and tidies its heaps.
pub(crate) fn flush_cache(cache: &mut ThreadCache) {
    let _visit = HEAP.visit();
    for index in 0..CLASSES {
        let class = ClassId::new(index);
        let len = cache.len(class);
        if len == 0 {
            continue;
        }
        let slots = cache.slots(class, len);
        // SAFETY: the bin holds `len` blocks, and the flush does not touch the cache's slots.
        flush(Some(cache), class, unsafe { &*slots });
        cache.set_len(class, 0);
    }
    drop_runs(cache);
    tidy_own(cache);
}

/// Tidies the heaps of a cache: takes in what others returned, gives up what is empty.
fn tidy_own(cache: &mut ThreadCache) {
    for index in 0..HEAP.count() {
        let heap = cache.heaps[index];
        if !heap.is_null() {
            // SAFETY: a heap of this thread's cache is this thread's.
            unsafe { (*heap).tidy(&HEAP.part(index).heap) };
        }
    }
}

/// Tidies every heap that is within the calling thread's reach.
fn tidy_all(cache: &mut ThreadCache) {
    tidy_own(cache);
    HEAP.tidy_pool();
    for part in HEAP.parts() {
        with_shared(part, |heap| heap.tidy(&part.heap));
    }
}

/// Sends everything back that the calling thread's cache keeps.
pub(crate) fn flush_own() {
    let cache = tls::get();
    // SAFETY: the pointer is to this thread's cache, which nothing else refers to now.
    unsafe {
        if (*cache).phase == Phase::Live {
            flush_cache(&mut *cache);
        }
    }
}

/// Gives what is free back to the system, as far as the calling thread can reach it.
pub(crate) fn trim() {
    let _visit = HEAP.visit();
    flush_own();
    HEAP.tidy_pool();
    for part in HEAP.parts() {
        with_shared(part, |heap| heap.tidy(&part.heap));
        part.heap.trim(part.process);
    }
}

/// Takes back what processes that died had in the heap's regions; how many they were.
pub(crate) fn reap() -> usize {
    let _visit = HEAP.visit();
    HEAP.parts().map(|part| part.heap.reap(part.process).processes).sum()
}

/// Gives the runs that a cache keeps back.
fn drop_runs(cache: &mut ThreadCache) {
    while let Some(run) = cache.runs.take_longest() {
        give_run_back(run);
    }
}

/// Gives a run back that a cache kept.
#[cold]
fn give_run_back(run: KeptRun) {
    let _visit = HEAP.visit();
    if let Some((_, part, offset)) = HEAP.find(run.block.addr()) {
        part.heap.free_run(part.process, GranuleIdx((offset / GRANULE) as u32));
    }
}

/// Allocates more than [`MAX_SMALL`] bytes, or at a larger alignment; where it could grow to `room`
/// bytes, if it is to grow and there is such a place. Returns the block and whether it is known to be
/// zero; wanting `zeros` makes that likelier, no more.
#[inline(never)]
pub(crate) fn allocate_large(
    config: &Config,
    size: usize,
    align: usize,
    room: usize,
    zeros: bool,
) -> (*mut u8, bool) {
    if room <= size
        && let Some(block) = kept_run(size, align)
    {
        return (block, false);
    }
    allocate_fresh_large(config, size.max(1), align, room, zeros)
}

/// What [`allocate_large`] does where the thread keeps no run that would do; the size is not zero. First
/// the thread gives up what it keeps too much of.
#[cold]
#[inline(never)]
fn allocate_fresh_large(
    config: &Config,
    size: usize,
    align: usize,
    room: usize,
    zeros: bool,
) -> (*mut u8, bool) {
    let max_run = MAX_RUN as usize * GRANULE;
    let is_run = size <= max_run && align <= max_run;
    if is_run {
        give_up_surplus(size.div_ceil(GRANULE));
    }
    let cache = HEAP.thread_cache(config);
    // A new region must have room to align the block in.
    let needed = size.saturating_add(if align > GRANULE { align } else { 0 });
    let take = |part: &Part, thread: &mut ThreadHeap| -> Result<(*mut u8, bool)> {
        // Runs that other processes freed come back here; one look where there are none.
        thread.collect(&part.heap);
        let owner = thread.id();
        let (head, zeroed) = if is_run {
            let room = room.div_ceil(GRANULE).min(MAX_RUN as usize) as u32;
            part.heap.allocate_run(part.process, owner, size, align, room)?
        } else {
            part.heap.allocate_large(part.process, owner, size, align, room, zeros)?
        };
        Ok((part.heap.granule_addr(head), zeroed))
    };
    let found = if cache.is_null() {
        in_some_shared(config, needed, take)
    } else {
        // SAFETY: the calling thread's own cache.
        let cache = unsafe { &mut *cache };
        let found = in_some_region(cache, needed, take);
        if is_run && found.is_some() {
            cache.runs.note_resized(0, size.div_ceil(GRANULE));
        }
        found
    };
    found.unwrap_or((ptr::null_mut(), false))
}

/// A run that the calling thread keeps and that fits; for sizes and alignments of runs only.
#[inline]
fn kept_run(size: usize, align: usize) -> Option<*mut u8> {
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *tls::get() };
    if cache.phase != Phase::Live {
        return None;
    }
    let granules = size.div_ceil(GRANULE);
    let run = cache.runs.take(granules, align)?;
    if size <= run.committed || commit_kept(run.block, size) {
        return Some(run.block);
    }
    if !cache.runs.keep(granules, run) {
        give_run_back(run);
    }
    None
}

/// Gives back runs that the calling thread keeps and may not keep when it takes `granules` more.
fn give_up_surplus(granules: usize) {
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *tls::get() };
    if cache.phase == Phase::Live {
        while let Some(run) = cache.runs.take_surplus(granules) {
            give_run_back(run);
        }
    }
}

/// Commits more of a run that a thread keeps.
#[cold]
fn commit_kept(block: *mut u8, size: usize) -> bool {
    let _visit = HEAP.visit();
    let Some((_, part, offset)) = HEAP.find(block.addr()) else { return false };
    part.heap.commit_run(GranuleIdx((offset / GRANULE) as u32), size).is_ok()
}

/// Frees what [`allocate_large`] returned.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
#[inline(never)]
pub(crate) unsafe fn free_large(block: *mut u8) {
    let Some((_, part, offset)) = HEAP.find(block.addr()) else { return refuse() };
    if let Ok(Block::Run { head, granules, .. }) = part.heap.find_block(offset)
        && (!HEAP.is_joined() || is_plainly_ours(part, offset))
    {
        // SAFETY: the calling thread's own cache, which nothing else refers to now.
        let cache = unsafe { &mut *tls::get() };
        let run = KeptRun { block, committed: part.heap.committed(head) };
        if cache.phase == Phase::Live && cache.runs.keep(granules as usize, run) {
            return;
        }
    }
    return_large(part, offset);
}

/// Whether a block of a heap that was joined is this process's to keep.
#[cold]
#[inline(never)]
fn is_plainly_ours(part: &Part, offset: usize) -> bool {
    part.heap.is_plainly_of(offset, part.process)
}

/// Gives back a run that the thread does not keep, or a large block.
#[cold]
#[inline(never)]
fn return_large(part: &Part, offset: usize) {
    if HEAP.is_refused() {
        return;
    }
    let _visit = HEAP.visit();
    let freed = match part.heap.find_block(offset) {
        Ok(Block::Run { head, owner, .. }) if is_ours(part, owner) => {
            part.heap.free_run(part.process, head)
        }
        Ok(Block::Run { head, owner, .. }) => part.heap.return_foreign_run(head, owner),
        Ok(Block::Large { head }) => part.heap.free_large(part.process, head),
        _ => false,
    };
    if !freed {
        refuse();
    }
}

/// Whether this process may change a run of `owner`'s. In a heap that nobody joined all are.
fn is_ours(part: &Part, owner: BlockId) -> bool {
    !HEAP.is_joined() || part.heap.is_held_by(owner, part.process)
}

/// Reallocates when the block's class changes or it is not small.
///
/// # Safety
/// As for `GlobalAlloc::realloc`.
#[inline(never)]
pub(crate) unsafe fn reallocate(
    config: &Config,
    block: *mut u8,
    old: Layout,
    new_size: usize,
) -> *mut u8 {
    // SAFETY: the caller keeps the rounded size within `isize`.
    let new = unsafe { Layout::from_size_align_unchecked(new_size, old.align()) };
    let was_small = rounded(old) <= MAX_SMALL;
    let is_small = rounded(new) <= MAX_SMALL;
    if !was_small && !is_small && resize_large(block, new_size) {
        return block;
    }
    let moved = if is_small {
        super::allocate_small(config, bin_offset(rounded(new)))
    } else {
        let room = growth_room(old.size(), new_size);
        allocate_large(config, new_size, old.align(), room, false).0
    };
    if moved.is_null() {
        return moved;
    }
    // SAFETY: both blocks are live and distinct, the length is within both; the old one is the
    // caller's to give up.
    unsafe {
        ptr::copy_nonoverlapping(block, moved, old.size().min(new_size));
        super::free(block, old);
    }
    moved
}

/// Makes a run or a large block hold `size` bytes where it lies.
fn resize_large(block: *mut u8, size: usize) -> bool {
    let _visit = HEAP.visit();
    let Some((_, part, offset)) = HEAP.find(block.addr()) else { return false };
    match part.heap.find_block(offset) {
        Ok(Block::Run { head, granules, owner }) => {
            let resized = is_ours(part, owner)
                && part.heap.resize_run(part.process, owner, head, granules, size);
            // SAFETY: the calling thread's own cache, which nothing else refers to now.
            let cache = unsafe { &mut *tls::get() };
            if resized && cache.phase == Phase::Live {
                cache.runs.note_resized(granules as usize, size.div_ceil(GRANULE));
            }
            resized
        }
        // Far smaller blocks move, so that they do not sit on whole chunks.
        Ok(Block::Large { head }) => {
            size > MAX_RUN as usize * GRANULE / 2 && part.heap.resize_large(head, size)
        }
        _ => false,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
