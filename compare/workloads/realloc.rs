//! Growth: vectors and strings that are filled side by side, element by element, as parsers and
//! readers do. Doubling capacities make the allocator move or extend blocks of every size; four
//! grow at a time, so that none is simply the last one in memory.
//!
//! Each of the four reaches 64 B to 4 MiB, small ones being the more frequent. One operation is one
//! append of 64 bytes.

use super::common::{LANES, Outcome, Params, on_lanes, timed};

const APPENDS: u64 = 10_000_000;
const CHUNK: [u8; 64] = [b'x'; 64];

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let each = params.count(APPENDS).div_ceil(LANES);
    Ok(timed(each * LANES, || {
        on_lanes(params.threads, |lane| {
            let mut random = params.random(lane);
            let mut growing: [(Vec<u8>, String, usize); 2] = Default::default();
            let mut sum = 0u64;
            for append in 0..each {
                let (bytes, text, limit) = &mut growing[(append % 2) as usize];
                if bytes.len() >= *limit {
                    sum = sum.wrapping_add(*limit as u64 ^ text.len() as u64);
                    sum = sum.wrapping_add(bytes.last().map_or(0, |byte| *byte as u64));
                    *bytes = Vec::new();
                    *text = String::new();
                    *limit = 64 << random.below(17);
                }
                if append % 4 < 2 {
                    bytes.extend_from_slice(&CHUNK);
                } else {
                    text.push_str(std::str::from_utf8(&CHUNK).unwrap_or_default());
                }
            }
            sum
        })
    }))
}
