//! How the table of regions grows while others read it.
//!
//! ```text
//! grower:   lock;  count > seen? somebody else grew, done
//!           write place [count]                              (1)
//!           count = count + 1, release                       (2);  unlock
//! reader:   count, acquire; places below it are initialised for good
//! ```
//!
//! Readers take no lock: the release at (2) makes (1) visible to whoever reads the new count. The
//! count is looked at again under the lock, so that threads which run out of memory at the same
//! time add one region between them, not one each.

use crate::base::Result;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// How many places of a table are in use: the machine's word or the model's.
pub(super) trait Count {
    fn get(&self) -> usize;
    fn publish(&self, count: usize);
}

macro_rules! count {
    ($type:ty) => {
        impl Count for $type {
            #[inline]
            fn get(&self) -> usize {
                self.load(Ordering::Acquire)
            }
            fn publish(&self, count: usize) {
                self.store(count, Ordering::Release);
            }
        }
    };
}
count!(AtomicUsize);
#[cfg(loom)]
count!(crate::sync::atomic::model::AtomicUsize);

/// Fills the first place that is not in use with `add` and publishes it, unless the table has
/// grown since it had `seen` places. `lock` gives the guard of the table's lock.
pub(super) fn add_unless_grown<C: Count, G>(
    count: &C,
    seen: usize,
    lock: impl FnOnce() -> G,
    add: impl FnOnce(usize) -> Result<()>,
) -> Result<()> {
    let _guard = lock();
    let now = count.get();
    if now > seen {
        return Ok(());
    }
    add(now)?;
    count.publish(now + 1);
    Ok(())
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::base::Error;
    use crate::sync::atomic::model::AtomicUsize;
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Mutex};

    struct Table {
        count: AtomicUsize,
        lock: Mutex<()>,
        places: [UnsafeCell<u32>; 3],
    }

    impl Table {
        fn new() -> Arc<Table> {
            Arc::new(Table {
                count: AtomicUsize::new(0),
                lock: Mutex::new(()),
                places: [(); 3].map(|()| UnsafeCell::new(0)),
            })
        }
        /// Loom fails the model where a read of a place and the write that filled it race.
        fn grow(&self, seen: usize) -> Result<()> {
            let lock = || self.lock.lock().unwrap();
            add_unless_grown(&self.count, seen, lock, |index| {
                self.places[index].with_mut(|_| ());
                Ok(())
            })
        }
        fn read(&self) -> usize {
            let count = self.count.get();
            for place in &self.places[..count] {
                place.with(|_| ());
            }
            count
        }
    }

    // In the models the main thread grows and another reads: loom runs the main thread first and
    // then looks for other orders of what it did, which a load before a later store does not make
    // it find. The first model checks at its end that all orders have been run.

    /// Two threads find the same table full while a third reads it: it grows by one.
    #[test]
    fn those_who_saw_the_same_table_grow_it_once() {
        let seen = std::sync::Arc::new(std::sync::Mutex::new([0; 2]));
        let record = seen.clone();
        loom::model(move || {
            let table = Table::new();
            let reader = {
                let table = table.clone();
                loom::thread::spawn(move || table.read())
            };
            let grower = {
                let table = table.clone();
                loom::thread::spawn(move || table.grow(0).unwrap())
            };
            table.grow(0).unwrap();
            assert_eq!(table.read(), 1);
            grower.join().unwrap();
            record.lock().unwrap()[reader.join().unwrap()] += 1;
            assert_eq!(table.read(), 1);
        });
        assert!(seen.lock().unwrap().iter().all(|&runs| runs > 0));
    }

    /// Each takes up to two steps from what it saw last: the places follow one another, none is
    /// filled twice, and a failure publishes nothing.
    #[test]
    fn growth_follows_growth() {
        loom::model(|| {
            let table = Table::new();
            let other = {
                let table = table.clone();
                loom::thread::spawn(move || {
                    let seen = table.read();
                    table.grow(seen).unwrap();
                    assert!(table.read() > seen);
                })
            };
            let full = Error::TableFull { slots: 0 };
            let failed = add_unless_grown(
                &table.count,
                0,
                || table.lock.lock().unwrap(),
                |index| {
                    table.places[index].with_mut(|_| ());
                    Err(full)
                },
            );
            assert!(failed.is_ok_and(|()| table.read() >= 1) || failed == Err(full));
            let seen = table.read();
            table.grow(seen).unwrap();
            other.join().unwrap();
            assert!((1..=2).contains(&table.read()));
        });
    }
}
