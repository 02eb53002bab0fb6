//! Counts words with ordinary collections, and lets another process read the result where it lies.
//!
//! ```text
//!  this process                                    the reader, a second process
//!  files -> rayon -> BTreeMap<String, u64>  <----- iterates the very map, read-only, in place
//!                      ^ ^ ^   words' bytes
//!                    tables of OffsetPtr    <----- reads them again over a mapping elsewhere
//! ```
//!
//! Nothing is copied or serialized: the reader gets the heap's token and one 16-byte pointer. It
//! measures what memory it took for itself, and fails if that is more than 16 MiB.
//!
//! `cargo run --release --example wordcount -- --help`
#![allow(unsafe_code)] // references into another process's heap

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hshm::{
    AllocatorId, AttachedHeap, Error, FullPtr, HeapToken, HshmAlloc, KIB, MIB, OffsetPtr, Region,
    RegionOptions, ShmPtr, ShmSafe,
};
use rayon::prelude::*;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

const HELP: &str = "\
Counts the words of text files on a shared-memory heap, then starts a second process that reads the
counts from that heap: read-only, in place, without a copy.

usage: wordcount [PATH]...

  PATH        files, and directories with all that is in them; links inside them are not followed.
              Default: this crate's own sources, and those in cargo's registry.
  -h, --help  this text

A word is a run of letters, digits and underscores. Files that are not valid UTF-8 are counted and
skipped. Exits with 0 when both processes come to the same totals and the reader needed no more than
16 MiB of memory of its own; with 2 for bad arguments; with 1 for anything else.
";

/// What the reader is started with, before the token and the pointer.
const READER: &str = "--reader";
/// The reader's exit code where the heap's address is taken in its address space.
const RELOCATED: u8 = 3;
/// Readers to start, should that happen: addresses are random, a new process has others.
const READERS: usize = 3;
/// Words to print.
const TOP: usize = 20;
/// Most memory that the reader may have for itself.
const OWN_LIMIT: u64 = 16 * MIB as u64;
/// Longer files are skipped: a file is read as a whole, to know whether it is text.
const FILE_LIMIT: u64 = 1 << 30;

/// The map that is shared, an ordinary one.
type Words = BTreeMap<String, u64>;

/// What went wrong, in words for the user, and the exit code.
struct Failure(String, u8);

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure(text, 1)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever reads our output has enough of it: no reason for a message.
        let text = match error.kind() {
            io::ErrorKind::BrokenPipe => String::new(),
            _ => format!("cannot write the result: {error}"),
        };
        Failure(text, 1)
    }
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match args.first() {
        Some(first) if first == READER => read(&args[1..]),
        _ => parse(args).and_then(|paths| paths.map_or(Ok(()), |paths| count(&paths))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(text, code)) => {
            if !text.is_empty() {
                let _ = writeln!(io::stderr(), "wordcount: {text}");
            }
            ExitCode::from(code)
        }
    }
}

/// The paths that were given; `None` where help was asked for, and given.
fn parse(args: Vec<OsString>) -> Result<Option<Vec<PathBuf>>, Failure> {
    let mut paths = Vec::new();
    let mut options = true;
    for arg in args {
        if options && (arg == "-h" || arg == "--help") {
            io::stdout().write_all(HELP.as_bytes())?;
            return Ok(None);
        }
        if options && arg == "--" {
            options = false;
        } else if options && arg.as_encoded_bytes().starts_with(b"-") {
            let text = format!("unknown option `{}`; see --help", arg.display());
            return Err(Failure(text, 2));
        } else {
            paths.push(PathBuf::from(arg));
        }
    }
    Ok(Some(if paths.is_empty() { default_paths() } else { paths }))
}

/// This crate's sources, and those of all packages that cargo has unpacked, as far as there are any.
fn default_paths() -> Vec<PathBuf> {
    let own = ["src", "examples", "tests", "benches"];
    let own = own.map(|dir| Path::new(env!("CARGO_MANIFEST_DIR")).join(dir));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let registry = cargo.map(|cargo| cargo.join("registry").join("src"));
    own.into_iter().chain(registry).filter(|path| path.is_dir()).collect()
}

// ------------------------------------------------------------------------------ the first process

/// Every regular file under the paths. A path that cannot be used is an error; what cannot be read
/// further down is told, and left out.
fn find_files(paths: &[PathBuf], progress: &Progress) -> Result<Vec<PathBuf>, Failure> {
    let mut bad = String::new();
    let mut todo = Vec::new();
    for path in paths {
        let problem = match fs::metadata(path) {
            Ok(found) if found.is_file() => File::open(path).err().map(|e| e.to_string()),
            Ok(found) if found.is_dir() => fs::read_dir(path).err().map(|e| e.to_string()),
            Ok(_) => Some("neither a file nor a directory".into()),
            Err(error) => Some(error.to_string()),
        };
        match problem {
            Some(why) => _ = write!(bad, "\n  {}: {why}", path.display()),
            None => todo.push(path.clone()),
        }
    }
    if !bad.is_empty() {
        return Err(Failure(format!("cannot read what was asked for:{bad}"), 2));
    }
    let mut files = Vec::new();
    while let Some(path) = todo.pop() {
        // A path of the user may be a link to a directory; those inside are not put on the list.
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                progress.say(&format!("left out {}: {error}", path.display()));
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
                Ok((kind, path)) if kind.is_dir() || kind.is_file() => todo.push(path),
                Ok(_) => {}
                Err(error) => {
                    progress.say(&format!("left out part of {}: {error}", path.display()))
                }
            }
        }
    }
    // The same order every time, whatever the file system's.
    files.sort_unstable();
    files.dedup();
    Ok(files)
}

/// A file's bytes.
fn load(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let expected = file.metadata().map_or(0, |found| found.len());
    if expected <= FILE_LIMIT {
        // A failure here fails again below, if it matters.
        let _ = bytes.try_reserve_exact(expected as usize + 1);
        let read = (&file).take(FILE_LIMIT + 1).read_to_end(&mut bytes);
        read.map_err(|error| error.to_string())?;
    }
    if expected.max(bytes.len() as u64) > FILE_LIMIT {
        return Err(format!("longer than {} MiB", FILE_LIMIT / MIB as u64));
    }
    Ok(bytes)
}

/// Counts the words of a text.
fn add_words(words: &mut Words, text: &str) {
    for word in text.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
        if word.is_empty() {
            continue;
        }
        match words.get_mut(word) {
            Some(count) => *count += 1,
            None => _ = words.insert(word.to_owned(), 1),
        }
    }
}

/// Both counts in one map.
fn merge(mut into: Words, mut from: Words) -> Words {
    if into.len() < from.len() {
        std::mem::swap(&mut into, &mut from);
    }
    for (word, count) in from {
        *into.entry(word).or_default() += count;
    }
    into
}

/// Counts, hands over, and compares.
fn count(paths: &[PathBuf]) -> Result<(), Failure> {
    let mut out = io::stdout();
    let threads = rayon::ThreadPoolBuilder::new().build_global();
    threads.map_err(|error| format!("cannot start threads: {error}"))?;
    let progress = Progress::new();
    let started = Instant::now();
    let words = std::thread::scope(|scope| {
        // No thread for the line: no line.
        let line = std::thread::Builder::new().spawn_scoped(scope, || progress.draw());
        let counted = find_files(paths, &progress).map(|files| {
            files
                .par_iter()
                .fold(Words::new, |mut words, path| {
                    match load(path) {
                        Ok(bytes) => match std::str::from_utf8(&bytes) {
                            Ok(text) => {
                                add_words(&mut words, text);
                                progress.files.fetch_add(1, Relaxed);
                                progress.bytes.fetch_add(bytes.len() as u64, Relaxed);
                            }
                            Err(_) => _ = progress.not_text.fetch_add(1, Relaxed),
                        },
                        Err(why) => {
                            progress.unread.fetch_add(1, Relaxed);
                            progress.say(&format!("left out {}: {why}", path.display()));
                        }
                    }
                    words
                })
                .reduce(Words::new, merge)
        });
        progress.done.store(true, Relaxed);
        if let Ok(line) = line {
            line.thread().unpark();
        }
        counted
    })?;
    let seconds = started.elapsed().as_secs_f64();

    let words = Box::new(words);
    let total: u64 = words.values().sum();
    let load = |counter: &AtomicU64| counter.load(Relaxed);
    writeln!(
        out,
        "{} text files, {:.1} MB, {total} words, {} different, in {seconds:.2} s; skipped {} that \
         are not UTF-8, {} that cannot be read",
        load(&progress.files),
        load(&progress.bytes) as f64 / 1e6,
        words.len(),
        load(&progress.not_text),
        load(&progress.unread),
    )?;

    let tables = Tables::of(&words)?;
    let handover = Handover::of(&words, &tables, total)?;
    // After everything is made: the heap may have grown by a region.
    let token = A.share().map_err(|error| match error {
        Error::NotShared => "the heap is private memory, which no other process can attach (is \
                             HSHM_BACKEND=private set, or shared memory not to be had?)"
            .to_owned(),
        error => format!("cannot share the heap: {error}"),
    })?;
    writeln!(out, "\ncounted by process {}", std::process::id())?;
    describe(&mut out, A.regions(), A.stats().in_use())?;
    writeln!(out)?;
    let seen = run_reader(&token, handover.shm)?;
    let expected = (words.len() as u64, total);
    for (how, seen) in [("in place", seen.in_place), ("elsewhere", seen.elsewhere)] {
        if seen != Some(expected) {
            let text = format!("the reader's totals {how} are {seen:?}, not {expected:?}");
            return Err(text.into());
        }
    }
    writeln!(out, "\nboth processes agree: {total} words, {} different", words.len())?;
    Ok(())
}

/// A heap's regions and the bytes in use.
fn describe(
    out: &mut impl Write,
    regions: impl Iterator<Item = Region>,
    in_use: usize,
) -> io::Result<()> {
    for region in regions {
        let (id, base, len) = (region.id(), region.base(), region.len() / MIB);
        writeln!(out, "  region {id} at {base:p}, {len} MiB of addresses")?;
    }
    writeln!(out, "  {:.1} MiB of the heap in use", in_use as f64 / MIB as f64)
}

/// What the reader counted: words, and of how many kinds.
#[derive(Default)]
struct Seen {
    in_place: Option<(u64, u64)>,
    elsewhere: Option<(u64, u64)>,
}

/// Starts the second process, passes its output on, and returns its totals.
fn run_reader(token: &HeapToken, handover: ShmPtr<Handover>) -> Result<Seen, Failure> {
    let program = std::env::current_exe().map_err(|error| {
        format!("cannot tell which program this is, to start it again: {error}")
    })?;
    for _ in 0..READERS {
        let mut seen = Seen::default();
        let mut reader = Command::new(&program)
            .arg(READER)
            .arg(token.to_string())
            .arg(format!("{:x}:{:x}", handover.id().to_bits(), handover.offset().offset()))
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start {} again: {error}", program.display()))?;
        let lines = reader.stdout.take().map(|pipe| BufReader::new(pipe).lines());
        let mut passed = Ok(());
        for line in lines.into_iter().flatten() {
            let Ok(line) = line else { break };
            match line.strip_prefix("totals ").map(parse_totals) {
                Some(Some(("in-place", totals))) => seen.in_place = Some(totals),
                Some(Some(("elsewhere", totals))) => seen.elsewhere = Some(totals),
                // Even if nobody listens, the reader shall end in peace.
                _ if passed.is_ok() => passed = writeln!(io::stdout(), "{line}"),
                _ => {}
            }
        }
        let status = reader.wait().map_err(|error| format!("lost the reader: {error}"))?;
        passed?;
        match status.code() {
            Some(0) => return Ok(seen),
            Some(code) if code == i32::from(RELOCATED) => {}
            _ => return Err(format!("the reader failed: {status}").into()),
        }
    }
    Err("no reader had the heap's address free; plain references cannot be read there"
        .to_owned()
        .into())
}

/// `<how> <kinds> <words>`.
fn parse_totals(text: &str) -> Option<(&str, (u64, u64))> {
    let mut parts = text.split(' ');
    let how = parts.next()?;
    Some((how, (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?)))
}

// ---------------------------------------------------------------------------- what is handed over

/// One word of a table: where its bytes are in the table's region, how many, and how often it
/// occurs. It holds at any address.
#[repr(C)]
struct Row {
    word: OffsetPtr<u8>,
    len: u64,
    count: u64,
}
// SAFETY: an offset and numbers, in C's layout; no destructor.
unsafe impl ShmSafe for Row {}

/// The words whose bytes lie in one region, in order. A heap has one region, or a few.
#[repr(C)]
struct Table {
    region: AllocatorId,
    rows: ShmPtr<Row>,
    len: u64,
}
// SAFETY: an id, a shared pointer and a number, in C's layout; no destructor.
unsafe impl ShmSafe for Table {}

/// What the one pointer that the reader gets points at.
#[repr(C)]
struct Handover {
    magic: u64,
    /// Where this very structure is: random bytes say something else.
    shm: ShmPtr<Handover>,
    map: ShmPtr<Words>,
    tables: ShmPtr<Table>,
    tables_len: u64,
    words: u64,
    total: u64,
}
// SAFETY: shared pointers and numbers, in C's layout; no destructor.
unsafe impl ShmSafe for Handover {}

const MAGIC: u64 = u64::from_le_bytes(*b"wordcnt1");

/// The shared pointer of something on the heap.
fn shared<T>(value: *const T) -> Result<ShmPtr<T>, String> {
    let full = FullPtr::from_ptr(value.cast_mut());
    full.map(FullPtr::shm).map_err(|error| format!("a value is not on the shared heap: {error}"))
}

/// The tables, built next to the map: their rows point at the bytes of the map's own words.
struct Tables {
    rows: BTreeMap<u64, Vec<Row>>,
    tables: Vec<Table>,
}

impl Tables {
    fn of(words: &Words) -> Result<Tables, String> {
        let mut rows = BTreeMap::<u64, Vec<Row>>::new();
        for (word, &count) in words {
            let at = shared(word.as_ptr())?;
            let row = Row { word: at.offset(), len: word.len() as u64, count };
            rows.entry(at.id().to_bits()).or_default().push(row);
        }
        let mut tables = Vec::with_capacity(rows.len());
        for (&region, rows) in &rows {
            let region = AllocatorId::from_bits(region);
            tables.push(Table { region, rows: shared(rows.as_ptr())?, len: rows.len() as u64 });
        }
        Ok(Tables { rows, tables })
    }
}

impl Handover {
    fn of(words: &Words, tables: &Tables, total: u64) -> Result<Box<Handover>, String> {
        debug_assert_eq!(tables.rows.values().map(Vec::len).sum::<usize>(), words.len());
        let tables_len = tables.tables.len() as u64;
        // An empty vector has no place.
        let first = if tables_len == 0 { ShmPtr::NULL } else { shared(tables.tables.as_ptr())? };
        let mut handover = Box::new(Handover {
            magic: MAGIC,
            shm: ShmPtr::NULL,
            map: shared(words)?,
            tables: first,
            tables_len,
            words: words.len() as u64,
            total,
        });
        handover.shm = shared(&raw const *handover)?;
        Ok(handover)
    }
}

// ----------------------------------------------------------------------------- the second process

/// Reads the map in place, then the tables over a mapping elsewhere.
fn read(args: &[OsString]) -> Result<(), Failure> {
    let (token, pointer) = parse_handover(args).ok_or_else(|| {
        let text = format!("{READER} is for wordcount's own second process; see --help");
        Failure(text, 2)
    })?;
    let mut out = io::stdout().lock();
    let options = RegionOptions::new().read_only(true);

    let heap = AttachedHeap::attach(&token, &options.same_address(true)).map_err(|error| {
        let text = format!("cannot attach the heap: {error}");
        match error {
            Error::Relocated => {
                let why = "; something else is at its address in this process, and the map's plain \
                           references hold nowhere else";
                Failure(text + why, RELOCATED)
            }
            _ => Failure(text, 1),
        }
    })?;
    let bad = |error: Error| format!("cannot read the other process's heap: {error}");
    let handover = check_handover(&heap, pointer)?;
    // SAFETY: the handover is the one that this program made, and its process waits for us with
    // the map untouched; a map of strings and numbers has no reference outside its heap.
    let words = unsafe { heap.get(handover.map) }.map_err(bad)?;
    let mut top = Top::new();
    let mut total = 0;
    for (word, &count) in words {
        total += count;
        top.offer(word, count);
    }
    writeln!(out, "read by process {}, in place", std::process::id())?;
    describe(&mut out, heap.regions().iter().cloned(), heap.bytes_in_use().map_err(bad)?)?;
    for (word, count) in top.sorted() {
        writeln!(out, "{count:>12}  {word}")?;
    }
    writeln!(out, "{total:>12}  words, {} different", words.len())?;
    writeln!(out, "totals in-place {} {total}", words.len())?;
    let own = own_memory(&mut out, &heap)?;
    drop(heap);

    let heap = AttachedHeap::attach(&token, &options.relocate(true)).map_err(bad)?;
    let handover = check_handover(&heap, pointer)?;
    let (mut kinds, mut total) = (0, 0u64);
    // SAFETY: the handover is the one that this program made; its process waits for us with the
    // tables, and the words that they point at, untouched.
    unsafe {
        let tables = heap.get_shm_slice(handover.tables, handover.tables_len as usize);
        let none = handover.tables_len == 0;
        for table in if none { &[][..] } else { tables.map_err(bad)? } {
            let rows = heap.get_shm_slice(table.rows, table.len as usize).map_err(bad)?;
            let mut last = &[][..];
            for row in rows {
                let word = ShmPtr::new(table.region, row.word);
                let word = heap.get_shm_slice(word, row.len as usize).map_err(bad)?;
                if last >= word {
                    return Err("the words of a table are out of order".to_owned().into());
                }
                last = word;
                kinds += 1;
                total += row.count;
            }
        }
    }
    writeln!(out, "read again, over tables of offsets, with the heap elsewhere")?;
    describe(&mut out, heap.regions().iter().cloned(), heap.bytes_in_use().map_err(bad)?)?;
    writeln!(out, "{total:>12}  words, {kinds} different")?;
    writeln!(out, "totals elsewhere {kinds} {total}")?;
    let own = own.max(own_memory(&mut out, &heap)?);
    if own > OWN_LIMIT {
        let text = format!("the reader took {} KiB for itself", own / KIB as u64);
        return Err(text.into());
    }
    Ok(())
}

/// `<token> <id>:<offset>`.
fn parse_handover(args: &[OsString]) -> Option<(HeapToken, ShmPtr<Handover>)> {
    let [token, pointer] = args else { return None };
    let token = token.to_str()?.parse().ok()?;
    let (id, offset) = pointer.to_str()?.split_once(':')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((token, ShmPtr::new(AllocatorId::from_bits(hex(id)?), OffsetPtr::new(hex(offset)?))))
}

/// The handover, if that is what the pointer points at.
fn check_handover(heap: &AttachedHeap, pointer: ShmPtr<Handover>) -> Result<&Handover, Failure> {
    // SAFETY: the place is checked by the call, any bytes are a valid handover, and the process
    // that has the heap waits for us.
    let handover = unsafe { heap.get_shm(pointer) };
    match handover {
        Ok(found) if found.magic == MAGIC && found.shm == pointer => Ok(found),
        Ok(_) => {
            Err("the pointer leads to something else than wordcount's results".to_owned().into())
        }
        Err(error) => Err(format!("the pointer leads nowhere: {error}").into()),
    }
}

/// The most frequent words: references to where they lie, in a heap whose top is the least.
struct Top<'a>(BinaryHeap<Reverse<(u64, Reverse<&'a str>)>>);

impl<'a> Top<'a> {
    fn new() -> Top<'a> {
        Top(BinaryHeap::with_capacity(TOP + 1))
    }
    fn offer(&mut self, word: &'a str, count: u64) {
        if self.0.len() == TOP && self.0.peek().is_some_and(|least| count < least.0.0) {
            return;
        }
        self.0.push(Reverse((count, Reverse(word))));
        if self.0.len() > TOP {
            self.0.pop();
        }
    }
    fn sorted(self) -> impl Iterator<Item = (&'a str, u64)> {
        self.0.into_sorted_vec().into_iter().map(|Reverse((count, Reverse(word)))| (word, count))
    }
}

/// Prints, and returns, the bytes of memory that this process has for itself, while `heap` is
/// attached.
///
/// Counted is every page that no other process has mapped (the kernel's `Private_Clean` and
/// `Private_Dirty`), in every mapping but those of the attached heap. That includes this process's
/// own heap, which is shared memory as well, though nobody shares it. The attached heap's pages are
/// its owner's, whoever looks at them: they are told apart, and are there once.
fn own_memory(out: &mut impl Write, heap: &AttachedHeap) -> Result<u64, Failure> {
    let bad = |why: String| format!("cannot tell how much memory this process has: {why}");
    let maps = fs::read_to_string("/proc/self/smaps").map_err(|error| bad(error.to_string()))?;
    let attached: Vec<_> = heap
        .regions()
        .iter()
        .map(|region| region.base().addr()..region.base().addr() + region.len())
        .collect();
    let (mut own, mut shared, mut here) = (0, 0, false);
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(name) = fields.next() else { continue };
        if let Some((start, _)) = name.split_once('-') {
            let start = usize::from_str_radix(start, 16).map_err(|_| bad(line.to_owned()))?;
            here = attached.iter().any(|range| range.contains(&start));
            continue;
        }
        let mut kib = || fields.next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        match name {
            "Private_Clean:" | "Private_Dirty:" | "Private_Hugetlb:" if !here => own += kib(),
            "Rss:" if here => shared += kib(),
            _ => {}
        }
    }
    writeln!(
        out,
        "  memory of the reader's own: {own} KiB; of the attached heap it has looked at {shared} KiB"
    )?;
    Ok(own * KIB as u64)
}

// ---------------------------------------------------------------------------------------- progress

/// How far the counting is.
struct Progress {
    terminal: bool,
    done: AtomicBool,
    files: AtomicU64,
    bytes: AtomicU64,
    not_text: AtomicU64,
    unread: AtomicU64,
}

impl Progress {
    fn new() -> Progress {
        let zero = || AtomicU64::new(0);
        let (files, bytes, not_text, unread) = (zero(), zero(), zero(), zero());
        let terminal = io::stderr().is_terminal();
        Progress { terminal, done: AtomicBool::new(false), files, bytes, not_text, unread }
    }
    /// Keeps a line on the terminal up to date until the counting is done.
    fn draw(&self) {
        while self.terminal && !self.done.load(Relaxed) {
            let (files, bytes) = (self.files.load(Relaxed), self.bytes.load(Relaxed));
            let in_use = A.stats().in_use() as f64 / MIB as f64;
            let megabytes = bytes as f64 / 1e6;
            let _ = write!(
                io::stderr(),
                "\r\x1b[K{files} files, {megabytes:.0} MB; {in_use:.0} MiB of heap in use"
            );
            std::thread::park_timeout(Duration::from_millis(100));
        }
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
    /// A line above the progress.
    fn say(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(io::stderr(), "{clear}wordcount: {text}");
    }
}
