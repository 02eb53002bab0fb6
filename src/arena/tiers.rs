//! One heap whose way of serving depends on the size.
//!
//! | bytes, rounded | from | |
//! |---|---|---|
//! | to 1 KiB | a pool of the size class | inside one page |
//! | to 32 KiB | a pool of the size class, in runs of pages | an eighth wasted at most |
//! | more | the best-fit heap | page-aligned |
//!
//! The size classes are the crate's own ([`base::classes`](crate::base)): steps of 8 bytes to 64,
//! of 16 to 128, then 8 to every doubling. Each bin counts what it holds.
#![allow(unsafe_code)] // gives slots back

use core::alloc::Layout;
use core::array;
use core::ptr::NonNull;

use super::{Arena, BestFit, BestFitStats, RawPool};
use crate::base::classes::{CLASSES, MAX_SMALL, class_index, class_size};
use crate::base::{Error, KIB, Result, align_up};

/// The largest slots that lie inside one page.
const IN_ONE_PAGE: usize = KIB;

/// What one bin holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bin {
    /// Bytes of each of its slots.
    pub slot: usize,
    /// Slots in use.
    pub in_use: usize,
    /// Slots that are free and were used before.
    pub free: usize,
}

/// A heap over an arena: small blocks from pools inside pages, medium ones from pools of their own,
/// large ones page-aligned and best fit. Frees are told the layout, as `dealloc` is.
///
/// ```
/// use core::alloc::Layout;
/// use hshm::arena::{Arena, Tiers};
/// let arena = Arena::new();
/// let heap = Tiers::new(&arena);
/// let layout = Layout::new::<[u8; 100]>();
/// let block = heap.allocate(layout)?;
/// assert_eq!(heap.bins().find(|bin| bin.in_use == 1).map(|bin| bin.slot), Some(112));
/// // SAFETY: allocated just now with this layout, and not used any more.
/// unsafe { heap.free(block, layout)? };
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Debug)]
pub struct Tiers<'a> {
    pools: [RawPool<'a>; CLASSES],
    large: BestFit<'a>,
    page_size: usize,
}

/// Where a layout is served.
enum Tier {
    Pool(usize),
    Large(Layout),
}

impl<'a> Tiers<'a> {
    /// An empty heap; nothing is taken from the arena yet.
    pub fn new(arena: &'a Arena<'a>) -> Self {
        let page_size = arena.page_size();
        let pool = |class: usize| {
            let slot = class_size(class);
            let page = if slot <= IN_ONE_PAGE { page_size } else { page_size.max(slot * 8) };
            RawPool::of_slots(arena, slot, page.next_multiple_of(page_size))
        };
        Tiers { pools: array::from_fn(pool), large: BestFit::new(arena), page_size }
    }

    #[inline]
    fn tier(&self, layout: Layout) -> Result<Tier> {
        let none = Error::OutOfMemory { requested: usize::MAX, available: 0 };
        // Rounded to its alignment, a size lands in a class whose slots have that alignment, where
        // runs of slots begin at pages.
        let rounded = align_up(layout.size().max(1), layout.align()).ok_or(none)?;
        if rounded <= MAX_SMALL && layout.align() <= self.page_size {
            return Ok(Tier::Pool(class_index(rounded)));
        }
        layout.align_to(self.page_size).map(Tier::Large).map_err(|_| none)
    }

    /// Allocates a block; it may hold anything.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::ScopeOpen`]; [`Error::Forked`] in a forked child, where the
    /// arena's memory is shared.
    #[inline]
    pub fn allocate(&self, layout: Layout) -> Result<NonNull<u8>> {
        match self.tier(layout)? {
            Tier::Pool(class) => self.pools[class].take(),
            Tier::Large(layout) => self.large.allocate(layout),
        }
    }

    /// Frees a block.
    ///
    /// # Safety
    /// The block was allocated by this heap with this layout, and nobody uses it any more.
    ///
    /// # Errors
    /// For large blocks, as [`BestFit::free`]; [`Error::Forked`].
    #[inline]
    pub unsafe fn free(&self, place: NonNull<u8>, layout: Layout) -> Result<()> {
        if !self.pools[0].is_ours() {
            return Err(Error::Forked);
        }
        // SAFETY: the caller's contract; the layout leads to where the block is from.
        unsafe {
            match self.tier(layout)? {
                Tier::Pool(class) => self.pools[class].put(place),
                Tier::Large(_) => self.large.free(place)?,
            }
        }
        Ok(())
    }

    /// What each bin holds, from the smallest slots up.
    pub fn bins(&self) -> impl Iterator<Item = Bin> {
        self.pools.iter().map(|pool| Bin {
            slot: pool.slot_size(),
            in_use: pool.in_use(),
            free: pool.slots() - pool.in_use(),
        })
    }

    /// What the large blocks take.
    pub fn large(&self) -> BestFitStats {
        self.large.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::MIB;

    #[test]
    fn each_size_has_its_place() {
        let arena = Arena::builder().growth(super::super::Growth::Reserved).build().unwrap();
        let heap = Tiers::new(&arena);
        let mut random = 3u64;
        let mut live: Vec<(NonNull<u8>, Layout)> = Vec::new();
        for _ in 0..20_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (random >> 33) as usize;
            if live.len() > 500 || at.is_multiple_of(3) && !live.is_empty() {
                let (place, layout) = live.swap_remove(at % live.len());
                // SAFETY: allocated with this layout, freed once.
                unsafe {
                    assert_eq!(place.read(), layout.size() as u8);
                    heap.free(place, layout).unwrap();
                }
                continue;
            }
            let size = 1 + at % (1 << ((at >> 20) % 18));
            let align = if at.is_multiple_of(5) { 1 << ((at >> 12) % 13) } else { 1 };
            let layout = Layout::from_size_align(size, align).unwrap();
            let place = heap.allocate(layout).unwrap();
            // SAFETY: allocated just now.
            unsafe { place.write_bytes(size as u8, size) };
            let (first, last) = (place.addr().get(), place.addr().get() + size - 1);
            assert_eq!(first % align, 0);
            if size.next_multiple_of(align) <= IN_ONE_PAGE {
                assert_eq!(first / 4096, last / 4096, "small blocks lie inside a page");
            } else if size > MAX_SMALL {
                assert_eq!(first % 4096, 0, "large blocks begin at pages");
            }
            live.push((place, layout));
        }
        let small = live.iter().filter(|(_, layout)| {
            heap.tier(*layout).is_ok_and(|tier| matches!(tier, Tier::Pool(_)))
        });
        assert_eq!(heap.bins().map(|bin| bin.in_use).sum::<usize>(), small.count());
        for (place, layout) in live {
            // SAFETY: allocated with this layout, freed once.
            unsafe { heap.free(place, layout).unwrap() };
        }
        assert!(heap.bins().all(|bin| bin.in_use == 0));
        assert_eq!(heap.large.verify().unwrap().used_blocks, 0);
    }

    #[test]
    fn alignments_above_the_page_are_large() {
        let arena = Arena::new();
        let heap = Tiers::new(&arena);
        let layout = Layout::from_size_align(10, MIB).unwrap();
        assert_eq!(heap.allocate(layout).unwrap().addr().get() % MIB, 0);
        assert_eq!(heap.large().used_blocks, 1);
    }
}
