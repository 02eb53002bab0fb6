//! `HshmAlloc` as a program's global allocator, with the default settings.
mod global;

use hshm::HshmAlloc;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

global::global_tests! { A }
