//! Another process's heap: pointers are checked, and ordinary values are read where they lie.
#![allow(unsafe_code)] // references into an attached heap

mod support;

use std::collections::BTreeMap;

use hshm::{
    AllocatorId, AttachedHeap, Error, FullPtr, HeapToken, HshmAlloc, MIB, OffsetPtr, RegionOptions,
    ShmPtr,
};
use support::{other_process_ok, role, turn};

/// Small regions, so that the heap of a test is several of them.
#[global_allocator]
static A: HshmAlloc = HshmAlloc::builder().capacity(8 * MIB).build();

type Words = BTreeMap<String, Vec<u64>>;

const READ: RegionOptions = RegionOptions::new().read_only(true);

fn pointer<T>(value: &T) -> ShmPtr<T> {
    FullPtr::from_ptr((&raw const *value).cast_mut()).unwrap().shm()
}

fn text<T>(pointer: ShmPtr<T>) -> String {
    format!("{} {}", pointer.id().to_bits(), pointer.offset().offset())
}

fn parse<T>(text: &str) -> ShmPtr<T> {
    let (id, offset) = text.split_once(' ').unwrap();
    let id = AllocatorId::from_bits(id.parse().unwrap());
    ShmPtr::new(id, OffsetPtr::new(offset.parse().unwrap()))
}

/// This process's own heap, mapped a second time.
fn again() -> AttachedHeap {
    AttachedHeap::attach(&A.share().unwrap(), &READ).unwrap()
}

#[test]
fn pointers_are_checked() {
    let _turn = turn();
    let value = Box::new(0x1234_5678_9ABC_DEF0u64);
    let at = pointer(&*value);
    let heap = again();
    let region = heap.regions().iter().find(|region| region.id() == at.id()).unwrap();
    let length = region.len() as u64;

    let place = heap.resolve(at, 1).unwrap();
    assert_ne!(place, &raw const *value, "the owner's place is taken in this process");
    // SAFETY: `value` lives there, and nobody changes it.
    assert_eq!(unsafe { heap.get_shm(at) }, Ok(&*value));

    let id = AllocatorId::new(1, 2);
    let unknown = Err(Error::UnknownAllocator { id });
    assert_eq!(heap.resolve(ShmPtr::<u64>::new(id, at.offset()), 1), unknown);
    for null in [ShmPtr::NULL, ShmPtr::<u64>::new(at.id(), OffsetPtr::NULL)] {
        assert!(matches!(heap.resolve(null, 1), Err(Error::OffsetOutOfRange { .. })));
        assert!(matches!(heap.resolve(null, 0), Err(Error::OffsetOutOfRange { .. })));
    }
    let bytes = at.cast::<u8>();
    assert_eq!(heap.resolve(bytes.add(1).cast::<u64>(), 1), Err(Error::BadAlignment { align: 8 }));
    for offset in [length, length - 1, length - 7, u64::MAX - 1, u64::MAX - 7, 1 << 63] {
        let out = Err(Error::OffsetOutOfRange { offset, length });
        assert_eq!(heap.resolve(ShmPtr::<u64>::new(at.id(), OffsetPtr::new(offset)), 1), out);
    }
    let last = ShmPtr::<u64>::new(at.id(), OffsetPtr::new(length - 8));
    assert!(heap.resolve(last, 1).is_ok());
    assert!(matches!(heap.resolve(last, 2), Err(Error::OffsetOutOfRange { .. })));
    let maximum = isize::MAX as usize / 8;
    for given in [usize::MAX, maximum + 1, usize::MAX / 8 + 2] {
        assert_eq!(heap.resolve(last, given), Err(Error::TooLarge { given, maximum }));
    }
    assert!(matches!(heap.resolve(last, maximum), Err(Error::OffsetOutOfRange { .. })));
    assert!(heap.resolve(at.cast::<()>(), usize::MAX >> 1).is_ok());
}

#[test]
fn plain_references_need_the_same_address() {
    let _turn = turn();
    let words = Box::new(Words::new());
    let heap = again();
    assert!(heap.is_relocated());
    // SAFETY: refused before anything is read.
    assert_eq!(unsafe { heap.get(pointer(&*words)) }, Err(Error::Relocated));
    let same = AttachedHeap::attach(&A.share().unwrap(), &READ.same_address(true));
    assert_eq!(same.err(), Some(Error::Relocated));
}

#[test]
fn slices_of_offsets() {
    let _turn = turn();
    let numbers: Vec<u64> = (0..1000).collect();
    let links: Vec<OffsetPtr<u64>> = numbers.iter().map(|n| pointer(n).offset()).collect();
    let id = pointer(&numbers[0]).id();
    let heap = again();
    // SAFETY: both vectors live, and nobody changes them.
    unsafe {
        let links = heap.get_shm_slice(pointer(&links[0]), links.len()).unwrap();
        for (index, link) in links.iter().enumerate() {
            assert_eq!(heap.get_shm(ShmPtr::new(id, *link)), Ok(&(index as u64)));
        }
    }
}

#[test]
fn a_map_over_several_regions_in_another_process() {
    const TEST: &str = "a_map_over_several_regions_in_another_process";
    const WORDS: u64 = 20_000;
    if let Some(what) = role(TEST) {
        let (token, at) = what.split_once('|').unwrap();
        let token: HeapToken = token.parse().unwrap();
        assert!(token.regions().len() > 1, "{token}");
        let heap = match AttachedHeap::attach(&token, &READ.same_address(true)) {
            // One in a thousand: this process's own heap is where the other one has its.
            Err(Error::Relocated) => return,
            heap => heap.unwrap(),
        };
        assert!(!heap.is_relocated() && heap.regions().iter().all(|r| !r.is_writable()));
        assert!(heap.bytes_in_use().unwrap() > 8 * MIB);
        // SAFETY: the other process runs the same program, keeps the map, and waits.
        let words = unsafe { heap.get::<Words>(parse(at)) }.unwrap();
        assert_eq!(words.len() as u64, WORDS);
        for (index, (word, list)) in words.iter().enumerate() {
            assert_eq!(word.parse(), Ok(index));
            assert_eq!((list.len(), list[0]), (100, index as u64));
        }
        return;
    }
    let _turn = turn();
    let words: Words = (0..WORDS).map(|n| (format!("{n:08}"), vec![n; 100])).collect();
    let words = Box::new(words);
    let at = text(pointer(&*words));
    other_process_ok(TEST, &format!("{}|{at}", A.share().unwrap()));
    assert_eq!(words.len() as u64, WORDS);
}
