//! A recursive-descent parser that keeps its tree in an arena in shared memory and its temporaries
//! in scratch; another process then walks the same tree where it lies.
//!
//! ```sh
//! cargo run --release --example parse_tree            # all sources of this crate
//! cargo run --release --example parse_tree -- DIR...  # all .rs files below these
//! ```
//!
//! It reads Rust sources as *token trees*: names, numbers, texts and signs, and groups of them in
//! brackets. A node refers to its children and its text by offsets, so that the tree means the same
//! at any address.
#![allow(unsafe_code)] // references into shared memory

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;
use std::{env, fmt, fs};

use hshm::arena::{ArenaBuilder, ArenaReader, ArenaVec, RegionArena, scratch};
use hshm::{Backend, GIB, MemfdBackend, OffsetPtr, Region, RegionOptions, ShareToken, ShmSafe};

/// What a node is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File = 0,
    Round = 1,
    Square = 2,
    Curly = 3,
    Name = 4,
    Number = 5,
    Text = 6,
    Sign = 7,
}

const KINDS: [&str; 8] = ["files", "(..)", "[..]", "{..}", "names", "numbers", "texts", "signs"];

/// A node of the tree. Its text is for leaves and files (their paths).
#[repr(C)]
#[derive(Clone, Copy)]
struct Node {
    kind: u32,
    line: u32,
    text: OffsetPtr<u8>,
    text_len: u64,
    children: OffsetPtr<Node>,
    child_count: u64,
}

// SAFETY: numbers and offsets in a fixed layout.
unsafe impl ShmSafe for Node {}

/// What is wrong with a source.
#[derive(Debug)]
struct Malformed {
    line: u32,
    what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

struct Parser<'t> {
    source: &'t [u8],
    at: usize,
    line: u32,
    tree: &'t RegionArena,
}

impl<'t> Parser<'t> {
    fn peek(&self, ahead: usize) -> u8 {
        self.source.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { line: self.line, what }
    }

    fn step(&mut self) {
        self.line += u32::from(self.peek(0) == b'\n');
        self.at += 1;
    }

    /// Spaces and comments, which may nest.
    fn skip(&mut self) -> Result<(), Malformed> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b' ' | b'\t' | b'\r' | b'\n', _) => self.step(),
                (b'/', b'/') => {
                    while self.at < self.source.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let mut depth = 0;
                    loop {
                        match (self.peek(0), self.peek(1)) {
                            (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                            (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                            _ if self.at >= self.source.len() => {
                                return Err(self.wrong("a comment has no end"));
                            }
                            _ => self.step(),
                        }
                        if depth == 0 {
                            break;
                        }
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    /// Everything up to the bracket that ends the group, or the end of the file. The children are
    /// gathered in scratch, as nobody knows how many they will be, and copied once they are.
    fn group(&mut self, kind: Kind, end: Option<u8>) -> Result<Node, Malformed> {
        let line = self.line;
        let temp = scratch(&[self.tree]);
        let mut children = ArenaVec::new_in(&temp);
        loop {
            self.skip()?;
            match self.peek(0) {
                _ if self.at >= self.source.len() => {
                    if end.is_some() {
                        return Err(Malformed { line, what: "a bracket has no end" });
                    }
                    break;
                }
                byte if Some(byte) == end => {
                    self.at += 1;
                    break;
                }
                b')' | b']' | b'}' => return Err(self.wrong("a bracket has no beginning")),
                _ => children.push(self.token()?),
            }
        }
        let kept = self.tree.push_slice(&children);
        Ok(Node {
            kind: kind as u32,
            line,
            text: OffsetPtr::NULL,
            text_len: 0,
            child_count: kept.len() as u64,
            children: kept.first().map_or(OffsetPtr::NULL, |first| self.offset(first)),
        })
    }

    fn offset<T>(&self, value: &T) -> OffsetPtr<T> {
        self.tree.offset_of(value).expect("it was pushed into the tree's arena")
    }

    fn leaf(&self, kind: Kind, line: u32, start: usize) -> Node {
        let text = self.tree.push_slice(&self.source[start..self.at]);
        Node {
            kind: kind as u32,
            line,
            text: text.first().map_or(OffsetPtr::NULL, |first| self.offset(first)),
            text_len: text.len() as u64,
            children: OffsetPtr::NULL,
            child_count: 0,
        }
    }

    fn token(&mut self) -> Result<Node, Malformed> {
        let (start, line) = (self.at, self.line);
        let kind = match self.peek(0) {
            b'(' | b'[' | b'{' => {
                self.at += 1;
                return match self.source[start] {
                    b'(' => self.group(Kind::Round, Some(b')')),
                    b'[' => self.group(Kind::Square, Some(b']')),
                    _ => self.group(Kind::Curly, Some(b'}')),
                };
            }
            b'"' => self.quoted()?,
            b'\'' => self.character_or_lifetime()?,
            b'0'..=b'9' => {
                self.word();
                Kind::Number
            }
            byte if is_word(byte) => {
                self.word();
                let prefix = &self.source[start..self.at];
                match self.peek(0) {
                    b'"' | b'#' if matches!(prefix, b"r" | b"br" | b"cr") => self.raw()?,
                    b'"' if matches!(prefix, b"b" | b"c") => self.quoted()?,
                    b'\'' if prefix == b"b" => self.character_or_lifetime()?,
                    _ => Kind::Name,
                }
            }
            _ => {
                self.at += 1;
                Kind::Sign
            }
        };
        Ok(self.leaf(kind, line, start))
    }

    fn word(&mut self) {
        while is_word(self.peek(0)) {
            self.at += 1;
        }
    }

    fn quoted(&mut self) -> Result<Kind, Malformed> {
        self.at += 1;
        while self.peek(0) != b'"' {
            if self.peek(0) == b'\\' {
                self.step();
            }
            if self.at >= self.source.len() {
                return Err(self.wrong("a text has no end"));
            }
            self.step();
        }
        self.at += 1;
        Ok(Kind::Text)
    }

    /// `r"..."`, `r#"..."#`, or the raw name `r#name`; the prefix was read.
    fn raw(&mut self) -> Result<Kind, Malformed> {
        let mut signs = 0;
        while self.peek(signs) == b'#' {
            signs += 1;
        }
        self.at += signs;
        if self.peek(0) != b'"' {
            self.word();
            return Ok(Kind::Name);
        }
        loop {
            self.step();
            if self.at >= self.source.len() {
                return Err(self.wrong("a raw text has no end"));
            }
            if self.peek(0) == b'"' && (1..=signs).all(|sign| self.peek(sign) == b'#') {
                self.at += 1 + signs;
                return Ok(Kind::Text);
            }
        }
    }

    fn character_or_lifetime(&mut self) -> Result<Kind, Malformed> {
        self.at += 1;
        if self.peek(0) == b'\\' {
            self.at += 2;
            while self.peek(0) != b'\'' {
                if self.at >= self.source.len() {
                    return Err(self.wrong("a character has no end"));
                }
                self.step();
            }
            self.at += 1;
            return Ok(Kind::Text);
        }
        // One character, of up to four bytes, and a quote; anything else is a lifetime.
        let bytes = match self.peek(0) {
            0..0x80 => 1,
            0x80..0xE0 => 2,
            0xE0..0xF0 => 3,
            _ => 4,
        };
        if self.peek(bytes) == b'\'' {
            self.at += bytes + 1;
            return Ok(Kind::Text);
        }
        self.word();
        Ok(Kind::Name)
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// What can be said of a tree by walking it.
#[derive(Default, PartialEq, Eq)]
struct Summary {
    count: [u64; 8],
    deepest: u32,
    text_bytes: u64,
    checksum: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in KINDS.iter().zip(self.count) {
            write!(f, "{kind} {count}, ")?;
        }
        let Summary { deepest, text_bytes, checksum, .. } = self;
        write!(f, "depth {deepest}, {text_bytes} bytes of text, checksum {checksum:016x}")
    }
}

fn walk(reader: &ArenaReader, node: &Node, depth: u32, sum: &mut Summary) -> hshm::Result<()> {
    sum.count[node.kind as usize % 8] += 1;
    sum.deepest = sum.deepest.max(depth);
    sum.text_bytes += node.text_len;
    let mut mix = |value: u64| sum.checksum = (sum.checksum ^ value).wrapping_mul(0x0100_0000_01B3);
    mix(u64::from(node.kind) << 32 | u64::from(node.line));
    if !node.text.is_null() {
        // SAFETY: the text of a published node, which nobody changes.
        let text = unsafe { reader.get_slice(node.text, node.text_len as usize)? };
        text.iter().for_each(|&byte| mix(u64::from(byte)));
    }
    if !node.children.is_null() {
        // SAFETY: the children of a published node, which nobody changes.
        let children = unsafe { reader.get_slice(node.children, node.child_count as usize)? };
        for child in children {
            walk(reader, child, depth + 1, sum)?;
        }
    }
    Ok(())
}

fn summary(region: Region) -> Result<Summary, Box<dyn Error>> {
    let reader = ArenaReader::attach(region)?;
    let root = reader.root::<Node>().ok_or("nothing was published")?;
    let mut sum = Summary::default();
    // SAFETY: the writer published a node there, and leaves the tree alone.
    walk(&reader, unsafe { reader.get(root)? }, 0, &mut sum)?;
    Ok(sum)
}

fn sources(path: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::path);
        for entry in entries {
            // Links could lead round in circles.
            if !entry.file_type()?.is_symlink() {
                sources(&entry.path(), found)?;
            }
        }
    } else if path.extension().is_some_and(|end| end == "rs") {
        found.push(path.to_owned());
    }
    Ok(())
}

fn write(paths: &[String]) -> Result<bool, Box<dyn Error>> {
    let mut files = Vec::new();
    for path in paths {
        sources(Path::new(path), &mut files).map_err(|error| format!("{path}: {error}"))?;
    }
    let region = MemfdBackend::create("tree", &RegionOptions::new().capacity(64 * GIB))?;
    let tree = RegionArena::create(region.clone(), &ArenaBuilder::new().name("tree"))?;
    let (start, mut bytes, mut refused) = (Instant::now(), 0, 0);
    let temp = scratch(&[&tree]);
    let mut roots = ArenaVec::new_in(&temp);
    for file in &files {
        let source = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut parser = Parser { source: &source, at: 0, line: 1, tree: &tree };
        match parser.group(Kind::File, None) {
            Ok(mut node) => {
                let path = tree.push_str(&file.to_string_lossy());
                node.text_len = path.len() as u64;
                node.text = tree.offset_of(&path.as_bytes()[0])?;
                roots.push(node);
                bytes += source.len();
            }
            Err(error) => {
                refused += 1;
                eprintln!("{}: {error}", file.display());
            }
        }
    }
    let children = tree.push_slice(&roots);
    let root = tree.push_value(Node {
        kind: Kind::File as u32,
        line: 0,
        text: OffsetPtr::NULL,
        text_len: 0,
        children: children.first().map_or(Ok(OffsetPtr::NULL), |first| tree.offset_of(first))?,
        child_count: children.len() as u64,
    });
    tree.set_root(tree.offset_of(root)?);
    let published = tree.publish();
    let time = start.elapsed();
    println!(
        "parsed  {} files, {bytes} bytes in {:.1} ms; the tree takes {published} bytes; {refused} \
         refused",
        roots.len(),
        time.as_secs_f64() * 1e3,
    );
    let own = summary(region.clone())?.to_string();
    println!("here    {own}");

    let token = region.token()?.to_string();
    let output = Command::new(env::current_exe()?).args(["--read", &token]).output()?;
    let there = String::from_utf8_lossy(&output.stdout);
    print!("{there}{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.status.success() && there.trim_end().strip_prefix("there   ") == Some(&own))
}

fn read(token: &str) -> Result<bool, Box<dyn Error>> {
    let token: ShareToken = token.parse()?;
    // At another address than the writer's, which offsets do not mind.
    let options = RegionOptions::new().read_only(true).relocate(true);
    println!("there   {}", summary(Region::attach_token(&token, &options)?)?);
    Ok(true)
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.as_slice() {
        [read_it, token] if read_it == "--read" => read(token),
        [] => write(&[concat!(env!("CARGO_MANIFEST_DIR"), "/src").to_owned()]),
        paths => write(paths),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("the two processes see different trees");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("parse_tree: {error}");
            ExitCode::FAILURE
        }
    }
}
