//! The buddy: its shared header, list table, the headers of its pages and the tree in free ones.

use std::alloc::Layout;

use hshm::{
    Allocator, Backend, BuddyAllocator, Heap, KIB, MIB, MemContext, MemfdBackend, OffsetPtr,
    Region, RegionOptions,
};

use super::choices::Choices;
use super::damage::Image;
use super::supervise::{Done, long, rounds};

const CTX: MemContext = MemContext::DEFAULT;
const LEN: usize = 512 * KIB;
/// Where in the shared header the lock is, and behind it the word that says that an operation is
/// under way; see `src/heap/buddy/shared.rs`.
pub const LOCK: usize = 64;

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

pub struct Scene {
    region: Region,
    header: OffsetPtr<u8>,
    image: Image,
    blocks: Vec<u64>,
}

impl Scene {
    pub fn new() -> Scene {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(LEN)).unwrap();
        let start = region.payload_offset() as u64;
        let heap = Heap::new(start, LEN as u64).unwrap();
        let metadata = BuddyAllocator::MIN_METADATA;
        let buddy = BuddyAllocator::shm_init(region.clone(), OffsetPtr::new(start), heap, metadata)
            .unwrap();
        let mut blocks = Vec::new();
        for size in [32, 100, 5000, 20 * KIB, 32, 700, 60 * KIB, 100, 16 * KIB, 40 * KIB] {
            blocks.push(buddy.allocate_offset(CTX, layout(size, 8)).unwrap().offset());
        }
        for block in [1, 3, 4, 6, 8].map(|index: usize| blocks[index]) {
            // SAFETY: our own block.
            unsafe { buddy.free_offset(CTX, OffsetPtr::new(block)) }.unwrap();
        }
        let header = buddy.header_offset();
        let image =
            Image::of(&region, header.offset() as usize + 4096, &[header.offset() as usize + LOCK]);
        Scene { region, header, image, blocks }
    }

    pub fn run(&self, choices: &mut Choices<'_>) -> Done {
        let mut done = Done::default();
        done.written += self.image.damage(choices, 4, true);
        if choices.once_in(4) {
            let busy = self.region.base().wrapping_add(self.header.offset() as usize + LOCK + 4);
            // SAFETY: in the header; nobody else uses it now.
            unsafe { busy.cast::<u32>().write_volatile(1) };
        }
        if let Ok(buddy) = BuddyAllocator::shm_attach(self.region.clone(), self.header) {
            done.attached = true;
            done.fine += self.use_it(&buddy, choices);
        }
        self.image.restore();
        done
    }

    fn use_it(&self, buddy: &BuddyAllocator, choices: &mut Choices<'_>) -> u64 {
        let mut fine = 0;
        let mut mine: Vec<u64> = Vec::new();
        let again = choices.once_in(2);
        for _ in 0..6 + choices.below(12) {
            if again && choices.once_in(4) {
                self.image.damage(choices, 2, true);
            }
            let offset = match choices.below(4) {
                0 => choices.word(),
                1 => choices.below(LEN) as u64 & !15,
                2 if !mine.is_empty() => mine[choices.below(mine.len())],
                _ => choices.one_of(&self.blocks),
            };
            let block = OffsetPtr::new(offset);
            fine += match choices.below(9) {
                0 => buddy.verify().is_ok(),
                1 => buddy.accounting().is_ok(),
                2 => buddy.coalesce().is_ok(),
                3 => buddy.rebuild().is_ok(),
                4 => buddy.available() + buddy.currently_allocated_size() > 0,
                // SAFETY: nobody uses any block; what is none is refused.
                5 => unsafe { buddy.free_offset(CTX, block) }.is_ok(),
                6 => {
                    let size = choices.one_of(&[1, 64, 3000, 30 * KIB, 200 * KIB]);
                    // SAFETY: as above.
                    unsafe { buddy.reallocate_offset(CTX, block, layout(size, 8)) }
                        .inspect(|block| self.touch(buddy, block.offset(), size))
                        .is_ok()
                }
                _ => {
                    let size = choices.one_of(&[1, 32, 100, 5000, 16 * KIB, 17 * KIB, MIB]);
                    let align = choices.one_of(&[8, 8, 64, 4096]);
                    let block = buddy.allocate_offset(CTX, layout(size, align));
                    if let Ok(block) = block {
                        self.touch(buddy, block.offset(), size);
                        mine.push(block.offset());
                    }
                    block.is_ok()
                }
            } as u64;
        }
        fine
    }

    fn touch(&self, buddy: &BuddyAllocator, offset: u64, size: usize) {
        assert!(offset as usize + size <= LEN, "a block of {size} bytes at {offset:#x}");
        let first = buddy.resolve(OffsetPtr::new(offset));
        // SAFETY: in the region, as was just seen; nobody uses any block.
        unsafe {
            first.write_volatile(7);
            first.add(size - 1).write_volatile(7);
        }
    }
}

fn damaged_for(test: &str, count: u64) {
    rounds(test, count, || {
        let scene = Scene::new();
        move |choices| scene.run(choices)
    });
}

#[test]
fn damaged() {
    damaged_for("buddy::damaged", 5_000);
}

#[test]
#[ignore = "long"]
fn damaged_for_long() {
    damaged_for("buddy::damaged_for_long", long(30));
}
