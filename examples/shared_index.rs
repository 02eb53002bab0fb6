//! Two processes, a queue and a map, all in shared memory that each has mapped at another address.
//!
//! ```sh
//! cargo run --release --example shared_index              # the words of this crate's own sources
//! cargo run --release --example shared_index -- FILE...
//! ```
//!
//! The first process reads files into [`ShmString`]s and pushes them into a [`ShmRing`]. The second pops
//! them, where they lie, and notes in a [`ShmHashMap`] for every word in which files it is, and how
//! often. When it is done, the first one looks words up in that map, and checks all of it against an
//! index that it made by itself.

#![allow(unsafe_code)] // says whose turn it is with what the other process made

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use hshm::{
    Allocator, Backend, Error, MIB, MemfdBackend, Region, RegionOptions, Result, Root, Roots,
    ShmHashMap, ShmHeap, ShmPtr, ShmRing, ShmString, ShmVec, ThreadLocalAllocator, shm_struct,
};

shm_struct! {
    /// A file on its way from one process to the other.
    struct Document { number: u32, text: ShmString }
    /// A file that has a word, and how often.
    #[derive(Clone, Copy)]
    struct Place { file: u32, times: u32 }
}

type Queue = ShmRing<Document>;
type Index = ShmHashMap<ShmString, ShmVec<Place>>;

/// The last document's number: there are no more.
const END: u32 = u32::MAX;
const PATIENCE: Duration = Duration::from_secs(30);

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// This process's way into the heap.
fn join(alloc: ThreadLocalAllocator) -> Result<(&'static ThreadLocalAllocator, ShmHeap)> {
    let alloc = Box::leak(Box::new(alloc));
    Ok((alloc, ShmHeap::of(alloc)?))
}

fn place<T>(heap: ShmHeap, root: Root<T>) -> ShmPtr<T> {
    ShmPtr::new(heap.id(), root.offset())
}

/// The second process.
fn index(token: &str) -> Result<()> {
    let region = Region::attach_token(&token.parse()?, &RegionOptions::new().relocate(true))?;
    let (alloc, heap) = join(ThreadLocalAllocator::shm_attach(region, 0, 1)?)?;
    let roots = Roots::of(alloc);
    // SAFETY: the first process published both, and keeps them. A ring is for everybody at once.
    let queue: &Queue = unsafe { heap.get(place(heap, roots.find("queue")?))? };
    // SAFETY: it leaves the index to this process until this one has ended.
    let index: &mut Index = unsafe { heap.get_mut(place(heap, roots.find("index")?))? };
    let mut queue = queue.join()?;
    loop {
        let Some(Document { number, text }) = queue.pop_wait(PATIENCE) else {
            return Err(Error::NotReady);
        };
        if number == END {
            return Ok(());
        }
        for word in words(&text) {
            let new = || Ok((ShmString::from_in(word, heap)?, ShmVec::new_in(heap)));
            let places = index.get_or_insert_with(word, new)?;
            match places.last_mut() {
                Some(last) if last.file == number => last.times += 1,
                _ => places.push(Place { file: number, times: 1 })?,
            }
        }
        // The text is dropped here, in the process that has not made it.
    }
}

/// The first process.
fn run(files: &[PathBuf]) -> Result<()> {
    let region = MemfdBackend::create("index", &RegionOptions::new().capacity(1024 * MIB))?;
    let token = region.token()?.to_string();
    let (alloc, heap) = join(ThreadLocalAllocator::shm_init(region)?)?;
    let roots = Roots::of(alloc);
    let queue = roots.publish("queue", Queue::with_capacity_in(64, heap)?)?;
    let shared = roots.publish("index", Index::new_in(heap))?;

    let start = Instant::now();
    let program = std::env::current_exe().map_err(|_| Error::NotFound)?;
    let mut other = Command::new(program)
        .args(["--index", &token])
        .spawn()
        .map_err(|error| Error::Os(error.raw_os_error().unwrap_or(0)))?;
    // SAFETY: published just now, and kept.
    let queue: &Queue = unsafe { heap.get(place(heap, queue))? };
    let mut queue = queue.join()?;
    let (mut bytes, mut expected) = (0, HashMap::<String, Vec<(u32, u32)>>::new());
    for (number, path) in (0..).zip(files) {
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        bytes += text.len();
        let document = Document { number, text: ShmString::from_in(&text, heap)? };
        queue.push_wait(document, PATIENCE).map_err(|_| Error::NotReady)?;
        for word in words(&text) {
            let places = expected.entry(word.to_owned()).or_default();
            match places.last_mut() {
                Some((file, times)) if *file == number => *times += 1,
                _ => places.push((number, 1)),
            }
        }
    }
    let end = Document { number: END, text: ShmString::new_in(heap) };
    queue.push_wait(end, PATIENCE).map_err(|_| Error::NotReady)?;
    let status = other.wait().map_err(|error| Error::Os(error.raw_os_error().unwrap_or(0)))?;
    assert!(status.success(), "the other process: {status}");

    // SAFETY: the other process has ended: it is this one's turn.
    let index: &Index = unsafe { heap.get(place(heap, shared))? };
    println!(
        "{} files, {bytes} bytes, {} words in {:.2?}; {} KiB of the heap in use",
        files.len(),
        index.len(),
        start.elapsed(),
        alloc.currently_allocated_size() >> 10
    );
    let mut often: Vec<_> = index.iter().map(|(word, places)| (places.len(), word)).collect();
    often.sort_by(|a, b| b.cmp(a));
    for (files, word) in often.iter().take(5) {
        println!("{files:>6} files have  {word}");
    }
    assert_eq!(index.len(), expected.len());
    for (word, places) in &expected {
        let found = index[word.as_str()].iter().map(|place| (place.file, place.times));
        assert!(found.eq(places.iter().copied()), "{word}");
    }
    println!("every word is where it should be");
    Ok(())
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [flag, token] if flag == "--index" => index(token),
        [] => {
            let mut files = Vec::new();
            for folder in ["src", "tests", "benches", "compare", "examples"] {
                sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
            }
            files.sort();
            run(&files)
        }
        files => run(&files.iter().map(PathBuf::from).collect::<Vec<_>>()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shared_index: {error}");
            ExitCode::FAILURE
        }
    }
}
