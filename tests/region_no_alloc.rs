//! Regions are made inside `malloc`: making, attaching and dropping them allocates nothing.
#![allow(unsafe_code)] // a counting allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use hshm::{
    Backend, Error, FileBackend, FullPtr, MIB, MallocBackend, MemfdBackend, PosixMmap,
    PosixShmMmap, Region, RegionOptions,
};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[track_caller]
fn allocates_nothing<R>(f: impl FnOnce() -> R) -> R {
    let before = COUNT.with(Cell::get);
    // SAFETY: errno is this thread's.
    unsafe { *libc::__errno_location() = 4711 };
    let result = f();
    // SAFETY: as above.
    let errno = unsafe { *libc::__errno_location() };
    assert_eq!(COUNT.with(Cell::get), before);
    assert_eq!(errno, 4711, "errno was not preserved");
    result
}

#[test]
fn creating_attaching_and_dropping() {
    let pid = std::process::id();
    let name = format!("hshm-t{pid}-no-alloc");
    let path = std::env::temp_dir().join(&name);
    let path = path.to_str().unwrap();
    let options = RegionOptions::new().capacity(64 * MIB);
    assert_ne!(
        {
            let before = COUNT.with(Cell::get);
            drop(std::hint::black_box(Box::new(1)));
            COUNT.with(Cell::get) - before
        },
        0,
        "the test counts"
    );

    let memfd = allocates_nothing(|| MemfdBackend::create("", &options).unwrap());
    let shm = allocates_nothing(|| PosixShmMmap::create(&name, &options).unwrap());
    let file = allocates_nothing(|| FileBackend::create(path, &options).unwrap());
    let private = allocates_nothing(|| {
        PosixMmap::create("", &options.shrink_to_fit(MIB).align(4096)).unwrap()
    });
    let heap = allocates_nothing(|| MallocBackend::create("", &options).unwrap());
    let token = memfd.token().unwrap();
    allocates_nothing(|| {
        drop(PosixShmMmap::attach(&name, &options).unwrap());
        drop(FileBackend::attach(path, &options.read_only(true)).unwrap());
        drop(Region::attach_token(&token, &options.relocate(true)).unwrap());
        drop(MemfdBackend::attach_fd(memfd.fd().unwrap(), &options).unwrap());
        for region in [&memfd, &shm, &file, &private, &heap] {
            region.commit(4096, MIB).unwrap();
            drop(region.clone());
            let full = FullPtr::from_ptr(region.base()).unwrap();
            assert_eq!(FullPtr::from_shm(full.shm()).unwrap().as_ptr(), region.base());
        }
        assert!(FullPtr::from_ptr(&mut 1u8).is_err());
        // Failures, too.
        assert_eq!(PosixShmMmap::create(&name, &options).err(), Some(Error::AlreadyExists));
        assert!(MemfdBackend::create("", &options.capacity(0)).is_err());
        PosixShmMmap::destroy(&name).unwrap();
        FileBackend::destroy(path).unwrap();
        assert_eq!(PosixShmMmap::attach(&name, &options).err(), Some(Error::NotFound));
    });
    allocates_nothing(|| drop((memfd, shm, file, private, heap)));
}
