//! `ShmVec` and `ShmBox` against `Vec` and `Box`.

use hshm::{Error, MIB, ShmBox, ShmSafe, ShmVec};

use super::common::{Counted, Place, Random};

#[test]
fn does_what_a_vec_does() {
    let place = Place::usual();
    place.balanced(|heap| {
        let mut random = Random(11);
        for _ in 0..60 {
            let (mut model, mut vec) = (Vec::new(), ShmVec::new_in(heap));
            let mut next = 0;
            for _ in 0..400 {
                let mut fresh = || {
                    next += 1;
                    next
                };
                let len = model.len();
                match random.below(16) {
                    0..=3 => {
                        let number = fresh();
                        model.push(number);
                        vec.push(Counted::new(number)).unwrap();
                    }
                    4 => assert_eq!(vec.pop().map(|value| value.0), model.pop()),
                    5 => {
                        let (at, number) = (random.below(len + 1), fresh());
                        model.insert(at, number);
                        vec.insert(at, Counted::new(number)).unwrap();
                    }
                    6 if len > 0 => {
                        let at = random.below(len);
                        assert_eq!(vec.remove(at).0, model.remove(at));
                    }
                    7 if len > 0 => {
                        let at = random.below(len);
                        assert_eq!(vec.swap_remove(at).0, model.swap_remove(at));
                    }
                    8 => {
                        let to = random.below(len + 10);
                        model.truncate(to);
                        vec.truncate(to);
                    }
                    9 => {
                        let odd = random.below(2) as u64;
                        model.retain(|number| number % 3 != odd);
                        vec.retain(|value| value.0 % 3 != odd);
                    }
                    10 => {
                        let more: Vec<u64> = (0..random.below(30)).map(|_| fresh()).collect();
                        model.extend(&more);
                        vec.extend(more.into_iter().map(Counted::new)).unwrap();
                    }
                    11 => {
                        let more: Vec<u64> = (0..random.below(9)).map(|_| fresh()).collect();
                        let mut other =
                            ShmVec::from_iter_in(more.iter().copied().map(Counted::new), heap)
                                .unwrap();
                        model.extend(&more);
                        vec.append(&mut other).unwrap();
                        assert!(other.is_empty());
                    }
                    12 => vec.reserve(random.below(100)).unwrap(),
                    13 => {
                        vec.shrink_to_fit().unwrap();
                        assert_eq!(vec.capacity(), vec.len());
                    }
                    14 => {
                        model.iter_mut().for_each(|number| *number /= 2);
                        vec.iter_mut().for_each(|value| value.0 /= 2);
                        model.dedup();
                        vec.dedup();
                    }
                    15 if random.below(10) == 0 => {
                        model.clear();
                        vec.clear();
                    }
                    _ => {}
                }
                assert!(vec.iter().map(|value| value.0).eq(model.iter().copied()));
                assert_eq!(Counted::live(), model.len() as i64);
                assert!(vec.capacity() >= vec.len());
            }
            // By value, from both ends, and not to the end.
            let mut rest = vec.into_iter();
            let take = random.below(model.len() + 1);
            for _ in 0..take {
                let (got, expected) = match random.below(2) {
                    0 => (rest.next(), model.remove(0)),
                    _ => (rest.next_back(), model.pop().unwrap()),
                };
                assert_eq!(got.unwrap().0, expected);
                assert_eq!(rest.len(), model.len());
            }
            drop(rest);
            assert_eq!(Counted::live(), 0);
        }
    });
}

#[test]
fn elements_of_no_size_take_none() {
    let place = Place::usual();
    place.balanced(|heap| {
        let mut vec = ShmVec::new_in(heap);
        for _ in 0..1000 {
            vec.push(()).unwrap();
        }
        vec.remove(3);
        vec.shrink_to_fit().unwrap();
        assert_eq!((vec.len(), vec.iter().count()), (999, 999));
        assert_eq!(vec.into_iter().count(), 999);
    });
}

#[test]
fn elements_keep_their_alignment() {
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    struct Line([u8; 64]);
    // SAFETY: bytes.
    unsafe impl hshm::ShmSafe for Line {}
    let place = Place::usual();
    place.balanced(|heap| {
        let mut vec = ShmVec::new_in(heap);
        for n in 0..300 {
            vec.push(Line([n as u8; 64])).unwrap();
            assert!(vec.as_ptr().is_aligned());
        }
        assert!(vec.iter().enumerate().all(|(n, line)| line.0 == [n as u8; 64]));
        assert_eq!(ShmBox::new_in(Line([3; 64]), heap).unwrap().0[9], 3);
    });
}

/// Elements are found one by one and in slices: in the first heap of a process and in others, whatever
/// their size and alignment.
#[test]
fn indexed_like_a_vec() {
    fn check<T: ShmSafe + Clone + PartialEq + std::fmt::Debug>(place: &Place, some: [T; 3]) {
        place.balanced(|heap| {
            let items = || (0..700).map(|n| some[n % 3].clone());
            let mut model: Vec<T> = items().collect();
            let mut vec = ShmVec::from_iter_in(items(), heap).unwrap();
            for at in [0, 1, 63, 64, 256, 699] {
                assert_eq!(vec[at], model[at]);
                assert_eq!(&raw const vec[at], &raw const vec.as_slice()[at]);
                vec[at] = some[(at + 1) % 3].clone();
                model[at] = some[(at + 1) % 3].clone();
            }
            assert_eq!((&vec[..], &vec[5..]), (&model[..], &model[5..]));
            assert_eq!((&vec[..9], &vec[..=9]), (&model[..9], &model[..=9]));
            assert_eq!((&vec[3..700], &vec[3..=699]), (&model[3..], &model[3..]));
            vec[10..20].reverse();
            model[10..20].reverse();
            assert_eq!(vec, model[..]);
            for at in [700, 1 << 32, usize::MAX / 8 + 1, usize::MAX] {
                let look = std::panic::AssertUnwindSafe(|| vec[at] == some[0]);
                assert!(std::panic::catch_unwind(look).is_err(), "{at}");
            }
        });
    }
    for place in [Place::usual(), Place::usual(), Place::usual()] {
        check(&place, [1u8, 2, 3]);
        check(&place, [1u64, 2, 3]);
        check(&place, [[1u8; 3], [2; 3], [3; 3]]);
        check(&place, [[1u32; 5], [2; 5], [3; 5]]);
        check(&place, [[1u64; 600], [2; 600], [3; 600]]);
        check(&place, [(), (), ()]);
    }
}

/// When memory is out, everything is as it was, and everything comes back.
#[test]
fn running_out_of_memory() {
    let place = Place::with(16 * MIB);
    place.balanced(|heap| {
        let mut vec = ShmVec::new_in(heap);
        let error = loop {
            let next = vec.len() as u64;
            if let Err(error) = vec.push(Counted::new(next)) {
                break error;
            }
        };
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(vec.len() > 100_000);
        assert_eq!(Counted::live(), vec.len() as i64, "the value that found no room was dropped");
        assert!(vec.iter().enumerate().all(|(n, value)| value.0 == n as u64));
        assert!(vec.insert(5, Counted::new(1)).is_err());
        assert!(vec.reserve(usize::MAX).is_err() && vec.reserve(usize::MAX / 8).is_err());
        assert!(vec.iter().enumerate().all(|(n, value)| value.0 == n as u64));
        let mut boxes = Vec::new();
        while let Ok(boxed) = ShmBox::new_in([1u8; 4000], heap) {
            boxes.push(boxed);
        }
        assert!(boxes.iter().all(|boxed| boxed[3999] == 1));
        drop(vec);
        assert_eq!(Counted::live(), 0);
    });
}

#[test]
fn a_panic_loses_nothing_twice() {
    let place = Place::usual();
    place.balanced(|heap| {
        let values = (0..100).map(Counted::new);
        let mut vec = ShmVec::from_iter_in(values, heap).unwrap();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            vec.retain(|value| if value.0 == 60 { panic!("60") } else { value.0 % 2 == 0 });
        }));
        assert!(caught.is_err());
        // Leaked, not dropped twice.
        assert!(vec.is_empty() && Counted::live() == 70);
        drop(vec);
        assert_eq!(Counted::live(), 70);
    });
}

#[test]
fn places_out_of_range_panic() {
    let place = Place::usual();
    let panics = |work: &dyn Fn(&mut ShmVec<u8>)| {
        let mut vec = ShmVec::from_slice_in(&[1, 2, 3], place.heap).unwrap();
        let work = std::panic::AssertUnwindSafe(|| work(&mut vec));
        assert!(std::panic::catch_unwind(work).is_err());
        assert_eq!(vec, [1, 2, 3]);
    };
    panics(&|vec| {
        let _ = vec.insert(4, 0);
    });
    panics(&|vec| {
        let _ = vec.remove(3);
    });
    panics(&|vec| {
        let _ = vec.swap_remove(3);
    });
    panics(&|vec| {
        let _ = vec[3];
    });
}

#[test]
fn a_box_gives_its_value_back() {
    let place = Place::usual();
    place.balanced(|heap| {
        let mut boxed = ShmBox::new_in(Counted::new(1), heap).unwrap();
        boxed.0 += 1;
        let raw = boxed.into_raw();
        assert_eq!(Counted::live(), 1);
        // SAFETY: given up just now.
        let boxed = unsafe { ShmBox::from_raw(raw) };
        assert_eq!(boxed.into_inner().0, 2);
        assert_eq!(Counted::live(), 0);
        drop(ShmBox::new_in(Counted::new(3), heap).unwrap());
        assert_eq!(Counted::live(), 0);
    });
}
