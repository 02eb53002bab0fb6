//! One process's heap, read where it lies by another one.
#![allow(unsafe_code)] // references into another process's heap

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use hshm::{
    AllocatorId, AttachedHeap, Error, FullPtr, HeapToken, HshmAlloc, MIB, OffsetPtr, RegionOptions,
    ShmPtr,
};
use support::peer::Peer;
use support::{peer, role, turn};

#[global_allocator]
static A: HshmAlloc = HshmAlloc::builder().capacity(16 * MIB).build();

const READ_ONLY: RegionOptions = RegionOptions::new().read_only(true);

type Map = BTreeMap<String, u64>;
type Nested = Vec<Vec<String>>;

/// What one process tells the other one about a value.
fn name<T>(value: *const T) -> String {
    let shm = FullPtr::from_ptr(value.cast_mut()).unwrap().shm();
    format!("{} {}", shm.id().to_bits(), shm.offset().offset())
}

fn parse<T>(words: &[&str]) -> ShmPtr<T> {
    let numbers: Vec<u64> = words.iter().map(|word| word.parse().unwrap()).collect();
    ShmPtr::new(AllocatorId::from_bits(numbers[0]), OffsetPtr::new(numbers[1]))
}

/// A list whose links are offsets, in one region.
#[repr(C)]
struct Node {
    value: u64,
    next: OffsetPtr<Node>,
}

/// Reads the other process's values as they are: nothing is copied, nothing decoded.
fn reader(token: &str, options: RegionOptions) {
    let token: HeapToken = token.parse().unwrap();
    let heap = match AttachedHeap::attach(&token, &options) {
        // This process's own heap, which lies somewhere at random, is in the way: start anew.
        Err(Error::Relocated) => {
            let mut again = Command::new(std::env::current_exe().unwrap());
            panic!("{}", again.args(std::env::args_os().skip(1)).exec());
        }
        heap => heap.unwrap(),
    };
    assert_eq!(heap.regions().len(), token.regions().len());
    assert!(heap.regions().iter().all(|region| !region.is_writable() && !region.is_creator()));
    peer::serve(|words| {
        let place = parse::<u8>(&words[1..3]);
        let base = heap.regions().iter().find(|region| region.id() == place.id()).unwrap().base();
        // SAFETY: of all of them: the other process keeps the values unchanged while it waits; the
        // types are those of the same program.
        unsafe {
            match words[0] {
                "map" => {
                    let map = FullPtr::from_shm(place.cast::<Map>()).unwrap();
                    let map = map.as_ref().unwrap();
                    let sum: u64 = map.values().sum();
                    let longest = map.keys().max_by_key(|key| key.len()).unwrap();
                    assert_eq!(map.get(longest), Some(&(map.len() as u64 - 1)));
                    format!("{} {sum} {}", map.len(), map["key 77"])
                }
                "nested" => {
                    let nested = FullPtr::from_shm(place.cast::<Nested>()).unwrap();
                    let nested = nested.as_ref().unwrap();
                    // In place: the strings are the other process's own bytes.
                    let text = &nested[3][2];
                    assert!(FullPtr::from_ptr(text.as_ptr().cast_mut()).is_ok());
                    let bytes: usize = nested.iter().flatten().map(String::len).sum();
                    format!("{} {bytes} {text}", nested.len())
                }
                "list" => {
                    let mut sum = 0;
                    let mut at = place.cast::<Node>();
                    while let Some(node) = FullPtr::from_shm(at).unwrap().as_ref() {
                        let address = (&raw const *node).addr();
                        assert_eq!(address, base.addr() + at.offset().offset() as usize);
                        sum += node.value;
                        at = ShmPtr::new(at.id(), node.next);
                    }
                    sum.to_string()
                }
                "base" => base.addr().to_string(),
                other => panic!("{other}"),
            }
        }
    });
}

#[test]
fn a_map_and_nested_vectors_at_the_same_address() {
    const TEST: &str = "a_map_and_nested_vectors_at_the_same_address";
    if let Some(token) = role(TEST) {
        return reader(&token, READ_ONLY.same_address(true));
    }
    let _turn = turn();
    let map: Map = (0..20_000).map(|n| (format!("key {n}"), n)).collect();
    let map = Box::new(map);
    // Enough for several regions, some of it in large blocks.
    let nested: Nested = (0..300)
        .map(|n| (0..200).map(|i| format!("{n}/{i} ").repeat(1 + n % 60)).collect())
        .collect();
    let nested = Box::new(nested);
    let ballast = vec![1u8; 40 * MIB];
    let token = A.share().unwrap();
    assert!(token.regions().len() > 1, "the test wants several regions");
    assert_eq!(token.to_string().parse(), Ok(token.clone()));
    let mut reader = Peer::start(TEST, &token.to_string());
    let answer = reader.ask(&format!("map {}", name(&raw const *map)));
    assert_eq!(answer, format!("20000 {} 77", 20_000 * 19_999 / 2));
    let bytes: usize = nested.iter().flatten().map(String::len).sum();
    let answer = reader.ask(&format!("nested {}", name(&raw const *nested)));
    assert_eq!(answer, format!("300 {bytes} {}", nested[3][2].trim_end()));
    let region = A.regions().next().unwrap();
    let first = format!("base {} 0", region.id().to_bits());
    assert_eq!(reader.ask(&first), region.base().addr().to_string());
    // Values that were made after the attachment, in memory that was there.
    let late: Box<Map> = Box::new((0..1000).map(|n| (format!("key {n}"), n)).collect());
    let answer = reader.ask(&format!("map {}", name(&raw const *late)));
    assert_eq!(answer, format!("1000 {} 77", 1000 * 999 / 2));
    reader.finish();
    drop(ballast);
    A.verify().unwrap();
}

#[test]
fn a_list_in_a_relocated_heap() {
    const TEST: &str = "a_list_in_a_relocated_heap";
    if let Some(token) = role(TEST) {
        return reader(&token, READ_ONLY.relocate(true));
    }
    let _turn = turn();
    // The nodes in one buffer, so in one region, linked in an order of their own.
    let mut nodes: Vec<Node> =
        (0..5000).map(|value| Node { value, next: OffsetPtr::NULL }).collect();
    let start = FullPtr::from_ptr(nodes.as_mut_ptr()).unwrap();
    let order: Vec<usize> = (0..nodes.len()).map(|n| n * 1237 % 5000).collect();
    for pair in order.windows(2) {
        nodes[pair[0]].next = start.add(pair[1]).offset();
    }
    let token = A.share().unwrap();
    let mut reader = Peer::start(TEST, &token.to_string());
    let answer = reader.ask(&format!("list {}", name(&raw const nodes[order[0]])));
    assert_eq!(answer, (5000 * 4999 / 2).to_string());
    for region in A.regions() {
        let there = reader.ask(&format!("base {} 0", region.id().to_bits()));
        assert_ne!(there, region.base().addr().to_string());
    }
    reader.finish();
}

#[test]
fn a_private_heap_is_not_shared() {
    const TEST: &str = "a_private_heap_is_not_shared";
    if role(TEST).is_some() {
        peer::serve(|_| {
            let shared = A.regions().any(|region| region.is_shared());
            format!("{shared} {:?}", A.share())
        });
        return;
    }
    let _turn = turn();
    let mut private = Peer::start_with(TEST, "", |command| command.env("HSHM_BACKEND", "private"));
    assert_eq!(private.ask("share"), format!("false {:?}", Err::<HeapToken, _>(Error::NotShared)));
    private.finish();
}

#[test]
fn a_token_of_a_dead_process() {
    const TEST: &str = "a_token_of_a_dead_process";
    if role(TEST).is_some() {
        peer::serve(|_| A.share().unwrap().to_string());
        return;
    }
    let _turn = turn();
    let mut owner = Peer::start(TEST, "");
    let token: HeapToken = owner.ask("token").parse().unwrap();
    let options = READ_ONLY.relocate(true);
    let heap = AttachedHeap::attach(&token, &options).unwrap();
    owner.kill();
    // What is attached stays; what is not can no longer be.
    let in_use = heap.bytes_in_use().unwrap();
    assert!(in_use > 0);
    assert_eq!(heap.bytes_in_use(), Ok(in_use));
    drop(heap);
    assert_eq!(AttachedHeap::attach(&token, &options).err(), Some(Error::NotFound));
}

#[test]
fn bad_tokens() {
    let _turn = turn();
    let token = A.share().unwrap();
    let good = token.to_string();
    for bad in ["", ";", "hshm", &format!("{good};"), &format!(";{good}"), &good[1..]] {
        assert_eq!(bad.parse::<HeapToken>(), Err(Error::BadName), "{bad}");
    }
    // Descriptors and ids that are something else.
    let first = token.regions()[0];
    let text = |fd: i32, id: u64| {
        format!("hshm:{}:{fd}:{id:x}:{:x}:{:x}", first.pid, first.base, first.len)
    };
    let attach = |text: String| AttachedHeap::attach(&text.parse().unwrap(), &READ_ONLY).err();
    let id = first.id.to_bits();
    assert_eq!(attach(text(4000, id)), Some(Error::NotFound));
    assert!(attach(text(0, id)).is_some());
    assert!(matches!(attach(text(first.fd, id ^ 1)), Some(Error::ForeignPointer { .. })));
    assert!(attach(text(first.fd, id)).is_none());
}

/// Attached again and again, nothing is left behind.
#[test]
fn attaching_leaves_nothing() {
    let _turn = turn();
    let token = A.share().unwrap();
    let count = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let maps = maps.lines().filter(|line| line.contains("memfd:")).count();
        // The heap that all this lies in may have got another region.
        let regions = A.regions().count();
        (descriptors - regions, maps - regions)
    };
    // Counting takes memory, too.
    let _ = count();
    let before = count();
    for _ in 0..50 {
        let heap = AttachedHeap::attach(&token, &READ_ONLY).unwrap();
        assert!(heap.is_relocated(), "this process has the address itself");
        assert_eq!(
            AttachedHeap::attach(&token, &READ_ONLY.same_address(true)).err(),
            Some(Error::Relocated)
        );
    }
    assert_eq!(count(), before);
}
