//! Named roots, heaps with a name, and regions over a socket.
#![allow(unsafe_code)] // looks at what was published

mod support;

use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use hshm::{
    Allocator, AllocatorId, Backend, Error, MIB, MemContext, OffsetPtr, Owner, PosixShmMmap,
    Region, RegionOptions, Roots, SharedHeap, ThreadLocalAllocator, shm_struct,
};
use support::peer::{Peer, serve};
use support::{role, turn, unique};

shm_struct! {
    /// Something to share.
    #[derive(Debug)]
    pub struct Counter {
        /// How often.
        pub count: AtomicU64,
        /// Which ones.
        pub limits: [u32; 4],
    }
}

fn counter() -> Counter {
    Counter { count: AtomicU64::new(0), limits: [1, 2, 3, 4] }
}

fn private() -> ThreadLocalAllocator {
    let region = Region::anonymous(AllocatorId::NULL, 32 * MIB).err();
    assert!(region.is_some());
    let options = RegionOptions::new().capacity(32 * MIB);
    ThreadLocalAllocator::shm_init(hshm::MemfdBackend::create("", &options).unwrap()).unwrap()
}

#[test]
fn what_is_published_is_found() {
    let alloc = private();
    let roots = Roots::of(&alloc);
    assert_eq!(roots.find::<Counter>("a").err(), Some(Error::NotFound));
    let root = roots.publish("a", counter()).unwrap();
    let found = roots.find::<Counter>("a").unwrap();
    assert_eq!((found.offset(), found.generation()), (root.offset(), root.generation()));
    // SAFETY: nobody frees it, and it is written to by atomics.
    let value = unsafe { roots.get(found) }.unwrap();
    value.count.fetch_add(1, SeqCst);
    assert_eq!(value.limits, [1, 2, 3, 4]);
    assert_eq!(roots.publish("a", 1u64).err(), Some(Error::AlreadyExists));
    assert!(matches!(roots.find::<u64>("a"), Err(Error::Incompatible { .. })));
    for bad in ["", &"x".repeat(81)] {
        assert_eq!(roots.publish(bad, 1u64).err(), Some(Error::BadName));
    }
    roots.publish(&"x".repeat(80), 7u8).unwrap();
    let mut names: Vec<_> = roots.iter().map(|info| (info.name, info.size)).collect();
    names.sort();
    assert_eq!(names, [("a".to_owned(), size_of::<Counter>()), ("x".repeat(80), 1)]);
    // A publication that was refused left nothing.
    assert_eq!(alloc.verify().unwrap().blocks_in_use, 3);
}

#[test]
fn stale_roots_are_errors() {
    let alloc = private();
    let roots = Roots::of(&alloc);
    let first = roots.publish("name", 1u64).unwrap();
    let block = roots.unpublish(first).unwrap();
    assert_eq!(roots.unpublish(first).err(), Some(Error::NotFound));
    // SAFETY: nobody looks at it any more.
    unsafe { alloc.free_offset(MemContext::DEFAULT, OffsetPtr::new(block.offset())) }.unwrap();
    let second = roots.publish("name", 2u64).unwrap();
    assert_ne!(first.generation(), second.generation());
    // SAFETY: it is an error.
    assert_eq!(unsafe { roots.get(first) }.err(), Some(Error::NotFound));
    // SAFETY: nobody frees or changes it.
    assert_eq!(unsafe { roots.get(second) }, Ok(&2));
}

#[test]
fn the_directory_can_be_full() {
    let alloc = private();
    let roots = Roots::of(&alloc);
    let all: Vec<_> = (0..128u64).map(|n| roots.publish(&n.to_string(), n).unwrap()).collect();
    assert_eq!(roots.publish("one more", 0u64).err(), Some(Error::TableFull { slots: 128 }));
    roots.unpublish(all[77]).unwrap();
    roots.publish("one more", 0u64).unwrap();
    assert_eq!(roots.iter().count(), 128);
}

#[test]
fn roots_outlive_their_publisher() {
    const TEST: &str = "roots_outlive_their_publisher";
    if let Some(name) = role(TEST) {
        let alloc = SharedHeap::new(&name).open(&RegionOptions::new()).unwrap();
        let roots = Roots::of(&alloc);
        serve(|_| {
            roots.publish("counter", counter()).unwrap();
            // Belongs to this process, and goes with it.
            alloc
                .allocate_offset(MemContext::DEFAULT, std::alloc::Layout::new::<[u64; 99]>())
                .unwrap();
            "done".to_owned()
        });
        return;
    }
    let _turn = turn();
    let name = unique("roots");
    let heap = SharedHeap::new(&name);
    let options = RegionOptions::new().capacity(32 * MIB);
    assert_eq!(heap.open(&options).err(), Some(Error::NotFound));
    let alloc = heap.create(&options).unwrap();
    assert_eq!(heap.create(&options).err(), Some(Error::AlreadyExists));
    let mut peer = Peer::start(TEST, &name);
    peer.ask("publish");
    peer.kill();
    heap.destroy().unwrap();
    assert_eq!(heap.open(&options).err(), Some(Error::NotFound));
    assert_eq!(alloc.reap(), 1);
    // The directory and the counter.
    assert_eq!(alloc.verify().unwrap().blocks_in_use, 2);
    let roots = Roots::of(&alloc);
    let found = roots.find::<Counter>("counter").unwrap();
    // SAFETY: nobody frees it.
    assert_eq!(unsafe { roots.get(found) }.unwrap().limits, [1, 2, 3, 4]);
}

#[test]
fn many_open_or_create_one_heap() {
    let _turn = turn();
    for round in 0..20 {
        let name = unique(&format!("race{round}"));
        let heap = SharedHeap::new(&name);
        let options = RegionOptions::new().capacity(8 * MIB);
        let ids: Vec<_> = std::thread::scope(|scope| {
            let open = || heap.open_or_create(&options).unwrap();
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
            let heaps: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            heaps.iter().map(|heap| heap.region().id()).collect()
        });
        heap.destroy().unwrap();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
}

/// A heap gets its name when it is ready: whoever opens it while it is made finds all of it or none, and
/// does not have to guess how long its maker takes.
#[test]
fn nobody_finds_half_a_heap() {
    let _turn = turn();
    let nameless = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open("/dev/shm");
    if nameless.is_err() {
        println!("no files without names here: not tested");
        return;
    }
    let name = unique("half-seen");
    let options = RegionOptions::new().capacity(8 * MIB);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut found = 0;
            while !done.load(SeqCst) {
                // Without the patience of `SharedHeap::open`.
                let region = PosixShmMmap::attach(&name, &options);
                match region.and_then(|region| ThreadLocalAllocator::shm_attach(region, 0, 1)) {
                    Ok(_) => found += 1,
                    Err(error) => assert_eq!(error, Error::NotFound),
                }
            }
            found
        });
        // Until the watcher has seen some, or has failed.
        for round in 0.. {
            let alloc = SharedHeap::new(&name).create(&options).unwrap();
            drop(alloc);
            if round >= 300 || watcher.is_finished() {
                break;
            }
            SharedHeap::new(&name).destroy().unwrap();
        }
        done.store(true, SeqCst);
        let _ = SharedHeap::new(&name).destroy();
        println!("found {} times", watcher.join().unwrap());
    });
}

/// A heap that nobody finished, and several who give it up at the same time: they all meet in one
/// new heap, and none takes the other's new one for the old.
#[test]
fn many_give_up_a_half_made_heap() {
    let _turn = turn();
    let options = RegionOptions::new().capacity(8 * MIB);
    for round in 0..10 {
        let name = unique(&format!("given-up{round}"));
        drop(PosixShmMmap::create(&name, &options).unwrap());
        let heap = SharedHeap::new(&name).patience(Duration::from_millis(60));
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|late| {
                    let options = &options;
                    scope.spawn(move || {
                        std::thread::sleep(Duration::from_micros(300 * late));
                        heap.open_or_create(options).unwrap()
                    })
                })
                .collect();
            let heaps: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            heaps.iter().map(|heap| heap.region().id()).collect()
        });
        heap.destroy().unwrap();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
}

/// Stamps are counted in each heap: one heap's root may look like another's.
#[test]
fn a_root_is_its_heaps_alone() {
    let (one, other) = (private(), private());
    let (here, there) = (Roots::of(&one), Roots::of(&other));
    let root = here.publish("same", 1u64).unwrap();
    there.publish("same", 2u64).unwrap();
    // SAFETY: it is an error.
    assert!(matches!(unsafe { there.get(root) }, Err(Error::ForeignPointer { .. })));
    assert!(matches!(there.unpublish(root), Err(Error::ForeignPointer { .. })));
    // SAFETY: nobody frees or changes it.
    assert_eq!(unsafe { there.get(there.find::<u64>("same").unwrap()) }, Ok(&2));
}

#[test]
fn a_half_made_heap_is_waited_for_and_given_up() {
    let _turn = turn();
    let name = unique("half");
    let options = RegionOptions::new().capacity(8 * MIB);
    // A region without its tables: the maker died in between.
    drop(PosixShmMmap::create(&name, &options).unwrap());
    let heap = SharedHeap::new(&name).patience(Duration::from_millis(50));
    let start = Instant::now();
    assert_eq!(heap.open(&options).err(), Some(Error::NotReady));
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(300));
    let alloc = heap.open_or_create(&options).unwrap();
    alloc.verify().unwrap();
    heap.destroy().unwrap();
}

/// How many pages this thread has touched that it had not mapped.
fn faults() -> i64 {
    // SAFETY: a place for the result, for which zeroes do.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage.ru_minflt + usage.ru_majflt
    }
}

/// Attaching touches as little of a heap of any size: the time says nothing where others work.
#[test]
fn attaching_is_quick() {
    let touched = [64 << 20, 20 << 30].map(|capacity: usize| {
        let options = RegionOptions::new().capacity(capacity);
        let region = hshm::MemfdBackend::create("", &options).unwrap();
        let _first = ThreadLocalAllocator::shm_init(region.clone()).unwrap();
        let token = region.token().unwrap();
        let mut touched = Vec::new();
        for _ in 0..20 {
            let (start, before) = (Instant::now(), faults());
            // A mapping of its own, of which nothing is there yet.
            let options = RegionOptions::new().relocate(true);
            let again = Region::attach_token(&token, &options).unwrap();
            let second = ThreadLocalAllocator::shm_attach(again, 0, 4).unwrap();
            touched.push(faults() - before);
            println!("{capacity} bytes: {:?}, {} pages", start.elapsed(), faults() - before);
            // SAFETY: nothing was allocated.
            unsafe { second.shm_detach() }.unwrap();
        }
        *touched.iter().min().unwrap()
    });
    assert!(touched[1] <= touched[0] + 10 && touched[1] < 100, "{touched:?}");
}

#[test]
fn tiny_blocks_cannot_be_handed_over() {
    let alloc = private();
    let layout = std::alloc::Layout::new::<u64>();
    let block = alloc.allocate_offset(MemContext::DEFAULT, layout).unwrap();
    // SAFETY: our own block.
    assert_eq!(unsafe { alloc.transfer(block, Owner::Nobody) }, Err(Error::Unsupported));
}
