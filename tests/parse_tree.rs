//! The `parse_tree` example, run as a user would: one process parses, another walks the tree.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::Dir;

/// The example, beside this test's own directory; built where less than all was asked for.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let program = profile.join("examples").join("parse_tree");
    if !program.exists() {
        let name = profile.file_name().unwrap().to_str().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "parse_tree", "--profile"]);
        build.arg(if name == "debug" { "dev" } else { name });
        build.arg("--target-dir").arg(profile.parent().unwrap());
        assert!(build.status().unwrap().success(), "cannot build the example");
    }
    program
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = Command::new(program()).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn both_processes_walk_the_same_tree() {
    let dir = Dir::new("parse-tree");
    let source = "// none\nfn f<'a>(x: &'a [u8; 2]) -> char { /* { /* ( */ */ '(' }\n\
                  const R: &str = r#\"a \" } b\"#; const B: u8 = b'\\''; let r#in = \"\\\"{\";";
    fs::write(dir.file("a.rs"), source).unwrap();
    fs::write(dir.file("b.rs"), "").unwrap();
    fs::write(dir.file("c.txt"), "((").unwrap();
    let (code, out, err) = run(&[dir.0.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("parsed  2 files"), "{out}");
    let lines: Vec<&str> = out.lines().filter_map(|line| line.get(8..)).collect();
    assert_eq!(lines[1], lines[2]);
    assert!(lines[1].starts_with("files 3, (..) 1, [..] 1, {..} 1, "), "{out}");
    assert!(lines[1].contains("texts 4, "), "{out}");
}

#[test]
fn what_is_malformed_is_told_and_left_out() {
    let dir = Dir::new("parse-tree-bad");
    for (name, source, what) in [
        ("a.rs", "fn f() {\n}\n}", "line 3: a bracket has no beginning"),
        ("b.rs", "\n(", "line 2: a bracket has no end"),
        ("c.rs", "\n\n\"abc", "line 3: a text has no end"),
        ("d.rs", "/* /* */", "line 1: a comment has no end"),
        ("e.rs", "r##\"abc\"#", "line 1: a raw text has no end"),
    ] {
        fs::write(dir.file(name), source).unwrap();
        let (code, out, err) = run(&[&dir.file(name)]);
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(err.contains(what), "{name}: {err}");
        assert!(out.contains("parsed  0 files") && out.contains("1 refused"), "{out}");
    }
    let (code, _, err) = run(&[&dir.file("nothing")]);
    // What is neither a folder nor a source is passed over; a token that is none is an error.
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let (code, _, err) = run(&["--read", "no token"]);
    assert!(code == Some(1) && err.contains("not a valid segment name"), "{err}");
}
