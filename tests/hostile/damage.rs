//! Writing over memory, and making it good again.

use hshm::Region;

use super::choices::Choices;

const PAGE: usize = 512;
static ZEROS: [u64; PAGE] = [0; PAGE];

/// What part of a region looked like when it was sound.
pub struct Image {
    base: *mut u64,
    /// Page numbers and what they held, nothing for zeros; pages of zeros only where they are to be
    /// restored, too.
    pages: Vec<(usize, Option<Vec<u64>>)>,
    /// Words that held something, and those beside them.
    near: Vec<usize>,
    /// Words that only a process that attaches later may find damaged.
    locks: Vec<usize>,
}

impl Image {
    /// All of the first `bytes` of a region, and what else in it is not zero. `locks` are offsets.
    pub fn of(region: &Region, bytes: usize, locks: &[usize]) -> Image {
        let base = region.base().cast::<u64>();
        let mut image = Image { base, pages: vec![], near: vec![], locks: vec![] };
        image.locks = locks.iter().map(|at| at / 8).collect();
        for page in 0..region.len() / 4096 {
            let words: Vec<u64> = (0..PAGE).map(|at| image.read(page * PAGE + at)).collect();
            let used = words.iter().any(|&word| word != 0);
            if page < bytes / 4096 || used {
                image.pages.push((page, used.then_some(words)));
            }
        }
        for (page, words) in &image.pages {
            let words = words.iter().flatten().enumerate();
            for (at, _) in words.filter(|(_, word)| **word != 0) {
                let at = page * PAGE + at;
                image.near.extend(at.saturating_sub(2)..(at + 3).min(region.len() / 8));
            }
        }
        image.near.dedup();
        image
    }

    fn read(&self, at: usize) -> u64 {
        // SAFETY: word `at` is in the region, by the callers' counts; nobody else writes now.
        unsafe { self.base.add(at).read_volatile() }
    }

    fn write(&self, at: usize, value: u64) {
        // SAFETY: as for reading.
        unsafe { self.base.add(at).write_volatile(value) };
    }

    /// Writes over some words. With `in_use`, locks stay as they are.
    pub fn damage(&self, choices: &mut Choices<'_>, most: usize, in_use: bool) -> u64 {
        let count = 1 + choices.below(most);
        for _ in 0..count {
            let at = match choices.below(8) {
                0 => {
                    let (page, _) = &self.pages[choices.below(self.pages.len())];
                    page * PAGE + choices.below(PAGE)
                }
                _ => self.near[choices.below(self.near.len())],
            };
            // Seldom: one that is held is waited for, for two seconds.
            if self.locks.contains(&at) && (in_use || !choices.once_in(32)) {
                continue;
            }
            let old = self.read(at);
            let half = 32 * choices.below(2);
            let value = match choices.below(9) {
                0 => 0,
                1 => u64::MAX,
                2 => old ^ 1 << choices.below(64),
                3 => old.wrapping_add(choices.below(9) as u64).wrapping_sub(4),
                4 => self.read(self.near[choices.below(self.near.len())]),
                // One of the two small words that many tables are made of.
                5 => old & !(0xFFFF_FFFF << half) | (choices.below(300) as u64) << half,
                6 => old & !(0xFFFF_FFFF << half) | (choices.word() & 0xFFFF_FFFF) << half,
                7 => choices.below(1 << 24) as u64,
                _ => choices.word(),
            };
            self.write(at, value);
        }
        count as u64
    }

    /// Makes everything as it was.
    pub fn restore(&self) {
        for (page, words) in &self.pages {
            // SAFETY: a page of the region, which nobody else uses now.
            let now = unsafe { std::slice::from_raw_parts_mut(self.base.add(page * PAGE), PAGE) };
            let words = words.as_deref().unwrap_or(&ZEROS);
            if now != words {
                now.copy_from_slice(words);
            }
        }
    }
}
