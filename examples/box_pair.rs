//! Makes and drops a box in a loop, for counting instructions: `box_pair <size> <rounds>`.

use std::hint::black_box;

use hshm::HshmAlloc;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

fn pairs<const N: usize>(rounds: u64) {
    for _ in 0..rounds {
        drop(black_box(Box::<[u8; N]>::new_uninit()));
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let (size, rounds) = (args.next().unwrap_or(32), args.next().unwrap_or(1_000_000));
    match size {
        32 => pairs::<32>(rounds),
        4000 => pairs::<4000>(rounds),
        20000 => pairs::<20000>(rounds),
        _ => panic!("sizes are 32, 4000 and 20000"),
    }
}
