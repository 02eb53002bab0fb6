//! What needs the engine's privates: death in the middle, damaged caches, forged headers.

use super::*;
use crate::base::AllocatorId;
use crate::heap::bump::Heap;
use crate::heap::words::die;
use crate::ptr::OffsetPtr;

const START: u64 = 1 << 16;

fn region(len: usize) -> Region {
    // Ids are unique in a process, and tests run side by side.
    static NEXT: crate::sync::atomic::AtomicU32 = crate::sync::atomic::AtomicU32::new(0);
    let minor = NEXT.fetch_add(1, crate::sync::atomic::Ordering::Relaxed);
    Region::anonymous(AllocatorId::new(1, minor), len).unwrap()
}

fn buddy(bytes: u64) -> Buddy {
    let end = START + bytes;
    Buddy::create(region(end as usize), Heap::new(START, end).unwrap(), 16).unwrap()
}

fn small(buddy: &Buddy, size: usize) -> Result<u64> {
    buddy.allocate(Request::new(size, 1))
}

/// Blocks of many sizes, some freed: lists, gaps and neighbours of every kind.
fn busy_buddy() -> (Buddy, Vec<u64>) {
    let buddy = buddy(1 << 20);
    let mut live = Vec::new();
    for round in 0..60usize {
        let size = [24, 100, 700, 3000, 17_000, 20_000][round % 6] + round;
        let align = [1, 64, 16, 4096][round % 4];
        live.push(buddy.allocate(Request::new(size, align)).unwrap());
    }
    let mut index = 0;
    live.retain(|&block| {
        index += 1;
        let keep = index % 3 == 0 || index % 7 == 0;
        if !keep {
            buddy.free(block).unwrap();
        }
        keep
    });
    buddy.verify().unwrap();
    (buddy, live)
}

#[test]
fn lists_by_payload() {
    let expected = [
        (32, 0),
        (48, 0),
        (64, 1),
        (8192, 8),
        (16_368, 8),
        (16_384, 9),
        (16_400, 10),
        (32_767, 10),
    ];
    let larger = [(32_768, 11), (1 << 19, 15), ((1 << 20) - 16, 15), (1 << 20, 16), (1 << 63, 16)];
    for (payload, list) in expected.into_iter().chain(larger) {
        assert_eq!(list_of(payload), list, "{payload}");
    }
    for (size, payload) in [(0, 32), (1, 32), (33, 64), (16_384, 16_384), (16_385, 16_400)] {
        assert_eq!(Request::new(size, 1).payload, payload);
    }
    assert_eq!(Request::new(usize::MAX, 1).payload, 1 << 63);
}

/// A process that dies before any one store of any operation: the next one finds every live block
/// as it was, no byte lost, and goes on.
#[test]
fn death_at_every_store() {
    type Operation = fn(&Buddy, &[u64]) -> Result<()>;
    let operations: [(&str, Operation); 9] = [
        ("allocate from a list", |b, _| small(b, 20).map(drop)),
        ("allocate by cutting", |b, _| small(b, 2000).map(drop)),
        ("allocate aligned", |b, _| b.allocate(Request::new(40, 4096)).map(drop)),
        ("allocate large", |b, _| small(b, 18_000).map(drop)),
        ("allocate from the heap", |b, _| b.allocate(Request::new(200_000, 1 << 14)).map(drop)),
        ("free", |b, live| b.free(live[5])),
        ("coalesce", |b, _| b.coalesce()),
        ("shrink", |b, live| {
            live.iter().try_for_each(|&at| b.resize(at, Request::new(32, 1)).map(drop))
        }),
        ("grow", |b, live| {
            live.iter()
                .rev()
                .take(9)
                .try_for_each(|&at| b.resize(at, Request::new(90_000, 1)).map(drop))
        }),
    ];
    for (name, operation) in operations {
        let mut stores = 0;
        loop {
            let (buddy, live) = busy_buddy();
            die::after(stores);
            let result = operation(&buddy, &live);
            die::never();
            // The dead process's lock is taken over by whatever lock there is.
            buddy.verify().unwrap_or_else(|e| panic!("{name}, {stores} stores: {e}"));
            assert!(buddy.accounting().unwrap().balances());
            for &block in &live {
                let usable = buddy.usable_size(block);
                assert!(usable.is_ok() || name == "free" && block == live[5], "{name} {stores}");
            }
            if result.is_ok() {
                break;
            }
            for block in live {
                let _ = buddy.free(block);
            }
            buddy.coalesce().unwrap();
            buddy.verify().unwrap();
            stores += 1;
        }
        assert!(stores > 2, "{name} has {stores} stores");
    }
}

#[test]
fn lists_are_rebuilt_from_headers() {
    let (buddy, _) = busy_buddy();
    let before = buddy.accounting().unwrap();
    let shared = buddy.shared().unwrap();
    for list in 0..LISTS as u64 {
        buddy.words.set(buddy.tables + list * 16, START + 4096 + list * 16).unwrap();
    }
    shared.in_use.store(7, Relaxed);
    assert_eq!(buddy.verify(), Err(Error::Corrupt));
    // What found the damage left word of it, so the next call repairs it.
    buddy.verify().unwrap();
    assert_eq!(buddy.accounting().unwrap(), before);
    shared.nonempty.store(!0, Relaxed);
    buddy.rebuild().unwrap();
    buddy.verify().unwrap();
}

#[test]
fn damaged_headers_are_errors() {
    let (buddy, live) = busy_buddy();
    let page = live[3] - 16;
    let good = buddy.words.get(page).unwrap();
    for bad in [0, 1, good + 16, good - 16, good | 8, u64::MAX, 1 << 40 | 1] {
        buddy.words.set(page, bad).unwrap();
        assert_eq!(buddy.verify(), Err(Error::Corrupt), "{bad:#x}");
        assert!(buddy.accounting().is_err() && buddy.rebuild().is_err());
    }
    buddy.words.set(page, good).unwrap();
    buddy.verify().unwrap();
    let shared = buddy.shared().unwrap();
    for bad in [0, 16, START, buddy.end + 16, buddy.end - 8] {
        let position = shared.heap.position();
        shared.heap.copy_from(&Heap::new(bad, u64::MAX).unwrap());
        assert!(small(&buddy, 40).is_err() && buddy.verify().is_err() && buddy.coalesce().is_err());
        let heap = Heap::new(START, buddy.end).unwrap();
        assert!(heap.move_position(START, position));
        shared.heap.copy_from(&heap);
        buddy.verify().unwrap();
    }
}

/// Any one word of the bookkeeping changed: no panic, no fault, no endless loop.
#[test]
fn forged_words_are_survived() {
    let values = [0, 1, 16, START, START + 4096, START + (1 << 19), 1 << 40, u64::MAX, 97];
    for at in (START..START + 1200).step_by(8) {
        for value in values {
            let (buddy, live) = busy_buddy();
            // The lock word is another matter: held forever is held forever.
            if at == START + 64 {
                continue;
            }
            buddy.words.set(at, value).unwrap();
            let attached = Buddy::attach(buddy.region.clone(), OffsetPtr::new(START));
            for buddy in [Some(buddy), attached.ok()].into_iter().flatten() {
                for size in [10, 2000, 40_000, 1 << 22] {
                    let _ = small(&buddy, size);
                }
                for &block in live.iter().step_by(4) {
                    let _ = buddy.free(block);
                }
                let _ = buddy.coalesce();
                let _ = buddy.verify();
                let _ = buddy.rebuild();
            }
        }
    }
}

#[test]
fn attach_elsewhere_and_go_on() {
    let (buddy, live) = busy_buddy();
    let other = region(buddy.region.len());
    #[allow(unsafe_code)] // copies a whole region
    // SAFETY: both are whole mappings of the same length, and nobody else uses them.
    unsafe {
        buddy.region.base().copy_to_nonoverlapping(other.base(), other.len());
    }
    let there = Buddy::attach(other.clone(), OffsetPtr::new(buddy.header_offset())).unwrap();
    assert_ne!(there.region.base(), buddy.region.base());
    there.verify().unwrap();
    assert_eq!(there.accounting(), buddy.accounting());
    for block in live {
        there.free(block).unwrap();
    }
    small(&there, 300_000).unwrap();
    there.verify().unwrap();
    assert_eq!(there.allocate(Request::new(5, 1 << 12)).unwrap() % 4096, 0);

    for at in [0, 1, 8, START + 64, u64::MAX, u64::MAX - 63, other.len() as u64] {
        assert!(Buddy::attach(other.clone(), OffsetPtr::new(at)).is_err(), "{at}");
    }
}

#[test]
fn coalescing_runs_only_when_it_can_help() {
    let buddy = buddy(1 << 20);
    let blocks: Vec<_> = std::iter::from_fn(|| small(&buddy, 4096).ok()).collect();
    assert_eq!(buddy.merges(), 0, "nothing was freed");
    for pair in blocks.chunks(2) {
        buddy.free(pair[0]).unwrap();
    }
    assert!(small(&buddy, 8192).is_err());
    assert_eq!(buddy.merges(), 1);
    for _ in 0..10 {
        assert!(small(&buddy, 8192).is_err());
    }
    assert_eq!(buddy.merges(), 1, "nothing was freed since");
    assert!(small(&buddy, 1 << 30).is_err());
    buddy.free(blocks[1]).unwrap();
    assert!(small(&buddy, 1 << 30).is_err());
    assert_eq!(buddy.merges(), 1, "more than there is");
    assert_eq!(small(&buddy, 8192), Ok(blocks[0]));
    assert_eq!(buddy.merges(), 2);
    buddy.verify().unwrap();
}
