//! [`HeapMap`]: a picture of where an allocator's blocks lie.

use core::fmt;

use super::traits::Allocator;
use crate::base::{AllocatorId, Error, Result};

/// Cells in a line of the picture.
const LINE: usize = 64;

/// Where the blocks of an allocator lie: of each of some equal parts of its memory, the bytes that are
/// handed out. Made when asked for, and free otherwise; printed as text, or as [SVG](Self::to_svg).
///
/// ```
/// use hshm::{Allocator, AllocatorId, HeapMap, MemContext, Region, ThreadLocalAllocator};
/// let region = Region::anonymous(AllocatorId::new(8, 7), 16 << 20)?;
/// let alloc = ThreadLocalAllocator::shm_init(region)?;
/// alloc.allocate::<u8>(MemContext::DEFAULT, 5 << 16)?;
/// let map = HeapMap::of(&alloc, 256)?;
/// assert_eq!((map.cell_size(), map.blocks()), (1 << 16, 1));
/// assert!(map.to_string().contains(" ##### "));
/// # Ok::<(), hshm::Error>(())
/// ```
///
/// Blocks that are allocated or freed meanwhile may be seen or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapMap {
    id: AllocatorId,
    /// The offset of the first cell's first byte.
    start: u64,
    cell: u64,
    used: Vec<u64>,
    blocks: usize,
}

impl HeapMap {
    /// A map of `cells` parts (at least one): of the whole region, or, where offsets are addresses, from
    /// the first block to the end of the last.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for more cells than there is memory for; otherwise as
    /// [`Allocator::visit_blocks`].
    pub fn of<A: Allocator + ?Sized>(alloc: &A, cells: usize) -> Result<HeapMap> {
        let mut used = Vec::new();
        let cells = cells.max(1);
        let none = Error::OutOfMemory { requested: cells.saturating_mul(8), available: 0 };
        used.try_reserve_exact(cells).map_err(|_| none)?;
        used.resize(cells, 0);
        let (start, end) = extent(alloc)?;
        let cell = (end - start).div_ceil(cells as u64).max(1);
        let mut map = HeapMap { id: alloc.id(), start, cell, used, blocks: 0 };
        alloc.visit_blocks(&mut |block| map.add(block.offset.offset(), block.size as u64))?;
        Ok(map)
    }

    /// Adds what of a block lies in the map. Allocates nothing: the allocator may be locked.
    fn add(&mut self, offset: u64, size: u64) {
        self.blocks += 1;
        let last = self.start + self.cell * self.used.len() as u64;
        let (mut at, end) = (offset.max(self.start), offset.saturating_add(size).min(last));
        while at < end {
            let index = (at - self.start) / self.cell;
            let next = (self.start + (index + 1) * self.cell).min(end);
            if let Some(used) = self.used.get_mut(index as usize) {
                // Whoever shrinks a heap meanwhile may have a byte seen twice.
                *used = (*used + (next - at)).min(self.cell);
            }
            at = next;
        }
    }

    /// Bytes of a cell.
    pub fn cell_size(&self) -> u64 {
        self.cell
    }
    /// The offset where the first cell begins.
    pub fn start(&self) -> u64 {
        self.start
    }
    /// The bytes of each cell that are handed out.
    pub fn used(&self) -> &[u64] {
        &self.used
    }
    /// Blocks that were found.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The map as a drawing: a square for each cell, the darker the fuller.
    pub fn to_svg(&self) -> String {
        use fmt::Write;
        const SIDE: usize = 8;
        let lines = self.used.len().div_ceil(LINE);
        let (width, height) = (LINE * SIDE, lines * SIDE);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#eee\"/>\n"
        );
        for (index, &used) in self.used.iter().enumerate().filter(|(_, used)| **used > 0) {
            let (x, y) = (index % LINE * SIDE, index / LINE * SIDE);
            let grey = 200 - self.part(used, 200);
            // Writing to a string does not fail.
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" \
                 fill=\"rgb({grey},{grey},{grey})\"/>"
            );
        }
        svg + "</svg>\n"
    }

    /// How much of a cell is used, of `whole`, rounded up.
    fn part(&self, used: u64, whole: u64) -> u64 {
        (u128::from(used) * u128::from(whole)).div_ceil(u128::from(self.cell)) as u64
    }
}

/// The offsets between which the blocks lie.
fn extent<A: Allocator + ?Sized>(alloc: &A) -> Result<(u64, u64)> {
    if alloc.backing().is_some() && !alloc.base().is_null() {
        return Ok((0, alloc.region_len() as u64));
    }
    let (mut start, mut end) = (u64::MAX, 0);
    alloc.visit_blocks(&mut |block| {
        start = start.min(block.offset.offset());
        end = end.max(block.offset.offset().saturating_add(block.size as u64));
    })?;
    Ok((start.min(end), end))
}

/// A line for every 64 cells, with the offset where it begins; lines in which nothing is are left out.
/// Of each cell: ` ` nothing, `.` up to a quarter, `-` half, `+` three quarters, `#` more is handed out.
impl fmt::Display for HeapMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}: {} blocks, {} bytes a cell", self.id, self.blocks, self.cell)?;
        for (at, line) in self.used.chunks(LINE).enumerate() {
            if line.iter().all(|used| *used == 0) {
                continue;
            }
            let offset = self.start + (at * LINE) as u64 * self.cell;
            write!(f, "{offset:#14x} |")?;
            for &used in line {
                let sign = match self.part(used, 4) {
                    0 => " ",
                    1 => ".",
                    2 => "-",
                    3 => "+",
                    _ => "#",
                };
                f.write_str(sign)?;
            }
            f.write_str("|\n")?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::base::{KIB, MIB, MemContext};
    use crate::region::Region;
    use crate::{BuddyAllocator, MallocAllocator, ThreadLocalAllocator};
    use core::alloc::Layout;

    const CTX: MemContext = MemContext::DEFAULT;

    fn allocate(alloc: &impl Allocator, size: usize) -> (u64, u64) {
        let layout = Layout::from_size_align(size, 8).unwrap();
        let block = alloc.allocate_offset(CTX, layout).unwrap();
        (block.offset(), alloc.usable_size(block).unwrap() as u64)
    }

    /// The map of these blocks, byte by byte.
    fn naive(map: &HeapMap, blocks: &[(u64, u64)]) -> Vec<u64> {
        let cell = |at: u64| (at - map.start()) / map.cell_size();
        let mut used = vec![0; map.used().len()];
        for byte in blocks.iter().flat_map(|&(start, size)| start..start + size) {
            used[cell(byte) as usize] += 1;
        }
        used
    }

    fn agrees(alloc: &impl Allocator) {
        let sizes = [1, 40, 100, 5000, 40 * KIB, 70 * KIB, 300 * KIB];
        let blocks: Vec<_> = sizes.iter().cycle().take(40).map(|&n| allocate(alloc, n)).collect();
        for cells in [0, 1, 63, 64, 1000] {
            let map = HeapMap::of(alloc, cells).unwrap();
            assert_eq!((map.blocks(), map.used().len()), (40, cells.max(1)));
            assert_eq!(map.used(), naive(&map, &blocks), "{cells}");
            let filled = map.used().iter().filter(|used| **used > 0).count();
            assert_eq!(map.to_svg().matches("<rect x").count(), filled);
            // Every cell that has anything has a sign.
            let signs = |line: &str| {
                line.split('|')
                    .nth(1)
                    .map_or(0, |cells| cells.chars().filter(|sign| *sign != ' ').count())
            };
            assert_eq!(map.to_string().lines().map(signs).sum::<usize>(), filled);
        }
        assert_eq!(
            HeapMap::of(alloc, usize::MAX).unwrap_err().code(),
            crate::ErrorCode::OutOfMemory
        );
    }

    #[test]
    fn maps_agree_with_the_blocks() {
        let region = |minor| Region::anonymous(AllocatorId::new(770, minor), 16 * MIB).unwrap();
        agrees(&ThreadLocalAllocator::shm_init(region(1)).unwrap());
        let heap = region(2);
        let start = heap.payload_offset().next_multiple_of(64) as u64;
        let source = crate::Heap::new(start, heap.len() as u64).unwrap();
        let at = crate::OffsetPtr::new(start);
        agrees(&BuddyAllocator::shm_init(heap, at, source, 16).unwrap());
        let malloc = MallocAllocator::new();
        assert_eq!(HeapMap::of(&malloc, 10).unwrap().used(), [0; 10]);
        let (block, size) = allocate(&malloc, 1000);
        let map = HeapMap::of(&malloc, 1).unwrap();
        assert_eq!((map.start(), map.used()), (block, &[size][..]));
    }
}
