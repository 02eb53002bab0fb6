//! Coalescing: free pages in a tree by address, joined where they touch.

use core::cell::Cell;

use super::lists::count;
use super::shared::Shared;
use super::{Buddy, LISTS, MERGE_FREELY, MERGE_SHARE, NONE, Request};
use crate::base::{Error, Result};
use crate::heap::page::{Page, State};
use crate::heap::rbtree::{Link, Node, Nodes, Tree};
use crate::sync::atomic::Ordering::Relaxed;

/// The tree of one coalescing: nodes in the payloads of free pages (left, right, parent, colour),
/// which are in no list meanwhile; the root here, as the tree does not outlive the call.
struct ByAddress<'a> {
    buddy: &'a Buddy,
    root: Cell<u64>,
}

impl ByAddress<'_> {
    #[inline]
    fn word(&self, node: Node, index: u64) -> u64 {
        self.buddy.payload(Page(node.0)).wrapping_add(index * 8)
    }
    #[inline]
    fn node(&self, raw: u64) -> Result<Option<Node>> {
        Ok(self.buddy.link(raw)?.map(|page| Node(page.0)))
    }
}

impl Nodes for ByAddress<'_> {
    type Key = u64;

    #[inline]
    fn key(&self, node: Node) -> Result<u64> {
        Ok(node.0)
    }
    #[inline]
    fn link(&self, node: Node, link: Link) -> Result<Option<Node>> {
        self.node(self.buddy.words.get(self.word(node, link as u64))?)
    }
    #[inline]
    fn set_link(&self, node: Node, link: Link, to: Option<Node>) -> Result<()> {
        self.buddy.words.set(self.word(node, link as u64), to.map_or(NONE, |to| to.0))
    }
    #[inline]
    fn is_red(&self, node: Node) -> Result<bool> {
        Ok(self.buddy.words.get(self.word(node, 3))? & 1 != 0)
    }
    #[inline]
    fn set_red(&self, node: Node, red: bool) -> Result<()> {
        self.buddy.words.set(self.word(node, 3), u64::from(red))
    }
    fn root(&self) -> Result<Option<Node>> {
        self.node(self.root.get())
    }
    fn set_root(&self, root: Option<Node>) -> Result<()> {
        self.root.set(root.map_or(NONE, |root| root.0));
        Ok(())
    }
}

impl Buddy {
    /// Whether coalescing can help this request at all.
    pub(super) fn merging_helps(&self, shared: &Shared, request: Request) -> Result<bool> {
        if shared.frees.load(Relaxed) == 0 {
            return Ok(false);
        }
        // Headers of joined pages become payload, and the last page joins the heap.
        let headers = shared.free_pages.load(Relaxed).saturating_mul(self.headers.metadata);
        let untouched = self.end - self.position(shared)?;
        let bytes = self.free_in(shared)?.saturating_add(headers).saturating_add(untouched);
        Ok(bytes >= request.payload + self.headers.metadata)
    }

    /// Whether coalescing can help this request, and enough was freed to pay for it while the heap
    /// could serve instead.
    pub(super) fn merging_pays(&self, shared: &Shared, request: Request) -> Result<bool> {
        let pages = shared.free_pages.load(Relaxed);
        let cheap = pages <= MERGE_FREELY || shared.frees.load(Relaxed) >= pages / MERGE_SHARE;
        Ok(cheap && self.merging_helps(shared, request)?)
    }

    /// Joins free pages that touch.
    pub(crate) fn coalesce(&self) -> Result<()> {
        self.locked(|shared| self.merge_all(shared))
    }

    /// Joins all free pages. A request that comes here found every list empty that could have
    /// served it, so all there are is the smaller sizes and misfits of its own.
    pub(super) fn merge_all(&self, shared: &Shared) -> Result<()> {
        let position = self.position(shared)?;
        let nodes = ByAddress { buddy: self, root: Cell::new(NONE) };
        let tree = Tree(nodes);
        for list in 0..LISTS {
            while let Some((page, size, ())) = self.first_fit(shared, list, 1, |_, _| Some(()))? {
                self.unfile(shared, page, size)?;
                self.join_listed(shared, page, size)?;
                tree.insert(Node(page.0))?;
            }
        }
        let mut taken = self.take_last(&tree, position)?;
        while let Some((page, size)) = taken {
            let before = self.take_last(&tree, position)?;
            taken = match before {
                Some((low, low_size)) if low.plus(low_size) == page => {
                    let joined = low_size + size;
                    self.headers.commit(low, State { size: joined, used: false })?;
                    self.headers.erase(page)?;
                    Some((low, joined))
                }
                _ => {
                    // From the highest down, so the lists start with the lowest addresses.
                    if page.0 + size != position || !shared.heap.move_position(position, page.0) {
                        self.file(shared, page, size)?;
                    }
                    before
                }
            };
        }
        shared.frees.store(0, Relaxed);
        count(&shared.merges, 1)
    }

    /// Joins a page that is in no list with the pages after it that still are: what the headers
    /// tell at once need not go through the tree. Where everything was freed, that leaves it next
    /// to nothing to do.
    fn join_listed(&self, shared: &Shared, page: Page, mut size: u64) -> Result<()> {
        while let Some((next, next_size)) = self.free_after(shared, page, size)?
            && self.is_listed(next, next_size)?
        {
            self.unfile(shared, next, next_size)?;
            size += next_size;
            self.headers.commit(page, State { size, used: false })?;
            self.headers.erase(next)?;
        }
        Ok(())
    }

    /// Takes the page with the highest address out of the tree.
    fn take_last(&self, tree: &Tree<ByAddress<'_>>, limit: u64) -> Result<Option<(Page, u64)>> {
        let Some(node) = tree.max()? else { return Ok(None) };
        tree.remove(node)?;
        let page = Page(node.0);
        let State { size, used } = self.headers.read(page, limit)?;
        if used { Err(Error::Corrupt) } else { Ok(Some((page, size))) }
    }
}
