//! Making a block longer or shorter where it lies.

use super::lists::count;
use super::shared::Shared;
use super::{Buddy, Request};
use crate::base::Result;
use crate::heap::page::{Page, State};

impl Buddy {
    /// Gives the block at `offset` room for `request` without moving it, if it can: shrinking
    /// always can; growing takes from the next page where that is free, and from the heap where
    /// the block, or that page, is the last. What is left over is filed.
    pub(crate) fn resize(&self, offset: u64, request: Request) -> Result<bool> {
        self.locked(|shared| {
            let (page, State { size, .. }) = self.block(shared, offset)?;
            let need = request.payload + self.headers.metadata;
            if need <= size {
                return self.shrink(shared, page, size, request.payload).map(|()| true);
            }
            self.grow(shared, page, size, request.payload)
        })
    }

    /// The free page that starts where `page` ends: its place and size.
    pub(super) fn free_after(
        &self,
        shared: &Shared,
        page: Page,
        size: u64,
    ) -> Result<Option<(Page, u64)>> {
        let next = page.plus(size);
        let position = self.position(shared)?;
        if next.0 >= position {
            return Ok(None);
        }
        let State { size, used } = self.headers.read(next, position)?;
        Ok((!used).then_some((next, size)))
    }

    fn shrink(&self, shared: &Shared, page: Page, size: u64, payload: u64) -> Result<()> {
        let (keep, mut rest) = self.cut(size, payload);
        if rest == 0 {
            return Ok(());
        }
        let next = self.free_after(shared, page, size)?;
        if let Some((next, next_size)) = next {
            self.unfile(shared, next, next_size)?;
            rest += next_size;
        }
        let tail = page.plus(keep);
        self.headers.stamp(tail, State { size: rest, used: false })?;
        self.headers.commit(page, State { size: keep, used: true })?;
        if let Some((next, _)) = next {
            self.headers.erase(next)?;
        }
        self.file(shared, tail, rest)?;
        count(&shared.frees, 1)?;
        count(&shared.in_use, keep as i64 - size as i64)
    }

    fn grow(&self, shared: &Shared, page: Page, size: u64, payload: u64) -> Result<bool> {
        let need = payload + self.headers.metadata;
        let next = self.free_after(shared, page, size)?;
        let mut total = size + next.map_or(0, |(_, next_size)| next_size);
        let end = page.plus(total);
        let extended = total < need;
        if extended {
            // A page of its own first, so that the tiling holds at every step.
            let more = (need - total).max(self.headers.min_page());
            if end.0 != self.position(shared)? || !self.reserve(shared, end, more) {
                return Ok(false);
            }
            self.headers.stamp(end, State { size: more, used: false })?;
            self.advance(shared, end, more)?;
            total += more;
        }
        if let Some((next, next_size)) = next {
            self.unfile(shared, next, next_size)?;
        }
        let (keep, rest) = self.cut(total, payload);
        let tail = page.plus(keep);
        if rest > 0 {
            self.headers.stamp(tail, State { size: rest, used: false })?;
        }
        self.headers.commit(page, State { size: keep, used: true })?;
        if let Some((next, _)) = next {
            self.headers.erase(next)?;
        }
        if extended {
            self.headers.erase(end)?;
        }
        if rest > 0 {
            self.file(shared, tail, rest)?;
        }
        count(&shared.in_use, (keep - size) as i64)?;
        Ok(true)
    }
}
