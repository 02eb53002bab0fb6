//! Two real processes and one segment; and headers that lie.
#![allow(unsafe_code)] // looks into regions

mod support;

use hshm::{
    AllocatorId, Backend, Error, FileBackend, FullPtr, KIB, MIB, MemfdBackend, OffsetPtr,
    PosixShmMmap, Region, RegionOptions, ShareToken, ShmPtr,
};
use std::os::unix::process::ExitStatusExt;
use support::{Dir, other_process, other_process_ok, role, turn, unique};

const OPTIONS: RegionOptions = RegionOptions::new().capacity(MIB);
/// Where the two processes leave each other words.
const ASK: usize = 4096;
const ANSWER: usize = 8192;

fn put(region: &Region, at: usize, word: u64) {
    region.commit(at as u64, 8).unwrap();
    // SAFETY: the offset lies in the region; the other process is waiting.
    unsafe { region.base().add(at).cast::<u64>().write_volatile(word) }
}

fn get(region: &Region, at: usize) -> u64 {
    // SAFETY: as above.
    unsafe { region.base().add(at).cast::<u64>().read_volatile() }
}

/// The other side: finds the question, through a shared pointer, and answers.
fn answer(region: &Region) {
    assert!(!region.is_creator() && region.is_writable() && !region.known_zero());
    let ask = ShmPtr::<u64>::new(region.id(), OffsetPtr::new(ASK as u64));
    let ask = FullPtr::from_shm(ask).unwrap();
    // SAFETY: the place lies in the region, and the other process is waiting.
    assert_eq!(unsafe { ask.as_ptr().read_volatile() }, 0xA5C);
    put(region, ANSWER, region.base().addr() as u64);
}

#[test]
fn posix_shm() {
    const TEST: &str = "posix_shm";
    if let Some(name) = role(TEST) {
        return answer(&PosixShmMmap::attach(&name, &RegionOptions::new()).unwrap());
    }
    let _turn = turn();
    let name = unique(TEST);
    let region = PosixShmMmap::create(&name, &OPTIONS).unwrap();
    put(&region, ASK, 0xA5C);
    other_process_ok(TEST, &name);
    // Same address there.
    assert_eq!(get(&region, ANSWER), region.base().addr() as u64);
    PosixShmMmap::destroy(&name).unwrap();
}

#[test]
fn memfd_by_token_and_by_process() {
    const TEST: &str = "memfd_by_token_and_by_process";
    if let Some(text) = role(TEST) {
        let required = RegionOptions::new().same_address(true);
        let region = MemfdBackend::attach(&text, &required).unwrap();
        answer(&region);
        if let Ok(token) = text.parse::<ShareToken>() {
            assert_eq!((token.base, token.len), (region.base().addr(), region.len()));
            let wrong = ShareToken { id: AllocatorId::new(1, 2), ..token };
            let found = Error::ForeignPointer { found: token.id, expected: wrong.id };
            assert_eq!(Region::attach_token(&wrong, &OPTIONS).err(), Some(found));
            let closed = ShareToken { fd: 4000, ..token };
            assert_eq!(Region::attach_token(&closed, &OPTIONS).err(), Some(Error::NotFound));
            let input = ShareToken { fd: 0, ..token };
            assert!(Region::attach_token(&input, &OPTIONS).is_err());
        }
        return;
    }
    let _turn = turn();
    let region = MemfdBackend::create("", &OPTIONS).unwrap();
    put(&region, ASK, 0xA5C);
    let token = region.token().unwrap();
    for text in [token.to_string(), format!("pid:{}:fd:{}", token.pid, token.fd)] {
        put(&region, ANSWER, 0);
        other_process_ok(TEST, &text);
        assert_eq!(get(&region, ANSWER), region.base().addr() as u64);
    }
}

#[test]
fn memfd_by_inherited_descriptor() {
    const TEST: &str = "memfd_by_inherited_descriptor";
    if let Some(url) = role(TEST) {
        let region = MemfdBackend::attach(&url, &OPTIONS).unwrap();
        return answer(&region);
    }
    let _turn = turn();
    let region = MemfdBackend::create("", &OPTIONS).unwrap();
    put(&region, ASK, 0xA5C);
    let url = format!("fd:{}", region.fd().unwrap());
    assert!(!other_process(TEST, &url).status.success(), "closed at exec by default");
    region.set_inheritable(true).unwrap();
    other_process_ok(TEST, &url);
    region.set_inheritable(false).unwrap();
    assert_ne!(get(&region, ANSWER), 0);
}

#[test]
fn file() {
    const TEST: &str = "file";
    if let Some(path) = role(TEST) {
        return answer(&FileBackend::attach(&path, &OPTIONS).unwrap());
    }
    let _turn = turn();
    let dir = Dir::new("attach-file");
    let path = dir.file("region");
    let region = FileBackend::create(&path, &OPTIONS).unwrap();
    put(&region, ASK, 0xA5C);
    other_process_ok(TEST, &path);
    assert_ne!(get(&region, ANSWER), 0);
    // The file outlives its creator's mapping, contents and id.
    let id = region.id();
    drop(region);
    let region = FileBackend::attach(&path, &OPTIONS).unwrap();
    assert_eq!((region.id(), get(&region, ASK)), (id, 0xA5C));
}

#[test]
fn relocated() {
    const TEST: &str = "relocated";
    if let Some(text) = role(TEST) {
        let token: ShareToken = text.parse().unwrap();
        let region = Region::attach_token(&token, &OPTIONS.relocate(true)).unwrap();
        assert!(region.is_relocated());
        assert_ne!(region.base().addr(), token.base);
        return answer(&region);
    }
    let _turn = turn();
    let region = MemfdBackend::create("", &OPTIONS).unwrap();
    put(&region, ASK, 0xA5C);
    other_process_ok(TEST, &region.token().unwrap().to_string());
    assert_ne!(get(&region, ANSWER), 0);
    assert_ne!(get(&region, ANSWER), region.base().addr() as u64);

    // In this process the creator's address is taken.
    let token = region.token().unwrap();
    let second = Region::attach_token(&token, &OPTIONS).unwrap();
    assert!(second.is_relocated() && !region.is_relocated());
    let required = Region::attach_token(&token, &OPTIONS.same_address(true));
    assert_eq!(required.err(), Some(Error::Relocated));
    // One id, two mappings: the first has the id, and leaves it to the second.
    let place = ShmPtr::<u8>::new(region.id(), OffsetPtr::new(ASK as u64));
    let find = || FullPtr::from_shm(place).unwrap().as_ptr().addr() - ASK;
    assert_eq!(find(), region.base().addr());
    assert_eq!(FullPtr::from_ptr(second.base()).unwrap().shm().id(), region.id());
    drop(region);
    assert_eq!(find(), second.base().addr());
    assert_eq!(get(&second, ASK), 0xA5C);
    drop(second);
    assert!(FullPtr::from_shm(place).is_err());
}

#[test]
fn a_store_through_a_read_only_attachment_faults() {
    const TEST: &str = "a_store_through_a_read_only_attachment_faults";
    if let Some(name) = role(TEST) {
        let region = PosixShmMmap::attach(&name, &OPTIONS.read_only(true)).unwrap();
        assert!(!region.is_writable());
        assert_eq!(get(&region, ASK), 0xA5C);
        assert_eq!(region.commit(0, 1), Err(Error::ReadOnly));
        // SAFETY: refused.
        assert_eq!(unsafe { region.purge(0, 4096) }, Err(Error::ReadOnly));
        // What was opened for reading cannot become writable through its descriptor.
        let url = format!("fd:{}", region.fd().unwrap());
        let writable = MemfdBackend::attach(&url, &OPTIONS);
        assert_eq!(writable.err(), Some(Error::PermissionDenied));
        println!("reads are fine");
        // SAFETY: the offset lies in the region; the fault is what is tested.
        unsafe { region.base().add(ANSWER).write_volatile(1) };
        return;
    }
    let _turn = turn();
    let name = unique("read-only");
    let region = PosixShmMmap::create(&name, &OPTIONS).unwrap();
    put(&region, ASK, 0xA5C);
    put(&region, ANSWER, 0);
    let output = other_process(TEST, &name);
    PosixShmMmap::destroy(&name).unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("reads are fine"), "{output:?}");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
    assert_eq!(get(&region, ANSWER), 0);
}

#[test]
fn a_sealed_segment_cannot_be_shrunk() {
    let _turn = turn();
    let region = MemfdBackend::create("", &OPTIONS).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::ftruncate(region.fd().unwrap(), 4096) }, -1);
    put(&region, MIB - 8, 1);
}

#[test]
fn every_flipped_byte_of_the_header() {
    use std::os::unix::fs::FileExt;
    let _turn = turn();
    let dir = Dir::new("flip");
    let path = dir.file("region");
    let region = FileBackend::create(&path, &OPTIONS.capacity(64 * KIB)).unwrap();
    let id = region.id();
    drop(region);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut good = [0; 4096];
    file.read_exact_at(&mut good, 0).unwrap();
    let mut refused = 0;
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xFF] {
            file.write_all_at(&[good[at] ^ flip], at as u64).unwrap();
            match FileBackend::attach(&path, &OPTIONS) {
                Ok(region) => {
                    assert_eq!((region.id(), region.len()), (id, 64 * KIB));
                    // SAFETY: mapped, and nobody else uses it.
                    unsafe { region.base().add(region.len() - 1).read_volatile() };
                }
                Err(_) => refused += 1,
            }
        }
        file.write_all_at(&good[at..=at], at as u64).unwrap();
    }
    assert_eq!(refused, 92 * 3, "all of the fixed fields, the checksum and the state");

    // Every length, too.
    for length in (0..64 * KIB as u64).step_by(1021) {
        file.set_len(length).unwrap();
        assert!(FileBackend::attach(&path, &OPTIONS).is_err());
    }
    // And noise.
    let mut word = 1u64;
    for round in 0..500 {
        let mut noise = good;
        for byte in &mut noise[if round % 2 == 0 { 0 } else { 8 }..256] {
            word = word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (word >> 56) as u8;
        }
        file.set_len(64 * KIB as u64).unwrap();
        file.write_all_at(&noise, 0).unwrap();
        assert!(FileBackend::attach(&path, &OPTIONS).is_err());
    }
}

#[test]
fn nothing_is_left_when_processes_are_killed() {
    const TEST: &str = "nothing_is_left_when_processes_are_killed";
    if let Some(text) = role(TEST) {
        let _own = MemfdBackend::create("", &OPTIONS).unwrap();
        let _peer = Region::attach_token(&text.parse().unwrap(), &OPTIONS).unwrap();
        // SAFETY: no preconditions.
        unsafe { libc::raise(libc::SIGKILL) };
    }
    let _turn = turn();
    let region = MemfdBackend::create("", &OPTIONS).unwrap();
    put(&region, ASK, 0xA5C);
    let before = support::Traces::now();
    for _ in 0..5 {
        let output = other_process(TEST, &region.token().unwrap().to_string());
        assert_eq!(output.status.signal(), Some(libc::SIGKILL));
    }
    assert_eq!(support::Traces::now(), before);
    assert_eq!(get(&region, ASK), 0xA5C);
}
