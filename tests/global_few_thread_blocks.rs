//! `HshmAlloc` as a program's global allocator, with fewer thread blocks than threads.
mod global;

use hshm::HshmAlloc;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::builder().thread_blocks(2).build();

global::global_tests! { A }
