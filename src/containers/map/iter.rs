//! Going through a map.
#![allow(unsafe_code)] // references to entries by index

use core::fmt;
use core::marker::PhantomData;

use super::super::heap;
use super::table::Table;
use super::{Borrowed, ShmHashMap};
use crate::ptr::ShmSafe;

/// The places with entries, in no order.
pub(super) struct Places<K, V> {
    table: Option<Table<K, V>>,
    at: usize,
    /// How many are left: an end, whatever the tags say.
    left: usize,
}

impl<K, V> Places<K, V> {
    pub(super) fn new(table: Option<Table<K, V>>, entries: usize) -> Self {
        Places { left: table.map_or(0, |table| entries.min(table.mask + 1)), table, at: 0 }
    }
    pub(super) fn next(&mut self) -> Option<(Table<K, V>, usize)> {
        let table = self.table?;
        self.left = self.left.checked_sub(1)?;
        let Some(found) = table.next_full(self.at) else {
            self.left = 0;
            return None;
        };
        self.at = found + 1;
        Some((table, found))
    }
}

macro_rules! iterator {
    ($(#[$doc:meta])* $name:ident, $item:ty, $slot:ident => $give:expr) => {
        $(#[$doc])*
        pub struct $name<'a, K, V> {
            places: Places<K, V>,
            _map: PhantomData<Borrowed<'a, K, V>>,
        }
        impl<'a, K, V> $name<'a, K, V> {
            pub(super) fn new(places: Places<K, V>) -> Self {
                $name { places, _map: PhantomData }
            }
        }
        impl<'a, K, V> Iterator for $name<'a, K, V> {
            type Item = $item;
            #[inline]
            fn next(&mut self) -> Option<$item> {
                let (table, at) = self.places.next()?;
                let $slot = table.slot(at);
                // SAFETY: the place has an entry, and is visited once; the map is borrowed as long
                // as the iterator, for it alone where it gives exclusive references.
                Some(unsafe { $give })
            }
            fn size_hint(&self) -> (usize, Option<usize>) {
                (self.places.left, Some(self.places.left))
            }
        }
        impl<K, V> ExactSizeIterator for $name<'_, K, V> {}
        impl<K, V> fmt::Debug for $name<'_, K, V> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("left", &self.places.left).finish()
            }
        }
    };
}

iterator!(
    /// The entries of a [`ShmHashMap`], in no order.
    Iter, (&'a K, &'a V), slot => (&(*slot).key, &(*slot).value)
);
iterator!(
    /// The entries of a [`ShmHashMap`], their values to be changed.
    IterMut, (&'a K, &'a mut V), slot => (&(*slot).key, &mut (*slot).value)
);

/// The entries of a [`ShmHashMap`], by value. What is not taken is dropped with it.
pub struct IntoIter<K: ShmSafe, V: ShmSafe> {
    places: Places<K, V>,
    /// Holds the block. It has no entries: they are counted here.
    map: ShmHashMap<K, V>,
}

impl<K: ShmSafe, V: ShmSafe> IntoIter<K, V> {
    pub(super) fn new(mut map: ShmHashMap<K, V>) -> Self {
        let places = map.places();
        map.entries = 0;
        IntoIter { places, map }
    }
}

impl<K: ShmSafe, V: ShmSafe> Iterator for IntoIter<K, V> {
    type Item = (K, V);
    fn next(&mut self) -> Option<(K, V)> {
        let (table, at) = self.places.next()?;
        // SAFETY: the place has an entry, which is read once, and counts no more.
        let slot = unsafe { table.slot(at).read() };
        Some((slot.key, slot.value))
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.places.left, Some(self.places.left))
    }
}

impl<K: ShmSafe, V: ShmSafe> ExactSizeIterator for IntoIter<K, V> {}

impl<K: ShmSafe, V: ShmSafe> Drop for IntoIter<K, V> {
    fn drop(&mut self) {
        if heap::owned(self.map.heap) {
            self.for_each(drop);
        }
    }
}

impl<K: ShmSafe, V: ShmSafe> fmt::Debug for IntoIter<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoIter").field("left", &self.places.left).finish()
    }
}
