//! How the suite makes each allocator, and each backend.

use std::sync::atomic::{AtomicU32, Ordering};

use hshm::{
    Allocator, ArrayBackend, Backend, BuddyAllocator, FileBackend, Heap, MallocAllocator,
    MallocBackend, MemfdBackend, OffsetPtr, PosixMmap, PosixShmMmap, Region, RegionOptions,
    ScalablePageAllocator, StackAllocator, ThreadLocalAllocator,
};

use crate::support::unique;

/// An allocator under test.
pub trait Subject: Allocator + Sized + 'static {
    /// Whether freed memory serves any other request; otherwise only a reset brings it back.
    const REUSES: bool;
    /// Whether the blocks lie in a region, and so there is an end to them.
    const BOUNDED: bool = true;
    /// Whether a block of this size can grow in place into a free neighbour.
    fn grows_into_neighbour(size: usize) -> bool;
    fn make(region: Region) -> Self;
    /// Checks every invariant, and that `live` blocks are handed out where that can be told.
    fn check(&self, live: usize);
    /// Refused frees, where they are counted.
    fn refused(&self) -> Option<u64> {
        None
    }
    /// After everything was freed: makes all memory usable again.
    fn recover(&self) {}
}

fn heap(region: &Region) -> (OffsetPtr<u8>, Heap) {
    let start = region.payload_offset() as u64;
    (OffsetPtr::new(start), Heap::new(start, region.len() as u64).unwrap())
}

impl Subject for StackAllocator {
    const REUSES: bool = false;
    fn grows_into_neighbour(_: usize) -> bool {
        false
    }
    fn make(region: Region) -> Self {
        let (offset, heap) = heap(&region);
        StackAllocator::shm_init(region, offset, heap).unwrap()
    }
    fn check(&self, _live: usize) {
        // The header is sound: it can be attached.
        let region = Region::containing(self.base()).unwrap();
        let again = StackAllocator::shm_attach(region, self.header_offset()).unwrap();
        assert_eq!(again.available(), self.available());
        assert!(self.available() <= self.region_len());
    }
    fn recover(&self) {
        // SAFETY: the suite has freed everything.
        unsafe { self.reset().unwrap() };
    }
}

impl Subject for BuddyAllocator {
    const REUSES: bool = true;
    fn grows_into_neighbour(_: usize) -> bool {
        true
    }
    fn make(region: Region) -> Self {
        let (offset, heap) = heap(&region);
        BuddyAllocator::shm_init(region, offset, heap, BuddyAllocator::MIN_METADATA).unwrap()
    }
    fn check(&self, _live: usize) {
        self.verify().unwrap();
        self.accounting().unwrap();
    }
}

impl Subject for ScalablePageAllocator {
    const REUSES: bool = true;
    fn grows_into_neighbour(size: usize) -> bool {
        size > 32 << 10
    }
    fn make(region: Region) -> Self {
        ScalablePageAllocator::shm_init(region).unwrap()
    }
    fn check(&self, live: usize) {
        let report = self.verify().unwrap();
        assert_eq!(report.blocks_in_use, live);
        let found = self.fragmentation();
        assert_eq!(found.in_use, self.currently_allocated_size());
        assert!(found.largest_free <= found.free && found.free <= self.region_len());
    }
    fn refused(&self) -> Option<u64> {
        Some(self.refused_frees())
    }
    fn recover(&self) {
        self.trim();
    }
}

impl Subject for MallocAllocator {
    const REUSES: bool = true;
    const BOUNDED: bool = false;
    fn grows_into_neighbour(_: usize) -> bool {
        false
    }
    fn make(_: Region) -> Self {
        MallocAllocator::new()
    }
    fn check(&self, _live: usize) {}
}

impl Subject for ThreadLocalAllocator {
    const REUSES: bool = true;
    fn grows_into_neighbour(size: usize) -> bool {
        size > 32 << 10
    }
    fn make(region: Region) -> Self {
        ThreadLocalAllocator::shm_init(region).unwrap()
    }
    fn check(&self, live: usize) {
        let report = self.verify().unwrap();
        assert_eq!(report.blocks_in_use, live);
        assert!(report.in_use() <= self.region_len());
    }
    fn refused(&self) -> Option<u64> {
        Some(self.refused_frees())
    }
    fn recover(&self) {
        self.trim();
    }
}

/// Makes regions of one kind.
pub struct Maker(fn(usize) -> Region);

impl Maker {
    pub fn region(&self, len: usize) -> Region {
        (self.0)(len)
    }
}

/// A name that no other test uses.
fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    unique(&format!("conformance-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn options(len: usize) -> RegionOptions {
    RegionOptions::new().capacity(len)
}

pub fn posix_shm() -> Maker {
    Maker(|len| {
        let name = name();
        let region = PosixShmMmap::create(&name, &options(len)).unwrap();
        // The mapping stays; nothing is left behind, whatever the test does.
        PosixShmMmap::destroy(&name).unwrap();
        region
    })
}

pub fn memfd() -> Maker {
    Maker(|len| MemfdBackend::create("conformance", &options(len)).unwrap())
}

pub fn file() -> Maker {
    Maker(|len| {
        let path = std::env::temp_dir().join(name());
        let path = path.to_str().unwrap();
        let region = FileBackend::create(path, &options(len)).unwrap();
        FileBackend::destroy(path).unwrap();
        region
    })
}

pub fn posix_mmap() -> Maker {
    Maker(|len| PosixMmap::create("", &options(len)).unwrap())
}

/// Not on a 2 MiB boundary, and full of somebody else's bytes at first.
pub fn array() -> Maker {
    Maker(|len| {
        let array = vec![0u8; len + (192 << 10)].leak();
        let skip = (array.as_ptr().addr().wrapping_neg() & 0xFFFF) + (64 << 10);
        let array = &mut array[skip..skip + len];
        array[..len.min(32 << 20)].fill(0xA5);
        ArrayBackend::over(array, &options(0)).unwrap()
    })
}

pub fn malloc() -> Maker {
    Maker(|len| {
        let region = MallocBackend::create("", &options(len)).unwrap();
        let start = region.payload_offset();
        // SAFETY: behind the header and inside the region, which is this function's alone.
        unsafe { region.base().add(start).write_bytes(0x5A, (len - start).min(32 << 20)) };
        region
    })
}

/// For allocators that need none.
pub fn no_region() -> Maker {
    Maker(|_| PosixMmap::create("", &options(64 << 10)).unwrap())
}
