//! Allocating and freeing all the time: one's own blocks, or each other's.

use super::{Control, Heap, Outcome, Params, Random, Sizes, mark, read_back};

/// Bytes of the heap.
const HEAP: usize = 512 << 20;
/// Operations at scale 1.
const OPERATIONS: u64 = 2_000_000;

/// Each process replaces blocks at random among those that it has.
pub(super) fn own<H: Heap>(params: &Params, sizes: Sizes) -> Result<Outcome, String> {
    const LIVE: usize = 64;
    let count = params.share(OPERATIONS);
    let control = Control::new();
    let place = H::create(HEAP);
    let run = control.run(params.processes, |number| {
        let heap = H::attach(&place);
        let mut random = Random::stream(number as u64);
        let mut live = [(0u64, 0usize); LIVE];
        let mut sum = 0u64;
        control.meet(params.processes);
        control.begin(number);
        for operation in 0..count {
            let slot = random.below(LIVE as u64) as usize;
            let (block, size) = live[slot];
            if size != 0 {
                sum = sum.wrapping_add(read_back(&heap, block, size)?);
                heap.free(block);
            }
            let size = sizes.draw(&mut random);
            let block = heap.allocate(size).ok_or("no memory")?;
            mark(&heap, block, size, operation);
            live[slot] = (block, size);
        }
        for (block, size) in live.into_iter().filter(|(_, size)| *size != 0) {
            sum = sum.wrapping_add(read_back(&heap, block, size)?);
            heap.free(block);
        }
        Ok(sum)
    });
    H::destroy(&place);
    let (seconds, checksum) = run?;
    Ok(Outcome { operations: count * params.processes as u64, checksum, seconds })
}

/// Each process frees what the one before it allocated.
pub(super) fn others<H: Heap>(params: &Params, sizes: Sizes) -> Result<Outcome, String> {
    /// Some have to look after what others freed.
    const TIDY: u64 = 64;
    /// In the word that carries a block's size.
    const MARKED: u64 = 1 << 63;
    let count = params.share(OPERATIONS);
    let control = Control::new();
    let place = H::create(HEAP);
    let run = control.run(params.processes, |number| {
        let heap = H::attach(&place);
        let mut random = Random::stream(number as u64);
        let inbox = &control.rings[number];
        let outbox = &control.rings[(number + 1) % params.processes];
        let mut sum = 0u64;
        let mut taken = 0;
        let take = |sum: &mut u64| -> Result<bool, String> {
            let Some((block, size)) = inbox.pop() else { return Ok(false) };
            if size & MARKED != 0 {
                *sum = sum.wrapping_add(read_back(&heap, block, (size & !MARKED) as usize)?);
            }
            heap.free(block);
            Ok(true)
        };
        control.meet(params.processes);
        control.begin(number);
        for operation in 0..count {
            let size = sizes.draw(&mut random);
            let block = heap.allocate(size).ok_or("no memory")?;
            let marked = if operation % 16 == 0 { MARKED } else { 0 };
            if marked != 0 {
                mark(&heap, block, size, operation);
            }
            while !outbox.push(block, size as u64 | marked) {
                match take(&mut sum)? {
                    true => taken += 1,
                    false => std::thread::yield_now(),
                }
            }
            taken += take(&mut sum)? as u64;
            if operation % TIDY == 0 {
                heap.tidy();
            }
        }
        while taken < count {
            match take(&mut sum)? {
                true => taken += 1,
                false => std::thread::yield_now(),
            }
        }
        Ok(sum)
    });
    H::destroy(&place);
    let (seconds, checksum) = run?;
    Ok(Outcome { operations: count * params.processes as u64, checksum, seconds })
}
