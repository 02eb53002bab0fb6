//! The paged heap: its header and all tables, the directory of roots, and the data behind them.

use std::alloc::Layout;

use hshm::{
    Allocator, Backend, KIB, MIB, MemContext, MemfdBackend, OffsetPtr, Owner, Region,
    RegionOptions, Root, Roots, ThreadLocalAllocator,
};

use super::choices::Choices;
use super::damage::Image;
use super::supervise::{Done, long, rounds};

const CTX: MemContext = MemContext::DEFAULT;
const LEN: usize = 12 * MIB;
/// The source's, the reaper's and the roots' lock, in the heap's header; see `src/README.md`. The
/// word of each shares eight bytes with another one.
pub const LOCKS: [usize; 3] = [0x1080, 0x1098, 0x10a0];

pub fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// A heap with something of everything in it.
pub struct Scene {
    region: Region,
    tables: usize,
    image: Image,
    /// Where blocks are.
    blocks: Vec<u64>,
    /// Keeps the region's first process slot.
    _creator: ThreadLocalAllocator,
}

impl Scene {
    pub fn new() -> Scene {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(LEN)).unwrap();
        let alloc = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
        let other = ThreadLocalAllocator::shm_attach(region.clone(), 0, 2).unwrap();
        let mut blocks = Vec::new();
        for size in [8, 24, 100, 100, 1000, 20 * KIB, 40 * KIB, 300 * KIB, 3 * MIB] {
            for (turn, owner) in [&alloc, &other].into_iter().enumerate() {
                if size > MIB && turn > 0 {
                    continue;
                }
                let block = owner.allocate_offset(CTX, layout(size, 8)).unwrap();
                if size >= 100 && turn == 0 {
                    // SAFETY: our own block.
                    unsafe { owner.transfer(block, Owner::Nobody) }.unwrap();
                }
                blocks.push(block.offset());
            }
        }
        // Some on their way back to another process.
        for size in [100, 50 * KIB] {
            let block = other.allocate_offset(CTX, layout(size, 8)).unwrap();
            // SAFETY: our own block.
            unsafe { alloc.free_offset(CTX, block) }.unwrap();
            blocks.push(block.offset());
        }
        Roots::of(&alloc).publish("root", [1u64; 8]).unwrap();
        let tables = alloc.verify().unwrap().tables;
        // One that has died, as far as its slot says: nobody leaves it.
        std::mem::forget(other);
        let image = Image::of(&region, tables, &LOCKS);
        Scene { region, tables, image, blocks, _creator: alloc }
    }

    /// One round.
    pub fn run(&self, choices: &mut Choices<'_>) -> Done {
        let mut done = Done::default();
        done.written += self.image.damage(choices, 4, false);
        let region = self.region.clone();
        if let Ok(alloc) = ThreadLocalAllocator::shm_attach(region, 0, 2) {
            done.attached = true;
            done.fine += self.use_it(alloc, choices);
        }
        self.image.restore();
        done
    }

    /// What an attached process may do with a heap that it does not trust. What it frees need not
    /// be its own: every free is checked.
    fn use_it(&self, alloc: ThreadLocalAllocator, choices: &mut Choices<'_>) -> u64 {
        let mut fine = 0;
        let roots = Roots::of(&alloc);
        let mut mine = Vec::new();
        let mut found: Option<Root<[u64; 8]>> = None;
        let again = choices.once_in(2);
        for _ in 0..4 + choices.below(10) {
            if again && choices.once_in(4) {
                self.image.damage(choices, 2, true);
            }
            fine += match choices.below(16) {
                0 => alloc.verify().is_ok(),
                1 => alloc.currently_allocated_size() + alloc.available() > 0,
                2 => match roots.find::<[u64; 8]>("root") {
                    Ok(root) => {
                        found = Some(root);
                        // SAFETY: any bits are numbers, and nobody writes to them now.
                        unsafe { roots.get(root) }.is_ok()
                    }
                    Err(_) => false,
                },
                3 => roots.iter().map(|root| root.name.len()).sum::<usize>() > 0,
                4 => match found.take() {
                    Some(root) => roots.unpublish(root).is_ok(),
                    None => roots.publish("new", [2u64; 4]).is_ok(),
                },
                5..=9 => {
                    let block = self.allocate(&alloc, choices);
                    mine.extend(block);
                    block.is_some()
                }
                10 => {
                    let block = OffsetPtr::new(self.offset(choices, &mine));
                    let to = choices.one_of(&[Owner::Nobody, Owner::ThisProcess]);
                    // SAFETY: nobody uses any block of this heap.
                    let done = unsafe { alloc.transfer(block, to) };
                    alloc.usable_size(block).is_ok() && done.is_ok()
                }
                11..=13 => {
                    let offset = match mine.pop() {
                        Some((offset, _)) if choices.once_in(2) => offset,
                        _ => self.offset(choices, &mine),
                    };
                    // SAFETY: nobody uses any block of this heap; what is none is refused.
                    unsafe { alloc.free_offset(CTX, OffsetPtr::new(offset)) }.is_ok()
                }
                14 => {
                    let old = OffsetPtr::new(self.offset(choices, &mine));
                    let size =
                        choices.one_of(&[1, 90, 5000, 60 * KIB, 500 * KIB, 3 * MIB, 9 * MIB]);
                    // SAFETY: as above.
                    let moved = unsafe { alloc.reallocate_offset(CTX, old, layout(size, 8)) };
                    if let Ok(block) = moved {
                        mine.retain(|(offset, _)| *offset != old.offset());
                        self.touch(&alloc, block.offset(), size);
                        mine.push((block.offset(), size));
                    }
                    moved.is_ok()
                }
                _ => {
                    alloc.trim();
                    alloc.reap() > 0
                }
            } as u64;
        }
        if choices.once_in(2) {
            // SAFETY: nobody uses the blocks of this process any more.
            fine += u64::from(unsafe { alloc.shm_detach() }.is_ok());
        }
        fine
    }

    fn allocate(
        &self,
        alloc: &ThreadLocalAllocator,
        choices: &mut Choices<'_>,
    ) -> Option<(u64, usize)> {
        let sizes = [1, 16, 100, 700, 3000, 20 * KIB, 40 * KIB, 70 * KIB, MIB, 3 * MIB, 5 * MIB];
        let size = choices.one_of(&sizes);
        let align = choices.one_of(&[8, 8, 8, 64, 4096, 128 * KIB]);
        let block = if choices.once_in(3) {
            alloc.allocate_zeroed_offset(CTX, layout(size, align))
        } else {
            alloc.allocate_offset(CTX, layout(size, align))
        };
        let offset = block.ok()?.offset();
        assert!(alloc.resolve(OffsetPtr::new(offset)).addr().is_multiple_of(align));
        self.touch(alloc, offset, size);
        Some((offset, size))
    }

    /// What was handed out lies where data does, and can be written to.
    fn touch(&self, alloc: &ThreadLocalAllocator, offset: u64, size: usize) {
        let at = offset as usize;
        assert!(at >= self.tables && at + size <= LEN, "a block of {size} bytes at {offset:#x}");
        let first = alloc.resolve(OffsetPtr::new(offset));
        // SAFETY: in the data of the region, as was just seen; nobody uses any block.
        unsafe {
            first.write_volatile(7);
            first.add(size - 1).write_volatile(7);
        }
    }

    fn offset(&self, choices: &mut Choices<'_>, mine: &[(u64, usize)]) -> u64 {
        match choices.below(6) {
            0 => choices.word(),
            1 => choices.below(LEN) as u64 & !0xFFFF,
            2 => choices.below(LEN) as u64 & !7,
            3 if !mine.is_empty() => mine[choices.below(mine.len())].0,
            _ => choices.one_of(&self.blocks),
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
    damaged_for("heap::damaged", 3_000);
}

#[test]
#[ignore = "long"]
fn damaged_for_long() {
    damaged_for("heap::damaged_for_long", long(20));
}
