//! The loads, over this crate's containers; `boost.cpp` has the same, number for number.
//!
//! Each is written as a user of the library would write it. The time goes over the work, without
//! making the heap and the input.

use std::time::Instant;

use hshm::{Result, ShmHashMap, ShmHeap, ShmString, ShmVec};

const VOCABULARY: u64 = 20_000;

const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

struct Random(u64);

impl Random {
    fn stream(stream: u64) -> Random {
        Random(mix((stream + 1).wrapping_mul(0xd134_2543_de82_ef95)))
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
    fn below(&mut self, end: u64) -> u64 {
        ((self.next() >> 32) * end) >> 32
    }
}

/// Words of 3 to 20 letters.
fn vocabulary() -> Vec<String> {
    let word = |number| {
        let mut random = Random::stream(number);
        let letters = 3 + random.below(18);
        (0..letters).map(|_| (b'a' + random.below(26) as u8) as char).collect()
    };
    (0..VOCABULARY).map(word).collect()
}

/// Numbers of words, those of small numbers more often.
fn text(length: u64) -> Vec<u32> {
    let mut random = Random::stream(99);
    (0..length)
        .map(|_| (random.below(VOCABULARY) * random.below(VOCABULARY) / VOCABULARY) as u32)
        .collect()
}

pub(crate) struct Run {
    pub(crate) heap: ShmHeap,
    pub(crate) scale: f64,
}

/// Operations, checksum, seconds.
pub(crate) type Outcome = (u64, u64, f64);

impl Run {
    fn scaled(&self, count: u64) -> u64 {
        ((count as f64 * self.scale) as u64).max(1)
    }
    fn timed(&self, operations: u64, work: impl FnOnce() -> Result<u64>) -> Result<Outcome> {
        let start = Instant::now();
        let sum = work()?;
        Ok((operations, sum, start.elapsed().as_secs_f64()))
    }
}

fn vec_push(run: &Run) -> Result<Outcome> {
    let rounds = run.scaled(400);
    run.timed(rounds * 200_000, || {
        let mut sum = 0u64;
        for round in 0..rounds {
            let mut vec = ShmVec::new_in(run.heap);
            for n in 0..200_000u64 {
                vec.push(n ^ round)?;
            }
            for value in &vec {
                sum = sum.wrapping_add(*value);
            }
        }
        Ok(sum)
    })
}

fn vec_index(run: &Run) -> Result<Outcome> {
    let count = run.scaled(60_000_000);
    let mut vec = ShmVec::from_iter_in(0..100_000u64, run.heap)?;
    run.timed(count, || {
        let mut random = Random::stream(1);
        for n in 0..count {
            let value = &mut vec[random.below(100_000) as usize];
            *value = value.wrapping_add(n);
        }
        Ok(vec.iter().fold(0, |sum, value| mix(sum ^ value)))
    })
}

fn vec_sort(run: &Run) -> Result<Outcome> {
    let rounds = run.scaled(20);
    run.timed(rounds * 200_000, || {
        let mut sum = 0;
        for round in 0..rounds {
            let mut random = Random::stream(round);
            let numbers = (0..200_000).map(|_| random.next());
            let mut vec = ShmVec::from_iter_in(numbers, run.heap)?;
            vec.sort_unstable();
            sum = mix(sum ^ vec[1000] ^ vec[150_000]);
        }
        Ok(sum)
    })
}

fn vec_nested(run: &Run) -> Result<Outcome> {
    let rounds = run.scaled(60);
    run.timed(rounds * 20_000, || {
        let mut sum = 0u64;
        for round in 0..rounds {
            let mut random = Random::stream(round);
            let mut outer = ShmVec::new_in(run.heap);
            for n in 0..20_000u32 {
                let mut inner = ShmVec::new_in(run.heap);
                for m in 0..random.below(20) as u32 {
                    inner.push(n ^ m)?;
                }
                outer.push(inner)?;
            }
            for inner in &outer {
                sum = inner.iter().fold(sum, |sum, value| sum.wrapping_add(u64::from(*value)));
            }
        }
        Ok(sum)
    })
}

fn string_append(run: &Run) -> Result<Outcome> {
    let (words, text) = (vocabulary(), text(run.scaled(20_000_000)));
    run.timed(text.len() as u64, || {
        let mut sum = 0;
        let mut line = ShmString::new_in(run.heap);
        for (at, &word) in text.iter().enumerate() {
            line.push_str(&words[word as usize])?;
            line.push_str(" ")?;
            if at % 200 == 199 {
                sum = mix(sum ^ line.len() as u64 ^ u64::from(line.as_bytes()[at % 400]));
                line = ShmString::new_in(run.heap);
            }
        }
        Ok(mix(sum ^ line.len() as u64))
    })
}

fn string_sort(run: &Run) -> Result<Outcome> {
    let (words, text) = (vocabulary(), text(100_000));
    let rounds = run.scaled(10);
    run.timed(rounds * text.len() as u64, || {
        let mut sum = 0u64;
        for round in 0..rounds {
            let mut strings = ShmVec::new_in(run.heap);
            for &word in &text {
                strings.push(ShmString::from_in(&words[word as usize], run.heap)?)?;
            }
            strings.sort_unstable();
            for (at, string) in strings.iter().enumerate() {
                sum = sum.wrapping_add(u64::from(string.as_bytes()[0]) * (at as u64 ^ round));
            }
        }
        Ok(sum)
    })
}

fn pair(key: u64, value: u64) -> u64 {
    mix(key ^ mix(value))
}

fn map_insert(run: &Run) -> Result<Outcome> {
    let rounds = run.scaled(10);
    run.timed(rounds * 500_000, || {
        let mut sum = 0u64;
        for round in 0..rounds {
            let mut random = Random::stream(round);
            let mut map = ShmHashMap::new_in(run.heap);
            for n in 0..500_000u64 {
                map.insert(random.next(), n)?;
            }
            for (key, value) in &map {
                sum = sum.wrapping_add(pair(*key, *value));
            }
        }
        Ok(sum)
    })
}

fn map_find(run: &Run) -> Result<Outcome> {
    let count = run.scaled(20_000_000);
    let numbers = (0..500_000u64).map(|n| (mix(n), n));
    let map = ShmHashMap::from_iter_in(numbers, run.heap)?;
    run.timed(count, || {
        let mut random = Random::stream(3);
        let mut sum = 0u64;
        for _ in 0..count {
            // Half of them are there.
            if let Some(value) = map.get(&mix(random.below(1_000_000))) {
                sum = sum.wrapping_add(*value);
            }
        }
        Ok(sum)
    })
}

fn map_churn(run: &Run) -> Result<Outcome> {
    let count = run.scaled(15_000_000);
    run.timed(count, || {
        let mut random = Random::stream(4);
        let mut map = ShmHashMap::new_in(run.heap);
        for n in 0..count {
            let key = mix(random.below(100_000));
            if map.remove(&key).is_none() {
                map.insert(key, n)?;
            }
        }
        Ok(map.iter().fold(0, |sum: u64, (key, value)| sum.wrapping_add(pair(*key, *value))))
    })
}

fn map_words(run: &Run) -> Result<Outcome> {
    let (words, text) = (vocabulary(), text(run.scaled(8_000_000)));
    run.timed(text.len() as u64, || {
        let mut counts = ShmHashMap::new_in(run.heap);
        for &word in &text {
            let word = words[word as usize].as_str();
            let made = || Ok((ShmString::from_in(word, run.heap)?, 0u64));
            *counts.get_or_insert_with(word, made)? += 1;
        }
        let sum = |sum: u64, (word, count): (&ShmString, &u64)| {
            sum.wrapping_add(pair(u64::from(word.as_bytes()[0]) << 32 | word.len() as u64, *count))
        };
        Ok(counts.iter().fold(0, sum))
    })
}

fn map_index(run: &Run) -> Result<Outcome> {
    let (words, text) = (vocabulary(), text(500_000));
    let rounds = run.scaled(8);
    run.timed(rounds * text.len() as u64, || {
        let mut sum = 0u64;
        for _ in 0..rounds {
            let mut index: ShmHashMap<ShmString, ShmVec<u32>> = ShmHashMap::new_in(run.heap);
            for (at, &word) in text.iter().enumerate() {
                let word = words[word as usize].as_str();
                let made = || Ok((ShmString::from_in(word, run.heap)?, ShmVec::new_in(run.heap)));
                index.get_or_insert_with(word, made)?.push(at as u32)?;
            }
            for (word, places) in &index {
                let last = places.last().copied().unwrap_or(0);
                sum = sum.wrapping_add(pair(word.len() as u64, u64::from(last)));
            }
        }
        Ok(sum)
    })
}

pub(crate) type Load = (&'static str, fn(&Run) -> Result<Outcome>, &'static str);

pub(crate) const LOADS: &[Load] = &[
    ("vec-push", vec_push, "numbers pushed to vectors that grow, then added up"),
    ("vec-index", vec_index, "a vector's elements changed at random"),
    ("vec-sort", vec_sort, "vectors filled with random numbers and sorted"),
    ("vec-nested", vec_nested, "vectors of short vectors, made and dropped"),
    ("string-append", string_append, "lines of 200 words, put together word by word"),
    ("string-sort", string_sort, "vectors of words, sorted"),
    ("map-insert", map_insert, "numbers put into maps that grow, then gone through"),
    ("map-find", map_find, "numbers looked up, half of which are there"),
    ("map-churn", map_churn, "numbers put in and taken out"),
    ("map-words", map_words, "words counted"),
    ("map-index", map_index, "for each word of a text, a vector of its places"),
];
