//! One producer, several consumers, requests one way and replies the other, and nothing is copied.
//!
//! ```sh
//! cargo run --release --example pipeline                   # 3 consumers, 3 seconds
//! cargo run --release --example pipeline -- 4 10 kill      # and kill -9 of somebody, all the time
//! ```
//!
//! The producer writes a line of text into a block of the shared heap, hands the block over, and
//! puts its place into a queue. A consumer takes the place out, takes the block over, reads the text
//! where it lies, answers in a block of its own, and frees the request: another process's block. The
//! producer frees the reply. What goes through the queues is 8 bytes a message.
//!
//! The queues are rings of [`AtomicOffsetPtr`]s; a message is in a queue or it is not, by one
//! compare-exchange, so a process may die anywhere. What a dead one had allocated or taken over the
//! heap takes back. The one block that it was about to hand over may stay behind; the supervisor
//! counts what is left in the end.
#![allow(unsafe_code)] // reads and writes shared blocks

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use hshm::{
    Allocator, AtomicOffsetPtr, Backend, Error, MemContext, MemfdBackend, OffsetPtr, Owner, Region,
    RegionOptions, Root, Roots, ShareToken, ThreadLocalAllocator, shm_struct,
};

const CTX: MemContext = MemContext::DEFAULT;
const PLACES: usize = 256;
/// Requests are lines of a text like this one, of many lengths.
const TEXT: &str = include_str!("pipeline.rs");

shm_struct! {
    /// What travels: a few numbers, then the text.
    struct Message {
        number: u64,
        length: u64,
        answer: u64,
        spare: u64,
    }

    struct Queue {
        put: AtomicU64,
        get: AtomicU64,
        places: [AtomicOffsetPtr<Message>; PLACES],
    }

    struct Pipe {
        stop: AtomicU64,
        answered: AtomicU64,
        wrong: AtomicU64,
        requests: Queue,
        replies: Queue,
    }
}

impl Queue {
    fn new() -> Queue {
        let places = [const { AtomicOffsetPtr::null() }; PLACES];
        Queue { put: AtomicU64::new(0), get: AtomicU64::new(0), places }
    }

    /// The counters only say where to look first, so it does no harm who dies between two steps.
    fn put(&self, message: OffsetPtr<Message>) -> bool {
        let start = self.put.fetch_add(1, Relaxed) as usize;
        (0..PLACES).any(|step| {
            let place = &self.places[(start + step) % PLACES];
            place.compare_exchange(OffsetPtr::null(), message, Release, Relaxed).is_ok()
        })
    }

    fn get(&self) -> Option<OffsetPtr<Message>> {
        let start = self.get.load(Relaxed) as usize;
        let found = (0..PLACES).find_map(|step| {
            let place = &self.places[(start + step) % PLACES];
            let message = place.load(Relaxed);
            let taken = !message.is_null()
                && place.compare_exchange(message, OffsetPtr::null(), Acquire, Relaxed).is_ok();
            taken.then_some((message, step))
        });
        let (message, step) = found?;
        self.get.store((start + step + 1) as u64, Relaxed);
        Some(message)
    }
}

/// One party's view.
struct Party<'a> {
    alloc: &'a ThreadLocalAllocator,
    pipe: &'a Pipe,
}

impl Party<'_> {
    fn message(&self, at: OffsetPtr<Message>) -> *mut Message {
        self.alloc.resolve(at.cast()).cast()
    }

    /// A new message with room for `text`, which is written straight into it.
    fn write(&self, number: u64, answer: u64, text: &str) -> Result<OffsetPtr<Message>, Error> {
        let bytes = size_of::<Message>() + text.len();
        let layout = std::alloc::Layout::from_size_align(bytes, 8).expect("a small one");
        let at = self.alloc.allocate_offset(CTX, layout)?.cast::<Message>();
        let message = self.message(at);
        // SAFETY: just allocated, with room for the message and the text behind it.
        unsafe {
            message.write(Message { number, length: text.len() as u64, answer, spare: 0 });
            message.add(1).cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        }
        Ok(at)
    }

    /// Hands a message over; false where the queue is full, and it still is ours.
    fn send(&self, queue: &Queue, at: OffsetPtr<Message>) -> Result<bool, Error> {
        // SAFETY: our own block until it is in the queue.
        unsafe {
            self.alloc.transfer(at.cast(), Owner::Nobody)?;
            let sent = queue.put(at);
            if !sent {
                self.alloc.transfer(at.cast(), Owner::ThisProcess)?;
            }
            Ok(sent)
        }
    }

    /// Takes a message over.
    fn receive(&self, queue: &Queue) -> Result<Option<OffsetPtr<Message>>, Error> {
        let Some(at) = queue.get() else { return Ok(None) };
        // SAFETY: nobody's, and only we got it out of the queue.
        unsafe { self.alloc.transfer(at.cast(), Owner::ThisProcess)? };
        Ok(Some(at))
    }

    fn free(&self, at: OffsetPtr<Message>) -> Result<(), Error> {
        // SAFETY: we took it over, and are done with it.
        unsafe { self.alloc.free_offset(CTX, at.cast()) }
    }

    fn produce(&self) -> Result<(), Error> {
        let lines: Vec<&str> = TEXT.lines().collect();
        let mut waiting = None;
        let mut number = 0;
        while self.pipe.stop.load(Relaxed) == 0 {
            let at = match waiting.take() {
                Some(at) => at,
                None => {
                    number += 1;
                    self.write(number, 0, lines[number as usize % lines.len()])?
                }
            };
            if !self.send(&self.pipe.requests, at)? {
                waiting = Some(at);
            }
            while let Some(reply) = self.receive(&self.pipe.replies)? {
                // SAFETY: a whole message, ours now.
                let Message { number, answer, .. } = unsafe { self.message(reply).read() };
                let right = lines[number as usize % lines.len()].split_whitespace().count();
                self.pipe.answered.fetch_add(1, Relaxed);
                self.pipe.wrong.fetch_add((right as u64 != answer) as u64, Relaxed);
                self.free(reply)?;
            }
        }
        Ok(())
    }

    fn consume(&self) -> Result<(), Error> {
        while self.pipe.stop.load(Relaxed) == 0 {
            let Some(request) = self.receive(&self.pipe.requests)? else {
                std::thread::yield_now();
                continue;
            };
            let message = self.message(request);
            // SAFETY: a whole message with its text, ours now; nobody else writes to it.
            let (number, text) = unsafe {
                let (number, length) = ((*message).number, (*message).length as usize);
                let text = message.add(1).cast::<u8>();
                (number, std::str::from_utf8(std::slice::from_raw_parts(text, length)))
            };
            let words = text.map_or(0, |text| text.split_whitespace().count());
            let reply = self.write(number, words as u64, "")?;
            self.free(request)?;
            while !self.send(&self.pipe.replies, reply)? {
                if self.pipe.stop.load(Relaxed) != 0 {
                    return self.free(reply);
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

fn party(token: &str, role: &str) -> Result<(), Error> {
    let token: ShareToken = token.parse()?;
    let region = Region::attach_token(&token, &RegionOptions::new())?;
    let alloc = ThreadLocalAllocator::shm_attach(region, 0, 1)?;
    let roots = Roots::of(&alloc);
    let root: Root<Pipe> = roots.find("pipe")?;
    // SAFETY: the supervisor keeps it until all have ended; what changes in it is atomic.
    let party = Party { alloc: &alloc, pipe: unsafe { roots.get(root)? } };
    if role == "produce" { party.produce() } else { party.consume() }
}

fn start(token: &ShareToken, index: usize) -> Child {
    let role = if index == 0 { "produce" } else { "consume" };
    let me = std::env::current_exe().expect("this program has a path");
    Command::new(me)
        .args(["--party", &token.to_string(), role])
        .spawn()
        .expect("a process can be started")
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "--party") {
        return party(&args[2], &args[3]);
    }
    let number = |at: usize, usual| args.get(at).and_then(|arg| arg.parse().ok()).unwrap_or(usual);
    let (consumers, seconds) = (number(1, 3), number(2, 3) as f64);
    let killing = args.iter().any(|arg| arg == "kill");

    let region = MemfdBackend::create("pipeline", &RegionOptions::new().capacity(256 << 20))?;
    let token = region.token()?;
    let alloc = ThreadLocalAllocator::shm_init(region)?;
    let roots = Roots::of(&alloc);
    let root = roots.publish(
        "pipe",
        Pipe {
            stop: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            requests: Queue::new(),
            replies: Queue::new(),
        },
    )?;
    // SAFETY: it stays until the end, and what changes in it is atomic.
    let pipe = unsafe { roots.get(root)? };

    let mut parties: Vec<Child> = (0..=consumers).map(|index| start(&token, index)).collect();
    let begin = Instant::now();
    let mut kills = 0;
    while begin.elapsed().as_secs_f64() < seconds {
        std::thread::sleep(Duration::from_millis(20));
        if killing {
            // The producer, too, when it is its turn.
            let index = kills % parties.len();
            parties[index].kill().and_then(|()| parties[index].wait()).expect("our child");
            parties[index] = start(&token, index);
            kills += 1;
        }
    }
    let time = begin.elapsed().as_secs_f64();
    pipe.stop.store(1, Relaxed);
    for party in &mut parties {
        let status = party.wait().expect("our child");
        assert!(status.success(), "a party failed: {status}");
    }

    let answered = pipe.answered.load(Relaxed);
    println!("{answered} requests answered in {time:.1} s, {:.0} a second", answered as f64 / time);
    println!("bytes copied between processes: 0; wrong answers: {}", pipe.wrong.load(Relaxed));
    // What still is in the queues, and nobody will take.
    let party = Party { alloc: &alloc, pipe };
    let mut queued = 0;
    for queue in [&pipe.requests, &pipe.replies] {
        while let Some(message) = party.receive(queue)? {
            party.free(message)?;
            queued += 1;
        }
    }
    alloc.reap();
    let left = alloc.verify().expect("a sound heap").blocks_in_use;
    // The directory and the pipe are ours; what else is left was in flight when somebody died, or
    // is what a party that left of its own accord did not free.
    println!("{kills} kills; {queued} messages were queued; {} blocks left over", left - 2);
    assert!(pipe.wrong.load(Relaxed) == 0 && left - 2 <= kills + parties.len());
    Ok(())
}
