//! The memory manager: backends by number, allocators by id, and what of it other processes find.
//!
//! | part | what it does |
//! |---|---|
//! | `url` | which backend an address means |
//! | `kind` | what the manager must know of an allocator: how it is made, attached, recorded |
//! | `directory` | which allocators a backend has, and where: in its first page, for all processes |
//! | `backends` | [`MemoryManager`]: making, attaching, giving up backends |
//! | `allocators` | the same for allocators, and the default one |
//!
//! ```text
//! backend (a region):  | header | directory | allocator (a region inside) | another |   free   |
//! allocator:           | header | custom header | the engine's data ... [ a sub-allocator ] ... |
//! ```
//!
//! Nothing here is called by an allocation: the manager makes allocators and hands them out as [`Arc`]s.
//! It may allocate, take locks, and wait.
//!
//! [`Arc`]: std::sync::Arc

mod allocators;
mod backends;
mod directory;
mod kind;
mod url;

pub use backends::{MemoryBackendId, MemoryManager};
pub use directory::AllocatorInfo;
pub use kind::{AllocatorKind, AllocatorOptions, ManagedAllocator};
