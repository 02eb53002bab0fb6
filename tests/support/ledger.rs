//! A ledger in a heap: what each of several processes owns, what lies in their mailboxes, and which
//! block a process is handing over or taking over right now.
//!
//! After each death the others are stopped for a moment between two turns, and the heap must hold what
//! the ledger says: what the dead one owned is gone, what it had put into a mailbox is there.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use hshm::Owner;

const OWNED: u64 = 32;
/// Nobody is that slow; a worker that does not get here hangs.
const PATIENCE: Duration = Duration::from_secs(300);
const NAP: Duration = Duration::from_micros(100);

/// Blocks by numbers that are the same in all processes; 0 is none.
pub trait Blocks {
    /// What a block was made with is in it.
    fn make(&self, size: usize) -> u64;
    fn check(&self, block: u64);
    /// Checks it, too.
    fn free(&self, block: u64);
    fn give(&self, block: u64, to: Owner);
}

/// All zeroes is one in which nobody owns anything.
#[repr(C)]
pub struct Worker {
    parked: AtomicU64,
    turns: AtomicU64,
    /// The block that changes hands.
    flight: AtomicU64,
    owned: [AtomicU64; OWNED as usize],
}

/// All zeroes is an empty one.
#[repr(C)]
pub struct Ledger<const WORKERS: usize, const MAILBOXES: usize> {
    pause: AtomicU64,
    workers: [Worker; WORKERS],
    pub mailboxes: [AtomicU64; MAILBOXES],
}

impl<const WORKERS: usize, const MAILBOXES: usize> Ledger<WORKERS, MAILBOXES> {
    /// One turn of worker `own`, or the time of a pause: makes, frees, sends or receives a block.
    /// `random` gives numbers below its argument.
    pub fn turn(
        &self,
        own: usize,
        blocks: &impl Blocks,
        size: usize,
        mut random: impl FnMut(u64) -> u64,
    ) {
        let me = &self.workers[own];
        // Each pause has a number, so that one is not taken for the next.
        let pause = self.pause.load(SeqCst);
        if pause != 0 {
            me.parked.store(pause, SeqCst);
            while self.pause.load(SeqCst) == pause {
                std::thread::sleep(NAP);
            }
            return;
        }
        me.turns.fetch_add(1, SeqCst);
        let slot = &me.owned[random(OWNED) as usize];
        let mailbox = &self.mailboxes[random(MAILBOXES as u64) as usize];
        let block = slot.load(SeqCst);
        match random(4) {
            0 | 1 if block == 0 => slot.store(blocks.make(size), SeqCst),
            0 if block != 0 => {
                blocks.free(block);
                slot.store(0, SeqCst);
            }
            // Send.
            2 if block != 0 => {
                me.flight.store(block, SeqCst);
                blocks.give(block, Owner::Nobody);
                if mailbox.compare_exchange(0, block, SeqCst, SeqCst).is_ok() {
                    slot.store(0, SeqCst);
                } else {
                    blocks.give(block, Owner::ThisProcess);
                }
                me.flight.store(0, SeqCst);
            }
            // Receive.
            3 if block == 0 => {
                let letter = mailbox.load(SeqCst);
                if letter != 0 {
                    me.flight.store(letter, SeqCst);
                    if mailbox.compare_exchange(letter, 0, SeqCst, SeqCst).is_ok() {
                        blocks.give(letter, Owner::ThisProcess);
                        blocks.check(letter);
                        slot.store(letter, SeqCst);
                    }
                    me.flight.store(0, SeqCst);
                }
            }
            _ => {}
        }
    }

    /// Waits until all but the dead one stand still. `wrong` says whether a worker has ended.
    pub fn stand_still(&self, dead: usize, pause: u64, mut wrong: impl FnMut(usize) -> bool) {
        self.pause.store(pause, SeqCst);
        let start = Instant::now();
        for (index, worker) in self.workers.iter().enumerate().filter(|(index, _)| *index != dead) {
            while worker.parked.load(SeqCst) != pause {
                assert!(!wrong(index), "worker {index} found something wrong");
                assert!(start.elapsed() < PATIENCE, "worker {index} hangs");
                std::thread::sleep(NAP);
            }
        }
    }

    pub fn go_on(&self) {
        self.pause.store(0, SeqCst);
    }

    /// What the living own and what is in the mailboxes.
    pub fn entries(&self) -> impl Iterator<Item = u64> {
        let owned = self.workers.iter().flat_map(|worker| &worker.owned);
        owned.chain(&self.mailboxes).map(|word| word.load(SeqCst)).filter(|&block| block != 0)
    }

    /// Strikes out what the dead one owned, which was reaped. Returns the block that it was sending or
    /// receiving, if it `is_nobodys`: the application knows it, and frees it. (It may be another's by now,
    /// who received it, or who got its memory when the dead one's was taken back.)
    pub fn strike_out(&self, dead: usize, is_nobodys: impl Fn(u64) -> bool) -> Option<u64> {
        let entry = &self.workers[dead];
        entry.owned.iter().for_each(|word| word.store(0, SeqCst));
        let flying = entry.flight.swap(0, SeqCst);
        (flying != 0 && is_nobodys(flying) && self.entries().all(|block| block != flying))
            .then_some(flying)
    }

    /// When all are dead, and reaped: frees what was in the mailboxes, and on its way.
    pub fn clear(&self, is_nobodys: impl Fn(u64) -> bool, free: impl Fn(u64)) {
        let take = |word: &AtomicU64| Some(word.swap(0, SeqCst)).filter(|&block| block != 0);
        self.mailboxes.iter().filter_map(take).for_each(&free);
        // May have been in a mailbox.
        let flying = self.workers.iter().filter_map(|worker| take(&worker.flight));
        flying.filter(|&block| is_nobodys(block)).for_each(free);
    }

    /// Of all workers together.
    pub fn turns(&self) -> u64 {
        self.workers.iter().map(|worker| worker.turns.load(SeqCst)).sum()
    }
}
