//! What the forked children of programs get that joined a heap.

use std::ffi::CString;
use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::A;
use crate::member::{Name, Words, expected, sum};
use crate::support::turn;

/// Forks, and has the child do something; how it ended. In the joined program.
pub fn fork_and(what: &[&str]) -> String {
    let words: Words = (0..500).map(|n| (n.to_string(), vec![n; 10])).collect();
    let total = sum(&words);
    let mut kept = vec![1u64; 100_000];
    let before = A.regions().next().unwrap().id();
    let (echo, text) = (CString::new("/bin/true").unwrap(), CString::new("x").unwrap());
    if what == ["command"] {
        let mut command = Command::new("/bin/echo");
        // SAFETY: the closure does nothing. It makes the library fork.
        unsafe { command.arg("started").pre_exec(|| Ok(())) };
        let said = command.output().unwrap().stdout;
        return String::from_utf8(said).unwrap().trim().to_owned();
    }
    // SAFETY: the child does what follows and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: no preconditions. A child that hangs ends by a signal.
        unsafe { libc::alarm(600) };
        let code = match what {
            // Reading what there is, without an allocation.
            ["read"] => (sum(&words) == total) as i32 + 10,
            ["free"] => {
                drop(words);
                drop(kept);
                11
            }
            ["exec"] => {
                let arguments = [text.as_ptr(), std::ptr::null()];
                // SAFETY: C strings, and a null at the end.
                unsafe { libc::execv(echo.as_ptr(), arguments.as_ptr()) };
                12
            }
            ["allocate"] => black_box(String::from("one")).len() as i32,
            ["large"] => black_box(vec![1u8; 1_000_000]).len() as i32,
            ["thread"] => std::thread::spawn(|| 3).join().unwrap(),
            ["write"] => {
                kept.fill(2);
                13
            }
            ["exit"] => std::process::exit(14),
            ["fork-again"] => {
                // SAFETY: the grandchild ends at once.
                match unsafe { libc::fork() } {
                    // SAFETY: no preconditions.
                    0 => unsafe { libc::_exit((sum(&words) == total) as i32 + 20) },
                    child => {
                        let mut status = 0;
                        // SAFETY: a place for the result.
                        unsafe { libc::waitpid(child, &mut status, 0) };
                        libc::WEXITSTATUS(status)
                    }
                }
            }
            // With a copy: uses it like a heap of its own, and wrecks it.
            ["live"] => {
                let region = A.regions().next().unwrap();
                let own = region.id() != before && A.verify().is_ok();
                kept.fill(2);
                drop(words);
                let mine: Words = (0..2000).map(|n| (n.to_string(), vec![n; 5])).collect();
                let threads: Vec<_> =
                    (0..4).map(|_| std::thread::spawn(|| vec![1u8; 100_000].len())).collect();
                let sum = threads.into_iter().map(|t| t.join().unwrap()).sum::<usize>();
                (own && mine.len() == 2000 && sum == 400_000 && A.verify().is_ok()) as i32 + 30
            }
            other => panic!("what is {other:?}?"),
        };
        // SAFETY: no preconditions.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: a place for the result.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(sum(&words), total);
    assert!(kept.iter().all(|word| *word == 1));
    match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status).to_string(),
        false => format!("signal {}", libc::WTERMSIG(status)),
    }
}

#[test]
fn children_may_look_and_go() {
    let _turn = turn();
    let name = Name::new("refuse");
    // It is what they get where nothing else is said, but by the C library, which these programs have where they
    // are built with it.
    let member = || {
        name.member_with(|command| match cfg!(feature = "c-api") {
            true => command.env("HSHM_FORK", "refuse"),
            false => command,
        })
    };
    let (mut one, mut two) = (member(), member());
    let words = two.ask("make 1000");
    for (what, end) in [
        ("read", "11"),
        ("free", "11"),
        ("exec", "0"),
        ("command", "started"),
        ("allocate", "127"),
        ("large", "127"),
        ("thread", "127"),
        ("write", "13"),
        ("exit", "14"),
        ("fork-again", "21"),
    ] {
        assert_eq!(one.ask(&format!("fork {what}")), end, "{what}");
        assert!(name.is_there());
        assert_eq!(one.ask(&format!("sum {words}")), expected(1000).to_string());
        assert!(two.ask("verify").starts_with("clean"), "{what}");
    }
    assert_eq!(two.ask("reap"), "0");
    let region = one.ask("region");
    one.finish();
    assert_eq!(two.ask("region"), region);
    assert_eq!(two.ask("refused"), "0");
    two.finish();
    assert!(!name.is_there());
}

#[test]
fn children_get_a_copy_where_the_program_says_so() {
    let _turn = turn();
    let name = Name::new("copy");
    let mut one = name.member_with(|command| command.env("HSHM_FORK", "copy"));
    let mut two = name.member();
    let words = two.ask("make 1000");
    for what in ["read", "free", "exec", "command", "exit", "live", "live"] {
        let end = one.ask(&format!("fork {what}"));
        let wanted = match what {
            "exec" => "0",
            "command" => "started",
            "exit" => "14",
            "live" => "31",
            _ => "11",
        };
        assert_eq!(end, wanted, "{what}");
        assert!(name.is_there());
        for member in [&mut one, &mut two] {
            assert_eq!(member.ask(&format!("sum {words}")), expected(1000).to_string());
            assert!(member.ask("verify").starts_with("clean"));
        }
    }
    assert_eq!(two.ask("reap"), "0");
    assert_eq!(one.ask(&format!("drop {words}")), "dropped");
    assert_eq!(two.ask("refused"), "0");
    two.finish();
    one.finish();
    assert!(!name.is_there());
}
