//! A text in an arena.
#![allow(unsafe_code)] // bytes that are known to be UTF-8

use core::ops::Deref;
use core::{fmt, str};

use super::{Arena, ArenaVec};
use crate::base::{Error, Result};

/// A growing text: an [`ArenaVec`] of bytes that are UTF-8.
///
/// ```
/// use core::fmt::Write;
/// use hshm::arena::{Arena, ArenaString};
/// let arena = Arena::new();
/// let mut text = ArenaString::new_in(&arena);
/// text.push_str("x = ");
/// write!(text, "{}", 17).expect("there is room");
/// let text: &str = text.into_str();
/// assert_eq!(text, "x = 17");
/// ```
pub struct ArenaString<'a> {
    bytes: ArenaVec<'a, u8>,
    /// Why a write failed, which [`fmt::Error`] cannot say.
    error: Option<Error>,
}

impl<'a> ArenaString<'a> {
    /// An empty text over an arena, from which nothing is taken yet.
    pub const fn new_in(arena: &'a Arena<'a>) -> Self {
        ArenaString { bytes: ArenaVec::new_in(arena), error: None }
    }

    /// A text with `bytes` of addresses of its own: see [`ArenaVec::reserved`].
    ///
    /// # Errors
    /// As there.
    pub fn reserved(bytes: usize) -> Result<ArenaString<'static>> {
        Ok(ArenaString { bytes: ArenaVec::reserved(bytes)?, error: None })
    }

    /// Appends a text.
    ///
    /// # Panics
    /// Where there is no room.
    #[inline]
    pub fn push_str(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Appends a text, or says why not; then nothing has changed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::ScopeOpen`].
    pub fn try_push_str(&mut self, text: &str) -> Result<()> {
        self.bytes.try_reserve(text.len())?;
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// Appends a character.
    ///
    /// # Panics
    /// Where there is no room.
    pub fn push(&mut self, character: char) {
        self.push_str(character.encode_utf8(&mut [0; 4]));
    }

    /// Takes the last character off.
    pub fn pop(&mut self) -> Option<char> {
        let last = self.chars().next_back()?;
        self.bytes.truncate(self.len() - last.len_utf8());
        Some(last)
    }

    /// Cuts the text to `len` bytes.
    ///
    /// # Panics
    /// Where that is inside a character.
    pub fn truncate(&mut self, len: usize) {
        if len <= self.len() {
            assert!(self.is_char_boundary(len), "byte {len} is inside a character");
            self.bytes.truncate(len);
        }
    }

    /// Takes all text away; the capacity stays.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Bytes that fit before the text has to ask its arena for more.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The text as a part of its arena.
    pub fn into_str(self) -> &'a mut str {
        // SAFETY: only UTF-8 is ever appended, and cut between characters.
        unsafe { str::from_utf8_unchecked_mut(self.bytes.into_slice()) }
    }

    /// Why the last write failed.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }
}

impl Deref for ArenaString<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        // SAFETY: as above.
        unsafe { str::from_utf8_unchecked(&self.bytes) }
    }
}

impl fmt::Write for ArenaString<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.try_push_str(text).map_err(|error| {
            self.error = Some(error);
            fmt::Error
        })
    }
}

impl fmt::Debug for ArenaString<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
impl fmt::Display for ArenaString<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
