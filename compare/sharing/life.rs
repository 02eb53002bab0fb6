//! What happens once in a process's life: it gets a structure, attaches, dies.

use std::sync::atomic::Ordering;

use super::control::{fork, now};
use super::{Control, Heap, Outcome, Params, Random, Sizes, mark, read_back};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// A list of blocks that fills `bytes`, each with the offset of the next in its second word.
fn build<H: Heap>(heap: &H, bytes: usize) -> Result<u64, String> {
    let mut head = u64::MAX;
    for number in 0..bytes / BLOCK {
        let block = heap.allocate(BLOCK).ok_or("no memory")?;
        mark(heap, block, BLOCK, number as u64);
        // SAFETY: inside the block.
        unsafe { heap.at(block).cast::<u64>().add(1).write(head) };
        head = block;
    }
    Ok(head)
}

/// One process builds a list of a gigabyte, another gets it. With `taking` the time is that of the
/// one who gets it: reading every block and freeing it; otherwise that from when the list is
/// complete until the other has read its head, and it would stay if its maker died.
pub(super) fn give<H: Heap>(params: &Params, taking: bool) -> Result<Outcome, String> {
    let bytes = (((1024 * MIB) as f64 * params.scale) as usize).clamp(MIB, 1024 * MIB);
    let control = Control::new();
    let place = H::create(bytes + bytes / 4 + 64 * MIB);
    let run = control.run(2, |number| {
        let heap = H::attach(&place);
        control.meet(2);
        if number == 0 {
            let head = build(&heap, bytes)?;
            if !taking {
                control.begin(0);
                control.begin(1);
            }
            heap.give_all();
            control.words[0].store(head, Ordering::Release);
            // The other takes its time.
            control.wait(1, 1);
            return Ok(0);
        }
        let head = control.wait(0, 1);
        read_back(&heap, head, BLOCK)?;
        if taking {
            control.begin(0);
            control.begin(1);
        } else {
            control.end(0);
            control.end(1);
        }
        let (mut block, mut sum) = (head, 0u64);
        while block != u64::MAX {
            sum = sum.wrapping_add(read_back(&heap, block, BLOCK)?);
            // SAFETY: inside the block.
            let next = unsafe { heap.at(block).cast::<u64>().add(1).read() };
            heap.free(block);
            block = next;
        }
        if taking {
            control.end(0);
            control.end(1);
        }
        control.words[1].store(1, Ordering::Release);
        Ok(sum)
    });
    H::destroy(&place);
    let (seconds, checksum) = run?;
    Ok(Outcome { operations: (bytes / BLOCK) as u64, checksum, seconds })
}

/// Attaches a heap of 10 GiB and leaves it, again and again; most of it is one process's.
pub(super) fn attach<H: Heap>(params: &Params) -> Result<Outcome, String> {
    const HEAP: usize = 10 << 30;
    let count = ((200.0 * params.scale) as u64).max(3);
    let control = Control::new();
    let place = H::create(HEAP);
    let run = control.run(2, |number| {
        if number == 0 {
            let heap = H::attach(&place);
            // Addresses, not memory: most of what there is.
            let size = H::LARGEST.min(64 * MIB);
            let blocks = if size == 64 * MIB { 140 } else { 10_000 };
            for _ in 0..blocks {
                heap.allocate(size).ok_or("no memory")?;
            }
            control.words[0].store(1, Ordering::Release);
            control.wait(1, 1);
            return Ok(0);
        }
        control.wait(0, 1);
        control.begin(0);
        control.begin(1);
        for _ in 0..count {
            drop(H::attach(&place));
        }
        control.end(0);
        control.end(1);
        control.words[1].store(1, Ordering::Release);
        Ok(0)
    });
    H::destroy(&place);
    let (seconds, checksum) = run?;
    Ok(Outcome { operations: count, checksum, seconds })
}

/// One process has half of the heap when it is killed in the middle of its work. The time until
/// another one, which has 32 MiB, has allocated what would not fit beside that.
pub(super) fn recover<H: Heap>(params: &Params) -> Result<Outcome, String> {
    const HEAP: usize = 256 * MIB;
    const PART: usize = 512 << 10;
    const OWN: usize = 32 * MIB;
    let count = ((8.0 * params.scale) as u64).max(1);
    let mut seconds = 0.0;
    for round in 0..count {
        let control = Control::new();
        let place = H::create(HEAP);
        let survivor = H::attach(&place);
        for _ in 0..OWN / PART {
            let block = survivor.allocate(PART).ok_or("no memory")?;
            // SAFETY: the survivor's own block.
            unsafe { survivor.at(block).write_bytes(1, PART) };
        }
        let victim = fork(|| {
            let heap = H::attach(&place);
            let mut random = Random::stream(round);
            let (mut held, mut bytes) = (Vec::new(), 0);
            while bytes < 128 * MIB {
                let size = Sizes::Wide.draw(&mut random);
                let Some(block) = heap.allocate(size) else { break };
                mark(&heap, block, size, round);
                held.push(block);
                bytes += size;
            }
            control.words[0].store(1, Ordering::Release);
            loop {
                let slot = random.below(held.len() as u64) as usize;
                heap.free(held[slot]);
                match heap.allocate(Sizes::Wide.draw(&mut random)) {
                    Some(block) => held[slot] = block,
                    None => drop(held.swap_remove(slot)),
                }
            }
        });
        control.wait(0, 1);
        std::thread::sleep(std::time::Duration::from_millis(5 + round));
        // SAFETY: our own child.
        unsafe {
            libc::kill(victim, libc::SIGKILL);
            libc::waitpid(victim, std::ptr::null_mut(), 0);
        }
        let start = now();
        if !survivor.recover() {
            return Err("its memory does not come back".into());
        }
        for _ in 0..(224 * MIB - OWN) / PART {
            survivor.allocate(PART).ok_or("no memory")?;
        }
        seconds += (now() - start) as f64 / 1e9;
        drop(survivor);
        H::destroy(&place);
    }
    Ok(Outcome { operations: count, checksum: 0, seconds })
}
