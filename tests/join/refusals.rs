//! What cannot be joined: the program ends before it has begun, and says why.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use hshm::{
    Backend, Heap, MIB, OffsetPtr, PosixShmMmap, RegionOptions, SharedHeap, StackAllocator,
    ThreadLocalAllocator,
};

use crate::member::Name;
use crate::support::{is_root, turn};

const OPTIONS: RegionOptions = RegionOptions::new().capacity(64 * MIB);

/// Before the program's first allocation: takes a page at the address that the environment says.
#[used]
#[unsafe(link_section = ".init_array")]
static OCCUPY: extern "C" fn() = {
    extern "C" fn occupy() {
        // SAFETY: C strings; the result is null or lives as long as the environment.
        unsafe {
            let text = libc::getenv(c"HSHM_TEST_OCCUPY".as_ptr());
            if !text.is_null() {
                let address = libc::strtoull(text, std::ptr::null_mut(), 16) as usize;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                let at = std::ptr::without_provenance_mut(address);
                libc::mmap(at, 4096, libc::PROT_NONE, flags, -1, 0);
            }
        }
    }
    occupy
};

/// A program that is to join `name`: its status and what it says.
fn attempt(name: &str, more: impl FnOnce(&mut Command) -> &mut Command) -> (Option<i32>, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "member::member"]).env("HSHM_REGION", name);
    let output = more(&mut command).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn refused_with(name: &str, why: &str, more: impl FnOnce(&mut Command) -> &mut Command) {
    let (status, said) = attempt(name, more);
    assert_eq!(status, Some(127), "{said}");
    assert!(said.contains("hshm: cannot join the heap '") && said.contains(why), "{said}");
}

#[track_caller]
fn refused(name: &Name, why: &str) {
    refused_with(&name.0, why, |command| command);
}

#[track_caller]
fn accepted(name: &Name) {
    let (status, said) = attempt(&name.0, |command| command);
    assert_eq!((status, said.as_str()), (Some(0), ""));
}

fn patch(name: &Name, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(name.path()).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn whose_it_is() {
    let _turn = turn();
    let name = Name::new("whose");
    let alloc = SharedHeap::new(&name.0).create(&OPTIONS).unwrap();
    accepted(&name);
    let why = "it is another user's, or others may open it, or it has two names";
    for mode in [0o666, 0o640, 0o601] {
        fs::set_permissions(name.path(), fs::Permissions::from_mode(mode)).unwrap();
        refused(&name, why);
    }
    fs::set_permissions(name.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let other = Name::new("whose-else");
    fs::hard_link(name.path(), other.path()).unwrap();
    refused(&name, why);
    fs::remove_file(other.path()).unwrap();
    std::os::unix::fs::symlink(name.path(), other.path()).unwrap();
    refused(&other, why);
    if is_root() {
        std::os::unix::fs::chown(name.path(), Some(1), None).unwrap();
        refused(&name, why);
        std::os::unix::fs::chown(name.path(), Some(0), None).unwrap();
    }
    accepted(&name);
    assert!(alloc.verify().is_ok());
}

#[test]
fn what_it_is() {
    let _turn = turn();
    let name = Name::new("what");
    let file = || OpenOptions::new().create_new(true).write(true).open(name.path()).unwrap();
    let private = |file: &File| file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    {
        let mut garbage = file();
        private(&garbage);
        garbage.write_all(&[0x5A; 100_000]).unwrap();
        refused(&name, "what has that name is no heap");
        assert_eq!(fs::read(name.path()).unwrap(), [0x5A; 100_000]);
        fs::remove_file(name.path()).unwrap();
    }
    fs::create_dir(name.path()).unwrap();
    refused(&name, "what has that name is no heap");
    fs::remove_dir(name.path()).unwrap();

    // A version of the header, and one of the tables.
    for at in [8, 4096 + 8] {
        drop(SharedHeap::new(&name.0).create(&OPTIONS).unwrap());
        accepted(&name);
        patch(&name, at, &[99, 0, 0, 0]);
        refused(&name, "it was made by another version");
        fs::remove_file(name.path()).unwrap();
    }
    drop(SharedHeap::new(&name.0).create(&OPTIONS).unwrap());
    patch(&name, 30, &[1]);
    refused(&name, "it is damaged");
    fs::remove_file(name.path()).unwrap();
    drop(SharedHeap::new(&name.0).create(&OPTIONS).unwrap());
    OpenOptions::new().write(true).open(name.path()).unwrap().set_len(1 << 20).unwrap();
    refused(&name, "it is damaged");
    fs::remove_file(name.path()).unwrap();

    // Somebody else's engine.
    let region = PosixShmMmap::create(&name.0, &OPTIONS).unwrap();
    let start = region.payload_offset() as u64;
    let heap = Heap::new(start, 1 << 20).unwrap();
    drop(StackAllocator::shm_init(region, OffsetPtr::new(start), heap).unwrap());
    refused(&name, "or holds something else");
    fs::remove_file(name.path()).unwrap();

    for bad in ["", "/", "a/b", "..", &"x".repeat(101), &"x".repeat(5000)] {
        refused_with(bad, "that is no name for a heap", |command| command);
    }
}

#[test]
fn where_and_how_large_it_is() {
    let _turn = turn();
    let name = Name::new("where");
    let region = PosixShmMmap::create(&name.0, &OPTIONS).unwrap();
    let alloc = ThreadLocalAllocator::shm_init_with(region.clone(), 2).unwrap();
    accepted(&name);
    // One page anywhere in its range is enough.
    for offset in [0, 1 << 20, region.len() - 4096] {
        let address = format!("{:x}", region.base().addr() + offset);
        refused_with(&name.0, "its addresses are taken in this program", |command| {
            command.env("HSHM_TEST_OCCUPY", &address)
        });
    }
    let second = ThreadLocalAllocator::shm_attach(region.clone(), 0, 1).unwrap();
    refused(&name, "it has as many processes as it can");
    drop(second);
    accepted(&name);
    let limit = libc::rlimit { rlim_cur: 48 << 20, rlim_max: 48 << 20 };
    refused_with(&name.0, "there is no memory for it", |command| {
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(move || {
                libc::setrlimit(libc::RLIMIT_AS, &limit);
                Ok(())
            })
        }
    });
    assert!(alloc.verify().is_ok());
}

/// What a program left that was killed while it made the heap.
#[test]
fn what_was_never_finished_is_made_anew() {
    let _turn = turn();
    let name = Name::new("unfinished");
    for length in [0, 4096, 64 << 20] {
        let file = OpenOptions::new().create_new(true).write(true).open(name.path()).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.set_len(length).unwrap();
        // Several find it at the same time.
        let mut members: Vec<_> = (0..4).map(|_| name.member()).collect();
        members.iter_mut().for_each(|member| member.send("region"));
        let regions: Vec<String> = members.iter_mut().map(|member| member.receive()).collect();
        assert!(regions.iter().all(|region| *region == regions[0]), "{regions:?}");
        members.into_iter().for_each(|member| member.finish());
        assert!(!name.is_there());
    }
    // A region without tables, and one that was given up by somebody who then was killed.
    drop(PosixShmMmap::create(&name.0, &OPTIONS).unwrap());
    accepted(&name);
    assert!(!name.is_there());
    drop(SharedHeap::new(&name.0).create(&OPTIONS).unwrap());
    patch(&name, 88, &2u32.to_ne_bytes());
    accepted(&name);
    assert!(!name.is_there());
}

#[test]
fn a_full_heap_fails_and_recovers() {
    let _turn = turn();
    let name = Name::new("full");
    let mut one = name.member_with(|command| command.env("HSHM_CAPACITY", "24M"));
    // Whoever is first makes the heap, and says how large it is.
    assert!(one.ask("region").ends_with(" 1"));
    let mut two = name.member();
    // It has begun: while the heap is full it could not.
    assert_eq!(two.ask("refused"), "0");
    let first: usize = one.ask("fill").parse().unwrap();
    assert!((4 << 20..24 << 20).contains(&first), "{first}");
    // What the one gave back the other can have.
    for _ in 0..3 {
        let room: usize = two.ask("fill").parse().unwrap();
        assert!(room > first / 3, "{room} of {first}");
        two.ask("used");
        let room: usize = one.ask("fill").parse().unwrap();
        assert!(room > first / 3, "{room} of {first}");
        one.ask("used");
    }
    let words = one.ask("make 300");
    assert_eq!(two.ask(&format!("drop {words}")), "dropped");
    for member in [&mut one, &mut two] {
        assert!(member.ask("verify").starts_with("clean"));
        assert_eq!(member.ask("refused"), "0");
        assert!(member.ask("region").ends_with(" 1"));
    }
}
