//! What happens when a bin has nothing, or too much: refills, and the first look at what overflows.
#![allow(unsafe_code)] // works on the calling thread's cache and on raw blocks

use core::ptr;

use super::cache::{MAX_REGIONS, Phase, ThreadCache, bin_offset, class_at};
use super::config::Config;
use super::flush::{drop_runs, flush, flush_idle, refuse, tidy_all};
use super::heap::{HEAP, Part};
use super::large::free_large;
use super::tls;
use crate::base::Result;
use crate::base::classes::{ClassId, MAX_SMALL};
use crate::heap::thread::{BATCH, ThreadHeap};

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
        let got = heap.allocate_batch(&part.heap, class, unsafe { &mut *slots })?;
        Ok((got, heap.taken()))
    });
    let Some((got, taken)) = got else { return ptr::null_mut() };
    // SAFETY: as above; there is at least one.
    let block = unsafe { (&*slots)[got - 1] };
    cache.set_len(class, got - 1);
    cache.note_fetched(class, got);
    if cache.is_time_to_sweep(taken) {
        flush_idle(cache);
    }
    block
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
            // What only passes through is not wanted here again.
            let count = if cache.only_frees(class) { room } else { room.div_ceil(2) };
            flush_oldest(cache, class, count);
            cache.note_sent_home(class);
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
        flush_oldest(cache, class, room.div_ceil(2));
    }
    cache.put(class, block);
}

/// Sends the oldest `count` blocks of a bin back, which has at least so many.
fn flush_oldest(cache: &mut ThreadCache, class: ClassId, count: usize) {
    let slots = cache.slots(class, count);
    // SAFETY: the bin holds `count` blocks, and the flush does not touch the cache's slots.
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
pub(super) fn in_some_shared<R>(
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
pub(super) fn with_shared<R>(part: &Part, work: impl FnOnce(&mut ThreadHeap) -> R) -> Option<R> {
    let _guard = part.shared_lock.lock();
    // SAFETY: the lock is held.
    unsafe { (*part.shared.get()).as_mut() }.map(work)
}

/// Runs `work` in the thread's region, then in the others, then in a new one that can hold
/// `size` bytes; `None` if all fail.
pub(super) fn in_some_region<R>(
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
