//! Programs in C and C++ under preloaded libraries: those of `native/`, built with the system's
//! compilers, and programs that are installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::package;
use crate::peers::{Workload, cargo, installed};

/// What runs a workload instead of a peer's own binary.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// Takes options and says what it came to, as the binaries do.
    Built(PathBuf),
    /// Anything else: the launcher, and the command it runs.
    Launched(PathBuf, Vec<String>),
}

/// Name, source in `native/`, whether it has threads, what it is.
const BUILT: &[(&str, &str, &str)] = &[
    ("cfrac", "cfrac.c", "continued fractions: tiny numbers, very short lives"),
    ("espresso", "espresso.c", "logic minimisation: small vectors, nested lives"),
    ("barnes", "barnes.c", "gravity in an octree: the layout of small nodes"),
    ("alloc-test", "alloc_test.cc", "random replacement, Pareto sizes, everything written"),
    ("larson", "larson.c", "server threads that inherit their predecessor's blocks"),
    ("mstress", "mstress.c", "phases of threads, exchange, survivors"),
    ("rptest", "rptest.c", "16 B to 16 KiB, part freed by the neighbour thread"),
    ("xmalloc", "xmalloc.c", "some threads only allocate, the others only free"),
    ("cache-scratch", "cache_lines.c", "passive false sharing"),
    ("cache-thrash", "cache_lines.c", "active false sharing"),
    ("glibc-simple", "simple.c", "hundreds of one size, freed in order"),
    ("glibc-thread", "simple.c", "threads that replace blocks of mixed sizes"),
    ("sh6", "batches.c", "overlapping batches of small blocks"),
    ("sh8", "batches.c", "the same, half of each batch freed by another thread"),
    ("malloc-large", "large.c", "zeroed buffers of 5 to 25 MiB"),
    ("churn", "churn.c", "thousands of short threads"),
    ("grow", "grow.c", "arrays and strings that grow by realloc"),
    ("containers", "containers.cc", "maps, strings, documents, regular expressions"),
    ("script", "script.c", "an interpreter with counted references"),
];

/// Programs that may be installed, run in `native/inputs/`.
const INSTALLED: &[(&str, &[&str])] = &[
    ("true", &["true"]),
    ("gcc", &["gcc", "-O1", "-S", "functions.c", "-o", "/dev/null"]),
    ("g++", &["g++", "-std=c++17", "-S", "templates.cc", "-o", "/dev/null"]),
    ("z3", &["z3", "bits.smt2"]),
    (
        "ghostscript",
        &[
            "gs",
            "-q",
            "-dBATCH",
            "-dNOPAUSE",
            "-sDEVICE=pgmraw",
            "-r60",
            "-sOutputFile=/dev/null",
            "pages.ps",
        ],
    ),
    ("python3", &["python3", "work.py"]),
    ("sqlite3", &["sqlite3", "-init", "work.sql", ":memory:"]),
    ("perl", &["perl", "work.pl"]),
    ("node", &["node", "work.js"]),
    ("bash", &["bash", "work.sh"]),
    ("git", &["git", "log", "-300", "--stat", "--format=%H"]),
];

/// Everything of this kind that can be run here, and what cannot, with the reason.
pub(crate) fn workloads() -> (Vec<Workload>, Vec<(String, String)>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let workload = |name: &str, group: &str, about: &str, program: Program| Workload {
        name: format!("{}{name}", if group == "native" { "c-" } else { "run-" }),
        group: group.into(),
        about: about.into(),
        by_default: true,
        program: Some(program),
    };
    for (name, source, about) in BUILT {
        match compile(name, source, &[]) {
            Ok(program) => found.push(workload(name, "native", about, Program::Built(program))),
            Err(reason) => missing.push((format!("c-{name}"), reason)),
        }
    }
    match compile("launch", "launch.c", &["-static"]) {
        Ok(launcher) => {
            for (name, command) in INSTALLED {
                if !installed(command[0]) {
                    missing
                        .push((format!("run-{name}"), format!("{} is not installed", command[0])));
                    continue;
                }
                if *name == "git" && !package().join("../.git").exists() {
                    missing.push(("run-git".into(), "this is no clone".into()));
                    continue;
                }
                let words = command.iter().map(|word| word.to_string()).collect();
                let program = Program::Launched(launcher.clone(), words);
                found.push(workload(name, "programs", &command.join(" "), program));
            }
        }
        Err(reason) => missing.push(("programs".into(), reason)),
    }
    (found, missing)
}

/// The folder in which installed programs run.
pub(crate) fn inputs() -> PathBuf {
    package().join("native/inputs")
}

/// Compiles a source of `native/` to an executable.
fn compile(name: &str, source: &str, options: &[&str]) -> Result<PathBuf, String> {
    let source = package().join("native").join(source);
    let output = folder()?.join(name);
    let mut words = vec!["-O2", "-pthread", "-o"];
    words.extend(output.to_str());
    words.extend(source.to_str());
    words.extend(options);
    words.push("-lm");
    let cpp = source.extension().is_some_and(|extension| extension == "cc");
    run(if cpp { "c++" } else { "cc" }, if cpp { &["-std=c++17"] } else { &[] }, &words)?;
    Ok(output)
}

/// Sources of allocators that the peers' crates carry, built as libraries to be preloaded: package,
/// folder in it, compiler options and sources.
const LIBRARIES: &[(&str, &str, &str, &[&str])] = &[
    ("mimalloc3", "libmimalloc-sys", "c_src/mimalloc/v3", MIMALLOC),
    ("mimalloc2", "libmimalloc-sys", "c_src/mimalloc/v2", MIMALLOC),
    (
        "rpmalloc",
        "rpmalloc-sys",
        "rpmalloc/rpmalloc",
        &["-D_GNU_SOURCE", "-DENABLE_PRELOAD=1", "-DENABLE_OVERRIDE=1", "rpmalloc.c"],
    ),
    (
        "snmalloc",
        "snmalloc-sys",
        "upstream/src",
        &[
            "-std=c++20",
            "-mcx16",
            "-mprfchw",
            "-fvisibility=hidden",
            "-DSNMALLOC_USE_CXX11_DESTRUCTORS",
            "-DSNMALLOC_EXPORT=__attribute__((visibility(\"default\")))",
            "-DSNMALLOC_USE_WAIT_ON_ADDRESS=1",
            "-DSNMALLOC_CHECK_LOADS=false",
            "-DSNMALLOC_PAGEID=false",
            "-I.",
            "-static-libstdc++",
            "snmalloc/override/malloc.cc",
            "snmalloc/override/new.cc",
        ],
    ),
];

const MIMALLOC: &[&str] = &[
    "-fvisibility=hidden",
    "-DMI_SHARED_LIB",
    "-DMI_SHARED_LIB_EXPORT",
    "-DMI_MALLOC_OVERRIDE",
    "-Iinclude",
    "src/static.c",
];

/// Builds such a library.
pub(crate) fn library(name: &str) -> Result<PathBuf, String> {
    let (_, package, inside, words) =
        LIBRARIES.iter().find(|(known, ..)| *known == name).ok_or("no such library")?;
    let sources = package_folder(package)?.join(inside);
    let output = folder()?.join(format!("lib{name}.so"));
    let cpp = words.iter().any(|word| word.ends_with(".cc"));
    let mut command = Command::new(if cpp { "c++" } else { "cc" });
    command.args(["-O3", "-DNDEBUG", "-fPIC", "-shared", "-w", "-fomit-frame-pointer"]);
    command.args(["-ftls-model=initial-exec", "-fno-builtin-malloc"]).args(*words);
    command.arg("-o").arg(&output).arg("-pthread").current_dir(sources);
    finish(command).map(|()| output)
}

/// Where cargo keeps the sources of a package that this one depends on.
fn package_folder(name: &str) -> Result<PathBuf, String> {
    let output = cargo(&["metadata", "--format-version", "1", "--all-features"])?;
    let metadata: serde_json::Value =
        serde_json::from_str(&output).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let manifest =
        packages.iter().find(|p| p["name"] == name).and_then(|p| p["manifest_path"].as_str());
    let manifest = manifest.ok_or_else(|| format!("cargo knows no package {name}"))?;
    Ok(Path::new(manifest).parent().unwrap_or(Path::new("/")).into())
}

/// Where all of this is built: beside the harness.
fn folder() -> Result<PathBuf, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = here.ancestors().nth(1).unwrap_or(package()).join("native");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

fn run(compiler: &str, first: &[&str], words: &[&str]) -> Result<(), String> {
    let mut command = Command::new(compiler);
    command.args(first).args(words);
    finish(command)
}

fn finish(mut command: Command) -> Result<(), String> {
    let compiler = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{compiler}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = errors.lines().find(|line| line.contains("error")).unwrap_or("no reason given");
    Err(format!("does not build: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_agree_with_themselves_and_take_no_nonsense() {
        if !installed("cc") || !installed("c++") {
            return;
        }
        let (found, missing) = workloads();
        assert!(missing.iter().all(|(name, _)| name.starts_with("run-")), "{missing:?}");
        assert_eq!(found.iter().filter(|w| w.group == "native").count(), BUILT.len());
        for workload in found {
            let Some(Program::Built(program)) = workload.program else { continue };
            let say = |words: &[&str]| Command::new(&program).args(words).output().unwrap();
            for threads in ["threads=1", "threads=3"] {
                let checksum = || {
                    let output = say(&[threads, "scale=0.01"]);
                    let said = String::from_utf8_lossy(&output.stdout).into_owned();
                    assert!(output.status.success(), "{}: {said}", workload.name);
                    said.split_whitespace().find(|w| w.starts_with("checksum")).unwrap().to_string()
                };
                assert_eq!(checksum(), checksum(), "{}, {threads}", workload.name);
            }
            for bad in ["threads=0", "threads=65", "scale=0", "scale=x", "colour=1"] {
                assert_eq!(say(&[bad]).status.code(), Some(2), "{} {bad}", workload.name);
            }
        }
    }
}
