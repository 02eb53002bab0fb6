//! A red-black tree whose nodes live inside the free blocks of a region.
//!
//! ```text
//!                     [ 40 black ]               a node: left, right, parent, colour,
//!                    /            \              wherever the user of the tree keeps them;
//!          [ 16 red ]              [ 72 black ]  its key: whatever the user makes of the block
//!         /          \
//!  [ 8 black ]   [ 24 black ]
//! ```
//!
//! The tree owns no memory and stores no address. What a node looks like, and where the root is
//! kept, is behind [`Nodes`]: the buddy's coalescing orders pages by offset, a best-fit heap orders
//! blocks by size, then offset; both use this one implementation.
//!
//! Invariants, all checked by [`Tree::verify`]: keys ascend in order and are distinct; children
//! name their parent; the root is black and no red node has a red child; every way down from the
//! root to a missing child passes the same number of black nodes. So no path is longer than
//! `2 log2(n + 1)`.
//!
//! Damage: links are data of a region, so they are not trusted. [`Nodes`] refuses places that
//! cannot be nodes, no loop takes more steps than the longest path that a sound tree can have, and
//! an iteration stops where keys do not ascend. Each of these is [`Error::Corrupt`]; none is an
//! endless loop or an access outside the region. A change that ends that way leaves the tree as
//! damaged as it was, or more.
//!
//! The tree does no locking and needs no ordering: its user holds a lock.

use crate::base::{Error, Result};

/// A place in the region that holds a node, as an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Node(pub(crate) u64);

/// One of a node's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Left,
    Right,
    Parent,
}

impl Link {
    /// The other child.
    #[inline]
    const fn other(self) -> Link {
        match self {
            Link::Left => Link::Right,
            _ => Link::Left,
        }
    }
}

/// How a tree gets at its nodes.
///
/// Every call on a place that cannot be a node is [`Error::Corrupt`]; so is a link that is read
/// and names such a place, at the latest when it is followed.
pub(crate) trait Nodes {
    /// What orders the nodes; distinct, so usually with the node's offset at the end.
    type Key: Ord + Copy;

    fn key(&self, node: Node) -> Result<Self::Key>;
    fn link(&self, node: Node, link: Link) -> Result<Option<Node>>;
    fn set_link(&self, node: Node, link: Link, to: Option<Node>) -> Result<()>;
    fn is_red(&self, node: Node) -> Result<bool>;
    fn set_red(&self, node: Node, red: bool) -> Result<()>;
    fn root(&self) -> Result<Option<Node>>;
    fn set_root(&self, root: Option<Node>) -> Result<()>;
}

/// No path in a sound tree is longer: `2 log2(2^60 + 1)` for nodes of at least 16 bytes.
const MAX_PATH: usize = 122;

/// The operations of a tree over its nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree<N>(pub(crate) N);

impl<N: Nodes> Tree<N> {
    /// Adds a node whose key no other node has.
    pub(crate) fn insert(&self, node: Node) -> Result<()> {
        let key = self.0.key(node)?;
        let mut parent = None;
        let mut next = self.0.root()?;
        let mut side = Link::Left;
        for _ in 0..MAX_PATH {
            let Some(at) = next else {
                self.0.set_link(node, Link::Left, None)?;
                self.0.set_link(node, Link::Right, None)?;
                self.0.set_link(node, Link::Parent, parent)?;
                self.0.set_red(node, true)?;
                match parent {
                    Some(parent) => self.0.set_link(parent, side, Some(node))?,
                    None => self.0.set_root(Some(node))?,
                }
                return self.settle_red(node);
            };
            side = match key.cmp(&self.0.key(at)?) {
                core::cmp::Ordering::Less => Link::Left,
                core::cmp::Ordering::Greater => Link::Right,
                core::cmp::Ordering::Equal => return Err(Error::Corrupt),
            };
            parent = next;
            next = self.0.link(at, side)?;
        }
        Err(Error::Corrupt)
    }

    /// Removes a node, which must be in the tree.
    pub(crate) fn remove(&self, node: Node) -> Result<()> {
        let left = self.0.link(node, Link::Left)?;
        let right = self.0.link(node, Link::Right)?;
        let (child, parent, removed_red);
        match (left, right) {
            (Some(left), Some(right)) => {
                // The next node in order takes this one's place and colour.
                let heir = self.outermost(right, Link::Left)?;
                removed_red = self.0.is_red(heir)?;
                child = self.0.link(heir, Link::Right)?;
                let above = self.parent(heir)?;
                if above == Some(node) {
                    parent = Some(heir);
                } else {
                    parent = above;
                    self.replace(heir, child)?;
                    self.adopt(heir, Link::Right, Some(right))?;
                }
                self.replace(node, Some(heir))?;
                self.adopt(heir, Link::Left, Some(left))?;
                self.0.set_red(heir, self.0.is_red(node)?)?;
            }
            _ => {
                removed_red = self.0.is_red(node)?;
                child = left.or(right);
                parent = self.parent(node)?;
                self.replace(node, child)?;
            }
        }
        if removed_red { Ok(()) } else { self.settle_black(child, parent) }
    }

    /// Puts `with`, which is in no tree and has the same key, where `node` is.
    pub(crate) fn substitute(&self, node: Node, with: Node) -> Result<()> {
        self.replace(node, Some(with))?;
        self.adopt(with, Link::Left, self.0.link(node, Link::Left)?)?;
        self.adopt(with, Link::Right, self.0.link(node, Link::Right)?)?;
        self.0.set_red(with, self.0.is_red(node)?)
    }

    /// The node with the lowest key that is at least `key`: the best fit, for keys that begin with
    /// a size.
    pub(crate) fn lower_bound(&self, key: N::Key) -> Result<Option<Node>> {
        let mut best = None;
        let mut next = self.0.root()?;
        for _ in 0..MAX_PATH {
            let Some(at) = next else { return Ok(best) };
            next = if self.0.key(at)? >= key {
                best = next;
                self.0.link(at, Link::Left)?
            } else {
                self.0.link(at, Link::Right)?
            };
        }
        Err(Error::Corrupt)
    }

    /// The node with this key.
    pub(crate) fn find(&self, key: N::Key) -> Result<Option<Node>> {
        match self.lower_bound(key)? {
            Some(node) if self.0.key(node)? == key => Ok(Some(node)),
            _ => Ok(None),
        }
    }

    /// The node with the lowest key.
    pub(crate) fn min(&self) -> Result<Option<Node>> {
        self.0.root()?.map(|root| self.outermost(root, Link::Left)).transpose()
    }

    /// The node with the highest key.
    pub(crate) fn max(&self) -> Result<Option<Node>> {
        self.0.root()?.map(|root| self.outermost(root, Link::Right)).transpose()
    }

    /// The node with the next higher key.
    pub(crate) fn successor(&self, node: Node) -> Result<Option<Node>> {
        self.neighbour(node, Link::Right)
    }

    /// The node with the next lower key.
    pub(crate) fn predecessor(&self, node: Node) -> Result<Option<Node>> {
        self.neighbour(node, Link::Left)
    }

    /// All nodes in ascending order; ends after the first error.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Node>> {
        let mut next = self.min();
        core::iter::from_fn(move || {
            let node = match next {
                Ok(node) => node?,
                Err(error) => {
                    next = Ok(None);
                    return Some(Err(error));
                }
            };
            next = self.ascending_after(node);
            Some(Ok(node))
        })
    }

    /// Checks every invariant; gives the number of nodes.
    pub(crate) fn verify(&self) -> Result<usize> {
        let sound = |yes: bool| if yes { Ok(()) } else { Err(Error::Corrupt) };
        if let Some(root) = self.0.root()? {
            sound(!self.0.is_red(root)? && self.0.link(root, Link::Parent)?.is_none())?;
        }
        let mut blacks = None;
        let mut count = 0;
        for node in self.iter() {
            let node = node?;
            count += 1;
            let mut missing = false;
            for side in [Link::Left, Link::Right] {
                let Some(child) = self.0.link(node, side)? else {
                    missing = true;
                    continue;
                };
                sound(self.0.link(child, Link::Parent)? == Some(node))?;
                sound(!(self.0.is_red(node)? && self.0.is_red(child)?))?;
                let less = self.0.key(child)? < self.0.key(node)?;
                sound(less == (side == Link::Left))?;
            }
            if missing {
                let here = self.blacks_above(node)?;
                sound(*blacks.get_or_insert(here) == here)?;
            }
        }
        Ok(count)
    }

    /// Black nodes from `node` up to the root, both included.
    fn blacks_above(&self, node: Node) -> Result<usize> {
        let mut blacks = 0;
        let mut next = Some(node);
        for _ in 0..MAX_PATH {
            let Some(at) = next else { return Ok(blacks) };
            blacks += usize::from(!self.0.is_red(at)?);
            next = self.parent(at)?;
        }
        Err(Error::Corrupt)
    }

    fn ascending_after(&self, node: Node) -> Result<Option<Node>> {
        let next = self.successor(node)?;
        if let Some(next) = next
            && self.0.key(next)? <= self.0.key(node)?
        {
            return Err(Error::Corrupt);
        }
        Ok(next)
    }

    /// The last node on the way to `side` from `node`.
    fn outermost(&self, mut node: Node, side: Link) -> Result<Node> {
        for _ in 0..MAX_PATH {
            match self.0.link(node, side)? {
                Some(child) => node = child,
                None => return Ok(node),
            }
        }
        Err(Error::Corrupt)
    }

    fn neighbour(&self, mut node: Node, side: Link) -> Result<Option<Node>> {
        if let Some(child) = self.0.link(node, side)? {
            return self.outermost(child, side.other()).map(Some);
        }
        for _ in 0..MAX_PATH {
            let Some(parent) = self.parent(node)? else { return Ok(None) };
            if self.side_of(node, parent)? != side {
                return Ok(Some(parent));
            }
            node = parent;
        }
        Err(Error::Corrupt)
    }

    #[inline]
    fn parent(&self, node: Node) -> Result<Option<Node>> {
        self.0.link(node, Link::Parent)
    }

    /// Which child of `parent` the node is.
    #[inline]
    fn side_of(&self, node: Node, parent: Node) -> Result<Link> {
        if self.0.link(parent, Link::Left)? == Some(node) {
            Ok(Link::Left)
        } else if self.0.link(parent, Link::Right)? == Some(node) {
            Ok(Link::Right)
        } else {
            Err(Error::Corrupt)
        }
    }

    #[inline]
    fn is_red(&self, node: Option<Node>) -> Result<bool> {
        node.map_or(Ok(false), |node| self.0.is_red(node))
    }

    /// Makes `child` the `side` child of `parent`.
    #[inline]
    fn adopt(&self, parent: Node, side: Link, child: Option<Node>) -> Result<()> {
        self.0.set_link(parent, side, child)?;
        match child {
            Some(child) => self.0.set_link(child, Link::Parent, Some(parent)),
            None => Ok(()),
        }
    }

    /// Puts `with`, and what hangs on it, where `node` hangs.
    fn replace(&self, node: Node, with: Option<Node>) -> Result<()> {
        match self.parent(node)? {
            Some(parent) => self.adopt(parent, self.side_of(node, parent)?, with),
            None => {
                if let Some(with) = with {
                    self.0.set_link(with, Link::Parent, None)?;
                }
                self.0.set_root(with)
            }
        }
    }

    /// Turns `node` down to `side`; its other child takes its place.
    fn rotate(&self, node: Node, side: Link) -> Result<()> {
        let up = self.0.link(node, side.other())?.ok_or(Error::Corrupt)?;
        let between = self.0.link(up, side)?;
        self.replace(node, Some(up))?;
        self.adopt(node, side.other(), between)?;
        self.adopt(up, side, Some(node))
    }

    /// Restores the colours after `node` was added red.
    fn settle_red(&self, mut node: Node) -> Result<()> {
        for _ in 0..MAX_PATH {
            let Some(parent) = self.parent(node)? else {
                return self.0.set_red(node, false);
            };
            if !self.0.is_red(parent)? {
                return Ok(());
            }
            // A red node is never the root.
            let above = self.parent(parent)?.ok_or(Error::Corrupt)?;
            let side = self.side_of(parent, above)?;
            let uncle = self.0.link(above, side.other())?;
            if let Some(uncle) = uncle
                && self.0.is_red(uncle)?
            {
                self.0.set_red(parent, false)?;
                self.0.set_red(uncle, false)?;
                self.0.set_red(above, true)?;
                node = above;
                continue;
            }
            let top = if self.side_of(node, parent)? == side {
                parent
            } else {
                self.rotate(parent, side)?;
                node
            };
            self.0.set_red(top, false)?;
            self.0.set_red(above, true)?;
            return self.rotate(above, side.other());
        }
        Err(Error::Corrupt)
    }

    /// Restores the black heights where the ways through `node`, which hangs on `parent`, are one
    /// black node short.
    fn settle_black(&self, mut node: Option<Node>, mut parent: Option<Node>) -> Result<()> {
        for _ in 0..MAX_PATH {
            let Some(above) = parent else {
                return node.map_or(Ok(()), |root| self.0.set_red(root, false));
            };
            if let Some(red) = node
                && self.0.is_red(red)?
            {
                return self.0.set_red(red, false);
            }
            // A missing node is the child that is missing; the sibling is never missing.
            let side =
                if self.0.link(above, Link::Left)? == node { Link::Left } else { Link::Right };
            let mut sibling = self.0.link(above, side.other())?.ok_or(Error::Corrupt)?;
            if self.0.is_red(sibling)? {
                self.0.set_red(sibling, false)?;
                self.0.set_red(above, true)?;
                self.rotate(above, side)?;
                sibling = self.0.link(above, side.other())?.ok_or(Error::Corrupt)?;
            }
            let near = self.0.link(sibling, side)?;
            let far = self.0.link(sibling, side.other())?;
            if !self.is_red(near)? && !self.is_red(far)? {
                self.0.set_red(sibling, true)?;
                node = parent;
                parent = self.parent(above)?;
                continue;
            }
            if !self.is_red(far)? {
                if let Some(near) = near {
                    self.0.set_red(near, false)?;
                }
                self.0.set_red(sibling, true)?;
                self.rotate(sibling, side.other())?;
                sibling = self.0.link(above, side.other())?.ok_or(Error::Corrupt)?;
            }
            self.0.set_red(sibling, self.0.is_red(above)?)?;
            self.0.set_red(above, false)?;
            if let Some(far) = self.0.link(sibling, side.other())? {
                self.0.set_red(far, false)?;
            }
            return self.rotate(above, side);
        }
        Err(Error::Corrupt)
    }
}

#[cfg(test)]
mod tests;
