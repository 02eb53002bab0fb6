//! `ShmString` against `String`.

use hshm::{Error, MIB, ShmString};

use super::common::{Place, Random};

fn word(random: &mut Random) -> String {
    let letters = ['a', 'Z', ' ', 'ä', '語', '🦀'];
    let len = if random.below(8) == 0 { random.below(60) } else { random.below(9) };
    (0..len).map(|_| letters[random.below(letters.len())]).collect()
}

#[test]
fn does_what_a_string_does() {
    let place = Place::usual();
    place.balanced(|heap| {
        let mut random = Random(5);
        let mut inline = 0;
        for _ in 0..300 {
            let (mut model, mut text) = (String::new(), ShmString::new_in(heap));
            for _ in 0..100 {
                match random.below(10) {
                    0..=2 => {
                        let more = word(&mut random);
                        model.push_str(&more);
                        text.push_str(&more).unwrap();
                    }
                    3 => {
                        model.push('é');
                        text.push('é').unwrap();
                    }
                    4 => assert_eq!(text.pop(), model.pop()),
                    5 => {
                        let mut to = random.below(model.len() + 1);
                        while !model.is_char_boundary(to) {
                            to -= 1;
                        }
                        model.truncate(to);
                        text.truncate(to);
                    }
                    6 => text.reserve(random.below(80)).unwrap(),
                    7 => {
                        text.shrink_to_fit().unwrap();
                        assert_eq!(text.capacity(), text.len().max(23));
                    }
                    8 => {
                        model.make_ascii_uppercase();
                        text.as_mut_str().make_ascii_uppercase();
                    }
                    _ if random.below(20) == 0 => {
                        model.clear();
                        text.clear();
                    }
                    _ => {
                        model.push_str(&format!("{}", model.len()));
                        text.push_fmt(format_args!("{}", text.len())).unwrap_or(());
                        text.clear();
                        text.push_str(&model).unwrap();
                    }
                }
                inline += (text.capacity() == 23) as usize;
                assert_eq!(text.as_str(), model);
                assert_eq!(text.len(), model.len());
            }
            let copy = text.try_clone().unwrap();
            assert_eq!(
                (copy.as_str(), format!("{copy:?}")),
                (model.as_str(), format!("{model:?}"))
            );
            assert_eq!(copy, text);
        }
        assert!(inline > 1000, "short texts took blocks: {inline}");
    });
}

/// Every length around the one that needs a block.
#[test]
fn short_and_long_texts_compare() {
    let place = Place::usual();
    place.balanced(|heap| {
        let texts: Vec<String> = (0..50).map(|len| "x".repeat(len)).collect();
        let mut copies: Vec<_> =
            texts.iter().rev().map(|text| ShmString::from_in(text, heap).unwrap()).collect();
        copies.sort();
        assert!(copies.iter().zip(&texts).all(|(copy, text)| copy == text.as_str()));
        assert!(copies.windows(2).all(|pair| pair[0] < pair[1]));
    });
}

#[test]
fn running_out_of_memory() {
    let place = Place::with(16 * MIB);
    place.balanced(|heap| {
        let mut text = ShmString::new_in(heap);
        let error = loop {
            if let Err(error) = text.push_str("0123456789") {
                break error;
            }
        };
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(text.len() > 1_000_000 && text.len().is_multiple_of(10) && text.ends_with("789"));
        let before = text.len();
        let long = "x".repeat(16 * MIB);
        assert!(text.push_fmt(format_args!("a few first {long}")).is_err());
        assert_eq!(text.len(), before);
        assert!(text.reserve(usize::MAX).is_err() && text.reserve(isize::MAX as usize).is_err());
    });
}

#[test]
#[should_panic(expected = "inside a character")]
fn characters_are_not_cut() {
    let place = Place::usual();
    ShmString::from_in("é", place.heap).unwrap().truncate(1);
}
