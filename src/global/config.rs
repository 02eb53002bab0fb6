//! What a program may choose about its heap, in const code and by environment.
//!
//! | builder | environment | meaning | default |
//! |---|---|---|---|
//! | [`capacity`](HshmAllocBuilder::capacity) | `HSHM_CAPACITY=64G` | bytes of address space per region | 64 GiB |
//! | [`backend`](HshmAllocBuilder::backend) | `HSHM_BACKEND=memfd` or `private` | what is behind the heap | memfd |
//! | [`region`](HshmAllocBuilder::region) | `HSHM_REGION=text` | join the heap of this name, with all others that do | own heap |
//! | [`fork`](HshmAllocBuilder::fork) | `HSHM_FORK=copy` or `refuse` | what a forked child gets | copy; of a joined heap, refuse |
//! | [`name`](HshmAllocBuilder::name) | `HSHM_NAME=text` | the label of the segment in `/proc/<pid>/fd` | `hshm` |
//! | [`retain`](HshmAllocBuilder::retain) | `HSHM_RETAIN=32M` | free memory kept for reuse before it goes back to the system | 32 MiB |
//! | [`huge_pages`](HshmAllocBuilder::huge_pages) | `HSHM_HUGE_PAGES=never`, `large`, `always` | what is to have huge pages | large heaps |
//! | [`thread_blocks`](HshmAllocBuilder::thread_blocks) | `HSHM_THREAD_BLOCKS=n` | threads with a heap of their own; more threads share one | 16383 |
//! | [`stats_at_exit`](HshmAllocBuilder::stats_at_exit) | `HSHM_STATS=1` | print a line when the program ends | no |
//!
//! The environment wins. What cannot be understood is reported on stderr and otherwise ignored; but
//! a program ends that cannot join the heap it was told to.

use core::ffi::CStr;

use crate::base::units::{GIB, KIB, MIB};
use crate::heap::HugePages;
use crate::os;

/// What is behind the heap of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeapBackend {
    /// An anonymous shared-memory file, which other processes can attach.
    Memfd,
    /// Memory private to the process. Sharing it is [`Error::NotShared`](crate::Error::NotShared).
    Private,
}

/// What becomes of the heap in a forked child, where it is shared memory. Private memory is copied by
/// the kernel in any case.
///
/// `posix_spawn`, `vfork` and most uses of `std::process::Command` fork no such child, and need
/// neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForkPolicy {
    /// The child gets a copy of its own: it takes time and memory in proportion to the heap in use,
    /// and a child for which there is neither memory nor a descriptor ends at once.
    ///
    /// The copy of a heap that was [joined](HshmAllocBuilder::region) is joined with nobody.
    Copy,
    /// The child may use what it inherited in order to `exec` or to end, while its parent goes on
    /// changing it. What the child writes does not reach the parent, its frees do nothing, and its
    /// first allocation ends it, with a message and status 127. Forking then costs nothing.
    Refuse,
}

/// The settings of a heap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) capacity: usize,
    pub(crate) backend: HeapBackend,
    pub(crate) name: Label<LABEL>,
    /// The heap to join; empty for none.
    pub(crate) region: Label<REGION_NAME>,
    /// `None` leaves it to what kind of heap it is.
    pub(crate) fork: Option<ForkPolicy>,
    pub(crate) retain: usize,
    pub(crate) huge_pages: HugePages,
    pub(crate) thread_blocks: u32,
    pub(crate) stats_at_exit: bool,
}

impl Config {
    pub(crate) const DEFAULT: Config = Config {
        capacity: 64 * GIB,
        backend: HeapBackend::Memfd,
        name: Label::new("hshm"),
        region: Label::new(""),
        fork: None,
        retain: 32 * MIB,
        huge_pages: HugePages::LargeHeaps,
        thread_blocks: 16 * 1024 - 1,
        stats_at_exit: false,
    };

    /// These settings with the environment's over them.
    pub(crate) fn with_environment(mut self) -> Config {
        if let Some(bytes) = number(c"HSHM_CAPACITY") {
            self.capacity = bytes;
        }
        if let Some(bytes) = number(c"HSHM_RETAIN") {
            self.retain = bytes;
        }
        if let Some(count) = number(c"HSHM_THREAD_BLOCKS") {
            self.thread_blocks = count.min(u32::MAX as usize) as u32;
        }
        if let Some(on) = number(c"HSHM_STATS") {
            self.stats_at_exit = on != 0;
        }
        let mut buffer = [0; 32];
        match os::getenv(c"HSHM_HUGE_PAGES", &mut buffer) {
            None => {}
            Some(b"never" | b"0") => self.huge_pages = HugePages::Never,
            Some(b"large") => self.huge_pages = HugePages::LargeHeaps,
            Some(b"always" | b"1") => self.huge_pages = HugePages::Always,
            Some(_) => complain(c"HSHM_HUGE_PAGES", "never, large or always"),
        }
        match os::getenv(c"HSHM_BACKEND", &mut buffer) {
            None => {}
            Some(b"memfd") => self.backend = HeapBackend::Memfd,
            Some(b"private") => self.backend = HeapBackend::Private,
            Some(_) => complain(c"HSHM_BACKEND", "memfd or private"),
        }
        let mut buffer = [0; LABEL + 1];
        match os::getenv(c"HSHM_NAME", &mut buffer).map(core::str::from_utf8) {
            None => {}
            Some(Ok(name)) if !name.is_empty() && !name.contains('/') && name.len() <= LABEL => {
                self.name = Label::new(name);
            }
            Some(_) => complain(c"HSHM_NAME", "1 to 32 bytes of text without a slash"),
        }
        let mut buffer = [0; 32];
        match os::getenv(c"HSHM_FORK", &mut buffer) {
            None => {}
            Some(b"copy") => self.fork = Some(ForkPolicy::Copy),
            Some(b"refuse") => self.fork = Some(ForkPolicy::Refuse),
            Some(_) => complain(c"HSHM_FORK", "copy or refuse"),
        }
        let mut buffer = [0; REGION_NAME + 1];
        if let Some(name) = os::getenv(c"HSHM_REGION", &mut buffer) {
            self.region = match core::str::from_utf8(name) {
                Ok(name) if !name.is_empty() && name.len() <= REGION_NAME => Label::new(name),
                // No name at all, which is found out where it is used: going on alone would be
                // something else than what was asked for.
                _ => Label::new("/"),
            };
        }
        self.thread_blocks = self.thread_blocks.clamp(1, 16 * 1024 - 1);
        self.capacity = self.capacity.clamp(MINIMUM_CAPACITY, MAXIMUM_CAPACITY);
        self
    }
}

/// Most bytes of a segment's label.
const LABEL: usize = 32;
/// Most bytes of the name of a heap to join.
const REGION_NAME: usize = 100;

/// A short text, held in place: settings must not point anywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Label<N> {
    /// As much of `text` as fits.
    const fn new(text: &str) -> Self {
        let mut bytes = [0; N];
        let mut len = 0;
        while len < N && len < text.len() {
            bytes[len] = text.as_bytes()[len];
            len += 1;
        }
        Label { bytes, len }
    }
    pub(crate) fn as_str(&self) -> &str {
        let text = self.bytes.get(..self.len).unwrap_or(&[]);
        // Cut in the middle of a character: what comes before it.
        match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(cut) => core::str::from_utf8(&text[..cut.valid_up_to()]).unwrap_or("hshm"),
        }
    }
}

/// The smallest region that a heap is tried with.
pub(crate) const MINIMUM_CAPACITY: usize = 2 * MIB;
/// The largest: an eighth of the address space.
const MAXIMUM_CAPACITY: usize = 16 * KIB * GIB;

fn number(name: &CStr) -> Option<usize> {
    let mut buffer = [0; 32];
    let text = os::getenv(name, &mut buffer)?;
    let parsed = parse_size(text);
    if parsed.is_none() {
        complain(name, "a number, with K, M, G or T behind it");
    }
    parsed
}

/// `123`, `64K`, `1M`, `2G`, `1T`: powers of two, in either case.
fn parse_size(text: &[u8]) -> Option<usize> {
    let (digits, unit) = match text.split_last()? {
        (b'k' | b'K', rest) => (rest, KIB),
        (b'm' | b'M', rest) => (rest, MIB),
        (b'g' | b'G', rest) => (rest, GIB),
        (b't' | b'T', rest) => (rest, KIB * GIB),
        _ => (text, 1),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0usize;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value = value.checked_mul(10)?.checked_add(digit as usize)?;
    }
    value.checked_mul(unit)
}

fn complain(name: &CStr, wanted: &str) {
    os::write_stderr(b"hshm: ignoring ");
    os::write_stderr(name.to_bytes());
    os::write_stderr(b": it must be ");
    os::write_stderr(wanted.as_bytes());
    os::write_stderr(b"\n");
}

/// Builds a [`HshmAlloc`](crate::HshmAlloc) in const code.
///
/// ```
/// use hshm::{HeapBackend, HshmAlloc, Unit};
///
/// #[global_allocator]
/// static A: HshmAlloc =
///     HshmAlloc::builder().capacity(Unit::gigabytes(16)).retain(Unit::megabytes(8)).build();
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct HshmAllocBuilder {
    pub(crate) config: Config,
}

impl HshmAllocBuilder {
    /// Address space of a region, in bytes. The heap adds regions when one is full, so this is no
    /// limit; it takes no memory either. It shrinks to what `RLIMIT_AS` and `RLIMIT_FSIZE` allow.
    pub const fn capacity(mut self, bytes: usize) -> Self {
        self.config.capacity = bytes;
        self
    }
    /// What is behind the heap.
    pub const fn backend(mut self, backend: HeapBackend) -> Self {
        self.config.backend = backend;
        self
    }
    /// The segment's label, as `/proc/<pid>/fd` and `/proc/<pid>/maps` show it: the first 32 bytes
    /// of `name`.
    pub const fn name(mut self, name: &str) -> Self {
        self.config.name = Label::new(name);
        self
    }
    /// Joins the heap of this name: a POSIX shared-memory object, which the first program that asks
    /// for it makes, and which goes with the last one. All programs that join allocate from the same
    /// region, at the same addresses, and may free each other's blocks. `name` is as
    /// [`PosixShmMmap`](crate::PosixShmMmap) takes names, of at most 100 bytes.
    ///
    /// - What a program allocated goes with it, however it ends, unless it was handed over
    ///   ([`HshmAlloc::transfer`](crate::HshmAlloc::transfer)). The others take it back when they
    ///   need memory, or by [`HshmAlloc::reap`](crate::HshmAlloc::reap).
    /// - The heap is the one region, and does not grow by others: when it is full, allocations fail.
    ///   [`capacity`](Self::capacity) counts for whoever makes it. A program can also join a
    ///   [`SharedHeap`](crate::SharedHeap), whose name then stays.
    /// - A program that cannot join ends before it has begun, with a message and status 127:
    ///   because the heap's addresses are taken, the object is another user's or open to others, was
    ///   made by another version, is full of processes, or there is no memory.
    /// - Forked children: [`ForkPolicy::Refuse`] unless [`fork`](Self::fork) says otherwise. Programs
    ///   that are started join like any other.
    ///
    /// ```
    /// use hshm::HshmAlloc;
    ///
    /// #[global_allocator]
    /// static A: HshmAlloc = HshmAlloc::builder().region("hshm-doc-orders").build();
    /// # fn main() {}
    /// ```
    pub const fn region(mut self, name: &str) -> Self {
        // A name that is cut would be another one.
        self.config.region = Label::new(if name.len() > REGION_NAME { "/" } else { name });
        self
    }
    /// What a forked child gets. Default: a copy of a heap of its parent's own, nothing of a
    /// [joined](Self::region) one.
    pub const fn fork(mut self, policy: ForkPolicy) -> Self {
        self.config.fork = Some(policy);
        self
    }
    /// Bytes of free memory that stay resident for reuse.
    pub const fn retain(mut self, bytes: usize) -> Self {
        self.config.retain = bytes;
        self
    }
    /// What is to have huge pages.
    pub const fn huge_pages(mut self, what: HugePages) -> Self {
        self.config.huge_pages = what;
        self
    }
    /// Threads that get a heap of their own at a time; more threads share one more.
    pub const fn thread_blocks(mut self, count: u32) -> Self {
        self.config.thread_blocks = count;
        self
    }
    /// Whether a line of statistics goes to stderr when the program ends.
    pub const fn stats_at_exit(mut self, on: bool) -> Self {
        self.config.stats_at_exit = on;
        self
    }
    /// The allocator.
    pub const fn build(self) -> super::HshmAlloc {
        super::HshmAlloc { config: self.config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_cut_at_characters() {
        assert_eq!(Label::<32>::new("hshm").as_str(), "hshm");
        let long = "a".repeat(31) + "\u{e4}";
        assert_eq!(Label::<32>::new(&long).as_str(), "a".repeat(31));
        assert_eq!(Label::<32>::new("").as_str(), "");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size(b"0"), Some(0));
        assert_eq!(parse_size(b"64g"), Some(64 * GIB));
        assert_eq!(parse_size(b"3M"), Some(3 * MIB));
        assert_eq!(parse_size(b"17179869184G"), None);
        assert_eq!(parse_size(b"99999999999999999999"), None);
        for bad in [&b""[..], b"K", b"-1", b"1.5G", b"1 G", b"0x10"] {
            assert_eq!(parse_size(bad), None);
        }
    }
}
