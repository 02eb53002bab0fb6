//! Rounding, alignment and size classes, for those who cut memory themselves.

use crate::base::{Error, Result};
use crate::os;

/// Bytes of the system's pages.
///
/// ```
/// assert!(hshm::arena::page_size().is_power_of_two());
/// ```
pub fn page_size() -> usize {
    os::page_size()
}

/// The lowest multiple of `align` that is not below `address`. `align` may be any number, not only
/// a power of two; 0 means none, and leaves the address as it is. `None` where it overflows.
///
/// ```
/// use hshm::arena::align_address;
/// assert_eq!(align_address(13, 8), Some(16));
/// assert_eq!(align_address(13, 12), Some(24));
/// assert_eq!(align_address(13, 0), Some(13));
/// assert_eq!(align_address(usize::MAX, 2), None);
/// ```
pub const fn align_address(address: usize, align: usize) -> Option<usize> {
    if align == 0 { Some(address) } else { address.checked_next_multiple_of(align) }
}

/// The alignment that a block of `size` bytes has by nature: the largest power of two that divides
/// it, at most 4096 (and 1 for nothing).
///
/// ```
/// use hshm::arena::natural_align;
/// assert_eq!([1, 4, 12, 64, 96].map(natural_align), [1, 4, 4, 64, 32]);
/// ```
pub const fn natural_align(size: usize) -> usize {
    if size == 0 {
        return 1;
    }
    let align = 1 << size.trailing_zeros();
    if align < 4096 { align } else { 4096 }
}

/// Size classes in geometric steps, with a bound on what rounding up wastes.
///
/// `steps` classes for every doubling: with 4 of them a block is at most a quarter longer than what
/// was asked for, with 8 an eighth. Below `8 * steps` bytes the classes are the multiples of 8,
/// where the waste is less than 8 bytes.
///
/// ```
/// use hshm::arena::SizeClasses;
/// let classes = SizeClasses::new(4)?;
/// let sizes: Vec<_> = (0..12).map(|class| classes.size(class)).collect();
/// assert_eq!(sizes, [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128]);
/// assert_eq!(classes.size(classes.class(1000)), 1024);
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeClasses {
    /// The logarithm of the steps in a doubling.
    shift: u32,
}

impl SizeClasses {
    /// Classes with this many steps in every doubling.
    ///
    /// # Errors
    /// [`Error::BadAlignment`] for what is not a power of two; [`Error::TooLarge`] for more than 64.
    pub const fn new(steps: usize) -> Result<SizeClasses> {
        if !steps.is_power_of_two() {
            return Err(Error::BadAlignment { align: steps });
        }
        if steps > 64 {
            return Err(Error::TooLarge { given: steps, maximum: 64 });
        }
        Ok(SizeClasses { shift: steps.trailing_zeros() })
    }

    /// The class of a size in bytes; 0 counts as 1.
    pub const fn class(self, size: usize) -> usize {
        let steps = 1usize << self.shift;
        let words = size.saturating_sub(1) >> 3;
        if words < steps {
            return words;
        }
        // `words` has `shift` bits behind its first one that tell the steps apart.
        let doubling = words.ilog2() - self.shift;
        doubling as usize * steps + (words >> doubling)
    }

    /// Bytes of the blocks of a class, a multiple of 8. Classes beyond the address space have
    /// `usize::MAX`, rounded down to that.
    pub const fn size(self, class: usize) -> usize {
        let steps = 1usize << self.shift;
        let doubling = (class / steps).saturating_sub(1);
        let words = class - doubling * steps + 1;
        if doubling >= usize::BITS as usize || words > (usize::MAX >> 3) >> doubling {
            return usize::MAX & !7;
        }
        (words << doubling) << 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_for_and_waste_little() {
        for steps in [1, 2, 4, 8, 16, 64] {
            let classes = SizeClasses::new(steps).unwrap();
            let mut last = 0;
            for class in 0..steps * 20 {
                let size = classes.size(class);
                assert!(size > last && size.is_multiple_of(8), "{steps} {class}");
                assert_eq!(classes.class(size), class);
                assert_eq!(classes.class(last + 1), class);
                assert!(size - (last + 1) < 8 || (size - last - 1) * steps <= last + 1);
                last = size;
            }
            let far = classes.class(usize::MAX);
            assert!(classes.size(far) >= usize::MAX & !7);
            assert_eq!(classes.class(0), 0);
        }
        assert!(SizeClasses::new(3).is_err() && SizeClasses::new(128).is_err());
    }

    #[test]
    fn alignment_of_every_kind() {
        for align in 0..70 {
            for address in 0..300 {
                let aligned = align_address(address, align).unwrap();
                assert!(aligned >= address && aligned - address < align.max(1));
                assert!(align == 0 || aligned.is_multiple_of(align));
            }
        }
        assert_eq!([0, 7, 8192, 1 << 40].map(natural_align), [1, 1, 4096, 4096]);
    }
}
