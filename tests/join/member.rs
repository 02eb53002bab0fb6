//! One of the programs: does what it is told, line by line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use hshm::{MIB, Owner};

use crate::A;
use crate::support::peer::{Peer, serve};
use crate::support::{role, unique};

/// What programs give one another.
pub type Words = BTreeMap<String, Vec<u64>>;

/// A name for a heap, whose traces go with this value.
pub struct Name(pub String);

impl Name {
    pub fn new(name: &str) -> Name {
        let name = Name(unique(name));
        assert!(!name.is_there(), "{} is left from another run", name.0);
        name
    }
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/dev/shm").join(&self.0)
    }
    pub fn is_there(&self) -> bool {
        self.path().exists()
    }
    /// Starts a program that joins.
    pub fn member(&self) -> Peer {
        self.member_with(|command| command)
    }
    pub fn member_with(&self, more: impl FnOnce(&mut Command) -> &mut Command) -> Peer {
        Peer::start_with("member::member", "x", |command| {
            more(command.env("HSHM_REGION", &self.0).env("HSHM_CAPACITY", "256M"))
        })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
    }
}

fn words(count: usize) -> Words {
    (0..count).map(|n| (format!("word number {n}"), (0..n as u64 % 50).collect())).collect()
}

pub fn sum(words: &Words) -> u64 {
    words.iter().map(|(word, list)| word.len() as u64 + list.iter().sum::<u64>()).sum()
}

/// What [`sum`] is of a map that a program made.
pub fn expected(count: usize) -> u64 {
    sum(&words(count))
}

/// An object that some program made and gave away, at an address that it said.
fn boxed<T>(address: &str) -> Box<T> {
    let address = usize::from_str_radix(address, 16).unwrap();
    // SAFETY: the tests say addresses of such objects only, and those of objects that are given away
    // once.
    unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut(address)) }
}

fn given<T>(object: Box<T>) -> String {
    format!("{:x}", Box::into_raw(object).expose_provenance())
}

/// Takes all the memory there is, in blocks of many sizes, and gives it back; how much it was.
fn fill() -> usize {
    let (mut blocks, mut bytes): (Vec<Vec<u8>>, usize) = (Vec::with_capacity(100_000), 0);
    let mut size = 16 * MIB;
    while size >= 1024 {
        let mut block = Vec::new();
        if block.try_reserve_exact(size).is_ok() && blocks.len() < blocks.capacity() {
            block.resize(size, blocks.len() as u8);
            blocks.push(block);
            bytes += size;
        } else {
            size /= 2;
        }
    }
    assert!(blocks.iter().enumerate().all(|(n, block)| block.iter().all(|b| *b == n as u8)));
    bytes
}

fn answer(request: &[&str]) -> String {
    match request {
        ["region"] => {
            let regions: Vec<_> = A.regions().collect();
            let kind = regions[0].kind();
            format!(
                "{} {:p} {:?} {}",
                regions[0].id().to_bits(),
                regions[0].base(),
                kind,
                regions.len()
            )
        }
        ["make", count] => given(Box::new(words(count.parse().unwrap()))),
        ["sum", address] => {
            let words = Box::leak(boxed::<Words>(address));
            sum(words).to_string()
        }
        ["grow", address] => {
            let words = Box::leak(boxed::<Words>(address));
            words.values_mut().for_each(|list| list.extend(0..100));
            words.insert("one more".repeat(100), vec![1; 10_000]);
            sum(words).to_string()
        }
        ["drop", address] => {
            drop(boxed::<Words>(address));
            "dropped".to_owned()
        }
        // One block, of a size in bytes, whose bytes are all its second.
        ["block", size, byte] => {
            let block = vec![byte.parse::<u8>().unwrap(); size.parse().unwrap()];
            format!("{:x}", block.leak().as_mut_ptr().expose_provenance())
        }
        ["check", address, size, byte] => {
            let start = usize::from_str_radix(address, 16).unwrap();
            let byte: u8 = byte.parse().unwrap();
            // SAFETY: the tests say such blocks.
            let block = unsafe {
                std::slice::from_raw_parts(
                    std::ptr::with_exposed_provenance::<u8>(start),
                    size.parse().unwrap(),
                )
            };
            block.iter().all(|found| *found == byte).to_string()
        }
        ["free", address, size] => {
            let (start, size) =
                (usize::from_str_radix(address, 16).unwrap(), size.parse().unwrap());
            let start = std::ptr::with_exposed_provenance_mut::<u8>(start);
            // SAFETY: the tests say blocks that were given away, once.
            drop(unsafe { Vec::from_raw_parts(start, size, size) });
            "freed".to_owned()
        }
        ["resize", address, size, new] => {
            let (start, size) =
                (usize::from_str_radix(address, 16).unwrap(), size.parse().unwrap());
            let start = std::ptr::with_exposed_provenance_mut::<u8>(start);
            let new: usize = new.parse().unwrap();
            // SAFETY: as above.
            let mut block = unsafe { Vec::from_raw_parts(start, size, size) };
            let byte = block[0];
            block.reserve_exact(new - size);
            block.resize(new, byte);
            format!("{:x}", block.leak().as_mut_ptr().expose_provenance())
        }
        ["transfer", address, to] => {
            let start = usize::from_str_radix(address, 16).unwrap();
            let to = if *to == "nobody" { Owner::Nobody } else { Owner::ThisProcess };
            // SAFETY: the tests say blocks that are this program's, or nobody's.
            let done = unsafe { A.transfer(std::ptr::with_exposed_provenance(start), to) };
            format!("{done:?}")
        }
        ["fill"] => fill().to_string(),
        ["reap"] => A.reap().to_string(),
        ["used"] => {
            A.trim();
            A.stats().in_use().to_string()
        }
        ["refused"] => A.stats().refused_frees.to_string(),
        ["verify"] => match A.verify() {
            Ok(reports) => format!("clean {}", reports[0].total - reports[0].free_chunks),
            Err(fault) => fault.to_string(),
        },
        ["threads", count] => {
            let count: usize = count.parse().unwrap();
            let threads: Vec<_> =
                (0..count).map(|n| std::thread::spawn(move || sum(&words(n * 10)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>().to_string()
        }
        ["fork", what @ ..] => crate::forks::fork_and(what),
        ["exit"] => std::process::exit(0),
        other => panic!("what is {other:?}?"),
    }
}

#[test]
fn member() {
    if role("member::member").is_some() {
        serve(answer);
    }
}
