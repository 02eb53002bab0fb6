//! Tests of the thread cache.
#![allow(unsafe_code)] // raw stacks of blocks

use super::*;

#[test]
fn tables_agree_with_the_classes() {
    for size in 1..=MAX_SMALL {
        assert_eq!(class_for(size).index(), class_index(size));
    }
}

/// A cache with a body, for good.
fn cache(closed: bool) -> ThreadCache {
    let body = Box::leak(Box::<Body>::new_zeroed()).as_mut_ptr();
    let member = Box::leak(Box::new(Member { visits: Visits::new(), body, next: ptr::null() }));
    let mut cache = ThreadCache::NEW;
    // SAFETY: zeroed, initialised in place, and used by this cache alone.
    unsafe {
        Body::init(body, member);
        cache.attach(body, FirstRegion::NONE, closed);
    }
    cache
}

#[test]
fn stacks_keep_order_and_limits() {
    let cache = &mut cache(false);
    let class = class_for(48);
    cache.set_room(class, 5);
    for (slot, number) in (1..=5usize).rev().enumerate() {
        // SAFETY: the class has room for five.
        unsafe { (*cache.slots(class, 5))[slot] = core::ptr::without_provenance_mut(number) };
    }
    cache.set_len(class, 5);
    assert_eq!(cache.len(class), 5);
    // SAFETY: a cache of our own; the numbers are never followed.
    unsafe {
        assert_eq!(pop(cache, bin_offset(48)).addr(), 1);
        assert_eq!(pop(cache, bin_offset(41)).addr(), 2);
        assert!(push(cache, bin_offset(48), core::ptr::without_provenance_mut(9)));
    }
    // SAFETY: the bin holds at least two.
    assert_eq!(unsafe { &*cache.slots(class, 2) }.iter().map(|b| b.addr()).sum::<usize>(), 9);
    cache.drop_oldest(class, 2);
    // SAFETY: as above.
    unsafe {
        assert_eq!(pop(cache, bin_offset(48)).addr(), 9);
        assert_eq!(pop(cache, bin_offset(48)).addr(), 3);
        assert!(pop(cache, bin_offset(48)).is_null());
        // A class that is only freed gets no more room than its first bytes.
        while cache.widen(class) {}
        assert_eq!(cache.room(class), PASSING_BYTES / class.size());
        cache.note_fetched(class, 100);
        assert!(cache.widen(class));
        for block in 1..=cache.room(class) {
            assert!(push(cache, bin_offset(48), core::ptr::without_provenance_mut(block)));
        }
        assert!(!push(cache, bin_offset(48), core::ptr::without_provenance_mut(1)));
    }
}

/// A bin keeps what it has, and its order, wherever it has to move to get more room.
#[test]
fn bins_keep_their_blocks_when_they_move() {
    let number = core::ptr::without_provenance_mut::<u8>;
    for size in [8, 48, 700, 3000, 20_000] {
        let cache = &mut cache(false);
        let (class, neighbour) = (class_for(size), class_for(size + size / 8 + 8));
        // The class is one that the thread allocates, too.
        cache.note_fetched(class, MOST);
        let mut count = 0;
        cache.set_room(neighbour, 1);
        cache.put(neighbour, number(7));
        while cache.widen(class) {
            while cache.len(class) < cache.room(class) {
                count += 1;
                cache.put(class, number(count));
            }
            // SAFETY: a cache of our own; the numbers are never followed.
            assert!(!unsafe { push(cache, bin_offset(size), number(1)) });
        }
        assert_eq!(count, capacity(class.index()));
        for block in (1..=count).rev() {
            // SAFETY: as above.
            assert_eq!(unsafe { pop(cache, bin_offset(size)) }.addr(), block);
        }
        // SAFETY: as above.
        unsafe {
            assert!(pop(cache, bin_offset(size)).is_null());
            assert_eq!(pop(cache, bin_offset(neighbour.size())).addr(), 7);
            assert!(pop(cache, bin_offset(neighbour.size())).is_null());
        }
    }
}

/// More and more room only for what was fetched lately; and never less than a bin has.
#[test]
fn room_is_for_what_was_fetched() {
    let cache = &mut cache(false);
    let class = class_for(48);
    cache.note_fetched(class, MOST);
    while cache.widen(class) {}
    assert_eq!(cache.room(class), capacity(class.index()));
    let other = class_for(64);
    let passing = PASSING_BYTES / other.size();
    cache.note_fetched(other, 8);
    while cache.widen(other) {}
    assert_eq!(cache.room(other), passing);
    for fetched in [MOST, usize::from(u16::MAX), MOST] {
        cache.note_fetched(other, fetched);
    }
    assert!(cache.widen(other));
    let room = cache.room(other);
    assert_eq!(room, 2 * passing);
    for block in 1..=room {
        cache.put(other, core::ptr::without_provenance_mut(block));
    }
    for _ in 0..16 {
        cache.note_sent_home(other);
    }
    assert!(!cache.widen(other));
    assert_eq!((cache.room(other), cache.len(other)), (room, room));
}

/// Idle is what has much, and as much as before; a bin whose room was taken begins anew.
#[test]
fn idle_bins_are_told_and_lose_their_room() {
    let number = core::ptr::without_provenance_mut::<u8>;
    let cache = &mut cache(false);
    assert!(!cache.is_time_to_sweep(SWEEP_GRANULES - 1));
    assert!(cache.is_time_to_sweep(SWEEP_GRANULES));
    assert!(!cache.is_time_to_sweep(SWEEP_GRANULES));
    // The count wraps, and another heap's is another.
    assert!(cache.is_time_to_sweep(u32::MAX));
    assert!(!cache.is_time_to_sweep(u32::MAX.wrapping_add(SWEEP_GRANULES - 1)));
    assert!(cache.is_time_to_sweep(u32::MAX.wrapping_add(SWEEP_GRANULES)));
    let (class, small) = (class_for(2048), class_for(48));
    let many = IDLE_BYTES / class.size();
    for class in [class, small] {
        cache.set_room(class, many + 1);
        assert!(!cache.is_idle(class), "empty");
        for block in 1..=many {
            cache.put(class, number(block));
        }
    }
    let had = cache.room_bytes;
    assert!(!cache.is_idle(class), "it was empty before");
    cache.put(class, number(many + 1));
    assert!(!cache.is_idle(class), "it was used");
    assert!(cache.is_idle(class));
    assert!(!cache.is_idle(small) && !cache.is_idle(small), "it has little");
    cache.set_len(class, 0);
    cache.drop_room(class);
    assert_eq!(cache.room_bytes, had - (many + 1) * class.size());
    assert_eq!((cache.room(class), cache.len(class)), (0, 0));
    // SAFETY: a cache of our own; the number is never followed.
    unsafe {
        assert!(pop(cache, bin_offset(2048)).is_null());
        assert!(!push(cache, bin_offset(2048), number(1)));
    }
    assert!(cache.widen(class));
    cache.put(class, number(5));
    // SAFETY: as above.
    unsafe {
        assert_eq!(pop(cache, bin_offset(2048)).addr(), 5);
        assert!(pop(cache, bin_offset(2048)).is_null());
    }
}

#[test]
fn closed_bins_take_nothing_but_what_is_put() {
    let mut cache = cache(true);
    let class = class_for(48);
    let number = core::ptr::without_provenance_mut::<u8>;
    // SAFETY: a cache of our own; the numbers are never followed.
    unsafe {
        assert!(!push(&mut cache, bin_offset(48), number(1)));
        assert_eq!(cache.room(class), 0);
        cache.set_room(class, 1);
        assert!(!push(&mut cache, bin_offset(48), number(1)));
        for block in 1..=cache.room(class) {
            cache.put(class, number(block));
            assert!(!push(&mut cache, bin_offset(48), number(1)));
        }
        assert_eq!(cache.len(class), ThreadCache::capacity(class));
        for block in (1..=cache.room(class)).rev() {
            assert_eq!(pop(&mut cache, bin_offset(48)).addr(), block);
        }
        assert!(pop(&mut cache, bin_offset(48)).is_null());
    }
}
