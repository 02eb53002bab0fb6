//! Arenas: memory that is handed out piece by piece and taken back all at once.
//!
//! For things that live and die together (a request, a frame, a syntax tree), an arena is faster
//! than any general allocator: a push is one addition and one comparison, and taking everything
//! back is one store. It is the wrong thing for values that are freed one by one in any order, and
//! for values whose destructors matter (they do not run; see [`Owned`]).
//!
//! | for | types |
//! |---|---|
//! | memory that grows in one of four ways | [`Arena`], [`ArenaBuilder`], [`Growth`], [`Zeroing`] |
//! | several threads | [`SyncArena`] |
//! | several processes | [`RegionArena`], [`ArenaReader`] |
//! | temporaries | [`scratch`], [`Temp`], [`TempMut`], [`Arena::scope`] |
//! | values with destructors | [`Owned`] |
//! | growing arrays and texts | [`ArenaVec`], [`ArenaString`] |
//! | lifetimes inside the arena's | [`Pool`], [`RawPool`], [`BestFit`], [`Tiers`] |
//! | cutting memory oneself | [`page_size`], [`align_address`], [`natural_align`], [`SizeClasses`] |
//!
//! ```
//! use hshm::arena::Arena;
//! #[derive(Debug)]
//! enum Tree<'a> {
//!     Leaf(u32),
//!     Sum(&'a Tree<'a>, &'a Tree<'a>),
//! }
//! let arena = Arena::new();
//! let two = &*arena.push_value(Tree::Leaf(2));
//! let four = arena.push_value(Tree::Sum(two, two));
//! assert_eq!(format!("{four:?}"), "Sum(Leaf(2), Leaf(2))");
//! ```
//!
//! The features `allocator-api2-02` and `allocator-api2-04` make arenas (and all other allocators of
//! the crate) allocators for collections that know that trait;
//! `arena-trace` lets them count (`Arena::stats`), log (`Arena::set_log`) and draw themselves
//! (`Arena::draw_text`, `Arena::draw_svg`). Under AddressSanitizer a touch of popped bytes is
//! reported; debug builds fill them.
//!
//! None of this needs an [`HshmAlloc`](crate::HshmAlloc): the memory comes from the program's global
//! allocator, from the system, from the caller, or from any allocator of the crate
//! ([`ArenaBuilder::build_in`]).

#[cfg(any(feature = "allocator-api2-02", feature = "allocator-api2-04"))]
mod adapter;
mod back;
mod best_fit;
mod block;
mod bump;

#[cfg(feature = "arena-trace")]
mod draw;
mod helpers;
mod options;
mod owned;
mod poison;
mod pool;
mod push;
mod region;
mod scratch;
mod string;
mod sync_arena;
mod temp;
mod tiers;
mod trace;
mod vec;

pub use best_fit::{BestFit, BestFitStats};
pub use bump::Arena;
pub use helpers::{SizeClasses, align_address, natural_align, page_size};
pub use options::{ArenaBuilder, Growth, Zeroing};
pub use owned::Owned;
pub use pool::{CACHE_LINE, Pool, Pooled, RawPool};
pub use region::{ArenaReader, RegionArena};
pub use scratch::{GlobalScratch, Scratch, scratch, scratch_global, scratch_mapped, try_scratch};
pub use string::ArenaString;
pub use sync_arena::SyncArena;
pub use temp::{Temp, TempMut};
pub use tiers::{Bin, Tiers};
#[cfg(feature = "arena-trace")]
pub use trace::{ArenaEvent, ArenaLog, ArenaStats};
pub use vec::{ArenaVec, Drain};

#[cfg(all(test, not(loom)))]
mod tests;
