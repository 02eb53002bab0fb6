//! The loads of several processes over hshm's `ThreadLocalAllocator`, each with a thread block to
//! itself.

#[path = "../sharing/mod.rs"]
mod sharing;

use std::alloc::Layout;
use std::mem::ManuallyDrop;

use hshm::{
    Backend, Exclusive, MemfdBackend, OffsetPtr, Region, RegionOptions, ThreadLocalAllocator,
};

/// The handle goes before what it is of.
struct Shared {
    own: ManuallyDrop<Exclusive<'static>>,
    alloc: *mut ThreadLocalAllocator,
}

impl sharing::Heap for Shared {
    /// The descriptor, and the allocator that the process which made it has.
    type Place = (Region, i32);
    const LARGEST: usize = 1 << 30;

    fn create(bytes: usize) -> Self::Place {
        // The tables take their part of it.
        let options = RegionOptions::new().capacity(bytes + bytes / 8 + (16 << 20));
        let region = MemfdBackend::create("share", &options).expect("a region");
        // What belongs to the maker stays when it leaves: nothing.
        drop(ThreadLocalAllocator::shm_init(region.clone()).expect("an allocator"));
        let fd = region.fd().expect("a descriptor");
        (region, fd)
    }
    fn attach((_, fd): &Self::Place) -> Self {
        let region = MemfdBackend::attach_fd(*fd, &RegionOptions::new()).expect("the region");
        let alloc = ThreadLocalAllocator::shm_attach(region, 0, 2).expect("the allocator");
        let alloc = Box::into_raw(Box::new(alloc));
        // SAFETY: it lives until `drop`, which drops the handle first.
        let own = unsafe { &*alloc }.exclusive().expect("a thread block");
        Shared { own: ManuallyDrop::new(own), alloc }
    }
    fn destroy(_: &Self::Place) {}
    fn allocate(&self, size: usize) -> Option<u64> {
        let layout = Layout::from_size_align(size, 8).ok()?;
        Some(self.own.allocate_offset(layout).ok()?.offset())
    }
    fn free(&self, block: u64) {
        // SAFETY: the loads free a block once, and do not use it afterwards.
        unsafe { self.own.free_offset(OffsetPtr::new(block)) }.expect("a block");
    }
    fn at(&self, block: u64) -> *mut u8 {
        self.own.resolve(OffsetPtr::new(block))
    }
    fn give_all(self) {
        // Whoever leaves without `shm_detach` leaves everything where it is.
        drop(self);
    }
    fn recover(&self) -> bool {
        // Nothing to do: whoever needs memory takes it back.
        true
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: each once, the handle before its allocator, which `attach` made with `Box`.
        unsafe {
            ManuallyDrop::drop(&mut self.own);
            drop(Box::from_raw(self.alloc));
        }
    }
}

fn main() -> std::process::ExitCode {
    sharing::main::<Shared>()
}
