//! Collections of other crates over every allocator of this one: vectors and hash maps, moved with
//! their allocators, grown, shrunk and dropped.
#![allow(unsafe_code)] // the trait's raw calls

use std::alloc::Layout;
use std::ptr::NonNull;

use hashbrown::{DefaultHashBuilder, HashMap};
use hshm::arena::{Arena, BestFit, SyncArena, Tiers, scratch};
use hshm::{
    Allocator as _, AllocatorId, Backend, BuddyAllocator, CtxAllocator, Heap, HshmAlloc, MIB,
    MallocAllocator, MemContext, MemfdBackend, OffsetPtr, Region, RegionOptions,
    ScalablePageAllocator, StackAllocator, ThreadId, ThreadLocalAllocator,
};

fn region(number: u32) -> Region {
    let id = AllocatorId::new(78_000, number);
    MemfdBackend::create("", &RegionOptions::new().capacity(64 * MIB).id(id)).unwrap()
}

fn buddy(number: u32) -> BuddyAllocator {
    let region = region(number);
    let start = region.payload_offset() as u64;
    let heap = Heap::new(start, region.len() as u64).unwrap();
    let metadata = BuddyAllocator::MIN_METADATA;
    BuddyAllocator::shm_init(region, OffsetPtr::new(start), heap, metadata).unwrap()
}

fn stack(number: u32) -> StackAllocator {
    let region = region(number);
    let start = region.payload_offset() as u64;
    let heap = Heap::new(start, region.len() as u64).unwrap();
    StackAllocator::shm_init(region, OffsetPtr::new(start), heap).unwrap()
}

fn thread_local(number: u32) -> ThreadLocalAllocator {
    ThreadLocalAllocator::shm_init(region(number)).unwrap()
}

/// A handle with its context is a reference and a number, whatever it is a handle of.
#[test]
fn handles_with_a_context_are_copies() {
    fn copied<T: Copy>(value: &T) -> T {
        *value
    }
    let alloc = thread_local(90);
    let handle = CtxAllocator::new(&alloc, MemContext::DEFAULT);
    let mut vec = allocator_api2_02::vec::Vec::new_in(copied(&handle));
    vec.extend(0..100u32);
    let other = vec.clone();
    drop(vec);
    assert!(other.iter().copied().eq(0..100));
}

macro_rules! suite {
    ($name:ident, $version:ident, $number:expr) => {
        mod $name {
            use super::*;
            use $version::alloc::Allocator;
            use $version::vec::Vec;

            /// A vector that owns the allocator, moved while it grows.
            fn a_vector<A: Allocator>(alloc: A) {
                let mut vec = Vec::new_in(alloc);
                for n in 0..3000u64 {
                    vec.push([n; 3]);
                    if n % 500 == 0 {
                        vec = *std::hint::black_box(Box::new(vec));
                    }
                }
                assert!(vec.iter().enumerate().all(|(n, value)| *value == [n as u64; 3]));
                vec.truncate(700);
                vec.shrink_to_fit();
                vec.insert(0, [9; 3]);
                assert!(vec[1..].iter().enumerate().all(|(n, value)| *value == [n as u64; 3]));
                assert_eq!(vec.len(), 701);
            }

            /// The trait's calls, with what a collection seldom does.
            fn raw_calls<A: Allocator>(alloc: &A) {
                let layout = |size, align| Layout::from_size_align(size, align).unwrap();
                let fill = |block: NonNull<[u8]>, byte: u8| {
                    // SAFETY: the block's own bytes.
                    unsafe { block.cast::<u8>().write_bytes(byte, block.len()) };
                };
                // SAFETY: the block's own bytes, which were written.
                let bytes = |block: NonNull<[u8]>| unsafe { block.as_ref().to_vec() };
                for align in [1, 8, 64, 4096] {
                    for size in [0, 1, 100, 5000, 100_000] {
                        let block = alloc.allocate(layout(size, align)).unwrap();
                        assert!(block.len() >= size && block.addr().get().is_multiple_of(align));
                        fill(block, 7);
                        // SAFETY: live, and of that layout, in each of the calls.
                        unsafe {
                            let wide = layout(size * 2 + 9, align * 2);
                            let grown =
                                alloc.grow_zeroed(block.cast(), layout(size, align), wide).unwrap();
                            assert!(grown.addr().get().is_multiple_of(align * 2));
                            let seen = bytes(grown);
                            assert!(seen[..size].iter().all(|&byte| byte == 7));
                            assert!(seen[size..size * 2 + 9].iter().all(|&byte| byte == 0));
                            fill(grown, 8);
                            let small = layout(size / 2, 1);
                            let shrunk = alloc.shrink(grown.cast(), wide, small).unwrap();
                            assert!(bytes(shrunk)[..size / 2].iter().all(|&byte| byte == 8));
                            alloc.deallocate(shrunk.cast(), small);
                        }
                        let zeroed = alloc.allocate_zeroed(layout(size, align)).unwrap();
                        assert!(bytes(zeroed).iter().all(|&byte| byte == 0));
                        // SAFETY: live, and of that layout.
                        unsafe { alloc.deallocate(zeroed.cast(), layout(size, align)) };
                    }
                }
                assert!(alloc.allocate(layout(isize::MAX as usize - 4095, 4096)).is_err());
            }

            fn all_of_it<A: Allocator>(alloc: A) {
                raw_calls(&alloc);
                a_vector(&alloc);
                a_vector(alloc);
            }

            #[test]
            fn over_thread_local() {
                let alloc = thread_local($number);
                raw_calls(&alloc);
                a_vector(&alloc);
                a_vector(CtxAllocator::new(&alloc, MemContext::new(ThreadId::new(3))));
                all_of_it(alloc.exclusive().unwrap());
                assert_eq!(alloc.currently_allocated_size(), 0);
                alloc.verify().unwrap();
                a_vector(alloc);
            }

            #[test]
            fn over_scalable_page() {
                let alloc = ScalablePageAllocator::shm_init(region($number + 3)).unwrap();
                raw_calls(&alloc);
                a_vector(&alloc);
                assert_eq!(alloc.currently_allocated_size(), 0);
                alloc.verify().unwrap();
                a_vector(alloc);
            }

            #[test]
            fn over_the_c_library() {
                let alloc = MallocAllocator::new();
                all_of_it(&alloc);
                assert_eq!(alloc.currently_allocated_size(), 0);
                a_vector(alloc);
            }

            #[test]
            fn over_buddy() {
                let alloc = buddy($number + 1);
                all_of_it(alloc.clone());
                all_of_it(CtxAllocator::new(&alloc, MemContext::DEFAULT));
                assert_eq!(alloc.currently_allocated_size(), 0);
                alloc.verify().unwrap();
            }

            #[test]
            fn over_stack() {
                let alloc = stack($number + 2);
                all_of_it(alloc.clone());
                assert_eq!(alloc.currently_allocated_size(), 0);
            }

            #[test]
            fn over_the_global_heap() {
                all_of_it(HshmAlloc::new());
                // Blocks of one handle are freed by another.
                let block = HshmAlloc::new().allocate(Layout::new::<u64>()).unwrap();
                // SAFETY: live, and of that layout.
                unsafe { HshmAlloc::new().deallocate(block.cast(), Layout::new::<u64>()) };
            }

            #[test]
            fn over_arenas() {
                let arena = Arena::new();
                all_of_it(&arena);
                {
                    let temp = arena.temp();
                    all_of_it(&*temp);
                }
                all_of_it(&*scratch(&[]));
                all_of_it(BestFit::new(&arena));
                all_of_it(Tiers::new(&arena));
                all_of_it(&SyncArena::new());
            }
        }
    };
}

suite!(version_02, allocator_api2_02, 0);
suite!(version_04, allocator_api2_04, 10);

/// Maps of hashbrown, which knows version 0.2.
fn a_map<A: allocator_api2_02::alloc::Allocator>(alloc: A) {
    let mut map: HashMap<u64, String, DefaultHashBuilder, A> = HashMap::new_in(alloc);
    for n in 0..5000 {
        map.insert(n, n.to_string());
    }
    map.retain(|n, _| n % 3 == 0);
    map.shrink_to_fit();
    // Moved, with its allocator.
    let mut map = Box::new(map);
    map.extend((6000..7000).map(|n| (n, n.to_string())));
    assert_eq!(map.len(), 1667 + 1000);
    assert!(map.iter().all(|(n, text)| *text == n.to_string()));
    let odd = (*map).into_iter().filter(|(n, _)| n % 2 == 1).take(100).count();
    assert_eq!(odd, 100);
}

#[test]
fn hash_maps_over_everything() {
    let alloc = thread_local(20);
    a_map(&alloc);
    a_map(CtxAllocator::new(&alloc, MemContext::new(ThreadId::new(1))));
    a_map(alloc.exclusive().unwrap());
    assert_eq!(alloc.currently_allocated_size(), 0);
    a_map(alloc);
    let alloc = buddy(21);
    a_map(&alloc);
    a_map(alloc.clone());
    assert_eq!(alloc.currently_allocated_size(), 0);
    a_map(stack(22));
    a_map(ScalablePageAllocator::shm_init(region(24)).unwrap());
    a_map(MallocAllocator::new());
    a_map(HshmAlloc::new());
    let arena = Arena::new();
    a_map(&arena);
    a_map(BestFit::new(&arena));
    a_map(Tiers::new(&arena));
    a_map(&*scratch(&[]));
    a_map(&SyncArena::new());
}

/// Threads fill maps over one allocator.
#[test]
fn threads_share_an_allocator() {
    let alloc = thread_local(23);
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| a_map(&alloc));
        }
    });
    assert_eq!(alloc.currently_allocated_size(), 0);
    alloc.verify().unwrap();
}
