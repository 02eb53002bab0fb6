//! Walking the pages: accounting, verification, and rebuilding what can be derived.

use super::lists::count;
use super::shared::Shared;
use super::{Buddy, LISTS, list_of};
use crate::base::{Error, Result};
use crate::heap::page::{Page, State};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where every byte is that a buddy took from its heap, as a walk of its page headers finds it.
/// All sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Taken from the heap for pages.
    pub taken: usize,
    /// Payloads of used pages, slack included.
    pub in_use: usize,
    /// Payloads of free pages.
    pub free: usize,
    /// Headers of all pages.
    pub headers: usize,
    /// Not taken from the heap yet.
    pub untouched: usize,
    /// How many pages are used.
    pub used_pages: usize,
    /// How many pages are free.
    pub free_pages: usize,
    /// The largest payload of a free page.
    pub largest_free: usize,
}

impl Accounting {
    /// Whether the parts make the whole: no byte is lost, none is counted twice.
    pub const fn balances(&self) -> bool {
        self.in_use + self.free + self.headers == self.taken
    }
}

fn sound(yes: bool) -> Result<()> {
    if yes { Ok(()) } else { Err(Error::Corrupt) }
}

impl Buddy {
    /// Calls `visit` for every page in the order of addresses. That the pages tile the range
    /// exactly is part of the walk: it ends at the position, or with an error.
    fn walk(
        &self,
        shared: &Shared,
        mut visit: impl FnMut(Page, State) -> Result<()>,
    ) -> Result<()> {
        let position = self.position(shared)?;
        let mut page = Page(self.first);
        while page.0 < position {
            let state = self.headers.read(page, position)?;
            visit(page, state)?;
            page = page.plus(state.size);
        }
        Ok(())
    }

    /// Accounts for every byte.
    pub(crate) fn accounting(&self) -> Result<Accounting> {
        self.locked(|shared| self.account(shared))
    }

    fn account(&self, shared: &Shared) -> Result<Accounting> {
        let position = self.position(shared)?;
        let mut sum = Accounting {
            taken: (position - self.first) as usize,
            untouched: (self.end - position) as usize,
            ..Accounting::default()
        };
        self.walk(shared, |_, State { size, used }| {
            let payload = (size - self.headers.metadata) as usize;
            sum.headers += self.headers.metadata as usize;
            if used {
                sum.in_use += payload;
                sum.used_pages += 1;
            } else {
                sum.free += payload;
                sum.free_pages += 1;
                sum.largest_free = sum.largest_free.max(payload);
            }
            Ok(())
        })?;
        Ok(sum)
    }

    /// Calls `visit` with the offset and the size of every used payload. Under the lock.
    pub(crate) fn visit_used(&self, visit: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.locked(|shared| {
            self.walk(shared, |page, State { size, used }| {
                if used {
                    visit(page.0 + self.headers.metadata, size - self.headers.metadata);
                }
                Ok(())
            })
        })
    }

    /// Checks every invariant of the module's essay.
    pub(crate) fn verify(&self) -> Result<()> {
        self.locked(|shared| {
            let sum = self.account(shared)?;
            sound(sum.balances())?;
            let is = |counter: &AtomicU64, value: usize| counter.load(Relaxed) == value as u64;
            sound(is(&shared.in_use, sum.in_use))?;
            sound(is(&shared.used_pages, sum.used_pages))?;
            sound(is(&shared.free_pages, sum.free_pages))?;
            // Every listed page is a free page of the walk, as its header says, and no page is
            // listed twice, as its links say; so if counts and sizes agree, the two sets do.
            let (mut pages, mut bytes) = (0, 0);
            for list in 0..LISTS {
                let (more_pages, more_bytes) = self.verify_list(shared, list)?;
                pages += more_pages;
                bytes += more_bytes;
            }
            sound(pages == sum.free_pages as u64 && bytes == sum.free as u64)
        })
    }

    fn verify_list(&self, shared: &Shared, list: usize) -> Result<(u64, u64)> {
        let position = self.position(shared)?;
        let length = self.length(list)?;
        sound((shared.nonempty.load(Relaxed) >> list & 1 != 0) == (length > 0))?;
        let mut previous = None;
        let mut next = self.head(list)?;
        let (mut seen, mut bytes) = (0, 0);
        while let Some(page) = next {
            seen += 1;
            sound(seen <= length)?;
            let State { size, used } = self.headers.read(page, position)?;
            sound(!used && list_of(size - self.headers.metadata) == list)?;
            sound(previous.is_none() || self.previous(page)? == previous)?;
            bytes += size - self.headers.metadata;
            previous = next;
            next = self.next(page)?;
        }
        sound(seen == length)?;
        Ok((length, bytes))
    }

    /// Makes lists and counters anew from the headers.
    pub(crate) fn rebuild(&self) -> Result<()> {
        self.locked(|shared| self.rebuild_caches(shared))
    }

    /// As [`rebuild`](Self::rebuild), under the lock. Headers that do not tile the range are
    /// [`Error::Corrupt`], and nothing is changed.
    pub(super) fn rebuild_caches(&self, shared: &Shared) -> Result<()> {
        self.walk(shared, |_, _| Ok(()))?;
        self.reset_caches(shared)?;
        self.walk(shared, |page, State { size, used }| {
            if used {
                count(&shared.used_pages, 1)?;
                count(&shared.in_use, (size - self.headers.metadata) as i64)
            } else {
                count(&shared.frees, 1)?;
                self.file(shared, page, size)
            }
        })
    }
}
