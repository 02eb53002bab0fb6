//! Slabs: one to four granules cut into blocks of one class.
//!
//! ```text
//! SlabDesc (128 B, fixed place, one per granule; a slab uses its head granule's)
//!   owner's line:  free | fresh | committed | zeroed, state | next, prev | bits[4]
//!   others' line:  pending | remote_next | bits[4]
//! BitArea (1088 B, fixed place): the same two bitmaps for slabs of more than 256 blocks
//! ```
//!
//! The truth about a slab is in its two bitmaps and `fresh`:
//!
//! - blocks at or past `fresh` have never been handed out,
//! - a block below it is free where its bit is set in the owner's bitmap *or* in the remote one,
//! - every other block is allocated (or waits in some thread's cache).
//!
//! Only the thread that holds the owning thread block writes the owner's line: plain loads and
//! stores, written as relaxed atomics because other processes may look. Everybody else returns
//! blocks by setting bits in the remote bitmap; see `remote`.
//!
//! `free` counts the owner's set bits. It and the list links can be rebuilt from the bitmaps.

use super::granule::GranuleIdx;
use super::layout::RegionHeap;
use crate::base::classes::{ClassId, MAX_BLOCKS};
use crate::base::units::GRANULE;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, Ordering::Relaxed};

/// Words of a bitmap inside the descriptor.
const INLINE_WORDS: usize = 4;
/// Words of a bitmap in a [`BitArea`], as many as any slab has.
const AREA_WORDS: usize = MAX_BLOCKS / 64;

/// Blocks at or past `fresh` are known to be zero. Written before the slab is anybody's.
const ZEROED: u32 = 1;
/// Some block's keeper may be another than the owner; see `keeper`. Set by anybody, for the life
/// of the slab, run or large block.
const KEPT: u32 = 2;

/// Nobody returned the run. Zero, as in memory that nobody has written to.
const LIVE: u32 = 0;
/// Somebody gave it back whose it was not: its owner takes it.
const RETURNED: u32 = 1;

/// In place of a [`Listing`]: the run is its thread heap's to hand out; see `spare`.
const SPARE: u32 = 3;

/// Where a slab is in its owner's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Listing {
    /// In no list: every block is handed out.
    Full = 0,
    /// The slab that its class allocates from.
    Current = 1,
    /// In the class's list of slabs with free blocks.
    Partial = 2,
}

/// Describes a slab, or a run (which uses `committed` and the remote line only).
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct SlabDesc {
    /// Set bits in the owner's bitmap.
    pub(crate) free: AtomicU32,
    /// Blocks below this index have been handed out at least once.
    pub(crate) fresh: AtomicU32,
    /// Bytes from the start that are committed. For runs: of the whole run.
    pub(crate) committed: AtomicU32,
    /// [`ZEROED`] and [`KEPT`].
    flags: AtomicU32,
    /// A [`Listing`], or [`SPARE`].
    listing: AtomicU32,
    /// Granule + 1 of the neighbours in a class's partial list, or of the next spare run.
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// Granules of a run; 0 for slabs.
    pub(crate) run_granules: AtomicU32,
    bits: [AtomicU64; INLINE_WORDS],
    /// While the slab is, or is about to be, on a thread block's list of remote frees: the number
    /// of the process that put it there. Otherwise 0.
    pub(crate) pending: AtomicU32,
    /// Granule + 1 of the next slab on that list.
    pub(crate) remote_next: AtomicU32,
    /// What others did to a run: [`LIVE`] or [`RETURNED`]. Not a word of `remote`: a late
    /// return must not mark a block of the slab that came after the run.
    run_state: AtomicU32,
    _pad0: AtomicU32,
    _pad: [AtomicU64; 2],
    remote: [AtomicU64; INLINE_WORDS],
}

impl SlabDesc {
    /// Somebody else returns a run: true where it was handed out, for the first who tries.
    pub(crate) fn return_run(&self) -> bool {
        !self.is_spare() && self.change_run(LIVE, RETURNED)
    }
    /// Owner: keeps a run that is handed out, to hand it out again.
    #[inline]
    pub(crate) fn make_spare(&self) {
        self.listing.store(SPARE, Relaxed);
    }
    /// Owner: keeps a run that was returned. False where it has it already: then it was freed twice.
    pub(crate) fn take_returned_run(&self) -> bool {
        // First it is free for the one reason, then for both, then for the other: whoever dies on the
        // way leaves no block in use.
        let twice = self.is_spare();
        self.make_spare();
        self.change_run(RETURNED, LIVE) && !twice
    }
    /// Owner, of a run that it keeps: whether somebody returned it all the same, who had seen it handed
    /// out. Then that is forgotten.
    #[inline]
    pub(crate) fn forget_late_return(&self) -> bool {
        self.is_run_returned() && self.change_run(RETURNED, LIVE)
    }
    /// Owner: hands out a run that it kept.
    #[inline]
    pub(crate) fn hand_out_run(&self) {
        self.flags.store(0, Relaxed);
        self.listing.store(Listing::Full as u32, Ordering::Release);
    }
    /// Whether the run is handed out.
    #[inline]
    pub(crate) fn is_run_live(&self) -> bool {
        self.run_state.load(Ordering::SeqCst) == LIVE && !self.is_spare()
    }
    /// Whether the run waits for its owner to take it back.
    #[inline]
    pub(crate) fn is_run_returned(&self) -> bool {
        self.run_state.load(Ordering::SeqCst) == RETURNED
    }
    /// Whether it is in a thread heap's keeping.
    #[inline]
    pub(crate) fn is_spare(&self) -> bool {
        self.listing.load(Relaxed) == SPARE
    }
    fn change_run(&self, from: u32, to: u32) -> bool {
        self.run_state.compare_exchange(from, to, Ordering::SeqCst, Relaxed).is_ok()
    }
    /// Starts a run; see `thread`.
    pub(crate) fn init_run(&self, granules: u32, committed: u32) {
        self.run_granules.store(granules, Relaxed);
        self.committed.store(committed, Relaxed);
        self.run_state.store(LIVE, Relaxed);
        self.listing.store(Listing::Full as u32, Relaxed);
        self.flags.store(0, Relaxed);
    }
    /// Starts a large block.
    pub(crate) fn forget_kept(&self) {
        self.flags.store(0, Relaxed);
    }
    /// Whether a keeper may be another than the owner.
    #[inline]
    pub(crate) fn is_kept(&self) -> bool {
        self.flags.load(Relaxed) & KEPT != 0
    }
    /// Before a keeper is written.
    pub(crate) fn set_kept(&self) {
        self.flags.fetch_or(KEPT, Ordering::SeqCst);
    }
    /// Whether blocks at or past `fresh` are zero.
    #[inline]
    pub(crate) fn is_zeroed(&self) -> bool {
        self.flags.load(Relaxed) & ZEROED != 0
    }
}

/// The bitmaps of a slab of more than 256 blocks. The padding keeps the same word of neighbouring
/// areas in different cache sets.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct BitArea {
    bits: [AtomicU64; AREA_WORDS],
    remote: [AtomicU64; AREA_WORDS],
    _pad: [AtomicU64; 8],
}

/// A slab as its owner, or somebody who returns blocks to it, sees it.
#[derive(Clone, Copy)]
pub(crate) struct Slab<'a> {
    pub(crate) head: GranuleIdx,
    pub(crate) class: ClassId,
    pub(crate) desc: &'a SlabDesc,
    /// Where its bitmaps are, if they are not in the descriptor.
    area: Option<&'a BitArea>,
}

/// Whether slabs of this class keep their bitmaps in the bit area.
#[inline]
pub(crate) fn uses_area(class: ClassId) -> bool {
    class.blocks() > 64 * INLINE_WORDS as u32
}

impl<'a> Slab<'a> {
    /// The slab of `class` whose head granule is `head`; the caller read both from the granule map.
    #[inline(always)]
    pub(crate) fn new(heap: &'a RegionHeap, head: GranuleIdx, class: ClassId) -> Slab<'a> {
        let area = uses_area(class).then(|| heap.area(head));
        Slab { head, class, desc: heap.desc(head), area }
    }
    /// The owner's bitmap, as long as the class has blocks.
    #[inline(always)]
    fn bits(&self) -> &'a [AtomicU64] {
        match self.area {
            Some(area) => &area.bits[..self.words().min(AREA_WORDS)],
            None => &self.desc.bits[..self.words().min(INLINE_WORDS)],
        }
    }
    /// Everybody else's.
    #[inline(always)]
    fn remote(&self) -> &'a [AtomicU64] {
        match self.area {
            Some(area) => &area.remote[..self.words().min(AREA_WORDS)],
            None => &self.desc.remote[..self.words().min(INLINE_WORDS)],
        }
    }
    /// A word of either, if there is room for so many: the caller sees to it that the class has the
    /// block that it looks for.
    #[inline(always)]
    fn both(&self, word: usize) -> Option<(&'a AtomicU64, &'a AtomicU64)> {
        match self.area {
            Some(area) => Some((area.bits.get(word)?, area.remote.get(word)?)),
            None => Some((self.desc.bits.get(word)?, self.desc.remote.get(word)?)),
        }
    }

    /// Starts a slab in granules that are nobody's. The caller commits it by writing the granule
    /// map afterwards.
    pub(crate) fn init(&self, committed: u32, zeroed: bool) {
        self.desc.free.store(0, Relaxed);
        self.desc.fresh.store(0, Relaxed);
        self.desc.committed.store(committed, Relaxed);
        self.desc.flags.store(if zeroed { ZEROED } else { 0 }, Relaxed);
        self.desc.run_granules.store(0, Relaxed);
        // Not only those that are not 0: a page of private memory that is read first is mapped twice, and the
        // second time all processors are told.
        for word in self.bits().iter().chain(self.remote()) {
            word.store(0, Relaxed);
        }
    }

    #[inline]
    pub(crate) fn listing(&self) -> Listing {
        match self.desc.listing.load(Relaxed) {
            1 => Listing::Current,
            2 => Listing::Partial,
            _ => Listing::Full,
        }
    }
    #[inline]
    pub(crate) fn set_listing(&self, listing: Listing) {
        self.desc.listing.store(listing as u32, Relaxed);
    }
    #[inline]
    pub(crate) fn free_count(&self) -> u32 {
        self.desc.free.load(Relaxed)
    }
    /// The count of blocks ever handed out, never more than the slab has.
    #[inline]
    pub(crate) fn fresh(&self) -> u32 {
        self.desc.fresh.load(Relaxed).min(self.class.blocks())
    }
    /// Bytes of the slab, with the tail that no block uses.
    #[inline]
    pub(crate) fn bytes(&self) -> u32 {
        self.class.slab_granules() * GRANULE as u32
    }
    /// Where block `block` lies, from the region's base.
    #[inline]
    pub(crate) fn offset_of(&self, block: u32) -> usize {
        self.head.0 as usize * GRANULE + block as usize * self.class.size()
    }
    /// The bits of word `index` that stand for blocks: not all of the last one's do.
    #[inline]
    fn blocks_in(&self, index: usize) -> u64 {
        match self.class.blocks() as usize - index * 64 {
            n if n >= 64 => u64::MAX,
            n => (1 << n) - 1,
        }
    }
    /// Whether no block is handed out (as far as the owner knows).
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.free_count() == self.fresh()
    }
    #[inline]
    pub(crate) fn words(&self) -> usize {
        self.class.blocks().div_ceil(64) as usize
    }
    #[inline]
    pub(crate) fn local_word(&self, word: usize) -> &'a AtomicU64 {
        &self.bits()[word]
    }
    #[inline]
    pub(crate) fn remote_word(&self, word: usize) -> &'a AtomicU64 {
        &self.remote()[word]
    }

    /// Owner: marks a block free that nobody has returned: in neither bitmap, and handed out once.
    #[inline(always)]
    pub(crate) fn free_live(&self, block: u32) -> bool {
        let (word, bit) = (block as usize / 64, 1 << (block % 64));
        let Some((place, remote)) = self.both(word) else { return false };
        let seen = place.load(Relaxed);
        if (seen | remote.load(Relaxed)) & bit != 0 || block >= self.desc.fresh.load(Relaxed) {
            return false;
        }
        place.store(seen | bit, Relaxed);
        self.desc.free.store(self.free_count().wrapping_add(1), Relaxed);
        true
    }

    /// Somebody else: marks a block as returned, under the same conditions. Of several who do, one is
    /// told that it did.
    ///
    /// One of them and the owner may both be told that they did, if they look at the same moment: two frees
    /// of one block, which only a caller makes that breaks the contract of `free`. The bit then waits here, and
    /// frees the block's next life. To look for it whenever a block is handed out would cost each allocation
    /// the others' cache line; a run, which is worth that, is looked at (`forget_late_return`).
    #[inline(always)]
    pub(crate) fn return_live(&self, block: u32) -> bool {
        let (word, bit) = (block as usize / 64, 1 << (block % 64));
        let Some((place, remote)) = self.both(word) else { return false };
        block < self.desc.fresh.load(Relaxed)
            && place.load(Relaxed) & bit == 0
            && remote.fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// Owner: marks a block free. False where it already was, or was never handed out.
    #[inline]
    pub(crate) fn free_block(&self, block: u32) -> bool {
        let word = &self.bits()[block as usize / 64];
        let bit = 1 << (block % 64);
        let seen = word.load(Relaxed);
        if seen & bit != 0 || block >= self.fresh() {
            return false;
        }
        word.store(seen | bit, Relaxed);
        self.desc.free.store(self.free_count().wrapping_add(1), Relaxed);
        true
    }

    /// Owner: takes the lowest free block, if there is one. No word before `hint` has any; moves it
    /// on.
    #[inline(always)]
    pub(crate) fn take_one(&self, hint: &mut u32) -> Option<u32> {
        let free = self.free_count();
        if free == 0 {
            return None;
        }
        let (word, _) = self.both(*hint as usize)?;
        let seen = word.load(Relaxed);
        let block = (*hint * 64).wrapping_add(seen.trailing_zeros());
        if seen == 0 || block >= self.class.blocks() {
            return self.take_later(hint);
        }
        word.store(seen & (seen - 1), Relaxed);
        self.desc.free.store(free - 1, Relaxed);
        Some(block)
    }

    /// Owner: whether the next `count` blocks take more of the slab than was committed so far.
    #[inline]
    pub(crate) fn would_reach_further(&self, count: u32) -> bool {
        let more = count.saturating_sub(self.free_count());
        let (fresh, blocks) = (self.fresh(), self.class.blocks());
        let end = (fresh + more.min(blocks - fresh)) as usize * self.class.size();
        more > 0 && fresh < blocks && end > self.desc.committed.load(Relaxed) as usize
    }

    /// Owner: takes the next block that was never handed out, if it is committed and none is free.
    #[inline]
    pub(crate) fn take_fresh(&self) -> Option<u32> {
        let block = self.fresh();
        let end = u64::from(block + 1) * self.class.size() as u64;
        let there =
            block < self.class.blocks() && end <= u64::from(self.desc.committed.load(Relaxed));
        if !there || self.free_count() != 0 {
            return None;
        }
        self.desc.fresh.store(block + 1, Relaxed);
        Some(block)
    }

    /// The same where that word has none.
    #[inline(never)]
    fn take_later(&self, hint: &mut u32) -> Option<u32> {
        let found =
            self.bits().iter().enumerate().skip(*hint as usize).find_map(|(index, word)| {
                let seen = word.load(Relaxed) & self.blocks_in(index);
                (seen != 0).then_some((index, word, seen))
            });
        // None is one of a damaged heap: the count, or the bits.
        *hint = found.map_or(0, |(index, ..)| index as u32);
        let (index, word, seen) = found?;
        word.store(seen & (seen - 1), Relaxed);
        self.desc.free.store(self.free_count().wrapping_sub(1), Relaxed);
        Some(index as u32 * 64 + seen.trailing_zeros())
    }

    /// Owner: takes up to `out.len()` free blocks, lowest addresses first, as addresses in a slab
    /// that starts at `base`. Fills `out` from its end.
    #[inline]
    pub(crate) fn take_free(&self, base: *mut u8, out: &mut [*mut u8]) -> usize {
        let free = self.free_count();
        if free == 0 {
            return 0;
        }
        let size = self.class.size();
        let mut places = out.iter_mut().rev();
        let mut wanted = places.len();
        for (index, word) in self.bits().iter().enumerate() {
            let mut left = word.load(Relaxed) & self.blocks_in(index);
            if left == 0 {
                continue;
            }
            let first = base.wrapping_add(index * 64 * size);
            while left != 0
                && let Some(place) = places.next()
            {
                *place = first.wrapping_add(left.trailing_zeros() as usize * size);
                left &= left - 1;
            }
            word.store(left, Relaxed);
            if places.len() == 0 {
                break;
            }
        }
        wanted -= places.len();
        self.desc.free.store(free.saturating_sub(wanted as u32), Relaxed);
        wanted
    }

    /// Owner: marks blocks free, as long as they are blocks of this slab, which starts at `base`.
    /// Returns how many were, and how many of those were refused: free already or never handed out.
    // A function of its own, so that all of the loop is in registers.
    #[inline(never)]
    pub(crate) fn free_blocks(&self, base: *mut u8, blocks: &[*mut u8]) -> (usize, u32) {
        let (bytes, fresh, bits) = (self.bytes() as usize, self.fresh(), self.bits());
        let division = self.class.division();
        let (mut seen, mut refused) = (0, 0u32);
        for block in blocks {
            let at = block.addr().wrapping_sub(base.addr());
            if at >= bytes {
                break;
            }
            seen += 1;
            let index = division.block_of(at as u32);
            debug_assert_eq!(index as usize * self.class.size(), at, "no block's start");
            match bits.get(index as usize / 64) {
                Some(place) if index < fresh => {
                    let (word, bit) = (place.load(Relaxed), 1 << (index % 64));
                    refused += (word & bit != 0) as u32;
                    place.store(word | bit, Relaxed);
                }
                _ => refused += 1,
            }
        }
        self.desc.free.store(self.free_count().wrapping_add(seen as u32 - refused), Relaxed);
        (seen, refused)
    }

    /// Not the owner: `gathered` gets words of bits for the remote bitmap of the first blocks that are
    /// this slab's, which starts at `base`. Returns how many were, and how many of those were refused
    /// because no block begins there, or for being in a word twice.
    // A function of its own, as above; `gathered` should not be inlined into it.
    #[inline(never)]
    pub(crate) fn gather(
        &self,
        base: *mut u8,
        blocks: &[*mut u8],
        mut gathered: impl FnMut(usize, u64),
    ) -> (usize, u32) {
        let (bytes, size) = (self.bytes() as usize, self.class.size() as u32);
        let (division, count) = (self.class.division(), self.class.blocks());
        let (mut seen, mut refused) = (0, 0u32);
        // Neighbours are often freed one after another.
        let (mut at_word, mut word) = (0, 0u64);
        for block in blocks {
            let at = block.addr().wrapping_sub(base.addr());
            if at >= bytes {
                break;
            }
            seen += 1;
            let index = division.block_of(at as u32);
            if index.wrapping_mul(size) != at as u32 || index >= count {
                refused += 1;
                continue;
            }
            if index / 64 != at_word {
                if word != 0 {
                    gathered(at_word as usize, word);
                }
                (at_word, word) = (index / 64, 0);
            }
            let bit = 1 << (index % 64);
            refused += (word & bit != 0) as u32;
            word |= bit;
        }
        if word != 0 {
            gathered(at_word as usize, word);
        }
        (seen, refused)
    }

    /// Owner: merges what others returned into the owner's bitmap. Returns how many blocks came
    /// back, and how many bits were refused because their block was free already. If any block may
    /// have a keeper, `forget` hears of those that came back, by word and mask, before they are free.
    pub(crate) fn collect(&self, mut forget: impl FnMut(usize, u64)) -> (u32, u32) {
        let (mut back, mut refused) = (0, 0);
        let fresh = self.fresh();
        for (index, remote) in self.remote().iter().enumerate() {
            // Acquires what the freeing threads wrote before they set their bits, and is not made
            // before the caller's swap of `pending` (see `remote`). The bits are taken away last:
            // who dies in between leaves them in both bitmaps, and not in none.
            let returned = remote.load(Ordering::SeqCst);
            if returned == 0 {
                continue;
            }
            let first = (index * 64) as u32;
            let handed_out = match fresh.saturating_sub(first) {
                0 => 0,
                n if n >= 64 => u64::MAX,
                n => (1 << n) - 1,
            };
            let word = &self.bits()[index];
            let seen = word.load(Relaxed);
            let good = returned & handed_out & !seen;
            refused += (returned & !good).count_ones();
            back += good.count_ones();
            if self.desc.is_kept() {
                forget(index, good);
            }
            word.store(seen | good, Ordering::Release);
            remote.fetch_and(!returned, Ordering::AcqRel);
        }
        self.desc.free.store(self.free_count().wrapping_add(back), Relaxed);
        (back, refused)
    }

    /// Somebody who has taken over from an owner that is gone: merges both bitmaps, frees the blocks
    /// that `keep` does not want (asked with each block's index), and leaves the slab in no
    /// thread heap's list. `forget` is as for [`collect`](Slab::collect). Returns how many blocks
    /// are left.
    pub(crate) fn settle(
        &self,
        mut keep: impl FnMut(u32) -> bool,
        mut forget: impl FnMut(usize, u64),
    ) -> u32 {
        let fresh = self.fresh();
        let mut left = 0;
        for (index, remote) in self.remote().iter().enumerate() {
            let first = index as u32 * 64;
            let handed_out = match fresh.saturating_sub(first) {
                0 => 0,
                n if n >= 64 => u64::MAX,
                n => (1 << n) - 1,
            };
            let returned = remote.load(Ordering::SeqCst);
            let mut free = (self.bits()[index].load(Relaxed) | returned) & handed_out;
            let mut live = handed_out & !free;
            while live != 0 {
                let bit = live.trailing_zeros();
                live &= live - 1;
                if keep(first + bit) {
                    left += 1;
                } else {
                    free |= 1 << bit;
                }
            }
            if self.desc.is_kept() {
                forget(index, free & !self.bits()[index].load(Relaxed));
            }
            self.bits()[index].store(free, Ordering::Release);
            if returned != 0 {
                remote.fetch_and(!returned, Ordering::AcqRel);
            }
        }
        self.desc.free.store(fresh - left, Relaxed);
        self.set_listing(Listing::Partial);
        left
    }

    /// How many blocks are handed out.
    pub(crate) fn live(&self) -> u32 {
        let free = self
            .bits()
            .iter()
            .zip(self.remote())
            .map(|(word, remote)| (word.load(Relaxed) | remote.load(Relaxed)).count_ones());
        self.fresh().saturating_sub(free.sum())
    }

    /// Whether block `block` is free for sure: in either bitmap, or never handed out.
    #[inline]
    pub(crate) fn is_free(&self, block: u32) -> bool {
        let bit = 1 << (block % 64);
        let word = block as usize / 64;
        block >= self.fresh()
            || self.bits()[word].load(Relaxed) & bit != 0
            || self.remote()[word].load(Relaxed) & bit != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::thread::with_thread_heap;
    use super::*;
    use crate::base::classes::class_index;

    /// Every block of the slab, each once, in its word; whatever is no block's start or comes twice is
    /// refused; what is another slab's ends it.
    #[test]
    fn gathering_takes_the_slabs_own_blocks_only() {
        with_thread_heap(|heap, mut thread| {
            for size in [8, 48, 1000, 32 << 10] {
                let class = ClassId::new(class_index(size));
                let mut blocks = vec![core::ptr::null_mut(); class.blocks() as usize + 1];
                for block in &mut blocks {
                    *block = thread.allocate_one(heap, class).unwrap();
                }
                let other = blocks.pop().unwrap();
                let head = GranuleIdx(
                    ((blocks[0].addr() - heap.base().addr()) / crate::base::units::GRANULE) as u32,
                );
                let slab = Slab::new(heap, head, class);
                let gather = |blocks: &[*mut u8]| {
                    let mut words = vec![0u64; slab.words()];
                    let counts = slab.gather(heap.granule_addr(head), blocks, |word, mask| {
                        assert_eq!(words[word] & mask, 0);
                        words[word] |= mask;
                    });
                    (counts, words)
                };
                let all = |words: &[u64]| words.iter().map(|word| word.count_ones()).sum::<u32>();
                let (counts, words) = gather(&blocks);
                assert_eq!((counts, all(&words)), ((blocks.len(), 0), class.blocks()));
                // From the last word to the first, with an end in between.
                let mut list: Vec<_> = blocks.iter().rev().copied().collect();
                list.push(other);
                list.push(blocks[0]);
                let (counts, words) = gather(&list);
                assert_eq!((counts, all(&words)), ((blocks.len(), 0), class.blocks()));
                // Twice in a row, inside a block, and the rest of the slab behind the last block.
                let last = blocks[blocks.len() - 1];
                let inside = last.wrapping_add(class.size() / 2);
                let (counts, words) = gather(&[last, last, inside]);
                assert_eq!((counts, all(&words)), ((3, 2), 1));
                assert_eq!(gather(&[other]).0, (0, 0));
                let rest = heap.granule_addr(head).wrapping_add(slab.bytes() as usize - 1);
                assert_eq!(gather(&[rest]).0, (1, 1));
            }
        });
    }

    /// What others returned is handed out again before blocks on pages that nobody has touched, in slabs with
    /// few blocks and with many; and the first pages are used up before anything is looked for.
    #[test]
    fn returned_blocks_come_before_untouched_pages() {
        with_thread_heap(|heap, mut thread| {
            for size in [48, 1000, 3000] {
                let class = ClassId::new(class_index(size));
                let mut out = vec![core::ptr::null_mut(); 2];
                let mut blocks = Vec::new();
                let (head, slab) = loop {
                    let got = thread.allocate_batch(heap, class, &mut out).unwrap();
                    blocks.extend_from_slice(&out[..got]);
                    let at = blocks[0].addr() - heap.base().addr();
                    let head = GranuleIdx((at / GRANULE) as u32);
                    let slab = Slab::new(heap, head, class);
                    if slab.would_reach_further(2) {
                        break (head, slab);
                    }
                };
                let fresh = slab.fresh();
                assert_eq!(fresh as usize, blocks.len());
                assert!((fresh + 2) as usize * size > slab.desc.committed.load(Relaxed) as usize);
                for index in [1, 0] {
                    assert!(heap.free_remote(head, class, thread.id(), 0, 1 << index));
                }
                assert_eq!(thread.allocate_batch(heap, class, &mut out), Ok(2));
                let addresses = [slab.offset_of(1), slab.offset_of(0)];
                assert_eq!(out, addresses.map(|at| heap.base().wrapping_add(at)));
                assert_eq!((slab.fresh(), slab.free_count()), (fresh, 0));
                // Nothing was returned since: now the slab goes on.
                assert_eq!(thread.allocate_batch(heap, class, &mut out), Ok(2));
                assert_eq!(slab.fresh(), fresh + 2);
            }
        });
    }

    /// Each block is freed once: what is free already or was never handed out is refused, and what is
    /// another slab's ends it.
    #[test]
    fn a_group_is_freed_once() {
        with_thread_heap(|heap, mut thread| {
            for size in [8, 48, 1000, 32 << 10] {
                let class = ClassId::new(class_index(size));
                let first = thread.allocate_one(heap, class).unwrap();
                let granule = (first.addr() - heap.base().addr()) / GRANULE;
                let head = GranuleIdx(granule as u32);
                let (slab, base) = (Slab::new(heap, head, class), heap.granule_addr(head));
                let unused = base.wrapping_add(slab.fresh() as usize * class.size());
                assert_eq!(slab.free_blocks(base, &[unused, unused]), (2, 2));
                let mut blocks = vec![first];
                for _ in 0..class.blocks() {
                    blocks.push(thread.allocate_one(heap, class).unwrap());
                }
                let other = blocks.pop().unwrap();
                assert_eq!(slab.free_count(), 0);
                let (half, rest) = blocks.split_at(blocks.len() / 2);
                let twice = [half, &half[..1], &[other], rest].concat();
                assert_eq!(slab.free_blocks(base, &twice), (half.len() + 1, 1));
                assert_eq!(slab.free_count() as usize, half.len());
                let all: Vec<_> = blocks.iter().rev().copied().collect();
                assert_eq!(slab.free_blocks(base, &all), (all.len(), half.len() as u32));
                assert_eq!(slab.free_count(), class.blocks());
                assert!((0..class.blocks()).all(|index| slab.is_free(index)));
            }
        });
    }
}
