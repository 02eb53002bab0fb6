//! Position-independent engines without thread state.
//!
//! Two engines and what they share. The paged heap (under `ThreadLocalAllocator` and `HshmAlloc`)
//! keeps all it knows out of band, in tables of fixed place:
//!
//! ```text
//! layout    where everything lies in a region; a process's view of it
//! granule   the granule map's entries
//! chunk     the heap source: whole chunks, large blocks      dirty   what of them holds anything
//! process   process blocks and their granule runs
//! slab      blocks of one class      run      blocks of neighbouring granules
//! block     blocks by address        remote   returning blocks to another's slab
//! thread    thread blocks and thread heaps      spare    the runs that they keep
//! reserve   the empty slabs that they keep
//! huge      huge pages      touches   how large blocks are used
//! locks     the locks of all these, and a fork's hold on them
//! liveness  joining, leaving, and whether the others still live
//! keeper    blocks that were handed over
//! naming    blocks on their way to a name
//! reap      what becomes of a dead process's things
//! adopt     free room in chunks of those that are gone
//! census    what is handed out, what is free, and how scattered that is
//! verify    walks every invariant
//! ```
//!
//! The in-band heap (under `BuddyAllocator` and `StackAllocator`) has a header before every block:
//!
//! ```text
//! words     one checked word of a mapped region at a time
//! page      the header in front of every block: true size, in-use bit, tag
//! bump      Heap: the atomic bump source that everything else falls back to
//! rbtree    a red-black tree whose nodes live inside free blocks
//! buddy     pages of any size in power-of-two lists, coalesced by address
//! ```
//!
//! Everything that the engines store is an offset, an index or a count, and every word of it is
//! read as an atomic and checked before it is used as a place: a region that another process
//! damages gives errors, not undefined behaviour.

pub(crate) mod adopt;
pub(crate) mod block;
pub(crate) mod buddy;
pub(crate) mod bump;
pub(crate) mod census;
pub(crate) mod chunk;
pub(crate) mod dirty;
pub(crate) mod granule;
pub(crate) mod huge;
pub(crate) mod keeper;
pub(crate) mod layout;
pub(crate) mod liveness;
pub(crate) mod locks;
pub(crate) mod naming;
pub(crate) mod page;
pub(crate) mod process;
#[allow(dead_code)] // the best-fit heap takes what coalescing has no use for
pub(crate) mod rbtree;
pub(crate) mod reap;
pub(crate) mod remote;
pub(crate) mod reserve;
pub(crate) mod run;
pub(crate) mod slab;
pub(crate) mod spare;
pub(crate) mod thread;
pub(crate) mod touches;
pub(crate) mod verify;
pub(crate) mod words;

pub use bump::Heap;
pub use census::Fragmentation;
pub use huge::HugePages;
pub use verify::{Fault, HeapReport};
