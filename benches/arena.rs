//! Arenas beside bumpalo, bump-scope, typed-arena and `Vec`, load by load.
//!
//! Under criterion, or, for a table that is made in seconds:
//!
//! ```sh
//! cargo bench --bench arena                    # criterion
//! cargo bench --bench arena -- --ratios        # all sides of a load in turns; medians and ratios
//! ```
//!
//! The reset of a gigabyte is in the table only. A load gives the time that its rounds took, so that
//! what prepares a round does not count. All arenas are warm: they were filled and cleared before.
#![allow(unsafe_code)] // raw forms of the allocators

use std::alloc::Layout;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bump_scope::traits::BumpAllocatorTyped;
use criterion::Criterion;
use hshm::arena::{Arena, ArenaVec, BestFit, Growth, Pool, scratch};

/// Pushes in a round.
const PUSHES: usize = 1000;
const MIB: usize = 1 << 20;

type Side = (&'static str, Box<dyn FnMut(u64) -> Duration>);

fn timed(rounds: u64, mut round: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..rounds {
        round();
    }
    start.elapsed()
}

/// Nothing is known of the place any more.
fn forget(place: std::ptr::NonNull<u8>) {
    black_box(place);
}

fn side(name: &'static str, run: impl FnMut(u64) -> Duration + 'static) -> Side {
    (name, Box::new(run))
}

fn reserved() -> Arena<'static> {
    let settings = Arena::builder().growth(Growth::Reserved).capacity(4 << 30);
    settings.build().expect("there are addresses")
}

/// A thousand values of one type, and everything taken back.
fn push<T: Copy + 'static>(value: T) -> Vec<Side> {
    let (mut chained, mut mapped) = (Arena::new(), reserved());
    let mut bumpalo = bumpalo::Bump::new();
    let mut scoped: bump_scope::Bump = bump_scope::Bump::new();
    let mut vec: Vec<T> = Vec::new();
    vec![
        side("hshm", move |rounds| {
            timed(rounds, || {
                for _ in 0..PUSHES {
                    black_box(chained.push_value(black_box(value)));
                }
                chained.clear();
            })
        }),
        side("hshm-reserved", move |rounds| {
            timed(rounds, || {
                for _ in 0..PUSHES {
                    black_box(mapped.push_value(black_box(value)));
                }
                mapped.clear();
            })
        }),
        side("bumpalo", move |rounds| {
            timed(rounds, || {
                for _ in 0..PUSHES {
                    black_box(bumpalo.alloc(black_box(value)));
                }
                bumpalo.reset();
            })
        }),
        side("bump-scope", move |rounds| {
            timed(rounds, || {
                for _ in 0..PUSHES {
                    black_box(scoped.alloc(black_box(value)).into_mut());
                }
                scoped.reset();
            })
        }),
        side("typed-arena", move |rounds| {
            timed(rounds, || {
                let typed = typed_arena::Arena::with_capacity(PUSHES);
                for _ in 0..PUSHES {
                    black_box(typed.alloc(black_box(value)));
                }
            })
        }),
        side("Vec", move |rounds| {
            timed(rounds, || {
                for _ in 0..PUSHES {
                    vec.push(black_box(value));
                    black_box(vec.as_mut_ptr());
                }
                vec.clear();
            })
        }),
    ]
}

/// Layouts that are known at run time only.
fn layouts() -> Vec<Side> {
    let all: Vec<Layout> = (0..PUSHES)
        .map(|n| Layout::from_size_align(n * 37 % 200, 1 << (n % 5)).expect("small"))
        .collect();
    let (a, b, c, d) = (all.clone(), all.clone(), all.clone(), all);
    let (mut chained, mut mapped) = (Arena::new(), reserved());
    let mut bumpalo = bumpalo::Bump::new();
    let mut scoped: bump_scope::Bump = bump_scope::Bump::new();
    vec![
        side("hshm", move |rounds| {
            timed(rounds, || {
                a.iter().for_each(|&layout| forget(chained.push_layout(layout)));
                chained.clear();
            })
        }),
        side("hshm-reserved", move |rounds| {
            timed(rounds, || {
                b.iter().for_each(|&layout| forget(mapped.push_layout(layout)));
                mapped.clear();
            })
        }),
        side("bumpalo", move |rounds| {
            timed(rounds, || {
                c.iter().for_each(|&layout| forget(bumpalo.alloc_layout(layout)));
                bumpalo.reset();
            })
        }),
        side("bump-scope", move |rounds| {
            timed(rounds, || {
                d.iter().for_each(|&layout| forget(scoped.allocate_layout(layout)));
                scoped.reset();
            })
        }),
    ]
}

/// A vector in an arena that grows to ten thousand words, one by one.
fn grow() -> Vec<Side> {
    const WORDS: u64 = 10_000;
    let (mut chained, mut mapped) = (Arena::new(), reserved());
    let mut bumpalo = bumpalo::Bump::new();
    let mut scoped: bump_scope::Bump = bump_scope::Bump::new();
    vec![
        side("hshm", move |rounds| {
            timed(rounds, || {
                let mut vec = ArenaVec::new_in(&chained);
                (0..WORDS).for_each(|n| vec.push(black_box(n)));
                black_box(vec.into_slice());
                chained.clear();
            })
        }),
        side("hshm-reserved", move |rounds| {
            timed(rounds, || {
                let mut vec = ArenaVec::new_in(&mapped);
                (0..WORDS).for_each(|n| vec.push(black_box(n)));
                black_box(vec.into_slice());
                mapped.clear();
            })
        }),
        side("bumpalo", move |rounds| {
            timed(rounds, || {
                let mut vec = bumpalo::collections::Vec::new_in(&bumpalo);
                (0..WORDS).for_each(|n| vec.push(black_box(n)));
                black_box(vec.into_bump_slice());
                bumpalo.reset();
            })
        }),
        side("bump-scope", move |rounds| {
            timed(rounds, || {
                let mut vec = bump_scope::BumpVec::new_in(&scoped);
                (0..WORDS).for_each(|n| vec.push(black_box(n)));
                black_box(vec.into_slice());
                scoped.reset();
            })
        }),
        side("Vec", move |rounds| {
            timed(rounds, || {
                let mut vec = Vec::new();
                (0..WORDS).for_each(|n| vec.push(black_box(n)));
                black_box(vec);
            })
        }),
    ]
}

/// A vector from nothing to ten million words, pages and all.
fn vector() -> Vec<Side> {
    const WORDS: u64 = 10_000_000;
    vec![
        side("hshm", move |rounds| {
            timed(rounds, || {
                let mut vec = ArenaVec::reserved(1 << 30).expect("there are addresses");
                (0..WORDS).for_each(|n| vec.push(n));
                black_box(&*vec);
            })
        }),
        side("bumpalo", move |rounds| {
            timed(rounds, || {
                let bump = bumpalo::Bump::new();
                let mut vec = bumpalo::collections::Vec::new_in(&bump);
                (0..WORDS).for_each(|n| vec.push(n));
                black_box(&*vec);
            })
        }),
        side("bump-scope", move |rounds| {
            timed(rounds, || {
                let bump: bump_scope::Bump = bump_scope::Bump::new();
                let mut vec = bump_scope::BumpVec::new_in(&bump);
                (0..WORDS).for_each(|n| vec.push(n));
                black_box(&*vec);
            })
        }),
        side("Vec", move |rounds| {
            timed(rounds, || {
                let mut vec = Vec::new();
                (0..WORDS).for_each(|n| vec.push(n));
                black_box(&*vec);
            })
        }),
    ]
}

/// Taking a gigabyte back that was used; filling it does not count.
fn reset() -> Vec<Side> {
    const FILLS: usize = 1024;
    let touch = |bytes: &mut [u8]| {
        for page in bytes.chunks_mut(4096) {
            page[0] = 1;
        }
    };
    let fresh = |rounds: u64, mut round: Box<dyn FnMut() -> Duration>| {
        (0..rounds).map(|_| round()).sum::<Duration>()
    };
    let hshm = move |settings: hshm::arena::ArenaBuilder| {
        move |rounds| {
            fresh(
                rounds,
                Box::new(move || {
                    let settings = settings.growth(Growth::Reserved).capacity(2 << 30);
                    let mut arena = settings.build().expect("there are addresses");
                    for _ in 0..FILLS {
                        touch(arena.push(MIB));
                    }
                    timed(1, || arena.clear())
                }),
            )
        }
    };
    let layout = Layout::from_size_align(MIB, 8).expect("small");
    vec![
        side("hshm", hshm(Arena::builder())),
        // Gives as much back as bumpalo, which keeps its largest chunk.
        side("hshm-keeping-half", hshm(Arena::builder().decommit_above(512 * MIB))),
        side("bumpalo", move |rounds| {
            fresh(
                rounds,
                Box::new(move || {
                    let mut bump = bumpalo::Bump::new();
                    for _ in 0..FILLS {
                        let place = bump.alloc_layout(layout).as_ptr();
                        // SAFETY: allocated just now, with that length.
                        touch(unsafe { std::slice::from_raw_parts_mut(place, MIB) });
                    }
                    timed(1, || bump.reset())
                }),
            )
        }),
        side("bump-scope", move |rounds| {
            fresh(
                rounds,
                Box::new(move || {
                    let mut bump: bump_scope::Bump = bump_scope::Bump::new();
                    for _ in 0..FILLS {
                        let place = bump.allocate_layout(layout).as_ptr();
                        // SAFETY: allocated just now, with that length.
                        touch(unsafe { std::slice::from_raw_parts_mut(place, MIB) });
                    }
                    timed(1, || bump.reset())
                }),
            )
        }),
    ]
}

/// A reference that the compiler knows nothing of, and may not leave anything undone for. `black_box` would
/// do that by a store and a load: beside operations that are two or three stores it would be half of what
/// is measured.
#[inline(always)]
fn opaque<T>(reference: T) -> T {
    const { assert!(size_of::<T>() == size_of::<*mut ()>()) };
    let reference = std::mem::ManuallyDrop::new(reference);
    // SAFETY: a value of a pointer's size goes through a register, and comes back as it was.
    unsafe {
        let mut word: *mut () = std::mem::transmute_copy(&reference);
        std::arch::asm!("/* {0} */", inout(reg) word, options(nostack, preserves_flags));
        std::mem::transmute_copy(&word)
    }
}

/// A scratch, or what comes nearest to one, with one value in it. Each side gets an arena that the
/// compiler knows nothing of, and shows it what was pushed.
///
/// `Temp` has to allow for what was pushed before and is in use; `TempMut`, like a reset, and like
/// bump-scope's scopes of a `Bump`, needs the arena for itself.
fn scratches() -> Vec<Side> {
    let (out, outer, mut alone) = (Arena::new(), Arena::new(), Arena::new());
    let mut bumpalo = bumpalo::Bump::new();
    let mut scoped: bump_scope::Bump = bump_scope::Bump::new();
    bumpalo.alloc(0u64);
    vec![
        side("hshm-scratch", move |rounds| {
            timed(rounds, || {
                let temp = scratch(&[opaque(&out)]);
                opaque(temp.push_value(1u64));
            })
        }),
        side("hshm-temp", move |rounds| {
            timed(rounds, || {
                let temp = opaque(&outer).temp();
                opaque(temp.push_value(1u64));
            })
        }),
        side("hshm-temp-mut", move |rounds| {
            timed(rounds, || {
                let temp = opaque(&mut alone).temp_mut();
                opaque(temp.push_value(1u64));
            })
        }),
        side("bumpalo-reset", move |rounds| {
            timed(rounds, || {
                let bump = opaque(&mut bumpalo);
                opaque(bump.alloc(1u64));
                bump.reset();
            })
        }),
        side("bump-scope", move |rounds| {
            timed(rounds, || {
                opaque(&mut scoped).scoped(|scope| {
                    opaque(scope.alloc(1u64).into_mut());
                });
            })
        }),
    ]
}

/// The same with nothing in it: begin and end.
fn empty_scratches() -> Vec<Side> {
    let (out, outer, mut alone) = (Arena::new(), Arena::new(), Arena::new());
    let mut bumpalo = bumpalo::Bump::new();
    let mut scoped: bump_scope::Bump = bump_scope::Bump::new();
    bumpalo.alloc(0u64);
    vec![
        side("hshm-scratch", move |rounds| {
            timed(rounds, || {
                opaque(&*scratch(&[opaque(&out)]));
            })
        }),
        side("hshm-temp", move |rounds| {
            timed(rounds, || {
                opaque(&*opaque(&outer).temp());
            })
        }),
        side("hshm-temp-mut", move |rounds| {
            timed(rounds, || {
                opaque(&*opaque(&mut alone).temp_mut());
            })
        }),
        side("bumpalo-reset", move |rounds| {
            timed(rounds, || {
                let bump = opaque(&mut bumpalo);
                opaque(&*bump);
                bump.reset();
            })
        }),
        side("bump-scope", move |rounds| {
            timed(rounds, || {
                opaque(&mut scoped).scoped(|scope| {
                    opaque(&scope);
                });
            })
        }),
    ]
}

/// A scratch for temporaries in a call that gets one for its result, and so on: each is behind one
/// that is open.
fn deep_scratches() -> Vec<Side> {
    vec![side("hshm-scratch", move |rounds| {
        let outer = scratch(&[]);
        let other = scratch(&[&outer]);
        timed(rounds, || {
            let temp = scratch(&[black_box(&*other)]);
            black_box(temp.push_value(1u64));
        })
    })]
}

/// A value put in and taken out, with a hundred others in between.
fn pool() -> Vec<Side> {
    const OTHERS: usize = 100;
    let arena: &'static Arena<'static> = Box::leak(Box::new(Arena::new()));
    let pool: &'static Pool<'static, [u64; 6]> =
        Box::leak(Box::new(Pool::new(arena).expect("a small type")));
    let mut pooled: Vec<_> = (0..OTHERS).map(|_| pool.put([0; 6])).collect();
    let mut boxed: Vec<_> = (0..OTHERS).map(|_| Box::new([0u64; 6])).collect();
    let (mut at, mut place) = (0, 0);
    vec![
        side("hshm", move |rounds| {
            timed(rounds, || {
                at = (at + 37) % OTHERS;
                pooled[at] = pool.put(black_box([1; 6]));
            })
        }),
        side("Box", move |rounds| {
            timed(rounds, || {
                place = (place + 37) % OTHERS;
                drop(std::mem::replace(&mut boxed[place], Box::new(black_box([1; 6]))));
            })
        }),
    ]
}

/// An allocation and a free of random sizes, where so many free blocks lie about.
fn fit(name: &'static str, free: usize) -> Side {
    let mut prepared = None;
    side(name, move |rounds| {
        let (heap, random) = prepared.get_or_insert_with(|| {
            let arena: &'static Arena<'static> = Box::leak(Box::new(reserved()));
            let heap = BestFit::new(arena);
            let mut random = 1u64;
            let separator = Layout::from_size_align(8, 8).expect("small");
            let blocks: Vec<_> = (0..free)
                .map(|_| {
                    let block = heap.allocate(some_layout(&mut random)).expect("there is room");
                    heap.allocate(separator).expect("there is room");
                    block
                })
                .collect();
            // SAFETY: each is freed once.
            blocks.into_iter().for_each(|block| unsafe { heap.free(block).expect("allocated") });
            // Some have no separator between them: that went into what another left.
            assert!(heap.stats().free_blocks >= free / 2);
            (heap, random)
        });
        timed(rounds, || {
            let block = heap.allocate(some_layout(random)).expect("there is room");
            // SAFETY: allocated just now.
            unsafe { heap.free(black_box(block)).expect("allocated") };
        })
    })
}

/// 40 to 1000 bytes.
fn some_layout(random: &mut u64) -> Layout {
    *random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    Layout::from_size_align((*random >> 33) as usize % 961 + 40, 8).expect("small")
}

/// The same sizes from the system's allocator, of which so many are kept and replaced. Both have
/// replaced each block many times before.
fn mixes() -> Vec<Side> {
    const KEPT: usize = 10_000;
    const BEFORE: u64 = 50 * KEPT as u64;
    let arena: &'static Arena<'static> = Box::leak(Box::new(reserved()));
    let mut theirs = 7u64;
    // A heap with as many blocks, and how to replace one of them.
    let replacing = |heap: BestFit<'static>| {
        let mut ours = 7u64;
        let mut kept: Vec<_> = (0..KEPT)
            .map(|_| heap.allocate(some_layout(&mut ours)).expect("there is room"))
            .collect();
        move || {
            let new = heap.allocate(some_layout(&mut ours)).expect("there is room");
            let old = std::mem::replace(&mut kept[(ours >> 20) as usize % KEPT], new);
            // SAFETY: allocated once, and freed once.
            unsafe { heap.free(old).expect("allocated") };
        }
    };
    let fresh = |layout: Layout| {
        // SAFETY: no size is zero.
        (unsafe { std::alloc::alloc(layout) }, layout)
    };
    let mut others: Vec<_> = (0..KEPT).map(|_| fresh(some_layout(&mut theirs))).collect();
    let mut at_once = replacing(BestFit::new(arena));
    let other: &'static Arena<'static> = Box::leak(Box::new(reserved()));
    let mut later = replacing(BestFit::deferring(other, 16));
    let mut replace_others = move || {
        let new = fresh(some_layout(&mut theirs));
        let old = std::mem::replace(&mut others[(theirs >> 20) as usize % KEPT], new);
        // SAFETY: allocated with this layout, and freed once.
        unsafe { std::alloc::dealloc(old.0, old.1) };
    };
    timed(BEFORE, &mut at_once);
    timed(BEFORE, &mut later);
    timed(BEFORE, &mut replace_others);
    vec![
        side("hshm", move |rounds| timed(rounds, &mut at_once)),
        side("hshm-deferring", move |rounds| timed(rounds, &mut later)),
        side("system", move |rounds| timed(rounds, &mut replace_others)),
    ]
}

/// All loads; the second number is how many operations a round is.
fn loads() -> Vec<(&'static str, u32, Vec<Side>)> {
    vec![
        ("push-4B", PUSHES as u32, push(1u32)),
        ("push-32B", PUSHES as u32, push([1u64; 4])),
        ("push-256B", PUSHES as u32, push([1u64; 32])),
        ("layouts", PUSHES as u32, layouts()),
        ("grow-10k", 10_000, grow()),
        ("scratch", 1, scratches()),
        ("scratch-empty", 1, empty_scratches()),
        ("scratch-deep", 1, deep_scratches()),
        ("pool", 1, pool()),
        ("best-fit-mix", 1, mixes()),
        ("best-fit", 1, vec![fit("1k-free", 1000), fit("1M-free", 1_000_000)]),
        ("vec-10M", 10_000_000, vector()),
        ("reset-1GiB", 1, reset()),
    ]
}

/// All sides of each load in turns: medians, spread, and the ratio to the first side.
fn ratios(wanted: Option<&str>) {
    const TURNS: usize = 15;
    println!(
        "{:<14}{:<20}{:>12}{:>12}{:>12}{:>8}",
        "load", "", "median ns", "low", "high", "ratio"
    );
    for (load, operations, mut sides) in loads() {
        if wanted.is_some_and(|wanted| !load.contains(wanted)) {
            continue;
        }
        let mut results = vec![Vec::new(); sides.len()];
        // As many rounds as take some milliseconds.
        let rounds: Vec<u64> = sides
            .iter_mut()
            .map(|(_, run)| {
                if load.starts_with("reset") {
                    // What is timed is nothing beside what prepares it.
                    return 1;
                }
                // One alone may be a hundred times slower than the next.
                let mut rounds = 1;
                loop {
                    let time = run(rounds).as_nanos().max(1);
                    if time > 1_000_000 || rounds >= 1_000_000 {
                        return (u128::from(rounds) * 4_000_000 / time).clamp(1, 1_000_000) as u64;
                    }
                    rounds *= 4;
                }
            })
            .collect();
        let turns = if load.starts_with("reset") || load.starts_with("vec") { 5 } else { TURNS };
        for _ in 0..turns {
            for (at, (_, run)) in sides.iter_mut().enumerate() {
                let time = run(rounds[at]).as_nanos() as f64;
                results[at].push(time / rounds[at] as f64 / f64::from(operations));
            }
        }
        let mut first = None;
        for (times, (name, _)) in results.iter_mut().zip(&sides) {
            times.sort_by(f64::total_cmp);
            let median = times[times.len() / 2];
            let ratio = median / *first.get_or_insert(median);
            let (low, high) = (times[0], times[times.len() - 1]);
            println!("{load:<14}{name:<20}{median:>12.2}{low:>12.2}{high:>12.2}{ratio:>8.2}");
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--ratios") {
        let wanted = args.get(at + 1).filter(|arg| !arg.starts_with('-'));
        return ratios(wanted.map(String::as_str));
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .sample_size(10)
        .configure_from_args();
    // Criterion chooses how often by the time that is measured; a reset has a gigabyte before it.
    for (load, _, sides) in loads().into_iter().filter(|load| load.0 != "reset-1GiB") {
        let mut group = criterion.benchmark_group(format!("arena/{load}"));
        for (name, mut run) in sides {
            group.bench_function(name, |bencher| bencher.iter_custom(&mut run));
        }
        group.finish();
    }
    criterion.final_summary();
}
