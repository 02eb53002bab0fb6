//! What slices and texts can do, for [`ShmVec`] and [`ShmString`]: they compare, hash and print like
//! what they hold.

use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};

use super::{ShmString, ShmVec};
use crate::ptr::ShmSafe;

impl<T: ShmSafe + fmt::Debug> fmt::Debug for ShmVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}
impl<T: ShmSafe + PartialEq> PartialEq for ShmVec<T> {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}
impl<T: ShmSafe + Eq> Eq for ShmVec<T> {}
impl<T: ShmSafe + PartialEq> PartialEq<[T]> for ShmVec<T> {
    fn eq(&self, other: &[T]) -> bool {
        self.as_slice() == other
    }
}
impl<T: ShmSafe + PartialEq, const N: usize> PartialEq<[T; N]> for ShmVec<T> {
    fn eq(&self, other: &[T; N]) -> bool {
        self.as_slice() == other
    }
}
impl<T: ShmSafe + PartialOrd> PartialOrd for ShmVec<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.as_slice().partial_cmp(other.as_slice())
    }
}
impl<T: ShmSafe + Ord> Ord for ShmVec<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}
impl<T: ShmSafe + Hash> Hash for ShmVec<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}
impl<T: ShmSafe> AsRef<[T]> for ShmVec<T> {
    fn as_ref(&self) -> &[T] {
        self.as_slice()
    }
}
impl<T: ShmSafe> AsMut<[T]> for ShmVec<T> {
    fn as_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}
impl<T: ShmSafe> Borrow<[T]> for ShmVec<T> {
    fn borrow(&self) -> &[T] {
        self.as_slice()
    }
}

impl fmt::Debug for ShmString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}
impl fmt::Display for ShmString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}
impl PartialEq for ShmString {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
impl Eq for ShmString {}
impl PartialEq<str> for ShmString {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}
impl PartialEq<&str> for ShmString {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
impl PartialOrd for ShmString {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ShmString {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}
impl Hash for ShmString {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}
impl AsRef<str> for ShmString {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}
impl AsRef<[u8]> for ShmString {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}
impl Borrow<str> for ShmString {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}
