//! `HshmAlloc` as a program's global allocator, with regions that are soon full.
mod global;

use hshm::HshmAlloc;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::builder().capacity(8 << 20).retain(1 << 20).build();

global::global_tests! { A }

/// The capacity is that of a region; the heap adds regions as it needs them.
#[test]
fn the_capacity_is_no_limit() {
    use std::alloc::{GlobalAlloc, Layout};
    let _turn = global::turn();
    let size = 30_000;
    let layout = Layout::from_size_align(size, 8).unwrap();
    let count = (1100 << 20) / size;
    // SAFETY: the size is not zero; blocks are freed once.
    unsafe {
        let blocks: Vec<*mut u8> = (0..count).map(|_| A.alloc(layout)).collect();
        let missing = blocks.iter().filter(|block| block.is_null()).count();
        blocks.iter().filter(|b| !b.is_null()).for_each(|block| A.dealloc(*block, layout));
        assert_eq!(missing, 0, "of {count} blocks of {size} bytes");
    }
    global::verify(&A);
    assert!(A.stats().regions < 64);
}
