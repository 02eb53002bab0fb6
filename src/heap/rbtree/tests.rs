//! The tree against `BTreeMap`, and the tree with damaged links.

use core::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const NONE: u64 = u64::MAX;

/// Nodes of four words at multiples of 32; the key is (size, offset), as a best-fit heap has it.
struct Field {
    words: RefCell<Vec<u64>>,
    sizes: Vec<u64>,
    root: Cell<u64>,
    steps: Cell<usize>,
}

impl Field {
    fn new(sizes: Vec<u64>) -> Field {
        let words = RefCell::new(vec![0; sizes.len() * 4]);
        Field { words, sizes, root: Cell::new(NONE), steps: Cell::new(0) }
    }
    fn slot(&self, node: Node, word: usize) -> Result<usize> {
        self.steps.set(self.steps.get() + 1);
        if !node.0.is_multiple_of(32) || node.0 / 32 >= self.sizes.len() as u64 {
            return Err(Error::Corrupt);
        }
        Ok((node.0 / 8) as usize + word)
    }
}

fn option(raw: u64) -> Option<Node> {
    (raw != NONE).then_some(Node(raw))
}

impl Nodes for &Field {
    type Key = (u64, u64);
    fn key(&self, node: Node) -> Result<(u64, u64)> {
        self.slot(node, 0)?;
        Ok((self.sizes[(node.0 / 32) as usize], node.0))
    }
    fn link(&self, node: Node, link: Link) -> Result<Option<Node>> {
        Ok(option(self.words.borrow()[self.slot(node, link as usize)?]))
    }
    fn set_link(&self, node: Node, link: Link, to: Option<Node>) -> Result<()> {
        let slot = self.slot(node, link as usize)?;
        self.words.borrow_mut()[slot] = to.map_or(NONE, |n| n.0);
        Ok(())
    }
    fn is_red(&self, node: Node) -> Result<bool> {
        Ok(self.words.borrow()[self.slot(node, 3)?] & 1 == 1)
    }
    fn set_red(&self, node: Node, red: bool) -> Result<()> {
        let slot = self.slot(node, 3)?;
        self.words.borrow_mut()[slot] = u64::from(red);
        Ok(())
    }
    fn root(&self) -> Result<Option<Node>> {
        Ok(option(self.root.get()))
    }
    fn set_root(&self, root: Option<Node>) -> Result<()> {
        self.root.set(root.map_or(NONE, |n| n.0));
        Ok(())
    }
}

fn compare(tree: &Tree<&Field>, model: &BTreeSet<(u64, u64)>) {
    assert_eq!(tree.verify(), Ok(model.len()));
    let inside: Vec<u64> = tree.iter().map(|node| node.unwrap().0).collect();
    let expected: Vec<u64> = model.iter().map(|key| key.1).collect();
    assert_eq!(inside, expected);
}

fn name(key: Option<&(u64, u64)>) -> Option<Node> {
    key.map(|key| Node(key.1))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_btree(
        sizes in prop::collection::vec(0u64..40, 1..120),
        steps in prop::collection::vec(any::<u16>(), 1..400),
    ) {
        let field = Field::new(sizes);
        let tree = Tree(&field);
        let mut model = BTreeSet::new();
        for step in steps {
            let index = step as usize % field.sizes.len();
            let key = (field.sizes[index], index as u64 * 32);
            let node = Node(key.1);
            if model.contains(&key) {
                prop_assert_eq!(tree.find(key), Ok(Some(node)));
                prop_assert_eq!(tree.predecessor(node), Ok(name(model.range(..key).next_back())));
                let above = (key.0, key.1 + 1);
                prop_assert_eq!(tree.successor(node), Ok(name(model.range(above..).next())));
                prop_assert_eq!(tree.insert(node), Err(Error::Corrupt));
                tree.remove(node).unwrap();
                model.remove(&key);
            } else {
                prop_assert_eq!(tree.find(key), Ok(None));
                tree.insert(node).unwrap();
                model.insert(key);
            }
            let probe = (u64::from(step) % 41, 0);
            prop_assert_eq!(tree.lower_bound(probe), Ok(name(model.range(probe..).next())));
            prop_assert_eq!(tree.min(), Ok(name(model.first())));
            prop_assert_eq!(tree.max(), Ok(name(model.last())));
            compare(&tree, &model);
        }
    }

    /// Whatever the words say, every call ends after few steps and touches nodes only.
    #[test]
    fn damage_is_bounded(
        count in 2usize..64,
        damage in prop::collection::vec((any::<u16>(), any::<u8>()), 1..12),
        root in any::<u8>(),
    ) {
        let field = Field::new((0..count as u64).collect());
        let tree = Tree(&field);
        for index in 0..count as u64 {
            tree.insert(Node(index * 32)).unwrap();
        }
        for (at, value) in damage {
            let at = at as usize % (count * 4);
            let value = u64::from(value);
            field.words.borrow_mut()[at] = match value % 4 {
                0 => NONE,
                1 => value << 40,
                _ => value / 4 % count as u64 * 32,
            };
        }
        if root < 32 {
            field.root.set(u64::from(root) * 32);
        }
        let bounded = |limit: usize| {
            assert!(field.steps.get() <= limit, "{} steps", field.steps.get());
            field.steps.set(0);
        };
        field.steps.set(0);
        let _ = tree.verify();
        bounded(count * 2000);
        for index in 0..count as u64 {
            let node = Node(index * 32);
            let _ = tree.lower_bound((index, 0));
            let _ = tree.successor(node);
            let _ = tree.predecessor(node);
            bounded(2000);
            let _ = tree.remove(node);
            bounded(10_000);
            let _ = tree.insert(node);
            bounded(10_000);
        }
    }
}

#[test]
fn ascending_and_descending_runs_stay_balanced() {
    for reverse in [false, true] {
        let field = Field::new(vec![1; 4096]);
        let tree = Tree(&field);
        let order: Vec<u64> = if reverse { (0..4096).rev().collect() } else { (0..4096).collect() };
        for &index in &order {
            tree.insert(Node(index * 32)).unwrap();
        }
        assert_eq!(tree.verify(), Ok(4096));
        field.steps.set(0);
        tree.lower_bound((1, 77 * 32)).unwrap();
        assert!(field.steps.get() <= 2 * 24);
        for index in order {
            tree.remove(Node(index * 32)).unwrap();
            if index % 256 == 0 {
                tree.verify().unwrap();
            }
        }
        assert_eq!(tree.min(), Ok(None));
    }
}
