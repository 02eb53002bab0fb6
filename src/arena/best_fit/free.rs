//! The free blocks of a [`BestFit`], by size.
//!
//! ```text
//!  map:  0 0 0 0 1 0 1 0 ...     a bit for every size below a kilobyte
//!  bins:         |   |
//!                v   v
//!               48  64 <-> 64 <-> 64                    the last one freed is the first
//!
//!  tree by size:     [2040]
//!                   /      \                            nodes of equal size would be one
//!              [1024]      [60000]
//!                ring: [1024] <-> [1024] <-> (back)
//! ```
//!
//! The first block of a bin is known by the bin, so its *prev* is anything: taking it out touches no
//! other block. Of a ring, one behind the node comes out first, which the tree need not hear of.
use core::cell::Cell;

use super::{BestFit, FLAGS, RED, TREE};
use crate::arena::poison;
use crate::base::{Error, Result};
use crate::heap::rbtree::{Link, Node, Nodes, Tree};

/// Bins, one for each multiple of 8; as many as the map has bits.
pub(super) const BINS: usize = 128;
/// Blocks from this size on are in the tree.
pub(super) const TREE_FROM: u64 = 8 * BINS as u64;
/// The words of a free block behind its header: the list's or ring's links, then the tree's.
pub(super) const NEXT: u64 = 8;
const PREV: u64 = 16;
const LINKS: u64 = 24;
/// Header and all links.
const NODE: u64 = LINKS + 24;

/// Where the free blocks begin; 0 for none.
pub(super) struct Free {
    map: Cell<u128>,
    bins: [Cell<u64>; BINS],
    root: Cell<u64>,
}

impl Free {
    pub(super) const fn new() -> Free {
        Free { map: Cell::new(0), bins: [const { Cell::new(0) }; BINS], root: Cell::new(0) }
    }

    /// The bin of a size; beyond the last one, any.
    #[inline]
    fn bin(&self, size: u64) -> &Cell<u64> {
        &self.bins[(size / 8) as usize % BINS]
    }
    #[inline]
    fn mark(&self, size: u64, any: bool) {
        let bit = 1u128 << (size / 8 % BINS as u64);
        let map = self.map.get();
        self.map.set(if any { map | bit } else { map & !bit });
    }
}

impl BestFit<'_> {
    /// Adds a block, whose size is in `size`, to the free ones.
    #[inline]
    pub(super) fn file(&self, block: u64, size: u64) -> Result<()> {
        self.tag(block, size, 0);
        self.count(|stats| {
            stats.free_blocks += 1;
            stats.free_bytes += size as usize;
        });
        if size >= TREE_FROM {
            return self.file_in_tree(block, size);
        }
        let bin = self.free.bin(size);
        let first = bin.replace(block);
        self.set(block + NEXT, first);
        if first == 0 {
            self.free.mark(size, true);
        } else {
            self.set(first + PREV, block);
        }
        poison::forbid((block + LINKS) as usize, (size - LINKS - 8) as usize);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn file_in_tree(&self, block: u64, size: u64) -> Result<()> {
        poison::forbid((block + NODE) as usize, (size - NODE - 8) as usize);
        let tree = Tree(self);
        if let Some(Node(first)) = tree.find(size)? {
            let second = self.get(first + NEXT);
            self.set(block + NEXT, second);
            self.set(block + PREV, first);
            self.set(second + PREV, block);
            self.set(first + NEXT, block);
            return Ok(());
        }
        self.set(block, size | TREE);
        self.set(block + NEXT, block);
        self.set(block + PREV, block);
        tree.insert(Node(block))
    }

    /// Takes a block out of the free ones.
    #[inline]
    pub(super) fn unfile(&self, block: u64) -> Result<()> {
        let header = self.get(block);
        let size = header & !FLAGS;
        self.count(|stats| {
            stats.free_blocks -= 1;
            stats.free_bytes -= size as usize;
        });
        poison::allow(block as usize, size as usize);
        if size >= TREE_FROM {
            return self.unfile_from_tree(block, header);
        }
        let (bin, next) = (self.free.bin(size), self.get(block + NEXT));
        if bin.get() == block {
            bin.set(next);
            if next == 0 {
                self.free.mark(size, false);
            }
            return Ok(());
        }
        let prev = self.get(block + PREV);
        self.set(prev + NEXT, next);
        if next != 0 {
            self.set(next + PREV, prev);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn unfile_from_tree(&self, block: u64, header: u64) -> Result<()> {
        let (next, prev) = (self.get(block + NEXT), self.get(block + PREV));
        if header & TREE != 0 {
            if next == block {
                return Tree(self).remove(Node(block));
            }
            self.set(next, header & !FLAGS | TREE);
            Tree(self).substitute(Node(block), Node(next))?;
        }
        self.set(next + PREV, prev);
        self.set(prev + NEXT, next);
        Ok(())
    }

    /// A free block of at least `size` bytes, of those the shortest, taken out of the free ones.
    #[inline]
    pub(super) fn best(&self, size: u64) -> Result<Option<u64>> {
        let block = if let Some(block) = self.best_in_bins(size) {
            block
        } else {
            let Some(Node(first)) = Tree(self).lower_bound(size)? else { return Ok(None) };
            // Another of the size comes out of the ring more cheaply than the node out of the tree.
            self.get(first + NEXT)
        };
        self.unfile(block)?;
        Ok(Some(block))
    }

    #[inline]
    fn best_in_bins(&self, size: u64) -> Option<u64> {
        if size >= TREE_FROM {
            return None;
        }
        let longer = self.free.map.get() >> (size / 8);
        if longer == 0 {
            return None;
        }
        Some(self.free.bin(size + 8 * u64::from(longer.trailing_zeros())).get())
    }

    /// Walks the bins, the tree and the rings; gives how many blocks are there, of at most `most`.
    pub(super) fn verify_free(&self, most: usize) -> Result<usize> {
        let sound = |yes: bool| if yes { Ok(()) } else { Err(Error::Corrupt) };
        let mut filed = 0;
        for (bin, size) in self.free.bins.iter().zip((0..).step_by(8)) {
            let (mut block, mut before) = (bin.get(), 0);
            sound((block != 0) == (self.free.map.get() >> (size / 8) & 1 == 1))?;
            while block != 0 {
                sound(self.is_place(block) && self.get(block) == size && filed < most)?;
                sound(before == 0 || self.get(block + PREV) == before)?;
                filed += 1;
                before = block;
                block = self.get(block + NEXT);
            }
        }
        let tree = Tree(self);
        tree.verify()?;
        for node in tree.iter() {
            let Node(first) = node?;
            sound(self.size(first) >= TREE_FROM)?;
            let mut block = first;
            loop {
                sound(self.get(block) & !(TREE | RED) == self.size(first) && filed < most)?;
                sound((self.get(block) & TREE != 0) == (block == first))?;
                filed += 1;
                let next = self.get(block + NEXT);
                sound(self.is_place(next) && self.get(next + PREV) == block)?;
                block = next;
                if block == first {
                    break;
                }
            }
        }
        Ok(filed)
    }

    /// Whether a block could be there.
    #[inline]
    pub(super) fn is_place(&self, at: u64) -> bool {
        at.is_multiple_of(8) && self.low.get() < at && at < self.high.get()
    }
}

/// The tree by size.
impl Nodes for &BestFit<'_> {
    type Key = u64;

    #[inline]
    fn key(&self, node: Node) -> Result<u64> {
        Ok(self.size(node.0))
    }
    #[inline]
    fn link(&self, node: Node, link: Link) -> Result<Option<Node>> {
        let to = self.get(node.0 + LINKS + 8 * link as u64);
        if to == 0 {
            return Ok(None);
        }
        if self.is_place(to) { Ok(Some(Node(to))) } else { Err(Error::Corrupt) }
    }
    #[inline]
    fn set_link(&self, node: Node, link: Link, to: Option<Node>) -> Result<()> {
        self.set(node.0 + LINKS + 8 * link as u64, to.map_or(0, |to| to.0));
        Ok(())
    }
    #[inline]
    fn is_red(&self, node: Node) -> Result<bool> {
        Ok(self.get(node.0) & RED != 0)
    }
    #[inline]
    fn set_red(&self, node: Node, red: bool) -> Result<()> {
        let header = self.get(node.0);
        self.set(node.0, if red { header | RED } else { header & !RED });
        Ok(())
    }
    #[inline]
    fn root(&self) -> Result<Option<Node>> {
        let root = self.free.root.get();
        Ok((root != 0).then_some(Node(root)))
    }
    #[inline]
    fn set_root(&self, root: Option<Node>) -> Result<()> {
        self.free.root.set(root.map_or(0, |root| root.0));
        Ok(())
    }
}
