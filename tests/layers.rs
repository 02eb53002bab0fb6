//! The layers of `src/`, as a test: who may use whom, who may name the system, the machine's
//! atomics and `unsafe`.
//!
//! A layer is a folder. It may use itself and the folders before it in [`LAYERS`]; the root,
//! `lib.rs`, is no layer and uses what it likes. The check reads tokens, so what comments and
//! strings say does not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up.
const LAYERS: [&str; 13] = [
    "base",
    "sync",
    "os",
    "ptr",
    "region",
    "heap",
    "alloc",
    "arena",
    "containers",
    "share",
    "manager",
    "global",
    "observe",
];

/// The one file outside `os` that calls the C library, and says why.
const FUTEX: &str = "sync/futex.rs";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Token {
    /// A name or a keyword.
    Name(String),
    /// `::`
    Path,
    /// Any other character that is not white space.
    Sign(char),
}

struct Placed {
    token: Token,
    line: usize,
    /// Inside an item that only tests have.
    test: bool,
}

/// The tokens of Rust text, without comments and literals.
fn tokens(text: &str) -> Vec<(Token, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let start = at;
        match chars[at] {
            c if c.is_whitespace() => at += 1,
            '/' if peek(at + 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if peek(at + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (peek(at), peek(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 || at >= chars.len() {
                        break;
                    }
                }
            }
            '"' => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    at += if chars[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A character: quoted, and closed after one or after an escape. Otherwise a lifetime.
            '\'' if peek(at + 1) == '\\' => {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            '\'' if peek(at + 2) == '\'' => at += 3,
            c if c.is_alphanumeric() || c == '_' => {
                while peek(at).is_alphanumeric() || peek(at) == '_' {
                    at += 1;
                }
                let word: String = chars[start..at].iter().collect();
                let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
                let raw = matches!(word.as_str(), "r" | "br" | "cr");
                if raw && peek(at + hashes) == '"' {
                    let end: Vec<char> = format!("\"{}", "#".repeat(hashes)).chars().collect();
                    at += hashes + 1;
                    while at < chars.len() && !chars[at..].starts_with(&end) {
                        at += 1;
                    }
                    at += end.len();
                } else if !(peek(at) == '"' && matches!(word.as_str(), "b" | "c")) {
                    found.push((Token::Name(word), line));
                }
            }
            ':' if peek(at + 1) == ':' => {
                found.push((Token::Path, line));
                at += 2;
            }
            sign => {
                found.push((Token::Sign(sign), line));
                at += 1;
            }
        }
        line += chars[start..at.min(chars.len())].iter().filter(|&&c| c == '\n').count();
    }
    found
}

fn name(token: Option<&Placed>) -> Option<&str> {
    match token.map(|placed| &placed.token) {
        Some(Token::Name(name)) => Some(name),
        _ => None,
    }
}

fn is_sign(token: Option<&Placed>, sign: char) -> bool {
    token.is_some_and(|placed| placed.token == Token::Sign(sign))
}

/// The place after the bracket that closes the one at `open`.
fn closing(tokens: &[Placed], open: usize) -> usize {
    let mut depth = 0;
    for (at, placed) in tokens.iter().enumerate().skip(open) {
        match placed.token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Tokens with what is only there for tests marked: items under `cfg(test)` or `cfg(all(test, ..))`.
fn read(text: &str, test_file: bool) -> Vec<Placed> {
    let mut all: Vec<Placed> = tokens(text)
        .into_iter()
        .map(|(token, line)| Placed { token, line, test: test_file })
        .collect();
    let mut at = 0;
    while at < all.len() {
        if !(is_sign(all.get(at), '#') && is_sign(all.get(at + 1), '[')) {
            at += 1;
            continue;
        }
        let end = closing(&all, at + 1);
        let words: Vec<&str> = (at..end).filter_map(|at| name(all.get(at))).collect();
        let for_tests = words.first() == Some(&"cfg")
            && matches!(words.get(1..3), Some(["all", "test"]) | Some(["test", ..]))
            || words == ["cfg", "test"];
        if for_tests {
            // The item goes up to its block or its semicolon.
            let mut item = end;
            while item < all.len() {
                match all[item].token {
                    Token::Sign(';') => break,
                    Token::Sign('{') => {
                        item = closing(&all, item) - 1;
                        break;
                    }
                    Token::Sign('(' | '[') => item = closing(&all, item),
                    _ => item += 1,
                }
            }
            let past = (item + 1).min(all.len());
            for placed in &mut all[at..past] {
                placed.test = true;
            }
        }
        at = end;
    }
    all
}

/// The module that a file is, from the root: `heap/buddy/mod.rs` is `[heap, buddy]`.
fn module_of(file: &str) -> Vec<String> {
    let mut parts: Vec<String> =
        file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// The first names of what stands at `at`: one for a path, several for a group in braces.
fn heads(tokens: &[Placed], at: usize) -> Vec<String> {
    if let Some(name) = name(tokens.get(at)) {
        return vec![name.to_owned()];
    }
    let mut found = Vec::new();
    if is_sign(tokens.get(at), '{') {
        let (end, mut at, mut fresh) = (closing(tokens, at) - 1, at + 1, true);
        while at < end {
            match &tokens[at].token {
                Token::Name(name) if fresh => {
                    found.push(name.clone());
                    fresh = false;
                }
                Token::Sign(',') => fresh = true,
                Token::Sign('{') => at = closing(tokens, at) - 1,
                _ => {}
            }
            at += 1;
        }
    }
    found
}

/// The names right below the crate's root that a file refers to, by `crate::` or by climbing up
/// with `super::`, and the lines.
fn roots(file: &str, tokens: &[Placed]) -> Vec<(String, usize, bool)> {
    let mut module = module_of(file);
    // Inline modules, and the depth of braces at which each began.
    let (mut inline, mut depth) = (Vec::new(), 0usize);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let Placed { token, line, test } = &tokens[at];
        let follows = |at: usize| tokens.get(at).is_some_and(|next| next.token == Token::Path);
        match token {
            Token::Sign('{') => depth += 1,
            Token::Sign('}') => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
            }
            Token::Name(word) if word == "mod" && is_sign(tokens.get(at + 2), '{') => {
                if let Some(inner) = name(tokens.get(at + 1)) {
                    module.push(inner.to_owned());
                    inline.push(depth);
                }
            }
            Token::Name(word) if word == "crate" && follows(at + 1) => {
                found.extend(heads(tokens, at + 2).into_iter().map(|name| (name, *line, *test)));
            }
            Token::Name(word) if word == "super" && follows(at + 1) => {
                let mut up = 1;
                while name(tokens.get(at + 2 * up)) == Some("super") && follows(at + 2 * up + 1) {
                    up += 1;
                }
                if up >= module.len() {
                    let names = heads(tokens, at + 2 * up).into_iter();
                    found.extend(names.map(|name| (name, *line, *test)));
                }
                at += 2 * up - 1;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Everything in one file that is against the rules. `file` is its path below `src`.
fn check(file: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let tokens = read(text, file.ends_with("/tests.rs"));
    let folder = file.split_once('/').map(|(folder, _)| folder);
    let mut complain = |line: usize, what: String| wrong.push(format!("src/{file}:{line}: {what}"));

    if let Some(folder) = folder {
        let Some(layer) = LAYERS.iter().position(|&layer| layer == folder) else {
            return vec![format!("src/{file}: `{folder}` is no layer")];
        };
        for (used, line, test) in roots(file, &tokens) {
            match LAYERS.iter().position(|&layer| layer == used) {
                Some(below) if below > layer => {
                    complain(line, format!("`{folder}` uses `{used}`, a layer above it"));
                }
                None if !test => {
                    complain(line, format!("`{used}` from the root instead of from its layer"));
                }
                _ => {}
            }
        }
    } else if file != "lib.rs" {
        complain(1, "a file outside the layers".to_owned());
    }

    let is_path = |at: usize| tokens.get(at).is_some_and(|next| next.token == Token::Path);
    let (mut has_unsafe, mut atomics) = (None, BTreeSet::new());
    for (at, placed) in tokens.iter().enumerate() {
        let Token::Name(word) = &placed.token else { continue };
        match word.as_str() {
            "libc" if folder != Some("os") && file != FUTEX && !placed.test => {
                complain(placed.line, "names `libc`; only `os` may".to_owned());
            }
            "core" | "std" if is_path(at + 1) && folder != Some("sync") && !placed.test => {
                let direct = name(tokens.get(at + 2)) == Some("sync")
                    && is_path(at + 3)
                    && heads(&tokens, at + 4).iter().any(|head| head == "atomic");
                let grouped = is_sign(tokens.get(at + 2), '{')
                    && heads(&tokens, at + 2).iter().any(|head| head == "sync");
                if direct || grouped {
                    atomics.insert(placed.line);
                }
            }
            "unsafe" => has_unsafe = has_unsafe.or(Some(placed.line)),
            _ => {}
        }
    }
    for line in atomics {
        complain(line, "names the machine's atomics; only `sync` may".to_owned());
    }

    let opt_in = |line: &str| {
        let (code, reason) = line.split_once("//").unwrap_or((line, ""));
        let code = code.trim();
        let attribute = code.starts_with("#[") || code.starts_with("#![");
        let allows = code.contains("allow(") && code.contains("unsafe_code");
        (attribute && allows).then(|| !reason.trim().is_empty())
    };
    let opted: Vec<_> =
        text.lines().enumerate().filter_map(|(n, l)| Some((n + 1, opt_in(l)?))).collect();
    for &(line, reasoned) in &opted {
        if !reasoned {
            complain(line, "allows `unsafe` without a reason beside it".to_owned());
        }
    }
    match has_unsafe {
        Some(line) if opted.is_empty() => {
            complain(line, "`unsafe` in a file that does not opt in".to_owned());
        }
        None if !opted.is_empty() => {
            complain(opted[0].0, "allows `unsafe` and has none".to_owned());
        }
        _ => {}
    }
    wrong
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_sources_keep_to_their_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    files.sort();
    assert!(files.len() > 40, "read {} files only", files.len());
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let file = path.strip_prefix(&src).unwrap().to_str().unwrap();
            check(file, &fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// One complaint, which contains `part`.
#[track_caller]
fn refused(file: &str, text: &str, part: &str) {
    let wrong = check(file, text);
    assert!(wrong.len() == 1 && wrong[0].contains(part), "{wrong:?}");
}

#[track_caller]
fn accepted(file: &str, text: &str) {
    assert_eq!(check(file, text), Vec::<String>::new());
}

#[test]
fn a_layer_uses_those_below_it_only() {
    accepted("heap/a.rs", "use crate::base::Error;\nfn f() { crate::region::g(super::b::h()) }");
    refused("heap/a.rs", "\nuse crate::alloc::Stack;", "src/heap/a.rs:2: `heap` uses `alloc`");
    refused("base/a.rs", "fn f() { crate::sync::g() }", "`base` uses `sync`");
    refused("ptr/a.rs", "use crate::{base::{Error, Result}, heap::Heap};", "`ptr` uses `heap`");
    refused("heap/a.rs", "use crate::Error;", "from the root");
    refused("extra/a.rs", "", "`extra` is no layer");
    refused("extra.rs", "", "outside the layers");
    accepted("lib.rs", "pub use crate::global::HshmAlloc;");
}

#[test]
fn climbing_up_counts_as_naming_the_root() {
    accepted("heap/buddy/a.rs", "use super::super::words::W;");
    refused("heap/buddy/a.rs", "use super::super::super::alloc::A;", "`heap` uses `alloc`");
    refused("heap/mod.rs", "use super::global::H;", "`heap` uses `global`");
    accepted("os/a.rs", "mod inner { use super::super::file; }\nuse super::mem;");
    refused("os/a.rs", "mod inner { }\nuse super::super::{ptr::P, sync::S};", "`os` uses `ptr`");
}

#[test]
fn comments_and_strings_do_not_count() {
    accepted(
        "base/a.rs",
        "//! See [`crate::global`].\n/* crate::os /* nested */ libc */\nfn f() {}",
    );
    accepted(
        "base/a.rs",
        r##"const A: &str = "crate::os \" libc"; const B: &str = r#"unsafe "#;"##,
    );
    accepted("base/a.rs", "fn f<'a>(c: char) -> bool { c == '\"' || c == '\\'' /* \" */ }");
    refused("base/a.rs", "fn f<'a>() { ('\"', crate::os::x()) }", "`base` uses `os`");
}

#[test]
fn the_system_and_the_atomics_have_their_places() {
    accepted("os/linux/a.rs", "fn f() { libc::abort() }");
    accepted(FUTEX, "fn f() { libc::abort() }");
    refused("sync/lock.rs", "use libc::abort;", "names `libc`");
    accepted("sync/atomic.rs", "pub(crate) use core::sync::atomic::AtomicU32;");
    refused("heap/a.rs", "use std::sync::atomic::AtomicU32;", "atomics");
    refused("heap/a.rs", "use core::{cell::Cell, sync::atomic::AtomicU32};", "atomics");
    refused("heap/a.rs", "use std::sync::{Arc, atomic::AtomicU32};", "atomics");
    accepted("heap/a.rs", "#[cfg(test)]\nmod tests { use std::sync::atomic::AtomicU32; }");
    accepted("heap/a.rs", "#[cfg(all(test, not(loom)))]\nmod tests { use core::sync::atomic::A; }");
    refused("heap/a.rs", "#[cfg(test)] mod tests { }\nuse core::sync::atomic::A;", "a.rs:2: names");
    refused("heap/a.rs", "#[cfg(not(test))]\nmod real { use core::sync::atomic::A; }", "atomics");
}

#[test]
fn unsafe_code_is_opted_into_with_a_reason() {
    accepted("os/a.rs", "#![allow(unsafe_code)] // calls mmap\nfn f() { unsafe { g() } }");
    accepted("os/a.rs", "#[allow(unsafe_code)] // calls mmap\nfn f() { unsafe { g() } }");
    refused("os/a.rs", "fn f() { unsafe { g() } }", "does not opt in");
    refused("os/a.rs", "#![allow(unsafe_code)]\nfn f() { unsafe { g() } }", "without a reason");
    refused("os/a.rs", "#![allow(unsafe_code)] // calls mmap\nfn f() {}", "has none");
}

/// What the linker's script names of this crate (`4hshm4heap4slab*4init`): modules, and what is in them.
fn named_by_the_linker(script: &str) -> BTreeSet<Vec<String>> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for pattern in script.split(|c: char| c.is_whitespace() || "()".contains(c)) {
        let Some((_, mut rest)) = pattern.split_once("4hshm") else { continue };
        let mut names = Vec::new();
        while let Some(digits) = rest.find(|c: char| !c.is_ascii_digit()) {
            let end = rest[..digits].parse().map_or(0, |length: usize| digits + length);
            match rest.get(digits..end).filter(|name| !name.is_empty() && name.chars().all(is_part))
            {
                Some(name) => {
                    names.push(name.to_string());
                    rest = &rest[end..];
                }
                None => rest = &rest[digits + 1..],
            }
        }
        found.insert(names);
    }
    found
}

/// What is called otherwise from now on would be put somewhere else without a word.
#[test]
fn the_linker_knows_what_there_is() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let named = named_by_the_linker(&fs::read_to_string(src.join("sections.ld")).unwrap());
    assert!(named.len() > 20, "{named:?}");
    let is_missing = |names: &Vec<String>| {
        let place = |count: usize| src.join(names[..count].join("/"));
        let is_module =
            |&count: &usize| place(count).is_dir() || place(count).with_extension("rs").is_file();
        let Some(module) = (1..=names.len()).rev().find(is_module) else {
            return !names.is_empty();
        };
        let mut files = vec![place(module).with_extension("rs")];
        if place(module).is_dir() {
            sources(&place(module), &mut files);
        }
        let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
        let words: BTreeSet<Token> = tokens(&text).into_iter().map(|(token, _)| token).collect();
        names[module..].iter().any(|name| !words.contains(&Token::Name(name.clone())))
    };
    let missing: Vec<_> = named.iter().filter(|names| is_missing(names)).collect();
    assert!(missing.is_empty(), "src/sections.ld names what there is not: {missing:?}");
    let text = "*(.text*4hshm4heap5chunk* .text*4core3cmp* .text*4hshm4heap7process*3fit1*)";
    let names = named_by_the_linker(text).into_iter().collect::<Vec<_>>();
    assert_eq!(names, [vec!["heap", "chunk"], vec!["heap", "process", "fit"]]);
}
