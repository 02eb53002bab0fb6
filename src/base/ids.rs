//! Identities: allocators, threads, and the context of a request.

use core::fmt;

/// Names an allocator (and with it the region it lives in) in every process that attaches it.
///
/// HSHM's `AllocatorId(major, minor)`. The null id belongs to memory that has no region, such as
/// the C library's heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct AllocatorId {
    major: u32,
    minor: u32,
}

impl AllocatorId {
    /// The id of no allocator.
    pub const NULL: AllocatorId = AllocatorId { major: u32::MAX, minor: u32::MAX };

    /// An id of two numbers. HSHM's allocators are usually `(1, 0)`, `(1, 1)`, ...
    #[inline]
    pub const fn new(major: u32, minor: u32) -> Self {
        AllocatorId { major, minor }
    }
    /// The first number.
    #[inline]
    pub const fn major(self) -> u32 {
        self.major
    }
    /// The second number.
    #[inline]
    pub const fn minor(self) -> u32 {
        self.minor
    }
    /// Whether this is [`AllocatorId::NULL`].
    #[inline]
    pub const fn is_null(self) -> bool {
        self.to_bits() == Self::NULL.to_bits()
    }
    /// Both numbers in one word, the major one in the upper half.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        (self.major as u64) << 32 | self.minor as u64
    }
    /// The inverse of [`AllocatorId::to_bits`].
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        AllocatorId { major: (bits >> 32) as u32, minor: bits as u32 }
    }
}

impl Default for AllocatorId {
    fn default() -> Self {
        AllocatorId::NULL
    }
}

impl fmt::Display for AllocatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_null() {
            f.write_str("null")
        } else {
            write!(f, "{}.{}", self.major, self.minor)
        }
    }
}

impl fmt::Debug for AllocatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AllocatorId({self})")
    }
}

/// Picks a thread block of a [`ThreadLocalAllocator`](crate::ThreadLocalAllocator).
///
/// A negative number is the null id: the allocator derives the block from the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "i32", into = "i32"))]
#[repr(transparent)]
pub struct ThreadId(i32);

impl ThreadId {
    /// No explicit thread.
    pub const NULL: ThreadId = ThreadId(-1);

    /// An explicit thread number; any negative number is null.
    #[inline]
    pub const fn new(number: i32) -> Self {
        if number < 0 { Self::NULL } else { ThreadId(number) }
    }
    /// Whether the thread is to be derived from the caller.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.0 < 0
    }
    /// The number, where one was given.
    #[inline]
    pub const fn number(self) -> Option<u32> {
        if self.0 < 0 { None } else { Some(self.0 as u32) }
    }
}

impl From<i32> for ThreadId {
    fn from(number: i32) -> Self {
        ThreadId::new(number)
    }
}

impl From<ThreadId> for i32 {
    fn from(thread: ThreadId) -> Self {
        thread.0
    }
}

impl Default for ThreadId {
    fn default() -> Self {
        Self::NULL
    }
}

/// What a request says about who makes it (HSHM's `MemContext`).
///
/// `MemContext::default()` is what `HSHM_MCTX` and `HSHM_DEFAULT_MEM_CTX` are in HSHM: the thread
/// is derived. Allocators that have no use for the context ignore it.
///
/// ```
/// use hshm::{MemContext, ThreadId};
/// assert!(MemContext::default().tid.is_null());
/// assert_eq!(MemContext::new(ThreadId::new(3)).tid.number(), Some(3));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemContext {
    /// The thread block to use, or null.
    pub tid: ThreadId,
}

impl MemContext {
    /// The context whose thread is derived from the caller.
    pub const DEFAULT: MemContext = MemContext { tid: ThreadId::NULL };

    /// A context for an explicit thread.
    #[inline]
    pub const fn new(tid: ThreadId) -> Self {
        MemContext { tid }
    }
}
