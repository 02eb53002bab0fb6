//! Every backend with good and bad input; whatever fails leaves nothing behind.

#![allow(unsafe_code)] // looks into regions

mod support;

use hshm::{
    AllocatorId, ArrayBackend, Backend, BackendKind, Error, FileBackend, FullPtr, KIB, MIB,
    MallocBackend, MemfdBackend, OffsetPtr, PosixMmap, PosixShmMmap, Region, RegionOptions, ShmPtr,
};
use support::{Dir, is_root, leaves_nothing, other_process_ok, role, turn, unique};

const OPTIONS: RegionOptions = RegionOptions::new().capacity(MIB);

/// Writes and reads all of a region, and asks it everything.
fn exercise(region: &Region) {
    let start = region.payload_offset();
    let (base, len) = (region.base(), region.len());
    assert!(start >= 4096 && len > start);
    region.commit(start as u64, len - start).unwrap();
    // SAFETY: the range lies in the region, and nobody else uses it.
    unsafe {
        if region.known_zero() {
            assert!((start..len).step_by(512).all(|at| base.add(at).read() == 0));
        }
        base.add(start).write_bytes(0xA5, len - start);
        assert!((start..len).all(|at| base.add(at).read() == 0xA5));
    }
    let shared =
        matches!(region.kind(), BackendKind::PosixShm | BackendKind::Memfd | BackendKind::File);
    assert_eq!(region.is_shared(), shared);
    assert_eq!(region.fd().is_some(), shared);
    assert_eq!(region.token().is_ok(), shared);
    if !shared {
        assert_eq!(region.token(), Err(Error::NotShared));
    }
    assert!(region.is_writable() && region.is_creator() && !region.is_relocated());
    assert_eq!(region.resident_bytes(0, len), Ok(len));

    let last = base.wrapping_add(len - 1);
    let full = FullPtr::from_ptr(last).unwrap();
    assert_eq!(full.shm(), ShmPtr::new(region.id(), OffsetPtr::new(len as u64 - 1)));
    assert_eq!(FullPtr::from_shm(full.shm()).unwrap().as_ptr(), last);
    assert_eq!(
        FullPtr::from_ptr(last.cast::<u16>()).err(),
        Some(Error::NotInAnyRegion { address: last.addr() })
    );
    let past = base.wrapping_add(len);
    assert!(
        FullPtr::from_ptr(past).is_err_and(|e| e == Error::NotInAnyRegion { address: past.addr() })
    );
    let past = ShmPtr::<u8>::new(region.id(), OffsetPtr::new(len as u64));
    assert!(matches!(FullPtr::from_shm(past), Err(Error::OffsetOutOfRange { .. })));

    assert!(matches!(region.commit(1, len), Err(Error::OffsetOutOfRange { .. })));
    assert!(matches!(region.commit(u64::MAX, 2), Err(Error::OffsetOutOfRange { .. })));
    // SAFETY: nobody relies on the contents.
    let purged = unsafe { region.purge(start as u64, len - start) };
    match region.kind() {
        BackendKind::Malloc | BackendKind::Array => assert_eq!(purged, Err(Error::Unsupported)),
        _ => {
            assert_eq!(purged, Ok(()));
            // SAFETY: as above.
            assert!((start..len).all(|at| unsafe { base.add(at).read() } == 0));
        }
    }
}

/// What every backend refuses.
fn refuses<B: Backend>(url: &str) {
    for small in [0, 1, 4096, 8191] {
        let made = B::create(url, &OPTIONS.capacity(small));
        assert_eq!(made.err(), Some(Error::TooSmall { given: small, minimum: 8192 }));
    }
    for large in [usize::MAX, usize::MAX - 4096, (1 << 46) + 1] {
        let made = B::create(url, &OPTIONS.capacity(large));
        assert!(matches!(made.err(), Some(Error::TooLarge { given, .. }) if given == large));
    }
    let read_only = B::create(url, &OPTIONS.read_only(true));
    assert_eq!(read_only.err(), Some(Error::ReadOnly));
    let null = B::create(url, &OPTIONS.id(AllocatorId::NULL));
    assert_eq!(null.err(), Some(Error::UnknownAllocator { id: AllocatorId::NULL }));
    let taken = PosixMmap::create("", &OPTIONS).unwrap();
    let same = B::create(url, &OPTIONS.id(taken.id()));
    assert_eq!(same.err(), Some(Error::AlreadyExists));
    if B::KIND != BackendKind::Malloc {
        for align in [0, 3, 1 << 60] {
            let odd = B::create(url, &OPTIONS.align(align));
            assert_eq!(odd.err(), Some(Error::BadAlignment { align }));
        }
        let there = OPTIONS.base(taken.base().addr()).same_address(true);
        assert_eq!(B::create(url, &there).err(), Some(Error::Relocated));
    }
}

#[test]
fn posix_shm() {
    leaves_nothing(|| {
        let name = unique("posix_shm");
        refuses::<PosixShmMmap>(&name);
        for bad in ["", "/", "a/b", ".", "..", "nul\0", &"n".repeat(255)] {
            assert_eq!(PosixShmMmap::create(bad, &OPTIONS).err(), Some(Error::BadName));
            assert_eq!(PosixShmMmap::attach(bad, &OPTIONS).err(), Some(Error::BadName));
            assert_eq!(PosixShmMmap::destroy(bad).err(), Some(Error::BadName));
        }
        assert_eq!(PosixShmMmap::attach(&name, &OPTIONS).err(), Some(Error::NotFound));
        assert_eq!(PosixShmMmap::destroy(&name), Err(Error::NotFound));
        let region = PosixShmMmap::create(&name, &OPTIONS).unwrap();
        assert_eq!(PosixShmMmap::create(&name, &OPTIONS).err(), Some(Error::AlreadyExists));
        assert!(region.must_commit());
        exercise(&region);
        PosixShmMmap::destroy(&name).unwrap();
        assert_eq!(PosixShmMmap::attach(&name, &OPTIONS).err(), Some(Error::NotFound));
        // Those who have it cannot pass it on any more.
        let token = region.token().unwrap();
        assert_eq!(Region::attach_token(&token, &OPTIONS).err(), Some(Error::NotFound));
    });
}

#[test]
fn memfd() {
    leaves_nothing(|| {
        refuses::<MemfdBackend>("label");
        for bad in ["nul\0", &"n".repeat(201)] {
            assert_eq!(MemfdBackend::create(bad, &OPTIONS).err(), Some(Error::BadName));
        }
        for bad in ["", "fd", "fd:", "fd:x", "fd:1:2", "pid:1", "pid:1:fd:x", "pid:x:fd:1", "hshm:"]
        {
            assert_eq!(MemfdBackend::attach(bad, &OPTIONS).err(), Some(Error::BadName), "{bad}");
        }
        assert_eq!(MemfdBackend::attach("fd:-1", &OPTIONS).err(), Some(Error::NotFound));
        assert_eq!(MemfdBackend::attach("fd:9999", &OPTIONS).err(), Some(Error::NotFound));
        let gone = "pid:4294967295:fd:3";
        assert_eq!(MemfdBackend::attach(gone, &OPTIONS).err(), Some(Error::NotFound));
        assert_eq!(MemfdBackend::attach_fd(i32::MAX, &OPTIONS).err(), Some(Error::NotFound));
        let device = std::fs::File::open("/dev/null").unwrap();
        let device = std::os::fd::AsRawFd::as_raw_fd(&device);
        assert_eq!(MemfdBackend::attach_fd(device, &OPTIONS).err(), Some(Error::NotARegion));
        let region = MemfdBackend::create("", &OPTIONS).unwrap();
        exercise(&region);
        assert_eq!(MemfdBackend::destroy(""), Ok(()));
    });
}

#[test]
fn private_mmap() {
    leaves_nothing(|| {
        refuses::<PosixMmap>("");
        let region = PosixMmap::create("", &OPTIONS).unwrap();
        exercise(&region);
        assert_eq!(PosixMmap::attach("", &OPTIONS).err(), Some(Error::NotShared));
        assert_eq!(PosixMmap::destroy(""), Ok(()));
    });
}

#[test]
fn c_heap() {
    leaves_nothing(|| {
        refuses::<MallocBackend>("");
        let region = MallocBackend::create("", &OPTIONS).unwrap();
        assert_eq!(region.base().addr() % (64 * KIB), 0);
        assert!(!region.known_zero());
        exercise(&region);
        assert_eq!(MallocBackend::attach("", &OPTIONS).err(), Some(Error::NotShared));
    });
}

#[test]
fn array() {
    leaves_nothing(|| {
        assert_eq!(ArrayBackend::create("", &OPTIONS).err(), Some(Error::Unsupported));
        assert_eq!(ArrayBackend::attach("", &OPTIONS).err(), Some(Error::NotShared));
        for small in [0, 1, 4096, 8191] {
            let array = vec![0u8; small].leak();
            let made = ArrayBackend::over(array, &OPTIONS);
            assert_eq!(made.err(), Some(Error::TooSmall { given: small, minimum: 8192 }));
        }
        // SAFETY: refused before it is touched.
        let null = unsafe { ArrayBackend::over_raw(core::ptr::null_mut(), MIB, &OPTIONS) };
        assert!(matches!(null.err(), Some(Error::TooSmall { .. })));
        // SAFETY: as above.
        let wraps = unsafe { ArrayBackend::over_raw(usize::MAX as *mut u8, 2, &OPTIONS) };
        assert!(matches!(wraps.err(), Some(Error::TooSmall { .. })));
        let odd = &mut vec![0xFFu8; MIB + 12345].leak()[1..];
        let outer = odd.as_ptr_range();
        let region = ArrayBackend::over(odd, &OPTIONS).unwrap();
        assert_eq!(region.base().addr() % (64 * KIB), 0);
        assert!(outer.contains(&region.base().cast_const()));
        assert!(region.base().wrapping_add(region.len()).cast_const() <= outer.end);
        exercise(&region);
        let small = ArrayBackend::over(vec![1u8; 4 * 4096].leak(), &OPTIONS).unwrap();
        assert!(small.len() >= 3 * 4096 && small.base().addr().is_multiple_of(4096));
        exercise(&small);
    });
}

#[test]
fn file() {
    leaves_nothing(|| {
        let dir = Dir::new("file");
        let path = dir.file("region");
        refuses::<FileBackend>(&path);
        assert!(!std::fs::exists(&path).unwrap());
        for bad in ["", "nul\0", &"n".repeat(4096), &format!("/tmp/{}", "n".repeat(300))] {
            assert_eq!(FileBackend::create(bad, &OPTIONS).err(), Some(Error::BadName));
            assert_eq!(FileBackend::attach(bad, &OPTIONS).err(), Some(Error::BadName));
        }
        let nowhere = dir.file("no/such/directory");
        assert_eq!(FileBackend::create(&nowhere, &OPTIONS).err(), Some(Error::NotFound));
        assert_eq!(FileBackend::attach(&path, &OPTIONS).err(), Some(Error::NotFound));
        assert_eq!(FileBackend::destroy(&path), Err(Error::NotFound));
        let region = FileBackend::create(&path, &OPTIONS).unwrap();
        assert_eq!(FileBackend::create(&path, &OPTIONS).err(), Some(Error::AlreadyExists));
        assert!(region.must_commit());
        exercise(&region);
        drop(region);
        drop(FileBackend::attach(&path, &OPTIONS).unwrap());
        FileBackend::destroy(&path).unwrap();
        assert!(!std::fs::exists(&path).unwrap());
    });
}

#[test]
fn files_that_are_not_to_be_trusted() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    leaves_nothing(|| {
        let dir = Dir::new("trust");
        let path = dir.file("region");
        drop(FileBackend::create(&path, &OPTIONS).unwrap());
        let attach = |path: &str| FileBackend::attach(path, &OPTIONS).map(drop);
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!(attach(&path), Ok(()));
        for open in [0o601, 0o610, 0o640, 0o666] {
            mode(open);
            assert_eq!(attach(&path), Err(Error::PermissionDenied));
        }
        mode(0o600);
        std::fs::hard_link(&path, dir.file("second")).unwrap();
        assert_eq!(attach(&path), Err(Error::PermissionDenied));
        std::fs::remove_file(dir.file("second")).unwrap();
        symlink(&path, dir.file("link")).unwrap();
        assert_eq!(attach(&dir.file("link")), Err(Error::PermissionDenied));
        std::fs::create_dir(dir.file("dir")).unwrap();
        assert_eq!(attach(&dir.file("dir")), Err(Error::NotARegion));
        let fifo = std::ffi::CString::new(dir.file("fifo")).unwrap();
        // SAFETY: a C string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert_eq!(attach(&dir.file("fifo")), Err(Error::NotARegion));
        let read_only = OPTIONS.read_only(true);
        let fifo = FileBackend::attach(&dir.file("fifo"), &read_only);
        assert_eq!(fifo.err(), Some(Error::NotARegion));
        if is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert_eq!(attach(&path), Err(Error::PermissionDenied));
        }
    });
}

#[test]
fn foreign_and_unfinished_files() {
    leaves_nothing(|| {
        let dir = Dir::new("foreign");
        use std::os::unix::fs::OpenOptionsExt;
        let path = dir.file("file");
        let put = |bytes: &[u8]| {
            let _ = std::fs::remove_file(&path);
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
        };
        let attach = || FileBackend::attach(&path, &OPTIONS).map(drop);
        put(b"");
        assert_eq!(attach(), Err(Error::NotReady));
        put(b"short");
        assert_eq!(attach(), Err(Error::Truncated { length: 5, expected: 8192 }));
        put(&[0; 10000]);
        assert_eq!(attach(), Err(Error::NotReady));
        // An unfinished region can be cleared away, somebody else's file cannot.
        assert_eq!(FileBackend::destroy(&path), Ok(()));
        put(&[b'x'; 10000]);
        assert_eq!(attach(), Err(Error::NotARegion));
        assert_eq!(FileBackend::destroy(&path), Err(Error::NotARegion));
        assert!(std::fs::exists(&path).unwrap());
        std::fs::remove_file(&path).unwrap();

        drop(FileBackend::create(&path, &OPTIONS).unwrap());
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MIB as u64 - 1).unwrap();
        let truncated = Error::Truncated { length: MIB as u64 - 1, expected: MIB as u64 };
        assert_eq!(attach(), Err(truncated));
        assert_eq!(FileBackend::destroy(&path), Ok(()));
    });
}

#[test]
fn no_permission() {
    const TEST: &str = "no_permission";
    if let Some(path) = role(TEST) {
        // SAFETY: no preconditions.
        assert_eq!(unsafe { libc::setuid(65534) }, 0);
        let attached = FileBackend::attach(&path, &OPTIONS);
        assert_eq!(attached.err(), Some(Error::PermissionDenied));
        let made = FileBackend::create(&format!("{path}-2"), &OPTIONS);
        assert_eq!(made.err(), Some(Error::PermissionDenied));
        assert_eq!(FileBackend::destroy(&path).err(), Some(Error::PermissionDenied));
        return;
    }
    if !is_root() {
        return;
    }
    let _turn = turn();
    let dir = Dir::new(TEST);
    let path = dir.file("region");
    let _region = FileBackend::create(&path, &OPTIONS).unwrap();
    other_process_ok(TEST, &path);
}

fn set_limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the limit is a valid value.
    assert_eq!(unsafe { libc::setrlimit(resource, &limit) }, 0);
}

#[test]
fn file_size_limit() {
    const TEST: &str = "file_size_limit";
    if role(TEST).is_none() {
        let _turn = turn();
        return other_process_ok(TEST, "child");
    }
    // Standard output is a pipe, which has no length.
    set_limit(libc::RLIMIT_FSIZE, 3 * MIB as u64 + 100);
    let big = RegionOptions::new().capacity(64 * MIB);
    let name = unique("fsize");
    leaves_nothing(|| {
        let too_large = Error::TooLarge { given: 64 * MIB, maximum: 3 * MIB + 100 };
        assert_eq!(MemfdBackend::create("", &big).err(), Some(too_large));
        assert_eq!(PosixShmMmap::create(&name, &big).err(), Some(too_large));
        let region = MemfdBackend::create("", &big.shrink_to_fit(MIB)).unwrap();
        assert_eq!(region.len(), 3 * MIB);
        exercise(&region);
        let none = MemfdBackend::create("", &big.shrink_to_fit(4 * MIB)).err();
        assert_eq!(none, Some(Error::OutOfMemory { requested: 4 * MIB, available: 3 * MIB }));
        PosixMmap::create("", &big).unwrap();
    });
}

#[test]
fn address_space_limit() {
    const TEST: &str = "address_space_limit";
    if role(TEST).is_none() {
        let _turn = turn();
        return other_process_ok(TEST, "child");
    }
    set_limit(libc::RLIMIT_AS, 2 << 30);
    let big = RegionOptions::new().capacity(64 << 30);
    let name = unique("as");
    leaves_nothing(|| {
        fn out(made: hshm::Result<Region>) {
            assert!(matches!(made.err(), Some(Error::OutOfMemory { requested, .. })
                if requested == 64 << 30));
        }
        out(MemfdBackend::create("", &big));
        out(PosixMmap::create("", &big));
        out(PosixShmMmap::create(&name, &big));
        out(MallocBackend::create("", &big));
        let shrink = big.shrink_to_fit(64 * MIB);
        let first = MemfdBackend::create("", &shrink).unwrap();
        let second = PosixMmap::create("", &shrink).unwrap();
        assert!((256 * MIB..1 << 30).contains(&first.len()), "{}", first.len());
        assert!((64 * MIB..first.len()).contains(&second.len()), "{}", second.len());
        let third = MemfdBackend::create("", &big.shrink_to_fit(1 << 30));
        assert!(matches!(third.err(), Some(Error::OutOfMemory { .. })));
    });
}

#[test]
fn a_full_file_system_is_an_error() {
    const TEST: &str = "a_full_file_system_is_an_error";
    let Some(path) = role(TEST) else {
        if is_root() {
            let _turn = turn();
            let dir = Dir::new("full");
            other_process_ok(TEST, dir.0.to_str().unwrap());
        }
        return;
    };
    let target = std::ffi::CString::new(path.clone()).unwrap();
    // SAFETY: C strings; the mount namespace is this process's own.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            return;
        }
        let private = libc::MS_REC | libc::MS_PRIVATE;
        libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null());
        let (kind, size) = (c"tmpfs".as_ptr(), c"size=256k".as_ptr());
        if libc::mount(kind, target.as_ptr(), kind, 0, size.cast()) != 0 {
            return;
        }
    }
    let path = format!("{path}/region");
    let region = FileBackend::create(&path, &OPTIONS).unwrap();
    region.commit(4096, 128 * KIB).unwrap();
    let all = region.commit(0, MIB);
    assert_eq!(all, Err(Error::OutOfMemory { requested: MIB, available: 0 }));
    // What was committed is ours; and what the failed attempt took can be given back.
    // SAFETY: the range lies in the region, and nobody else uses it.
    unsafe {
        region.base().add(4096).write_bytes(1, 128 * KIB);
        region.purge(4096, MIB - 4096).unwrap();
    }
    region.commit(512 * KIB as u64, 128 * KIB).unwrap();
    // With no page left there is no room for a header: an error, and no file.
    let _ = region.commit(0, MIB);
    let second = path.replace("region", "second");
    let made = FileBackend::create(&second, &OPTIONS);
    assert!(matches!(made.err(), Some(Error::OutOfMemory { .. })));
    assert!(!std::fs::exists(&second).unwrap());
}

#[test]
fn ids_handles_and_the_table() {
    leaves_nothing(|| {
        let id = AllocatorId::new(7_001, 1);
        let other = AllocatorId::new(7_001, 2);
        let region = PosixMmap::create("", &OPTIONS.id(id)).unwrap();
        assert_eq!(region.id(), id);
        let place = |id| FullPtr::<u8>::from_shm(ShmPtr::new(id, OffsetPtr::new(5000)));
        assert_eq!(place(other).err(), Some(Error::UnknownAllocator { id: other }));
        region.bind(other).unwrap();
        region.bind(other).unwrap();
        assert_eq!(place(other).unwrap().as_ptr(), region.base().wrapping_add(5000));
        assert_eq!(Region::by_id(other).unwrap().base(), region.base());
        let second = PosixMmap::create("", &OPTIONS).unwrap();
        assert_eq!(second.bind(other), Err(Error::AlreadyExists));
        assert_eq!(second.unbind(other), Err(Error::UnknownAllocator { id: other }));
        region.unbind(other).unwrap();
        assert_eq!(place(other).err(), Some(Error::UnknownAllocator { id: other }));
        second.bind(other).unwrap();
        assert_eq!(place(other).unwrap().as_ptr(), second.base().wrapping_add(5000));

        let clone = region.clone();
        let found = Region::containing(region.base().wrapping_add(77)).unwrap();
        drop(region);
        drop(clone);
        assert_eq!(found.id(), id);
        let base = found.base();
        drop(found);
        assert!(Region::containing(base).is_err());
        assert_eq!(place(id).err(), Some(Error::UnknownAllocator { id }));

        let mut all = Vec::new();
        let full = loop {
            match PosixMmap::create("", &OPTIONS.capacity(8192)) {
                Ok(region) => all.push(region),
                Err(error) => break error,
            }
        };
        assert_eq!(full, Error::TableFull { slots: 256 });
        assert_eq!(all.len(), 255);
        // Many ids of many regions come and go, and every one leads to its own region.
        for round in 0..3u32 {
            let ids = |n: usize| (0..2).map(move |m| AllocatorId::new(n as u32 * 8 + m, 9));
            for (n, region) in all.iter().enumerate() {
                ids(n).for_each(|id| region.bind(id).unwrap());
            }
            let drop_it = |n: usize| n as u32 % 3 == round;
            for (n, region) in all.iter().enumerate().filter(|(n, _)| drop_it(*n)) {
                ids(n).for_each(|id| region.unbind(id).unwrap());
            }
            for (n, region) in all.iter().enumerate() {
                for id in ids(n) {
                    match place(id) {
                        Ok(full) => assert_eq!(full.as_ptr(), region.base().wrapping_add(5000)),
                        Err(_) => assert!(drop_it(n)),
                    }
                }
                ids(n).filter(|_| !drop_it(n)).for_each(|id| region.unbind(id).unwrap());
            }
        }
    });
}

/// Does it when it goes out of scope.
struct OnDrop<F: Fn()>(F);
impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

#[test]
fn readers_never_see_a_mixture() {
    use std::sync::atomic::{AtomicBool, Ordering};
    leaves_nothing(|| {
        let stop = AtomicBool::new(false);
        let ids = [AllocatorId::new(8_001, 0), AllocatorId::new(8_002, 0)];
        let keep = PosixMmap::create("", &OPTIONS).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Also when this panics: the reader waits for it.
                let _stop = OnDrop(|| stop.store(true, Ordering::Relaxed));
                for round in 0..2_000 {
                    // Lengths tell the regions apart: one page more for the second id.
                    let which = round % 2;
                    let options = OPTIONS.capacity((8 + which) * 4096).id(ids[which]);
                    let align = if round % 3 == 0 { 4096 } else { 1 << 36 };
                    let made = loop {
                        match PosixMmap::create("", &options.align(align)) {
                            // The reader still has a handle to the last one with this id.
                            Err(Error::AlreadyExists) => std::thread::yield_now(),
                            made => break made,
                        }
                    };
                    drop(made.unwrap());
                }
            });
            while !stop.load(Ordering::Relaxed) {
                for (which, id) in ids.iter().enumerate() {
                    let length = (8 + which as u64) * 4096;
                    let past = ShmPtr::<u8>::new(*id, OffsetPtr::new(1 << 40));
                    match FullPtr::from_shm(past) {
                        Err(Error::UnknownAllocator { .. }) => {}
                        error => assert_eq!(
                            error.err(),
                            Some(Error::OffsetOutOfRange { offset: 1 << 40, length })
                        ),
                    }
                    if let Ok(region) = Region::by_id(*id) {
                        assert_eq!((region.id(), region.len() as u64), (*id, length));
                        // A handle keeps the region: it can be read.
                        // SAFETY: mapped while there is a handle.
                        assert_ne!(unsafe { region.base().read_volatile() }, 0);
                    }
                }
                let full = FullPtr::from_ptr(keep.base()).unwrap();
                assert_eq!(full.shm(), ShmPtr::new(keep.id(), OffsetPtr::new(0)));
            }
        });
    });
}
