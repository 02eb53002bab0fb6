//! A JSON document read into a tree (`serde_json::Value`), changed, and printed, as services and
//! tools do all day. The documents look like the metadata of packages: names, versions, lists of
//! dependencies, nested tables.
//!
//! Making the texts is not timed. One operation is one byte of text.

use std::fmt::Write;

use serde_json::{Value, json};

use super::common::{LANES, Outcome, Params, Random, mix, on_lanes, timed};

/// Documents, over all lanes.
const DOCUMENTS: u64 = 128;
const PACKAGES: usize = 150;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let each = params.count(DOCUMENTS).div_ceil(LANES);
    let texts: Vec<String> = (0..LANES).map(|lane| document(params.random(lane))).collect();
    let bytes = texts.iter().map(String::len).sum::<usize>();
    Ok(timed(each * bytes as u64, || {
        on_lanes(params.threads, |lane| {
            let text = &texts[lane as usize];
            (0..each).fold(0, |sum, _| sum.wrapping_add(round_trip(text)))
        })
    }))
}

fn round_trip(text: &str) -> u64 {
    let mut tree: Value = serde_json::from_str(text).expect("the document is JSON");
    let packages = tree["packages"].as_array_mut().expect("it has a list of packages");
    packages.retain(|package| package["yanked"] == Value::Bool(false));
    for package in packages.iter_mut() {
        let id = format!("{} {}", package["name"], package["version"]);
        package["id"] = Value::String(id);
        package["summary"] = json!({ "stars": 5, "seen": null });
    }
    let copy = tree.clone();
    drop(tree);
    let printed = serde_json::to_string_pretty(&copy).expect("a tree can be printed");
    printed.bytes().step_by(61).fold(printed.len() as u64, |sum, b| mix(sum ^ b as u64))
}

/// Writes to a string do not fail.
fn document(mut random: Random) -> String {
    let mut text = String::from("{\"version\":4,\"packages\":[");
    for number in 0..PACKAGES {
        if number > 0 {
            text.push(',');
        }
        let (name, version) = (word(&mut random), random.below(40));
        let yanked = random.below(8) == 0;
        let size = random.next() % 10_000_000;
        let _ = write!(
            text,
            "{{\"name\":\"{name}-{number}\",\"version\":\"{version}.{}.0\",\"yanked\":{yanked},\
             \"size\":{size},\"score\":{:.3},\"dependencies\":[",
            random.below(9),
            random.fraction(),
        );
        for dependency in 0..random.below(12) {
            if dependency > 0 {
                text.push(',');
            }
            let _ = write!(
                text,
                "{{\"name\":\"{}\",\"req\":\"^{}.{}\",\"features\":[\"{}\",\"{}\"],\"optional\":null}}",
                word(&mut random),
                random.below(5),
                random.below(30),
                word(&mut random),
                word(&mut random),
            );
        }
        text.push_str("]}");
    }
    text.push_str("]}");
    text
}

fn word(random: &mut Random) -> String {
    (0..random.within(3, 14)).map(|_| (b'a' + random.below(26) as u8) as char).collect()
}
