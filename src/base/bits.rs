//! Bit arithmetic on single words.

/// The lowest position of a run of `n` set bits in `word` that starts at a multiple of `step`.
///
/// `n` is 1 to 64, `step` a power of two up to 64. Finds it in O(log n) shifts: after the loop a
/// bit is set exactly where `n` set bits begin.
#[inline]
pub(crate) const fn find_run(word: u64, n: u32, step: u32) -> Option<u32> {
    debug_assert!(n >= 1 && n <= 64 && step.is_power_of_two() && step <= 64);
    let mut starts = word;
    let mut have = 1;
    while have < n {
        let more = if have < n - have { have } else { n - have };
        starts &= starts >> more;
        have += more;
    }
    // Positions that are multiples of `step`: u64::MAX / (2^step - 1) has a bit every `step`.
    let grid = match step {
        1 => u64::MAX,
        64 => 1,
        _ => u64::MAX / ((1u64 << step) - 1),
    };
    let starts = starts & grid;
    if starts == 0 { None } else { Some(starts.trailing_zeros()) }
}

/// `n` set bits starting at `at`; `n` is 1 to 64 and `at + n` at most 64.
#[inline]
pub(crate) const fn run_mask(at: u32, n: u32) -> u64 {
    debug_assert!(n >= 1 && at + n <= 64);
    (u64::MAX >> (64 - n)) << at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(word: u64, n: u32, step: u32) -> Option<u32> {
        (0..=64 - n).find(|&at| at % step == 0 && (at..at + n).all(|bit| word >> bit & 1 == 1))
    }

    #[test]
    fn finds_what_a_naive_search_finds() {
        let mut word = 0x9E37_79B9_7F4A_7C15u64;
        for round in 0..4000 {
            word = word.rotate_left(13).wrapping_mul(0x2545_F491_4F6C_DD1D) ^ round;
            for dense in [word, word | word >> 7, word | word << 3 | word >> 11, u64::MAX, 0] {
                for n in [1, 2, 3, 5, 8, 16, 31, 33, 64] {
                    for step in [1, 2, 4, 8, 16, 32, 64] {
                        assert_eq!(find_run(dense, n, step), naive(dense, n, step));
                    }
                }
            }
        }
    }

    #[test]
    fn masks() {
        assert_eq!(run_mask(0, 64), u64::MAX);
        assert_eq!(run_mask(63, 1), 1 << 63);
        assert_eq!(run_mask(4, 3), 0b111_0000);
    }
}
