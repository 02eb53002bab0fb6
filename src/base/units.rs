//! Sizes in bytes, and the units that a region is cut into.

/// 1024 bytes.
pub const KIB: usize = 1 << 10;
/// 1024 KiB.
pub const MIB: usize = 1 << 20;
/// 1024 MiB.
pub const GIB: usize = 1 << 30;

/// Sizes in HSHM's words: `Unit::gigabytes(1)`. Powers of two, saturating.
#[derive(Clone, Copy, Debug)]
pub struct Unit;

impl Unit {
    /// `n` bytes.
    pub const fn bytes(n: usize) -> usize {
        n
    }
    /// `n` KiB in bytes.
    pub const fn kilobytes(n: usize) -> usize {
        n.saturating_mul(KIB)
    }
    /// `n` MiB in bytes.
    pub const fn megabytes(n: usize) -> usize {
        n.saturating_mul(MIB)
    }
    /// `n` GiB in bytes.
    pub const fn gigabytes(n: usize) -> usize {
        n.saturating_mul(GIB)
    }
    /// `n` TiB in bytes.
    pub const fn terabytes(n: usize) -> usize {
        n.saturating_mul(GIB).saturating_mul(KIB)
    }
}

/// The unit of commitment: the smallest page that the supported systems use.
pub(crate) const PAGE: usize = 4 * KIB;

/// The unit of the granule map: what a slab is made of.
pub(crate) const GRANULE: usize = 1 << GRANULE_SHIFT;
/// log2 of [`GRANULE`].
pub(crate) const GRANULE_SHIFT: u32 = 16;

/// Granules in a chunk: one bit each in a chunk's bitmaps.
pub(crate) const GRANULES_PER_CHUNK: usize = 64;
/// The unit that a process takes from a region.
pub(crate) const CHUNK: usize = GRANULE * GRANULES_PER_CHUNK;
