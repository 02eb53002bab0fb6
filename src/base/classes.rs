//! Size classes of the slabs.
//!
//! ```text
//!   8 16 24 ... 64 | 80 96 112 128 | 144 160 ... 256 | 288 ... 512 | ... | 18432 ... 32768
//!   steps of 8     | steps of 16   | 8 steps for every doubling
//! ```
//!
//! Rounding up wastes at most 12.5 % above 128 bytes (less than one step below). Every class is a multiple of
//! the step of its range and blocks lie at multiples of their size in a slab whose base is aligned
//! to a granule. So a size that was first rounded up to a multiple of its alignment always lands
//! in a class whose blocks have that alignment: either the step is a multiple of the alignment, or
//! the rounded size is itself a class.

use super::units::{GRANULE, KIB};

/// The largest size that a slab serves, in bytes.
pub(crate) const MAX_SMALL: usize = 32 * KIB;
/// The most blocks that a slab has. Those of 8 bytes take half of theirs: with bitmaps for twice as many,
/// every slab's would be in memory for twice as many.
pub(crate) const MAX_BLOCKS: usize = 4096;
/// How many classes there are.
pub(crate) const CLASSES: usize = 76;

/// Index of a size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct ClassId(u8);

impl ClassId {
    /// The class with this index; the caller keeps it below [`CLASSES`].
    #[inline(always)]
    pub(crate) const fn new(index: usize) -> Self {
        debug_assert!(index < CLASSES);
        ClassId(index as u8)
    }
    #[inline(always)]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
    /// Bytes of a block.
    #[inline]
    pub(crate) const fn size(self) -> usize {
        INFO[self.0 as usize].size as usize
    }
    /// Bytes of a slab of this class: 1, 2 or 4 granules.
    #[inline]
    pub(crate) const fn slab_granules(self) -> u32 {
        INFO[self.0 as usize].granules as u32
    }
    /// Blocks in a slab.
    #[inline]
    pub(crate) const fn blocks(self) -> u32 {
        INFO[self.0 as usize].blocks as u32
    }
    /// The block that contains byte `at` of a slab: a division by multiplication, exact for every
    /// offset within a slab.
    #[inline]
    pub(crate) const fn block_of(self, at: u32) -> u32 {
        self.division().block_of(at)
    }
    /// What [`block_of`](Self::block_of) needs to know, for a loop.
    #[inline]
    pub(crate) const fn division(self) -> Division {
        Division { reciprocal: INFO[self.0 as usize].reciprocal as u64 }
    }
}

/// Division by the size of a class.
#[derive(Clone, Copy)]
pub(crate) struct Division {
    reciprocal: u64,
}

impl Division {
    /// See [`ClassId::block_of`].
    #[inline(always)]
    pub(crate) const fn block_of(self, at: u32) -> u32 {
        ((at as u64 * self.reciprocal) >> 34) as u32
    }
}

/// The class of a request of `size` bytes (1 to [`MAX_SMALL`]) that needs no more than 8-byte
/// alignment, or whose size is a multiple of its alignment.
#[inline(always)]
pub(crate) const fn class_index(size: usize) -> usize {
    if size <= 64 {
        size.wrapping_sub(1) >> 3 & 7
    } else if size <= 128 {
        8 + ((size - 65) >> 4)
    } else {
        let top = (size - 1).ilog2();
        12 + (top as usize - 7) * 8 + ((size - 1) >> (top - 3) & 7)
    }
}

struct Info {
    size: u16,
    granules: u8,
    blocks: u16,
    reciprocal: u32,
}

/// Bytes of a block of the class with this index: the inverse of [`class_index`].
pub(crate) const fn class_size(index: usize) -> usize {
    if index < 8 {
        (index + 1) * 8
    } else if index < 12 {
        64 + (index - 7) * 16
    } else {
        let base = 128usize << ((index - 12) / 8);
        base + base / 8 * ((index - 12) % 8 + 1)
    }
}

static INFO: [Info; CLASSES] = {
    let mut table = [const { Info { size: 0, granules: 0, blocks: 0, reciprocal: 0 } }; CLASSES];
    let mut index = 0;
    while index < CLASSES {
        let size = class_size(index);
        let granules = if size <= 8 * KIB {
            1
        } else if size <= 16 * KIB {
            2
        } else {
            4
        };
        let fit = granules * GRANULE / size;
        let blocks = if fit < MAX_BLOCKS { fit } else { MAX_BLOCKS };
        table[index] = Info {
            size: size as u16,
            granules: granules as u8,
            blocks: blocks as u16,
            reciprocal: (1u64 << 34).div_ceil(size as u64) as u32,
        };
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        for size in 1..=MAX_SMALL {
            let class = ClassId::new(class_index(size));
            assert!(class.size() >= size);
            if class.index() > 0 {
                assert!(ClassId::new(class.index() - 1).size() < size);
            }
            let waste = class.size() - size;
            let step = if size <= 64 { 8 } else { 16 };
            assert!(waste < step || waste * 8 <= class.size());
        }
        assert_eq!(ClassId::new(CLASSES - 1).size(), MAX_SMALL);
    }

    #[test]
    fn rounded_sizes_are_aligned() {
        for size in 1..=MAX_SMALL {
            let mut align = 1;
            while align <= MAX_SMALL {
                let rounded = size.next_multiple_of(align);
                if rounded <= MAX_SMALL {
                    assert_eq!(ClassId::new(class_index(rounded)).size() % align, 0);
                }
                align *= 2;
            }
        }
    }

    #[test]
    fn block_of_is_a_division() {
        for index in 0..CLASSES {
            let class = ClassId::new(index);
            let bytes = class.slab_granules() * GRANULE as u32;
            for at in 0..bytes {
                assert_eq!(class.block_of(at), at / class.size() as u32);
            }
        }
    }
}
