//! `HshmAlloc` as a program's global allocator, over private memory.
mod global;

use hshm::HshmAlloc;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::builder().backend(hshm::HeapBackend::Private).build();

global::global_tests! { A }
