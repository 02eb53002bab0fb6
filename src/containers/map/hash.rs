//! The hash of a map's keys: the same in every process, seeded by the map.
//!
//! Words are folded in by a wide multiplication whose halves are joined (the idea of wyhash and its
//! kin): every bit of the input reaches the low bits, which pick the place, and the high ones, which
//! make the tag. The seed is random for each map, so that nobody can make many keys fall together
//! who does not know it.

use core::hash::Hasher;

const MIX: u64 = 0x9E37_79B9_7F4A_7C15;
const END: u64 = 0xD6E8_FEB8_6659_FD93;

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    wide as u64 ^ (wide >> 64) as u64
}

/// See the module.
pub(super) struct MapHasher {
    state: u64,
}

impl MapHasher {
    #[inline]
    pub(super) fn new(seed: u64) -> Self {
        // A first word that cancels the state would leave nothing to multiply.
        MapHasher { state: fold(seed ^ END, MIX) }
    }
}

/// The first 8 bytes; fewer are never asked for.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[inline]
fn half(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
}

impl Hasher for MapHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let len = bytes.len();
        // Two readings that overlap cover what is left, whatever its length.
        let (low, high) = match len {
            17.. => {
                let mut rest = bytes;
                while rest.len() > 16 {
                    self.state = fold(word(rest) ^ self.state, word(&rest[8..]) ^ MIX);
                    rest = &rest[16..];
                }
                (word(&bytes[len - 16..]), word(&bytes[len - 8..]))
            }
            8..=16 => (word(bytes), word(&bytes[len - 8..])),
            4..=7 => (half(bytes), half(&bytes[len - 4..])),
            1..=3 => {
                let [first, middle, last] = [bytes[0], bytes[len / 2], bytes[len - 1]];
                (u64::from(first) | u64::from(middle) << 8, u64::from(last))
            }
            0 => (0, 0),
        };
        self.state = fold(low ^ self.state, high ^ MIX ^ len as u64);
    }
    #[inline]
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    #[inline]
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.state = fold(value ^ self.state, MIX);
    }
    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    #[inline]
    fn finish(&self) -> u64 {
        fold(self.state, END)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hash;
    use std::collections::BTreeSet;

    fn hash<T: Hash + ?Sized>(value: &T, seed: u64) -> u64 {
        let mut hasher = MapHasher::new(seed);
        value.hash(&mut hasher);
        hasher.finish()
    }

    /// Processes meet in a map only if they agree on this.
    #[test]
    fn hashes_never_change() {
        let hashes = [hash(&7u64, 1), hash("shared", 2), hash(&(1u32, 'x'), 3)];
        assert_eq!(hashes, [0xdffb5d65f57ef41a, 0x770b14599d88dd89, 0xa7c748ee4cf6e370]);
    }

    /// Keys that differ little spread over places and tags.
    #[test]
    fn similar_keys_spread() {
        for seed in [1, 0x1234_5678_9ABC_DEF0] {
            let numbers = (0..4096u64).map(|n| hash(&n, seed));
            let shifted = (0..4096u64).map(|n| hash(&(n << 40), seed));
            let texts = (0..4096).map(|n| hash(format!("key {n}").as_str(), seed));
            let long = (0..4096).map(|n| hash(format!("{n:0>40}").as_str(), seed));
            for hashes in
                [numbers.collect::<Vec<_>>(), shifted.collect(), texts.collect(), long.collect()]
            {
                let all: BTreeSet<_> = hashes.iter().collect();
                assert_eq!(all.len(), 4096);
                // Of 4096 balls in 4096 boxes, 63 % of the boxes get one.
                let places: BTreeSet<_> = hashes.iter().map(|hash| hash & 4095).collect();
                assert!((2400..2800).contains(&places.len()), "{} places", places.len());
                let mut tags = [0; 128];
                hashes.iter().for_each(|hash| tags[(hash >> 57) as usize] += 1);
                assert!(tags.iter().all(|&count| (8..80).contains(&count)), "{tags:?}");
            }
        }
    }

    #[test]
    fn every_byte_counts() {
        for len in 0..70 {
            let mut bytes = vec![0u8; len];
            let plain = hash(bytes.as_slice(), 5);
            for at in 0..len {
                bytes[at] = 1;
                assert_ne!(hash(bytes.as_slice(), 5), plain, "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
