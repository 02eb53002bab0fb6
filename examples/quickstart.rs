//! The ten-line version: an ordinary `Vec` on a shared-memory heap, and the pointer that any
//! process which attaches the heap can resolve.

use hshm::{FullPtr, HshmAlloc};

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

fn main() -> Result<(), hshm::Error> {
    let mut numbers: Vec<u64> = (0..1000).collect();
    let full = FullPtr::from_ptr(numbers.as_mut_ptr())?;
    println!("heap     {}", A.share()?);
    println!("here     {:p}", full.as_ptr());
    println!("anywhere {:?}", full.shm());
    assert_eq!(FullPtr::from_shm(full.shm())?, full);
    Ok(())
}
