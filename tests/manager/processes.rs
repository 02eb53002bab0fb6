//! The manager in several processes, and what their deaths leave.

use super::*;

/// Allocators of another process's, over every kind of shared backend.
#[test]
fn processes_share_allocators() {
    const TEST: &str = "processes::processes_share_allocators";
    if let Some(url) = role(TEST) {
        let manager = MemoryManager::new();
        manager.attach_backend(MemoryBackendId::get(9), &url).unwrap();
        let any = |minor: &str| manager.get_any_allocator(id(minor.parse().unwrap())).unwrap();
        serve(|words| match *words {
            ["sum", minor, offset] => {
                let alloc = any(minor);
                let place = ShmPtr::<u64>::new(alloc.id(), OffsetPtr::new(offset.parse().unwrap()));
                let place = FullPtr::from_allocator(&alloc, place).unwrap();
                // SAFETY: the test put a hundred numbers there.
                let numbers = unsafe { std::slice::from_raw_parts(place.as_ptr(), 100) };
                numbers.iter().sum::<u64>().to_string()
            }
            ["make", minor] => {
                let made = any(minor).new_objs_with(CTX, 100, |n| n as u64 * 3).unwrap();
                made.offset().offset().to_string()
            }
            ["free", minor, offset] => {
                let place = OffsetPtr::new(offset.parse().unwrap());
                // SAFETY: the test says that nobody uses it.
                format!("{:?}", unsafe { any(minor).free_offset(CTX, place) })
            }
            ["header", minor] => {
                let header = any(minor).custom_header::<[u64; 2]>().unwrap();
                // SAFETY: the test waits meanwhile.
                unsafe {
                    (*header.as_ptr())[1] += 1;
                    format!("{:?}", *header.as_ptr())
                }
            }
            ["create", minor] => {
                let options = AllocatorOptions::new().size(2 * MIB);
                let minor = minor.parse().unwrap();
                let backend = MemoryBackendId::get(9);
                manager
                    .create_allocator_with::<BuddyAllocator>(backend, id(minor), &options)
                    .unwrap();
                works(&manager.get_allocator::<BuddyAllocator>(id(minor)).unwrap());
                "made".to_owned()
            }
            ["detach", minor] => {
                format!("{:?}", manager.detach_allocator(id(minor.parse().unwrap())))
            }
            ["list"] => manager.allocators(MemoryBackendId::get(9)).unwrap().len().to_string(),
            _ => panic!("{words:?}"),
        });
        return;
    }
    let _turn = turn();
    let dir = Dir::new("manager-processes");
    let urls = [
        format!("shm://{}", unique("manager-processes")),
        "memfd:".to_owned(),
        format!("file://{}", dir.file("backend")),
    ];
    for url in urls {
        let manager = MemoryManager::new();
        manager.create_backend(B, 128 * MIB, &url).unwrap();
        let with = sized(24 * MIB).custom_header_of(16, 8);
        manager.create_allocator_with::<ScalablePageAllocator>(B, id(91), &with).unwrap();
        manager.create_allocator_with::<ThreadLocalAllocator>(B, id(92), &with).unwrap();
        manager.create_allocator_with::<BuddyAllocator>(B, id(93), &with).unwrap();
        manager.create_allocator_with::<StackAllocator>(B, id(94), &with).unwrap();
        manager
            .create_sub_allocator::<ThreadLocalAllocator>(
                id(91),
                id(95),
                &sized(8 * MIB).custom_header_of(16, 8),
            )
            .unwrap();
        let mut peer = Peer::start(TEST, &manager.backend_url(B).unwrap());
        for minor in 91..96 {
            let alloc = manager.get_any_allocator(id(minor)).unwrap();
            let before = alloc.currently_allocated_size();
            // Ours, read and freed there.
            let mine = alloc.new_objs_with(CTX, 100, |n| n as u64).unwrap();
            let offset = mine.offset().offset();
            assert_eq!(peer.ask(&format!("sum {minor} {offset}")), "4950");
            assert_eq!(peer.ask(&format!("free {minor} {offset}")), "Ok(())");
            assert!(peer.ask(&format!("free {minor} {offset}")).starts_with("Err("));
            // Theirs, read and freed here.
            let theirs: u64 = peer.ask(&format!("make {minor}")).parse().unwrap();
            let place = FullPtr::from_offset(&alloc, OffsetPtr::<u64>::new(theirs)).unwrap();
            // SAFETY: a hundred numbers that nobody else uses any more.
            unsafe {
                assert_eq!(*place.add(99).as_ptr(), 297);
                alloc.free(CTX, place).unwrap();
            }
            if minor != 91 {
                assert_eq!(alloc.currently_allocated_size(), before);
            }
            let header = alloc.custom_header::<[u64; 2]>().unwrap();
            // SAFETY: the other process waits.
            unsafe { *header.as_ptr() = [7, 41] };
            assert_eq!(peer.ask(&format!("header {minor}")), "[7, 42]");
        }
        // What the other one makes is found here.
        assert_eq!(peer.ask("create 96"), "made");
        works(&manager.get_allocator::<BuddyAllocator>(id(96)).unwrap());
        // Destroyed here, in use there: not given to anybody else, until that one has ended.
        let place = manager.get_any_allocator(id(93)).unwrap().base();
        manager.destroy_allocator(id(93)).unwrap();
        assert_eq!(peer.ask("list"), "5");
        let big = sized(24 * MIB);
        let next = manager.create_allocator_with::<BuddyAllocator>(B, id(97), &big).unwrap();
        assert_ne!(next.base(), place);
        let none = manager.create_allocator_with::<BuddyAllocator>(B, id(98), &big);
        assert_eq!(none.unwrap_err().code(), ErrorCode::OutOfMemory);
        // It ends without a word.
        peer.kill();
        let last = manager.create_allocator_with::<BuddyAllocator>(B, id(98), &big).unwrap();
        assert_eq!(last.base(), place);
        works(&last);
        works(&manager.get_any_allocator(id(95)).unwrap());
        manager.destroy_backend(B).unwrap();
    }
}

/// Killed in the middle of making allocators, over and over: whoever comes next finds a directory in
/// which everything is there or not.
#[test]
fn deaths_while_allocators_are_made() {
    const TEST: &str = "processes::deaths_while_allocators_are_made";
    if let Some(url) = role(TEST) {
        let manager = MemoryManager::new();
        manager.attach_backend(B, &url).unwrap();
        println!("answer: ready");
        for round in 0.. {
            let minor = 1000 + round % 5;
            let options = sized((1 + round as usize % 3) * MIB);
            if round % 2 == 0 {
                let _ = manager.create_allocator_with::<BuddyAllocator>(B, id(minor), &options);
            } else {
                let _ =
                    manager.create_sub_allocator::<StackAllocator>(id(999), id(minor), &options);
            }
            let _ = manager.destroy_allocator(id(1000 + (round + 2) % 5));
        }
    }
    let _turn = turn();
    let manager = MemoryManager::new();
    manager.create_backend(B, 96 * MIB, "memfd:").unwrap();
    let url = manager.backend_url(B).unwrap();
    let parent =
        manager.create_allocator_with::<ThreadLocalAllocator>(B, id(999), &sized(48 * MIB));
    let parent = parent.unwrap();
    for round in 0..25u64 {
        let mut peer = Peer::start(TEST, &url);
        assert_eq!(peer.receive(), "ready");
        std::thread::sleep(std::time::Duration::from_micros(round * 997 % 12_000));
        peer.kill();
        // What was its alone goes now, and not while `works` counts.
        parent.reap();
        let minor = 2000 + round as u32;
        let mine = manager.create_allocator_with::<BuddyAllocator>(B, id(minor), &sized(MIB));
        works(&mine.unwrap());
        for info in manager.allocators(B).unwrap() {
            works(&manager.get_any_allocator(info.id).unwrap());
            if info.id != id(999) {
                manager.destroy_allocator(info.id).unwrap();
            }
        }
        assert_eq!(manager.allocators(B).unwrap().len(), 1);
    }
    parent.reap();
    parent.trim();
    parent.verify().unwrap();
    // A death costs the block that was being made into an allocator, at most.
    let left = LeakReport::of(&*parent).unwrap();
    assert!(left.blocks() <= 25, "{left}");
    // All of the rest can be had in one piece.
    works(&manager.create_allocator_with::<BuddyAllocator>(B, id(3000), &sized(40 * MIB)).unwrap());
}
