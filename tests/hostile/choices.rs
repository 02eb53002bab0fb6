//! Where a round's choices come from: a seed, or the bytes that a fuzzer thought of.

pub enum Choices<'a> {
    Seed(u64),
    /// Zeros, when there are no more.
    #[allow(dead_code)] // the fuzz targets'
    Bytes(&'a [u8]),
}

impl Choices<'static> {
    /// Those of one round of many.
    pub fn of_round(seed: u64, round: u64) -> Self {
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ round;
        for _ in 0..2 {
            x = (x ^ x >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        }
        Choices::Seed(x | 1)
    }
}

impl Choices<'_> {
    fn take(&mut self, bytes: usize) -> u64 {
        match self {
            Choices::Seed(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
            }
            Choices::Bytes(left) => {
                let (now, later) = left.split_at(bytes.min(left.len()));
                *left = later;
                now.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
            }
        }
    }
    pub fn word(&mut self) -> u64 {
        self.take(8) << 32 ^ self.take(4)
    }
    pub fn below(&mut self, bound: usize) -> usize {
        let bytes = match bound {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        };
        (self.take(bytes) % bound as u64) as usize
    }
    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}
