//! The free lists: doubly linked through the payloads of free pages, heads in a table.
//!
//! ```text
//!   table:  list 0: head | count    list 1: head | count    ...
//!   free page:  header | next | previous | ...
//! ```
//!
//! The head's `previous` is not kept up to date: a page is the head where the table says so. That
//! saves a write to a second page in every allocation.

use super::shared::Shared;
use super::{Buddy, NONE, list_of};
use crate::base::{Error, Result};
use crate::heap::page::{Page, State, UNIT};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Adds to a counter of the header; below zero is damage.
pub(super) fn count(counter: &AtomicU64, change: i64) -> Result<()> {
    let sum = counter.load(Relaxed).checked_add_signed(change).ok_or(Error::Corrupt)?;
    counter.store(sum, Relaxed);
    Ok(())
}

impl Buddy {
    const fn head_of(&self, list: usize) -> u64 {
        self.tables + list as u64 * 16
    }

    /// A link as a page; one that cannot be a page is damage.
    pub(super) fn link(&self, raw: u64) -> Result<Option<Page>> {
        match raw {
            NONE => Ok(None),
            _ if !raw.is_multiple_of(UNIT) || raw < self.first || raw >= self.end => {
                Err(Error::Corrupt)
            }
            _ => Ok(Some(Page(raw))),
        }
    }

    pub(super) fn head(&self, list: usize) -> Result<Option<Page>> {
        self.link(self.words.get(self.head_of(list))?)
    }

    /// Pages in a list; more than there could be is damage.
    pub(super) fn length(&self, list: usize) -> Result<u64> {
        let length = self.words.get(self.head_of(list) + 8)?;
        let most = (self.end - self.first) / self.headers.min_page();
        if length <= most { Ok(length) } else { Err(Error::Corrupt) }
    }

    #[inline]
    pub(super) fn next(&self, page: Page) -> Result<Option<Page>> {
        self.link(self.words.get(self.payload(page))?)
    }

    pub(super) fn previous(&self, page: Page) -> Result<Option<Page>> {
        self.link(self.words.get(self.payload(page).wrapping_add(8))?)
    }

    /// Puts a free page of `size` bytes at the head of the list that suits its size.
    pub(super) fn file(&self, shared: &Shared, page: Page, size: u64) -> Result<()> {
        let list = list_of(size - self.headers.metadata);
        let table = self.head_of(list);
        let head = self.head(list)?;
        self.words.set(self.payload(page), head.map_or(NONE, |head| head.0))?;
        if let Some(head) = head {
            self.words.set(self.payload(head).wrapping_add(8), page.0)?;
        }
        self.words.set(table, page.0)?;
        self.words.set(table + 8, self.length(list)?.wrapping_add(1))?;
        shared.nonempty.store(shared.nonempty.load(Relaxed) | 1 << list, Relaxed);
        count(&shared.free_pages, 1)
    }

    /// Takes a free page of `size` bytes out of its list.
    pub(super) fn unfile(&self, shared: &Shared, page: Page, size: u64) -> Result<()> {
        let list = list_of(size - self.headers.metadata);
        let table = self.head_of(list);
        let next = self.next(page)?;
        let raw = next.map_or(NONE, |next| next.0);
        if self.words.get(table)? == page.0 {
            self.words.set(table, raw)?;
            if next.is_none() {
                shared.nonempty.store(shared.nonempty.load(Relaxed) & !(1 << list), Relaxed);
            }
        } else {
            let previous = self.previous(page)?.ok_or(Error::Corrupt)?;
            if self.next(previous)? != Some(page) {
                return Err(Error::Corrupt);
            }
            self.words.set(self.payload(previous), raw)?;
            if let Some(next) = next {
                self.words.set(self.payload(next).wrapping_add(8), previous.0)?;
            }
        }
        self.words.set(table + 8, self.length(list)?.checked_sub(1).ok_or(Error::Corrupt)?)?;
        count(&shared.free_pages, -1)
    }

    /// Whether a free page of `size` bytes is in its list, and not in the tree of a coalescing,
    /// whose left and right links lie where `next` and `previous` do: no node is the left child of
    /// its own right child.
    pub(super) fn is_listed(&self, page: Page, size: u64) -> Result<bool> {
        if self.head(list_of(size - self.headers.metadata))? == Some(page) {
            return Ok(true);
        }
        match self.previous(page)? {
            Some(previous) => Ok(self.next(previous)? == Some(page)),
            None => Ok(false),
        }
    }

    /// The first page of a list that `fits` has a use for, among the first `patience`.
    pub(super) fn first_fit<T>(
        &self,
        shared: &Shared,
        list: usize,
        patience: u64,
        fits: impl Fn(Page, u64) -> Option<T>,
    ) -> Result<Option<(Page, u64, T)>> {
        let position = self.position(shared)?;
        let length = self.length(list)?;
        let mut next = self.head(list)?;
        for _ in 0..length.min(patience) {
            let page = next.ok_or(Error::Corrupt)?;
            let State { size, used } = self.headers.read(page, position)?;
            if used || list_of(size - self.headers.metadata) != list {
                return Err(Error::Corrupt);
            }
            if let Some(fit) = fits(page, size) {
                return Ok(Some((page, size, fit)));
            }
            next = self.next(page)?;
        }
        Ok(None)
    }

    /// Empties the lists and counters, not the pages.
    pub(super) fn reset_caches(&self, shared: &Shared) -> Result<()> {
        for list in 0..super::LISTS {
            self.words.set(self.head_of(list), NONE)?;
            self.words.set(self.head_of(list) + 8, 0)?;
        }
        for counter in [
            &shared.nonempty,
            &shared.in_use,
            &shared.used_pages,
            &shared.free_pages,
            &shared.frees,
        ] {
            counter.store(0, Relaxed);
        }
        Ok(())
    }
}
