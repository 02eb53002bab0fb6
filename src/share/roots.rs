//! Named roots: how processes find one another's objects in a heap.
//!
//! ```text
//! heap header: roots -> Directory, a block that is nobody's: ENTRIES x Entry (128 B)
//! Entry:  stamp | target | type | size | align, length of the name | name (80 B)
//! stamp:  even: free    odd: holds a root    each change adds 1
//! ```
//!
//! The stamp is the truth of an entry: storing it makes a root be there, or not be there any more.
//! The other words are written before, while it is even. So a process may die at any point, and a
//! name is there with all that belongs to it or not at all. Changes happen under the directory's
//! lock; a search takes none, and reads the stamp before and after the rest (a sequence lock).
//!
//! A stamp never comes back. It is the generation in a [`Root`]: one that was found before its
//! name was taken away is told from any that has the name, or the entry, later.
//!
//! What is published belongs to nobody: it outlives the process that published it. A process that dies
//! while it publishes leaves the name and its value, or neither (`heap::naming`).
#![allow(unsafe_code)] // writes values, gives references

use core::alloc::Layout;
use core::marker::PhantomData;

use crate::alloc::{Allocator, ThreadLocalAllocator};
use crate::base::{AllocatorId, Error, MemContext, Result};
use crate::ptr::{OffsetPtr, ShmSafe};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, Ordering::Relaxed, fence};

/// How many roots a heap can have.
const ENTRIES: usize = 128;
/// Bytes of a name, at most.
const NAME: usize = 80;
/// Only blocks of this size and more can be handed over.
const LEAST: usize = 32;

#[repr(C)]
struct Entry {
    stamp: AtomicU64,
    target: AtomicU64,
    type_hash: AtomicU64,
    size: AtomicU64,
    align: AtomicU32,
    name_len: AtomicU32,
    _pad: AtomicU64,
    name: [AtomicU64; NAME / 8],
}

const _: () = assert!(size_of::<Entry>() == 128);

#[repr(C)]
struct Directory {
    entries: [Entry; ENTRIES],
}

/// What an entry said at one moment.
#[derive(Clone, Copy)]
struct Snapshot {
    stamp: u64,
    target: u64,
    type_hash: u64,
    size: u64,
    align: u32,
    name: [u8; NAME],
    name_len: usize,
}

impl Snapshot {
    fn name(&self) -> &[u8] {
        self.name.get(..self.name_len).unwrap_or(&[])
    }
}

impl Entry {
    /// A consistent reading, where there is a root.
    fn read(&self) -> Option<Snapshot> {
        let stamp = self.stamp.load(Ordering::Acquire);
        if stamp & 1 == 0 {
            return None;
        }
        let mut name = [0; NAME];
        for (bytes, word) in name.chunks_exact_mut(8).zip(&self.name) {
            bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
        let snapshot = Snapshot {
            stamp,
            target: self.target.load(Relaxed),
            type_hash: self.type_hash.load(Relaxed),
            size: self.size.load(Relaxed),
            align: self.align.load(Relaxed),
            name,
            name_len: self.name_len.load(Relaxed) as usize,
        };
        fence(Ordering::Acquire);
        (self.stamp.load(Relaxed) == stamp).then_some(snapshot)
    }
}

/// A root that was found, or just published: where a `T` lies, and under which stamp.
#[derive(Debug)]
pub struct Root<T> {
    heap: AllocatorId,
    target: OffsetPtr<T>,
    entry: u32,
    stamp: u64,
    _type: PhantomData<fn() -> T>,
}

impl<T> Clone for Root<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Root<T> {}

impl<T> Root<T> {
    /// Where the value lies.
    pub fn offset(&self) -> OffsetPtr<T> {
        self.target
    }
    /// Changes with each publication; no two roots of a directory's entry have the same.
    pub fn generation(&self) -> u64 {
        self.stamp
    }
}

/// What there is to say about a root without knowing its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootInfo {
    /// Its name.
    pub name: String,
    /// Where the value lies.
    pub offset: OffsetPtr<u8>,
    /// Bytes of the value.
    pub size: usize,
    /// See [`Root::generation`].
    pub generation: u64,
}

/// The named roots of a heap.
///
/// ```
/// use hshm::{AllocatorId, Error, Region, Roots, ThreadLocalAllocator};
/// # let region = Region::anonymous(AllocatorId::new(77, 0), 16 << 20)?;
/// let alloc = ThreadLocalAllocator::shm_init(region)?;
/// let roots = Roots::of(&alloc);
/// roots.publish("answer", 42u64)?;
/// // In this process or in another one:
/// let found = roots.find::<u64>("answer")?;
/// // SAFETY: nobody writes to it, and nobody frees it.
/// assert_eq!(unsafe { roots.get(found)? }, &42);
/// assert!(roots.find::<i32>("answer").is_err());
/// roots.unpublish(found)?;
/// assert_eq!(roots.find::<u64>("answer").err(), Some(Error::NotFound));
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Roots<'a> {
    alloc: &'a ThreadLocalAllocator,
}

/// Two programs that call a type the same mean the same by it, as far as this can tell.
fn type_hash<T>() -> u64 {
    core::any::type_name::<T>().bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

impl<'a> Roots<'a> {
    /// The roots of the heap that `alloc` is for.
    pub fn of(alloc: &'a ThreadLocalAllocator) -> Self {
        Roots { alloc }
    }

    fn address<T>(&self, target: OffsetPtr<T>) -> *mut T {
        self.alloc.resolve(OffsetPtr::new(target.offset())).cast()
    }

    /// The directory, where there is one.
    fn directory(&self) -> Result<Option<&'a Directory>> {
        let at = self.alloc.engine().source().roots.load(Ordering::Acquire);
        if at == 0 {
            return Ok(None);
        }
        self.place(at).map(Some)
    }

    /// The directory at `at`, which the heap says: any number.
    fn place(&self, at: u64) -> Result<&'a Directory> {
        let room = self.alloc.usable_size(OffsetPtr::new(at)).map_err(|_| Error::Corrupt)?;
        let address = self.address(OffsetPtr::<u8>::new(at));
        if room < size_of::<Directory>() || !address.addr().is_multiple_of(align_of::<Directory>())
        {
            return Err(Error::Corrupt);
        }
        // SAFETY: a block of the heap, as large and as aligned as a directory, which is made of
        // atomics, for which any bits do; mapped as long as the allocator's region is.
        Ok(unsafe { &*address.cast::<Directory>() })
    }

    /// The directory, made now if there is none. Under its lock.
    fn make_directory(&self) -> Result<&'a Directory> {
        if let Some(found) = self.directory()? {
            return Ok(found);
        }
        let layout = Layout::new::<Directory>();
        let at = self.alloc.allocate_zeroed_offset(MemContext::DEFAULT, layout)?;
        self.name(at, 0, || {
            self.alloc.engine().source().roots.store(at.offset(), Ordering::Release);
        })?;
        self.place(at.offset())
    }

    /// Makes the block at `target` nobody's by giving it a name: `give` does that, by one store. See
    /// [`begin_naming`](crate::heap::layout::RegionHeap::begin_naming) for `stamp`. Under the
    /// directory's lock.
    fn name(&self, target: OffsetPtr<u8>, stamp: u64, give: impl FnOnce()) -> Result<()> {
        let engine = self.alloc.engine();
        let offset = usize::try_from(target.offset()).unwrap_or(usize::MAX);
        let block = engine.find_block(offset)?;
        engine.check_live(block)?;
        engine.begin_naming(offset, block, stamp)?;
        give();
        engine.end_naming(offset);
        Ok(())
    }

    fn search(directory: &Directory, name: &[u8]) -> Option<(u32, Snapshot)> {
        directory.entries.iter().enumerate().find_map(|(index, entry)| {
            let found = entry.read().filter(|found| found.name() == name)?;
            Some((index as u32, found))
        })
    }

    /// Puts a value into the heap, under a name of 1 to 80 bytes.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::BadName`], [`Error::TableFull`] with 128 roots,
    /// [`Error::OutOfMemory`].
    pub fn publish<T: ShmSafe>(&self, name: &str, value: T) -> Result<Root<T>> {
        let align = align_of::<T>().max(8);
        let layout = Layout::from_size_align(size_of::<T>().max(LEAST), align)
            .map_err(|_| Error::BadAlignment { align })?;
        let block = self.alloc.allocate_offset(MemContext::DEFAULT, layout)?;
        let target = OffsetPtr::<T>::new(block.offset());
        // SAFETY: just allocated, with room and alignment for a `T`.
        unsafe { self.address(target).write(value) };
        // SAFETY: the block holds a `T` and is this process's.
        let done = unsafe { self.publish_at(name, target) };
        if done.is_err() {
            // SAFETY: nobody has seen it. The value was written above, and goes with its block.
            unsafe {
                self.address(target).drop_in_place();
                self.alloc.free_offset(MemContext::DEFAULT, block)?;
            }
        }
        done
    }

    /// Gives a name to a value that is in the heap already; the block then is nobody's. For types
    /// that are not [`ShmSafe`], such as `Vec`s of this heap, which others may follow only where the
    /// heap is mapped at the same address.
    ///
    /// # Errors
    /// As [`publish`](Self::publish); [`Error::Unsupported`] for a block of less than 32 bytes.
    ///
    /// # Safety
    /// `target` is a block of this heap that belongs to this process and holds a `T`.
    pub unsafe fn publish_at<T>(&self, name: &str, target: OffsetPtr<T>) -> Result<Root<T>> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > NAME {
            return Err(Error::BadName);
        }
        let _guard = self.alloc.lock_roots()?;
        let directory = self.make_directory()?;
        if Self::search(directory, bytes).is_some() {
            return Err(Error::AlreadyExists);
        }
        let free = |entry: &&Entry| entry.stamp.load(Relaxed) & 1 == 0;
        let Some(index) = directory.entries.iter().position(|entry| free(&entry)) else {
            return Err(Error::TableFull { slots: ENTRIES });
        };
        let entry = &directory.entries[index];
        let stamp = entry.stamp.load(Relaxed).wrapping_add(1);
        let stamp_at = core::ptr::from_ref(&entry.stamp).addr() - self.alloc.base().addr();
        self.name(OffsetPtr::new(target.offset()), stamp_at as u64, || {
            // Who sees any of these words sees the stamp that was stored before them.
            fence(Ordering::Release);
            entry.target.store(target.offset(), Relaxed);
            entry.type_hash.store(type_hash::<T>(), Relaxed);
            entry.size.store(size_of::<T>() as u64, Relaxed);
            entry.align.store(align_of::<T>() as u32, Relaxed);
            entry.name_len.store(bytes.len() as u32, Relaxed);
            let mut padded = [0; NAME];
            padded[..bytes.len()].copy_from_slice(bytes);
            for (word, bytes) in entry.name.iter().zip(padded.chunks_exact(8)) {
                let bytes: [u8; 8] = bytes.try_into().unwrap_or_default();
                word.store(u64::from_ne_bytes(bytes), Relaxed);
            }
            entry.stamp.store(stamp, Ordering::Release);
        })?;
        Ok(Root { heap: self.alloc.id(), target, entry: index as u32, stamp, _type: PhantomData })
    }

    /// The root of this name. [`Error::NotFound`]; [`Error::Incompatible`] where it was published as
    /// another type, or as one of another size or alignment.
    pub fn find<T>(&self, name: &str) -> Result<Root<T>> {
        let directory = self.directory()?.ok_or(Error::NotFound)?;
        let (entry, found) = Self::search(directory, name.as_bytes()).ok_or(Error::NotFound)?;
        let same = |found: u64, expected: u64| match found == expected {
            true => Ok(()),
            false => Err(Error::Incompatible { found: found as u32, expected: expected as u32 }),
        };
        same(found.type_hash, type_hash::<T>())?;
        same(found.size, size_of::<T>() as u64)?;
        same(u64::from(found.align), align_of::<T>() as u64)?;
        let target = OffsetPtr::<T>::new(found.target);
        let room = self.alloc.usable_size(OffsetPtr::new(found.target))?;
        let address = self.address(target).addr();
        if room < size_of::<T>() || !address.is_multiple_of(align_of::<T>()) {
            return Err(Error::Corrupt);
        }
        let heap = self.alloc.id();
        Ok(Root { heap, target, entry, stamp: found.stamp, _type: PhantomData })
    }

    /// The value of a root. One that was unpublished since is [`Error::NotFound`], whatever has its
    /// name now; one of another heap is [`Error::ForeignPointer`].
    ///
    /// # Safety
    /// While the reference is used nobody frees the block, and nobody writes to the value but
    /// through atomics in it. For a type that is not [`ShmSafe`]: the heap is mapped where the
    /// publisher had it, and the publisher is a build of the same program.
    pub unsafe fn get<T>(&self, root: Root<T>) -> Result<&'a T> {
        self.check(root)?;
        // SAFETY: `find` and `publish` looked that there is a block with room for a `T`, aligned;
        // the rest is the caller's promise.
        Ok(unsafe { &*self.address(root.target) })
    }

    fn check<T>(&self, root: Root<T>) -> Result<&'a Entry> {
        let expected = self.alloc.id();
        if root.heap != expected {
            return Err(Error::ForeignPointer { found: root.heap, expected });
        }
        let directory = self.directory()?.ok_or(Error::NotFound)?;
        let entry = directory.entries.get(root.entry as usize).ok_or(Error::NotFound)?;
        if entry.stamp.load(Ordering::Acquire) == root.stamp {
            Ok(entry)
        } else {
            Err(Error::NotFound)
        }
    }

    /// Takes the name away. The block stays, nobody's: whoever unpublished it may take it over
    /// ([`ThreadLocalAllocator::transfer`]) or free it when nobody reads it any more. A root that is
    /// not there any more is [`Error::NotFound`].
    pub fn unpublish<T>(&self, root: Root<T>) -> Result<OffsetPtr<T>> {
        let _guard = self.alloc.lock_roots()?;
        let entry = self.check(root)?;
        entry.stamp.store(root.stamp.wrapping_add(1), Ordering::Release);
        Ok(root.target)
    }

    /// All roots, in no order.
    pub fn iter(&self) -> impl Iterator<Item = RootInfo> + 'a {
        let directory = self.directory().ok().flatten();
        directory.into_iter().flat_map(|directory| &directory.entries).filter_map(|entry| {
            let found = entry.read()?;
            Some(RootInfo {
                name: String::from_utf8_lossy(found.name()).into_owned(),
                offset: OffsetPtr::new(found.target),
                size: found.size as usize,
                generation: found.stamp,
            })
        })
    }
}
