//! The allocators: binaries that are built, and libraries that are preloaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::native::{self, Program};
use crate::package;

/// An allocator that can be measured.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// Where it comes from, for people.
    pub(crate) how: String,
    pub(crate) executable: PathBuf,
    pub(crate) environment: Vec<(String, OsString)>,
}

impl Peer {
    /// Whether it can be put under programs that were built without it.
    pub(crate) fn is_for_any_program(&self) -> bool {
        self.name == "system" || self.library().is_some()
    }

    /// What has to be preloaded.
    pub(crate) fn library(&self) -> Option<&OsString> {
        self.environment.iter().find(|(key, _)| key == "LD_PRELOAD").map(|(_, library)| library)
    }
}

/// An allocator that cannot be measured here.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct LeftOut {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// A workload, as the binaries describe it.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) about: String,
    pub(crate) by_default: bool,
    /// What runs it, where the peer's own binary does not.
    pub(crate) program: Option<Program>,
}

/// Where a peer comes from.
enum Source {
    /// The binary `<0>`, built with the feature of that name if there is one, with tools that
    /// the build needs, run in an environment.
    Built(
        &'static str,
        Option<&'static str>,
        &'static [&'static str],
        &'static [(&'static str, &'static str)],
    ),
    /// A program in C++, compiled here.
    Compiled(&'static str),
    /// An installed library, over the `system` binary.
    Preloaded(&'static str),
    /// A library made of the sources that a peer's crate carries, over the `system` binary.
    Made(&'static str),
    /// The library that `cargo build --release` makes of this project, over the `system` binary.
    Own(&'static str),
}

const PEERS: &[(&str, &str, Source)] = &[
    ("hshm", "this crate, in shared memory", Source::Built("peer-hshm", None, &[], &[])),
    (
        "hshm-private",
        "this crate, in private memory",
        Source::Built("peer-hshm", None, &[], &[("HSHM_BACKEND", "private")]),
    ),
    ("system", "the C library's", Source::Built("peer-system", None, &[], &[])),
    (
        "mimalloc3",
        "crate mimalloc, version 3 of the allocator",
        Source::Built("peer-mimalloc3", Some("mimalloc3"), &["cc"], &[]),
    ),
    (
        "mimalloc2",
        "crate mimalloc, version 2 of the allocator",
        Source::Built("peer-mimalloc2", Some("mimalloc2"), &["cc"], &[]),
    ),
    (
        "snmalloc",
        "crate snmalloc-rs",
        Source::Built("peer-snmalloc", Some("snmalloc"), &["cmake", "c++", "make"], &[]),
    ),
    (
        "jemalloc",
        "crate tikv-jemallocator",
        Source::Built("peer-jemalloc", Some("jemalloc"), &["cc", "make"], &[]),
    ),
    ("rpmalloc", "crate rpmalloc", Source::Built("peer-rpmalloc", Some("rpmalloc"), &["cc"], &[])),
    ("pre-mimalloc", "preloaded", Source::Preloaded("libmimalloc.so.2")),
    ("pre-jemalloc", "preloaded", Source::Preloaded("libjemalloc.so.2")),
    ("pre-tcmalloc", "preloaded", Source::Preloaded("libtcmalloc_minimal.so.4")),
    ("pre-tbbmalloc", "preloaded", Source::Preloaded("libtbbmalloc_proxy.so.2")),
    ("pre-mimalloc3", "preloaded, built from the crate's sources", Source::Made("mimalloc3")),
    ("pre-mimalloc2", "preloaded, built from the crate's sources", Source::Made("mimalloc2")),
    ("pre-snmalloc", "preloaded, built from the crate's sources", Source::Made("snmalloc")),
    ("pre-rpmalloc", "preloaded, built from the crate's sources", Source::Made("rpmalloc")),
    ("pre-hshm", "preloaded, this crate as a C library", Source::Own("libhshm.so")),
    (
        SHARING_BASELINE,
        "this crate's ThreadLocalAllocator, in several processes",
        Source::Built("share-hshm", None, &[], &[]),
    ),
    (
        "share-rts",
        "crate rts-alloc, in several processes",
        Source::Built("share-rts", Some("rts"), &[], &[]),
    ),
    ("share-boost", "Boost.Interprocess, in several processes", Source::Compiled("boost")),
];

/// What the others are compared to in the group of several processes on one heap.
pub(crate) const SHARING_BASELINE: &str = "share-hshm";

/// Where distributions put libraries.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib64",
    "/usr/local/lib",
];

/// Builds and finds what is asked for (nothing named: everything), and the baseline. Fails where
/// nothing is left, or the baseline is missing.
pub(crate) fn prepare(
    wanted: &[String],
    baseline: &str,
) -> Result<(Vec<Peer>, Vec<LeftOut>), String> {
    if let Some(name) = wanted.iter().find(|n| !PEERS.iter().any(|(known, ..)| known == n)) {
        let known: Vec<_> = PEERS.iter().map(|(name, ..)| *name).collect();
        return Err(format!("{name}: no such allocator; there are {}", known.join(", ")));
    }
    let is_wanted = |name: &str| {
        // Nobody is compared to the wrong kind of peer.
        let sharing = |name: &str| name.starts_with("share-");
        let base = name == baseline && (!wanted.iter().all(|name| sharing(name)))
            || name == SHARING_BASELINE && wanted.iter().any(|name| sharing(name));
        wanted.is_empty() || base || wanted.iter().any(|wanted| wanted == name)
    };
    let mut builds = Builds::default();
    let (mut peers, mut left_out) = (Vec::new(), Vec::new());
    for (name, how, source) in PEERS.iter().filter(|(name, ..)| is_wanted(name)) {
        let found = builds.locate(source).and_then(|(executable, environment)| {
            let (name, how) = (name.to_string(), how.to_string());
            let mut peer = Peer { name, how, executable, environment };
            if let Some(library) = peer.library() {
                // The name without its folder: records are published.
                let name = Path::new(library).file_name().unwrap_or(library);
                peer.how = format!("{}: {}", peer.how, name.to_string_lossy());
            }
            workloads(&peer).map(|_| peer)
        });
        match found {
            Ok(peer) => peers.push(peer),
            Err(reason) if *name == baseline => return Err(format!("{name}: {reason}")),
            Err(reason) => left_out.push(LeftOut { name: name.to_string(), reason }),
        }
    }
    if !peers.iter().any(|peer| peer.name == baseline || peer.name == SHARING_BASELINE) {
        return Err(format!("{baseline}: no such allocator to compare to"));
    }
    Ok((peers, left_out))
}

/// What the binary can run. Shows too that it starts at all.
pub(crate) fn workloads(peer: &Peer) -> Result<Vec<Workload>, String> {
    let output = Command::new(&peer.executable)
        .arg("--list")
        .env_remove("LD_PRELOAD")
        .envs(peer.environment.iter().cloned())
        .output()
        .map_err(|error| error.to_string())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || errors.contains("cannot be preloaded") {
        return Err(format!("does not start ({}): {}", output.status, errors.trim()));
    }
    let parse = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [name, group, _, default, about] => Some(Workload {
            name: name.into(),
            group: group.into(),
            about: about.into(),
            by_default: default == "1",
            program: None,
        }),
        _ => None,
    };
    let listed =
        String::from_utf8_lossy(&output.stdout).lines().map(parse).collect::<Option<Vec<_>>>();
    listed.ok_or_else(|| "its list of workloads cannot be understood".to_string())
}

/// Binaries that were built in this run, or could not be.
#[derive(Default)]
struct Builds {
    done: Vec<(&'static str, Result<PathBuf, String>)>,
}

type Located = (PathBuf, Vec<(String, OsString)>);

impl Builds {
    fn locate(&mut self, source: &Source) -> Result<Located, String> {
        match *source {
            Source::Built(binary, feature, tools, environment) => {
                let executable = self.build(binary, feature, tools)?;
                let owned = environment.iter().map(|(k, v)| (k.to_string(), OsString::from(v)));
                Ok((executable, owned.collect()))
            }
            Source::Compiled(name) => Ok((self.compile(name)?, Vec::new())),
            Source::Preloaded(name) => {
                let library = LIBRARY_FOLDERS
                    .iter()
                    .map(|folder| Path::new(folder).join(name))
                    .find(|path| path.exists())
                    .ok_or_else(|| format!("{name} is not installed"))?;
                self.preloaded(library)
            }
            Source::Made(name) => {
                eprintln!("building lib{name}.so");
                self.preloaded(native::library(name)?)
            }
            Source::Own(name) => {
                let executable = self.build("peer-system", None, &[])?;
                // target/compare/peer-system
                let target = executable.ancestors().nth(2).unwrap_or(package());
                eprintln!("building {name}");
                cargo(&[
                    "build",
                    "--release",
                    "--package",
                    "hshm",
                    "--features",
                    "c-api",
                    "--lib",
                ])?;
                self.preloaded(target.join("release").join(name))
            }
        }
    }

    fn preloaded(&mut self, library: PathBuf) -> Result<Located, String> {
        let executable = self.build("peer-system", None, &[])?;
        Ok((executable, vec![("LD_PRELOAD".into(), library.into())]))
    }

    fn build(
        &mut self,
        binary: &'static str,
        feature: Option<&'static str>,
        tools: &[&str],
    ) -> Result<PathBuf, String> {
        if let Some((_, result)) = self.done.iter().find(|(done, _)| *done == binary) {
            return result.clone();
        }
        eprintln!("building {binary}");
        let result = build(binary, feature).map_err(|reason| {
            let missing: Vec<_> = tools.iter().copied().filter(|tool| !installed(tool)).collect();
            match missing[..] {
                [] => reason,
                _ => format!("not installed: {}; {reason}", missing.join(", ")),
            }
        });
        self.done.push((binary, result.clone()));
        result
    }
}

impl Builds {
    /// `sharing/<name>.cpp`, beside what cargo built.
    fn compile(&mut self, name: &str) -> Result<PathBuf, String> {
        let beside = self.build("share-hshm", None, &[])?;
        let program = beside.with_file_name(format!("share-{name}"));
        let source = package().join("sharing").join(format!("{name}.cpp"));
        eprintln!("building share-{name}");
        let output = Command::new("c++")
            .args(["-std=c++17", "-O3", "-DNDEBUG", "-o"])
            .args([&program, &source])
            .args(["-pthread", "-lrt"])
            .output()
            .map_err(|error| format!("c++: {error}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(program),
            false => {
                let line =
                    errors.lines().find(|line| line.contains("error")).unwrap_or("no reason");
                Err(format!("does not build (Debian: libboost-dev): {line}"))
            }
        }
    }
}

/// Each in a call of its own: the features exclude each other, and one failure stays one.
fn build(binary: &str, feature: Option<&str>) -> Result<PathBuf, String> {
    let mut words = vec!["build", "--profile", "compare", "--package", "hshm-compare"];
    words.extend(["--bin", binary, "--message-format", "json-render-diagnostics"]);
    if let Some(feature) = feature {
        words.extend(["--features", feature]);
    }
    cargo(&words)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == binary)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| "cargo named no executable".into())
}

/// Runs cargo; what it printed.
pub(crate) fn cargo(words: &[&str]) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(words)
        .current_dir(package())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let line =
            errors.lines().find(|line| line.starts_with("error")).unwrap_or("no reason given");
        return Err(format!("does not build: {line}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).exists())
}
