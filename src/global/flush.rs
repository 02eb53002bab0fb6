//! Blocks on their way home: flushes of a thread's cache, and what gives memory back on demand.
#![allow(unsafe_code)] // works on the calling thread's cache and on raw blocks

use core::ptr;

use super::cache::{Phase, ThreadCache};
use super::heap::{HEAP, Part};
use super::runs::KeptRun;
use super::slow::with_shared;
use super::tls;
use crate::base::classes::{CLASSES, ClassId};
use crate::base::units::GRANULE;
use crate::heap::block::Block;
use crate::heap::granule::{BlockId, GranuleIdx};
use crate::heap::slab::Slab;
use crate::sync::atomic::Ordering::Relaxed;

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
    // Not inlined, nor `send`: the loop over the blocks keeps its registers.
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
pub(super) fn flush(cache: Option<&ThreadCache>, class: ClassId, blocks: &[*mut u8]) {
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
pub(super) fn refuse() {
    if HEAP.count() > 0 {
        HEAP.part(0).heap.source().refused_frees.fetch_add(1, Relaxed);
    }
}

/// Sends home what lies in bins that were not used while the thread's heap grew: it would go on growing
/// beside blocks that nobody wants.
#[cold]
#[inline(never)]
pub(super) fn flush_idle(cache: &mut ThreadCache) {
    for index in 0..CLASSES {
        let class = ClassId::new(index);
        if cache.is_idle(class) {
            let len = cache.len(class);
            let slots = cache.slots(class, len);
            // SAFETY: the bin's blocks, and the flush does not touch the cache's slots.
            flush(Some(cache), class, unsafe { &*slots });
            cache.drop_room(class);
        }
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
pub(super) fn tidy_all(cache: &mut ThreadCache) {
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
pub(super) fn drop_runs(cache: &mut ThreadCache) {
    while let Some(run) = cache.runs.take_longest() {
        give_run_back(run);
    }
}

/// Gives a run back that a cache kept.
#[cold]
pub(super) fn give_run_back(run: KeptRun) {
    let _visit = HEAP.visit();
    if let Some((_, part, offset)) = HEAP.find(run.block.addr()) {
        part.heap.free_run(part.process, GranuleIdx((offset / GRANULE) as u32));
    }
}
