//! Arenas in regions: a header that the writer's successor and all readers go by.

use hshm::arena::{ArenaBuilder, ArenaReader, RegionArena};
use hshm::{Backend, KIB, MemfdBackend, OffsetPtr, Region, RegionOptions};

use super::choices::Choices;
use super::damage::Image;
use super::supervise::{Done, long, rounds};

const LEN: usize = 256 * KIB;

pub struct Scene {
    region: Region,
    image: Image,
}

impl Scene {
    pub fn new() -> Scene {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(LEN)).unwrap();
        let arena = RegionArena::create(region.clone(), &ArenaBuilder::default()).unwrap();
        let values = arena.push_iter(0..300u64);
        arena.set_root(arena.offset_of(&values[0]).unwrap());
        arena.publish();
        drop(arena);
        // The region's header is damaged with it: what kind of engine there is, and where.
        let image = Image::of(&region, 8192, &[]);
        Scene { region, image }
    }

    pub fn run(&self, choices: &mut Choices<'_>) -> Done {
        let mut done = Done::default();
        done.written += self.image.damage(choices, 4, false);
        if let Ok(reader) = ArenaReader::attach(self.region.clone()) {
            done.fine += self.read(&reader, choices);
        }
        if let Ok(mut arena) = RegionArena::attach(self.region.clone(), &ArenaBuilder::default()) {
            done.attached = true;
            done.fine += self.write(&mut arena, choices);
        }
        self.image.restore();
        done
    }

    fn read(&self, reader: &ArenaReader, choices: &mut Choices<'_>) -> u64 {
        let mut fine = 0;
        for _ in 0..4 {
            let offset = match (choices.below(3), reader.root::<u64>()) {
                (0, Some(root)) => root,
                (1, _) => OffsetPtr::new(choices.below(LEN) as u64 & !7),
                _ => OffsetPtr::new(choices.word()),
            };
            let count = choices.one_of(&[0, 1, 10, 300, 100_000, usize::MAX]);
            // SAFETY: any bits are numbers, and nobody writes to them now.
            if let Ok(values) = unsafe { reader.get_slice(offset, count) } {
                let sum = values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value));
                std::hint::black_box(sum);
                fine += 1;
            }
            if choices.once_in(3) {
                self.image.damage(choices, 2, true);
            }
        }
        fine
    }

    fn write(&self, arena: &mut RegionArena, choices: &mut Choices<'_>) -> u64 {
        let mut fine = 0;
        let (low, high) = (arena.region().base().addr(), arena.region().base().addr() + LEN);
        for _ in 0..2 + choices.below(6) {
            match choices.below(5) {
                0 => {
                    let place = choices.below(LEN + 4096);
                    fine += u64::from(arena.pop_to(place).is_ok());
                }
                1 => {
                    arena.publish();
                    fine += 1;
                }
                2 => arena.clear(),
                _ => {
                    let size = choices.one_of(&[1, 8, 1000, 50 * KIB, 300 * KIB]);
                    let layout = std::alloc::Layout::from_size_align(size, 8).unwrap();
                    if let Ok(place) = arena.try_push_layout(layout) {
                        let at = place.as_ptr().addr();
                        assert!(at >= low + 4096 && at + size <= high, "outside the region");
                        // SAFETY: just pushed, and in the region.
                        unsafe {
                            place.as_ptr().write_volatile(7);
                            place.as_ptr().add(size - 1).write_volatile(7);
                        }
                        fine += 1;
                    }
                }
            }
            if choices.once_in(4) {
                self.image.damage(choices, 2, true);
            }
        }
        fine
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
    damaged_for("arena::damaged", 5_000);
}

#[test]
#[ignore = "long"]
fn damaged_for_long() {
    damaged_for("arena::damaged_for_long", long(20));
}
