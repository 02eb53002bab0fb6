//! The region's header, in the file and not in a mapping: its first bytes decide whether anything is
//! mapped at all.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use hshm::{Backend, KIB, MemfdBackend, Region, RegionOptions};

use super::choices::Choices;
use super::supervise::{Done, long, rounds};

const HEADER: usize = 112;
/// What the checksum covers, and where it lies.
const FIXED: usize = 80;

pub struct Scene {
    region: Region,
    file: File,
    good: [u8; HEADER],
}

impl Scene {
    pub fn new() -> Scene {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(64 * KIB)).unwrap();
        let path = format!("/proc/self/fd/{}", region.fd().unwrap());
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut good = [0; HEADER];
        file.read_exact_at(&mut good, 0).unwrap();
        Scene { region, file, good }
    }

    pub fn run(&self, choices: &mut Choices<'_>) -> Done {
        let mut bytes = self.good;
        let count = 1 + choices.below(3);
        for _ in 0..count {
            let at = choices.below(HEADER);
            match choices.below(5) {
                0 => bytes[at] = choices.word() as u8,
                1 => bytes[at] ^= 1 << choices.below(8),
                2 => bytes[at] = 0xFF,
                3 => {
                    let at = at & !7;
                    bytes[at..at + 8].copy_from_slice(&choices.word().to_ne_bytes());
                }
                _ => {
                    let at = at & !3;
                    let value = choices.one_of(&[0u32, 1, 2, 3, 6, 4096, 65536, u32::MAX]);
                    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                }
            }
        }
        let forged = choices.once_in(2);
        if forged {
            // Whoever damages it on purpose makes the sum right.
            let sum = bytes[..FIXED].iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
            });
            bytes[FIXED..FIXED + 8].copy_from_slice(&sum.to_ne_bytes());
        }
        self.file.write_all_at(&bytes, 0).unwrap();
        let found = MemfdBackend::attach_fd(self.region.fd().unwrap(), &RegionOptions::new());
        let (mut fine, mut attached) = (0, false);
        if let Ok(again) = found {
            // What it says of its length cannot be more than there is.
            assert!(again.len() <= 64 * KIB && again.len() >= 8 * KIB);
            // SAFETY: inside the mapping.
            unsafe { again.base().add(again.len() - 1).read_volatile() };
            (fine, attached) = (1, true);
        }
        self.file.write_all_at(&self.good, 0).unwrap();
        Done { written: count as u64, attached, fine }
    }
}

fn damaged_for(test: &str, count: u64) {
    rounds(test, count, || {
        let scene = Scene::new();
        move |choices| scene.run(choices)
    });
}

#[test]
fn damaged() {
    damaged_for("headers::damaged", 10_000);
}

#[test]
#[ignore = "long"]
fn damaged_for_long() {
    damaged_for("headers::damaged_for_long", long(30));
}
