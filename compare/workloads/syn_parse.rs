//! Parses Rust sources with `syn`, a file at a time on a pool of threads, as code generators and
//! linters do: small boxes, vectors and strings by the million, freed as trees.
//!
//! The files are those below `corpus` (cargo's registry folder), picked evenly until `corpus_mb`
//! times `scale` are reached. Reading them is not timed. One operation is one byte of source.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::common::{Outcome, Params, mix, timed};

pub(crate) fn run(params: &Params) -> Result<Outcome, String> {
    let corpus = params.corpus.as_deref().ok_or("needs corpus=<a folder with Rust sources>")?;
    let sources = sources(corpus, (params.corpus_mb * params.scale * 1e6) as usize);
    if sources.is_empty() {
        return Err(format!("no Rust sources below {}", corpus.display()));
    }
    let bytes = sources.iter().map(String::len).sum::<usize>();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(params.threads)
        // Generated sources nest deeply.
        .stack_size(64 << 20)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(timed(bytes as u64, || {
        pool.install(|| {
            let sums = sources.par_iter().with_max_len(1).map(|source| parse(source));
            sums.reduce(|| 0, u64::wrapping_add)
        })
    }))
}

/// What is in a file, 0 for one that is no Rust source by itself.
fn parse(source: &str) -> u64 {
    let Ok(file) = syn::parse_file(source) else { return 0 };
    let items = file.items.iter().map(|item| match item {
        syn::Item::Fn(f) => f.block.stmts.len() as u64,
        syn::Item::Impl(i) => 1000 + i.items.len() as u64,
        syn::Item::Struct(s) => 2000 + s.fields.len() as u64,
        syn::Item::Enum(e) => 3000 + e.variants.len() as u64,
        _ => 4000,
    });
    items.fold(file.attrs.len() as u64, |sum, item| mix(sum.wrapping_add(item)))
}

/// Up to `limit` bytes of sources, in an order that depends on their names alone.
fn sources(corpus: &Path, limit: usize) -> Vec<String> {
    let mut paths = Vec::new();
    walk(corpus, &mut paths);
    let key = |path: &PathBuf| {
        let name = path.strip_prefix(corpus).unwrap_or(path).to_string_lossy().into_owned();
        (name.bytes().fold(7, |sum, byte| mix(sum ^ byte as u64)), name)
    };
    paths.sort_by_cached_key(key);
    let mut left = limit.max(1);
    let mut sources = Vec::new();
    for path in paths {
        if left == 0 {
            break;
        }
        if let Ok(source) = fs::read_to_string(path) {
            left = left.saturating_sub(source.len());
            sources.push(source);
        }
    }
    sources
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&path, found),
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|e| e == "rs") => {
                found.push(path);
            }
            _ => {}
        }
    }
}
