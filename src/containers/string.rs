//! `ShmString`: a growing text.
//!
//! ```text
//! 8 bytes     8         8         7         1
//! heap's id | data    | length  | capacity      with the top bit of the last byte set
//! heap's id | 23 bytes of text            | length (0 to 23)
//! ```
//!
//! Up to 23 bytes lie in the string itself: short ones take no block, and are compared where they
//! are found.
#![allow(unsafe_code)] // moves bytes in shared memory

use core::alloc::Layout;
use core::fmt;
use core::ops::Deref;
use core::ptr;
use core::slice;

use super::heap::{self, ShmHeap, too_large};
use crate::base::{AllocatorId, Error, Result};
use crate::ptr::ShmSafe;

/// Bytes that a string holds without a block.
const INLINE: usize = 23;
/// In the last byte: the text is in a block.
const IN_BLOCK: u64 = 1 << 63;

/// A growing text in a heap: a `String` that can lie in shared memory and be used from any process.
///
/// 32 bytes; a text of up to 23 bytes lies inside. What allocates can fail, and leaves the text as
/// it was. Everything else is a `str`'s.
///
/// ```
/// use hshm::{ShmHeap, ShmString};
/// # use hshm::{AllocatorId, Region, ThreadLocalAllocator};
/// # let region = Region::anonymous(AllocatorId::new(904, 0), 16 << 20)?;
/// # let heap = ShmHeap::of(Box::leak(Box::new(ThreadLocalAllocator::shm_init(region)?)))?;
/// let mut text = ShmString::from_in("to be", heap)?;
/// text.push_str(", or not to be: that is the question")?;
/// assert!(text.starts_with("to be, or") && text.len() == 41);
/// assert_eq!(ShmString::format_in(format_args!("{}!", 6 * 7), heap)?, "42!");
/// # Ok::<(), hshm::Error>(())
/// ```
#[repr(C)]
pub struct ShmString {
    heap: AllocatorId,
    data: u64,
    len: u64,
    /// Capacity and [`IN_BLOCK`], with the most significant byte last in memory.
    last: u64,
}

// SAFETY: an id, an offset, counts and bytes; the destructor looks the id up where it runs.
unsafe impl ShmSafe for ShmString {}

const _: () = assert!(size_of::<ShmString>() == 32);

impl ShmString {
    /// An empty text.
    pub const fn new_in(heap: ShmHeap) -> Self {
        ShmString { heap: heap.id(), data: 0, len: 0, last: 0 }
    }

    /// An empty text with room for `capacity` bytes.
    pub fn with_capacity_in(capacity: usize, heap: ShmHeap) -> Result<Self> {
        let mut string = Self::new_in(heap);
        string.reserve(capacity)?;
        Ok(string)
    }

    /// A copy of a text.
    #[inline]
    pub fn from_in(text: &str, heap: ShmHeap) -> Result<Self> {
        let mut string = Self::new_in(heap);
        if text.len() > INLINE {
            string.set_block(text.len() as u64)?;
        }
        string.push_str(text)?;
        Ok(string)
    }

    /// What `format_args!` says.
    pub fn format_in(text: fmt::Arguments<'_>, heap: ShmHeap) -> Result<Self> {
        let mut string = Self::new_in(heap);
        string.push_fmt(text)?;
        Ok(string)
    }

    /// The heap.
    pub fn heap(&self) -> Result<ShmHeap> {
        ShmHeap::by_id(self.heap)
    }

    #[inline]
    const fn is_inline(&self) -> bool {
        u64::from_le(self.last) & IN_BLOCK == 0
    }

    /// The bytes of the string that hold a short text.
    #[inline]
    fn inline(&self) -> *const u8 {
        ptr::from_ref(self).cast::<u8>().wrapping_add(8)
    }
    #[inline]
    fn inline_mut(&mut self) -> *mut u8 {
        ptr::from_mut(self).cast::<u8>().wrapping_add(8)
    }

    /// Bytes of the text.
    #[inline]
    pub fn len(&self) -> usize {
        match self.is_inline() {
            // A damaged length must not reach past the string.
            true => ((u64::from_le(self.last) >> 56) as usize).min(INLINE),
            false => self.len as usize,
        }
    }
    /// Whether there is no text.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes that there is room for.
    pub fn capacity(&self) -> usize {
        match self.is_inline() {
            true => INLINE,
            false => (u64::from_le(self.last) & !IN_BLOCK) as usize,
        }
    }

    /// The text's bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        let start = match self.is_inline() {
            true => self.inline(),
            false => heap::reach::<u8>(self.heap, self.data, self.len).as_ptr().cast_const(),
        };
        // SAFETY: so many bytes are there, in the string or in its block, which is inside the heap;
        // they stay while `self` is borrowed.
        unsafe { slice::from_raw_parts(start, self.len()) }
    }

    /// The text.
    #[inline]
    pub fn as_str(&self) -> &str {
        // SAFETY: only whole texts are put in, and `truncate` looks where it cuts.
        unsafe { core::str::from_utf8_unchecked(self.as_bytes()) }
    }

    /// The text, to change it in place.
    pub fn as_mut_str(&mut self) -> &mut str {
        let len = self.len();
        let start = match self.is_inline() {
            true => self.inline_mut(),
            false => heap::reach::<u8>(self.heap, self.data, self.len).as_ptr(),
        };
        // SAFETY: as in `as_bytes` and `as_str`, borrowed for this alone.
        unsafe { core::str::from_utf8_unchecked_mut(slice::from_raw_parts_mut(start, len)) }
    }

    /// Moves the text into a block of `cap` bytes (more than are inside without one).
    #[cold]
    fn set_block(&mut self, cap: u64) -> Result<()> {
        if cap >= IN_BLOCK {
            return Err(too_large());
        }
        let layout = Layout::array::<u8>(cap as usize).map_err(|_| too_large())?;
        let len = self.len();
        let block = if self.is_inline() {
            let block = heap::allocate(self.heap, layout)?;
            let place = heap::place::<u8>(self.heap, block, cap)?;
            // SAFETY: a fresh block, longer than the text.
            unsafe { ptr::copy_nonoverlapping(self.inline(), place.as_ptr(), len) };
            block
        } else {
            // SAFETY: the string's own block.
            unsafe { heap::reallocate(self.heap, self.data, layout)? }
        };
        (self.data, self.len, self.last) = (block, len as u64, (cap | IN_BLOCK).to_le());
        Ok(())
    }

    /// Makes room for `more` bytes, at least, and so that many pushes need few of these.
    #[inline]
    pub fn reserve(&mut self, more: usize) -> Result<()> {
        let needed = self.len().checked_add(more).ok_or_else(too_large)?;
        if needed <= self.capacity() {
            return Ok(());
        }
        self.set_block(needed.max(self.capacity().saturating_mul(2)).max(32) as u64)
    }

    /// Gives back what has no text in it. A failure leaves the capacity as it is.
    pub fn shrink_to_fit(&mut self) -> Result<()> {
        let len = self.len();
        if self.is_inline() || len == self.capacity() {
            return Ok(());
        }
        if len > INLINE {
            return self.set_block(len as u64);
        }
        let (block, place) = (self.data, heap::place::<u8>(self.heap, self.data, len as u64)?);
        self.set_inline_len(len);
        // SAFETY: the text, which fits, from the string's own block, which then is nobody's.
        unsafe {
            ptr::copy_nonoverlapping(place.as_ptr(), self.inline_mut(), len);
            heap::free(self.heap, block);
        }
        Ok(())
    }

    fn set_inline_len(&mut self, len: usize) {
        self.last = (u64::from_le(self.last) & (u64::MAX >> 8) | (len as u64) << 56).to_le();
    }

    /// Appends a text.
    #[inline]
    pub fn push_str(&mut self, text: &str) -> Result<()> {
        self.reserve(text.len())?;
        let len = self.len();
        let end = len + text.len();
        let start = match self.is_inline() {
            true => {
                self.set_inline_len(end);
                self.inline_mut()
            }
            false => {
                let place = heap::place::<u8>(self.heap, self.data, end as u64)?;
                self.len = end as u64;
                place.as_ptr()
            }
        };
        // SAFETY: room behind the text, as was reserved; `text` is borrowed, so it is no part of it.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), start.add(len), text.len()) };
        Ok(())
    }

    /// Appends a character.
    pub fn push(&mut self, character: char) -> Result<()> {
        self.push_str(character.encode_utf8(&mut [0; 4]))
    }

    /// Appends what `format_args!` says. On an error, the text is as it was.
    ///
    /// # Errors
    /// What allocating gives; [`Error::Unsupported`] where a `Display` implementation fails.
    pub fn push_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        struct Writer<'a>(&'a mut ShmString, Result<()>);
        impl fmt::Write for Writer<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.1 = self.0.push_str(text);
                self.1.map_err(|_| fmt::Error)
            }
        }
        let before = self.len();
        let mut writer = Writer(self, Ok(()));
        let done = fmt::write(&mut writer, text);
        let result = writer.1.and(done.map_err(|_| Error::Unsupported));
        if result.is_err() {
            self.truncate(before);
        }
        result
    }

    /// Cuts the text to `len` bytes, if it is longer.
    ///
    /// # Panics
    /// If that is inside a character.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            assert!(self.is_char_boundary(len), "byte {len} is inside a character");
            match self.is_inline() {
                true => self.set_inline_len(len),
                false => self.len = len as u64,
            }
        }
    }

    /// Takes the last character.
    pub fn pop(&mut self) -> Option<char> {
        let last = self.as_str().chars().next_back()?;
        self.truncate(self.len() - last.len_utf8());
        Some(last)
    }

    /// Takes the whole text away; the capacity stays.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// A copy in the same heap.
    pub fn try_clone(&self) -> Result<Self> {
        let mut copy = ShmString { heap: self.heap, data: 0, len: 0, last: 0 };
        copy.push_str(self.as_str())?;
        Ok(copy)
    }
}

impl Deref for ShmString {
    type Target = str;
    #[inline]
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Drop for ShmString {
    #[inline]
    fn drop(&mut self) {
        if !self.is_inline() {
            // SAFETY: the string's own block, not used again.
            unsafe { heap::free(self.heap, self.data) };
        }
    }
}
