//! What a caller may ask of a region.

use crate::base::AllocatorId;

/// How to make or attach a [`Region`](crate::Region).
///
/// ```
/// use hshm::{AllocatorId, RegionOptions, Unit};
/// const OPTIONS: RegionOptions =
///     RegionOptions::new().capacity(Unit::gigabytes(1)).id(AllocatorId::new(1, 0));
/// # let _ = OPTIONS;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct RegionOptions {
    pub(super) capacity: usize,
    pub(super) shrink_to: Option<usize>,
    pub(super) id: Option<AllocatorId>,
    pub(super) base: Option<usize>,
    pub(super) align: usize,
    pub(super) same_address: bool,
    pub(super) relocate: bool,
    pub(super) read_only: bool,
    pub(super) custom: Option<(usize, usize)>,
}

impl RegionOptions {
    /// No capacity, a random id, a random address, writable.
    pub const fn new() -> Self {
        RegionOptions {
            capacity: 0,
            shrink_to: None,
            id: None,
            base: None,
            align: super::place::SLOT,
            same_address: false,
            relocate: false,
            read_only: false,
            custom: None,
        }
    }
    /// Length of a new region in bytes, header included; rounded up to whole pages. Ignored by
    /// attach (the header knows) and by arrays (their length is given).
    pub const fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }
    /// Rather than fail for want of addresses (`RLIMIT_AS`), of private memory (`RLIMIT_DATA`), of file
    /// length (`RLIMIT_FSIZE`) or of commitment, make the region shorter, down to `minimum` bytes.
    pub const fn shrink_to_fit(mut self, minimum: usize) -> Self {
        self.shrink_to = Some(minimum);
        self
    }
    /// The id of a new region. It must not be bound to another region of this process. Default:
    /// a random major number, minor 0.
    pub const fn id(mut self, id: AllocatorId) -> Self {
        self.id = Some(id);
        self
    }
    /// The address to try first. Default: a random one for new regions, the creator's for attach.
    pub const fn base(mut self, address: usize) -> Self {
        self.base = Some(address);
        self
    }
    /// Alignment of the base in bytes, a power of two. Default: 64 GiB, the distance of the slots
    /// that make `FullPtr::from_ptr` a table look-up; less than that leaves the slots.
    pub const fn align(mut self, bytes: usize) -> Self {
        self.align = bytes;
        self
    }
    /// Whether attaching at another address than the creator's is an error
    /// ([`Error::Relocated`](crate::Error::Relocated)); plain references inside the region hold
    /// only at the same one. For a new region: whether another address than the one given by
    /// [`base`](RegionOptions::base) is.
    pub const fn same_address(mut self, required: bool) -> Self {
        self.same_address = required;
        self
    }
    /// Attach anywhere but at the creator's address: for tests of code that must bear it.
    pub const fn relocate(mut self, force: bool) -> Self {
        self.relocate = force;
        self
    }
    /// A header of the user's in the region, before everything else: `size` bytes (up to 1 MiB) at
    /// a multiple of `align`, a power of two up to 4096. A new region has it, all zero; attaching
    /// one that has another, or none, is [`Error::Incompatible`](crate::Error::Incompatible). See
    /// [`Region::custom_header`](crate::Region::custom_header).
    pub const fn custom_header(mut self, size: usize, align: usize) -> Self {
        self.custom = Some((size, align));
        self
    }
    /// Attach for reading only; a store into the region is then a fault. A new region cannot be
    /// read-only.
    pub const fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }
}

impl Default for RegionOptions {
    fn default() -> Self {
        Self::new()
    }
}
