//! Programs that may not have much: they run out with a null pointer, never by a signal, and go
//! on when they free something.
#![allow(unsafe_code)] // setrlimit, and the allocator directly

mod support;

use std::alloc::{GlobalAlloc, Layout};
use std::os::unix::process::CommandExt;
use std::process::Command;

use hshm::{Error, FullPtr, HshmAlloc, MIB};
use support::role;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

/// Runs `test` again in a process that has the limit from its first instruction on.
#[track_caller]
fn limited(test: &str, resource: libc::__rlimit_resource_t, bytes: u64, what: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("HSHM_TEST_ROLE", format!("{test}={what}"))
        .env("RUST_MIN_STACK", "262144");
    if resource == libc::RLIMIT_DATA {
        // What it is about.
        command.env("HSHM_BACKEND", "private");
    }
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: setrlimit is safe to call between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(resource, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{what} with {bytes}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Blocks of one size, chained through their first word so that the list takes no memory.
struct Chain {
    first: *mut *mut u8,
    layout: Layout,
    count: usize,
}

impl Chain {
    fn new(size: usize) -> Chain {
        let layout = Layout::from_size_align(size, 8).unwrap();
        Chain { first: std::ptr::null_mut(), layout, count: 0 }
    }
    /// Allocates and fills until there is no more, or `most` blocks.
    fn fill(&mut self, most: usize) {
        while self.count < most {
            // SAFETY: the size is at least a word; the block is this chain's, and as long.
            unsafe {
                let block = A.alloc(self.layout);
                if block.is_null() {
                    return;
                }
                block.write_bytes(self.count as u8, self.layout.size());
                let link = block.cast::<*mut u8>();
                link.write(self.first.cast());
                self.first = link;
            }
            self.count += 1;
        }
    }
    /// Checks and frees everything.
    fn drain(&mut self) {
        while !self.first.is_null() {
            self.count -= 1;
            // SAFETY: the chain's blocks are live and filled; each is freed once.
            unsafe {
                let block = self.first.cast::<u8>();
                self.first = self.first.read().cast();
                let bytes = std::slice::from_raw_parts(block.add(8), self.layout.size() - 8);
                assert!(bytes.iter().all(|byte| *byte == self.count as u8));
                A.dealloc(block, self.layout);
            }
        }
        assert_eq!(self.count, 0);
    }
}

/// Runs out of memory again and again, with blocks of different sizes, up to `budget` bytes.
/// Returns the most bytes that blocks of each size came to.
fn run_out(budget: usize) -> Vec<(usize, usize)> {
    let mut most = Vec::new();
    for size in [64, 4000, 30_000, 100_000, 2 * MIB, 6 * MIB] {
        let mut counts = [0; 3];
        for count in &mut counts {
            let mut chain = Chain::new(size);
            chain.fill(budget / size);
            *count = chain.count;
            // Half of it works as well as before.
            chain.drain();
            chain.fill(*count / 2);
            assert_eq!(chain.count, *count / 2, "{size}");
            chain.drain();
            A.trim();
        }
        // The same every time, but for what the tables and caches took.
        assert!(counts[2] * 10 >= counts[0] * 8, "{size}: {counts:?}");
        most.push((size, counts[0] * size));
    }
    let text: String = (0..1000).map(|n| n.to_string()).collect();
    assert_eq!(text.len(), 2890);
    A.verify().unwrap();
    most
}

#[test]
fn address_space() {
    const TEST: &str = "address_space";
    const LIMIT: usize = 200 * MIB;
    if role(TEST).is_some() {
        let stats = A.stats();
        assert!(stats.regions > 0 && stats.reserved < LIMIT, "{stats:?}");
        for (size, bytes) in run_out(LIMIT) {
            // Past half of what is left, regions get smaller and smaller: large blocks fit less.
            let least = if size < MIB { 60 * MIB } else { 40 * MIB };
            assert!(bytes > least && bytes < LIMIT, "{size}: {bytes}");
        }
        assert!(A.share().is_ok());
        return;
    }
    limited(TEST, libc::RLIMIT_AS, LIMIT as u64, "run out");
}

#[test]
fn a_little_address_space() {
    const TEST: &str = "a_little_address_space";
    if role(TEST).is_some() {
        let text: String = (0..10_000).map(|n| n.to_string()).collect();
        assert_eq!(text.len(), 38_890);
        // SAFETY: the size is not zero, and nothing is used.
        assert!(unsafe { A.alloc(Layout::from_size_align(100 * MIB, 8).unwrap()) }.is_null());
        drop(text);
        A.verify().unwrap();
        return;
    }
    for mib in [24, 32, 48, 64, 100] {
        limited(TEST, libc::RLIMIT_AS, mib * MIB as u64, "start");
    }
}

/// The program has private memory, too: the heap takes no more of it than it uses, or a part.
#[test]
fn private_memory() {
    const TEST: &str = "private_memory";
    const LIMIT: usize = 96 * MIB;
    if role(TEST).is_some() {
        assert!(A.regions().all(|region| !region.is_shared()));
        assert!(A.stats().reserved < LIMIT / 2, "{:?}", A.stats());
        let own = |bytes| {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: new addresses, of which nobody knows, and which are given back.
            unsafe {
                let place = libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0);
                assert_ne!(place, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
                libc::munmap(place, bytes);
            }
        };
        own(LIMIT / 4);
        for (size, bytes) in run_out(LIMIT) {
            assert!(bytes > LIMIT / 8 && bytes < LIMIT, "{size}: {bytes}");
        }
        std::thread::spawn(move || own(4096)).join().unwrap();
        return;
    }
    limited(TEST, libc::RLIMIT_DATA, LIMIT as u64, "run out");
}

#[test]
fn file_size() {
    const TEST: &str = "file_size";
    const LIMIT: usize = 24 * MIB;
    if role(TEST).is_some() {
        let stats = A.stats();
        assert!(stats.regions > 0 && stats.reserved <= LIMIT, "{stats:?}");
        for region in A.regions() {
            assert!(region.is_shared() && region.len() <= LIMIT);
        }
        assert!(A.share().is_ok());
        // More regions, each within the limit, and private memory for what fits in none.
        let mut chain = Chain::new(4000);
        chain.fill(100 * MIB / 4000);
        assert_eq!(chain.count, 100 * MIB / 4000);
        let large = vec![7u8; 50 * MIB];
        assert!(large.iter().all(|byte| *byte == 7));
        assert!(A.stats().regions > 1);
        chain.drain();
        A.verify().unwrap();
        return;
    }
    limited(TEST, libc::RLIMIT_FSIZE, LIMIT as u64, "shrink");
}

#[test]
fn no_files_at_all() {
    const TEST: &str = "no_files_at_all";
    if role(TEST).is_some() {
        // There was no shared memory to be had, and the error says so.
        let Err(Error::OutOfMemory { requested, available }) = A.share() else { panic!() };
        assert!(available < requested);
        assert!(A.stats().regions > 0 && A.regions().all(|region| !region.is_shared()));
        let value = Box::new(5u64);
        assert!(FullPtr::from_ptr((&raw const *value).cast_mut()).is_ok());
        let words: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
        assert!(words.iter().enumerate().all(|(n, word)| word.parse() == Ok(n)));
        drop(words);
        A.verify().unwrap();
        return;
    }
    for bytes in [0, 1, 4096, 65_536] {
        limited(TEST, libc::RLIMIT_FSIZE, bytes, "private");
    }
}

/// Both at once, and threads besides.
#[test]
fn threads_in_a_small_address_space() {
    const TEST: &str = "threads_in_a_small_address_space";
    if role(TEST).is_some() {
        for _ in 0..20 {
            let threads: Vec<_> = (0..6)
                .map(|n| {
                    std::thread::spawn(move || {
                        let mut chain = Chain::new(500 + n * 3000);
                        let most = 2 * MIB / chain.layout.size();
                        chain.fill(most);
                        assert_eq!(chain.count, most);
                        chain.drain();
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        A.verify().unwrap();
        return;
    }
    limited(TEST, libc::RLIMIT_AS, 160 * MIB as u64, "threads");
}

/// As many mappings as a process may have: memory that is there stays usable, growth is null.
#[test]
fn mappings() {
    const TEST: &str = "mappings";
    if role(TEST).is_some() {
        let pages = 300_000;
        // SAFETY: new addresses of this process's own, single pages of which become readable: each
        // is a mapping. Nobody uses them, and they go at the end.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let null = std::ptr::null_mut();
            let start = libc::mmap(null, pages * 4096, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let make = |page: usize| {
                libc::mprotect(start.cast::<u8>().add(page * 4096).cast(), 4096, libc::PROT_READ)
            };
            if (0..pages).step_by(2).all(|page| make(page) == 0) {
                println!("not run: the limit is too high");
                return;
            }
            for size in [64, 4000, 100_000, 3 * MIB] {
                let mut chain = Chain::new(size);
                chain.fill(20 * MIB / size);
                assert!(chain.count > 0, "{size}");
                chain.drain();
            }
            // More than a region has. A mapping or two may be left over.
            let huge = Layout::from_size_align(1 << 40, 8).unwrap();
            let made = [0; 4].map(|_| A.alloc(huge));
            assert!(made.iter().any(|block| block.is_null()));
            for block in made.into_iter().filter(|block| !block.is_null()) {
                A.dealloc(block, huge);
            }
            A.trim();
            libc::munmap(start, pages * 4096);
        }
        let mut chain = Chain::new(4000);
        chain.fill(50 * MIB / 4000);
        assert_eq!(chain.count, 50 * MIB / 4000);
        chain.drain();
        A.verify().unwrap();
        return;
    }
    limited(TEST, libc::RLIMIT_CORE, 0, "mappings");
}
