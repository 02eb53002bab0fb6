//! One key's place in a map, found once.
#![allow(unsafe_code)] // references to entries by index

use core::fmt;
use core::hash::Hash;
use core::mem;

use super::ShmHashMap;
use super::table::Table;
use crate::base::Result;
use crate::ptr::ShmSafe;

/// The entry of a key, or the place for one; from [`ShmHashMap::entry`].
#[derive(Debug)]
pub enum Entry<'a, K: ShmSafe, V: ShmSafe> {
    /// The key has a value.
    Occupied(OccupiedEntry<'a, K, V>),
    /// The key has none.
    Vacant(VacantEntry<'a, K, V>),
}

/// An entry of a map.
pub struct OccupiedEntry<'a, K: ShmSafe, V: ShmSafe> {
    map: &'a mut ShmHashMap<K, V>,
    table: Table<K, V>,
    at: usize,
}

/// A key that is not in the map, and the map.
pub struct VacantEntry<'a, K: ShmSafe, V: ShmSafe> {
    map: &'a mut ShmHashMap<K, V>,
    key: K,
}

impl<K: ShmSafe + fmt::Debug, V: ShmSafe + fmt::Debug> fmt::Debug for OccupiedEntry<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OccupiedEntry").field(self.get()).finish()
    }
}
impl<K: ShmSafe + fmt::Debug, V: ShmSafe> fmt::Debug for VacantEntry<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VacantEntry").field(&self.key).finish()
    }
}

impl<'a, K: ShmSafe + Hash + Eq, V: ShmSafe> Entry<'a, K, V> {
    /// The value, `value` if there is none.
    pub fn or_insert(self, value: V) -> Result<&'a mut V> {
        self.or_insert_with(|| value)
    }
    /// The value, made if there is none.
    pub fn or_insert_with(self, make: impl FnOnce() -> V) -> Result<&'a mut V> {
        match self {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => entry.insert(make()),
        }
    }
    /// The value, the default one if there is none.
    pub fn or_default(self) -> Result<&'a mut V>
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }
    /// Changes the value, if there is one.
    pub fn and_modify(mut self, change: impl FnOnce(&mut V)) -> Self {
        if let Entry::Occupied(entry) = &mut self {
            change(entry.get_mut());
        }
        self
    }
}

impl<'a, K: ShmSafe, V: ShmSafe> OccupiedEntry<'a, K, V> {
    pub(super) fn new(map: &'a mut ShmHashMap<K, V>, table: Table<K, V>, at: usize) -> Self {
        OccupiedEntry { map, table, at }
    }
    /// The value.
    pub fn get(&self) -> &V {
        // SAFETY: an entry, which stays while the map is borrowed.
        unsafe { &(*self.table.slot(self.at)).value }
    }
    /// The value, to be changed.
    pub fn get_mut(&mut self) -> &mut V {
        // SAFETY: as above; the map is borrowed for this alone.
        unsafe { &mut (*self.table.slot(self.at)).value }
    }
    /// The value, for as long as the map is borrowed.
    pub fn into_mut(self) -> &'a mut V {
        // SAFETY: as above.
        unsafe { &mut (*self.table.slot(self.at)).value }
    }
    /// Replaces the value; gives the old one.
    pub fn insert(&mut self, value: V) -> V {
        mem::replace(self.get_mut(), value)
    }
    /// Takes the entry out.
    pub fn remove(self) -> (K, V) {
        let slot = self.map.take(self.table, self.at);
        (slot.key, slot.value)
    }
}

impl<'a, K: ShmSafe + Hash + Eq, V: ShmSafe> VacantEntry<'a, K, V> {
    pub(super) fn new(map: &'a mut ShmHashMap<K, V>, key: K) -> Self {
        VacantEntry { map, key }
    }
    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }
    /// Gives the key a value.
    pub fn insert(self, value: V) -> Result<&'a mut V> {
        let hash = self.map.hash(&self.key);
        Ok(&mut self.map.insert_new(hash, self.key, value)?.value)
    }
}
