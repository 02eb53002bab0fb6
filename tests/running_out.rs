//! Running out, of everything that a region can run out of: a full file system, address space, the
//! length of files, private memory, mappings. An error each time, never a signal; and as much as
//! before when something is freed. (`limits.rs` is the same for the global allocator.)
//!
//! Each test runs in a process of its own, with its limit and, where it mounts something, its own view
//! of the file systems.
#![allow(unsafe_code)] // mounts, limits, and the use of what was allocated

mod support;

use std::alloc::Layout;
use std::ffi::CString;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use hshm::arena::{ArenaBuilder, RegionArena};
use hshm::{
    Allocator, Backend, BuddyAllocator, Error, FileBackend, Heap, KIB, MIB, MemContext,
    MemfdBackend, OffsetPtr, Owner, PosixMmap, PosixShmMmap, Region, RegionOptions, Result,
    SharedHeap, ThreadLocalAllocator,
};
use support::{is_root, other_process, other_process_ok, role, turn, unique};

const CTX: MemContext = MemContext::DEFAULT;
/// The size of the file system that the tests fill.
const DISK: usize = 12 * MIB;
const SIZES: [usize; 6] = [64, 3000, 30_000, 100_000, MIB, 5 * MIB];

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn options(bytes: usize) -> RegionOptions {
    RegionOptions::new().capacity(bytes)
}

/// Allocates until there is no more, and writes to every byte of it.
fn fill(alloc: &impl Allocator, size: usize) -> Vec<u64> {
    let mut blocks = Vec::new();
    loop {
        match alloc.allocate_offset(CTX, layout(size)) {
            Ok(block) => {
                // SAFETY: our own block of that size. Where its memory is missing this is a signal.
                unsafe { alloc.resolve(block).write_bytes(blocks.len() as u8, size) };
                blocks.push(block.offset());
            }
            Err(Error::OutOfMemory { requested, .. }) => {
                assert_eq!(requested, size);
                return blocks;
            }
            Err(error) => panic!("{size}: {error:?}"),
        }
    }
}

fn check_and_free(alloc: &impl Allocator, blocks: &[u64], first: usize, size: usize) {
    for (index, &block) in blocks.iter().enumerate() {
        let at = OffsetPtr::new(block);
        // SAFETY: our own block, written to its end, and not used again.
        unsafe {
            let bytes = std::slice::from_raw_parts(alloc.resolve(at), size);
            assert!(bytes.iter().all(|&byte| byte == (first + index) as u8), "{size}");
            alloc.free_offset(CTX, at).unwrap();
        }
    }
}

/// Runs out again and again; afterwards everything is as before. `most` bounds what there is.
fn run_out(alloc: &impl Allocator, most: usize, mut tidy: impl FnMut()) {
    for size in SIZES {
        let mut bytes = [0; 3];
        for sum in &mut bytes {
            let blocks = fill(alloc, size);
            *sum = blocks.len() * size;
            assert!(*sum <= most, "{size}: {sum} bytes of {most}");
            // Half of it is freed, and comes back at once.
            let half = blocks.len() / 2;
            check_and_free(alloc, &blocks[half..], half, size);
            let again = fill(alloc, size);
            let all = (half + again.len()) * size;
            assert!(all * 10 >= *sum * 9, "{size}: {all} of {sum}");
            check_and_free(alloc, &again, 0, size);
            check_and_free(alloc, &blocks[..half], 0, size);
            assert_eq!(alloc.currently_allocated_size(), 0);
            tidy();
        }
        assert!(bytes[2] * 10 >= bytes[0] * 9, "{size}: {bytes:?}");
        // Large blocks need neighbouring chunks, of which there are few.
        assert!(size >= MIB || bytes[0] * 3 >= most, "{size}: {bytes:?} of {most}");
    }
}

fn heap_runs_out(alloc: &ThreadLocalAllocator, most: usize) {
    run_out(alloc, most, || {
        alloc.verify().unwrap();
        alloc.trim();
    });
    alloc.verify().unwrap();
}

fn buddy(region: Region) -> Result<BuddyAllocator> {
    let start = region.payload_offset() as u64;
    let heap = Heap::new(start, region.len() as u64)?;
    BuddyAllocator::shm_init(region, OffsetPtr::new(start), heap, BuddyAllocator::MIN_METADATA)
}

fn buddy_runs_out(alloc: &BuddyAllocator, most: usize) {
    run_out(alloc, most, || {
        alloc.verify().unwrap();
        alloc.coalesce().unwrap();
    });
}

fn arena_runs_out(region: Region, most: usize) {
    let mut arena = RegionArena::create(region, &ArenaBuilder::default()).unwrap();
    let mut counts = [0; 3];
    for count in &mut counts {
        while let Ok(place) = arena.try_push_layout(layout(1000)) {
            // SAFETY: just pushed, with that size.
            unsafe { place.as_ptr().write_bytes(*count as u8, 1000) };
            *count += 1;
        }
        assert!(arena.try_push_layout(layout(1000)).is_err());
        arena.publish();
        arena.clear();
    }
    assert!(counts[0] * 1000 <= most && counts[0] * 1000 * 3 >= most, "{counts:?}");
    assert!(counts[1] >= counts[0] && counts[2] == counts[1], "{counts:?}");
}

/// In a process of its own: a small tmpfs at `path`, which nobody else sees and which goes with it.
fn mount_tmpfs(path: &str, bytes: usize) {
    let path = CString::new(path).unwrap();
    let how = CString::new(format!("size={bytes},mode=1777")).unwrap();
    let done = |result: i32| assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: C strings; the process gets its own view of the file systems, and changes only that.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS));
        let none = std::ptr::null();
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        done(libc::mount(none, c"/".as_ptr(), none, flags, none.cast()));
        let (kind, how) = (c"tmpfs".as_ptr(), how.as_ptr().cast());
        done(libc::mount(kind, path.as_ptr(), kind, libc::MS_NOSUID, how));
    }
}

fn limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid limit, for this process alone.
    let done = unsafe { libc::setrlimit(resource, &limit) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// What the process has already of what a limit counts, in bytes: `VmSize` or `VmData`. With the crate's own
/// `malloc` that is a region of addresses before the first line of a test.
fn had(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * KIB as u64
}

/// Runs the test's body in another process; without the right to mount, says that it did not.
fn in_own_process(test: &str, needs_root: bool) -> bool {
    if role(test).is_some() {
        return true;
    }
    let _turn = turn();
    if needs_root && !is_root() {
        println!("{test}: not run, for it mounts a file system");
        return false;
    }
    other_process_ok(test, "run");
    false
}

#[test]
fn a_full_file_system() {
    if !in_own_process("a_full_file_system", true) {
        return;
    }
    mount_tmpfs("/dev/shm", DISK);
    let name = unique("full");
    // More than there is: it is not looked at before it is needed.
    let alloc = SharedHeap::new(&name).create(&options(64 * MIB)).unwrap();
    heap_runs_out(&alloc, DISK);
    // Another process's view runs out alike, and what one gives back the other gets.
    let other = SharedHeap::new(&name).open(&options(64 * MIB)).unwrap();
    let mine = fill(&alloc, 3000);
    assert!(other.allocate_offset(CTX, layout(3000)).is_err());
    check_and_free(&other, &mine, 0, 3000);
    alloc.trim();
    let theirs = fill(&other, 3000);
    assert!(theirs.len() * 10 >= mine.len() * 9, "{} of {}", theirs.len(), mine.len());
    check_and_free(&other, &theirs, 0, 3000);
    drop(other);
    drop(alloc);
    SharedHeap::new(&name).destroy().unwrap();

    let region = PosixShmMmap::create(&unique("buddy"), &options(64 * MIB)).unwrap();
    buddy_runs_out(&buddy(region).unwrap(), DISK);
    PosixShmMmap::destroy(&unique("buddy")).unwrap();
    let region = PosixShmMmap::create(&unique("arena"), &options(64 * MIB)).unwrap();
    arena_runs_out(region, DISK);
    PosixShmMmap::destroy(&unique("arena")).unwrap();
}

/// A request that fails half-way has got memory, which nobody would use: it goes back.
#[test]
fn what_failed_requests_got_is_given_back() {
    if !in_own_process("what_failed_requests_got_is_given_back", true) {
        return;
    }
    mount_tmpfs("/dev/shm", DISK);
    let (name, ballast) = (unique("refused"), "/dev/shm/ballast");
    let alloc = SharedHeap::new(&name).create(&options(64 * MIB)).unwrap();
    let used = || std::fs::metadata(format!("/dev/shm/{name}")).unwrap().blocks() as usize * 512;
    let refused = |size| {
        let wanted = alloc.allocate_offset(CTX, layout(size));
        assert!(matches!(wanted, Err(Error::OutOfMemory { .. })), "{size}: {wanted:?}");
    };
    let get = |size| alloc.allocate_offset(CTX, layout(size)).unwrap();
    // SAFETY: our own blocks, once.
    let free = |block| unsafe { alloc.free_offset(CTX, block) }.unwrap();
    // The tables, as far as they are needed.
    let all = [fill(&alloc, MIB), fill(&alloc, 30_000)];
    all.into_iter().flatten().for_each(|block| free(OffsetPtr::new(block)));
    alloc.trim();
    let kept = get(5 * MIB);
    let before = used();
    for size in [20 * MIB, 40 * MIB] {
        refused(size);
        assert!(used() < before + MIB, "{size}: {} bytes, {before} before", used());
    }
    // One that would grow in place, or by moving.
    for size in [14 * MIB, 30 * MIB] {
        // SAFETY: our own block, which stays as it is.
        let grown = unsafe { alloc.reallocate_offset(CTX, kept, layout(size)) };
        assert!(matches!(grown, Err(Error::OutOfMemory { .. })), "{size}: {grown:?}");
        assert!(used() < before + MIB, "{size}: {} bytes, {before} before", used());
        assert_eq!(alloc.usable_size(kept), Ok(5 * MIB));
    }
    free(kept);
    alloc.trim();
    // Runs, of which the process keeps the memory until it is asked for it.
    let before = used();
    let mut file = std::fs::File::create(ballast).unwrap();
    while file.metadata().unwrap().blocks() as usize * 512 + before + MIB < DISK {
        file.write_all(&[1; 4096]).unwrap();
    }
    for size in [2 * MIB, 3 * MIB / 2] {
        refused(size);
        alloc.trim();
        assert!(used() < before + MIB / 4, "{size}: {} bytes, {before} before", used());
    }
    free(get(MIB / 2));
    alloc.verify().unwrap();
    drop(alloc);
    SharedHeap::new(&name).destroy().unwrap();
}

/// To hand a block over takes memory for the words that say whose it is; where there is none it is an
/// error. Whoever looks at the word of one block may look at those of all its neighbours.
#[test]
fn handing_over_on_a_full_file_system() {
    if !in_own_process("handing_over_on_a_full_file_system", true) {
        return;
    }
    mount_tmpfs("/dev/shm", DISK);
    let (name, ballast) = (unique("keepers"), "/dev/shm/ballast");
    let fill_disk = || {
        let mut file = std::fs::File::create(ballast).unwrap();
        while file.write(&[1; 4096]).is_ok_and(|bytes| bytes == 4096) {}
    };
    let alloc = SharedHeap::new(&name).create(&options(64 * MIB)).unwrap();
    let own = || {
        let mut own = 0;
        alloc.visit_blocks(&mut |block| own += usize::from(block.own)).unwrap();
        own
    };
    for size in [600, 5000, 30_000] {
        // Several slabs, of one granule or more.
        let count = MIB / size;
        let blocks: Vec<_> = (0..count)
            .map(|_| alloc.allocate_offset(CTX, layout(size)).unwrap().offset())
            .collect();
        // SAFETY: a block of our own.
        let hand_over = |block| unsafe { alloc.transfer(OffsetPtr::new(block), Owner::Nobody) };
        let before = own();
        fill_disk();
        let mut refused = 0;
        for &block in &blocks {
            match hand_over(block) {
                // Its neighbours, or those of the last round, have the memory already.
                Ok(()) => {}
                Err(Error::OutOfMemory { .. }) => refused += 1,
                Err(error) => panic!("{size}: {error:?}"),
            }
        }
        assert!(refused > 0, "{size}");
        assert_eq!(own(), before - (count - refused), "who was refused has it still");
        std::fs::remove_file(ballast).unwrap();
        for block in [blocks[0], blocks[count / 2], blocks[count - 1]] {
            hand_over(block).unwrap();
        }
        fill_disk();
        let left = own();
        assert!((before - count..before - 2).contains(&left), "{left} of {before}");
        for block in blocks {
            // SAFETY: our own block, or nobody's, which is not used again.
            unsafe { alloc.free_offset(CTX, OffsetPtr::new(block)) }.unwrap();
        }
        assert_eq!(alloc.currently_allocated_size(), 0);
        std::fs::remove_file(ballast).unwrap();
    }
    alloc.verify().unwrap();
    drop(alloc);
    SharedHeap::new(&name).destroy().unwrap();
}

#[test]
fn a_full_file_system_under_files() {
    if !in_own_process("a_full_file_system_under_files", true) {
        return;
    }
    let dir = support::Dir::new("disk");
    mount_tmpfs(dir.0.to_str().unwrap(), DISK);
    let file = dir.file("heap");
    let region = FileBackend::create(&file, &options(40 * MIB)).unwrap();
    heap_runs_out(&ThreadLocalAllocator::shm_init_with(region, 8).unwrap(), DISK);
    FileBackend::destroy(&file).unwrap();
    let region = FileBackend::create(&file, &options(40 * MIB)).unwrap();
    buddy_runs_out(&buddy(region).unwrap(), DISK);
    FileBackend::destroy(&file).unwrap();
    let region = FileBackend::create(&file, &options(40 * MIB)).unwrap();
    arena_runs_out(region, DISK);
    FileBackend::destroy(&file).unwrap();
}

/// So full that not even what every heap begins with fits.
#[test]
fn no_room_for_a_heap() {
    if !in_own_process("no_room_for_a_heap", true) {
        return;
    }
    for pages in [1, 2, 3, 10, 16, 30] {
        mount_tmpfs("/dev/shm", pages * 4096);
        let name = unique("tiny");
        match SharedHeap::new(&name).create(&options(64 * MIB)) {
            Ok(alloc) => {
                let blocks = fill(&alloc, 64);
                check_and_free(&alloc, &blocks, 0, 64);
                drop(alloc);
                SharedHeap::new(&name).destroy().unwrap();
            }
            Err(Error::OutOfMemory { .. }) => {
                let there = std::fs::read_dir("/dev/shm").unwrap().count();
                assert_eq!(there, 0, "what could not be made was left there");
            }
            Err(error) => panic!("{pages} pages: {error:?}"),
        }
    }
}

/// A larger file than the limit would be a signal (SIGXFSZ).
#[test]
fn the_length_of_files() {
    if !in_own_process("the_length_of_files", false) {
        return;
    }
    limit(libc::RLIMIT_FSIZE, 8 * MIB as u64);
    let (name, dir) = (unique("length"), support::Dir::new("length"));
    for bytes in [8 * MIB + 4096, 9 * MIB, 1 << 40] {
        let too_large = |error: Option<Error>| matches!(error, Some(Error::TooLarge { .. }));
        assert!(too_large(MemfdBackend::create("", &options(bytes)).err()));
        assert!(too_large(PosixShmMmap::create(&name, &options(bytes)).err()));
        assert!(too_large(FileBackend::create(&dir.file("x"), &options(bytes)).err()));
        assert!(too_large(SharedHeap::new(&name).create(&options(bytes)).err()));
    }
    let region = MemfdBackend::create("", &options(8 * MIB)).unwrap();
    let alloc = ThreadLocalAllocator::shm_init_with(region, 4).unwrap();
    for size in [64, 3000, 100_000] {
        let blocks = fill(&alloc, size);
        assert!(blocks.len() * size > 5 * MIB);
        check_and_free(&alloc, &blocks, 0, size);
    }
    alloc.verify().unwrap();
    let region = MemfdBackend::create("", &options(8 * MIB)).unwrap();
    let blocks = buddy(region).unwrap();
    let all = fill(&blocks, 1000);
    assert!(all.len() > 5000);
    check_and_free(&blocks, &all, 0, 1000);
}

/// Regions take addresses, all of them at once.
#[test]
fn address_space() {
    if !in_own_process("address_space", false) {
        return;
    }
    limit(libc::RLIMIT_AS, had("VmSize") + 256 * MIB as u64);
    let make = || MemfdBackend::create("", &options(32 * MIB));
    let mut regions: Vec<Region> = Vec::new();
    let refused = loop {
        match make() {
            Ok(region) => regions.push(region),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::OutOfMemory { .. }), "{refused:?}");
    assert!(regions.len() > 2, "{}", regions.len());
    let count = regions.len();
    let alloc = ThreadLocalAllocator::shm_init_with(regions.pop().unwrap(), 4).unwrap();
    heap_runs_out(&alloc, 32 * MIB);
    drop(alloc);
    buddy_runs_out(&buddy(regions.pop().unwrap()).unwrap(), 32 * MIB);
    while regions.len() < count {
        regions.push(make().unwrap());
    }
    assert!(make().is_err());
    arena_runs_out(regions.pop().unwrap(), 32 * MIB);
}

/// Where memory must be there before it is promised (`vm.overcommit_memory` 2, which is the whole
/// machine's), private memory is refused as it is here.
#[test]
fn private_memory() {
    if !in_own_process("private_memory", false) {
        return;
    }
    // With some that no region can have, for the test itself.
    limit(libc::RLIMIT_DATA, had("VmData") + 136 * MIB as u64);
    let mut regions: Vec<Region> = Vec::new();
    let refused = loop {
        match PosixMmap::create("", &options(16 * MIB)) {
            Ok(region) => regions.push(region),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::OutOfMemory { .. }), "{refused:?}");
    // Something for the test itself.
    regions.pop();
    let alloc = ThreadLocalAllocator::shm_init_with(regions.pop().unwrap(), 4).unwrap();
    let blocks = fill(&alloc, 1000);
    assert!(blocks.len() * 1000 > 10 * MIB);
    check_and_free(&alloc, &blocks, 0, 1000);
    drop(alloc);
    regions.push(PosixMmap::create("", &options(16 * MIB)).unwrap());
}

/// Mappings that cannot be joined, until the process may have no more.
struct Mappings {
    start: *mut u8,
    pages: usize,
}

impl Mappings {
    fn all() -> Mappings {
        let pages = 300_000;
        // SAFETY: new addresses, without access, of this process's own; single pages of them are then
        // made readable.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let null = std::ptr::null_mut();
            let start = libc::mmap(null, pages * 4096, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let start = start.cast::<u8>();
            let refused = (0..pages).step_by(2).any(|page| {
                libc::mprotect(start.add(page * 4096).cast(), 4096, libc::PROT_READ) != 0
            });
            assert!(refused, "the limit is higher than this test can reach");
            Mappings { start, pages }
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        // SAFETY: what `all` mapped, and nobody uses.
        unsafe { libc::munmap(self.start.cast(), self.pages * 4096) };
    }
}

#[test]
fn mappings() {
    if !in_own_process("mappings", false) {
        return;
    }
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .map_or(65530, |text| text.trim().parse().unwrap());
    if limit > 200_000 {
        println!("not run: {limit} mappings are too many to make");
        return;
    }
    let region = MemfdBackend::create("", &options(32 * MIB)).unwrap();
    let alloc = ThreadLocalAllocator::shm_init_with(region, 4).unwrap();
    let buddy = buddy(MemfdBackend::create("", &options(4 * MIB)).unwrap()).unwrap();
    let all = Mappings::all();
    for _ in 0..3 {
        // A heap works without new mappings, and gives memory back without any.
        heap_runs_out(&alloc, 32 * MIB);
        buddy_runs_out(&buddy, 4 * MIB);
        // One or two may be left over.
        let made: Vec<_> = (0..8).map(|_| MemfdBackend::create("", &options(MIB))).collect();
        assert!(made.iter().any(|made| matches!(made, Err(Error::OutOfMemory { .. }))));
    }
    drop(all);
    let region = MemfdBackend::create("", &options(8 * MIB)).unwrap();
    assert!(fill(&ThreadLocalAllocator::shm_init_with(region, 4).unwrap(), 1000).len() > 5000);
}

/// The tests above see signals: one that is killed by one is a failure.
#[test]
fn a_signal_would_be_noticed() {
    const TEST: &str = "a_signal_would_be_noticed";
    if role(TEST).is_some() {
        limit(libc::RLIMIT_FSIZE, 4096);
        let dir = support::Dir::new("signal");
        let file = std::fs::File::create(dir.file("x")).unwrap();
        let _ = file.set_len(64 * KIB as u64);
        return;
    }
    let _turn = turn();
    let output = other_process(TEST, "run");
    assert!(!output.status.success());
}
