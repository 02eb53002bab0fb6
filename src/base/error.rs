//! The one error type.
//!
//! Errors are small `Copy` values: none of them owns memory, so reporting that there is no memory
//! never needs any.

use core::fmt;

use super::ids::AllocatorId;

/// `Result` with [`Error`] filled in.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Everything that can go wrong with a region, an allocator or a pointer.
///
/// [`Error::code`] gives the kind without its details, for matching and for foreign interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Error {
    /// No room for the request.
    OutOfMemory {
        /// Bytes asked for. `usize::MAX` when the size itself overflowed.
        requested: usize,
        /// Bytes that the allocator could still give, all together; a single block of that size
        /// need not exist.
        available: usize,
    },
    /// An alignment that is zero, not a power of two, or more than the allocator can honour.
    BadAlignment {
        /// The alignment asked for, in bytes.
        align: usize,
    },
    /// A size that is zero where that means nothing, or too small to hold what it must.
    TooSmall {
        /// Bytes given.
        given: usize,
        /// Bytes that are needed at the least.
        minimum: usize,
    },
    /// A size, capacity or count beyond what the format can express.
    TooLarge {
        /// The value given.
        given: usize,
        /// The largest value allowed.
        maximum: usize,
    },
    /// A pointer that no attached region contains.
    NotInAnyRegion {
        /// The address asked about.
        address: usize,
    },
    /// No attached region or allocator has this id.
    UnknownAllocator {
        /// The id asked about.
        id: AllocatorId,
    },
    /// No backend has this number.
    UnknownBackend {
        /// The number asked about.
        id: u32,
    },
    /// A shared pointer that belongs to another allocator.
    ForeignPointer {
        /// The id inside the pointer.
        found: AllocatorId,
        /// The id of the allocator that was asked.
        expected: AllocatorId,
    },
    /// An offset past the end of its region, or a null one where that means nothing.
    OffsetOutOfRange {
        /// The offset, in bytes from the region's base.
        offset: u64,
        /// The region's length in bytes.
        length: u64,
    },
    /// An offset that is not the start of a block handed out by this allocator.
    NotABlock {
        /// The offset, in bytes from the region's base.
        offset: u64,
    },
    /// A block that is already free.
    DoubleFree {
        /// The offset, in bytes from the region's base.
        offset: u64,
    },
    /// No segment has this name, or no file is there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The name is empty, too long, or has bytes that a name cannot have.
    BadName,
    /// The system refused access.
    PermissionDenied,
    /// What is there is not an hshm region (its magic number is wrong).
    NotARegion,
    /// The file is shorter than its header says.
    Truncated {
        /// Bytes the file has.
        length: u64,
        /// Bytes the header promises.
        expected: u64,
    },
    /// The header is inconsistent: made by something else, or damaged.
    Corrupt,
    /// The region was made by an incompatible version or with another layout or page size.
    Incompatible {
        /// What the region says.
        found: u32,
        /// What this library needs.
        expected: u32,
    },
    /// The region's creator has not finished, or died before it did.
    NotReady,
    /// The region could only be mapped at another address than its creator's, and plain references
    /// were asked for.
    Relocated,
    /// The attachment is read-only.
    ReadOnly,
    /// The thing cannot be shared: it lives in memory private to this process.
    NotShared,
    /// All slots of a fixed table (processes, regions, thread blocks) are taken.
    TableFull {
        /// How many there are.
        slots: usize,
    },
    /// The handle was made by this process's parent, before a fork: attach again.
    Forked,
    /// The allocator or backend does not do this.
    Unsupported,
    /// A scope of this arena is open: push into the scope.
    ScopeOpen,
    /// A living process holds a lock of the region, and does not leave it.
    Busy,
    /// The operating system said no; the value is `errno`.
    Os(i32),
}

/// The kind of an [`Error`], without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum ErrorCode {
    /// See [`Error::OutOfMemory`].
    OutOfMemory = 1,
    /// See [`Error::BadAlignment`].
    BadAlignment = 2,
    /// See [`Error::TooSmall`].
    TooSmall = 3,
    /// See [`Error::TooLarge`].
    TooLarge = 4,
    /// See [`Error::NotInAnyRegion`].
    NotInAnyRegion = 5,
    /// See [`Error::UnknownAllocator`].
    UnknownAllocator = 6,
    /// See [`Error::ForeignPointer`].
    ForeignPointer = 7,
    /// See [`Error::OffsetOutOfRange`].
    OffsetOutOfRange = 8,
    /// See [`Error::NotABlock`].
    NotABlock = 9,
    /// See [`Error::DoubleFree`].
    DoubleFree = 10,
    /// See [`Error::NotFound`].
    NotFound = 11,
    /// See [`Error::AlreadyExists`].
    AlreadyExists = 12,
    /// See [`Error::BadName`].
    BadName = 13,
    /// See [`Error::PermissionDenied`].
    PermissionDenied = 14,
    /// See [`Error::NotARegion`].
    NotARegion = 15,
    /// See [`Error::Truncated`].
    Truncated = 16,
    /// See [`Error::Corrupt`].
    Corrupt = 17,
    /// See [`Error::Incompatible`].
    Incompatible = 18,
    /// See [`Error::NotReady`].
    NotReady = 19,
    /// See [`Error::Relocated`].
    Relocated = 20,
    /// See [`Error::ReadOnly`].
    ReadOnly = 21,
    /// See [`Error::NotShared`].
    NotShared = 22,
    /// See [`Error::TableFull`].
    TableFull = 23,
    /// See [`Error::Unsupported`].
    Unsupported = 24,
    /// See [`Error::Os`].
    Os = 25,
    /// See [`Error::Forked`].
    Forked = 26,
    /// See [`Error::ScopeOpen`].
    ScopeOpen = 27,
    /// See [`Error::Busy`].
    Busy = 28,
    /// See [`Error::UnknownBackend`].
    UnknownBackend = 29,
}

impl Error {
    /// The kind of this error.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Error::OutOfMemory { .. } => ErrorCode::OutOfMemory,
            Error::BadAlignment { .. } => ErrorCode::BadAlignment,
            Error::TooSmall { .. } => ErrorCode::TooSmall,
            Error::TooLarge { .. } => ErrorCode::TooLarge,
            Error::NotInAnyRegion { .. } => ErrorCode::NotInAnyRegion,
            Error::UnknownAllocator { .. } => ErrorCode::UnknownAllocator,
            Error::UnknownBackend { .. } => ErrorCode::UnknownBackend,
            Error::ForeignPointer { .. } => ErrorCode::ForeignPointer,
            Error::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            Error::NotABlock { .. } => ErrorCode::NotABlock,
            Error::DoubleFree { .. } => ErrorCode::DoubleFree,
            Error::NotFound => ErrorCode::NotFound,
            Error::AlreadyExists => ErrorCode::AlreadyExists,
            Error::BadName => ErrorCode::BadName,
            Error::PermissionDenied => ErrorCode::PermissionDenied,
            Error::NotARegion => ErrorCode::NotARegion,
            Error::Truncated { .. } => ErrorCode::Truncated,
            Error::Corrupt => ErrorCode::Corrupt,
            Error::Incompatible { .. } => ErrorCode::Incompatible,
            Error::NotReady => ErrorCode::NotReady,
            Error::Relocated => ErrorCode::Relocated,
            Error::ReadOnly => ErrorCode::ReadOnly,
            Error::NotShared => ErrorCode::NotShared,
            Error::TableFull { .. } => ErrorCode::TableFull,
            Error::Forked => ErrorCode::Forked,
            Error::Unsupported => ErrorCode::Unsupported,
            Error::ScopeOpen => ErrorCode::ScopeOpen,
            Error::Busy => ErrorCode::Busy,
            Error::Os(_) => ErrorCode::Os,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::OutOfMemory { requested, available } => {
                write!(f, "out of memory: {requested} bytes requested, {available} available")
            }
            Error::BadAlignment { align } => write!(f, "alignment {align} cannot be honoured"),
            Error::TooSmall { given, minimum } => {
                write!(f, "{given} bytes are too few, at least {minimum} are needed")
            }
            Error::TooLarge { given, maximum } => {
                write!(f, "{given} is too large, at most {maximum} is allowed")
            }
            Error::NotInAnyRegion { address } => {
                write!(f, "address {address:#x} lies in no attached region")
            }
            Error::UnknownAllocator { id } => write!(f, "no attached allocator has the id {id}"),
            Error::UnknownBackend { id } => write!(f, "there is no backend {id}"),
            Error::ForeignPointer { found, expected } => {
                write!(f, "the pointer belongs to allocator {found}, not to {expected}")
            }
            Error::OffsetOutOfRange { offset, length } => {
                write!(f, "offset {offset:#x} is outside the region's {length:#x} bytes")
            }
            Error::NotABlock { offset } => {
                write!(f, "offset {offset:#x} is not the start of an allocated block")
            }
            Error::DoubleFree { offset } => {
                write!(f, "the block at offset {offset:#x} is already free")
            }
            Error::NotFound => f.write_str("no such segment"),
            Error::AlreadyExists => f.write_str("the name is taken"),
            Error::BadName => f.write_str("not a valid segment name"),
            Error::PermissionDenied => f.write_str("permission denied"),
            Error::NotARegion => f.write_str("not an hshm region"),
            Error::Truncated { length, expected } => {
                write!(f, "truncated: {length} bytes where the header promises {expected}")
            }
            Error::Corrupt => f.write_str("the region's header is inconsistent"),
            Error::Incompatible { found, expected } => {
                write!(f, "incompatible region: found {found:#x}, need {expected:#x}")
            }
            Error::NotReady => f.write_str("the region's creator has not finished it"),
            Error::Relocated => {
                f.write_str("the region is mapped at another address than its creator's")
            }
            Error::ReadOnly => f.write_str("the attachment is read-only"),
            Error::NotShared => f.write_str("private memory cannot be shared"),
            Error::TableFull { slots } => write!(f, "all {slots} slots are taken"),
            Error::Forked => f.write_str("the handle is the parent process's; attach again"),
            Error::Unsupported => f.write_str("not supported here"),
            Error::ScopeOpen => f.write_str("a scope of this arena is open: push into the scope"),
            Error::Busy => f.write_str("a lock of the region is held, and is not left"),
            Error::Os(errno) => write!(f, "operating system error {errno}"),
        }
    }
}

impl core::error::Error for Error {}
