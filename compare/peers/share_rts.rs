//! The loads of several processes over the crate `rts-alloc`, as far as it has the sizes.

#[path = "../sharing/mod.rs"]
mod sharing;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::ptr::NonNull;

use rts_alloc::Allocator;

/// What its documentation and tests use.
const SLAB: u32 = 2 << 20;

struct Shared(Allocator);

impl sharing::Heap for Shared {
    type Place = File;
    const LARGEST: usize = 4096;

    fn create(bytes: usize) -> File {
        // SAFETY: a name that ends, and a flag.
        let fd = unsafe { libc::memfd_create(c"share".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: just opened.
        let file = unsafe { File::from_raw_fd(fd) };
        // SAFETY: once for this file.
        drop(unsafe { Allocator::create(&file, bytes, 64, SLAB) }.expect("an allocator"));
        file
    }
    fn attach(file: &File) -> Self {
        Shared(Allocator::join(file).expect("the allocator"))
    }
    fn destroy(_: &File) {}
    fn allocate(&self, size: usize) -> Option<u64> {
        let block = self.0.allocate(size as u32).or_else(|| {
            self.0.clean_remote_frees();
            self.0.allocate(size as u32)
        })?;
        // SAFETY: its own block.
        Some(unsafe { self.0.offset(block) } as u64)
    }
    fn free(&self, block: u64) {
        // SAFETY: the loads free a block once, and do not use it afterwards.
        unsafe { self.0.free_offset(block as usize) };
    }
    fn at(&self, block: u64) -> *mut u8 {
        // SAFETY: a block of this allocator.
        let place: NonNull<u8> = unsafe { self.0.ptr_from_offset(block as usize) };
        place.as_ptr()
    }
    fn tidy(&self) {
        self.0.clean_remote_frees();
    }
}

fn main() -> std::process::ExitCode {
    sharing::main::<Shared>()
}
