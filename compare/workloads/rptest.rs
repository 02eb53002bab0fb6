//! Random sizes of 8 B to 16 KB with random lifetimes, part of them freed by another thread, after
//! the benchmark that comes with rpmalloc.
//!
//! Each thread replaces random blocks of a live set of 1000. One in eight of the blocks that it
//! gives up goes to its neighbour, in batches of 64, through a mailbox. A mailbox holds eight
//! batches; what finds it full is freed where it is. Without that bound a thread that the system
//! holds up for some milliseconds comes back to hundreds of megabytes, and time and memory say more
//! about the system than about allocators. One operation is one replacement.

use std::sync::Mutex;

use super::block::Block;
use super::common::{Outcome, Params, on_threads, timed};

const REPLACEMENTS: u64 = 8_000_000;
const LIVE: usize = 1000;
const BATCH: usize = 64;
/// Batches that wait in a mailbox, at most.
const WAITING: usize = 8;

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let threads = params.threads;
    let each = (params.count(REPLACEMENTS) / threads as u64).max(1);
    let mailboxes: Vec<Mutex<Vec<Vec<Block>>>> = (0..threads).map(|_| Mutex::default()).collect();
    Ok(timed(each * threads as u64, || {
        let sum = on_threads(threads, |thread| {
            let mut random = params.random(thread as u64);
            let mut live: Vec<Option<Block>> = (0..LIVE).map(|_| None).collect();
            let mut outgoing = Vec::with_capacity(BATCH);
            let mut sum = 0u64;
            for _ in 0..each {
                let block = Block::new(random.within(8, 16 << 10), random.next());
                let Some(old) = live[random.below(LIVE)].replace(block) else { continue };
                if random.below(8) != 0 {
                    sum = sum.wrapping_add(old.free());
                    continue;
                }
                outgoing.push(old);
                if outgoing.len() == BATCH {
                    let batch = std::mem::replace(&mut outgoing, Vec::with_capacity(BATCH));
                    sum =
                        sum.wrapping_add(free_all(post(&mailboxes[(thread + 1) % threads], batch)));
                    let incoming = std::mem::take(&mut *mailboxes[thread].lock().unwrap());
                    sum = sum.wrapping_add(free_all(incoming.into_iter().flatten()));
                }
            }
            sum.wrapping_add(free_all(live.into_iter().flatten().chain(outgoing)))
        });
        let unread = mailboxes.into_iter().flat_map(|mailbox| mailbox.into_inner().unwrap());
        sum.wrapping_add(free_all(unread.flatten()))
    }))
}

/// Puts a batch into a mailbox, or gives it back where that is full.
fn post(mailbox: &Mutex<Vec<Vec<Block>>>, batch: Vec<Block>) -> impl Iterator<Item = Block> {
    let mut waiting = mailbox.lock().unwrap();
    let refused = if waiting.len() < WAITING {
        waiting.push(batch);
        Vec::new()
    } else {
        batch
    };
    refused.into_iter()
}

fn free_all(blocks: impl Iterator<Item = Block>) -> u64 {
    blocks.fold(0, |sum, block| sum.wrapping_add(block.free()))
}
