//! Attaching the heap of a process by the process's id.
#![allow(unsafe_code)] // references into an attached heap, fork

mod support;

use std::process::Command;

use hshm::{
    AllocatorId, AttachedHeap, Backend, Error, FullPtr, HeapToken, HshmAlloc, MIB, MemfdBackend,
    OffsetPtr, Region, RegionOptions, ShmPtr, ThreadLocalAllocator,
};
use support::peer::{Peer, serve};
use support::{is_root, role, turn};

/// Small regions, so that the heap of a test is several of them.
#[global_allocator]
static A: HshmAlloc = HshmAlloc::builder().capacity(8 * MIB).build();

const READ: RegionOptions = RegionOptions::new().read_only(true);

/// The other process: a heap of several regions, and regions that are not its heap.
#[test]
fn other() {
    if role("other").is_none() {
        return;
    }
    let mut ballast: Vec<Vec<u8>> = Vec::new();
    let mut others: Vec<Box<dyn std::any::Any>> = Vec::new();
    serve(|request| match request {
        ["token"] => A.share().map_or_else(|error| format!("{error:?}"), |token| token.to_string()),
        ["grow"] => {
            ballast.extend((0..20).map(|n| vec![n; 1 << 20]));
            ballast.len().to_string()
        }
        ["value", number] => {
            let value = Box::leak(Box::new([number.parse::<u64>().unwrap(); 16]));
            let place = FullPtr::from_ptr(&raw mut *value).unwrap().shm();
            format!("{} {}", place.id().to_bits(), place.offset().offset())
        }
        // Another heap of its own, and one that is another process's.
        ["more", token] => {
            let options = RegionOptions::new().capacity(16 * MIB);
            let region = MemfdBackend::create("", &options).unwrap();
            others.push(Box::new(ThreadLocalAllocator::shm_init(region).unwrap()));
            let token: HeapToken = token.parse().unwrap();
            others.push(Box::new(AttachedHeap::attach(&token, &READ).unwrap()));
            let region = Region::attach_token(&token.regions()[0], &RegionOptions::new()).unwrap();
            others.push(Box::new(region));
            others.len().to_string()
        }
        ["fork"] => {
            // SAFETY: the child waits for its end.
            match unsafe { libc::fork() } {
                // SAFETY: no preconditions.
                0 => unsafe {
                    libc::alarm(600);
                    loop {
                        libc::pause();
                    }
                },
                child => child.to_string(),
            }
        }
        ["end", child] => {
            let child: libc::pid_t = child.parse().unwrap();
            // SAFETY: our own child.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
            "ended".to_owned()
        }
        other => panic!("what is {other:?}?"),
    });
}

fn place(text: &str) -> ShmPtr<[u64; 16]> {
    let (id, offset) = text.split_once(' ').unwrap();
    let id = AllocatorId::from_bits(id.parse().unwrap());
    ShmPtr::new(id, OffsetPtr::new(offset.parse().unwrap()))
}

#[test]
fn its_heap_and_nothing_else() {
    let _turn = turn();
    let mut peer = Peer::start("other", "x");
    let own = A.share().unwrap();
    for round in 0..3u64 {
        let theirs = peer.ask("token");
        let token = HeapToken::of_process(peer.id()).unwrap();
        assert_eq!(token.to_string(), theirs);
        assert!(token.regions().iter().all(|region| region.pid == peer.id()));
        let at = peer.ask(&format!("value {round}"));
        for options in [READ, RegionOptions::new(), READ.relocate(true)] {
            let heap = AttachedHeap::attach(&token, &options).unwrap();
            assert!(heap.bytes_in_use().unwrap() > 0);
            // SAFETY: sixteen numbers are there, and nobody changes them.
            assert_eq!(unsafe { heap.get_shm(place(&at)) }, Ok(&[round; 16]));
        }
        peer.ask("grow");
        peer.ask(&format!("more {own}"));
    }
    assert!(HeapToken::of_process(peer.id()).unwrap().regions().len() > 2);
    // A forked child has a heap of its own, its parent keeps its own.
    let at = peer.ask("value 77");
    let child = peer.ask("fork");
    // It is there before its heap is.
    let token = loop {
        match HeapToken::of_process(child.parse().unwrap()) {
            Err(Error::NotShared) => std::thread::yield_now(),
            token => break token.unwrap(),
        }
    };
    let parents = HeapToken::of_process(peer.id()).unwrap();
    assert_eq!(token.regions().len(), parents.regions().len());
    for (one, other) in token.regions().iter().zip(parents.regions()) {
        assert_ne!(one.id, other.id);
    }
    let heap = AttachedHeap::attach(&token, &READ).unwrap();
    let index = parents.regions().iter().position(|region| region.id == place(&at).id()).unwrap();
    let there = ShmPtr::new(token.regions()[index].id, place(&at).offset());
    // SAFETY: as above, in the copy.
    assert_eq!(unsafe { heap.get_shm(there) }, Ok(&[77; 16]));
    drop(heap);
    peer.ask(&format!("end {child}"));
    assert_eq!(HeapToken::of_process(child.parse().unwrap()), Err(Error::NotFound));
    assert_eq!(HeapToken::of_process(std::process::id()).unwrap(), A.share().unwrap());
    peer.finish();
}

#[test]
fn processes_without_such_a_heap() {
    let _turn = turn();
    assert_eq!(HeapToken::of_process(u32::MAX), Err(Error::NotFound));
    let mut sleep = Command::new("sleep").arg("600").spawn().unwrap();
    assert_eq!(HeapToken::of_process(sleep.id()), Err(Error::NotShared));
    sleep.kill().unwrap();
    // A zombie has nothing open any more.
    assert!(HeapToken::of_process(sleep.id()).is_err());
    sleep.wait().unwrap();
    let mut peer = Peer::start_with("other", "x", |command| command.env("HSHM_BACKEND", "private"));
    assert_eq!(peer.ask("token"), "NotShared");
    assert_eq!(HeapToken::of_process(peer.id()), Err(Error::NotShared));
    peer.finish();
    let mut refuse = Peer::start_with("other", "x", |command| command.env("HSHM_FORK", "refuse"));
    let child: u32 = refuse.ask("fork").parse().unwrap();
    assert_eq!(HeapToken::of_process(child), Err(Error::NotShared), "it has its parent's open");
    assert!(HeapToken::of_process(refuse.id()).is_ok());
    refuse.ask(&format!("end {child}"));
    refuse.finish();
    if !is_root() {
        assert_eq!(HeapToken::of_process(1), Err(Error::PermissionDenied));
    }
}
