//! Containers that two processes work on, each of which has the heap at another address.
#![allow(unsafe_code)] // looks at what another process made

mod support;

use std::collections::{BTreeMap, HashMap};

use hshm::{
    Allocator, Backend, MIB, MemfdBackend, Region, RegionOptions, Roots, ShmBox, ShmHashMap,
    ShmHeap, ShmPtr, ShmString, ShmVec, ThreadLocalAllocator, shm_struct,
};
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
