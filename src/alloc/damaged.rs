//! Damage that once led astray: each test writes one thing that no sound heap has.
#![allow(unsafe_code)] // writes into a heap's tables

use core::alloc::Layout;

use super::{Allocator, ThreadLocalAllocator};
use crate::base::classes::{ClassId, class_index};
use crate::base::units::{CHUNK, GRANULE, KIB, MIB};
use crate::base::{AllocatorId, MemContext};
use crate::heap::granule::{Entry, GranuleIdx};
use crate::heap::layout::{ChunkIdx, ProcessSlot, RegionHeap};
use crate::heap::slab::Slab;
use crate::ptr::OffsetPtr;
use crate::region::Region;
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

const CTX: MemContext = MemContext::DEFAULT;
const OWN: ProcessSlot = ProcessSlot(0);
const LEN: usize = 24 * MIB;

struct Scene {
    alloc: ThreadLocalAllocator,
}

impl Scene {
    fn new() -> Scene {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = AllocatorId::new(0xDA3A, NEXT.fetch_add(1, Relaxed));
        let region = Region::anonymous(id, LEN).unwrap();
        Scene { alloc: ThreadLocalAllocator::shm_init_with(region, 2).unwrap() }
    }
    fn heap(&self) -> &RegionHeap {
        self.alloc.engine()
    }
    /// A block that lies in the region, or none.
    fn get(&self, size: usize) -> Option<u64> {
        let block = self.alloc.allocate_offset(CTX, Layout::from_size_align(size, 8).unwrap());
        let offset = block.ok()?.offset();
        let data = self.heap().data();
        let end = offset as usize + size;
        assert!(offset as usize >= data.start && end <= data.end, "{size} bytes at {offset:#x}");
        Some(offset)
    }
    fn free(&self, block: u64) {
        // SAFETY: nobody uses any block here; what is none is refused.
        let _ = unsafe { self.alloc.free_offset(CTX, OffsetPtr::new(block)) };
    }
    fn head(block: u64) -> GranuleIdx {
        GranuleIdx((block as usize / GRANULE) as u32)
    }
    /// Everything that walks lists and tables: whatever it finds, it comes back.
    fn use_all(&self) {
        for size in [8, 100, 30 * KIB, 100 * KIB, MIB, 5 * MIB] {
            let blocks = [0; 4].map(|_| self.get(size));
            blocks.into_iter().flatten().for_each(|block| self.free(block));
        }
        let _ = self.alloc.verify();
        let _ = self.alloc.available() + self.alloc.currently_allocated_size();
        self.alloc.trim();
    }
}

#[test]
fn lists_of_chunks_that_lead_outside_or_round() {
    for link in [u32::MAX, 7, 1 << 20, 0x0400_0000, 2] {
        let scene = Scene::new();
        let kept = scene.get(100).unwrap();
        for list in 0..7 {
            let Some(chunk) = scene.heap().list_head(OWN, list) else { continue };
            // To itself, to a chunk that is no chunk, or to the tables'.
            let link = if link == 2 { chunk.0 + 1 } else { link };
            scene.heap().chunk(chunk).next.store(link, Relaxed);
            scene.heap().chunk(chunk).prev.store(link, Relaxed);
        }
        scene.use_all();
        scene.free(kept);
    }
}

#[test]
fn lists_of_slabs_that_lead_outside_or_round() {
    for link in [u32::MAX, 1, (LEN / GRANULE) as u32, 1 << 30, 0] {
        let scene = Scene::new();
        // Two slabs in part free, in the list of their class.
        let blocks: Vec<u64> = (0..20).map(|_| scene.get(30 * KIB).unwrap()).collect();
        for index in [0, 9] {
            scene.free(blocks[index]);
        }
        let heads = [Scene::head(blocks[0]), Scene::head(blocks[9])];
        for head in heads {
            let desc = scene.heap().desc(head);
            let link = if link == 0 { head.0 + 1 } else { link };
            desc.next.store(link, Relaxed);
            desc.prev.store(link, Relaxed);
            desc.free.store(0, Relaxed);
        }
        for _ in 0..12 {
            scene.get(30 * KIB);
        }
        scene.use_all();
    }
}

#[test]
fn free_bits_behind_the_last_block() {
    let scene = Scene::new();
    // At the end of the region, where the next block would be outside.
    let size = 30 * KIB;
    let blocks: Vec<u64> = core::iter::from_fn(|| scene.get(size)).collect();
    let class = ClassId::new(class_index(size));
    for block in &blocks {
        let entry = scene.heap().entry(Scene::head(*block));
        let head = GranuleIdx(Scene::head(*block).0 - entry.distance());
        let slab = Slab::new(scene.heap(), head, class);
        slab.local_word(0).store(u64::MAX, Relaxed);
        slab.remote_word(0).store(u64::MAX, Relaxed);
        slab.desc.free.store(u32::MAX, Relaxed);
    }
    for _ in 0..1000 {
        scene.get(size);
    }
    scene.use_all();
}

#[test]
fn large_blocks_longer_than_their_region() {
    let scene = Scene::new();
    let block = scene.get(5 * MIB).unwrap();
    let chunk = scene.heap().chunk(ChunkIdx((block as usize / CHUNK) as u32));
    // The two words of a large block: its chunks, and its bytes.
    let words = (&raw const *chunk).cast::<u64>();
    for (span, bytes) in [(u32::MAX, u64::MAX), (1, u64::MAX), (0, 1 << 40), (u32::MAX, 5 << 20)] {
        // SAFETY: `owner | span` is the entry's first word, `bytes` its fifth, all of them atomics
        // that nobody else uses now.
        unsafe {
            let first = words.read_volatile() & 0xFFFF_FFFF;
            words.cast_mut().write_volatile(first | u64::from(span) << 32);
            words.add(4).cast_mut().write_volatile(bytes);
        }
        let block = OffsetPtr::new(block);
        let usable = scene.alloc.usable_size(block).unwrap();
        assert!(block.offset() as usize + usable <= LEN);
        for size in [9 * MIB, 20 * MIB, 1 << 40, 5 * MIB] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: nobody uses the block.
            if let Ok(same) = unsafe { scene.alloc.reallocate_offset(CTX, block, layout) } {
                assert!(same.offset() as usize + size <= LEN, "{size}");
                if same != block {
                    scene.free(same.offset());
                    return;
                }
            }
        }
    }
    scene.use_all();
}

#[test]
fn a_large_block_in_the_middle_of_a_chunk() {
    let scene = Scene::new();
    let block = scene.get(100 * KIB).unwrap();
    let owner = scene.heap().entry(Scene::head(block)).owner();
    scene.heap().set_entry(Scene::head(block), Entry::large(owner));
    assert!(scene.alloc.usable_size(OffsetPtr::new(block)).is_err());
    let before = scene.alloc.refused_frees();
    scene.free(block);
    assert_eq!(scene.alloc.refused_frees(), before + 1);
}

#[test]
fn a_run_that_reaches_past_its_chunk() {
    let scene = Scene::new();
    let last = GranuleIdx((LEN / GRANULE) as u32 - 1);
    for length in [2, 32, 33, u32::MAX] {
        scene.heap().desc(last).init_run(length, u32::MAX);
        let owner = scene.heap().entry(Scene::head(scene.get(40 * KIB).unwrap())).owner();
        scene.heap().set_entry(last, Entry::run(owner, 0));
        let offset = OffsetPtr::new(last.0 as u64 * GRANULE as u64);
        assert!(scene.alloc.usable_size(offset).is_err(), "{length}");
        scene.free(offset.offset());
    }
    scene.use_all();
}

#[test]
fn counters_of_any_value() {
    let scene = Scene::new();
    let kept = [100, 40 * KIB, 5 * MIB].map(|size| scene.get(size).unwrap());
    let block = scene.heap().process(OWN);
    for value in [u64::MAX, 0, 1 << 63] {
        for word in [&block.owned, &block.large, &block.in_runs, &block.in_slabs] {
            word.store(value, Relaxed);
        }
        scene.heap().set_retained(OWN, value as usize);
        scene.heap().source().fresh.store(value as u32, Relaxed);
        scene.heap().desc(Scene::head(kept[0])).free.store(value as u32, Relaxed);
        scene.use_all();
    }
    kept.into_iter().for_each(|block| scene.free(block));
}
