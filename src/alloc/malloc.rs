//! `MallocAllocator`: the C library's heap behind the allocator trait.
//!
//! ```text
//!   raw            block - 32                block
//!    | alignment .. | next, size, lead, whose | bytes ...
//! ```
//!
//! The C library believes what it is told to free. Here offsets are addresses, anybody can make one up,
//! and a wrong one has to be refused; so every block is known by its address, in a hash table whose
//! links lie in the blocks themselves ([`Node`], before each). An address is looked up by comparing
//! it with those of blocks that are there, and is never looked into.
//!
//! The table is the process's, as the C library's heap is: 64 parts, each with a lock, which a fork
//! hook holds. A part's array of chains grows with what is in it; where there is no memory for that, the
//! chains get longer.
#![allow(unsafe_code)] // the C library's heap, and links in its blocks

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ptr::{self, null_mut};

use super::traits::{Allocator, BlockInfo};
use crate::base::{AllocatorId, Error, MemContext, Result, align_up};
use crate::os;
use crate::ptr::OffsetPtr;
use crate::region::Region;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, Ordering::Relaxed};
use crate::sync::lock::RawLock;

/// What lies before every block.
#[repr(C, align(16))]
struct Node {
    next: *mut Node,
    /// Bytes of the block.
    size: usize,
    /// Bytes from the C library's block to this one.
    lead: usize,
    /// The number of the [`MallocAllocator`].
    owner: u64,
}

const HEAD: usize = size_of::<Node>();
const _: () = assert!(HEAD == 32);
/// The alignment that `malloc` and `realloc` give.
const NATURAL: usize = 16;
const PARTS: usize = 64;
/// Blocks that a chain has before there are more chains, on average.
const LOAD: usize = 2;
/// Blocks up to this size stay as they are when they shrink.
const KEEP: usize = 4096;

/// The chains of one part; a power of two of them, or none yet.
struct Chains {
    heads: *mut *mut Node,
    count: usize,
    blocks: usize,
}

struct Part {
    lock: RawLock,
    chains: UnsafeCell<Chains>,
}

// SAFETY: the chains are reached under the lock only.
unsafe impl Sync for Part {}

static TABLE: [Part; PARTS] = [const {
    Part {
        lock: RawLock::new(),
        chains: UnsafeCell::new(Chains { heads: null_mut(), count: 0, blocks: 0 }),
    }
}; PARTS];

fn hash(block: usize) -> usize {
    (block >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Chains {
    /// The link that leads to the node of `block`, or the end of the chain where it would be.
    fn find(&mut self, block: usize) -> Option<*mut *mut Node> {
        if self.count == 0 {
            return None;
        }
        // SAFETY: `count` heads are there, a power of two; the links of the table lead to nodes of
        // blocks that are handed out, or end with null.
        unsafe {
            let mut link = self.heads.add(hash(block) >> 20 & (self.count - 1));
            while !(*link).is_null() && (*link).addr() + HEAD != block {
                link = &raw mut (**link).next;
            }
            Some(link)
        }
    }

    /// More chains, if there are many blocks and there is memory.
    fn grow(&mut self) {
        if self.blocks < self.count * LOAD {
            return;
        }
        let count = (self.count * 4).max(64);
        let Ok(heads) = os::c_alloc(count * size_of::<*mut Node>(), NATURAL) else { return };
        let heads: *mut *mut Node = ptr::with_exposed_provenance_mut(heads);
        // SAFETY: so many fit, and nobody else knows the array.
        unsafe {
            for index in 0..count {
                heads.add(index).write(null_mut());
            }
        }
        let mut old = Chains { heads, count, blocks: self.blocks };
        core::mem::swap(self, &mut old);
        for index in 0..old.count {
            // SAFETY: as in `find`; every node is taken off its old chain before it is put on a new
            // one.
            unsafe {
                let mut node = *old.heads.add(index);
                while !node.is_null() {
                    let next = (*node).next;
                    let head = self.heads.add(hash(node.addr() + HEAD) >> 20 & (count - 1));
                    (*node).next = *head;
                    *head = node;
                    node = next;
                }
            }
        }
        // A single head is the static one.
        if old.count > 1 {
            // SAFETY: the array came from `c_alloc`, and the new one has taken its place.
            unsafe { os::c_free(old.heads.expose_provenance()) };
        }
    }
}

/// Runs `work` on the part of the table that knows `block`.
fn with_part<R>(block: usize, work: impl FnOnce(&mut Chains) -> R) -> R {
    let part = &TABLE[hash(block) >> 58 & (PARTS - 1)];
    let _guard = part.lock.lock();
    // SAFETY: the lock is held.
    work(unsafe { &mut *part.chains.get() })
}

/// Registers hooks, once, that hold all locks across a fork.
pub(crate) fn hold_still_across_forks() {
    static REGISTERED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn take() {
        TABLE.iter().for_each(|part| part.lock.lock_raw());
    }
    extern "C" fn leave() {
        TABLE.iter().for_each(|part| part.lock.unlock_raw());
    }
    if REGISTERED.swap(1, Ordering::AcqRel) == 0 {
        // Without hooks a fork at the wrong moment may stop the child's next request; no more.
        let _ = os::at_fork(take, leave, leave);
    }
}

/// The C library's heap (HSHM's `MallocAllocator`): private to the process, for when its behaviour is
/// wanted, or a program should run without shared memory. Its id is null and its offsets are addresses,
/// so its [`ShmPtr`](crate::ShmPtr)s mean nothing to others, and
/// [`FullPtr::from_shm`](crate::FullPtr::from_shm) refuses them.
///
/// Each block costs 32 bytes beside what the C library adds, and a look into a table: a free is checked,
/// and anything but a live block of this allocator is refused. Blocks that are left when the allocator
/// is dropped stay allocated for good. The context of a call is ignored.
///
/// Not for use where this crate itself is the C library's heap.
///
/// ```
/// use hshm::{Allocator, MallocAllocator, MemContext};
/// let alloc = MallocAllocator::new();
/// let words = alloc.new_objs_with(MemContext::DEFAULT, 3, |n| format!("word {n}"))?;
/// // SAFETY: three strings were made, and nobody else uses them.
/// unsafe {
///     assert_eq!(*words.add(2).as_ptr(), "word 2");
///     alloc.del_objs(MemContext::DEFAULT, words, 3)?;
/// }
/// assert_eq!(alloc.currently_allocated_size(), 0);
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Debug)]
pub struct MallocAllocator {
    number: u64,
    bytes: AtomicUsize,
    region: Option<Region>,
}

impl MallocAllocator {
    /// A new allocator, which has no blocks yet.
    pub fn new() -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        hold_still_across_forks();
        let number = NUMBERS.fetch_add(1, Relaxed);
        MallocAllocator { number, bytes: AtomicUsize::new(0), region: None }
    }

    /// A new allocator whose custom header is that of `region`, in which no blocks lie.
    pub fn with_header(region: Region) -> Self {
        MallocAllocator { region: Some(region), ..Self::new() }
    }

    /// Bytes of addresses that the process may still take, or half of all there are: the C library says
    /// no more.
    pub fn available(&self) -> usize {
        os::address_room().min(isize::MAX as u64) as usize
    }

    fn out_of_memory(&self, requested: usize) -> Error {
        Error::OutOfMemory { requested, available: self.available() }
    }

    /// Enters a block of the C library's, whose first `lead` bytes are before the allocator's.
    ///
    /// # Safety
    /// The block is this function's alone and has `lead + size` bytes; `lead` is at least [`HEAD`] and
    /// a multiple of 16, the address one of 16.
    unsafe fn enter(&self, raw: usize, lead: usize, size: usize) -> OffsetPtr<u8> {
        let block = raw + lead;
        let node: *mut Node = ptr::with_exposed_provenance_mut(block - HEAD);
        // SAFETY: inside the block, aligned.
        unsafe { node.write(Node { next: null_mut(), size, lead, owner: self.number }) };
        with_part(block, |chains| {
            chains.grow();
            match chains.find(block) {
                // SAFETY: a link of the table, or a head of a chain.
                Some(link) => unsafe {
                    (*node).next = *link;
                    *link = node;
                },
                // No memory for the first chains of all: one will do, which is never given back.
                None => chains.start_with(node),
            }
            chains.blocks += 1;
        });
        self.bytes.fetch_add(size, Relaxed);
        OffsetPtr::new(block as u64)
    }

    /// Takes a block out of the table: from now on it is the caller's alone. Gives where the C library's
    /// begins, the lead, and the size.
    fn take_out(&self, block: OffsetPtr<u8>) -> Result<(usize, usize, usize)> {
        let address = block.offset() as usize;
        let refused = Error::NotABlock { offset: block.offset() };
        let found = with_part(address, |chains| {
            let link = chains.find(address).ok_or(refused)?;
            // SAFETY: a link of the table, which leads to a node or ends.
            unsafe {
                let node = *link;
                if node.is_null() || (*node).owner != self.number {
                    return Err(refused);
                }
                *link = (*node).next;
                chains.blocks -= 1;
                Ok((address - (*node).lead, (*node).lead, (*node).size))
            }
        })?;
        self.bytes.fetch_sub(found.2, Relaxed);
        Ok(found)
    }

    fn look_up(&self, block: OffsetPtr<u8>) -> Result<(usize, usize)> {
        let address = block.offset() as usize;
        let refused = Error::NotABlock { offset: block.offset() };
        with_part(address, |chains| {
            let link = chains.find(address).ok_or(refused)?;
            // SAFETY: as in `take_out`.
            unsafe {
                let node = *link;
                if node.is_null() || (*node).owner != self.number {
                    return Err(refused);
                }
                Ok(((*node).lead, (*node).size))
            }
        })
    }
}

impl Chains {
    fn start_with(&mut self, node: *mut Node) {
        static ONE: [AtomicUsize; PARTS] = [const { AtomicUsize::new(0) }; PARTS];
        let part = hash(node.addr() + HEAD) >> 58 & (PARTS - 1);
        let head = ONE[part].as_ptr().cast::<*mut Node>();
        // SAFETY: the place is static, as large as a pointer, and used under this part's lock alone.
        unsafe { head.write(node) };
        self.heads = head;
        self.count = 1;
    }
}

impl Default for MallocAllocator {
    fn default() -> Self {
        Self::new()
    }
}

/// The size of a block for `size` bytes: a multiple of 16, at least that.
fn rounded(size: usize) -> Option<usize> {
    align_up(size.max(1), NATURAL)
}

// SAFETY: blocks lie in blocks of the C library's, behind their nodes, aligned as those are; nobody
// else is given them until they are taken out of the table.
unsafe impl Allocator for MallocAllocator {
    /// The null id.
    fn id(&self) -> AllocatorId {
        AllocatorId::NULL
    }
    /// Null: offsets are addresses.
    fn base(&self) -> *mut u8 {
        null_mut()
    }
    fn region_len(&self) -> usize {
        usize::MAX
    }
    /// The region of the custom header, if there is one: no blocks lie there.
    fn backing(&self) -> Option<&Region> {
        self.region.as_ref()
    }
    fn allocate_offset(&self, _: MemContext, layout: Layout) -> Result<OffsetPtr<u8>> {
        let align = layout.align().max(NATURAL);
        let lead = align.max(HEAD);
        let none = || self.out_of_memory(layout.size());
        let size = rounded(layout.size()).ok_or_else(none)?;
        let all = size.checked_add(lead).filter(|&all| all <= isize::MAX as usize);
        let raw = os::c_alloc(all.ok_or_else(none)?, align).map_err(|_| none())?;
        // SAFETY: just allocated, with these sizes.
        Ok(unsafe { self.enter(raw, lead, size) })
    }
    unsafe fn reallocate_offset(
        &self,
        ctx: MemContext,
        old: OffsetPtr<u8>,
        new: Layout,
    ) -> Result<OffsetPtr<u8>> {
        let (lead, before) = self.look_up(old)?;
        let aligned = (old.offset() as usize).is_multiple_of(new.align());
        if aligned && new.size() <= before && (new.size() >= before / 2 || before <= KEEP) {
            return Ok(old);
        }
        let none = || self.out_of_memory(new.size());
        let size = rounded(new.size()).ok_or_else(none)?;
        let all = size.checked_add(HEAD).filter(|&all| all <= isize::MAX as usize);
        if lead != HEAD || new.align() > NATURAL || all.is_none() {
            // SAFETY: the caller's contract is the same, and the size is the block's.
            return unsafe { super::traits::move_block(self, ctx, old, before, new) };
        }
        let (raw, ..) = self.take_out(old)?;
        // SAFETY: out of the table, it is this function's alone.
        match unsafe { os::c_realloc(raw, all.unwrap_or(0)) } {
            // SAFETY: just reallocated, with these sizes.
            Ok(moved) => Ok(unsafe { self.enter(moved, HEAD, size) }),
            Err(_) => {
                // SAFETY: as it was before.
                unsafe { self.enter(raw, HEAD, before) };
                Err(none())
            }
        }
    }
    unsafe fn free_offset_no_null_check(&self, _: MemContext, block: OffsetPtr<u8>) -> Result<()> {
        let (raw, ..) = self.take_out(block)?;
        // SAFETY: the C library's block, which nobody knows any more.
        unsafe { os::c_free(raw) };
        Ok(())
    }
    fn usable_size(&self, block: OffsetPtr<u8>) -> Result<usize> {
        self.look_up(block).map(|(_, size)| size)
    }
    fn currently_allocated_size(&self) -> usize {
        self.bytes.load(Relaxed)
    }
    fn available(&self) -> usize {
        MallocAllocator::available(self)
    }
    fn visit_blocks(&self, visit: &mut dyn FnMut(BlockInfo)) -> Result<()> {
        for part in &TABLE {
            let _guard = part.lock.lock();
            // SAFETY: the lock is held.
            let chains = unsafe { &*part.chains.get() };
            for index in 0..chains.count {
                // SAFETY: as in `find`.
                unsafe {
                    let mut node = *chains.heads.add(index);
                    while !node.is_null() {
                        if (*node).owner == self.number {
                            let offset = OffsetPtr::new((node.addr() + HEAD) as u64);
                            visit(BlockInfo { offset, size: (*node).size, own: true });
                        }
                        node = (*node).next;
                    }
                }
            }
        }
        Ok(())
    }
    fn resolve(&self, offset: OffsetPtr<u8>) -> *mut u8 {
        ptr::with_exposed_provenance_mut(offset.offset() as usize)
    }
}
