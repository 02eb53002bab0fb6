//! Rounding to powers of two.

/// Rounds `n` up to a multiple of `align`, a power of two; `None` where that overflows.
///
/// ```
/// assert_eq!(hshm::align_up(5, 8), Some(8));
/// assert_eq!(hshm::align_up(usize::MAX, 8), None);
/// ```
#[inline]
pub const fn align_up(n: usize, align: usize) -> Option<usize> {
    debug_assert!(align.is_power_of_two());
    match n.checked_add(align - 1) {
        Some(n) => Some(n & !(align - 1)),
        None => None,
    }
}

/// Rounds `n` down to a multiple of `align`, a power of two.
#[inline]
pub const fn align_down(n: usize, align: usize) -> usize {
    debug_assert!(align.is_power_of_two());
    n & !(align - 1)
}

/// Whether `n` is a multiple of `align`, a power of two.
#[inline]
pub const fn is_aligned(n: usize, align: usize) -> bool {
    debug_assert!(align.is_power_of_two());
    n & (align - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_reports_overflow() {
        assert_eq!(align_up(0, 16), Some(0));
        assert_eq!(align_up(1, 16), Some(16));
        assert_eq!(align_up(16, 16), Some(16));
        assert_eq!(align_up(usize::MAX - 14, 16), None);
        assert_eq!(align_up(usize::MAX - 15, 16), Some(usize::MAX - 15));
        assert_eq!(align_down(31, 16), 16);
        assert!(is_aligned(64, 32) && !is_aligned(65, 32));
    }
}
