//! Entries of the granule map: what every 64 KiB of a region is used for, in one word.
//!
//! ```text
//!  31            16 15     11 10       4 3      0
//! +----------------+---------+-----------+-------+
//! | thread block   | distance| class + 1 | kind  |
//! +----------------+---------+-----------+-------+
//! ```
//!
//! The class is where it is so that one `and` makes it the byte offset of the class's bin in a
//! thread's cache; everything that is no slab has 0 there, a bin that never takes anything.
//! The distance counts granules back to the head of the slab or run, so that any address finds its
//! block's head with one load. Zero is a granule that is nobody's: a fresh map needs no writing.

use crate::base::classes::ClassId;

/// Index of a granule in its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct GranuleIdx(pub(crate) u32);

/// Index of a thread block in its region's table. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct BlockId(pub(crate) u16);

/// What a granule belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Nobody's.
    Free = 0,
    /// Part of a slab.
    Slab = 1,
    /// Part of a run: one block of 1 to 32 granules.
    Run = 2,
    /// The first granule of a block made of whole chunks.
    Large = 3,
}

/// One word of the granule map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Entry(pub(crate) u32);

impl Entry {
    pub(crate) const FREE: Entry = Entry(0);

    #[inline]
    pub(crate) const fn slab(owner: BlockId, class: ClassId, distance: u32) -> Entry {
        Entry(
            (owner.0 as u32) << 16
                | distance << 11
                | (class.index() as u32 + 1) << 4
                | Kind::Slab as u32,
        )
    }
    #[inline]
    pub(crate) const fn run(owner: BlockId, distance: u32) -> Entry {
        Entry((owner.0 as u32) << 16 | distance << 11 | Kind::Run as u32)
    }
    #[inline]
    pub(crate) const fn large(owner: BlockId) -> Entry {
        Entry((owner.0 as u32) << 16 | Kind::Large as u32)
    }
    /// The kind; anything a damaged map may hold reads as `Free`.
    #[inline]
    pub(crate) const fn kind(self) -> Kind {
        match self.0 & 15 {
            1 => Kind::Slab,
            2 => Kind::Run,
            3 => Kind::Large,
            _ => Kind::Free,
        }
    }
    /// Whether it belongs to a slab of this thread block.
    #[inline(always)]
    pub(crate) const fn is_slab_of(self, owner: BlockId) -> bool {
        self.0 & 0xFFFF_000F == (owner.0 as u32) << 16 | Kind::Slab as u32
    }
    #[inline]
    pub(crate) const fn distance(self) -> u32 {
        self.0 >> 11 & 31
    }
    /// Class index as stored; a damaged map may hold one that does not exist.
    #[inline]
    pub(crate) const fn class_index(self) -> usize {
        (self.0 >> 4 & 127).wrapping_sub(1) as usize
    }
    #[inline]
    pub(crate) const fn owner(self) -> BlockId {
        BlockId((self.0 >> 16) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let entry = Entry::slab(BlockId(u16::MAX), ClassId::new(75), 3);
        assert_eq!(entry.kind(), Kind::Slab);
        assert_eq!(entry.owner(), BlockId(u16::MAX));
        assert_eq!(entry.class_index(), 75);
        assert_eq!(entry.distance(), 3);
        let entry = Entry::run(BlockId(1), 31);
        assert_eq!((entry.kind(), entry.owner(), entry.distance()), (Kind::Run, BlockId(1), 31));
        assert_eq!(Entry::FREE.kind(), Kind::Free);
    }
}
