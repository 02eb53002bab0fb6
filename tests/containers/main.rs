//! Containers in shared memory: against std's, with little memory, with damaged words.
#![allow(unsafe_code)] // reads and damages containers behind their backs
#![allow(unreachable_pub)] // the modules of one program

mod common;
mod damage;
mod map;
mod ring;
mod text;
mod vec;

use hshm::{
    Allocator, AllocatorId, BuddyAllocator, Heap, MIB, OffsetPtr, Region, RegionOptions, ShmHeap,
    StackAllocator,
};

use common::{Place, region};

/// Every allocator with an id serves containers.
#[test]
fn over_every_allocator() {
    fn use_it(heap: ShmHeap) {
        let mut words = hshm::ShmHashMap::new_in(heap);
        for n in 0..2000u64 {
            let key =
                hshm::ShmString::format_in(format_args!("a key that takes a block: {n}"), heap);
            let value = hshm::ShmVec::from_iter_in(0..n % 50, heap).unwrap();
            words.insert(key.unwrap(), hshm::ShmBox::new_in(value, heap).unwrap()).unwrap();
        }
        for n in 0..2000u64 {
            let value = &words[format!("a key that takes a block: {n}").as_str()];
            assert!(value.iter().copied().eq(0..n % 50));
        }
        drop(words);
    }
    let start = |region: &Region| {
        let start = region.payload_offset();
        let heap = Heap::new(start as u64, region.len() as u64).unwrap();
        (OffsetPtr::new(start as u64), heap)
    };
    let place = Place::usual();
    place.balanced(use_it);

    let region_ = region(16 * MIB);
    let (at, heap) = start(&region_);
    let metadata = BuddyAllocator::MIN_METADATA;
    let buddy = BuddyAllocator::shm_init(region_, at, heap, metadata).unwrap();
    let buddy: &'static BuddyAllocator = Box::leak(Box::new(buddy));
    use_it(ShmHeap::of(buddy).unwrap());
    assert_eq!(buddy.currently_allocated_size(), 0);
    buddy.verify().unwrap();

    let region_ = region(64 * MIB);
    let (at, heap) = start(&region_);
    let stack = StackAllocator::shm_init(region_, at, heap).unwrap();
    let stack: &'static StackAllocator = Box::leak(Box::new(stack));
    use_it(ShmHeap::of(stack).unwrap());
    assert_eq!(stack.currently_allocated_size(), 0);
}

#[test]
fn heaps_are_known_once() {
    let place = Place::usual();
    assert_eq!(ShmHeap::of(place.alloc), Err(hshm::Error::AlreadyExists));
    assert_eq!(ShmHeap::by_id(place.heap.id()), Ok(place.heap));
    let id = AllocatorId::new(77_001, 0);
    assert_eq!(ShmHeap::by_id(id), Err(hshm::Error::UnknownAllocator { id }));
    // SAFETY: nobody uses the heap.
    unsafe { place.heap.retire() };
    assert!(hshm::ShmVec::from_slice_in(&[1u8], place.heap).is_err());
    assert_eq!(ShmHeap::of(place.alloc), Ok(place.heap));
    place.balanced(|heap| drop(hshm::ShmVec::from_slice_in(&[1u8], heap).unwrap()));
}

/// Who may only read can look, and nothing else.
#[test]
fn a_heap_to_read() {
    let place = Place::with(16 * MIB);
    let vec = hshm::ShmVec::from_slice_in(&[1u64, 2, 3], place.heap).unwrap();
    let boxed = hshm::ShmBox::new_in(vec, place.heap).unwrap();
    let at = boxed.into_raw();
    // As another process would.
    // SAFETY: the allocator and the region stay; nobody uses a container meanwhile.
    unsafe { place.heap.retire() };
    let token = place.alloc.region().token().unwrap();
    let options = RegionOptions::new().read_only(true);
    let heap = ShmHeap::reader(&Region::attach_token(&token, &options).unwrap()).unwrap();
    // SAFETY: a vector is there, and nobody writes to it.
    let seen: &hshm::ShmVec<u64> = unsafe { heap.get(at) }.unwrap();
    assert_eq!(seen, &[1, 2, 3]);
    // SAFETY: refused.
    let refused = unsafe { heap.get_mut(at) };
    assert_eq!(refused.err(), Some(hshm::Error::ReadOnly));
    assert_eq!(hshm::ShmVec::from_slice_in(&[1], heap), Err(hshm::Error::ReadOnly));
    assert_eq!(hshm::ShmString::from_in(&"x".repeat(30), heap), Err(hshm::Error::ReadOnly));
    assert_eq!(hshm::ShmRing::<u8>::with_capacity_in(3, heap).err(), Some(hshm::Error::ReadOnly));
    let elsewhere = hshm::ShmPtr::new(AllocatorId::new(1, 99), at.offset());
    // SAFETY: refused.
    let refused = unsafe { heap.get(elsewhere) };
    assert!(matches!(refused, Err(hshm::Error::ForeignPointer { .. })));
}
