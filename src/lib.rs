//! A global allocator whose heap is shared memory: another process reads an ordinary program's
//! objects where they lie.
//!
//! Two lines make it a program's allocator:
//!
//! ```
//! #[global_allocator]
//! static A: hshm::HshmAlloc = hshm::HshmAlloc::new();
//! ```
//!
//! From then on every `Box`, `Vec`, `String` and `BTreeMap` of the program lies in a region of
//! shared memory. A 16-byte [`ShmPtr`] says where, to any process that attaches the heap: nothing
//! is copied, nothing is serialized.
//!
#![cfg_attr(not(feature = "c-api"), doc = "```")]
// With the C library's `malloc` in the program its heap is private, unless the environment says otherwise.
#![cfg_attr(feature = "c-api", doc = "```no_run")]
//! use hshm::{AttachedHeap, FullPtr, HeapToken, HshmAlloc, RegionOptions};
//!
//! #[global_allocator]
//! static A: HshmAlloc = HshmAlloc::new();
//!
//! // Here: an ordinary vector, and what to tell the other process (24 bytes and a line of text).
//! let mut squares: Vec<u64> = (0..1000).map(|n| n * n).collect();
//! let first = FullPtr::from_ptr(squares.as_mut_ptr())?.shm();
//! let (count, token) = (squares.len(), A.share()?.to_string());
//!
//! // There (in this example the same process, which maps its heap a second time):
//! let token: HeapToken = token.parse()?;
//! let heap = AttachedHeap::attach(&token, &RegionOptions::new().read_only(true))?;
//! // SAFETY: that many numbers are there, and their owner leaves them alone while we look.
//! let seen = unsafe { heap.get_shm_slice(first, count)? };
//! assert_eq!(seen[999], 998_001);
//! # Ok::<(), hshm::Error>(())
//! ```
//!
//! The example `wordcount` does it for real: `cargo run --release --example wordcount`.
//!
//! # What there is
//!
//! | for | types |
//! |---|---|
//! | the global allocator | [`HshmAlloc`], [`HshmAllocBuilder`], [`HeapBackend`], [`HeapStats`] |
//! | sharing a heap | [`HeapToken`], [`AttachedHeap`] |
//! | pointers | [`OffsetPtr`] (8 bytes, in one region), [`ShmPtr`] (16 bytes, anywhere), [`FullPtr`] (with the address here), [`AtomicOffsetPtr`], [`AtomicShmPtr`], the marker [`ShmSafe`] |
//! | regions | [`Region`], [`RegionOptions`], [`ShareToken`] |
//! | what is behind them ([`Backend`]) | [`MemfdBackend`], [`PosixShmMmap`], [`FileBackend`], [`PosixMmap`], [`MallocBackend`], [`ArrayBackend`] |
//! | allocators of one's own ([`Allocator`]) | [`ThreadLocalAllocator`], [`ScalablePageAllocator`], [`BuddyAllocator`], [`StackAllocator`], [`MallocAllocator`], for one thread alone [`Exclusive`], bound to a [`MemContext`] by [`CtxAllocator`]; the bump source [`Heap`] |
//! | many of them, by name | [`MemoryManager`], [`MemoryBackendId`], [`AllocatorOptions`], [`ManagedAllocator`] |
//! | containers in shared memory | [`ShmBox`], [`ShmVec`], [`ShmString`], [`ShmHashMap`], and the queue [`ShmRing`] with its [`RingHandle`]s, in a [`ShmHeap`]; more in [`containers`] |
//! | arenas | [`arena`]: [`Arena`](arena::Arena), [`scratch`](arena::scratch), [`ArenaVec`](arena::ArenaVec), pools |
//! | looking inside | [`LeakReport`], [`LeakCheck`], [`LeakSource`], [`Fragmentation`], [`HeapMap`], [`HshmAlloc::verify`], [`HeapReport`], [`Fault`], [`Accounting`] |
//! | which to take, and how | [`guide`] |
//! | real-time programs | [`lock_memory`] |
//! | errors and units | [`Error`], [`ErrorCode`], [`Unit`], [`AllocatorId`], [`ThreadId`] |
//!
//! # References and offsets
//!
//! A process that attaches a region maps it where its creator has it, if that place is free. Then
//! plain references inside it hold, and [`AttachedHeap::get`] gives a `&BTreeMap<String, Vec<_>>`
//! that can be walked like one's own. With
//! [`same_address(true)`](RegionOptions::same_address) it is an error if the place is taken, which
//! is rare: regions lie at random multiples of 64 GiB. Structures made of [`OffsetPtr`] and of
//! other [`ShmSafe`] types hold at any address; the [`containers`] are made of them.
//!
//! Some things hold in no other process: vtables and function pointers (`dyn Trait`, closures),
//! references to statics (an empty `HashMap` of std holds one), file descriptors, thread ids,
//! `thread_local!` keys, and locks that are not made for it. And two programs agree on the layout
//! of a type without `repr(C)` only if they are the same program.
//!
//! # What is safe, and what is not
//!
//! Allocating is as safe as with any other global allocator. Making tokens, attaching, and finding
//! places is safe, too: every number that comes from a token, a pointer or a header is checked, and
//! a bad one is an [`Error`].
//!
//! Looking at another process's values is `unsafe`, because no check can tell whether a value of
//! that type is there and whether its owner leaves it alone. The caller promises both; the owner
//! keeps the promise, by whatever the two processes agreed on.
//!
//! A peer that attached the heap with the right to write can change anything in it, the program's
//! objects and the allocator's tables: its owner trusts it like one of its own threads. Those who
//! may attach at all are processes of the same user with the right to inspect this one, and they
//! see everything in the heap, secrets included. Read-only attachment protects the owner from the
//! reader's mistakes; it is the reader's choice.
//!
//! A forked child gets a copy of the heap, of its own, or none ([`ForkPolicy`]); the parent's objects are
//! never written to by a child. Where no copy can be made (no memory, no descriptor) the child ends with a
//! message.
//!
//! Frees by offset or handle, through [`Allocator`], are checked and refused. `GlobalAlloc` and
//! `free` check when a block leaves a thread's cache: a double free of a cached block is not noticed.
//!
//! # Platforms
//!
//! Linux. x86-64 is what is tested. The design, layer by layer, with the map of a region, is in
//! `src/README.md` of the repository.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod alloc;
pub mod arena;
mod base;
pub mod containers;
mod global;
mod heap;
mod manager;
mod os;
mod ptr;
mod region;
mod share;
mod sync;

pub use alloc::{
    Accounting, Allocator, BlockInfo, BuddyAllocator, CtxAllocator, DEFAULT_PROCESSES,
    DEFAULT_THREAD_BLOCKS, Exclusive, Fragmentation, Heap, HeapMap, LeakCheck, LeakClass,
    LeakReport, LeakSource, MallocAllocator, Owner, ScalablePageAllocator, StackAllocator,
    ThreadLocalAllocator,
};
pub use base::{
    AllocatorId, Error, ErrorCode, GIB, KIB, MIB, MemContext, Result, ThreadId, Unit, align_down,
    align_up, is_aligned,
};
pub use containers::{RingHandle, ShmBox, ShmHashMap, ShmHeap, ShmRing, ShmString, ShmVec};
#[cfg(feature = "c-api")]
pub use global::c_api;
pub use global::{
    AttachedHeap, ForkPolicy, HeapBackend, HeapStats, HeapToken, HshmAlloc, HshmAllocBuilder,
};
pub use heap::{Fault, HeapReport, HugePages};
pub use manager::{
    AllocatorInfo, AllocatorKind, AllocatorOptions, ManagedAllocator, MemoryBackendId,
    MemoryManager,
};
pub use ptr::{AtomicOffsetPtr, AtomicShmPtr, FullPtr, OffsetPtr, ShmPtr, ShmSafe};
pub use region::{
    ArrayBackend, Backend, BackendKind, FileBackend, MallocBackend, MemfdBackend, PosixMmap,
    PosixShmMmap, Region, RegionOptions, ShareToken, lock_memory,
};
pub use share::{Root, RootInfo, Roots, SharedHeap, receive_region, send_region};

/// Which allocator to take, how to use it well, and how to come here from HSHM's C++.
pub mod guide {
    #[doc = include_str!("guide/choosing.md")]
    pub mod choosing {}

    #[doc = include_str!("guide/best_practices.md")]
    pub mod best_practices {}

    #[doc = include_str!("guide/migration.md")]
    pub mod migration {}
}

/// Read-modify-writes of the calling thread so far, by the crate's own atomics. For tests.
#[cfg(hshm_count_rmw)]
pub fn read_modify_writes() -> u64 {
    sync::counted::read_modify_writes()
}

/// Declares structs that are [`ShmSafe`]: `repr(C)`, and every field checked to be `ShmSafe`.
///
/// ```
/// hshm::shm_struct! {
///     /// A point.
///     #[derive(Clone, Copy, Debug)]
///     pub struct Point { pub x: f64, pub y: f64 }
/// }
/// fn any_process<T: hshm::ShmSafe>(_: T) {}
/// any_process(Point { x: 1.0, y: 2.0 });
/// ```
///
/// ```compile_fail
/// hshm::shm_struct! { struct Named { name: String } }
/// ```
#[macro_export]
macro_rules! shm_struct {
    ($(
        $(#[$attribute:meta])* $visible:vis struct $name:ident {
            $( $(#[$of_field:meta])* $see:vis $field:ident : $type:ty ),* $(,)?
        }
    )*) => { $(
        $(#[$attribute])*
        #[repr(C)]
        $visible struct $name {
            $( $(#[$of_field])* $see $field: $type ),*
        }
        const _: () = {
            const fn is_safe<T: $crate::ShmSafe>() {}
            $( is_safe::<$type>(); )*
        };
        // SAFETY: `repr(C)`, and each field's type is `ShmSafe`, as was just checked.
        #[allow(unsafe_code)] // implements an unsafe marker trait, for types that it has checked
        unsafe impl $crate::ShmSafe for $name {}
    )* };
}
