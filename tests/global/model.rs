//! The allocator against an oracle that knows every live block.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;

use hshm::{HshmAlloc, KIB, MIB};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::Block;

#[derive(Clone, Debug)]
enum Step {
    Allocate {
        size: usize,
        align: usize,
        zeroed: bool,
    },
    Free(usize),
    Reallocate(usize, usize),
    /// In a thread of its own.
    FreeElsewhere(usize),
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 1usize..300,
        4 => 1usize..9000,
        2 => 20 * KIB..70 * KIB,
        1 => 1usize..600 * KIB,
        1 => MIB..5 * MIB,
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let align = prop_oneof![6 => 0u32..5, 2 => 0u32..13, 1 => 13u32..23];
    let step = prop_oneof![
        5 => (sizes(), align, any::<bool>())
            .prop_map(|(size, shift, zeroed)| Step::Allocate { size, align: 1 << shift, zeroed }),
        3 => any::<usize>().prop_map(Step::Free),
        2 => (any::<usize>(), sizes()).prop_map(|(which, size)| Step::Reallocate(which, size)),
        1 => any::<usize>().prop_map(Step::FreeElsewhere),
    ];
    prop::collection::vec(step, 1..150)
}

/// The block's range overlaps no other.
fn insert(live: &mut BTreeMap<usize, Block>, block: Block) {
    let (start, end) = (block.at.addr(), block.at.addr() + block.layout.size());
    if let Some((_, before)) = live.range(..end).next_back() {
        let ends = before.at.addr() + before.layout.size();
        assert!(ends <= start, "{:?} overlaps {:?}", block.layout, before.layout);
    }
    live.insert(start, block);
}

fn take(live: &mut BTreeMap<usize, Block>, which: usize) -> Option<Block> {
    let key = *live.keys().nth(which % live.len().max(1))?;
    live.remove(&key)
}

fn run(alloc: &'static HshmAlloc, steps: Vec<Step>) {
    let mut live: BTreeMap<usize, Block> = BTreeMap::new();
    for (number, step) in steps.into_iter().enumerate() {
        let byte = number as u8 | 1;
        match step {
            Step::Allocate { size, align, zeroed: false } => {
                insert(&mut live, Block::new(alloc, size, align, byte));
            }
            Step::Allocate { size, align, zeroed: true } => {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the size is not zero.
                let at = unsafe { alloc.alloc_zeroed(layout) };
                assert!(!at.is_null() && at.addr().is_multiple_of(align));
                let block = Block { alloc, at, layout, byte: 0 };
                block.check();
                insert(&mut live, block);
            }
            Step::Free(which) => drop(take(&mut live, which)),
            Step::FreeElsewhere(which) => {
                let block = take(&mut live, which);
                std::thread::spawn(move || drop(block)).join().unwrap();
            }
            Step::Reallocate(which, size) => {
                if let Some(mut block) = take(&mut live, which) {
                    assert!(block.reallocate(size));
                    insert(&mut live, block);
                }
            }
        }
    }
    live.values().for_each(Block::check);
}

pub fn against_an_oracle(alloc: &'static HshmAlloc) {
    let config = Config { cases: 80, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[17; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner
        .run(&steps(), |steps| {
            run(alloc, steps);
            Ok(())
        })
        .unwrap();
}
