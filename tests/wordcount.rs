//! The `wordcount` example, run as a user would: two processes, and arguments of all kinds.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use support::Dir;

/// The example, beside this test's own directory. A plain `cargo test` builds it before it runs a
/// test; where less was asked for, it is built now.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().unwrap().parent().unwrap();
        let program = profile.join("examples").join("wordcount");
        if !program.exists() {
            let name = profile.file_name().unwrap().to_str().unwrap();
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--example", "wordcount", "--profile"]);
            build.arg(if name == "debug" { "dev" } else { name });
            build.arg("--target-dir").arg(profile.parent().unwrap());
            assert!(build.status().unwrap().success(), "cannot build the example");
        }
        program
    })
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    run_with(&[], args)
}

fn run_with(env: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program());
    command.env_remove("HSHM_BACKEND").envs(env.iter().copied()).args(args);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// 50 files: in each its own word, ten common ones, and one file that is no text.
fn corpus(dir: &Dir) -> (u64, u64) {
    fs::create_dir_all(dir.0.join("a/b")).unwrap();
    for file in 0..50 {
        let common: String = (0..10).map(|n| format!("gemein{n}, ").repeat(n + 1)).collect();
        fs::write(dir.0.join(format!("a/b/{file}")), format!("{common} größe_{file}\n")).unwrap();
    }
    fs::write(dir.0.join("a/noise"), [0xFF, 0xFE, b' ', b'x']).unwrap();
    (50 * (55 + 1), 10 + 50)
}

#[test]
fn both_processes_agree() {
    let dir = Dir::new("wordcount");
    let (total, kinds) = corpus(&dir);
    // The default, and a heap of many small regions.
    for env in [&[][..], &[("HSHM_CAPACITY", "2M")]] {
        let (code, out, err) = run_with(env, &[dir.0.to_str().unwrap()]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(out.contains("50 text files"), "{out}");
        assert!(out.contains("skipped 1 that are not UTF-8"), "{out}");
        let agree = format!("both processes agree: {total} words, {kinds} different");
        assert!(out.contains(&agree), "{out}");
        // Most frequent first, and only so many.
        let top: Vec<&str> = out.lines().filter(|line| line.contains("  gemein")).collect();
        assert_eq!(top.len(), 10);
        assert_eq!(top[0].trim(), "500  gemein9");
        assert_eq!(out.lines().filter(|line| line.contains("  größe_")).count(), 10);
        assert_eq!(out.matches("memory of the reader's own").count(), 2);
    }
}

#[test]
fn nothing_to_count() {
    let dir = Dir::new("wordcount-none");
    let path = dir.0.to_str().unwrap();
    for empty_file in [false, true] {
        if empty_file {
            fs::write(dir.0.join("empty"), "").unwrap();
        }
        let (code, out, err) = run(&["--", path]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(out.contains("both processes agree: 0 words, 0 different"), "{out}");
    }
}

#[test]
fn bad_arguments_are_told() {
    let dir = Dir::new("wordcount-bad");
    let path = dir.0.to_str().unwrap();
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("usage:"));
    let (code, out, err) = run(&[path, "/no/such/file", "/dev/null"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("/no/such/file: No such file"), "{err}");
    assert!(err.contains("/dev/null: neither a file nor a directory"), "{err}");
    assert_eq!(run(&["--top"]).0, Some(2));
    let (code, _, err) = run_with(&[("HSHM_BACKEND", "private")], &[path]);
    assert_eq!(code, Some(1));
    assert!(err.contains("private memory"), "{err}");
}

#[test]
fn the_reader_believes_nothing() {
    let largest = "18446744073709551615";
    for args in [
        &["--reader"][..],
        &["--reader", "x"],
        &["--reader", "", ""],
        &["--reader", "hshm:1:1:1:1:1", "1"],
        &["--reader", largest, largest],
        &["--reader", "hshm:1:1:1:1:1", "ffffffffffffffff:ffffffffffffffff"],
        &["--reader", "hshm:4294967295:-1:ffffffffffffffff:0:0", "0:0"],
    ] {
        let (code, _, err) = run(args);
        assert!(matches!(code, Some(1 | 2)), "{args:?}: {code:?}");
        assert!(err.starts_with("wordcount: "), "{args:?}: {err}");
    }
    // A heap that is there (this process's would be none: it does not run on hshm), bad pointers.
    let region = <hshm::MemfdBackend as hshm::Backend>::create(
        "",
        &hshm::RegionOptions::new().capacity(1 << 20),
    )
    .unwrap();
    let (token, id) = (region.token().unwrap().to_string(), region.id().to_bits());
    for offset in [0, 1, 8, 4096, (1 << 20) - 8, (1 << 20) - 104, 1 << 20, u64::MAX - 1, u64::MAX] {
        let (code, _, err) = run(&["--reader", &token, &format!("{id:x}:{offset:x}")]);
        assert!(matches!(code, Some(1 | 3)), "{offset:#x}: {code:?} {err}");
    }
}
