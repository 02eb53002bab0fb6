//! Pointers that mean the same in every process.
//!
//! ```text
//! OffsetPtr<T>   8 bytes   distance from the region's base; which region is known from elsewhere
//! ShmPtr<T>     16 bytes   AllocatorId + OffsetPtr: complete, can be sent to another process
//! FullPtr<T>    24 bytes   a process-local pointer + the ShmPtr: fast here, meaningful there
//! ```
//!
//! The atomic forms hold the same bytes. `AtomicOffsetPtr` is one word with all the usual
//! operations. `AtomicShmPtr` is two words, which no portable atomic covers, so its stores are
//! ordered and its loads can tell a torn pair: see there.
//!
//! None of these types owns anything, and making one never touches memory: they are numbers until
//! an `unsafe` dereference. How a `FullPtr` is found from an address or from a `ShmPtr` alone is
//! the region registry's business (`region`); the constructors from an allocator are in `alloc`.

mod full;
mod offset;
mod safe;
mod shm;

pub use full::FullPtr;
pub use offset::{AtomicOffsetPtr, OffsetPtr};
pub use safe::ShmSafe;
pub use shm::{AtomicShmPtr, ShmPtr};
