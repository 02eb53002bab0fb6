//! Where a cache's body keeps the slots of each class.
//!
//! ```text
//! slots:  near, 16 a class │ middle, 128 a class │ far, as many as a class may have
//! ```
//!
//! Most bins of most threads hold few blocks, and a page is a page, however few of its slots are used:
//! so the bins that have little room lie close together, thirty to a page, and move when they get more.
//! Each place begins with its class's null slot, which nobody writes to.

use super::cache::capacity;
use crate::base::classes::CLASSES;

/// Blocks that a bin has room for in each of the three parts.
const ROOMS: [usize; 3] = [16, 128, usize::MAX];

/// Slots that class `class` has in part `part`, with the null slot: none where the part before has room for
/// all that the class may have.
const fn width(part: usize, class: usize) -> usize {
    let most = capacity(class);
    if part > 0 && most <= ROOMS[part - 1] {
        0
    } else if most < ROOMS[part] {
        most + 1
    } else {
        ROOMS[part] + 1
    }
}

/// Index of each class's null slot in each part, and the number of all slots.
const LAYOUT: ([[u32; CLASSES]; ROOMS.len()], usize) = {
    let mut starts = [[0; CLASSES]; ROOMS.len()];
    let (mut part, mut at) = (0, 0);
    while part < ROOMS.len() {
        let mut class = 0;
        while class < CLASSES {
            starts[part][class] = at as u32;
            at += width(part, class);
            class += 1;
        }
        part += 1;
    }
    (starts, at)
};

static STARTS: [[u32; CLASSES]; ROOMS.len()] = LAYOUT.0;

/// Slots of a body.
pub(super) const SLOTS: usize = LAYOUT.1;

/// In which part every class's slots are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places([u8; CLASSES]);

impl Places {
    /// All near.
    pub(super) const NEAR: Places = Places([0; CLASSES]);

    /// Index of the null slot of a class.
    #[inline]
    pub(super) fn start(&self, class: usize) -> usize {
        let part = (self.0[class] as usize).min(ROOMS.len() - 1);
        STARTS[part][class] as usize
    }

    /// Puts a class where there is room for `room` blocks, which is no more than it may have. True where
    /// that is another place than before.
    pub(super) fn make_room(&mut self, class: usize, room: usize) -> bool {
        let mut part = self.0[class];
        while room > ROOMS[part as usize] {
            part += 1;
        }
        core::mem::replace(&mut self.0[class], part) != part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No slot belongs to two places, and none to nobody.
    #[test]
    fn places_are_apart() {
        let mut taken = vec![false; SLOTS];
        for class in 0..CLASSES {
            for (part, starts) in STARTS.iter().enumerate() {
                let start = starts[class] as usize;
                for slot in &mut taken[start..start + width(part, class)] {
                    assert!(!core::mem::replace(slot, true));
                }
            }
        }
        assert!(taken.iter().all(|&slot| slot));
    }

    /// A bin of any room, whether it grew to that or had it at once, has its null slot and so many more.
    #[test]
    fn every_room_has_its_place() {
        for class in 0..CLASSES {
            let mut grown = Places::NEAR;
            for room in 1..=capacity(class) {
                let before = grown.start(class);
                let moved = grown.make_room(class, room);
                assert_eq!(moved, grown.start(class) != before);
                let mut at_once = Places::NEAR;
                at_once.make_room(class, room);
                assert_eq!(at_once.start(class), grown.start(class));
                let part = grown.0[class] as usize;
                assert!(width(part, class) > room, "class {class}, {room} blocks");
            }
        }
    }
}
