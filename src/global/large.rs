//! Runs and large blocks: all of more than [`MAX_SMALL`] bytes, and whatever changes its size.
#![allow(unsafe_code)] // works on the calling thread's cache and on raw blocks

use core::alloc::Layout;
use core::ptr;

use super::cache::{Phase, bin_offset, rounded};
use super::config::Config;
use super::flush::{drop_runs, give_run_back, refuse};
use super::heap::{HEAP, Part};
use super::runs::KeptRun;
use super::slow::{in_some_region, in_some_shared};
use super::tls;
use crate::base::Result;
use crate::base::classes::MAX_SMALL;
use crate::base::units::GRANULE;
use crate::heap::block::Block;
use crate::heap::granule::{BlockId, GranuleIdx};
use crate::heap::process::MAX_RUN;
use crate::heap::thread::ThreadHeap;

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
        && let Some(block) = ready_run(size, align)
    {
        return (block, false);
    }
    allocate_fresh_large(config, size, align, room, zeros)
}

/// What [`allocate_large`] does where the thread keeps no run that is ready. If it keeps none that would do
/// at all, it first gives up what it keeps too much of.
#[cold]
#[inline(never)]
fn allocate_fresh_large(
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
    let size = size.max(1);
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

/// The run that the calling thread kept last of those that fit, where it is aligned and committed as it is.
#[inline]
fn ready_run(size: usize, align: usize) -> Option<*mut u8> {
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *tls::get() };
    if cache.phase != Phase::Live {
        return None;
    }
    let granules = size.div_ceil(GRANULE);
    let run = cache.runs.last(granules)?;
    if run.block.addr() & (align - 1) != 0 || size > run.committed {
        return None;
    }
    cache.runs.take_last(granules);
    Some(run.block)
}

/// A run that the calling thread keeps and that fits, if need be after more of it is committed.
fn kept_run(size: usize, align: usize) -> Option<*mut u8> {
    // SAFETY: as above.
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

/// Gives back all runs that the calling thread keeps; false where it keeps none.
fn give_up_kept() -> bool {
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *tls::get() };
    let keeps = cache.phase == Phase::Live && cache.runs.keeps_any();
    if keeps {
        drop_runs(cache);
    }
    keeps
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
    // SAFETY: the caller's contract is the same.
    unsafe { free_found(part, offset, part.heap.find_block(offset), block) };
}

/// Frees a block that is not small, of which is known what it is.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
#[inline]
pub(crate) unsafe fn free_found(part: &Part, offset: usize, found: Result<Block>, block: *mut u8) {
    if let Ok(Block::Run { head, granules, .. }) = found {
        if HEAP.is_joined() {
            return free_joined(part, offset, block, (head, granules));
        }
        if keep(part, block, (head, granules)) {
            return;
        }
    }
    return_large(part, offset);
}

/// Keeps a run, if the calling thread may.
#[inline]
fn keep(part: &Part, block: *mut u8, (head, granules): (GranuleIdx, u32)) -> bool {
    // SAFETY: the calling thread's own cache, which nothing else refers to now.
    let cache = unsafe { &mut *tls::get() };
    let run = KeptRun { block, committed: part.heap.committed(head) };
    cache.phase == Phase::Live && cache.runs.keep(granules as usize, run)
}

/// Frees a run of a heap that was joined.
#[cold]
#[inline(never)]
fn free_joined(part: &Part, offset: usize, block: *mut u8, run: (GranuleIdx, u32)) {
    if !part.heap.is_plainly_of(offset, part.process) || !keep(part, block, run) {
        return_large(part, offset);
    }
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
    let room = if is_small { 0 } else { growth_room(old.size(), new_size) };
    // What the thread keeps may lie where the block could grow, or have room to.
    let is_growing = new_size > old.size() && new_size <= MAX_RUN as usize * GRANULE;
    if is_growing && (!was_small || room > new_size) {
        let any = give_up_kept();
        if any && !was_small && resize_large(block, new_size) {
            return block;
        }
    }
    let moved = if is_small {
        super::allocate_small(config, bin_offset(rounded(new)))
    } else {
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
