//! Maps keyed by strings: an index of words to the places they occur in (a `HashMap` of vectors),
//! and an ordered table (`BTreeMap` of strings to strings) of which half is taken out again. The
//! words follow Zipf's law roughly, as those of texts do.
//!
//! One operation is one word entered into both.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

use super::common::{LANES, Outcome, Params, Random, mix, on_lanes, timed};

const WORDS: u64 = 1_500_000;
const VOCABULARY: f64 = 8192.0;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let each = params.count(WORDS).div_ceil(LANES);
    Ok(timed(each * LANES, || {
        on_lanes(params.threads, |lane| {
            let mut random = params.random(lane);
            index(&mut random, each).wrapping_add(table(&mut random, each))
        })
    }))
}

/// The word of a rank: spelled from its number, some short and some long.
fn word(random: &mut Random) -> String {
    let rank = VOCABULARY.powf(random.fraction()) as u64;
    let mut letters = mix(rank);
    let mut word = String::new();
    for _ in 0..2 + rank.ilog2() {
        word.push((b'a' + (letters % 26) as u8) as char);
        letters = mix(letters);
    }
    word
}

fn index(random: &mut Random, words: u64) -> u64 {
    // A hasher without a secret: the same table in each run.
    let mut index: HashMap<String, Vec<u32>, BuildHasherDefault<DefaultHasher>> =
        HashMap::default();
    for place in 0..words {
        index.entry(word(random)).or_default().push(place as u32);
    }
    let entry = |(word, places): (&String, &Vec<u32>)| {
        mix(word.len() as u64 ^ (places.len() as u64) << 8 ^ (places[0] as u64) << 32)
    };
    index.iter().map(entry).fold(0, u64::wrapping_add)
}

fn table(random: &mut Random, words: u64) -> u64 {
    let mut table: BTreeMap<String, String> = BTreeMap::new();
    for number in 0..words {
        table.insert(word(random), format!("entry {number}"));
    }
    let mut odd = false;
    table.retain(|_, _| {
        odd = !odd;
        odd
    });
    table
        .iter()
        .fold(0, |sum, (key, value)| mix(sum ^ key.len() as u64 ^ (value.len() as u64) << 8))
}
