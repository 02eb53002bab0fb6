//! Containers that two processes work on, each of which has the heap at another address.
#![allow(unsafe_code)] // looks at what another process made

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use hshm::{
    Allocator, Backend, BuddyAllocator, Error, Heap, MIB, MemfdBackend, OffsetPtr, Region,
    RegionOptions, Roots, ShmBox, ShmHashMap, ShmHeap, ShmPtr, ShmRing, ShmString, ShmVec,
    ThreadLocalAllocator, shm_struct,
};
use support::forked::{fork, wait};
use support::peer::{Peer, serve};
use support::{role, turn};

shm_struct! {
    struct Library {
        title: ShmBox<ShmString>,
        books: ShmHashMap<ShmString, Book>,
        log: ShmVec<u64>,
    }
    struct Book {
        pages: ShmVec<ShmString>,
        copies: u32,
    }
}

fn leak(alloc: ThreadLocalAllocator) -> &'static ThreadLocalAllocator {
    Box::leak(Box::new(alloc))
}

#[allow(clippy::mut_from_ref)] // it is no part of the allocator
fn library(alloc: &'static ThreadLocalAllocator, heap: ShmHeap) -> &'static mut Library {
    let root = Roots::of(alloc).find::<Library>("library").unwrap();
    // SAFETY: the library is there, and this process alone uses it now: the tests take turns.
    unsafe { heap.get_mut(ShmPtr::new(heap.id(), root.offset())) }.unwrap()
}

fn book(heap: ShmHeap, number: u64) -> Book {
    let page = |page| ShmString::format_in(format_args!("page {page} of book {number}"), heap);
    let pages = ShmVec::from_iter_in((0..number % 7).map(|n| page(n).unwrap()), heap).unwrap();
    Book { pages, copies: number as u32 }
}

/// What both sides do, on the containers and on the model.
fn change(library: &mut Library, heap: ShmHeap, seed: u64) {
    for step in 0..500 {
        let number = (seed * 7919 + step * 104_729) % 311;
        let name = format!("a book with a long name, number {number}");
        match (seed + step) % 5 {
            0 | 1 => {
                let key = ShmString::from_in(&name, heap).unwrap();
                library.books.insert(key, book(heap, number)).unwrap();
            }
            2 => drop(library.books.remove(name.as_str())),
            3 => {
                if let Some(book) = library.books.get_mut(name.as_str()) {
                    book.copies += 1;
                    book.pages.push(ShmString::from_in("more", heap).unwrap()).unwrap();
                }
            }
            _ => {
                library.title.push_str(if step % 2 == 0 { "+" } else { "-" }).unwrap();
                library.log.push(number).unwrap();
            }
        }
    }
}

#[derive(Default)]
struct Model {
    title: String,
    books: HashMap<String, (u32, Vec<String>)>,
    log: Vec<u64>,
}

impl Model {
    fn change(&mut self, seed: u64) {
        for step in 0..500 {
            let number = (seed * 7919 + step * 104_729) % 311;
            let name = format!("a book with a long name, number {number}");
            match (seed + step) % 5 {
                0 | 1 => {
                    let pages = (0..number % 7).map(|n| format!("page {n} of book {number}"));
                    self.books.insert(name, (number as u32, pages.collect()));
                }
                2 => drop(self.books.remove(&name)),
                3 => {
                    if let Some((copies, pages)) = self.books.get_mut(&name) {
                        *copies += 1;
                        pages.push("more".to_owned());
                    }
                }
                _ => {
                    self.title.push(if step % 2 == 0 { '+' } else { '-' });
                    self.log.push(number);
                }
            }
        }
    }

    #[track_caller]
    fn check(&self, library: &Library) {
        assert_eq!(library.title.as_str(), self.title);
        assert_eq!(library.log.as_slice(), self.log.as_slice());
        let sorted: BTreeMap<_, _> =
            self.books.iter().map(|(name, book)| (name.as_str(), book)).collect();
        let found: BTreeMap<_, _> =
            library.books.iter().map(|(name, book)| (name.as_str(), book)).collect();
        assert!(sorted.keys().eq(found.keys()));
        for (book, (copies, pages)) in found.values().zip(sorted.values()) {
            assert_eq!(book.copies, *copies);
            assert!(book.pages.iter().map(|page| page.as_str()).eq(pages.iter()));
        }
    }
}

/// A forked child has copies of the containers on its parent's stack; they own nothing.
#[test]
fn a_child_drops_nothing_of_its_parents() {
    let _turn = turn();
    let region =
        |capacity| MemfdBackend::create("", &RegionOptions::new().capacity(capacity)).unwrap();
    let alloc = leak(ThreadLocalAllocator::shm_init(region(64 * MIB)).unwrap());
    let buddies = region(16 * MIB);
    let start = buddies.payload_offset() as u64;
    let free = Heap::new(start, buddies.len() as u64).unwrap();
    let metadata = BuddyAllocator::MIN_METADATA;
    let buddy = BuddyAllocator::shm_init(buddies, OffsetPtr::new(start), free, metadata).unwrap();
    let buddy: &'static BuddyAllocator = Box::leak(Box::new(buddy));
    for heap in [ShmHeap::of(alloc).unwrap(), ShmHeap::of(buddy).unwrap()] {
        let used = || (alloc.currently_allocated_size(), buddy.currently_allocated_size());
        let text = |n| ShmString::format_in(format_args!("{n:>100}"), heap).unwrap();
        let ring = ShmRing::with_capacity_in(10, heap).unwrap();
        let mut handle = ring.join().unwrap();
        (0..5).for_each(|n| handle.push(text(n)).unwrap());
        drop(handle);
        let rings = ShmRing::with_capacity_in(2, heap).unwrap();
        rings.join().unwrap().push(7u32).unwrap();
        let boxed = ShmBox::new_in(rings, heap).unwrap();
        let vec = ShmVec::from_iter_in((0..9).map(text), heap).unwrap();
        let map = ShmHashMap::from_iter_in((0..9).map(|n| (text(n), text(n))), heap).unwrap();
        let before = used();
        let all = (ring, boxed, vec, map);
        let mut all = Some(all);
        wait(fork(|| {
            let (ring, boxed, vec, map) = all.take().unwrap();
            drop((ring, boxed));
            drop(vec.into_iter().nth(2));
            drop(map.into_iter().next());
        }));
        assert_eq!(used(), before);
        let (ring, boxed, vec, map) = all.unwrap();
        assert_eq!((boxed.len(), boxed.join().unwrap().pop()), (1, Some(7)));
        let mut handle = ring.join().unwrap();
        assert!((0..5).all(|n| handle.pop().unwrap().trim() == n.to_string()));
        assert!(vec.iter().enumerate().all(|(n, text)| text.trim() == n.to_string()));
        assert_eq!(map.len(), 9);
        assert!(map.iter().all(|(key, value)| key == value));
        drop(handle);
        drop((ring, boxed, vec, map));
        assert_eq!(alloc.currently_allocated_size(), 0);
        assert_eq!(buddy.currently_allocated_size(), 0);
    }
}

/// Whatever the other threads were at when it was forked, a child can make its heaps known.
#[test]
fn a_child_finds_the_table_of_heaps_free() {
    let _turn = turn();
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(16 * MIB)).unwrap();
    let alloc = leak(ThreadLocalAllocator::shm_init(region).unwrap());
    ShmHeap::of(alloc).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        for _ in 0..2 {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(ShmHeap::of(alloc), Err(Error::AlreadyExists));
                }
            });
        }
        for _ in 0..60 {
            wait(fork(|| assert!(ShmHeap::of(alloc).is_ok())));
        }
    });
}

struct Stop<'a>(&'a AtomicBool);
impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn other_side(token: &str) {
    let options = RegionOptions::new().relocate(true);
    let region = Region::attach_token(&token.parse().unwrap(), &options).unwrap();
    assert!(region.is_relocated());
    let alloc = leak(ThreadLocalAllocator::shm_attach(region, 0, 2).unwrap());
    let heap = ShmHeap::of(alloc).unwrap();
    serve(|words| match words {
        ["change", seed] => {
            change(library(alloc, heap), heap, seed.parse().unwrap());
            "done".to_owned()
        }
        ["sum"] => {
            let library = library(alloc, heap);
            let copies: u32 = library.books.values().map(|book| book.copies).sum();
            let pages: usize = library.books.values().map(|book| book.pages.len()).sum();
            format!("{} {copies} {pages} {}", library.title.len(), library.log.iter().sum::<u64>())
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn two_processes_change_and_read() {
    if let Some(token) = role("two_processes_change_and_read") {
        return other_side(&token);
    }
    let _turn = turn();
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(64 * MIB)).unwrap();
    let token = region.token().unwrap().to_string();
    let alloc = leak(ThreadLocalAllocator::shm_init(region).unwrap());
    let heap = ShmHeap::of(alloc).unwrap();
    let start = Library {
        title: ShmBox::new_in(ShmString::new_in(heap), heap).unwrap(),
        books: ShmHashMap::new_in(heap),
        log: ShmVec::new_in(heap),
    };
    let root = Roots::of(alloc).publish("library", start).unwrap();
    // Refused, and dropped.
    let before = alloc.currently_allocated_size();
    let text = ShmString::from_in(&"x".repeat(100), heap).unwrap();
    assert!(Roots::of(alloc).publish("library", text).is_err());
    assert_eq!(alloc.currently_allocated_size(), before);

    let mut model = Model::default();
    let mut peer = Peer::start("two_processes_change_and_read", &token);
    for seed in 0..20 {
        if seed % 2 == 0 {
            assert_eq!(peer.ask(&format!("change {seed}")), "done");
        } else {
            change(library(alloc, heap), heap, seed);
        }
        model.change(seed);
        model.check(library(alloc, heap));
        let copies: u32 = model.books.values().map(|(copies, _)| copies).sum();
        let pages: usize = model.books.values().map(|(_, pages)| pages.len()).sum();
        let sums =
            format!("{} {copies} {pages} {}", model.title.len(), model.log.iter().sum::<u64>());
        assert_eq!(peer.ask("sum"), sums);
    }
    // What the other one made is not its own: it stays when that one is killed.
    peer.kill();
    assert_eq!(alloc.reap(), 1);
    model.check(library(alloc, heap));
    model.change(99);
    change(library(alloc, heap), heap, 99);
    model.check(library(alloc, heap));
    // And all of it comes back when the containers are dropped here.
    let place = Roots::of(alloc).unpublish(root).unwrap();
    // SAFETY: nobody else has it any more; a root's block is one of this heap.
    drop(unsafe { ShmBox::from_raw(ShmPtr::new(heap.id(), place)) });
    alloc.trim();
    // The directory of roots.
    assert_eq!(alloc.verify().unwrap().blocks_in_use, 1);
}
