use super::*;

const LONGEST: usize = MAX_RUN as usize * GRANULE;

#[test]
fn what_grows_little_gets_room_to_grow_again() {
    for old in [MAX_SMALL + 1, 100_000, GRANULE, 1 << 20, LONGEST - 8, LONGEST] {
        // Not longer: none.
        for new in [1, old / 2, old] {
            assert_eq!(growth_room(old, new), 0, "{old} to {new}");
        }
        // By at most three quarters: half as much again, and no more than a run can have.
        for new in [old + 1, old + old / 8, old + old / 4 * 3] {
            let room = growth_room(old, new);
            if new <= LONGEST {
                assert_eq!(room, (new + new / 2).min(LONGEST), "{old} to {new}");
            } else {
                assert_eq!(room, 2 * new, "{old} to {new}");
            }
            assert!(room >= new);
        }
        // What doubles moves to another run each time, kept ones first.
        let new = old + old / 4 * 3 + 1;
        let expected = if new > LONGEST { 2 * new } else { 0 };
        assert_eq!(growth_room(old, new), expected, "{old} to {new}");
        assert_eq!(growth_room(old, 2 * old), if 2 * old > LONGEST { 4 * old } else { 0 });
    }
}

#[test]
fn whole_chunks_get_twice_their_size_and_nothing_wraps() {
    for new in [LONGEST + 1, 1 << 30, usize::MAX / 2] {
        assert_eq!(growth_room(LONGEST, new), 2 * new);
        assert_eq!(growth_room(1, new), 2 * new);
    }
    for new in [usize::MAX / 2 + 1, isize::MAX as usize + 1, usize::MAX] {
        assert_eq!(growth_room(LONGEST, new), usize::MAX);
    }
}

/// An array that grows by an eighth each time: a room that is used up is never the reason for more moves than
/// a factor of its length.
#[test]
fn an_array_that_grows_slowly_moves_seldom() {
    let (mut len, mut room, mut moves) = (64 << 10, 0, 0);
    while len < LONGEST {
        let next = len + len / 8;
        if next > room {
            moves += 1;
            room = growth_room(len, next);
            assert!(room >= next.min(LONGEST));
        }
        len = next;
    }
    assert!((1..=10).contains(&moves), "{moves}");
}
