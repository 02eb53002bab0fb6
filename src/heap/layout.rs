//! Where everything lies in a region, and a process's view of it.
//!
//! ```text
//! offset            what                                  size
//! 0                 region header (layer `region`)        1 page
//! heap header       [`HeapHeader`]                        192 B
//! process table     [`ProcessBlock`] x process slots + 2  192 B each; see `estate`, `visitor`
//! thread table      [`ThreadBlock`] x thread blocks + 1   64 B each; the last is the estate's
//! chunk table       [`ChunkEntry`] x chunks               64 B each
//! recycled bitmap   1 bit a chunk
//! granule map       [`Entry`] x granules                  4 B each
//! slab descriptors  [`SlabDesc`] x granules               128 B each
//! bit areas         [`BitArea`] x granules                1088 B each
//! keepers           2 B x 32 bytes of data                4096 B each; only where asked for
//! first granule     data, in chunks of 64 granules
//! ```
//!
//! Every table has a fixed place, so nothing is ever allocated to describe an allocation, and zero
//! is the right initial value of every entry: a fresh segment needs no writing, and pages of the
//! tables become resident only where the heap uses their granules. Chunks are numbered from offset
//! 0; the granules that the tables themselves cover are not part of any chunk's free space, nor
//! are those past the end of the region in the last one.
//!
//! A [`RegionHeap`] is one process's view: addresses computed from offsets, in private memory.
#![allow(unsafe_code)] // computes places in a mapped region

use core::mem::size_of;
use core::ptr::NonNull;

use super::chunk::ChunkEntry;
use super::granule::{BlockId, Entry, GranuleIdx};
use super::huge::{HugePages, Refusals};
use super::liveness::Own;
use super::process::ProcessBlock;
use super::slab::{BitArea, SlabDesc};
use super::thread::ThreadBlock;
use super::touches::Touches;
use crate::base::units::{CHUNK, GRANULE, GRANULE_SHIFT, GRANULES_PER_CHUNK, PAGE};
use crate::base::{Error, Result, align_up};
use crate::region::Region;
use crate::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::sync::lock::RawLock;
use crate::sync::shm_lock::ShmLock;

/// "hshmheap"
const MAGIC: u64 = u64::from_le_bytes(*b"hshmheap");
/// Changes whenever the meaning of any byte of the tables does.
const VERSION: u32 = 8;
/// What the region header's `engine_kind` says of such a region.
pub(crate) const ENGINE_KIND: u32 = 1;
/// The same for a region with an in-band heap.
pub(crate) const IN_BAND_ENGINE: u32 = 2;

/// Most process slots a region can have.
pub(crate) const MAX_PROCESSES: u32 = 1024;
/// Most thread blocks a region can have (their ids fit 16 bits, 0 is nobody).
pub(crate) const MAX_THREAD_BLOCKS: u32 = 16 * 1024;

/// Index of a process's entry in the region's process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct ProcessSlot(pub(crate) u32);

/// Index of a chunk in its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct ChunkIdx(pub(crate) u32);

/// How many slots the tables of a new region have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableSizes {
    pub(crate) processes: u32,
    pub(crate) thread_blocks: u32,
    /// Whether blocks can change hands one by one; see `keeper`.
    pub(crate) keepers: bool,
    /// Whether the region's name goes with the last process.
    pub(crate) temporary: bool,
}

/// Bytes of data that share one keeper.
pub(crate) const KEEPER_UNIT: usize = 32;
pub(crate) const KEEPERS_PER_GRANULE: usize = GRANULE / KEEPER_UNIT;

impl Default for TableSizes {
    fn default() -> Self {
        TableSizes {
            processes: 256,
            thread_blocks: MAX_THREAD_BLOCKS,
            keepers: true,
            temporary: false,
        }
    }
}

/// The heap's own header.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct HeapHeader {
    /// Written once; read once by each process that attaches.
    fixed: Fixed,
    /// Cache lines of its own: what changes.
    pub(crate) source: SourceState,
}

/// What shape a heap has. All offsets are from the region's base, in bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Fixed {
    magic: u64,
    version: u32,
    process_slots: u32,
    thread_blocks: u32,
    granules: u32,
    chunks: u32,
    first_granule: u32,
    process_table: u64,
    thread_table: u64,
    chunk_table: u64,
    recycled: u64,
    granule_map: u64,
    descs: u64,
    bit_areas: u64,
    /// 1 where pages that nobody ever wrote are zero, and purged ones again.
    zeroed: u64,
    /// 0 where there are none.
    keepers: u64,
    /// 1 where the region's name goes with the last process.
    temporary: u64,
    _pad: [u64; 2],
}

/// The heap source's shared state; see `chunk`.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct SourceState {
    /// Protects the chunk table's ownership words, the recycled bitmap and `fresh`.
    pub(crate) lock: ShmLock,
    /// Chunks below this index have been handed out at least once. Only grows.
    pub(crate) fresh: AtomicU32,
    /// Processes that ever attached, for diagnostics.
    pub(crate) attached: AtomicU32,
    /// Thread blocks below this index were taken at least once.
    pub(crate) blocks_high: AtomicU32,
    /// Frees that were refused: double, foreign, interior.
    pub(crate) refused_frees: AtomicU64,
    /// Whoever takes apart what a dead process left holds this one, the first of all in order.
    pub(crate) reaper: ShmLock,
    /// How often that happened.
    pub(crate) deaths: AtomicU32,
    /// Whoever changes the directory of named roots holds this one, before any other.
    pub(crate) roots_lock: ShmLock,
    _pad: AtomicU32,
    /// Where that directory lies; 0 where there is none yet.
    pub(crate) roots: AtomicU64,
    /// The block that is on its way to a name, 0 for none; and where that name will show. See `naming`.
    pub(super) naming: AtomicU64,
    pub(super) naming_stamp: AtomicU64,
}

/// Where the tables of a region of `granules` granules lie; the same sums at creation and at attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tables {
    process_table: u64,
    thread_table: u64,
    chunk_table: u64,
    recycled: u64,
    granule_map: u64,
    descs: u64,
    bit_areas: u64,
    keepers: u64,
    end: u64,
}

impl Tables {
    fn place(header: u64, processes: u32, blocks: u32, granules: u32, keepers: bool) -> Tables {
        let chunks = granules.div_ceil(GRANULES_PER_CHUNK as u32);
        let mut at = header + size_of::<HeapHeader>() as u64;
        let mut take = |count: u32, size: usize, align: u64| {
            at = at.next_multiple_of(align);
            let start = at;
            at += count as u64 * size as u64;
            start
        };
        let process_table = take(processes + 2, size_of::<ProcessBlock>(), 64);
        let thread_table = take(blocks + 1, size_of::<ThreadBlock>(), 64);
        let chunk_table = take(chunks, size_of::<ChunkEntry>(), 64);
        let recycled = take(chunks.div_ceil(64), size_of::<AtomicU64>(), 64);
        let granule_map = take(granules, size_of::<AtomicU32>(), 64);
        let descs = take(granules, size_of::<SlabDesc>(), 128);
        let bit_areas = take(granules, size_of::<BitArea>(), 64);
        let keepers = if keepers { take(granules, KEEPERS_PER_GRANULE * 2, 64) } else { 0 };
        let end = at;
        Tables {
            process_table,
            thread_table,
            chunk_table,
            recycled,
            granule_map,
            descs,
            bit_areas,
            keepers,
            end,
        }
    }
}

/// One process's view of a region with a heap in it.
#[derive(Debug)]
pub(crate) struct RegionHeap {
    region: Region,
    base: NonNull<u8>,
    header: NonNull<HeapHeader>,
    processes: NonNull<ProcessBlock>,
    blocks: NonNull<ThreadBlock>,
    chunks: NonNull<ChunkEntry>,
    recycled: NonNull<AtomicU64>,
    map: NonNull<AtomicU32>,
    descs: NonNull<SlabDesc>,
    areas: NonNull<BitArea>,
    keepers: Option<NonNull<AtomicU16>>,
    granules: u32,
    first_granule: u32,
    chunk_count: u32,
    process_slots: u32,
    block_count: u32,
    must_commit: bool,
    lazily_zero: bool,
    temporary: bool,
    /// Protects what this process owns of the region.
    pub(super) process_lock: RawLock,
    pub(super) huge: HugePages,
    /// How the system takes wishes for huge pages of this memory.
    pub(super) refusals: Refusals,
    pub(super) touches: Touches,
    /// The most bytes of chunks that this process's large blocks ever had.
    pub(super) most_large: AtomicU64,
    /// The system refused to commit pages lately.
    short: AtomicBool,
    /// What tells this registration from all others; see `liveness`.
    pub(super) own: Own,
}

// SAFETY: the view is addresses of shared tables whose fields are atomics; the plain fields of the
// view never change after creation.
unsafe impl Send for RegionHeap {}
// SAFETY: as above.
unsafe impl Sync for RegionHeap {}

impl RegionHeap {
    /// Lays the heap's tables out in a fresh region.
    ///
    /// Fails with [`Error::TooSmall`] where the tables would leave no granule for data, and with
    /// [`Error::AlreadyExists`] where the region has an engine already.
    pub(crate) fn create(region: Region, sizes: TableSizes) -> Result<RegionHeap> {
        region.claim_engine()?;
        let made = Self::lay_out(region.clone(), sizes);
        if made.is_err() {
            region.abandon_engine();
        }
        made
    }

    fn lay_out(region: Region, sizes: TableSizes) -> Result<RegionHeap> {
        let len = region.len();
        let base = region.base();
        if !base.addr().is_multiple_of(GRANULE) {
            return Err(Error::BadAlignment { align: GRANULE });
        }
        let granules = (len >> GRANULE_SHIFT).min(u32::MAX as usize) as u32;
        let processes = sizes.processes.clamp(1, MAX_PROCESSES);
        // Never more blocks than the region could feed: four to a granule, but at least 64.
        let blocks = sizes.thread_blocks.min(granules.saturating_mul(4).max(65)).clamp(2, 65534);
        let header_at = region.payload_offset() as u64;
        let tables = Tables::place(header_at, processes, blocks, granules, sizes.keepers);
        let first_granule = tables.end.div_ceil(GRANULE as u64);
        if first_granule >= granules as u64 {
            let minimum = (first_granule as usize + 1) * GRANULE;
            return Err(Error::TooSmall { given: len, minimum });
        }
        // What every process touches at once: header, process table, the first thread blocks.
        let eager = tables.chunk_table as usize;
        if region.must_commit() {
            region.commit(0, eager.min(tables.thread_table as usize + PAGE))?;
        }
        if !region.known_zero() {
            // SAFETY: the tables lie inside the region (`first_granule < granules`) and nobody else
            // uses the payload yet.
            unsafe {
                base.add(header_at as usize).write_bytes(0, (tables.end - header_at) as usize);
            }
        }
        // SAFETY: in range as above; the payload offset is page aligned, the header needs 64.
        let header = unsafe { base.add(header_at as usize).cast::<HeapHeader>() };
        // SAFETY: a fresh region's payload is ours alone; every field is plain data.
        unsafe {
            let fixed = Fixed {
                magic: MAGIC,
                version: VERSION,
                process_slots: processes,
                thread_blocks: blocks,
                granules,
                chunks: granules.div_ceil(GRANULES_PER_CHUNK as u32),
                first_granule: first_granule as u32,
                process_table: tables.process_table,
                thread_table: tables.thread_table,
                chunk_table: tables.chunk_table,
                recycled: tables.recycled,
                granule_map: tables.granule_map,
                descs: tables.descs,
                bit_areas: tables.bit_areas,
                zeroed: region.known_zero() as u64,
                keepers: tables.keepers,
                temporary: sizes.temporary as u64,
                _pad: [0; 2],
            };
            header.write(HeapHeader {
                fixed,
                source: SourceState {
                    lock: ShmLock::new(),
                    fresh: AtomicU32::new(first_granule as u32 / GRANULES_PER_CHUNK as u32),
                    attached: AtomicU32::new(0),
                    blocks_high: AtomicU32::new(1),
                    refused_frees: AtomicU64::new(0),
                    reaper: ShmLock::new(),
                    deaths: AtomicU32::new(0),
                    roots_lock: ShmLock::new(),
                    _pad: AtomicU32::new(0),
                    roots: AtomicU64::new(0),
                    naming: AtomicU64::new(0),
                    naming_stamp: AtomicU64::new(0),
                },
            });
        }
        let view = Self::view(region.clone(), header_at)?;
        view.found_estate()?;
        region.finish_engine(ENGINE_KIND, header_at);
        Ok(view)
    }

    /// A view of a region that some process made with [`RegionHeap::create`].
    ///
    /// Everything read from the region is checked: any bytes give Ok or Err, and a view that is Ok
    /// has all of its tables inside the region.
    pub(crate) fn attach(region: Region) -> Result<RegionHeap> {
        let kind = region.header().engine_kind.load(Ordering::Acquire);
        let at = region.header().engine_offset.load(Ordering::Relaxed);
        if kind == 0 || kind == crate::region::ENGINE_MAKING {
            return Err(Error::NotReady);
        }
        if kind != ENGINE_KIND {
            return Err(Error::Incompatible { found: kind, expected: ENGINE_KIND });
        }
        Self::view(region, at)
    }

    fn view(region: Region, header_at: u64) -> Result<RegionHeap> {
        let len = region.len() as u64;
        let fits = header_at.checked_add(size_of::<HeapHeader>() as u64).is_some_and(|e| e <= len);
        if !fits || !header_at.is_multiple_of(64) || !region.base().addr().is_multiple_of(GRANULE) {
            return Err(Error::Corrupt);
        }
        let base = NonNull::new(region.base()).ok_or(Error::Corrupt)?;
        // SAFETY: checked to lie inside the mapping, aligned (base to a granule, offset to 64).
        let place = unsafe { base.add(header_at as usize).cast::<HeapHeader>() };
        // SAFETY: inside the mapping as above, and numbers only, for which all bits do. What is
        // checked is this copy: a hostile peer may write the page at any time.
        let header = unsafe { (&raw const (*place.as_ptr()).fixed).read_volatile() };
        if header.magic != MAGIC {
            return Err(Error::NotARegion);
        }
        if header.version != VERSION {
            return Err(Error::Incompatible { found: header.version, expected: VERSION });
        }
        let granules = header.granules;
        let (processes, blocks) = (header.process_slots, header.thread_blocks);
        if granules as u64 > len >> GRANULE_SHIFT
            || !(1..=MAX_PROCESSES).contains(&processes)
            || !(2..=65534).contains(&blocks)
        {
            return Err(Error::Corrupt);
        }
        let keepers = header.keepers;
        let tables = Tables::place(header_at, processes, blocks, granules, keepers != 0);
        let stored = Tables {
            process_table: header.process_table,
            thread_table: header.thread_table,
            chunk_table: header.chunk_table,
            recycled: header.recycled,
            granule_map: header.granule_map,
            descs: header.descs,
            bit_areas: header.bit_areas,
            keepers,
            end: tables.end,
        };
        let first_granule = tables.end.div_ceil(GRANULE as u64);
        if stored != tables
            || first_granule != header.first_granule as u64
            || first_granule >= granules as u64
            || header.chunks != granules.div_ceil(GRANULES_PER_CHUNK as u32)
        {
            return Err(Error::Corrupt);
        }
        // SAFETY: every table was just computed to end at or before `first_granule`, inside the
        // region, and is aligned for its type (64 or 128 from a granule-aligned base).
        let at = |offset: u64| unsafe { base.add(offset as usize) };
        Ok(RegionHeap {
            base,
            header: place,
            processes: at(tables.process_table).cast(),
            blocks: at(tables.thread_table).cast(),
            chunks: at(tables.chunk_table).cast(),
            recycled: at(tables.recycled).cast(),
            map: at(tables.granule_map).cast(),
            descs: at(tables.descs).cast(),
            areas: at(tables.bit_areas).cast(),
            keepers: (keepers != 0).then(|| at(tables.keepers).cast()),
            granules,
            first_granule: first_granule as u32,
            chunk_count: granules.div_ceil(GRANULES_PER_CHUNK as u32),
            process_slots: processes,
            block_count: blocks,
            must_commit: region.must_commit(),
            lazily_zero: header.zeroed == 1,
            temporary: header.temporary == 1,
            process_lock: RawLock::new(),
            huge: HugePages::LargeHeaps,
            refusals: Refusals::default(),
            touches: Touches::default(),
            most_large: AtomicU64::new(0),
            short: AtomicBool::new(false),
            own: Own::default(),
            region,
        })
    }

    #[inline]
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }
    #[inline]
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
    #[inline]
    pub(crate) fn granules(&self) -> u32 {
        self.granules
    }
    #[inline]
    pub(crate) fn first_granule(&self) -> u32 {
        self.first_granule
    }
    #[inline]
    pub(crate) fn chunk_count(&self) -> u32 {
        self.chunk_count
    }
    #[inline]
    pub(crate) fn process_slots(&self) -> u32 {
        self.process_slots
    }
    #[inline]
    pub(crate) fn block_count(&self) -> u32 {
        self.block_count
    }
    /// A link of a list of chunks (index + 1, 0 for none); one that leads outside ends the list.
    #[inline]
    pub(crate) fn chunk_at(&self, link: u32) -> Option<ChunkIdx> {
        (link != 0 && link <= self.chunk_count).then(|| ChunkIdx(link - 1))
    }
    /// A link of a list of slabs of `granules` granules, likewise.
    #[inline]
    pub(crate) fn slab_at(&self, link: u32, granules: u32) -> Option<GranuleIdx> {
        let head = link.wrapping_sub(1);
        let inside = head >= self.first_granule && head <= self.granules.saturating_sub(granules);
        (link != 0 && inside).then_some(GranuleIdx(head))
    }
    /// Where data begins and ends, in bytes from the base.
    #[inline]
    pub(crate) fn data(&self) -> core::ops::Range<usize> {
        self.first_granule as usize * GRANULE..self.granules as usize * GRANULE
    }
    /// Granule indices are read from the region, too: a damaged one must not lead outside.
    #[inline]
    fn inside(&self, granule: GranuleIdx) -> GranuleIdx {
        GranuleIdx(granule.0.min(self.granules - 1))
    }
    /// Whether every page must be committed before it is touched, because a failed touch would be
    /// a signal.
    #[inline]
    pub(crate) fn must_commit(&self) -> bool {
        self.must_commit
    }
    /// Whether pages that were never touched read as zero.
    #[inline]
    pub(crate) fn lazily_zero(&self) -> bool {
        self.lazily_zero
    }
    #[inline]
    pub(crate) fn source(&self) -> &SourceState {
        // SAFETY: inside the region, checked by `view`; all fields are atomics.
        unsafe { &(*self.header.as_ptr()).source }
    }
    /// The entry of process `slot`: one below [`process_slots`](Self::process_slots), the
    /// [`estate`](Self::estate) or the [`visitor`](Self::visitor).
    #[inline]
    pub(crate) fn process(&self, slot: ProcessSlot) -> &ProcessBlock {
        let slot = slot.0.min(self.process_slots + 1);
        // SAFETY: the table has `process_slots + 2` entries inside the region; all fields are
        // atomics.
        unsafe { self.processes.add(slot as usize).as_ref() }
    }
    /// What has no process any more counts for this one; see `reap`.
    #[inline]
    pub(crate) fn estate(&self) -> ProcessSlot {
        ProcessSlot(self.process_slots)
    }
    /// The slot of a process that found none, for as long as it looks for a dead one's.
    #[inline]
    pub(crate) fn visitor(&self) -> ProcessSlot {
        ProcessSlot(self.process_slots + 1)
    }
    /// The estate's thread block, in which nobody allocates.
    #[inline]
    pub(crate) fn estate_block(&self) -> BlockId {
        BlockId(self.block_count as u16)
    }
    /// The thread block `id`; ids past the table give block 0, which is nobody's.
    #[inline]
    pub(crate) fn block(&self, id: BlockId) -> &ThreadBlock {
        let index = if (id.0 as u32) <= self.block_count { id.0 as usize } else { 0 };
        // SAFETY: the table has `block_count + 1` entries inside the region; all fields are atomics.
        unsafe { self.blocks.add(index).as_ref() }
    }
    #[inline]
    pub(crate) fn chunk(&self, index: ChunkIdx) -> &ChunkEntry {
        // Indices are read from the region, too: a damaged one must not lead outside.
        let index = index.0.min(self.chunk_count - 1);
        // SAFETY: the table has `chunk_count` entries, at least one, inside the region; all fields
        // are atomics.
        unsafe { self.chunks.add(index as usize).as_ref() }
    }
    /// Word `word` of the bitmap of recycled chunks.
    #[inline]
    pub(crate) fn recycled(&self, word: u32) -> &AtomicU64 {
        let word = word.min(self.chunk_count.div_ceil(64) - 1);
        // SAFETY: the bitmap has `chunk_count / 64` words, rounded up, inside the region.
        unsafe { self.recycled.add(word as usize).as_ref() }
    }
    /// The granule map's first word.
    pub(crate) fn granule_map(&self) -> *const AtomicU32 {
        self.map.as_ptr()
    }
    #[inline]
    pub(crate) fn entry(&self, granule: GranuleIdx) -> Entry {
        let granule = self.inside(granule);
        // SAFETY: the map has `granules` entries inside the region.
        Entry(unsafe { self.map.add(granule.0 as usize).as_ref() }.load(Ordering::Acquire))
    }
    /// Writes an entry: the atomic store that commits a slab or a run, or ends it.
    #[inline]
    pub(crate) fn set_entry(&self, granule: GranuleIdx, entry: Entry) {
        let granule = self.inside(granule);
        // SAFETY: as for `entry`.
        unsafe { self.map.add(granule.0 as usize).as_ref() }.store(entry.0, Ordering::Release);
    }
    /// Ends a run or a large block: of all who try, one wins.
    #[inline]
    pub(crate) fn end_entry(&self, granule: GranuleIdx, seen: Entry) -> bool {
        let granule = self.inside(granule);
        // SAFETY: as for `entry`.
        unsafe { self.map.add(granule.0 as usize).as_ref() }
            .compare_exchange(seen.0, Entry::FREE.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
    #[inline]
    pub(crate) fn desc(&self, granule: GranuleIdx) -> &SlabDesc {
        let granule = self.inside(granule);
        // SAFETY: the table has `granules` entries inside the region; all fields are atomics.
        unsafe { self.descs.add(granule.0 as usize).as_ref() }
    }
    #[inline]
    pub(crate) fn area(&self, granule: GranuleIdx) -> &BitArea {
        let granule = self.inside(granule);
        // SAFETY: the table has `granules` entries inside the region; all fields are atomics.
        unsafe { self.areas.add(granule.0 as usize).as_ref() }
    }
    /// Who keeps the block at `offset`: the word of its first 32 bytes. `None` in a heap without.
    #[inline]
    pub(crate) fn keeper(&self, offset: usize) -> Option<&AtomicU16> {
        let index = (offset / KEEPER_UNIT).min(self.granules as usize * KEEPERS_PER_GRANULE - 1);
        // SAFETY: the table has that many words for every granule, inside the region.
        self.keepers.map(|keepers| unsafe { keepers.add(index).as_ref() })
    }
    /// Commits the words behind [`keeper`](Self::keeper) of the `granules` from `head` on; see
    /// [`commit_tables`](Self::commit_tables).
    pub(crate) fn commit_keepers(&self, head: GranuleIdx, granules: u32) -> Result<()> {
        match self.keeper(head.0 as usize * GRANULE) {
            Some(first) if self.must_commit => {
                let at = core::ptr::from_ref(first).addr() - self.base.as_ptr().addr();
                self.commit(at, granules as usize * KEEPERS_PER_GRANULE * size_of::<AtomicU16>())
            }
            _ => Ok(()),
        }
    }
    /// The address of a granule's first byte.
    #[inline]
    pub(crate) fn granule_addr(&self, granule: GranuleIdx) -> *mut u8 {
        self.base.as_ptr().wrapping_add((granule.0 as usize) << GRANULE_SHIFT)
    }
    /// The distance of `address` from the base, where it is inside the region's data granules.
    #[inline]
    pub(crate) fn offset_of(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.base.as_ptr().addr());
        if offset >> GRANULE_SHIFT < self.granules as usize { Some(offset) } else { None }
    }
    /// Commits pages of data or tables before their first touch, where touching them uncommitted
    /// could be a signal. Elsewhere pages come as they are touched: to fetch them ahead saves no time,
    /// and many of them would never be used.
    #[inline]
    pub(crate) fn commit(&self, offset: usize, len: usize) -> Result<()> {
        if !self.must_commit {
            return Ok(());
        }
        let start = offset & !(PAGE - 1);
        let end = align_up(offset + len, PAGE).unwrap_or(usize::MAX).min(self.region.len());
        let done = self.region.commit(start as u64, end.saturating_sub(start));
        if done.is_err() {
            self.short.store(true, Ordering::Relaxed);
        }
        done
    }
    /// Whether the system refused pages since [`forget_shortage`](Self::forget_shortage): then it
    /// is memory that is missing, not room in the region. A hint, across threads.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }
    pub(crate) fn forget_shortage(&self) {
        if self.short.load(Ordering::Relaxed) {
            self.short.store(false, Ordering::Relaxed);
        }
    }
    /// Whether the region's name is to go with the last process.
    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary
    }
    /// Gives the memory of free granules back to the system; true where they are zero afterwards.
    ///
    /// # Safety
    /// The range is free, and the caller holds the lock that keeps it so.
    pub(crate) unsafe fn purge(&self, offset: usize, len: usize) -> bool {
        // The first and the last chunk are not all data.
        let data = self.data();
        let start = offset.max(data.start);
        let end = offset.saturating_add(len).min(data.end);
        // SAFETY: the caller vouches that nobody relies on the contents.
        start >= end || unsafe { self.region.purge(start as u64, end - start) }.is_ok()
    }
    /// Commits the table entries that describe `count` granules from `first`, where touching them
    /// uncommitted could be a signal.
    pub(crate) fn commit_tables(&self, first: GranuleIdx, count: u32, areas: bool) -> Result<()> {
        if !self.must_commit {
            return Ok(());
        }
        self.commit_map(first, count)?;
        let base = self.base.as_ptr().addr();
        let span = |at: usize, size: usize| self.commit(at - base, size * count as usize);
        let index = first.0 as usize;
        let desc = size_of::<SlabDesc>();
        span(self.descs.as_ptr().addr() + desc * index, desc)?;
        if areas {
            let area = size_of::<BitArea>();
            span(self.areas.as_ptr().addr() + area * index, area)?;
        }
        Ok(())
    }
    /// The same for entries of the granule map alone.
    pub(crate) fn commit_map(&self, first: GranuleIdx, count: u32) -> Result<()> {
        let at = self.map.as_ptr().addr() + 4 * first.0 as usize - self.base.as_ptr().addr();
        self.commit(at, 4 * count as usize)
    }
    /// Commits the table entries of `count` chunks from `first`; see [`commit_tables`](Self::commit_tables).
    pub(crate) fn commit_chunk_entries(&self, first: ChunkIdx, count: u32) -> Result<()> {
        if !self.must_commit {
            return Ok(());
        }
        let base = self.base.as_ptr().addr();
        let entry = size_of::<ChunkEntry>();
        let chunk = self.chunks.as_ptr().addr() + entry * first.0 as usize - base;
        self.commit(chunk, entry * count as usize)?;
        let word = self.recycled.as_ptr().addr() + first.0 as usize / 64 * 8 - base;
        self.commit(word, (count as usize / 64 + 2) * 8)
    }
    /// Commits a thread block's entry; see [`commit_tables`](Self::commit_tables).
    pub(crate) fn commit_block(&self, id: BlockId) -> Result<()> {
        if !self.must_commit {
            return Ok(());
        }
        let entry = size_of::<ThreadBlock>();
        let at = self.blocks.as_ptr().addr() + entry * id.0 as usize - self.base.as_ptr().addr();
        self.commit(at, entry)
    }
    /// Granules of chunk `index` that hold data: a bit each.
    #[inline]
    pub(crate) fn chunk_mask(&self, index: ChunkIdx) -> u64 {
        let start = index.0 * GRANULES_PER_CHUNK as u32;
        let mut mask = u64::MAX;
        if self.first_granule > start {
            let skip = self.first_granule - start;
            mask = if skip >= 64 { 0 } else { mask << skip };
        }
        if self.granules < start + 64 {
            let keep = self.granules.saturating_sub(start);
            mask &= if keep == 0 { 0 } else { u64::MAX >> (64 - keep) };
        }
        mask
    }
    /// The chunk that a granule belongs to, and its bit there.
    #[inline]
    pub(crate) fn chunk_of(granule: GranuleIdx) -> (ChunkIdx, u32) {
        (ChunkIdx(granule.0 / 64), granule.0 % 64)
    }
}

const _: () = assert!(CHUNK == 64 * GRANULE);
const _: () = assert!(size_of::<ProcessBlock>() == 192);
const _: () = assert!(size_of::<ThreadBlock>() == 64);
const _: () = assert!(size_of::<ChunkEntry>() == 64);
const _: () = assert!(size_of::<SlabDesc>() == 128);
const _: () = assert!(size_of::<BitArea>() == 1088);
const _: () = assert!(size_of::<HeapHeader>() == 192);
