//! Containers that live in shared memory and need no stable address.
//!
//! Each is a few words, `repr(C)` and [`ShmSafe`](crate::ShmSafe): the id of its heap, an offset,
//! counts. It may lie anywhere: on the stack, in the heap, in another container. Whoever uses it
//! finds its heap by the id ([`ShmHeap`]); each process has the heap wherever it is mapped there.
//!
//! ```text
//!  process A                 the heap (a region)                            process B
//!  heap id -> base, alloc    | ShmHashMap | table: entries, tags | ... |    heap id -> base', alloc'
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `heap` | [`ShmHeap`]: id to base, length and allocator of this process |
//! | `boxed`, `vec`, `string` | one value, an array, a text |
//! | `map` | keys and values: the table, its hash, entries, iterators |
//! | `ring` | a queue: its kernel, its members |
//! | `compare` | what slices and texts can do, for vectors and strings |
//!
//! What is checked: that every offset and length that is read from memory lies in the heap, each time
//! it is followed. A container with damaged words gives a panic with a message, an error or a wrong
//! answer, and touches nothing outside its heap. What cannot be checked is that the *elements* are
//! valid values, and that nobody writes to them at the same time; so the first reference to what
//! another process made is `unsafe` ([`ShmHeap::get`], `Roots::get`), and everything from there on
//! is not.

mod boxed;
mod compare;
mod heap;
mod map;
mod ring;
mod string;
mod vec;

pub use boxed::ShmBox;
pub use heap::ShmHeap;
pub use map::{
    Entry, IntoIter as MapIntoIter, Iter as MapIter, IterMut as MapIterMut, OccupiedEntry,
    ShmHashMap, VacantEntry,
};
pub use ring::{RingHandle, ShmRing};
pub use string::ShmString;
pub use vec::{IntoIter as VecIntoIter, ShmVec};
