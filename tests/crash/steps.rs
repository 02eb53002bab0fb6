//! One operation, killed after each of its instructions.

use std::time::Instant;

use hshm::{
    Allocator, Backend, HeapReport, KIB, MIB, MemContext, MemfdBackend, OffsetPtr, Owner,
    PosixShmMmap, Region, RegionOptions, Roots, ThreadLocalAllocator, align_down,
};

use super::support::{turn, unique};
use super::victim::{Arrival, Lives, Path, Victim, stay_on_one_processor, stop};
use super::work::{allocate, check, free, layout, operate};

const CTX: MemContext = MemContext::DEFAULT;

/// How much of everything.
#[derive(Clone, Copy)]
struct Form {
    /// Instructions at which the victim dies, at most, spread evenly.
    offsets: u64,
    /// What the survivors do after each death.
    operations: u64,
    /// Only every `of`th offset, from this one on.
    part: u64,
    of: u64,
}

const SHORT: Form = Form { offsets: 24, operations: 2_000, part: 0, of: 1 };

fn long() -> Form {
    let number = |name, usual| match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => usual,
    };
    Form {
        offsets: number("CRASH_OFFSETS", 20_000),
        operations: number("CRASH_OPERATIONS", 100_000),
        part: number("CRASH_PART", 0),
        of: number("CRASH_PARTS", 1),
    }
}

/// What a victim works with: its own handle and what the survivor gave it.
struct Scene<'a> {
    region: &'a Region,
    given: &'a [u64],
    left: &'a [u64],
}

impl Scene<'_> {
    fn attach(&self) -> ThreadLocalAllocator {
        ThreadLocalAllocator::shm_attach(self.region.clone(), 0, 4).unwrap()
    }
}

/// One operation: what happens before, in full speed, and what is stepped through.
struct Case {
    name: &'static str,
    /// Blocks that the survivor allocates for each victim.
    given: &'static [usize],
    /// Blocks that somebody allocated who left. All but the first outlive the victim.
    left: &'static [usize],
    life: fn(&Scene<'_>),
    /// What survivors expect of named roots.
    roots: Names,
    /// The region is of a file system that may be full, so that memory comes before it is touched.
    committed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Names {
    /// The directory is there from the beginning.
    Directory,
    /// The survivor published one for the victim.
    Published,
    /// Each victim has a heap without a directory.
    Fresh,
}

fn publishes(scene: &Scene<'_>) {
    stepped(scene, warm, |alloc, _| {
        Roots::of(alloc).publish(VICTIM, VALUE).unwrap();
    });
}

const PLAIN: Case = Case {
    name: "",
    given: &[],
    left: &[],
    life: |_| (),
    roots: Names::Directory,
    committed: false,
};

fn get(alloc: &ThreadLocalAllocator, size: usize) -> u64 {
    alloc.allocate_offset(CTX, layout(size)).unwrap().offset()
}

/// Attaches, uses some memory, and then does `work` between the two stops.
fn stepped<T>(
    scene: &Scene<'_>,
    before: impl FnOnce(&ThreadLocalAllocator) -> T,
    work: impl FnOnce(&ThreadLocalAllocator, T),
) {
    let alloc = scene.attach();
    let prepared = before(&alloc);
    stop();
    work(&alloc, prepared);
    stop();
    std::mem::forget(alloc);
}

/// The size of a block in which a victim notes which one it hands over.
const NOTE: usize = 72;

fn note(alloc: &ThreadLocalAllocator, block: u64) -> *mut u64 {
    alloc.resolve(OffsetPtr::new(block)).cast()
}

type Value = [u64; 9];
const VALUE: Value = [7; 9];
/// The name that a victim gives, or takes away.
const VICTIM: &str = "victim";

/// The victim dies with it.
fn use_it(_block: u64) {}

/// Whether there is memory where a block begins.
fn has_memory(block: *mut u8) -> bool {
    let mut is_there = 0;
    // SAFETY: one byte for the one page.
    unsafe { libc::mincore(block.cast(), 1, &mut is_there) };
    is_there & 1 == 1
}

/// Bytes of a region from `start` on that are in memory, whoever touched them.
fn resident(region: &Region, start: usize) -> usize {
    const PAGE: usize = 4096;
    let (from, len) = (region.base().wrapping_add(start), region.len() - start);
    let mut pages = vec![0u8; len / PAGE];
    // SAFETY: the region's pages, and a byte for each.
    let found = unsafe { libc::mincore(from.cast(), len, pages.as_mut_ptr()) };
    assert_eq!(found, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 == 1).count() * PAGE
}

fn some_of_each(alloc: &ThreadLocalAllocator) {
    for size in [100, 40 * KIB, 300 * KIB, 6 * MIB] {
        use_it(get(alloc, size));
    }
}

fn warm(alloc: &ThreadLocalAllocator) -> u64 {
    [100, 40 * KIB, 100].map(|size| get(alloc, size))[2]
}

const CASES: &[Case] = &[
    Case {
        name: "allocate 100 B",
        life: |scene| stepped(scene, warm, |alloc, _| use_it(get(alloc, 100))),
        ..PLAIN
    },
    Case {
        name: "free 100 B",
        life: |scene| stepped(scene, warm, |alloc, block| free(alloc, block)),
        ..PLAIN
    },
    Case {
        name: "free the last of a slab",
        life: |scene| {
            let fill = |alloc: &ThreadLocalAllocator| {
                let blocks: Vec<u64> = (0..5).map(|_| get(alloc, 30 * KIB)).collect();
                blocks[1..4].iter().for_each(|&block| free(alloc, block));
                (blocks[0], blocks[4])
            };
            stepped(scene, fill, |alloc, (first, last)| {
                free(alloc, first);
                free(alloc, last);
            });
        },
        ..PLAIN
    },
    Case {
        name: "cross-process free of 100 B",
        given: &[100, 100],
        life: |scene| stepped(scene, warm, |alloc, _| free(alloc, scene.given[0])),
        ..PLAIN
    },
    Case {
        name: "cross-process free of 200 KiB",
        given: &[200 * KIB],
        life: |scene| stepped(scene, warm, |alloc, _| free(alloc, scene.given[0])),
        ..PLAIN
    },
    Case {
        name: "cross-process free of 6 MiB",
        given: &[6 * MIB],
        life: |scene| stepped(scene, warm, |alloc, _| free(alloc, scene.given[0])),
        ..PLAIN
    },
    Case {
        name: "growth: a new slab",
        life: |scene| stepped(scene, warm, |alloc, _| use_it(get(alloc, 3000))),
        ..PLAIN
    },
    Case {
        name: "growth: a new chunk",
        life: |scene| {
            let nearly_full = |alloc: &ThreadLocalAllocator| {
                (0..2).for_each(|_| use_it(get(alloc, 2 * MIB)));
            };
            stepped(scene, nearly_full, |alloc, ()| use_it(get(alloc, 2 * MIB)));
        },
        ..PLAIN
    },
    Case {
        name: "allocate 6 MiB",
        life: |scene| stepped(scene, warm, |alloc, _| use_it(get(alloc, 6 * MIB))),
        ..PLAIN
    },
    Case {
        name: "allocate 6 MiB, with memory at once",
        life: |scene| {
            // Huge pages, and ordinary ones at the end.
            const SIZE: usize = 6 * MIB + 300 * KIB;
            // What comes after blocks that are used to their ends is expected to be.
            let two_in_use = |alloc: &ThreadLocalAllocator| {
                for _ in 0..2 {
                    let block = alloc.resolve(OffsetPtr::new(get(alloc, SIZE)));
                    // SAFETY: the victim's own block.
                    unsafe { block.write_bytes(1, SIZE) };
                }
                // Where the system can: memory of a block that nobody has touched.
                has_memory(alloc.resolve(OffsetPtr::new(get(alloc, SIZE))))
            };
            stepped(scene, two_in_use, |alloc, expected| {
                let block = alloc.resolve(OffsetPtr::new(get(alloc, SIZE)));
                assert_eq!(has_memory(block), expected);
            });
        },
        ..PLAIN
    },
    Case {
        name: "allocate 6 MiB, committed ahead",
        life: |scene| stepped(scene, warm, |alloc, _| use_it(get(alloc, 6 * MIB))),
        committed: true,
        ..PLAIN
    },
    Case {
        name: "5 MiB grow to 7, committed ahead",
        life: |scene| {
            let five = |alloc: &ThreadLocalAllocator| OffsetPtr::new(get(alloc, 5 * MIB));
            stepped(scene, five, |alloc, block| {
                // SAFETY: the victim's own block.
                unsafe { alloc.reallocate_offset(CTX, block, layout(7 * MIB)) }.unwrap();
            });
        },
        committed: true,
        ..PLAIN
    },
    Case {
        name: "free 6 MiB",
        life: |scene| {
            stepped(scene, |alloc| get(alloc, 6 * MIB), |alloc, block| free(alloc, block));
        },
        ..PLAIN
    },
    Case {
        name: "a run grows and shrinks",
        life: |scene| {
            stepped(
                scene,
                |alloc| get(alloc, 200 * KIB),
                |alloc, block| {
                    let mut block = OffsetPtr::new(block);
                    for size in [600 * KIB, 100 * KIB] {
                        // SAFETY: the victim's own block.
                        block =
                            unsafe { alloc.reallocate_offset(CTX, block, layout(size)) }.unwrap();
                    }
                },
            );
        },
        ..PLAIN
    },
    Case {
        name: "a run is kept and reused",
        life: |scene| {
            stepped(
                scene,
                |alloc| get(alloc, 200 * KIB),
                |alloc, block| {
                    free(alloc, block);
                    // Out of what was kept, and a longer one.
                    use_it(get(alloc, 150 * KIB));
                    use_it(get(alloc, 300 * KIB));
                },
            );
        },
        ..PLAIN
    },
    Case {
        name: "returned runs are taken back",
        life: |scene| {
            // What another process freed of the victim's, in one thread block and its kept runs.
            let returned = |alloc: &ThreadLocalAllocator| {
                let other = scene.attach();
                let blocks = [200, 200, 40].map(|kib| get(alloc, kib * KIB));
                blocks[1..].iter().for_each(|&block| free(&other, block));
                std::mem::forget(other);
            };
            stepped(scene, returned, |alloc, ()| {
                use_it(get(alloc, 200 * KIB));
                alloc.trim();
            });
        },
        ..PLAIN
    },
    Case {
        name: "hand over, take over, free",
        given: &[1000, NOTE],
        life: |scene| {
            let noted = |alloc: &ThreadLocalAllocator| {
                let mine = warm(alloc);
                // SAFETY: the note is the victim's to write.
                unsafe { note(alloc, scene.given[1]).write(mine) };
                mine
            };
            stepped(scene, noted, |alloc, mine| {
                // SAFETY: the victim's own block, and one that it was given.
                unsafe {
                    alloc.transfer(OffsetPtr::new(mine), Owner::Nobody).unwrap();
                    alloc.transfer(OffsetPtr::new(mine), Owner::ThisProcess).unwrap();
                    alloc.transfer(OffsetPtr::new(scene.given[0]), Owner::ThisProcess).unwrap();
                }
                free(alloc, scene.given[0]);
            });
        },
        ..PLAIN
    },
    Case {
        name: "attach",
        life: |scene| {
            stop();
            let alloc = scene.attach();
            stop();
            std::mem::forget(alloc);
        },
        ..PLAIN
    },
    Case {
        name: "detach",
        life: |scene| {
            let alloc = scene.attach();
            some_of_each(&alloc);
            stop();
            // SAFETY: nobody uses the victim's blocks.
            unsafe { alloc.shm_detach() }.unwrap();
            stop();
        },
        ..PLAIN
    },
    Case { name: "publish", life: publishes, ..PLAIN },
    Case {
        name: "publish a run",
        life: |scene| {
            let run = |alloc: &ThreadLocalAllocator| get(alloc, 200 * KIB);
            stepped(scene, run, |alloc, block| {
                let target = OffsetPtr::<Value>::new(block);
                // SAFETY: the victim's own block; any bits are a value.
                unsafe { Roots::of(alloc).publish_at(VICTIM, target) }.unwrap();
            });
        },
        ..PLAIN
    },
    Case { name: "the first publication", life: publishes, roots: Names::Fresh, ..PLAIN },
    Case {
        name: "unpublish, free",
        life: |scene| {
            stepped(scene, warm, |alloc, _| {
                let roots = Roots::of(alloc);
                let block = roots.unpublish(roots.find::<Value>(VICTIM).unwrap()).unwrap();
                free(alloc, block.offset());
            });
        },
        roots: Names::Published,
        ..PLAIN
    },
    Case {
        name: "adopt a chunk",
        left: &[300 * KIB, 100, 40 * KIB],
        life: |scene| {
            stepped(
                scene,
                // Looks for dead ones: no second look, which takes ten thousand instructions.
                |alloc| use_it(get(alloc, 6 * MIB)),
                |alloc, ()| {
                    use_it(get(alloc, 100));
                    use_it(get(alloc, 300 * KIB));
                },
            );
        },
        ..PLAIN
    },
    Case {
        name: "give back of an adopted chunk",
        left: &[300 * KIB, 100, 40 * KIB],
        life: |scene| {
            let adopt = |alloc: &ThreadLocalAllocator| {
                use_it(get(alloc, 100));
                free(alloc, scene.left[0]);
            };
            stepped(scene, adopt, |alloc, ()| alloc.trim());
        },
        ..PLAIN
    },
    Case {
        name: "reap another",
        life: |scene| {
            let other = Victim::fork(|| {
                let alloc = scene.attach();
                some_of_each(&alloc);
                std::mem::forget(alloc);
                // SAFETY: ends the process without ado.
                unsafe { libc::_exit(0) };
            });
            let alloc = scene.attach();
            // It has ended, of itself or not; its zombie stays.
            while !other.has_failed() {
                std::thread::yield_now();
            }
            stop();
            alloc.reap();
            stop();
            std::mem::forget((alloc, other));
        },
        ..PLAIN
    },
];

/// What must be the same before and after each death.
fn blocks(report: &HeapReport) -> (usize, usize) {
    (report.blocks_in_use, report.in_use())
}

struct Figures {
    instructions: u64,
    deaths: u64,
    /// Deaths at another instruction than the one that was meant: victims are not quite alike.
    elsewhere: u64,
    seconds: f64,
}

/// A heap, and what a survivor owns in it all the time.
struct Home {
    region: Region,
    alloc: ThreadLocalAllocator,
    own: Vec<u64>,
    before: (usize, usize),
    /// Where data begins, behind the tables, and bytes of it in memory.
    data: usize,
    had: usize,
}

impl Home {
    fn new(case: &Case) -> Home {
        let options = RegionOptions::new().capacity(96 * MIB);
        let region = if case.committed {
            let name = unique("crash-steps");
            let region = PosixShmMmap::create(&name, &options).unwrap();
            std::fs::remove_file(format!("/dev/shm/{name}")).unwrap();
            region
        } else {
            MemfdBackend::create("", &options).unwrap()
        };
        // Few slots: to look through many is the same instructions again.
        let alloc = ThreadLocalAllocator::shm_init_with(region.clone(), 8).unwrap();
        let own = [50, 5000, 100 * KIB, 5 * MIB].map(|size| allocate(&alloc, CTX, size));
        if case.roots != Names::Fresh {
            Roots::of(&alloc).publish("survivor", 1u64).unwrap();
        }
        alloc.trim();
        let before = blocks(&alloc.verify().unwrap());
        let data = align_down(own[0].min(own[1]) as usize, 64 * KIB);
        let had = resident(&region, data);
        Home { region, alloc, own: own.into(), before, data, had }
    }

    /// Blocks of somebody who is gone.
    fn left_behind(&self, sizes: &[usize]) -> Vec<u64> {
        if sizes.is_empty() {
            return Vec::new();
        }
        let other = ThreadLocalAllocator::shm_attach(self.region.clone(), 0, 4).unwrap();
        sizes.iter().map(|&size| allocate(&other, CTX, size)).collect()
    }

    /// Frees what is there still.
    fn free_if_live(&self, block: u64) {
        if self.alloc.usable_size(OffsetPtr::new(block)).is_ok() {
            free(&self.alloc, block);
        }
    }

    /// A victim lives so long, and survivors go on.
    fn die_after<T>(
        &mut self,
        case: &Case,
        live: impl FnOnce(&Victim) -> T,
        count: u64,
        operations: u64,
    ) -> T {
        // SAFETY: any number of seconds is fine.
        unsafe { libc::alarm(600) };
        let alloc = &self.alloc;
        let given: Vec<u64> = case.given.iter().map(|size| get(alloc, *size)).collect();
        let left = self.left_behind(case.left);
        let noted = (case.given.last() == Some(&NOTE)).then(|| note(alloc, given[given.len() - 1]));
        if let Some(noted) = noted {
            // SAFETY: our own block.
            unsafe { noted.write(u64::MAX) };
        }
        let roots = Roots::of(alloc);
        // Known to the survivor, so that one in flight is not lost.
        let published = (case.roots == Names::Published)
            .then(|| roots.publish(VICTIM, VALUE).unwrap().offset().offset());
        let scene = Scene { region: &self.region, given: &given, left: &left };
        let victim = Victim::traced(|| (case.life)(&scene));
        let lived = live(&victim);
        victim.kill();
        // The victim is a zombie still.
        alloc.reap();
        if let Some(noted) = noted {
            // Nobody's, and nobody else will ever find it: the one block in flight.
            // SAFETY: the victim is dead, and has written a whole word or none.
            self.free_if_live(unsafe { noted.read() });
        }
        match roots.find::<Value>(VICTIM) {
            Ok(root) => {
                // SAFETY: nobody else is there to write to it, or to free it.
                assert!(case.name.contains("run") || unsafe { roots.get(root) } == Ok(&VALUE));
                free(alloc, roots.unpublish(root).unwrap().offset());
            }
            Err(_) => published.into_iter().for_each(|block| self.free_if_live(block)),
        }
        if case.roots == Names::Fresh {
            // There is a directory now, and nothing but that.
            let root = roots.publish("survivor", 1u64).unwrap();
            free(alloc, roots.unpublish(root).unwrap().offset());
            alloc.trim();
            let size = blocks(&alloc.verify().unwrap()).1 - self.before.1;
            assert!(size < 32 * KIB, "{size} bytes more than there were");
            self.before = (self.before.0 + 1, self.before.1 + size);
        }
        for (&block, &size) in left.iter().zip(case.left).skip(1) {
            check(alloc, block, size);
        }
        operate(alloc, operations, count ^ 0x9E37);
        // Freed by the victim, or still there.
        given.into_iter().chain(left).for_each(|block| self.free_if_live(block));
        alloc.trim();
        let report = alloc.verify().unwrap_or_else(|fault| {
            panic!("{}: {fault}, killed after {count} instructions", case.name)
        });
        let now = blocks(&report);
        assert_eq!(now, self.before, "{}: killed after {count} instructions", case.name);
        // Nor is there memory that nobody knows of.
        let (had, has) = (self.had, resident(&self.region, self.data));
        let context = format!("{}: killed after {count} instructions", case.name);
        assert!(has < had + MIB, "{context}: {has} bytes in memory, {had} before");
        lived
    }

    /// All goes, and nothing is left but the directory.
    fn end(self, case: &Case) {
        let alloc = &self.alloc;
        self.own.iter().for_each(|&block| free(alloc, block));
        let roots = Roots::of(alloc);
        if let Ok(root) = roots.find::<u64>("survivor") {
            free(alloc, roots.unpublish(root).unwrap().offset());
        }
        alloc.trim();
        let report = alloc.verify().unwrap();
        assert_eq!((report.blocks_in_use, report.slabs), (1, 1), "{}", case.name);
        // SAFETY: no preconditions.
        unsafe { libc::alarm(0) };
    }
}

/// Kills a victim of `case` at instructions spread over its operation.
fn run(case: &Case, form: Form) -> Figures {
    let start = Instant::now();
    let mut home = Home::new(case);
    // Each victim of such a case finds a heap of its own.
    let renew = |home: &mut Home| {
        if case.roots == Names::Fresh {
            core::mem::replace(home, Home::new(case)).end(case);
        }
    };
    // In one that takes so long the time may come to look for the dead once more.
    let paths: [Path; 3] = core::array::from_fn(|_| {
        let path = home.die_after(case, Victim::record, u64::MAX, form.operations);
        renew(&mut home);
        path
    });
    let path = paths.iter().min_by_key(|path| path.instructions()).unwrap();
    let instructions = path.instructions();
    let (mut deaths, mut elsewhere) = (paths.len() as u64, 0);
    // All of them where there are no more; otherwise evenly, with the first.
    let offsets = form.offsets.min(instructions);
    for index in (form.part..offsets).step_by(form.of as usize) {
        let count = (index as u128 * instructions as u128 / offsets as u128) as u64;
        let follow = |victim: &Victim| victim.follow(path, count);
        let mut arrival = home.die_after(case, follow, count, form.operations);
        renew(&mut home);
        if arrival == Arrival::Never {
            // The one that was recorded took longer, and looked twice for something.
            let step = |victim: &Victim| victim.step(count);
            if let Lives::Stopped = home.die_after(case, step, count, form.operations) {
                arrival = Arrival::Elsewhere;
            }
            renew(&mut home);
        }
        deaths += 1;
        elsewhere += u64::from(arrival != Arrival::There);
    }
    if case.roots != Names::Fresh {
        home.end(case);
    }
    Figures { instructions, deaths, elsewhere, seconds: start.elapsed().as_secs_f64() }
}

fn run_all(form: Form) {
    let _turn = turn();
    stay_on_one_processor();
    let only = std::env::var("CRASH_CASE").unwrap_or_default();
    println!(
        "{:<30} {:>12} {:>8} {:>9} {:>8}",
        "operation", "instructions", "deaths", "elsewhere", "seconds"
    );
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        let figures = run(case, form);
        let Figures { instructions, deaths, elsewhere, seconds } = figures;
        println!("{:<30} {instructions:>12} {deaths:>8} {elsewhere:>9} {seconds:>8.1}", case.name);
    }
    println!("{} operations of the survivors after each death", form.operations);
}

#[test]
fn killed_at_some_instructions() {
    run_all(SHORT);
}

/// `CRASH_CASE` picks the cases with that in their names; `CRASH_OFFSETS` and `CRASH_OPERATIONS`
/// say how much, `CRASH_PART` of `CRASH_PARTS` which part of it.
#[test]
#[ignore = "long"]
fn killed_at_every_instruction() {
    run_all(long());
}
