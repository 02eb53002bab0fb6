//! `ShmHashMap`: keys and their values.
//!
//! ```text
//! ShmHashMap: heap's id | table | places - 1 | entries | places left | seed        48 bytes
//! ```
//!
//! One block holds the entries and their tags ([`table`]); a lookup touches a line of tags and the
//! entry. The hash is the map's own ([`hash`]), the same in every process. *Places left* is how many
//! entries may be put where none ever was, before the table is made anew: larger, or of the same size
//! where deleted entries take up the room.
#![allow(unsafe_code)] // references to entries in shared memory

mod entry;
mod hash;
mod iter;
mod table;

use core::borrow::Borrow;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::mem;
use core::ops::Index;

use self::hash::MapHasher;
use self::iter::Places;
use self::table::{Slot, Table, places_for, room};
use super::heap::{self, ShmHeap};
use crate::base::{AllocatorId, Error, Result};
use crate::os;
use crate::ptr::{OffsetPtr, ShmSafe};

pub use entry::{Entry, OccupiedEntry, VacantEntry};
pub use iter::{IntoIter, Iter, IterMut};

/// What an iterator borrows.
type Borrowed<'a, K, V> = &'a mut (K, V);

/// A hash map in a heap: a `HashMap` that can lie in shared memory and be used from any process.
///
/// What allocates can fail, and says so; the entry that found no room is dropped, the others stay as
/// they are. As with a `HashMap`, one owner changes it at a time: where several processes do, they
/// take turns, by a lock of theirs.
///
/// The `Hash` of the keys must write the same in all programs that use the map. That of numbers,
/// texts and [`ShmString`](crate::ShmString)s does.
///
/// ```
/// use hshm::{ShmHashMap, ShmHeap, ShmString};
/// # use hshm::{AllocatorId, Region, ThreadLocalAllocator};
/// # let region = Region::anonymous(AllocatorId::new(905, 0), 16 << 20)?;
/// # let heap = ShmHeap::of(Box::leak(Box::new(ThreadLocalAllocator::shm_init(region)?)))?;
/// let mut counts = ShmHashMap::new_in(heap);
/// for word in "to be or not to be".split(' ') {
///     // The key is only made for a word that is not there yet.
///     *counts.get_or_insert_with(word, || Ok((ShmString::from_in(word, heap)?, 0)))? += 1;
/// }
/// assert_eq!(counts["be"], 2);
/// assert_eq!(counts.get("question"), None);
/// assert_eq!(counts.iter().map(|(_, count)| count).sum::<i32>(), 6);
/// # Ok::<(), hshm::Error>(())
/// ```
#[repr(C)]
pub struct ShmHashMap<K: ShmSafe, V: ShmSafe> {
    heap: AllocatorId,
    /// Null where there is no table.
    table: OffsetPtr<Slot<K, V>>,
    mask: u64,
    entries: u64,
    left: u64,
    seed: u64,
    _owns: PhantomData<(K, V)>,
}

// SAFETY: an id, an offset and numbers; the destructor looks the id up where it runs.
unsafe impl<K: ShmSafe, V: ShmSafe> ShmSafe for ShmHashMap<K, V> {}

impl<K: ShmSafe, V: ShmSafe> ShmHashMap<K, V> {
    /// An empty map, which takes no memory yet.
    pub fn new_in(heap: ShmHeap) -> Self {
        ShmHashMap {
            heap: heap.id(),
            table: OffsetPtr::NULL,
            mask: 0,
            entries: 0,
            left: 0,
            seed: os::random_u64(),
            _owns: PhantomData,
        }
    }

    /// The heap that the entries are in.
    pub fn heap(&self) -> Result<ShmHeap> {
        ShmHeap::by_id(self.heap)
    }
    /// How many entries there are.
    #[inline]
    pub const fn len(&self) -> usize {
        self.entries as usize
    }
    /// Whether there are none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }
    /// How many entries there is room for, with those that are there.
    pub const fn capacity(&self) -> usize {
        (self.entries + self.left) as usize
    }

    fn try_table(&self) -> Result<Option<Table<K, V>>> {
        if self.table.is_null() {
            return Ok(None);
        }
        Table::at(self.heap, self.table.offset(), self.mask).map(Some)
    }

    /// The table, where there is one.
    #[inline]
    fn table(&self) -> Option<Table<K, V>> {
        match self.try_table() {
            Ok(table) => table,
            Err(error) => heap::lost(error),
        }
    }

    fn places(&self) -> Places<K, V> {
        Places::new(self.table(), self.len())
    }

    /// The entries, in no order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter::new(self.places())
    }
    /// The entries, their values to be changed.
    pub fn iter_mut(&mut self) -> IterMut<'_, K, V> {
        IterMut::new(self.places())
    }
    /// The keys, in no order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }
    /// The values, in no order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
    /// The values, to be changed.
    pub fn values_mut(&mut self) -> impl ExactSizeIterator<Item = &mut V> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// Drops all entries; the capacity stays.
    pub fn clear(&mut self) {
        let mut places = self.places();
        // First, so that none is dropped twice should a destructor panic.
        self.entries = 0;
        if let Some(table) = self.table() {
            // The tags tell `places` where entries are: they go afterwards, also after a panic.
            struct Forget<'a, K: ShmSafe, V: ShmSafe>(&'a mut ShmHashMap<K, V>, Table<K, V>);
            impl<K: ShmSafe, V: ShmSafe> Drop for Forget<'_, K, V> {
                fn drop(&mut self) {
                    self.1.forget_all();
                    self.0.left = room(self.1.mask + 1) as u64;
                }
            }
            let _forget = Forget(self, table);
            while let Some((table, at)) = places.next() {
                // SAFETY: an entry, visited once, that counts no more.
                unsafe { table.slot(at).drop_in_place() };
            }
        }
    }

    /// Drops all entries that do not satisfy `keep`.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        let mut places = self.places();
        while let Some((table, at)) = places.next() {
            // SAFETY: an entry; the map is borrowed for this alone.
            let slot = unsafe { &mut *table.slot(at) };
            if !keep(&slot.key, &mut slot.value) {
                drop(self.take(table, at));
            }
        }
    }

    /// Takes the entry at a place out.
    fn take(&mut self, table: Table<K, V>, at: usize) -> Slot<K, V> {
        self.left = self.left.saturating_add(table.erase(at) as u64);
        self.entries = self.entries.saturating_sub(1);
        // SAFETY: an entry, whose tag has just gone.
        unsafe { table.slot(at).read() }
    }
}

impl<K: ShmSafe + Hash + Eq, V: ShmSafe> ShmHashMap<K, V> {
    /// An empty map with room for `capacity` entries.
    pub fn with_capacity_in(capacity: usize, heap: ShmHeap) -> Result<Self> {
        let mut map = Self::new_in(heap);
        map.reserve(capacity)?;
        Ok(map)
    }

    /// A map of what an iterator gives; of entries with one key the last counts.
    pub fn from_iter_in(entries: impl IntoIterator<Item = (K, V)>, heap: ShmHeap) -> Result<Self> {
        let mut map = Self::new_in(heap);
        map.extend(entries)?;
        Ok(map)
    }

    #[inline]
    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        let mut hasher = MapHasher::new(self.seed);
        key.hash(&mut hasher);
        hasher.finish()
    }

    #[inline]
    fn find<Q>(&self, key: &Q) -> Option<(Table<K, V>, usize)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let table = self.table()?;
        let at = table.find(self.hash(key), |found| found.borrow() == key)?;
        Some((table, at))
    }

    /// The value of a key.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// A key as it is in the map, and its value.
    #[inline]
    pub fn get_key_value<Q>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (table, at) = self.find(key)?;
        // SAFETY: an entry, which stays while the map is borrowed.
        let slot = unsafe { &*table.slot(at) };
        Some((&slot.key, &slot.value))
    }

    /// The value of a key, to be changed.
    #[inline]
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (table, at) = self.find(key)?;
        // SAFETY: an entry; the map is borrowed for this alone.
        Some(unsafe { &mut (*table.slot(at)).value })
    }

    /// Whether there is an entry with this key.
    #[inline]
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.find(key).is_some()
    }

    /// Gives a key a value; the one it had, if it had one. The key in the map stays then.
    #[inline]
    pub fn insert(&mut self, key: K, value: V) -> Result<Option<V>> {
        let hash = self.hash(&key);
        if let Some(table) = self.table()
            && let Some(at) = table.find(hash, |found| *found == key)
        {
            // SAFETY: an entry; the map is borrowed for this alone.
            let old = unsafe { &mut (*table.slot(at)).value };
            return Ok(Some(mem::replace(old, value)));
        }
        self.insert_new(hash, key, value)?;
        Ok(None)
    }

    /// Puts an entry in whose key is not there, and says where.
    #[inline]
    fn insert_new(&mut self, hash: u64, key: K, value: V) -> Result<&mut Slot<K, V>> {
        let free = |table: Table<K, V>, left| {
            let at = table.find_free(hash)?;
            (left > 0 || table.tag(at) == table::DELETED).then_some((table, at))
        };
        let (table, at) = match self.table().and_then(|table| free(table, self.left)) {
            Some(found) => found,
            None => {
                self.rebuild(1)?;
                self.table().and_then(|table| free(table, self.left)).ok_or(Error::Corrupt)?
            }
        };
        self.left = self.left.saturating_sub((table.tag(at) == table::UNUSED) as u64);
        self.entries += 1;
        let slot = table.slot(at);
        // SAFETY: a place without an entry, which is one from here on.
        let slot = unsafe {
            slot.write(Slot { key, value });
            &mut *slot
        };
        table.set_tag(at, (hash >> 57) as u8);
        Ok(slot)
    }

    /// The value of a key, made with its key if there is none.
    ///
    /// # Errors
    /// What allocating gives, and what `make` gives. One that makes another key than the one asked for
    /// is [`Error::Unsupported`].
    #[inline]
    pub fn get_or_insert_with<Q>(
        &mut self,
        key: &Q,
        make: impl FnOnce() -> Result<(K, V)>,
    ) -> Result<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hash(key);
        if let Some(table) = self.table()
            && let Some(at) = table.find(hash, |found| found.borrow() == key)
        {
            // SAFETY: an entry; the map is borrowed for this alone.
            return Ok(unsafe { &mut (*table.slot(at)).value });
        }
        let (made, value) = make()?;
        if made.borrow() != key {
            return Err(Error::Unsupported);
        }
        Ok(&mut self.insert_new(hash, made, value)?.value)
    }

    /// The entry of a key, or the place for one.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        match self.find(&key) {
            Some((table, at)) => Entry::Occupied(OccupiedEntry::new(self, table, at)),
            None => Entry::Vacant(VacantEntry::new(self, key)),
        }
    }

    /// Takes an entry out: its value.
    #[inline]
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.remove_entry(key).map(|(_, value)| value)
    }

    /// Takes an entry out.
    #[inline]
    pub fn remove_entry<Q>(&mut self, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (table, at) = self.find(key)?;
        let slot = self.take(table, at);
        Some((slot.key, slot.value))
    }

    /// Puts in what an iterator gives. On an error, what came before it is in.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = (K, V)>) -> Result<()> {
        for (key, value) in entries {
            self.insert(key, value)?;
        }
        Ok(())
    }

    /// Makes room for `more` entries, at least.
    pub fn reserve(&mut self, more: usize) -> Result<()> {
        if more as u64 <= self.left { Ok(()) } else { self.rebuild(more) }
    }

    /// Gives back what has room for no entry. A failure leaves the capacity as it is.
    pub fn shrink_to_fit(&mut self) -> Result<()> {
        if self.entries == 0 {
            self.clear();
            self.free_table();
            return Ok(());
        }
        let places = places_for(self.len())?;
        if (places as u64) <= self.mask { self.move_to(places) } else { Ok(()) }
    }

    fn free_table(&mut self) {
        let old = mem::replace(&mut self.table, OffsetPtr::NULL);
        (self.mask, self.left) = (0, 0);
        if !old.is_null() {
            // SAFETY: the map's own block, without entries.
            unsafe { heap::free(self.heap, old.offset()) };
        }
    }

    /// A table with room for `more` entries. One that is mostly deleted entries gets no larger.
    #[cold]
    fn rebuild(&mut self, more: usize) -> Result<()> {
        let entries = self.len().checked_add(more).ok_or_else(heap::too_large)?;
        let places = if self.table.is_null() { 0 } else { self.mask.saturating_add(1) as usize };
        let places = match room(places) {
            room if entries <= room / 2 => places,
            room => places_for(entries.max(room.saturating_add(1)))?,
        };
        self.move_to(places)
    }

    /// Moves all entries to a new table. A panic in a key's `Hash` leaves everything as it was.
    fn move_to(&mut self, places: usize) -> Result<()> {
        /// A table that is not the map's yet.
        struct Fresh(AllocatorId, u64);
        impl Drop for Fresh {
            fn drop(&mut self) {
                // SAFETY: nobody else knows the block.
                unsafe { heap::free(self.0, self.1) };
            }
        }
        let (block, new) = Table::<K, V>::allocate(self.heap, places)?;
        let fresh = Fresh(self.heap, block);
        let mut old = self.places();
        let mut moved = 0;
        while let Some((table, at)) = old.next() {
            let slot = table.slot(at);
            // SAFETY: an entry of the old table.
            let hash = self.hash(unsafe { &(*slot).key });
            let free = new.find_free(hash).filter(|_| moved < room(places));
            let free = free.ok_or(Error::Corrupt)?;
            // SAFETY: a free place of another block. The entry counts there as soon as that table
            // is the map's.
            unsafe { new.slot(free).copy_from_nonoverlapping(slot, 1) };
            new.set_tag(free, (hash >> 57) as u8);
            moved += 1;
        }
        mem::forget(fresh);
        self.free_table();
        self.table = OffsetPtr::new(block);
        self.mask = places as u64 - 1;
        self.entries = moved as u64;
        self.left = (room(places) - moved) as u64;
        Ok(())
    }
}

impl<K: ShmSafe, V: ShmSafe> Drop for ShmHashMap<K, V> {
    fn drop(&mut self) {
        // Where the heap is not known, nothing can be reached, and nothing freed.
        if heap::owned(self.heap)
            && let Ok(Some(table)) = self.try_table()
        {
            let mut places = Places::new(Some(table), self.len());
            while let Some((table, at)) = places.next() {
                // SAFETY: an entry, visited once, that is not used again.
                unsafe { table.slot(at).drop_in_place() };
            }
            // SAFETY: the map's own block.
            unsafe { heap::free(self.heap, self.table.offset()) };
        }
    }
}

impl<K: ShmSafe + Borrow<Q> + Hash + Eq, Q: Hash + Eq + ?Sized, V: ShmSafe> Index<&Q>
    for ShmHashMap<K, V>
{
    type Output = V;

    /// # Panics
    /// If the key is not there.
    fn index(&self, key: &Q) -> &V {
        match self.get(key) {
            Some(value) => value,
            None => panic!("the map has no such key"),
        }
    }
}

impl<K: ShmSafe + Hash + Eq, V: ShmSafe + PartialEq> PartialEq for ShmHashMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}
impl<K: ShmSafe + Hash + Eq, V: ShmSafe + Eq> Eq for ShmHashMap<K, V> {}

impl<K: ShmSafe + fmt::Debug, V: ShmSafe + fmt::Debug> fmt::Debug for ShmHashMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: ShmSafe, V: ShmSafe> IntoIterator for ShmHashMap<K, V> {
    type Item = (K, V);
    type IntoIter = IntoIter<K, V>;
    fn into_iter(self) -> IntoIter<K, V> {
        IntoIter::new(self)
    }
}
impl<'a, K: ShmSafe, V: ShmSafe> IntoIterator for &'a ShmHashMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;
    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}
impl<'a, K: ShmSafe, V: ShmSafe> IntoIterator for &'a mut ShmHashMap<K, V> {
    type Item = (&'a K, &'a mut V);
    type IntoIter = IterMut<'a, K, V>;
    fn into_iter(self) -> IterMut<'a, K, V> {
        self.iter_mut()
    }
}
