//! What every allocator has to do.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use hshm::{
    AllocatorId, AtomicOffsetPtr, AtomicShmPtr, CtxAllocator, Error, ErrorCode, FullPtr, KIB, MIB,
    MemContext, OffsetPtr, ShmPtr, ThreadId,
};

use crate::subject::{Maker, Subject};

const CTX: MemContext = MemContext::DEFAULT;

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Blocks that are handed out, and what is in them.
pub struct Live<'a, S: Subject> {
    alloc: &'a S,
    pub blocks: BTreeMap<u64, (usize, u8)>,
    next: u8,
    before: usize,
}

impl<'a, S: Subject> Live<'a, S> {
    pub fn new(alloc: &'a S) -> Self {
        alloc.check(0);
        let before = alloc.currently_allocated_size();
        Live { alloc, blocks: BTreeMap::new(), next: 1, before }
    }
    fn byte(&mut self) -> u8 {
        self.next = self.next.checked_add(1).unwrap_or(1);
        self.next
    }
    fn bytes(&self, offset: u64, len: usize) -> &[u8] {
        // SAFETY: only called for blocks that are live and have this size.
        unsafe { std::slice::from_raw_parts(self.alloc.resolve(OffsetPtr::new(offset)), len) }
    }
    #[track_caller]
    fn check(&self, offset: u64) {
        let (size, byte) = self.blocks[&offset];
        assert!(self.bytes(offset, size).iter().all(|b| *b == byte), "{offset:#x} was changed");
    }
    fn check_all(&self) {
        self.blocks.keys().for_each(|offset| self.check(*offset));
    }
    /// Takes a block under control, which must lie where nothing else does.
    #[track_caller]
    fn add(&mut self, block: OffsetPtr<u8>, size: usize, align: usize) -> u64 {
        let offset = block.offset();
        let end = offset.checked_add(size.max(1) as u64).unwrap();
        assert!(end <= self.alloc.region_len() as u64);
        assert!(self.alloc.resolve(block).addr().is_multiple_of(align), "{align}");
        if let Some((at, (before, _))) = self.blocks.range(..end).next_back() {
            assert!(*at < offset && at + (*before).max(1) as u64 <= offset, "blocks overlap");
        }
        let byte = self.byte();
        // SAFETY: the block was just handed out with this size.
        unsafe { self.alloc.resolve(block).write_bytes(byte, size) };
        self.blocks.insert(offset, (size, byte));
        offset
    }
    #[track_caller]
    pub fn allocate(&mut self, size: usize, align: usize) -> u64 {
        let block = self.alloc.allocate_offset(CTX, layout(size, align)).unwrap();
        self.add(block, size, align)
    }
    #[track_caller]
    pub fn free(&mut self, offset: u64) {
        self.check(offset);
        self.blocks.remove(&offset).unwrap();
        // SAFETY: live, and not used again.
        unsafe { self.alloc.free_offset(CTX, OffsetPtr::new(offset)).unwrap() };
    }
    #[track_caller]
    fn reallocate(&mut self, offset: u64, size: usize) -> u64 {
        let (old, byte) = self.blocks.remove(&offset).unwrap();
        let new = layout(size, 8);
        // SAFETY: live; the old offset is only used again if it comes back.
        let moved =
            unsafe { self.alloc.reallocate_offset(CTX, OffsetPtr::new(offset), new).unwrap() };
        let kept = self.bytes(moved.offset(), old.min(size));
        assert!(kept.iter().all(|b| *b == byte), "{old} -> {size} lost its contents");
        self.add(moved, size, 8)
    }
    /// Frees everything, the last one first, and checks that nothing is left.
    #[track_caller]
    pub fn finish(mut self) {
        self.check_all();
        self.alloc.check(self.blocks.len());
        while let Some((offset, _)) = self.blocks.last_key_value() {
            self.free(*offset);
        }
        assert_eq!(self.alloc.currently_allocated_size(), self.before);
        self.alloc.check(0);
    }
}

/// Sizes at and around every power of two up to `most`.
fn sizes(most: usize) -> impl Iterator<Item = usize> {
    let powers = (0..).map(|shift| 1usize << shift).take_while(move |size| *size <= most);
    powers.flat_map(|size| [size - size / 4, size - 1, size, size + 1]).filter(|size| *size > 0)
}

pub fn sizes_and_contents<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(64 * MIB));
    let mut live = Live::new(&alloc);
    for size in sizes(MIB) {
        live.allocate(size, 1);
        live.allocate(size, 8);
    }
    assert!(alloc.currently_allocated_size() >= live.blocks.values().map(|(s, _)| s).sum());
    live.check_all();
    // Every other one goes, and others come.
    let odd: Vec<u64> = live.blocks.keys().copied().skip(1).step_by(2).collect();
    odd.into_iter().for_each(|offset| live.free(offset));
    live.check_all();
    alloc.check(live.blocks.len());
    for size in sizes(256 * KIB) {
        live.allocate(size, 1);
    }
    live.finish();
}

pub fn large_sizes<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(256 * MIB));
    let mut live = Live::new(&alloc);
    let small = live.allocate(100, 1);
    for size in [2 * MIB, 2 * MIB + 1, 3 * MIB, 5 * MIB - 1, 8 * MIB, 33 * MIB, 64 * MIB] {
        let large = live.allocate(size, 16);
        assert!(alloc.usable_size(OffsetPtr::new(large)).unwrap() >= size);
        live.free(large);
    }
    let (first, second) = (live.allocate(20 * MIB, 1), live.allocate(30 * MIB, 1));
    live.check(small);
    live.free(first);
    live.check(second);
    live.finish();
}

pub fn alignments<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(256 * MIB));
    let base = alloc.base().addr();
    let mut live = Live::new(&alloc);
    for shift in 0..=21 {
        let align = 1usize << shift;
        for size in [1, 24, align.min(MIB), 100 * KIB + 1, 2 * MIB + 4096] {
            match alloc.allocate_offset(CTX, layout(size, align)) {
                Ok(block) => {
                    let offset = live.add(block, size, align);
                    if size > MIB {
                        live.free(offset);
                    }
                }
                Err(Error::BadAlignment { align: refused }) => {
                    assert_eq!(refused, align);
                    assert!(!base.is_multiple_of(align), "the base has the alignment");
                }
                Err(other) => panic!("{size} at {align}: {other}"),
            }
            // Something small between, so that no block lies aligned by itself.
            live.allocate(1, 1);
        }
    }
    live.finish();
    // The typed calls: raised to the type's own alignment, refused where it is none.
    #[repr(align(512))]
    struct Wide;
    let wide = alloc.allocate::<Wide>(CTX, 3).unwrap();
    assert!(wide.as_ptr().is_aligned());
    // SAFETY: live, and not used again.
    unsafe { alloc.free(CTX, wide).unwrap() };
    for align in [0, 3, 48, usize::MAX] {
        // Sizes below the type's alignment are raised, so zero is not even seen.
        if align > 1 {
            let refused = alloc.aligned_allocate::<u8>(CTX, 8, align);
            assert_eq!(refused.err(), Some(Error::BadAlignment { align }));
        }
    }
}

pub fn sizes_of_zero<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(8 * MIB));
    let mut live = Live::new(&alloc);
    let blocks: Vec<u64> = [1, 8, 64, 4096].map(|align| live.allocate(0, align)).into();
    assert_eq!(live.blocks.len(), 4);
    let grown = live.reallocate(blocks[1], 1000);
    live.reallocate(grown, 0);
    live.finish();
}

pub fn zeroed_allocation<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(32 * MIB));
    let mut live = Live::new(&alloc);
    // The second and third time over memory that is full of other bytes.
    for _ in 0..3 {
        for size in [1, 8, 24, 100, 1024, 4096, 30 * KIB, 40 * KIB, 65 * KIB, 300 * KIB, 3 * MIB] {
            let block = alloc.allocate_zeroed_offset(CTX, layout(size, 8)).unwrap();
            let bytes = live.bytes(block.offset(), size);
            assert!(bytes.iter().all(|byte| *byte == 0), "{size} bytes are not zero");
            live.add(block, size, 8);
        }
        live.check_all();
        while let Some((offset, _)) = live.blocks.pop_last() {
            let block = OffsetPtr::new(offset);
            let usable = alloc.usable_size(block).unwrap();
            // SAFETY: live, and that long.
            unsafe { alloc.resolve(block).write_bytes(0xFF, usable) };
            // SAFETY: live, and not used again.
            unsafe { alloc.free_offset(CTX, block).unwrap() };
        }
        alloc.recover();
    }
    live.finish();
}

pub fn reallocation_keeps_contents<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(256 * MIB));
    let mut live = Live::new(&alloc);
    let neighbour = live.allocate(64, 8);
    // Up in many steps, down again, and up and down by leaps.
    let mut block = live.allocate(1, 8);
    for size in sizes(2 * MIB) {
        block = live.reallocate(block, size);
    }
    for size in sizes(2 * MIB).collect::<Vec<_>>().into_iter().rev() {
        block = live.reallocate(block, size);
    }
    for size in [9 * MIB, 8, 3 * MIB, 20 * MIB, 6 * MIB, 5 * MIB, 100, 40 * KIB, 70 * KIB, 1] {
        block = live.reallocate(block, size);
    }
    live.check(neighbour);
    live.finish();

    // The typed call, and an alignment that the old block has not got.
    let block = alloc.allocate::<u64>(CTX, 800).unwrap();
    for index in 0..100 {
        // SAFETY: inside the block.
        unsafe { block.add(index).as_ptr().write(index as u64) };
    }
    // SAFETY: live, and replaced by the result.
    let block = unsafe { alloc.reallocate(CTX, block, 80_000).unwrap() };
    // SAFETY: live, with the alignment of the request, and replaced by the result.
    let moved = unsafe { alloc.reallocate_offset(CTX, block.offset().cast(), layout(800, 4096)) };
    let moved = FullPtr::<u64>::from_offset(&alloc, moved.unwrap().cast()).unwrap();
    assert!(moved.as_ptr().addr().is_multiple_of(4096));
    for index in 0..100 {
        // SAFETY: inside the block.
        assert_eq!(unsafe { moved.add(index).as_ptr().read() }, index as u64);
    }
    // SAFETY: live, and not used again.
    unsafe { alloc.free(CTX, moved).unwrap() };
    assert_eq!(alloc.currently_allocated_size(), 0);
    alloc.check(0);
}

pub fn reallocation_in_place<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(128 * MIB));
    let mut live = Live::new(&alloc);
    for size in [70 * KIB, 300 * KIB, 5000, 200].into_iter().filter(|&s| S::grows_into_neighbour(s))
    {
        let [first, second, third] = [0; 3].map(|_| live.allocate(size, 8));
        live.free(second);
        assert_eq!(live.reallocate(first, size + size / 2), first, "{size} into a free neighbour");
        live.check(third);
        live.free(first);
        live.free(third);
    }
    for size in [1, 8, 100, 4000, 20 * KIB, 50 * KIB, 130 * KIB, MIB, 3 * MIB, 9 * MIB] {
        let block = live.allocate(size, 8);
        let usable = alloc.usable_size(OffsetPtr::new(block)).unwrap();
        assert_eq!(live.reallocate(block, usable), block, "{size} to its usable size {usable}");
        assert_eq!(live.reallocate(block, size), block, "{size} back from {usable}");
    }
    live.finish();
}

pub fn failed_reallocation_changes_nothing<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(16 * MIB));
    let mut live = Live::new(&alloc);
    let blocks = [100, 60 * KIB, 3 * MIB].map(|size| live.allocate(size, 8));
    let before = alloc.currently_allocated_size();
    for block in blocks {
        for size in [17 * MIB, 1 << 48, isize::MAX as usize - 4095] {
            if !S::BOUNDED && size < 1 << 40 {
                continue;
            }
            // SAFETY: live; it fails, and so the block stays.
            let result =
                unsafe { alloc.reallocate_offset(CTX, OffsetPtr::new(block), layout(size, 8)) };
            let error = result.unwrap_err();
            assert_eq!(error.code(), ErrorCode::OutOfMemory, "{block:#x} to {size}: {error}");
            assert_eq!(alloc.currently_allocated_size(), before);
        }
        let wild = OffsetPtr::new(block + 8);
        // SAFETY: no block, and refused.
        assert!(unsafe { alloc.reallocate_offset(CTX, wild, layout(64, 8)) }.is_err());
    }
    live.check_all();
    live.finish();
}

pub fn usable_size<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(64 * MIB));
    let mut live = Live::new(&alloc);
    for size in sizes(4 * MIB) {
        let block = alloc.allocate_offset(CTX, layout(size, 8)).unwrap();
        let usable = alloc.usable_size(block).unwrap();
        assert!(usable >= size);
        // All of it is ours: `add` fills it and looks for overlaps.
        let offset = live.add(block, usable, 8);
        live.check_all();
        if size > 64 * KIB {
            live.free(offset);
        }
    }
    let any = *live.blocks.keys().next().unwrap();
    for wrong in [any + 1, any + 4, alloc.region_len() as u64, u64::MAX - 1, u64::MAX, 0] {
        assert!(alloc.usable_size(OffsetPtr::new(wrong)).is_err(), "{wrong:#x}");
    }
    live.finish();
}

pub fn out_of_memory_and_recovery<S: Subject>(maker: &Maker) {
    const REGION: usize = 12 * MIB;
    if !S::BOUNDED {
        return;
    }
    let alloc = S::make(maker.region(REGION));
    let far = alloc.allocate_offset(CTX, layout(REGION, 1)).unwrap_err();
    let Error::OutOfMemory { requested: REGION, available } = far else { panic!("{far}") };
    assert!(available > REGION / 2 && available < REGION, "{available}");
    let mut counts = Vec::new();
    for size in [48, 5000, 64 * KIB, 700 * KIB] {
        for _ in 0..2 {
            let mut live = Live::new(&alloc);
            let error = loop {
                match alloc.allocate_offset(CTX, layout(size, 8)) {
                    Ok(block) => drop(live.add(block, size, 8)),
                    Err(error) => break error,
                }
            };
            let Error::OutOfMemory { requested, available } = error else { panic!("{error}") };
            assert_eq!(requested, size);
            let used: usize = live.blocks.values().map(|(size, _)| size).sum();
            assert!(available <= REGION - used, "{available} of {REGION} with {used} used");
            assert!(used > REGION / 2, "{used} of {REGION}");
            // One back, one more.
            let (last, _) = live.blocks.last_key_value().unwrap();
            let last = *last;
            live.free(last);
            live.allocate(size, 8);
            counts.push(live.blocks.len());
            live.finish();
            alloc.recover();
        }
        let twice = &counts[counts.len() - 2..];
        assert_eq!(twice[0], twice[1], "{size}: memory was lost");
    }
    if S::REUSES {
        // Small ones all over, then one that needs most of the region.
        let mut live = Live::new(&alloc);
        for _ in 0..20_000 {
            live.allocate(200, 8);
        }
        live.finish();
        let mut live = Live::new(&alloc);
        live.allocate(3 * MIB, 8);
        live.finish();
    }
}

pub fn bad_frees_change_nothing<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(32 * MIB));
    let mut live = Live::new(&alloc);
    for size in [8, 48, 300, 5000, 33 * KIB, 200 * KIB, 5 * MIB, 16] {
        live.allocate(size, 8);
    }
    let gone: Vec<u64> = [8, 300, 200 * KIB, 5 * MIB].map(|size| live.allocate(size, 8)).into();
    gone.iter().for_each(|offset| live.free(*offset));
    live.allocate(24, 8);
    let used = alloc.currently_allocated_size();
    let refused = alloc.refused();
    let mut tries = 0u64;
    let mut refuse = |offset: u64| {
        // SAFETY: no live block begins there, so it is refused.
        let result = unsafe { alloc.free_offset_no_null_check(CTX, OffsetPtr::new(offset)) };
        let code = result.expect_err("a bad free was taken").code();
        assert!(matches!(
            code,
            ErrorCode::NotABlock | ErrorCode::DoubleFree | ErrorCode::OffsetOutOfRange
        ));
        tries += 1;
    };
    // Double, where no other block has taken the place.
    for offset in gone.iter().filter(|offset| !live.blocks.contains_key(offset)) {
        refuse(*offset);
        refuse(*offset);
    }
    // Interior.
    for (offset, (size, _)) in &live.blocks {
        for inside in [1, 7, 8, 16, 32, *size as u64 / 2, *size as u64 - 1] {
            if inside != 0 && inside < *size as u64 {
                refuse(offset + inside);
            }
        }
    }
    // Outside, and the region's own data.
    let len = alloc.region_len() as u64;
    for offset in
        [0, 1, 64, 4096, 4096 + 192, len - 1, len, len.wrapping_add(8), 1 << 40, 1 << 63, u64::MAX]
    {
        refuse(offset);
    }
    // Anywhere.
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    for round in 0..20_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut offset = random % len;
        if round % 2 == 0 {
            offset &= !15;
        }
        if round % 32 == 0 {
            offset &= !0xFFFF;
        }
        if !live.blocks.contains_key(&offset) {
            refuse(offset);
        }
    }
    if let (Some(before), Some(now)) = (refused, alloc.refused()) {
        assert_eq!(now - before, tries, "refused frees are counted");
    }
    // Null, and other allocators' pointers.
    // SAFETY: refused.
    let null = unsafe { alloc.free_offset(CTX, OffsetPtr::NULL) };
    assert_eq!(null.unwrap_err().code(), ErrorCode::NotABlock);
    // SAFETY: refused.
    let null = unsafe { alloc.free(CTX, FullPtr::<u64>::NULL) };
    assert_eq!(null.unwrap_err().code(), ErrorCode::NotABlock);
    let place = OffsetPtr::<u8>::new(*live.blocks.keys().next().unwrap());
    let mine = FullPtr::from_offset(&alloc, place).unwrap();
    let id = AllocatorId::new(0xF0F0, 0xF0F0);
    let foreign = FullPtr::from_parts(mine.as_ptr(), ShmPtr::new(id, place));
    let expected = Error::ForeignPointer { found: id, expected: alloc.id() };
    // SAFETY: refused, all three.
    unsafe {
        assert_eq!(alloc.free(CTX, foreign), Err(expected));
        assert_eq!(alloc.reallocate(CTX, foreign, 100).err(), Some(expected));
        assert_eq!(CtxAllocator::new(&alloc, CTX).free(foreign), Err(expected));
    }
    assert_eq!(alloc.currently_allocated_size(), used);
    live.check_all();
    live.finish();
}

pub fn sizes_that_overflow<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(16 * MIB));
    let mut live = Live::new(&alloc);
    live.allocate(100, 8);
    let most = isize::MAX as usize;
    for size in [usize::MAX, usize::MAX - 1, usize::MAX - 4096, most + 1] {
        let error = alloc.allocate::<u8>(CTX, size).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { requested: usize::MAX, .. }), "{error}");
    }
    for size in [most, most - 8, most - 63, 1 << 62, 1 << 48, 1 << 47, 1 << 44, 17 * MIB] {
        if !S::BOUNDED && size < 1 << 47 {
            continue;
        }
        let error = alloc.allocate::<u8>(CTX, size).unwrap_err();
        assert_eq!(error.code(), ErrorCode::OutOfMemory, "{size:#x}: {error}");
    }
    // Alignments that next to nothing has, with sizes that fit.
    for shift in 25..63 {
        for size in [1, 5000, 3 * MIB] {
            let align = 1 << shift;
            match alloc.allocate_offset(CTX, layout(size, align)) {
                Ok(block) => {
                    let offset = live.add(block, size, align);
                    live.free(offset);
                }
                Err(Error::OutOfMemory { requested, .. }) => assert_eq!(requested, size),
                Err(Error::BadAlignment { align: refused }) => assert_eq!(refused, align),
                Err(other) => panic!("{other}"),
            }
        }
    }
    live.finish();
}

pub fn pointer_constructors<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(8 * MIB));
    let block = alloc.allocate::<u64>(CTX, 64).unwrap();
    // SAFETY: ours, and as long.
    unsafe { block.as_ptr().write(0xC0FFEE) };
    let (id, offset) = (alloc.id(), block.offset());
    assert_eq!(block.shm(), ShmPtr::new(id, offset));
    if !S::BOUNDED {
        // Offsets are addresses, and mean nothing by themselves.
        assert_eq!(FullPtr::from_offset(&alloc, offset), Ok(block));
        assert_eq!(FullPtr::from_allocator(&alloc, block.shm()), Ok(block));
        assert!(FullPtr::from_ptr(block.as_ptr()).is_err());
        assert!(FullPtr::from_shm(block.shm()).is_err());
        // SAFETY: live, and not used again.
        return unsafe { alloc.free(CTX, block).unwrap() };
    }
    let (atomic_offset, atomic) = (AtomicOffsetPtr::new(offset), AtomicShmPtr::new(block.shm()));
    for found in [
        FullPtr::from_offset(&alloc, offset),
        FullPtr::from_atomic_offset(&alloc, &atomic_offset),
        FullPtr::from_allocator(&alloc, block.shm()),
        FullPtr::from_atomic(&alloc, &atomic),
        FullPtr::from_ptr(block.as_ptr()),
        FullPtr::from_shm(block.shm()),
        FullPtr::from_atomic_shm(&atomic),
    ] {
        let found = found.unwrap();
        assert_eq!(found, block);
        // SAFETY: ours, written above.
        assert_eq!(unsafe { *found.as_ptr() }, 0xC0FFEE);
    }
    // Null gives null.
    assert!(FullPtr::<u64>::from_offset(&alloc, OffsetPtr::NULL).unwrap().is_null());
    assert!(
        FullPtr::<u64>::from_atomic_offset(&alloc, &AtomicOffsetPtr::null()).unwrap().is_null()
    );
    assert!(FullPtr::<u64>::from_allocator(&alloc, ShmPtr::NULL).unwrap().is_null());
    assert!(FullPtr::<u64>::from_atomic(&alloc, &AtomicShmPtr::null()).unwrap().is_null());
    assert!(FullPtr::<u64>::from_atomic_shm(&AtomicShmPtr::null()).unwrap().is_null());
    // Other allocators' pointers.
    let other = AllocatorId::new(0xABCD, 0xABCD);
    let foreign = ShmPtr::<u64>::new(other, offset);
    let expected = Error::ForeignPointer { found: other, expected: id };
    assert_eq!(FullPtr::from_allocator(&alloc, foreign), Err(expected));
    assert_eq!(FullPtr::from_atomic(&alloc, &AtomicShmPtr::new(foreign)), Err(expected));
    let unknown = Err(Error::UnknownAllocator { id: other });
    assert_eq!(FullPtr::from_shm(foreign), unknown);
    assert_eq!(FullPtr::from_atomic_shm(&AtomicShmPtr::new(foreign)), unknown);
    // Past the end: the last byte that still holds a `u64` is the limit.
    let length = alloc.region_len() as u64;
    let last = OffsetPtr::<u64>::new(length - 8);
    assert!(FullPtr::from_offset(&alloc, last).is_ok());
    assert!(FullPtr::from_shm(ShmPtr::new(id, last)).is_ok());
    atomic_offset.store(last, Ordering::Release);
    assert!(FullPtr::from_atomic_offset(&alloc, &atomic_offset).is_ok());
    for offset in [length - 7, length, length + 1, 1 << 47, u64::MAX - 8, u64::MAX - 1] {
        let out = OffsetPtr::<u64>::new(offset);
        let expected = Err(Error::OffsetOutOfRange { offset, length });
        atomic_offset.store(out, Ordering::Release);
        atomic.store(ShmPtr::new(id, out));
        assert_eq!(FullPtr::from_offset(&alloc, out), expected);
        assert_eq!(FullPtr::from_atomic_offset(&alloc, &atomic_offset), expected);
        assert_eq!(FullPtr::from_allocator(&alloc, ShmPtr::new(id, out)), expected);
        assert_eq!(FullPtr::from_atomic(&alloc, &atomic), expected);
        assert_eq!(FullPtr::from_shm(ShmPtr::new(id, out)), expected);
        assert_eq!(FullPtr::from_atomic_shm(&atomic), expected);
    }
    let local = 5u64;
    assert!(FullPtr::from_ptr((&raw const local).cast_mut()).is_err());
    // SAFETY: live, and not used again.
    unsafe { alloc.free(CTX, block).unwrap() };
    alloc.check(0);
}

pub fn contexts<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(32 * MIB));
    let mut live = Live::new(&alloc);
    // More numbers than there are thread blocks, each freed under another one.
    let tids = [-1, 0, 1, 63, 64, 65, 200, 100_000, i32::MAX, i32::MIN];
    for tid in tids.into_iter().chain(0..150) {
        let ctx = MemContext::new(ThreadId::new(tid));
        for size in [16, 400, 40 * KIB] {
            let block = alloc.allocate_offset(ctx, layout(size, 8)).unwrap();
            live.add(block, size, 8);
        }
        let bound = CtxAllocator::new(&alloc, ctx);
        let typed = bound.allocate::<u32>(40).unwrap();
        // SAFETY: live, and replaced by the result, which is not used again.
        unsafe {
            let typed = bound.reallocate(typed, 4000).unwrap();
            let other = MemContext::new(ThreadId::new(tid / 2));
            alloc.free(other, typed).unwrap();
        }
        assert_eq!(bound.currently_allocated_size(), alloc.currently_allocated_size());
    }
    // More threads than thread blocks, at the same time.
    let alloc = &alloc;
    let barrier = &std::sync::Barrier::new(80);
    let blocks: Vec<OffsetPtr<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..80)
            .map(|number: u8| {
                scope.spawn(move || {
                    let block = alloc.allocate_offset(CTX, layout(300, 8)).unwrap();
                    // SAFETY: live, and that long.
                    unsafe { alloc.resolve(block).write_bytes(number, 300) };
                    barrier.wait();
                    // SAFETY: as above.
                    let bytes = unsafe { std::slice::from_raw_parts(alloc.resolve(block), 300) };
                    assert!(bytes.iter().all(|byte| *byte == number));
                    block
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for block in blocks {
        live.add(block, 300, 8);
    }
    live.finish();
}

pub fn threads_free_each_others_blocks<S: Subject>(maker: &Maker) {
    const THREADS: usize = 4;
    const ROUNDS: usize = 1500;
    let alloc = &S::make(maker.region(256 * MIB));
    alloc.check(0);
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..THREADS).map(|_| mpsc::channel::<(OffsetPtr<u8>, usize, u8)>()).unzip();
    let release = |block: OffsetPtr<u8>, size: usize, byte: u8| {
        // SAFETY: live until it is freed here, and that long.
        unsafe {
            let bytes = std::slice::from_raw_parts(alloc.resolve(block), size);
            assert!(bytes.iter().all(|found| *found == byte));
            alloc.free_offset(CTX, block).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for (me, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(me + 1) % THREADS].clone();
            scope.spawn(move || {
                let mut random = me as u64 * 77 + 1;
                for round in 0..ROUNDS {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let most = if round % 100 == 0 { 100 * KIB } else { 2000 };
                    let size = (random >> 33) as usize % most + 1;
                    let block = alloc.allocate_offset(CTX, layout(size, 8)).unwrap();
                    let byte = (random >> 20) as u8;
                    // SAFETY: live, and that long.
                    unsafe { alloc.resolve(block).write_bytes(byte, size) };
                    if round % 3 == 0 {
                        release(block, size, byte);
                    } else {
                        next.send((block, size, byte)).unwrap();
                    }
                    while let Ok((block, size, byte)) = receiver.try_recv() {
                        release(block, size, byte);
                    }
                }
                drop(next);
                // What is still on its way, until the neighbour has gone.
                for (block, size, byte) in receiver {
                    release(block, size, byte);
                }
            });
        }
        drop(senders);
    });
    assert_eq!(alloc.currently_allocated_size(), 0);
    alloc.check(0);
}
