//! Zero-terminated names in fixed buffers.
#![allow(unsafe_code)] // one CStr from checked bytes

use core::ffi::CStr;

use crate::base::{Error, Result};

/// A C string of at most `N - 1` bytes, built on the stack.
#[derive(Clone, Copy)]
pub(crate) struct Name<const N: usize> {
    /// The bytes, then at least one zero.
    bytes: [u8; N],
    len: usize,
}

/// Long enough for every path that the kernel takes.
pub(crate) type PathName = Name<4096>;
/// Long enough for `/proc/<pid>/fd/<n>` and shared-memory names.
pub(crate) type ShortName = Name<264>;

impl<const N: usize> Name<N> {
    /// The empty name.
    pub(crate) const fn new() -> Self {
        Name { bytes: [0; N], len: 0 }
    }
    /// The name made of `parts`, one after another. Zero bytes inside, or too many bytes, are
    /// [`Error::BadName`].
    pub(crate) fn of(parts: &[&[u8]]) -> Result<Self> {
        let mut name = Self::new();
        for part in parts {
            name.push(part)?;
        }
        Ok(name)
    }
    /// Appends bytes.
    pub(crate) fn push(&mut self, part: &[u8]) -> Result<()> {
        let end = self.len.checked_add(part.len()).ok_or(Error::BadName)?;
        if end >= N || part.contains(&0) {
            return Err(Error::BadName);
        }
        let room = self.bytes.get_mut(self.len..end).ok_or(Error::BadName)?;
        room.copy_from_slice(part);
        self.len = end;
        Ok(())
    }
    /// Appends a number in decimal.
    pub(crate) fn push_number(&mut self, mut number: u64) -> Result<()> {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return self.push(&digits[at..]);
            }
        }
    }
    /// The bytes without the zero.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
    /// The name for the kernel.
    pub(crate) fn as_c_str(&self) -> &CStr {
        // SAFETY: `push` keeps `len < N`, puts no zero below `len` and never touches the zeroes
        // from `len` on, so exactly the last byte of the slice is zero.
        unsafe { CStr::from_bytes_with_nul_unchecked(&self.bytes[..=self.len]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_and_refuses() {
        let mut name = Name::<16>::of(&[b"/proc/"]).unwrap();
        name.push_number(4_096).unwrap();
        name.push(b"/fd/").unwrap();
        assert_eq!(name.as_c_str().to_bytes(), b"/proc/4096/fd/");
        assert_eq!(name.push(b"12"), Err(Error::BadName));
        assert_eq!(name.push(b"\0"), Err(Error::BadName));
        name.push_number(0).unwrap();
        assert_eq!(name.as_bytes(), b"/proc/4096/fd/0");
        assert_eq!(Name::<32>::of(&[b"a", b"b"]).unwrap().as_bytes(), b"ab");
        let mut big = Name::<32>::new();
        big.push_number(u64::MAX).unwrap();
        assert_eq!(big.as_bytes(), b"18446744073709551615");
    }
}
