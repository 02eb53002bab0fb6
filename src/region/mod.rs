//! Regions: ranges of addresses with a segment behind them, in which offsets mean the same to
//! every process.
//!
//! | part | what it does |
//! |---|---|
//! | `header` | the first page of a region, and what makes one believable |
//! | `options` | what a caller may ask for |
//! | `place` | where in the address space a region goes |
//! | `registry` | which regions this process has: by address, by id |
//! | `handle` | [`Region`], the counted handle, and what can be done with its pages |
//! | `make` | the steps of creating and attaching that the backends have in common |
//! | `backend`, `named`, `memfd`, `private` | the kinds of segment |
//! | `nested` | regions inside others |
//! | `fork` | a forked child's own copy of a region |
//! | `token` | telling another process where a region is |
//! | `lock` | keeping all of a process's memory in memory, but for what is empty |
//! | `resolve` | `FullPtr` from an address or from a `ShmPtr` |
//!
//! ```text
//!  base                                                                   base + len
//!   | header, one page | payload ......................................... |
//!   0                  payload_offset                                     offsets
//! ```
//!
//! Nothing here allocates: regions are made inside `malloc`.

mod backend;
mod fork;
mod handle;
pub(crate) mod header;
mod lock;
mod make;
mod memfd;
mod named;
mod nested;
mod options;
pub(crate) mod place;
mod private;
pub(crate) mod registry;
mod resolve;
mod token;

pub use backend::{Backend, BackendKind};
pub(crate) use handle::ENGINE_MAKING;
pub use handle::Region;
pub use lock::lock_memory;
#[cfg(feature = "c-api")]
pub(crate) use lock::lock_memory_or_errno;
pub use memfd::MemfdBackend;
pub(crate) use named::FileId;
pub use named::{FileBackend, PosixShmMmap};
pub use options::RegionOptions;
pub use private::{ArrayBackend, MallocBackend, PosixMmap};
pub use token::ShareToken;
