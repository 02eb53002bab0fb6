//! Arenas in shared memory: other processes read them, go on with them, and take them over.
#![allow(unsafe_code)] // references into shared memory

mod support;

use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use std::alloc::Layout;
use std::sync::atomic::{AtomicBool, Ordering};

use hshm::arena::{
    Arena, ArenaBuilder, ArenaReader, ArenaVec, BestFit, Growth, Pool, RegionArena, SyncArena,
    Tiers, Zeroing, scratch,
};
use hshm::{
    Allocator, AllocatorId, Backend, BuddyAllocator, Error, ErrorCode, FileBackend, GIB, Heap, MIB,
    MemfdBackend, OffsetPtr, PosixMmap, Region, RegionOptions, ShareToken, ShmSafe,
};
use support::forked::{fork, wait};
use support::peer::{Peer, serve};
use support::{Dir, other_process_ok, role, turn};

const READ: RegionOptions = RegionOptions::new().read_only(true);
const SETTINGS: ArenaBuilder = ArenaBuilder::new().name("shared");

/// A list through an arena, which holds at any address.
#[repr(C)]
struct Item {
    number: u64,
    next: OffsetPtr<Item>,
}

// SAFETY: a number and an offset.
unsafe impl ShmSafe for Item {}

fn region(bytes: usize) -> Region {
    MemfdBackend::create("arena", &RegionOptions::new().capacity(bytes)).unwrap()
}

fn attached(token: &str, options: &RegionOptions) -> Region {
    let token: ShareToken = token.parse().unwrap();
    Region::attach_token(&token, options).unwrap()
}

/// Pushes the numbers in front of the list that begins at the root.
fn push_list(arena: &RegionArena, numbers: std::ops::Range<u64>) {
    let mut first = ArenaReader::attach(arena.region().clone()).unwrap().root().unwrap_or_default();
    for number in numbers {
        let item = arena.push_value(Item { number, next: first });
        first = arena.offset_of(item).unwrap();
    }
    arena.publish();
    arena.set_root(first);
}

fn read_list(reader: &ArenaReader) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut next = reader.root::<Item>().unwrap_or_default();
    while !next.is_null() {
        // SAFETY: the list was published, and nobody changes it.
        let item = unsafe { reader.get(next).unwrap() };
        numbers.push(item.number);
        next = item.next;
    }
    numbers
}

#[test]
fn another_process_reads_it() {
    if let Some(token) = role("another_process_reads_it") {
        for relocate in [false, true] {
            let reader = ArenaReader::attach(attached(&token, &READ.relocate(relocate))).unwrap();
            assert_eq!(reader.region().is_relocated(), relocate);
            assert!(read_list(&reader).into_iter().eq((0..100_000).rev()));
            let position = reader.position();
            let outside = |error| matches!(error, Error::OffsetOutOfRange { .. });
            for offset in [0, 64, position, position - 8, u64::MAX, u64::MAX - 15] {
                let place = reader.resolve(OffsetPtr::<Item>::new(offset), 1);
                assert!(outside(place.unwrap_err()), "{offset}");
            }
            let odd = OffsetPtr::<Item>::new(position - 20);
            assert_eq!(reader.resolve(odd, 1), Err(Error::BadAlignment { align: 8 }));
            let first = reader.root::<Item>().unwrap();
            let most = reader.resolve(first, usize::MAX);
            assert_eq!(most.unwrap_err().code(), ErrorCode::TooLarge);
        }
        let region = attached(&token, &RegionOptions::new());
        let error = RegionArena::attach(region, &SETTINGS).unwrap_err();
        assert_eq!(error, Error::AlreadyExists, "its writer lives");
        return;
    }
    let _turn = turn();
    let arena = RegionArena::create(region(GIB), &SETTINGS).unwrap();
    push_list(&arena, 0..100_000);
    let token = arena.region().token().unwrap().to_string();
    other_process_ok("another_process_reads_it", &token);
}

#[test]
fn another_process_goes_on() {
    if let Some(token) = role("another_process_goes_on") {
        let arena =
            RegionArena::attach(attached(&token, &RegionOptions::new()), &SETTINGS).unwrap();
        assert!(arena.pos() > arena.first());
        push_list(&arena, 500..1000);
        // Memory that somebody else may have used before is zeroed.
        assert!(arena.push(10_000).iter().all(|&byte| byte == 0));
        return;
    }
    let _turn = turn();
    let region = region(16 * MIB);
    let token = region.token().unwrap().to_string();
    let arena = RegionArena::create(region.clone(), &SETTINGS).unwrap();
    push_list(&arena, 0..500);
    arena.push(MIB).fill(0xFF);
    let unpublished = arena.pos();
    drop(arena);
    other_process_ok("another_process_goes_on", &token);
    let arena = RegionArena::attach(region.clone(), &SETTINGS).unwrap();
    assert!(arena.pos() >= unpublished + 500 * 16 + 10_000);
    let reader = ArenaReader::attach(region).unwrap();
    assert!(read_list(&reader).into_iter().eq((0..1000).rev()));
}

#[test]
fn a_dead_writer_is_replaced() {
    if role("a_dead_writer_is_replaced").is_some() {
        let mut arena = None;
        serve(|words| {
            let region = attached(words[0], &RegionOptions::new());
            let kept = arena.insert(RegionArena::attach(region, &SETTINGS).unwrap());
            push_list(kept, 0..100);
            // Pushed, not published.
            kept.push(50_000).fill(0xEE);
            "ready".to_owned()
        });
        return;
    }
    let _turn = turn();
    let region = region(16 * MIB);
    let token = region.token().unwrap().to_string();
    drop(RegionArena::create(region.clone(), &SETTINGS).unwrap());
    let mut peer = Peer::start("a_dead_writer_is_replaced", "write");
    peer.send(&token);
    assert_eq!(peer.receive(), "ready");
    let error = RegionArena::attach(region.clone(), &SETTINGS).unwrap_err();
    assert_eq!(error, Error::AlreadyExists);
    peer.kill();
    let arena = RegionArena::attach(region.clone(), &SETTINGS).unwrap();
    assert!(arena.pos() < arena.first() + 2000 + 100 * 16, "what was not published is forgotten");
    assert!(arena.push(50_000).iter().all(|&byte| byte == 0));
    assert!(read_list(&ArenaReader::attach(region).unwrap()).into_iter().eq((0..100).rev()));
}

/// The header is only a hint: the kernel knows who the writer is.
#[test]
fn a_forged_header_makes_no_second_writer() {
    let region = region(MIB);
    let arena = RegionArena::create(region.clone(), &SETTINGS).unwrap();
    let refused = || RegionArena::attach(region.clone(), &SETTINGS).unwrap_err();
    assert_eq!(refused(), Error::AlreadyExists, "the writer is this process");
    let header = region.base().wrapping_add(region.payload_offset());
    let (writer, start) = (header.wrapping_add(12).cast::<u32>(), header.wrapping_add(16));
    // SAFETY: the region's own memory, which nobody reads or writes at the same time.
    let pid = unsafe { writer.read() };
    for forged in [0, 1, i32::MAX as u32, pid & 0x7FFF_FFFF, pid ^ 1, 0x8000_0000 | 1] {
        // SAFETY: as above.
        unsafe { writer.write(forged) };
        assert_eq!(refused(), Error::AlreadyExists, "{forged:#x}");
    }
    // As if another process were just becoming the writer after one that had died.
    // SAFETY: as above.
    unsafe {
        writer.write(pid);
        start.cast::<u64>().write(77);
    }
    assert_eq!(refused(), Error::AlreadyExists);
    drop(arena);
    // A writer that was killed leaves its name; somebody else may have its pid now, as init has 1.
    for left in [pid, 0x8000_0000 | 1, 0xFFFF_FFFF] {
        // SAFETY: as above.
        unsafe { writer.write(left) };
        drop(RegionArena::attach(region.clone(), &SETTINGS).unwrap());
    }
    // One without a lock that cannot be told to be dead.
    // SAFETY: as above.
    unsafe { writer.write(std::process::id()) };
    assert_eq!(refused(), Error::AlreadyExists);
}

/// Memory that has no file has no lock.
#[test]
fn private_memory_has_one_writer_too() {
    let options = RegionOptions::new().capacity(MIB);
    let region = PosixMmap::create("arena", &options).unwrap();
    let arena = RegionArena::create(region.clone(), &SETTINGS).unwrap();
    let error = RegionArena::attach(region.clone(), &SETTINGS).unwrap_err();
    assert_eq!(error, Error::AlreadyExists);
    push_list(&arena, 0..10);
    drop(arena);
    let again = RegionArena::attach(region.clone(), &SETTINGS).unwrap();
    assert!(read_list(&ArenaReader::attach(region).unwrap()).into_iter().eq((0..10).rev()));
    drop(again);
}

#[test]
fn popped_is_no_longer_published() {
    let mut arena = RegionArena::create(region(MIB), &SETTINGS).unwrap();
    let reader = ArenaReader::attach(arena.region().clone()).unwrap();
    assert_eq!((arena.pos(), reader.position()), (arena.first(), arena.first() as u64));
    let here = arena.pos();
    let value = arena.push_value(7u64);
    let offset = arena.offset_of(value).unwrap();
    assert!(reader.resolve(offset, 1).is_err(), "not published yet");
    arena.publish();
    // SAFETY: it is there, and nobody changes it.
    assert_eq!(unsafe { reader.get(offset) }, Ok(&7));
    assert!(arena.pop_to(arena.first() - 1).is_err() && arena.pop_to(MIB).is_err());
    assert!(reader.resolve(offset, 1).is_ok());
    arena.pop_to(here).unwrap();
    assert!(reader.resolve(offset, 1).is_err());
    arena.push_slice(&[1u8; 1000]);
    arena.clear();
    assert_eq!(arena.pos(), arena.first());
    let elsewhere = 5u64;
    assert_eq!(arena.offset_of(&elsewhere).unwrap_err().code(), ErrorCode::NotInAnyRegion);
    let full = arena.try_push(MIB).unwrap_err();
    assert_eq!(full.code(), ErrorCode::OutOfMemory);
}

#[test]
fn what_is_no_arena_is_refused() {
    let region = region(MIB);
    assert!(matches!(ArenaReader::attach(region.clone()), Err(Error::Incompatible { .. })));
    let arena = RegionArena::create(region.clone(), &SETTINGS).unwrap();
    let again = RegionArena::create(region.clone(), &SETTINGS).unwrap_err();
    assert_eq!(again, Error::AlreadyExists);
    let read_only = MemfdBackend::attach_fd(region.fd().unwrap(), &READ).unwrap();
    let error = RegionArena::attach(read_only, &SETTINGS).unwrap_err();
    assert_eq!(error, Error::ReadOnly);
    drop(arena);
    // Every word of the header, forged.
    let header = region.base().wrapping_add(region.payload_offset()).cast::<u64>();
    for word in [0, 1, 3, 4, 5] {
        for forged in [0, 1, 63, MIB as u64 + 1, u64::MAX, 1 << 63] {
            let place = header.wrapping_add(word);
            // SAFETY: the region's own memory, which nobody else uses now.
            let before = unsafe { place.replace(forged) };
            let result = ArenaReader::attach(region.clone());
            let writer = RegionArena::attach(region.clone(), &SETTINGS);
            let sound = forged == before || (word == 5 && forged > before && forged <= MIB as u64);
            assert_eq!((result.is_ok(), writer.is_ok()), (sound, sound), "{word} {forged:#x}");
            drop(writer);
            // SAFETY: as above.
            unsafe { place.write(before) };
        }
    }
    assert!(RegionArena::attach(region, &SETTINGS).is_ok());
}

#[test]
fn a_file_outlives_its_processes() {
    let _turn = turn();
    let dir = Dir::new("arena");
    let path = dir.file("list");
    let options = RegionOptions::new().capacity(4 * MIB).id(AllocatorId::new(77, 1));
    let region = FileBackend::create(&path, &options).unwrap();
    let arena = RegionArena::create(region, &SETTINGS).unwrap();
    push_list(&arena, 0..1000);
    drop(arena);
    let region = FileBackend::attach(&path, &RegionOptions::new()).unwrap();
    let arena = RegionArena::attach(region, &SETTINGS).unwrap();
    push_list(&arena, 1000..2000);
    drop(arena);
    let reader = ArenaReader::attach(FileBackend::attach(&path, &READ).unwrap()).unwrap();
    assert!(read_list(&reader).into_iter().eq((0..2000).rev()));
}

/// In a process that may have 64 MiB more of memory, and has reserved a gigabyte of addresses.
#[test]
fn running_out_of_memory_is_an_error() {
    if role("running_out_of_memory_is_an_error").is_none() {
        let _turn = turn();
        return other_process_ok("running_out_of_memory_is_an_error", "limited");
    }
    let mut arena = Arena::builder().growth(Growth::Reserved).capacity(GIB).build().unwrap();
    let mut vec = ArenaVec::reserved(GIB).unwrap();
    vec.push(7u64);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let now = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    let now = now.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    let most = now + 64 * MIB as u64;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a limit by value.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) }, 0);
    let mut pushed = 0;
    let error = loop {
        match arena.try_push(MIB) {
            Ok(bytes) => bytes[MIB - 1] = 1,
            Err(error) => break error,
        }
        pushed += 1;
        assert!(pushed < 80, "more than there is");
    };
    assert!(pushed > 48, "{pushed}");
    let Error::OutOfMemory { requested, .. } = error else { panic!("{error}") };
    assert_eq!((requested, arena.pos()), (MIB, pushed * MIB));
    assert_eq!(vec.try_reserve(2 * MIB).unwrap_err().code(), ErrorCode::OutOfMemory);
    assert_eq!(*vec, [7]);
    // What is there goes on working, and what is given back can be had again.
    arena.clear();
    arena.trim();
    assert!(vec.try_reserve(2 * MIB).is_ok());
    assert_eq!(arena.push(MIB).len(), MIB);
}

/// The list's layout is part of what the processes agree on.
#[test]
fn the_layout_is_fixed() {
    assert_eq!((size_of::<Item>(), offset_of!(Item, next)), (16, 8));
    let arena = Arena::new();
    assert_eq!(arena.push_value(Item { number: 1, next: OffsetPtr::NULL }).number, 1);
}

/// An arena over an allocator in shared memory: what is pushed has an offset there, which another mapping
/// of the region resolves. A forked child's copy gives its parent's blocks back to nobody.
#[test]
fn an_arena_over_a_shared_allocator() {
    let shared = region(8 * MIB);
    let heap = buddy(&shared);
    let before = heap.currently_allocated_size();
    for zeroing in [Zeroing::OnPush, Zeroing::OnPop] {
        let arena = Arena::builder().zeroing(zeroing).build_in(&heap).unwrap();
        let numbers = arena.push_iter(0..3000u64);
        let at = numbers.as_ptr().addr() - shared.base().addr();
        let taken = heap.currently_allocated_size();
        assert!(taken >= before + 24_000);

        wait(fork(|| {
            // SAFETY: the parent's push, which it does not change, through the child's mapping.
            assert_eq!(unsafe { shared.base().add(at).cast::<u64>().add(2999).read() }, 2999);
            // SAFETY: the child has no other use for its copy, and ends.
            drop(unsafe { std::ptr::read(&arena) });
            assert_eq!(heap.currently_allocated_size(), taken);
        }));
        assert_eq!(heap.currently_allocated_size(), taken);
        assert!(numbers.iter().copied().eq(0..3000), "{zeroing:?}");
        drop(arena);
        assert_eq!(heap.currently_allocated_size(), before);
    }
}

fn buddy(shared: &Region) -> BuddyAllocator {
    let (start, end) = (1 << 16, shared.len() as u64);
    let heap = Heap::new(start, end).unwrap();
    BuddyAllocator::shm_init(shared.clone(), OffsetPtr::new(start), heap, 16).unwrap()
}

/// Drops a copy of `what` in a forked child.
fn drop_in_a_child<T>(what: &T) {
    // SAFETY: the child has no other use for its copy, and ends.
    wait(fork(|| drop(unsafe { std::ptr::read(what) })));
}

/// A forked child that drops what it inherited takes nothing back that is its parent's.
fn keeps_what_a_child_drops(arena: &Arena<'_>) {
    let first = arena.push_iter(0..100u64);
    let vec: ArenaVec<'_, u64> = {
        let mut vec = ArenaVec::with_capacity_in(2000, arena);
        vec.extend(0..2000);
        vec
    };
    drop_in_a_child(&vec);
    assert!(vec.iter().copied().eq(0..2000), "{arena:?}");
    drop(vec);
    let temp = arena.temp();
    // In the block that is there, and in more of them, or of the pages.
    for count in [50, 500, 50_000] {
        let inner = temp.temp();
        let numbers = inner.push_iter(0..count);
        drop_in_a_child(&inner);
        assert!(numbers.iter().copied().eq(0..count), "{count} in {arena:?}");
    }
    let numbers = temp.push_iter(0..5000u64);
    drop_in_a_child(&temp);
    assert!(numbers.iter().copied().eq(0..5000), "{arena:?}");
    drop(temp);
    assert!(first.iter().copied().eq(0..100), "{arena:?}");
}

#[test]
fn a_forked_child_takes_nothing_of_its_parent_back() {
    let _turn = turn();
    let shared = region(8 * MIB);
    let heap = buddy(&shared);
    for zeroing in [Zeroing::OnPush, Zeroing::OnPop] {
        let settings = ArenaBuilder::new().zeroing(zeroing).decommit_above(0);
        keeps_what_a_child_drops(&settings.build_in(&heap).unwrap());
        let arena = RegionArena::create(region(8 * MIB), &settings).unwrap();
        keeps_what_a_child_drops(&arena);
        let numbers = arena.push_iter(0..5000u64);
        drop_in_a_child(&arena);
        assert!(numbers.iter().copied().eq(0..5000));
    }
}

/// Spoils itself in the end.
struct Spoilt(u64);

impl Drop for Spoilt {
    fn drop(&mut self) {
        self.0 = u64::MAX;
    }
}

/// What a forked child gives back of pools and heaps over an arena changes no byte of its parent's.
fn refuses_a_child<'a>(arena: &'a Arena<'a>, shared: &Region) {
    let (small, large) = (Layout::new::<[u64; 9]>(), Layout::new::<[u64; 9000]>());
    let (pool, heap, tiers) = (Pool::new(arena).unwrap(), BestFit::new(arena), Tiers::new(arena));
    let mut kept = pool.put(Spoilt(7));
    // So that there is something free.
    drop(pool.put(Spoilt(8)));
    let blocks = [small, large].map(|layout| {
        let free = [heap.allocate(layout).unwrap(), tiers.allocate(layout).unwrap()];
        let kept = [heap.allocate(layout).unwrap(), tiers.allocate(layout).unwrap()];
        // SAFETY: allocated just now with that layout; each is freed once.
        unsafe {
            heap.free(free[0]).unwrap();
            tiers.free(free[1], layout).unwrap();
            kept.iter().for_each(|place| place.write_bytes(3, layout.size()));
        }
        (layout, kept)
    });
    // Through the system: what is free may be poisoned for AddressSanitizer.
    let bytes = || {
        let mut bytes = vec![0; shared.len()];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, shared.base() as u64).unwrap();
        bytes
    };
    let before = bytes();
    wait(fork(|| {
        // SAFETY: the child's copies of what it has no other use for; it ends.
        let (copy, other) = unsafe { (std::ptr::read(&kept), std::ptr::read(&kept)) };
        drop(copy);
        assert_eq!(std::mem::ManuallyDrop::new(other.into_inner()).0, 7);
        assert!(matches!(pool.try_put(Spoilt(9)), Err(Error::Forked)));
        for (layout, [place, tier]) in blocks {
            let refused = Err(Error::Forked);
            assert_eq!((heap.allocate(layout), tiers.allocate(layout)), (refused, refused));
            // SAFETY: blocks of these heaps, with these layouts.
            unsafe {
                assert_eq!(heap.free(place), Err(Error::Forked));
                assert_eq!(tiers.free(tier, layout), Err(Error::Forked));
                assert_eq!(heap.reallocate(place, layout, 8), refused);
                assert_eq!(heap.reallocate(place, layout, 1 << 18), refused);
            }
        }
        assert_eq!(heap.verify(), Err(Error::Forked));
    }));
    assert!(bytes() == before, "a child changed what is its parent's: {arena:?}");
    kept.0 += 1;
    assert_eq!((kept.0, pool.len()), (8, 1));
    for (layout, places) in blocks {
        for place in places {
            // SAFETY: allocated above, as long as that.
            let bytes = unsafe { std::slice::from_raw_parts(place.as_ptr(), layout.size()) };
            assert!(bytes.iter().all(|&byte| byte == 3));
        }
        // SAFETY: allocated above with this layout; freed once.
        unsafe {
            heap.free(places[0]).unwrap();
            tiers.free(places[1], layout).unwrap();
        }
    }
    assert_eq!(heap.verify().unwrap().used_blocks, 0);
}

#[test]
fn pools_and_heaps_refuse_a_forked_child() {
    let _turn = turn();
    let shared = region(8 * MIB);
    let heap = buddy(&shared);
    refuses_a_child(&SETTINGS.build_in(&heap).unwrap(), &shared);
    let shared = region(8 * MIB);
    let arena = RegionArena::create(shared.clone(), &SETTINGS).unwrap();
    refuses_a_child(&arena, &shared);
    // Where nobody else has the memory, a child's copy is its own.
    let arena = Arena::new();
    let pool = Pool::new(&arena).unwrap();
    let kept = pool.put(Spoilt(7));
    wait(fork(|| {
        assert_eq!(pool.put(Spoilt(8)).0 + kept.0, 15);
        // SAFETY: the child has no other use for its copy, and ends.
        drop(unsafe { std::ptr::read(&kept) });
        assert!(pool.is_empty());
    }));
    let private = hshm::MallocAllocator::new();
    let arena = SETTINGS.build_in(&private).unwrap();
    let heap = BestFit::new(&arena);
    wait(fork(|| assert!(heap.allocate(Layout::new::<u64>()).is_ok())));
    assert_eq!(heap.stats().used_blocks, 0);
}

#[test]
fn a_shared_arena_over_shared_memory_refuses_a_forked_child() {
    let _turn = turn();
    let shared = region(MIB);
    let heap: &'static BuddyAllocator = Box::leak(Box::new(buddy(&shared)));
    let arena = SyncArena::from(SETTINGS.build_in(heap).unwrap());
    let (number, end) = (arena.push_value(5u64), arena.pos());
    wait(fork(|| assert_eq!(arena.try_push_value(6u64).err(), Some(Error::Forked))));
    assert_eq!((*number, arena.pos()), (5, end));
}

/// Threads are in the middle of pushes, of growth and of making arenas whenever the process forks. In
/// the child all arenas are free and whole.
#[test]
fn a_fork_finds_arenas_whole() {
    let _turn = turn();
    let small = Arena::builder().capacity(1024);
    let arenas: Vec<_> = (0..3).map(|_| SyncArena::build(&small).unwrap()).collect();
    let done = AtomicBool::new(false);
    // Also where a test fails.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|threads| {
        let _done = Done(&done);
        for thread in 0..3 {
            let (arenas, done) = (&arenas, &done);
            threads.spawn(move || {
                // At most so many: a machine may be slow, and memory has an end.
                for count in 0..300_000usize {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    arenas[(thread + count) % arenas.len()].push_value(count as u64);
                    if count.is_multiple_of(64) {
                        let other = SyncArena::build(&small).unwrap();
                        other.push_slice(&[count; 200]);
                    }
                }
            });
        }
        for round in 0..60u64 {
            let first: Vec<_> = arenas.iter().map(|arena| arena.push_slice(&[round; 9])).collect();
            wait(fork(|| {
                for (arena, first) in arenas.iter().zip(first) {
                    let before = arena.pos();
                    let pushed: Vec<_> = (0..500u64).map(|n| arena.push_value(n)).collect();
                    assert!(arena.pos() >= before + 4000);
                    assert!(pushed.iter().zip(0..).all(|(value, n)| **value == n));
                    assert_eq!(first, [round; 9]);
                }
                SyncArena::new().push_value(1);
            }));
        }
    });
}

/// In a process whose scratch arenas have few addresses each: the scope behind a full one begins in the
/// next reservation, and ends in the one before.
#[test]
fn a_scratch_behind_a_full_one_in_an_address_space_limit() {
    if role("a_scratch_behind_a_full_one_in_an_address_space_limit").is_none() {
        let _turn = turn();
        return other_process_ok(
            "a_scratch_behind_a_full_one_in_an_address_space_limit",
            "limited",
        );
    }
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let now = statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
    let most = now + 64 * MIB as u64;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a limit by value.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    let around = scratch(&[]);
    for left in [8, 0, 64, 100] {
        let outer = scratch(&[]);
        assert!(outer.shares_memory_with(&around));
        assert!(outer.available() <= 16 * MIB, "{}", outer.available());
        let full = outer.push(outer.available() - left);
        full.fill(0x11);
        let here = outer.pos();
        for len in [0, 1000, MIB] {
            let inner = scratch(&[]);
            assert!(inner.shares_memory_with(&outer));
            assert!(left > 64 || inner.available() > MIB, "in the next reservation");
            inner.push(len).fill(0x22);
            drop(inner);
            assert_eq!((outer.pos(), outer.available()), (here, left));
        }
        // It goes on where it was, and what it had stays.
        let small = outer.push(left);
        small.fill(0x33);
        let large = outer.push(MIB);
        large.fill(0x44);
        assert!(small.iter().all(|&byte| byte == 0x33));
        assert!(full.iter().all(|&byte| byte == 0x11));
    }
}
