use super::*;
use crate::sync::atomic::AtomicBool;

/// Records without memory behind them: what is tested here only looks at the numbers. Every
/// field follows from `n`, so that a mixture shows.
fn fake(n: usize) -> Entry {
    Entry {
        base: 0x10_0000 * (n + 1),
        len: 4096 * (n + 1),
        id: AllocatorId::new(0x0FAC_0000 + n as u32, 0),
        nonce: n as u64,
        fd: None,
        file: (0, 0),
        kind: BackendKind::Array,
        flags: 0,
        file_at: 0,
        payload: 4096,
        parent: None,
    }
}

fn is_whole(found: &Snapshot, n: usize) -> bool {
    let whole = fake(n);
    (found.base, found.len, found.id) == (whole.base, whole.len, whole.id)
}

#[test]
fn readers_never_see_a_mixture() {
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let readers = [0, 1].map(|turn| {
            let stop = &stop;
            scope.spawn(move || {
                let mut seen = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    for n in [turn, 1 - turn, 2] {
                        if let Some((_, found)) = by_id(fake(n).id) {
                            assert!(is_whole(&found, n), "{n}: {found:?}");
                            seen += 1;
                        }
                        if let Some((_, found)) = find_snapshot(fake(n).base + 1) {
                            assert!(is_whole(&found, n), "{n}: {found:?}");
                            seen += 1;
                        }
                    }
                }
                seen
            })
        });
        // Three regions take turns in the same record, with every kind of neighbour in the
        // id table.
        for round in 0..60_000 {
            let index = publish(&fake(round % 3), true).unwrap();
            assert!(release(index).is_some());
        }
        stop.store(true, Ordering::Relaxed);
        readers.map(|reader| reader.join().unwrap())
    });
    assert!(seen.iter().sum::<u64>() > 0);
}

#[test]
fn slots_and_odd_places() {
    let slot = |n: usize| n << SLOT_SHIFT;
    // Above what is placed at random, and below what the kernel picks.
    let (first, long) = (slot(1500), slot(1502));
    let entry = |n: usize, base, len| Entry { base, len, ..fake(n) };
    let a = publish(&entry(10, first, SLOT), true).unwrap();
    let b = publish(&entry(11, long, 2 * SLOT + 4096), true).unwrap();
    let found = |address: usize| find_snapshot(address).map(|(index, _)| index);
    assert_eq!(found(first), Some(a));
    assert_eq!(found(first + SLOT - 1), Some(a));
    assert_eq!(found(first + SLOT), None);
    assert_eq!(found(long + 2 * SLOT + 4095), Some(b));
    assert_eq!(found(long + 2 * SLOT + 4096), None);
    assert!(!slot_is_free(1504) && slot_is_free(1505));
    // A region in the unused rest of a slot is found all the same, and leaves the slot alone.
    let c = publish(&entry(12, long + 2 * SLOT + 8192, 4096), true).unwrap();
    assert_eq!(found(long + 2 * SLOT + 8192), Some(c));
    assert_eq!(publish(&entry(12, 0x1000, 4096), true), Err(Error::AlreadyExists));
    for index in [a, c, b] {
        assert!(release(index).is_some());
    }
    assert_eq!((found(first), found(long + 2 * SLOT)), (None, None));
    assert!((1500..1506).all(slot_is_free));
    assert_eq!(found(usize::MAX), None);
    assert_eq!(found(0), None);
}

#[test]
fn the_innermost_region_is_found() {
    let outer = Entry { base: 0x7_0000_0000, len: 0x10_0000, ..fake(30) };
    let outer_index = publish(&outer, true).unwrap();
    let found = |address: usize| find_snapshot(address).map(|(index, _)| index);
    let inside = |n, base, len, parent| {
        publish(&Entry { base, len, parent: Some(parent), ..fake(n) }, true).unwrap()
    };
    let first = inside(31, 0x7_0001_0000, 0x2_0000, outer_index);
    let second = inside(32, 0x7_0004_0000, 0x1_0000, outer_index);
    let deep = inside(33, 0x7_0002_0000, 0x1_0000, first);
    for (address, wanted) in [
        (0x7_0000_0000, outer_index),
        (0x7_0001_0000, first),
        (0x7_0001_FFFF, first),
        (0x7_0002_0000, deep),
        (0x7_0002_FFFF, deep),
        (0x7_0003_0000, outer_index),
        (0x7_0004_8000, second),
        (0x7_000F_FFFF, outer_index),
    ] {
        assert_eq!(found(address), Some(wanted), "{address:#x}");
    }
    assert_eq!(found(0x7_0010_0000), None);
    assert_eq!(nested_at(outer_index, 0x7_0004_0000).map(|found| found.0), Some(second));
    assert!(nested_at(outer_index, 0x7_0002_0000).is_none());
    assert!(release(deep).is_some() && release(first).is_some());
    assert_eq!(found(0x7_0002_0000), Some(outer_index));
    assert!(release(second).is_some() && release(outer_index).is_some());
    assert_eq!(found(0x7_0004_0000), None);
}

#[test]
fn references_keep_a_record() {
    let index = publish(&fake(20), true).unwrap();
    let seen = snapshot(index).unwrap();
    retain(index);
    assert!(try_retain(index, &seen));
    assert!(release(index).is_none() && release(index).is_none());
    assert!(release(index).is_some());
    assert!(!try_retain(index, &seen));
    assert_ne!(snapshot(index), Some(seen));
}

/// Another segment in a record's place has none of the ids that it had: its own is a second mapping's, if there is
/// one, and what else named it is free.
#[test]
fn a_segment_that_is_replaced_leaves_its_ids() {
    let alias = AllocatorId::new(0x0FAC_0000, 7);
    let first = publish(&fake(50), true).unwrap();
    let again = Entry { base: fake(51).base, ..fake(50) };
    let second = publish(&again, false).unwrap();
    bind(alias, first).unwrap();
    let found = |id| by_id(id).map(|(index, _)| index);
    assert_eq!((found(fake(50).id), found(alias)), (Some(first), Some(first)));
    replace(first, &Entry { base: fake(50).base, len: fake(50).len, ..fake(52) });
    assert_eq!(found(fake(52).id), Some(first));
    assert_eq!(found(fake(50).id), Some(second));
    assert_eq!(unbind(alias, first), Err(Error::UnknownAllocator { id: alias }));
    let third = publish(&Entry { id: alias, ..fake(53) }, true).unwrap();
    assert_eq!(found(alias), Some(third));
    for index in [third, second, first] {
        assert!(release(index).is_some());
    }
    assert!([50, 52].iter().all(|&n| found(fake(n).id).is_none()));
}
