//! One suite, run for every allocator over every backend.
//!
//! `suite` is what every [`Allocator`](hshm::Allocator) has to do, written once; `subject` says
//! how each allocator is made and looked into, and how each backend is.
#![allow(unsafe_code)] // uses what was allocated
#![allow(unreachable_pub)] // modules of a program

#[path = "conformance/objects.rs"]
mod objects;
#[path = "conformance/subject.rs"]
mod subject;
#[path = "conformance/suite.rs"]
mod suite;
mod support;

/// All tests, wherever they are written.
mod tests_of {
    pub use crate::objects::*;
    pub use crate::suite::*;
}

/// The tests of the suite for one allocator over one backend.
macro_rules! tests {
    ($subject:ty, $backend:expr; $($test:ident)*) => { $(
        #[test]
        fn $test() {
            crate::tests_of::$test::<$subject>(&$backend);
        }
    )* };
}

macro_rules! conformance {
    ($($allocator:ident: $subject:ty { $($backend:ident)* })*) => { $(
        mod $allocator { $(
            mod $backend {
                tests! { $subject, crate::subject::$backend();
                    sizes_and_contents
                    large_sizes
                    alignments
                    sizes_of_zero
                    zeroed_allocation
                    reallocation_keeps_contents
                    reallocation_in_place
                    failed_reallocation_changes_nothing
                    usable_size
                    out_of_memory_and_recovery
                    bad_frees_change_nothing
                    sizes_that_overflow
                    pointer_constructors
                    contexts
                    threads_free_each_others_blocks
                    objects
                    arrays
                    panics_in_constructors
                    panics_in_destructors
                    object_calls_that_are_refused
                    errors_are_truthful
                    blocks_are_visited
                    leaks_are_reported
                }
            }
        )* }
    )* };
}

conformance! {
    stack: hshm::StackAllocator { posix_shm memfd file posix_mmap malloc array }
    buddy: hshm::BuddyAllocator { posix_shm memfd file posix_mmap malloc array }
    thread_local: hshm::ThreadLocalAllocator { posix_shm memfd file posix_mmap malloc array }
    scalable_page: hshm::ScalablePageAllocator { posix_shm memfd file posix_mmap malloc array }
    c_library: hshm::MallocAllocator { no_region }
}
