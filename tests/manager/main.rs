//! The memory manager: backends, allocators in them and in each other, between processes, and what
//! happens to memory that somebody still has when it is given up.
#![allow(unsafe_code)] // uses what was allocated
#![allow(unreachable_pub)] // modules of a program

#[path = "../support/mod.rs"]
mod support;

mod processes;

use std::collections::BTreeSet;
use std::sync::Mutex;

use hshm::{
    Allocator, AllocatorId, AllocatorKind, AllocatorOptions, ArrayBackend, Backend, BuddyAllocator,
    Error, ErrorCode, FullPtr, KIB, LeakReport, MIB, MallocAllocator, MallocBackend,
    ManagedAllocator, MemContext, MemfdBackend, MemoryBackendId, MemoryManager, OffsetPtr,
    PosixShmMmap, Region, RegionOptions, ScalablePageAllocator, ShmPtr, StackAllocator,
    ThreadLocalAllocator, Unit,
};
use support::peer::{Peer, serve};
use support::{Dir, leaves_nothing, role, turn, unique};

const CTX: MemContext = MemContext::DEFAULT;
const B: MemoryBackendId = MemoryBackendId::get(0);

fn id(minor: u32) -> AllocatorId {
    AllocatorId::new(0xA110C, minor)
}

fn sized(bytes: usize) -> AllocatorOptions {
    AllocatorOptions::new().size(bytes)
}

/// A little work with an allocator that leaves nothing behind.
#[track_caller]
fn works<A: Allocator>(alloc: &A) {
    let before = alloc.currently_allocated_size();
    let blocks: Vec<_> = (0..20)
        .map(|number| {
            let size = 64 << (number % 8);
            let block = alloc.allocate::<u8>(CTX, size).unwrap();
            // SAFETY: just allocated, with this size.
            unsafe { block.as_ptr().write_bytes(number as u8, size) };
            if alloc.base().is_null() {
                return block;
            }
            assert_eq!(FullPtr::from_ptr(block.as_ptr()).unwrap().shm(), block.shm());
            assert_eq!(FullPtr::from_shm(block.shm()).unwrap().as_ptr(), block.as_ptr());
            block
        })
        .collect();
    for (number, block) in blocks.into_iter().enumerate().rev() {
        // SAFETY: live, and not used again.
        unsafe {
            assert_eq!(*block.as_ptr(), number as u8);
            alloc.free(CTX, block).unwrap();
        }
    }
    assert_eq!(alloc.currently_allocated_size(), before);
}

/// Every backend takes every allocator, and leaves nothing.
#[test]
fn every_allocator_on_every_backend() {
    let dir = Dir::new("manager");
    let path = dir.file("backend");
    let name = unique("manager-every");
    let urls = [
        format!("shm://{name}"),
        "memfd:label".to_owned(),
        format!("file://{path}"),
        "anon:".to_owned(),
        "malloc:".to_owned(),
    ];
    for url in &urls {
        leaves_nothing(|| {
            let manager = MemoryManager::new();
            let region = manager.create_backend(B, Unit::megabytes(96), url).unwrap();
            assert_eq!(region.len(), 96 * MIB);
            let eight = sized(16 * MIB);
            manager.create_allocator_with::<StackAllocator>(B, id(1), &eight).unwrap();
            manager.create_allocator_with::<BuddyAllocator>(B, id(2), &eight).unwrap();
            manager.create_allocator_with::<ThreadLocalAllocator>(B, id(3), &eight).unwrap();
            if region.is_shared() {
                let refused = manager.create_allocator_with::<MallocAllocator>(B, id(5), &eight);
                assert_eq!(refused.err(), Some(Error::Unsupported));
            } else {
                manager.create_allocator_with::<MallocAllocator>(B, id(5), &eight).unwrap();
                works(&manager.get_allocator::<MallocAllocator>(id(5)).unwrap());
            }
            manager.create_allocator::<ScalablePageAllocator>(B, id(4), 0).unwrap();
            works(&manager.get_allocator::<StackAllocator>(id(1)).unwrap());
            works(&manager.get_allocator::<BuddyAllocator>(id(2)).unwrap());
            works(&manager.get_allocator::<ThreadLocalAllocator>(id(3)).unwrap());
            works(&manager.get_allocator::<ScalablePageAllocator>(id(4)).unwrap());
            let kinds: BTreeSet<u32> =
                manager.allocators(B).unwrap().iter().map(|info| info.kind.number()).collect();
            assert!(kinds.is_superset(&BTreeSet::from([1, 3, 4, 5])));
            for minor in 1..5 {
                works(&manager.get_any_allocator(id(minor)).unwrap());
            }
            manager.destroy_backend(B).unwrap();
            assert_eq!(manager.backends(), []);
        });
    }
}

/// Allocators on one backend, and those they were given as pointers, are kept apart.
#[test]
fn allocators_on_one_backend_are_apart() {
    let _turn = turn();
    let manager = MemoryManager::new();
    manager.create_backend(B, 40 * MIB, "memfd:").unwrap();
    let one = manager.create_allocator_with::<BuddyAllocator>(B, id(11), &sized(10 * MIB)).unwrap();
    let two = manager.create_allocator_with::<BuddyAllocator>(B, id(12), &sized(10 * MIB)).unwrap();
    let mine = one.allocate::<u64>(CTX, 64).unwrap();
    let expected = Error::ForeignPointer { found: id(11), expected: id(12) };
    // SAFETY: refused.
    assert_eq!(unsafe { two.free(CTX, mine) }, Err(expected));
    assert_eq!(FullPtr::from_allocator(&*two, mine.shm()), Err(expected));
    // Their bytes do not overlap, and neither has the directory's.
    let range = |alloc: &BuddyAllocator| {
        let start = alloc.base().addr() - manager.backend(B).unwrap().base().addr();
        start..start + alloc.region_len()
    };
    let (first, second) = (range(&one), range(&two));
    assert!(first.start >= 8192 && first.end <= second.start && second.end <= 40 * MIB);
    // One that is full takes nothing from the others.
    let mut count = 0;
    let error = loop {
        match one.allocate::<u8>(CTX, 100 * KIB) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(count > 90 && count < 105, "{count}");
    let Error::OutOfMemory { requested, available } = error else { panic!("{error}") };
    assert!(requested == 100 * KIB && available < 100 * KIB);
    works(&two);
}

#[test]
fn what_is_refused() {
    let _turn = turn();
    let manager = MemoryManager::new();
    let code = |result: Result<(), Error>| result.unwrap_err().code();
    // Backends.
    for url in
        ["", "nowhere", "shm:x", "file://relative", "anon:x", "ftp://x", "shm://", "shm://a/b"]
    {
        assert_eq!(manager.create_backend(B, MIB, url).err(), Some(Error::BadName), "{url}");
        assert_eq!(code(manager.attach_backend(B, url)), ErrorCode::BadName, "{url}");
    }
    assert_eq!(manager.create_backend(B, 0, "memfd:").unwrap_err().code(), ErrorCode::TooSmall);
    assert_eq!(
        manager.create_backend(B, 64 * KIB, "anon:").unwrap_err().code(),
        ErrorCode::TooSmall
    );
    let huge = manager.create_backend(B, usize::MAX, "anon:").unwrap_err();
    assert_eq!(huge.code(), ErrorCode::TooLarge);
    assert_eq!(code(manager.attach_backend(B, "shm://hshm-no-such")), ErrorCode::NotFound);
    for url in ["anon:", "malloc:"] {
        assert_eq!(code(manager.attach_backend(B, url)), ErrorCode::NotShared);
    }
    let unknown = Error::UnknownBackend { id: 0 };
    assert_eq!(manager.backend(B).err(), Some(unknown));
    assert_eq!(manager.backend_url(B).err(), Some(unknown));
    assert_eq!(manager.allocators(B).err(), Some(unknown));
    assert_eq!(manager.detach_backend(B), Err(unknown));
    assert_eq!(manager.destroy_backend(B), Err(unknown));
    let made = manager.create_allocator::<StackAllocator>(B, id(21), 0);
    assert_eq!(made.err(), Some(unknown));
    manager.create_backend(B, MIB, "anon:").unwrap();
    assert_eq!(manager.create_backend(B, MIB, "anon:").err(), Some(Error::AlreadyExists));
    assert_eq!(manager.backend_url(B), Err(Error::NotShared));
    // A region that somebody else uses, or that has no directory.
    let other = MemoryBackendId::get(1);
    let busy = MemfdBackend::create("", &RegionOptions::new().capacity(16 * MIB)).unwrap();
    let none = manager.attach_backend_in(other, busy.clone());
    assert_eq!(none, Err(Error::NotReady));
    let alloc = ThreadLocalAllocator::shm_init(busy.clone()).unwrap();
    assert_eq!(manager.create_backend_in(other, busy.clone()), Err(Error::AlreadyExists));
    assert_eq!(code(manager.attach_backend_in(other, busy)), ErrorCode::Incompatible);
    drop(alloc);
    // Allocators.
    let nobody = Error::UnknownAllocator { id: id(21) };
    assert_eq!(manager.get_allocator::<StackAllocator>(id(21)).err(), Some(nobody));
    assert_eq!(manager.get_any_allocator(id(21)).err(), Some(nobody));
    assert_eq!(manager.detach_allocator(id(21)), Err(nobody));
    assert_eq!(manager.destroy_allocator(id(21)), Err(nobody));
    assert_eq!(manager.set_default_allocator(id(21)), Err(nobody));
    let null = manager.create_allocator::<StackAllocator>(B, AllocatorId::NULL, 0);
    assert_eq!(null.unwrap_err().code(), ErrorCode::UnknownAllocator);
    let full = manager.create_allocator_with::<StackAllocator>(B, id(21), &sized(MIB)).unwrap_err();
    assert_eq!(full, Error::OutOfMemory { requested: MIB, available: MIB - 64 * KIB });
    // Too little for the tables: nothing is left of the attempt.
    let small = manager.create_allocator_with::<ThreadLocalAllocator>(B, id(21), &sized(64 * KIB));
    assert_eq!(small.unwrap_err().code(), ErrorCode::TooSmall);
    manager.create_allocator_with::<StackAllocator>(B, id(21), &sized(64 * KIB)).unwrap();
    let again = manager.create_allocator::<BuddyAllocator>(B, id(21), 0);
    assert_eq!(again.err(), Some(Error::AlreadyExists));
    let wrong = manager.get_allocator::<BuddyAllocator>(id(21)).unwrap_err();
    let (found, expected) = (AllocatorKind::STACK.number(), BuddyAllocator::KIND.number());
    assert_eq!(wrong, Error::Incompatible { found, expected });
    // The same id in another backend of this process.
    manager.create_backend(other, MIB, "memfd:").unwrap();
    let again = manager.create_allocator::<BuddyAllocator>(other, id(21), 0);
    assert_eq!(again.err(), Some(Error::AlreadyExists));
    // All that is left, and then nothing.
    manager.create_allocator::<BuddyAllocator>(B, id(22), 0).unwrap();
    let full = manager.create_allocator::<BuddyAllocator>(B, id(23), 0).unwrap_err();
    assert!(matches!(full, Error::OutOfMemory { available: 0, .. }), "{full}");
    // Inside others.
    let inside = |parent, size| {
        manager.create_sub_allocator::<BuddyAllocator>(parent, id(24), &sized(size)).unwrap_err()
    };
    assert_eq!(inside(id(99), MIB).code(), ErrorCode::UnknownAllocator);
    assert_eq!(inside(id(22), 0).code(), ErrorCode::TooSmall);
    assert_eq!(inside(id(22), 2 * MIB).code(), ErrorCode::OutOfMemory);
    assert_eq!(inside(id(22), usize::MAX).code(), ErrorCode::OutOfMemory);
    assert_eq!(
        manager.get_allocator::<BuddyAllocator>(id(22)).unwrap().currently_allocated_size(),
        0
    );
}

#[test]
fn tables_of_allocators_are_bounded() {
    let _turn = turn();
    let manager = MemoryManager::new();
    manager.create_backend(B, 16 * MIB, "anon:").unwrap();
    for minor in 0..63 {
        let options = sized(64 * KIB);
        let made = manager.create_allocator_with::<StackAllocator>(B, id(100 + minor), &options);
        works(&made.unwrap());
    }
    let full = manager.create_allocator_with::<StackAllocator>(B, id(200), &sized(64 * KIB));
    assert_eq!(full.err(), Some(Error::TableFull { slots: 63 }));
    manager.destroy_allocator(id(130)).unwrap();
    let made = manager.create_allocator_with::<StackAllocator>(B, id(200), &sized(64 * KIB));
    works(&made.unwrap());
}

/// Sub-allocators, three deep, each of another type.
#[test]
fn allocators_in_allocators() {
    let _turn = turn();
    for url in ["memfd:", "anon:", "malloc:"] {
        let manager = MemoryManager::new();
        manager.create_backend(B, 64 * MIB, url).unwrap();
        let outer = manager.create_allocator::<ScalablePageAllocator>(B, id(31), 0).unwrap();
        let middle = manager
            .create_sub_allocator::<ThreadLocalAllocator>(id(31), id(32), &sized(12 * MIB))
            .unwrap();
        let inner =
            manager.create_sub_allocator::<BuddyAllocator>(id(32), id(33), &sized(MIB)).unwrap();
        let deep = manager
            .create_sub_allocator::<StackAllocator>(id(33), id(34), &sized(100 * KIB))
            .unwrap();
        assert_eq!(deep.region_len(), 128 * KIB);
        works(&outer);
        works(&middle);
        works(&inner);
        works(&deep);
        let parents: BTreeSet<_> =
            manager.allocators(B).unwrap().iter().map(|info| (info.id, info.parent)).collect();
        let expected = [
            (id(31), None),
            (id(32), Some(id(31))),
            (id(33), Some(id(32))),
            (id(34), Some(id(33))),
        ];
        assert_eq!(parents, BTreeSet::from(expected));
        // A block each, in the one around.
        assert_eq!(LeakReport::of(&*outer).unwrap().blocks(), 1);
        assert_eq!(LeakReport::of(&*middle).unwrap().blocks(), 1);
        assert_eq!(LeakReport::of(&*inner).unwrap().blocks(), 1);
        assert_eq!(LeakReport::of(&*deep).unwrap().blocks(), 0);
        if url == "memfd:" {
            // From outside, starting with the innermost.
            let there = MemoryManager::new();
            there.attach_backend(B, &manager.backend_url(B).unwrap()).unwrap();
            let same = there.get_allocator::<StackAllocator>(id(34)).unwrap();
            let block = deep.new_obj(CTX, 77u64).unwrap();
            let seen = FullPtr::from_allocator(&*same, block.shm()).unwrap();
            // SAFETY: a number was put there.
            assert_eq!(unsafe { *seen.as_ptr() }, 77);
            // SAFETY: made above.
            unsafe { deep.del_obj(CTX, block).unwrap() };
        }
        // The block comes back when nobody has what lies in it.
        drop(deep);
        manager.destroy_allocator(id(34)).unwrap();
        assert_eq!(inner.currently_allocated_size(), 0);
        inner.verify().unwrap();
        // With all that is inside, which is in use still.
        let held = inner.allocate::<u64>(CTX, 64).unwrap();
        manager.destroy_allocator(id(32)).unwrap();
        let gone = Error::UnknownAllocator { id: id(33) };
        assert_eq!(manager.get_allocator::<BuddyAllocator>(id(33)).err(), Some(gone));
        assert_eq!(manager.allocators(B).unwrap().len(), 1);
        assert_eq!(LeakReport::of(&*outer).unwrap().blocks(), 1);
        works(&middle);
        works(&inner);
        // SAFETY: live.
        unsafe { inner.free(CTX, held).unwrap() };
        drop((inner, middle));
        // Whoever makes the next change gives it back.
        let other = manager.create_sub_allocator::<BuddyAllocator>(id(31), id(35), &sized(MIB));
        drop(other.unwrap());
        assert_eq!(LeakReport::of(&*outer).unwrap().blocks(), 1);
        manager.destroy_allocator(id(35)).unwrap();
        assert_eq!(outer.currently_allocated_size(), 0);
        outer.verify().unwrap();
    }
}

/// A backend that is destroyed, and an allocator, while somebody has handles.
#[test]
fn handles_hold_what_was_destroyed() {
    leaves_nothing(|| {
        let manager = MemoryManager::new();
        let name = unique("manager-held");
        let url = format!("shm://{name}");
        manager.create_backend_with_url::<PosixShmMmap>(B, 32 * MIB, &name).unwrap();
        assert_eq!(manager.backend_url(B).unwrap(), url);
        let options = sized(12 * MIB);
        let held = manager.create_allocator_with::<ThreadLocalAllocator>(B, id(41), &options);
        let held = held.unwrap();
        let block = held.new_obj(CTX, String::from("still here")).unwrap();
        manager.destroy_allocator(id(41)).unwrap();
        let place = held.base();
        // Its bytes are nobody else's yet, and its id not either.
        let taken = manager.create_allocator_with::<StackAllocator>(B, id(41), &options);
        assert_eq!(taken.err(), Some(Error::AlreadyExists));
        let other = manager.create_allocator_with::<StackAllocator>(B, id(42), &options).unwrap();
        assert_ne!(other.base(), place);
        let none = manager.create_allocator_with::<StackAllocator>(B, id(43), &options);
        assert_eq!(none.unwrap_err().code(), ErrorCode::OutOfMemory);
        // A region that was asked for counts like an allocator.
        let region = held.region().clone();
        works(&held);
        // SAFETY: made above.
        unsafe {
            assert_eq!(*block.as_ptr(), "still here");
            held.del_obj(CTX, block).unwrap();
        }
        drop(held);
        let none = manager.create_allocator_with::<StackAllocator>(B, id(43), &options);
        assert_eq!(none.unwrap_err().code(), ErrorCode::OutOfMemory);
        drop(region);
        let again = manager.create_allocator_with::<BuddyAllocator>(B, id(41), &options).unwrap();
        assert_eq!(again.base(), place);
        // The backend goes; what is held goes on.
        manager.destroy_backend(B).unwrap();
        assert_eq!(PosixShmMmap::destroy(&name), Err(Error::NotFound));
        assert_eq!(manager.attach_backend(B, &url), Err(Error::NotFound));
        works(&again);
        works(&other);
        let gone = manager.get_allocator::<BuddyAllocator>(id(41));
        assert_eq!(gone.err(), Some(Error::UnknownAllocator { id: id(41) }));
    });
}

#[test]
fn custom_headers() {
    let _turn = turn();
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Header {
        magic: u64,
        count: u64,
    }
    // SAFETY: two numbers, `repr(C)`.
    unsafe impl hshm::ShmSafe for Header {}
    let manager = MemoryManager::new();
    manager.create_backend(B, 64 * MIB, "memfd:").unwrap();
    let with = sized(8 * MIB).custom_header::<Header>();
    manager.create_allocator_with::<StackAllocator>(B, id(51), &with).unwrap();
    manager.create_allocator_with::<BuddyAllocator>(B, id(52), &with).unwrap();
    manager.create_allocator_with::<ScalablePageAllocator>(B, id(53), &with).unwrap();
    manager.create_allocator_with::<ThreadLocalAllocator>(B, id(54), &with).unwrap();
    manager.create_allocator_with::<StackAllocator>(B, id(55), &sized(MIB)).unwrap();
    let there = MemoryManager::new();
    there.attach_backend(B, &manager.backend_url(B).unwrap()).unwrap();
    for minor in 51..55 {
        let alloc = manager.get_any_allocator(id(minor)).unwrap();
        let header = alloc.custom_header::<Header>().unwrap();
        assert_eq!(header.shm().id(), id(minor));
        // SAFETY: nobody else uses the header.
        unsafe {
            assert_eq!(*header.as_ptr(), Header { magic: 0, count: 0 });
            *header.as_ptr() = Header { magic: 0xDEAD_BEEF, count: minor.into() };
        }
        // No block lies there.
        works(&alloc);
        let block = alloc.allocate::<u8>(CTX, 4096).unwrap();
        assert!(block.offset().offset() >= 8192);
        let same = there.get_any_allocator(id(minor)).unwrap();
        let seen = same.custom_header::<Header>().unwrap();
        assert_eq!(seen.shm(), header.shm());
        // SAFETY: as above.
        assert_eq!(unsafe { *seen.as_ptr() }, Header { magic: 0xDEAD_BEEF, count: minor.into() });
        let wrong = same.custom_header::<[u64; 3]>().unwrap_err();
        assert_eq!(wrong, Error::Incompatible { found: 16, expected: 24 });
        #[repr(C, align(64))]
        struct Aligned([u64; 2]);
        // SAFETY: numbers.
        unsafe impl hshm::ShmSafe for Aligned {}
        assert!(matches!(same.custom_header::<Aligned>(), Err(Error::Incompatible { .. })));
        // SAFETY: live.
        unsafe { alloc.free(CTX, block).unwrap() };
    }
    // At attach: exactly this one, whether it is open already or not.
    let attach = |manager: &MemoryManager, minor, options: &AllocatorOptions| {
        manager.attach_allocator::<StackAllocator>(id(minor), options).map(drop)
    };
    let fresh = MemoryManager::new();
    fresh.attach_backend(B, &manager.backend_url(B).unwrap()).unwrap();
    for manager in [&manager, &fresh, &fresh] {
        let wrong = AllocatorOptions::new().custom_header_of(16, 16);
        let error = Error::Incompatible { found: 8, expected: 16 };
        assert_eq!(attach(manager, 51, &wrong), Err(error));
        let wrong = AllocatorOptions::new().custom_header_of(24, 8);
        let error = Error::Incompatible { found: 16, expected: 24 };
        assert_eq!(attach(manager, 51, &wrong), Err(error));
        let error = Error::Incompatible { found: 0, expected: 16 };
        assert_eq!(attach(manager, 55, &with), Err(error));
        attach(manager, 51, &with).unwrap();
        attach(manager, 51, &AllocatorOptions::new()).unwrap();
    }
    let none = manager.get_allocator::<StackAllocator>(id(55)).unwrap();
    assert_eq!(none.custom_header::<Header>().err(), Some(Error::NotFound));
    // Sizes and alignments that cannot be.
    for (size, align, code) in [
        (16, 3, ErrorCode::BadAlignment),
        (16, 8192, ErrorCode::BadAlignment),
        (2 << 20, 8, ErrorCode::TooLarge),
        (usize::MAX, 8, ErrorCode::TooLarge),
    ] {
        let options = sized(MIB).custom_header_of(size, align);
        let made = manager.create_allocator_with::<StackAllocator>(B, id(56), &options);
        assert_eq!(made.unwrap_err().code(), code);
    }
    // Large ones, up to the size of the allocator.
    let large = sized(MIB).custom_header_of(512 * KIB, 4096);
    let made = manager.create_allocator_with::<StackAllocator>(B, id(56), &large).unwrap();
    assert!(made.available() < 512 * KIB && made.available() > 480 * KIB);
    let much = sized(64 * KIB).custom_header_of(64 * KIB, 4096);
    let made = manager.create_allocator_with::<StackAllocator>(B, id(57), &much);
    assert_eq!(made.unwrap_err().code(), ErrorCode::TooSmall);
    // The C library's allocator has one, too.
    let private = MemoryBackendId::get(1);
    manager.create_backend_with_url::<MallocBackend>(private, MIB, "").unwrap();
    let malloc = manager.create_allocator::<MallocAllocator>(private, id(58), 16).unwrap();
    assert!(malloc.custom_header::<Header>().is_ok());
    works(&malloc);
}

#[test]
fn the_default_allocator() {
    let _turn = turn();
    let manager = MemoryManager::new();
    works(&manager.default_allocator());
    assert_eq!(manager.default_allocator().id(), AllocatorId::NULL);
    manager.create_backend(B, 32 * MIB, "anon:").unwrap();
    manager.create_allocator::<ScalablePageAllocator>(B, id(61), 0).unwrap();
    manager.set_default_allocator(id(61)).unwrap();
    let alloc = manager.default_allocator();
    assert_eq!(alloc.id(), id(61));
    manager.destroy_backend(B).unwrap();
    works(&manager.default_allocator());
    assert!(std::ptr::eq(MemoryManager::global(), MemoryManager::global()));
}

#[test]
fn backends_over_memory_of_ones_own() {
    let _turn = turn();
    let manager = MemoryManager::new();
    let array = vec![0xAAu8; MIB].leak();
    let region = ArrayBackend::over(array, &RegionOptions::new()).unwrap();
    manager.create_backend_in(B, region.clone()).unwrap();
    works(&manager.create_allocator::<BuddyAllocator>(B, id(71), 64).unwrap());
    // A second manager over the same region.
    let other = MemoryManager::new();
    other.attach_backend_in(B, region).unwrap();
    works(&other.get_allocator::<BuddyAllocator>(id(71)).unwrap());
    manager.destroy_allocator(id(71)).unwrap();
    // Nobody finds it any more, through whichever manager; who has it has it.
    let gone = other.get_allocator::<BuddyAllocator>(id(71));
    assert_eq!(gone.err(), Some(Error::UnknownAllocator { id: id(71) }));
}

/// What is left is told at detach and destroy, if anybody wants to know.
#[test]
fn leaks_are_told() {
    let _turn = turn();
    static TOLD: Mutex<Vec<LeakReport>> = Mutex::new(Vec::new());
    let told = || std::mem::take(&mut *TOLD.lock().unwrap());
    let manager = MemoryManager::new();
    manager.create_backend(B, 64 * MIB, "memfd:").unwrap();
    let pages = manager.create_allocator_with::<ScalablePageAllocator>(B, id(81), &sized(20 * MIB));
    let pages = pages.unwrap();
    let stack = manager.create_allocator_with::<StackAllocator>(B, id(82), &sized(MIB)).unwrap();
    pages.allocate::<u8>(CTX, 1000).unwrap();
    pages.allocate::<u8>(CTX, 1000).unwrap();
    manager.detach_allocator(id(81)).unwrap();
    assert!(told().is_empty(), "nobody asked");
    manager.set_leak_report(Some(|report| TOLD.lock().unwrap().push(report.clone())));
    let again = manager.get_allocator::<ScalablePageAllocator>(id(81)).unwrap();
    // They are the first handle's, and so not what this one would leave.
    manager.detach_allocator(id(81)).unwrap();
    assert!(told().is_empty());
    again.allocate::<u8>(CTX, 300 * KIB).unwrap();
    stack.allocate::<u8>(CTX, 10).unwrap();
    drop(again);
    let again = manager.get_allocator::<ScalablePageAllocator>(id(81)).unwrap();
    again.allocate::<u8>(CTX, 2000).unwrap();
    manager.detach_allocator(id(81)).unwrap();
    let one = told();
    assert_eq!((one.len(), one[0].id(), one[0].blocks()), (1, id(81), 1));
    drop(again);
    manager.get_allocator::<ScalablePageAllocator>(id(81)).unwrap();
    manager.destroy_backend(B).unwrap();
    let mut all: Vec<_> = told().iter().map(|report| (report.id(), report.blocks())).collect();
    all.sort();
    assert_eq!(all, [(id(81), 4), (id(82), 1)]);
}

/// Threads that make, find and destroy allocators at the same time.
#[test]
fn threads_share_a_manager() {
    let _turn = turn();
    let manager = MemoryManager::new();
    manager.create_backend(B, 64 * MIB, "memfd:").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let manager = &manager;
            scope.spawn(move || {
                for round in 0..40 {
                    let minor = 4000 + thread * 100 + round % 3;
                    let options = sized((1 + round as usize % 4) * MIB);
                    match round % 4 {
                        0 => works(
                            &manager
                                .create_allocator_with::<StackAllocator>(B, id(minor), &options)
                                .unwrap(),
                        ),
                        _ => works(
                            &manager
                                .create_allocator_with::<BuddyAllocator>(B, id(minor), &options)
                                .unwrap(),
                        ),
                    }
                    works(&manager.get_any_allocator(id(minor)).unwrap());
                    manager.destroy_allocator(id(minor)).unwrap();
                }
            });
        }
    });
    assert!(manager.allocators(B).unwrap().is_empty());
    manager.create_allocator_with::<BuddyAllocator>(B, id(4999), &sized(60 * MIB)).unwrap();
}

/// Whatever bytes a directory holds, attaching says Ok or an error.
#[test]
fn hostile_directories() {
    let _turn = turn();
    let manager = MemoryManager::new();
    let region = manager.create_backend(B, 16 * MIB, "memfd:").unwrap();
    manager.create_allocator_with::<BuddyAllocator>(B, id(5001), &sized(4 * MIB)).unwrap();
    manager.create_sub_allocator::<StackAllocator>(id(5001), id(5002), &sized(MIB)).unwrap();
    let url = manager.backend_url(B).unwrap();
    manager.detach_backend(B).unwrap();
    let page = region.base().wrapping_add(region.payload_offset());
    let mut good = [0u8; 4096];
    // SAFETY: the region is this test's.
    unsafe { page.copy_to(good.as_mut_ptr(), 4096) };
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut refused = 0;
    for round in 0..400 {
        let mut bytes = good;
        for _ in 0..=round % 3 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Mostly where something is: the header and the first two entries.
            let at = random as usize % 192;
            match random >> 60 {
                0..5 => bytes[at] ^= 1 << (random >> 40 & 7),
                5..10 => bytes[at] = (random >> 32) as u8,
                10..13 => bytes[at & !7..][..8].copy_from_slice(&u64::MAX.to_ne_bytes()),
                _ => bytes[at & !7..][..8].copy_from_slice(&random.to_ne_bytes()),
            }
        }
        // SAFETY: as above.
        unsafe { page.copy_from(bytes.as_ptr(), 4096) };
        let there = MemoryManager::new();
        if there
            .attach_backend_in(
                B,
                Region::attach_token(
                    &url["memfd:".len()..].parse().unwrap(),
                    &RegionOptions::new(),
                )
                .unwrap(),
            )
            .is_err()
        {
            refused += 1;
            continue;
        }
        for info in there.allocators(B).unwrap() {
            match there.get_any_allocator(info.id) {
                Ok(alloc) => drop(alloc.allocate::<u64>(CTX, 100)),
                Err(_) => refused += 1,
            }
        }
        for minor in [5001, 5002] {
            refused += there.get_any_allocator(id(minor)).is_err() as u32;
        }
        let _ = there.create_allocator_with::<StackAllocator>(B, id(5003), &sized(MIB));
        let _ = there.destroy_allocator(id(5003));
        let _ = there.destroy_allocator(id(5001));
    }
    assert!(refused > 100, "{refused}");
}
