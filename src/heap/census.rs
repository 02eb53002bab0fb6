//! What is handed out, what is free, and how scattered that is.
//!
//! All of it is counted when somebody asks, from the granule map and the bitmaps, and nothing of it is
//! remembered: allocating pays nothing for it, and a process that dies between a free and its account of
//! it leaves no wrong sum. Exact on a quiet heap.

use super::block::Block;
use super::chunk::Use;
use super::granule::{Entry, GranuleIdx, Kind};
use super::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use super::process::MAX_RUN;
use super::slab::Slab;
use crate::base::classes::ClassId;
use crate::base::units::{CHUNK, GRANULE, GRANULES_PER_CHUNK};
use crate::sync::atomic::Ordering::Relaxed;

/// How scattered the free memory of an allocator is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fragmentation {
    /// In blocks that are handed out.
    pub in_use: usize,
    /// In pages that hold blocks of one size, between those that are handed out: free for requests of
    /// that size only, until all of a page is free. With the runs of pages that threads keep.
    pub free_in_pages: usize,
    /// In free pages: free for any request.
    pub free: usize,
    /// The largest block that the free pages can serve.
    pub largest_free: usize,
}

impl Fragmentation {
    /// The share of the memory in pages that no block uses: 0 where all of it is in use, towards 1
    /// where few blocks hold many pages.
    pub fn internal(&self) -> f64 {
        ratio(self.free_in_pages, self.in_use + self.free_in_pages)
    }
    /// The share of the free pages that one request cannot have: 0 where they are in one piece, towards
    /// 1 where they are scattered.
    pub fn external(&self) -> f64 {
        ratio(self.free - self.largest_free.min(self.free), self.free)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The longest run of set bits, no longer than a run of granules may be.
fn longest_run(word: u64) -> u32 {
    let mut starts = word;
    let mut length = 0;
    while starts != 0 && length < MAX_RUN {
        starts &= starts >> 1;
        length += 1;
    }
    length
}

impl RegionHeap {
    /// Bytes in blocks that are handed out, all processes' together.
    pub(crate) fn bytes_allocated(&self) -> usize {
        let mut bytes = 0usize;
        self.for_each_head(|head, entry| {
            let more = match entry.kind() {
                Kind::Slab => {
                    let class = ClassId::new(entry.class_index());
                    Slab::new(self, head, class).live() as usize * class.size()
                }
                _ => self.undivided(head, entry).unwrap_or(0),
            };
            bytes = more.saturating_add(bytes);
        });
        bytes
    }

    /// Bytes of the run or the large block at `head`, if it is handed out.
    fn undivided(&self, head: GranuleIdx, entry: Entry) -> Option<usize> {
        let owner = entry.owner();
        match entry.kind() {
            Kind::Run if self.desc(head).is_run_live() => {
                let granules = self.run_granules(head);
                Some(self.block_size(Block::Run { head, granules, owner }))
            }
            Kind::Large => Some(self.block_size(Block::Large { head })),
            _ => None,
        }
    }

    /// Calls `visit` for every block that is handed out, with its offset, its size, and whether it
    /// belongs to `process`.
    pub(crate) fn visit_blocks(
        &self,
        process: ProcessSlot,
        visit: &mut dyn FnMut(usize, usize, bool),
    ) {
        self.for_each_head(|head, entry| {
            let in_own = self.is_in_own(head, process);
            let kept = self.desc(head).is_kept();
            let own = |offset: usize| match kept {
                false => in_own,
                true if in_own => !self.is_kept_from(offset, process),
                true => self.is_kept_by(offset, process),
            };
            if entry.kind() == Kind::Slab {
                let class = ClassId::new(entry.class_index());
                let slab = Slab::new(self, head, class);
                for index in (0..slab.fresh()).filter(|&index| !slab.is_free(index)) {
                    let offset = slab.offset_of(index);
                    visit(offset, class.size(), own(offset));
                }
            } else if let Some(size) = self.undivided(head, entry) {
                let offset = head.0 as usize * GRANULE;
                visit(offset, size, own(offset));
            }
        });
    }

    /// Bytes of the blocks in `process`'s slabs that are not handed out, and of the runs that its
    /// threads keep.
    pub(crate) fn free_in_slabs(&self, process: ProcessSlot) -> usize {
        let mut bytes = 0;
        self.for_each_head(|head, entry| {
            if !self.is_in_own(head, process) {
                return;
            }
            if entry.kind() == Kind::Slab {
                let class = ClassId::new(entry.class_index());
                let live = Slab::new(self, head, class).live();
                bytes += class.blocks().saturating_sub(live) as usize * class.size();
            } else if entry.kind() == Kind::Run && !self.desc(head).is_run_live() {
                bytes += self.run_granules(head) as usize * GRANULE;
            }
        });
        bytes
    }

    /// How scattered the free memory is that `process` can have.
    pub(crate) fn fragmentation(&self, process: ProcessSlot) -> Fragmentation {
        let mut found = Fragmentation {
            in_use: self.bytes_allocated(),
            free_in_pages: self.free_in_slabs(process),
            ..Fragmentation::default()
        };
        let first = self.first_granule() / GRANULES_PER_CHUNK as u32;
        let fresh = self.source().fresh.load(Relaxed);
        let (mut chunks, mut longest) = (0, 0);
        for index in first..self.chunk_count() {
            let chunk = ChunkIdx(index);
            let mask = self.chunk_mask(chunk);
            let usage = if index < fresh { self.chunk(chunk).usage() } else { Use::Free };
            let free = match usage {
                Use::Free => mask,
                Use::Pages(slot) if slot == process => mask & !self.chunk(chunk).used.load(Relaxed),
                _ => 0,
            };
            found.free += free.count_ones() as usize * GRANULE;
            longest = longest.max(longest_run(free));
            chunks = if usage == Use::Free && mask == u64::MAX { chunks + 1 } else { 0 };
            found.largest_free = found.largest_free.max(chunks * CHUNK);
        }
        found.largest_free = found.largest_free.max(longest as usize * GRANULE);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits() {
        assert_eq!(longest_run(0), 0);
        assert_eq!(longest_run(0b1011_0111), 3);
        assert_eq!(longest_run(u64::MAX), MAX_RUN);
        assert_eq!(longest_run(u64::MAX << 60), 4);
    }

    #[test]
    fn shares() {
        let half = Fragmentation { in_use: 10, free_in_pages: 10, free: 40, largest_free: 10 };
        assert_eq!((half.internal(), half.external()), (0.5, 0.75));
        let none = Fragmentation::default();
        assert_eq!((none.internal(), none.external()), (0.0, 0.0));
    }
}
