//! Collections of other crates over an arena.
#![allow(unsafe_code)] // the trait's raw calls

use allocator_api2_02::alloc::Allocator;
use hashbrown::{DefaultHashBuilder, HashMap};
use hshm::arena::{Arena, Growth, SyncArena, scratch};

type Map<'a, K, V> = HashMap<K, V, DefaultHashBuilder, &'a Arena<'a>>;

#[test]
fn a_map_grows_in_an_arena() {
    for growth in [Growth::Chained, Growth::Reserved, Growth::ReservedThenChained] {
        let arena = Arena::builder().growth(growth).build().unwrap();
        let mut map: Map<'_, &str, Vec<u64>> = HashMap::new_in(&arena);
        for n in 0..10_000u64 {
            map.entry(arena.format(format_args!("key {}", n % 1000))).or_default().push(n);
        }
        assert_eq!(map.len(), 1000);
        for n in 0..1000 {
            let found = &map[format!("key {n}").as_str()];
            assert!(found.iter().copied().eq((0..10).map(|k| k * 1000 + n)));
        }
        map.retain(|_, numbers| numbers[0] < 10);
        map.shrink_to_fit();
        assert_eq!(map.len(), 10);
        assert!(arena.pos() > 10_000);
    }
}

#[test]
fn a_map_over_scratch_goes_with_it() {
    let before = scratch(&[]).pos();
    let temp = scratch(&[]);
    let mut map: Map<'_, u32, u32> = HashMap::new_in(&temp);
    map.extend((0..5000).map(|n| (n, n * n)));
    // While another scope is open, the map cannot grow into it.
    let inner = temp.temp();
    assert!(map.try_reserve(1 << 20).is_err());
    drop(inner);
    assert!(map.try_reserve(1 << 20).is_ok());
    assert!((0..5000).all(|n| map[&n] == n * n));
    drop(map);
    drop(temp);
    assert_eq!(scratch(&[]).pos(), before);
}

#[test]
fn a_vector_grows_and_shrinks_in_place() {
    let arena = Arena::builder().growth(Growth::Reserved).build().unwrap();
    let mut vec = allocator_api2_02::vec::Vec::new_in(&arena);
    vec.push(1u64);
    let first = vec.as_ptr();
    vec.extend(2..10_000);
    assert_eq!(vec.as_ptr(), first, "the last push grows where it is");
    vec.truncate(10);
    vec.shrink_to_fit();
    assert_eq!((vec.as_ptr(), arena.pos()), (first, 80));
    drop(vec);
    assert_eq!(arena.pos(), 0);
}

#[test]
fn blocks_are_zero_where_that_is_asked_for() {
    let mut arena = Arena::new();
    arena.push_no_zero(3000).fill(std::mem::MaybeUninit::new(0xFF));
    arena.clear();
    let layout = std::alloc::Layout::new::<[u8; 1000]>();
    let wider = std::alloc::Layout::new::<[u8; 2000]>();
    let block = (&arena).allocate_zeroed(layout).unwrap();
    // SAFETY: allocated just now, and grown once.
    let bytes = unsafe { (&arena).grow_zeroed(block.cast(), layout, wider).unwrap().as_ref() };
    assert!(bytes.len() == 2000 && bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn threads_share_an_arena_of_maps() {
    let arena = SyncArena::new();
    std::thread::scope(|threads| {
        for thread in 0..4u64 {
            let arena = &arena;
            threads.spawn(move || {
                let mut map = HashMap::with_hasher_in(DefaultHashBuilder::default(), arena);
                map.extend((0..2000).map(|n| (n, n + thread)));
                assert!((0..2000).all(|n| map[&n] == n + thread));
            });
        }
    });
    assert!(arena.pos() > 4 * 2000 * 16);
}
