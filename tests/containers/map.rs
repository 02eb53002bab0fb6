//! `ShmHashMap` against `HashMap`.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use hshm::containers::Entry;
use hshm::{Error, MIB, ShmHashMap, ShmSafe, ShmString, ShmVec};

use super::common::{Counted, Place, Random};

/// Keys whose hashes are few: long paths, many equal tags.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[repr(transparent)]
struct Dense(u64);
// SAFETY: a number.
unsafe impl ShmSafe for Dense {}
impl Hash for Dense {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0 % 7).hash(state);
    }
}

fn run<K>(place: &Place, seed: u64, keys: usize, key: impl Fn(u64) -> K)
where
    K: ShmSafe + Hash + Eq + Copy + std::fmt::Debug,
{
    place.balanced(|heap| {
        let mut random = Random(seed);
        for _ in 0..8 {
            let (mut model, mut map) = (HashMap::new(), ShmHashMap::new_in(heap));
            let keys = 1 + random.below(keys);
            for step in 0..3000u64 {
                let k = key(random.below(keys) as u64);
                match random.below(14) {
                    0..=4 => {
                        let old = map.insert(k, Counted::new(step)).unwrap();
                        assert_eq!(old.map(|value| value.0), model.insert(k, step));
                    }
                    5..=7 => {
                        assert_eq!(map.remove(&k).map(|value| value.0), model.remove(&k));
                    }
                    8 => {
                        let value = map.get_or_insert_with(&k, || Ok((k, Counted::new(step))));
                        value.unwrap().0 += 1;
                        *model.entry(k).or_insert(step) += 1;
                    }
                    9 => {
                        let value = map.entry(k).and_modify(|value| value.0 += 2);
                        value.or_insert_with(|| Counted::new(step)).unwrap();
                        model.entry(k).and_modify(|value| *value += 2).or_insert(step);
                    }
                    10 => match map.entry(k) {
                        Entry::Occupied(entry) => {
                            let (_, value) = entry.remove();
                            assert_eq!(model.remove(&k), Some(value.0));
                        }
                        Entry::Vacant(_) => assert!(!model.contains_key(&k)),
                    },
                    11 if random.below(40) == 0 => {
                        let part = 2 + random.below(5) as u64;
                        map.retain(|_, value| value.0 % part != 0);
                        model.retain(|_, value| *value % part != 0);
                    }
                    12 if random.below(40) == 0 => match random.below(4) {
                        0 => {
                            map.clear();
                            model.clear();
                        }
                        1 => map.reserve(random.below(500)).unwrap(),
                        _ => map.shrink_to_fit().unwrap(),
                    },
                    _ => {
                        assert_eq!(map.get(&k).map(|value| value.0), model.get(&k).copied());
                        if let Some(value) = map.get_mut(&k) {
                            value.0 ^= 1;
                            *model.get_mut(&k).unwrap() ^= 1;
                        }
                    }
                }
                assert_eq!((map.len(), Counted::live()), (model.len(), model.len() as i64));
                assert!(map.capacity() >= map.len());
                if step % 64 == 0 {
                    let seen: HashMap<K, u64> =
                        map.iter().map(|(k, value)| (*k, value.0)).collect();
                    assert_eq!(seen, model);
                    map.values_mut().for_each(|value| value.0 += 1);
                    model.values_mut().for_each(|value| *value += 1);
                    assert_eq!(map.keys().len(), model.len());
                }
            }
            let half = model.len() / 2;
            for (k, value) in map.into_iter().take(half) {
                assert_eq!(model.remove(&k), Some(value.0));
            }
            assert_eq!(Counted::live(), 0);
        }
    });
}

#[test]
fn does_what_a_hash_map_does() {
    let place = Place::usual();
    run(&place, 1, 40, |n| n);
    run(&place, 2, 3000, |n| n << 32);
}

#[test]
fn equal_hashes_are_told_apart() {
    let place = Place::usual();
    run(&place, 3, 300, Dense);
}

#[test]
fn texts_and_what_they_own() {
    let place = Place::usual();
    place.balanced(|heap| {
        let mut random = Random(9);
        let mut model: HashMap<String, Vec<u64>> = HashMap::new();
        let mut map: ShmHashMap<ShmString, ShmVec<u64>> = ShmHashMap::new_in(heap);
        for n in 0..20_000 {
            let key = format!("{:>1$}", random.below(900), random.below(3) * 20);
            match random.below(5) {
                0 => assert_eq!(map.remove(key.as_str()).is_some(), model.remove(&key).is_some()),
                _ => {
                    let made = || Ok((ShmString::from_in(&key, heap)?, ShmVec::new_in(heap)));
                    map.get_or_insert_with(key.as_str(), made).unwrap().push(n).unwrap();
                    model.entry(key).or_default().push(n);
                }
            }
        }
        assert_eq!(map.len(), model.len());
        assert!(model.iter().all(|(key, value)| map[key.as_str()].as_slice() == value.as_slice()));
        let other = map
            .get_or_insert_with("x", || Ok((ShmString::from_in("y", heap)?, ShmVec::new_in(heap))));
        assert_eq!(other.err(), Some(Error::Unsupported));
        assert!(!map.contains_key("x") && !map.contains_key("y"));
    });
}

#[test]
fn running_out_of_memory() {
    let place = Place::with(16 * MIB);
    place.balanced(|heap| {
        let mut map = ShmHashMap::new_in(heap);
        let mut n = 0u64;
        let error = loop {
            match map.insert(n, Counted::new(!n)) {
                Ok(old) => assert!(old.is_none()),
                Err(error) => break error,
            }
            n += 1;
        };
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(n > 50_000 && map.len() as u64 == n && Counted::live() as u64 == n);
        assert!((0..n).all(|key| map[&key].0 == !key));
        // What is there can be changed.
        assert_eq!(map.insert(5, Counted::new(1)).unwrap().map(|old| old.0), Some(!5));
        map.remove(&7).unwrap();
        assert!(map.insert(7, Counted::new(2)).is_ok(), "the place of the one that went");
        assert!(map.reserve(usize::MAX).is_err() && map.reserve(1 << 50).is_err());
        drop(map);
    });
}

/// A key that panics when it is hashed, after so many times.
#[derive(Debug, PartialEq, Eq)]
#[repr(transparent)]
struct Bomb(u64);
// SAFETY: a number.
unsafe impl ShmSafe for Bomb {}
thread_local!(static FUSE: std::cell::Cell<u32> = const { std::cell::Cell::new(u32::MAX) });
impl Hash for Bomb {
    fn hash<H: Hasher>(&self, state: &mut H) {
        FUSE.set(FUSE.get() - 1);
        assert!(FUSE.get() > 0, "bang");
        self.0.hash(state);
    }
}

#[test]
fn a_panic_in_a_hash_changes_nothing() {
    let place = Place::usual();
    place.balanced(|heap| {
        FUSE.set(u32::MAX);
        let mut map = ShmHashMap::with_capacity_in(7, heap).unwrap();
        for n in 0..7 {
            map.insert(Bomb(n), Counted::new(n)).unwrap();
        }
        for fuse in 1..9 {
            FUSE.set(fuse);
            // The seven are moved to a larger table for this one.
            let push = std::panic::AssertUnwindSafe(|| map.insert(Bomb(7), Counted::new(7)));
            assert!(std::panic::catch_unwind(push).is_err(), "{fuse}");
            FUSE.set(u32::MAX);
            assert_eq!((map.len(), Counted::live()), (7, 7));
            assert!((0..7).all(|n| map.get(&Bomb(n)).is_some_and(|value| value.0 == n)));
        }
        FUSE.set(u32::MAX);
        map.insert(Bomb(7), Counted::new(7)).unwrap();
        assert_eq!(map.len(), 8);
    });
}
