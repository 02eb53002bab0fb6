//! The header in front of every block.
//!
//! ```text
//!   page                                      page + size
//!     | size | in use |  tag  | caller's  | payload ... |  next page ...
//!     |  one word     | word  | metadata  |
//!     |<------------- metadata ---------->|
//! ```
//!
//! A page is a header and a payload. The first word holds the page's true size in bytes (header
//! included, a multiple of 16) and the in-use bit: one atomic store changes both, and that store
//! is what commits a change. The second word is the tag: the page's own offset mixed with a key of
//! the allocator. It tells a header from other bytes.
//!
//! The tag is erased where a page stops being one, so an old pointer into a merged page finds
//! nothing. What is left is chance: 8 bytes of a payload that happen to be the tag of their own
//! place, 2^-64 for random bytes at one offset, and copies do not help as the tag of another
//! place differs. A bitmap of page starts would make that exact, for 0.8 % of the memory and one
//! more cache line in every split, merge and free; it is not worth it against accidents, and
//! against an intruder who can write the region neither is safe.

use super::words::Words;
use crate::base::{Error, Result};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Pages, and so their sizes and payloads, lie at multiples of this.
pub(crate) const UNIT: u64 = 16;
/// The smallest header: the two words.
pub(crate) const MIN_METADATA: usize = 16;
/// The largest header.
pub(crate) const MAX_METADATA: usize = 4096;

const IN_USE: u64 = 1;

/// The place of a page: the offset of its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct Page(pub(crate) u64);

impl Page {
    /// The place `bytes` further on.
    #[inline]
    pub(crate) const fn plus(self, bytes: u64) -> Page {
        Page(self.0.wrapping_add(bytes))
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Bytes of the page, header included.
    pub(crate) size: u64,
    /// Whether the payload is handed out.
    pub(crate) used: bool,
}

/// Reads and writes the headers of one allocator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headers {
    words: Words,
    /// Bytes of a header: 16 to 4096, a multiple of 16.
    pub(crate) metadata: u64,
    /// Bytes of the smallest payload, a multiple of 16.
    least: u64,
    key: u64,
}

impl Headers {
    /// Headers of `metadata` bytes, before payloads of at least `least`.
    pub(crate) fn new(words: Words, metadata: usize, least: u64, key: u64) -> Result<Headers> {
        if metadata < MIN_METADATA {
            return Err(Error::TooSmall { given: metadata, minimum: MIN_METADATA });
        }
        if metadata > MAX_METADATA {
            return Err(Error::TooLarge { given: metadata, maximum: MAX_METADATA });
        }
        if !(metadata as u64).is_multiple_of(UNIT) {
            return Err(Error::BadAlignment { align: metadata });
        }
        Ok(Headers { words, metadata: metadata as u64, least, key })
    }

    /// The smallest page: header and smallest payload.
    #[inline]
    pub(crate) const fn min_page(&self) -> u64 {
        self.metadata + self.least
    }

    #[inline]
    fn tag(&self, page: Page) -> u64 {
        mix(page.0 ^ self.key) | 1
    }

    #[inline]
    fn control(&self, page: Page) -> Result<&AtomicU64> {
        self.words.place(page.0)
    }

    /// Whether the tag at `page` is that of a header.
    #[inline]
    pub(crate) fn is_page(&self, page: Page) -> Result<bool> {
        Ok(self.words.get(page.0.wrapping_add(8))? == self.tag(page))
    }

    /// What the header at `page` says; damage, or a page that reaches past `limit`, is
    /// [`Error::Corrupt`].
    #[inline]
    pub(crate) fn read(&self, page: Page, limit: u64) -> Result<State> {
        let state = self.read_any(page, limit)?;
        if state.size < self.min_page() { Err(Error::Corrupt) } else { Ok(state) }
    }

    /// [`read`](Self::read), also for what is no more than a header.
    #[inline]
    pub(crate) fn read_any(&self, page: Page, limit: u64) -> Result<State> {
        let control = self.control(page)?.load(Ordering::Acquire);
        let size = control & !(UNIT - 1);
        let room = limit.saturating_sub(page.0);
        if !self.is_page(page)?
            || control & (UNIT - 1) & !IN_USE != 0
            || size < self.metadata
            || size > room
        {
            return Err(Error::Corrupt);
        }
        Ok(State { size, used: control & IN_USE != 0 })
    }

    /// Commits a change of an existing page, in one store.
    #[inline]
    pub(crate) fn commit(&self, page: Page, state: State) -> Result<()> {
        #[cfg(test)]
        super::words::die::step()?;
        self.control(page)?.store(state.size | u64::from(state.used), Ordering::Release);
        Ok(())
    }

    /// Commits that a used page of this size is free now; false if it was not used any more.
    #[inline]
    pub(crate) fn release(&self, page: Page, size: u64) -> Result<bool> {
        let control = self.control(page)?;
        let done =
            control.compare_exchange(size | IN_USE, size, Ordering::AcqRel, Ordering::Relaxed);
        Ok(done.is_ok())
    }

    /// Writes a header where none was. It means nothing until the page before it, or the heap's
    /// position, makes its place the start of a page.
    #[inline]
    pub(crate) fn stamp(&self, page: Page, state: State) -> Result<()> {
        self.words.set(page.0.wrapping_add(8), self.tag(page))?;
        self.commit(page, state)
    }

    /// Removes the tag of what is no page any more.
    #[inline]
    pub(crate) fn erase(&self, page: Page) -> Result<()> {
        self.words.set(page.0.wrapping_add(8), 0)
    }
}

/// A key that differs from allocator to allocator and from run to run. Made of the time, not of
/// addresses, which must not show in a region.
pub(crate) fn fresh_key(seed: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |t| t.as_nanos() as u64);
    mix(nanos ^ mix(seed))
}

/// A bijection of 64 bits in which every input bit reaches every output bit (the finalizer of
/// MurmurHash3).
#[inline]
const fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    x = (x ^ x >> 33).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    x ^ x >> 33
}

#[cfg(test)]
#[allow(unsafe_code)] // test memory as a region
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Room([u64; 64]);

    #[test]
    fn headers_are_told_from_other_bytes() {
        let mut room = Room([0; 64]);
        // SAFETY: aligned, and outlives every use of `words`.
        let words = unsafe { Words::new(room.0.as_mut_ptr().cast(), 512) };
        let headers = Headers::new(words, 16, 32, fresh_key(1)).unwrap();
        let state = State { size: 96, used: true };
        assert_eq!(headers.read(Page(64), 512), Err(Error::Corrupt));
        headers.stamp(Page(64), state).unwrap();
        assert_eq!(headers.read(Page(64), 512), Ok(state));
        assert_eq!(headers.read(Page(64), 159), Err(Error::Corrupt), "reaches past the limit");
        // The same bytes elsewhere are no header.
        words.set(256, words.get(64).unwrap()).unwrap();
        words.set(264, words.get(72).unwrap()).unwrap();
        assert_eq!(headers.read(Page(256), 512), Err(Error::Corrupt));
        for bad in [0, 32, 97, 98, 1 << 40, u64::MAX] {
            words.set(64, bad).unwrap();
            let read = headers.read(Page(64), 512);
            assert!(read.is_err() || bad == 97 && read == Ok(state), "{bad}");
        }
        headers.commit(Page(64), state).unwrap();
        assert_eq!(headers.release(Page(64), 96), Ok(true));
        assert_eq!(headers.release(Page(64), 96), Ok(false));
        headers.erase(Page(64)).unwrap();
        assert_eq!(headers.is_page(Page(64)), Ok(false));
        assert!(Headers::new(words, 15, 32, 0).is_err() && Headers::new(words, 24, 32, 0).is_err());
        assert!(
            Headers::new(words, 4112, 32, 0).is_err() && Headers::new(words, 4096, 32, 0).is_ok()
        );
    }
}
