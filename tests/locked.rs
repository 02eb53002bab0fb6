//! Programs that lock their memory: all of it, and not the gigabytes of addresses that a heap only reserves.
#![allow(unsafe_code)] // mmap, munlockall

use std::sync::atomic::{AtomicBool, Ordering};

use hshm::{Backend, Error, HshmAlloc, MIB, MemfdBackend, PosixMmap, RegionOptions, lock_memory};

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

/// A field of `/proc/self/status`, in KiB.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Pages of a mapping that are in memory.
fn resident(at: *const u8, len: usize) -> usize {
    let mut pages = vec![0u8; len / 4096];
    // SAFETY: a place for as many bytes as the mapping has pages.
    let result = unsafe { libc::mincore(at.cast_mut().cast(), len, pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().filter(|&&page| page & 1 == 1).count()
}

fn map(len: usize) -> *const u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at an address of the system's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

/// Regions that come and go while the process locks its memory are not filled either.
fn lock_beside_a_thread_that_makes_regions() {
    let options = RegionOptions::new().capacity(512 * MIB);
    let (before, done) = (status("VmHWM:"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                drop(PosixMmap::create("", &options).unwrap());
                drop(MemfdBackend::create("", &options).unwrap());
            }
        });
        for round in 0..30 {
            let result = lock_memory(round % 2 == 0);
            let most = status("VmHWM:");
            if result.is_err() || most > before + (256 << 10) {
                done.store(true, Ordering::Relaxed);
                panic!("round {round}: {result:?}, {most} KiB");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

// One test: locks are a whole process's.
#[test]
fn what_is_locked_is_what_is_used() {
    const SOME: usize = 8 << 20;
    let before = map(SOME);
    let capacity = RegionOptions::new().capacity(4096 * MIB);
    let regions = [MemfdBackend::create("", &capacity), PosixMmap::create("", &capacity)];
    let regions = regions.map(Result::unwrap);
    match lock_memory(false) {
        Err(error @ (Error::PermissionDenied | Error::OutOfMemory { .. })) => {
            return println!("not tested: this process may not lock its memory: {error}");
        }
        result => result.unwrap(),
    }
    assert_eq!(resident(before, SOME), SOME / 4096, "others are filled at once");
    // The addresses of the heap and of both regions, and more memory than the machine may have.
    assert!(status("VmLck:") > 64 << 20, "{} KiB", status("VmLck:"));
    assert!(status("VmRSS:") < 1 << 20, "{} KiB", status("VmRSS:"));
    let after = map(SOME);
    assert_eq!(resident(after, SOME), 0);

    lock_beside_a_thread_that_makes_regions();
    lock_memory(true).unwrap();
    let later = map(SOME);
    assert_eq!(resident(later, SOME), SOME / 4096);
    let more = [MemfdBackend::create("", &capacity), PosixMmap::create("", &capacity)];
    let more = more.map(Result::unwrap);
    assert!(status("VmRSS:") < 1 << 20, "{} KiB", status("VmRSS:"));
    for region in regions.iter().chain(&more) {
        let page = region.base().wrapping_add(3 << 20);
        assert_eq!(resident(page, 4096), 0);
        // SAFETY: within the region, of which nothing is in use.
        unsafe { page.write_volatile(1) };
        assert_eq!(resident(page, 4096), 1);
        // What is given back is gone, and locked again when it is touched.
        for _ in 0..2 {
            // SAFETY: as above.
            unsafe {
                region.purge(2 << 20, 2 << 20).unwrap();
                assert_eq!(resident(page, 4096), 0);
                page.write_volatile(1);
            }
            assert_eq!(resident(page, 4096), 1);
        }
    }
    let locked = status("VmLck:");
    let block: Vec<u8> = vec![1; 100 << 20];
    let place = block.as_ptr().wrapping_add(4096).map_addr(|at| at & !4095);
    assert_eq!(resident(place, SOME), SOME / 4096);
    drop(block);
    assert_eq!(resident(place, SOME), 0, "more than is kept");
    // Threads of the test's may go.
    assert!(status("VmLck:") + 1024 > locked);

    // What a child maps is not locked, nor filled.
    // SAFETY: the child makes system calls, and ends.
    match unsafe { libc::fork() } {
        0 => {
            let region = PosixMmap::create("", &capacity);
            let good = region.is_ok() && status("VmLck:") == 0;
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!good)) };
        }
        child => {
            let mut how = 0;
            // SAFETY: a place for the result.
            assert_eq!(unsafe { libc::waitpid(child, &mut how, 0) }, child);
            assert_eq!(how, 0);
        }
    }
    // SAFETY: takes nothing.
    assert_eq!(unsafe { libc::munlockall() }, 0);
    assert_eq!(status("VmLck:"), 0);
    // Nor is what comes later.
    let last = [MemfdBackend::create("", &capacity), PosixMmap::create("", &capacity)];
    assert!(last.iter().all(|region| region.is_ok()));
    assert_eq!(status("VmLck:"), 0);
    assert!(A.verify().is_ok());
}
