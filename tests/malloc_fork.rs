//! `MallocAllocator` in a child that was forked while other threads were at work in it: its table must
//! not stay locked there.
#![allow(unsafe_code)] // forks, uses what was allocated

use std::sync::atomic::{AtomicBool, Ordering};

use hshm::{Allocator, MallocAllocator, MemContext};

const CTX: MemContext = MemContext::DEFAULT;

fn work(alloc: &MallocAllocator, rounds: usize) -> Result<(), hshm::Error> {
    for round in 0..rounds {
        let block = alloc.allocate::<u8>(CTX, 32 + round % 500)?;
        // SAFETY: live, and replaced by the result, which is freed at once.
        unsafe {
            let block = alloc.reallocate(CTX, block, 700)?;
            alloc.free(CTX, block)?;
        }
    }
    Ok(())
}

#[test]
fn a_forked_child_goes_on() {
    let alloc = MallocAllocator::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    work(&alloc, 100).unwrap();
                }
            });
        }
        for _ in 0..60 {
            // SAFETY: the child only allocates, from the C library, which may be used after a fork, and
            // ends without unwinding.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    libc::alarm(600);
                    let done = work(&alloc, 2000);
                    libc::_exit(if done.is_ok() { 0 } else { 1 });
                }
                assert!(child > 0);
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                assert_eq!(status, 0, "the child hung or failed");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(alloc.currently_allocated_size(), 0);
}
