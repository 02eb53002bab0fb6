//! Forked children: the heap is shared memory, and still each process has its own objects.
#![allow(unsafe_code)] // fork

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hshm::{AttachedHeap, Error, FullPtr, HeapToken, HshmAlloc, RegionOptions, ShmPtr};
use support::forked::{fork, wait};
use support::turn;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();

#[track_caller]
fn verify() {
    if let Err(fault) = A.verify() {
        panic!("{fault}");
    }
}

/// Runs `work` while other threads allocate and free, and hand each other what they allocated.
fn beside_busy_threads(work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        for seed in 0..3usize {
            let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<u8>>(64);
            scope.spawn(move || {
                let mut round = seed;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let size = if round.is_multiple_of(97) { 200_000 } else { round * 7919 % 3000 };
                    if sender.send(vec![round as u8; size]).is_err() {
                        return;
                    }
                }
            });
            scope.spawn(move || {
                for block in receiver {
                    assert!(block.iter().all(|byte| *byte == block[0]));
                }
            });
        }
        // The threads end even if the work fails.
        let result = catch_unwind(AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Objects of all sizes.
struct Objects {
    blocks: Vec<Vec<u8>>,
    map: BTreeMap<String, Vec<String>>,
    sum: u64,
}

impl Objects {
    fn new() -> Objects {
        let sizes = [1, 20, 100, 1000, 5000, 30_000, 40_000, 300_000, 5_000_000];
        let blocks = sizes
            .into_iter()
            .flat_map(|size| (0..if size > 100_000 { 1 } else { 30 }).map(move |n| (size, n)))
            .map(|(size, n)| (0..size).map(|at| (at * 31 + n * 7) as u8).collect())
            .collect();
        let map = (0..500)
            .map(|n| (format!("key {n}"), (0..n % 7).map(|i| format!("value {i}")).collect()))
            .collect();
        let mut objects = Objects { blocks, map, sum: 0 };
        objects.sum = objects.checksum();
        objects
    }
    fn checksum(&self) -> u64 {
        let mut sum = 0u64;
        let mut add = |byte: &u8| sum = (sum ^ *byte as u64).wrapping_mul(0x100_0000_01B3);
        self.blocks.iter().flatten().for_each(&mut add);
        for (key, values) in &self.map {
            key.as_bytes().iter().for_each(&mut add);
            values.iter().flat_map(|value| value.as_bytes()).for_each(&mut add);
        }
        sum
    }
    #[track_caller]
    fn check(&self) {
        assert_eq!(self.checksum(), self.sum, "somebody else wrote into these objects");
    }
    /// Writes over all of them, replaces, grows and drops them.
    fn wreck(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.fill(0xDD));
        for values in self.map.values_mut() {
            values.push("more ".repeat(40));
            values.iter_mut().for_each(|value| value.make_ascii_uppercase());
        }
        let mut others: Vec<Vec<u8>> = Vec::new();
        for round in 0..2000usize {
            others.push(vec![round as u8; round * 613 % 20_000]);
            if round.is_multiple_of(3) {
                others.swap_remove(round % others.len());
            }
        }
        self.blocks.iter_mut().for_each(|block| {
            block.extend_from_slice(&[0xEE; 1000]);
            block.shrink_to_fit();
        });
        self.blocks.truncate(self.blocks.len() / 2);
        self.map.retain(|key, _| key.len() > 5);
        assert!(others.iter().all(|block| block.iter().all(|byte| *byte == block[0])));
    }
}

#[test]
fn a_child_has_its_own_objects() {
    let _turn = turn();
    let mut objects = Objects::new();
    beside_busy_threads(|| {
        for _ in 0..5 {
            let child = fork(|| {
                verify();
                objects.check();
                objects.wreck();
                verify();
            });
            // The parent writes, too, while the child runs.
            let mut more = Objects::new();
            more.wreck();
            verify();
            wait(child);
            objects.check();
        }
    });
    objects.check();
    verify();
}

#[test]
fn a_child_sees_what_was_there_at_the_fork() {
    let _turn = turn();
    let mut words: Vec<u64> = vec![0; 100_000];
    for round in 1..20 {
        let child = fork(|| {
            // Long enough for the parent to go on.
            for _ in 0..20 {
                assert!(words.iter().all(|word| *word == round - 1));
            }
        });
        words.fill(round);
        wait(child);
    }
    verify();
}

#[test]
fn threads_of_a_child() {
    let _turn = turn();
    let objects = Objects::new();
    beside_busy_threads(|| {
        let child = fork(|| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    std::thread::spawn(|| {
                        let mut own = Objects::new();
                        own.check();
                        own.wreck();
                        own
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
            objects.check();
            drop(objects);
        });
        wait(child);
    });
    verify();
}

#[test]
fn children_of_children() {
    fn descend(depth: u32, objects: &mut Objects) {
        if depth == 0 {
            return;
        }
        let child = fork(|| {
            objects.check();
            verify();
            objects.wreck();
            verify();
            let mut own = Objects::new();
            descend(depth - 1, &mut own);
            own.check();
            verify();
        });
        wait(child);
        objects.check();
        verify();
    }
    let _turn = turn();
    descend(5, &mut Objects::new());
}

#[test]
fn two_hundred_children() {
    let _turn = turn();
    let text: String = "unchanged ".repeat(1000);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (stats, descriptors) = (A.stats(), open());
    for round in 0..200u32 {
        let mut numbers: Vec<u32> = (0..5000).map(|n| n ^ round).collect();
        let child = fork(|| {
            assert_eq!(text.len(), 10_000);
            numbers.iter_mut().for_each(|n| *n = !*n);
            numbers.extend(0..5000);
        });
        wait(child);
        assert!(numbers.iter().enumerate().all(|(n, word)| *word == n as u32 ^ round));
    }
    assert_eq!(text, "unchanged ".repeat(1000));
    assert_eq!(open(), descriptors, "descriptors were left open");
    assert!(A.stats().in_use() <= stats.in_use() + (4 << 20));
    verify();
}

#[test]
fn a_childs_heap_can_be_shared_under_an_id_of_its_own() {
    let _turn = turn();
    let mut value = Box::new([0x1111_u64; 32]);
    let mine = FullPtr::from_ptr(&raw mut *value).unwrap();
    let mut pipes = [0; 4];
    // SAFETY: places for two descriptors each.
    unsafe {
        assert_eq!(libc::pipe2(pipes.as_mut_ptr(), libc::O_CLOEXEC), 0);
        assert_eq!(libc::pipe2(pipes[2..].as_mut_ptr(), libc::O_CLOEXEC), 0);
    }
    // SAFETY: descriptors that nobody else has.
    let [mut from_child, to_parent, from_parent, to_child] =
        pipes.map(|fd| unsafe { File::from_raw_fd(fd) });
    let child = fork(|| {
        let place = FullPtr::from_ptr(&raw mut *value).unwrap();
        assert_ne!(place.shm().id(), mine.shm().id());
        assert_eq!((place.as_ptr(), place.offset()), (mine.as_ptr(), mine.offset()));
        assert_eq!(
            FullPtr::from_shm(mine.shm()),
            Err(Error::UnknownAllocator { id: mine.shm().id() })
        );
        value.fill(0x2222);
        let token = A.share().unwrap();
        assert_eq!(token.regions()[0].pid, std::process::id());
        assert_eq!(token.regions()[0].id, place.shm().id());
        writeln!(&to_parent, "{token} {}", place.offset().offset()).unwrap();
        // SAFETY: the child's copies of the descriptors, which it does not use any more.
        unsafe {
            libc::close(to_parent.as_raw_fd());
            libc::close(to_child.as_raw_fd());
        }
        // Until the parent has read.
        (&from_parent).read_to_end(&mut Vec::new()).unwrap();
        assert!(value.iter().all(|word| *word == 0x2222));
    });
    drop(to_parent);
    drop(from_parent);
    let mut text = String::new();
    from_child.read_to_string(&mut text).unwrap();
    let (token, offset) = text.trim().split_once(' ').unwrap();
    let token: HeapToken = token.parse().unwrap();
    let own = A.share().unwrap();
    assert_ne!(token.regions()[0].id, own.regions()[0].id);
    let heap = AttachedHeap::attach(&token, &RegionOptions::new().read_only(true)).unwrap();
    assert!(heap.is_relocated(), "this process has its own objects there");
    let place = ShmPtr::new(token.regions()[0].id, hshm::OffsetPtr::new(offset.parse().unwrap()));
    let theirs = FullPtr::<[u64; 32]>::from_shm(place).unwrap();
    // SAFETY: the child's value, which it leaves alone until the pipe is closed.
    assert!(unsafe { theirs.as_ref() }.unwrap().iter().all(|word| *word == 0x2222));
    assert!(value.iter().all(|word| *word == 0x1111));
    drop(heap);
    drop(to_child);
    wait(child);
    assert_eq!(FullPtr::from_shm(mine.shm()), Ok(mine));
}

#[test]
fn programs_are_started_while_threads_allocate() {
    let _turn = turn();
    let objects = Objects::new();
    beside_busy_threads(|| {
        for round in 0..50 {
            let output = Command::new("/bin/echo").arg(round.to_string()).output().unwrap();
            assert_eq!(output.stdout, format!("{round}\n").as_bytes());
        }
    });
    objects.check();
    verify();
}

/// The same with private memory, where the system copies.
#[test]
fn over_private_memory() {
    let _turn = turn();
    for test in ["a_child_has_its_own_objects", "children_of_children", "threads_of_a_child"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env("HSHM_BACKEND", "private")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}

/// Whatever the other threads were doing, a child's heap is whole.
#[test]
fn forks_beside_busy_threads_catch_nothing_half_way() {
    let _turn = turn();
    beside_busy_threads(|| {
        for _ in 0..100 {
            wait(fork(verify));
        }
    });
    verify();
}

/// Forks, and says how the child, which would do nothing, ended.
fn fork_for_status() -> i32 {
    // SAFETY: the child ends at once.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: no preconditions.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: a place for the result.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "status {status:#x}");
    libc::WEXITSTATUS(status)
}

/// Daemons close every descriptor they do not know, and the numbers come to stand for other files.
#[test]
fn a_child_ends_where_the_heaps_descriptor_is_gone() {
    let _turn = turn();
    wait(fork(|| {
        let objects: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        // SAFETY: the harness's descriptors are not used any more in this child.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
        assert_eq!(fork_for_status(), 127);
        // Now the heap's number is another file's.
        let files: Vec<File> = (0..8).map(|_| File::open("/dev/zero").unwrap()).collect();
        assert_eq!(fork_for_status(), 127);
        drop(files);
        assert!(objects.iter().enumerate().all(|(n, text)| *text == n.to_string()));
        assert_eq!(A.share().unwrap_err(), Error::NotShared);
        verify();
    }));
}

#[test]
fn a_child_ends_where_there_is_no_descriptor_for_its_copy() {
    let _turn = turn();
    wait(fork(|| {
        let limit = libc::rlimit { rlim_cur: 3, rlim_max: 3 };
        // SAFETY: a limit for this child alone.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        let objects: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        assert_eq!(fork_for_status(), 127);
        assert!(objects.iter().enumerate().all(|(n, text)| *text == n.to_string()));
    }));
}
