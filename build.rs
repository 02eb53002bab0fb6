//! Says whether the crate is built for AddressSanitizer, which a stable compiler does not tell it, and
//! how the C library is linked.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(hshm_asan)");
    let sanitizers = std::env::var("CARGO_CFG_SANITIZE").unwrap_or_default();
    if sanitizers.split(',').any(|name| name == "address") {
        println!("cargo::rustc-cfg=hshm_asan");
    }
    if std::env::var_os("CARGO_FEATURE_C_API").is_some() && is("OS", "linux") && is("ENV", "gnu") {
        link_unwinder();
        place_sections();
    }
}

/// Has the linker put what every program runs close together; see the script. Only where it is the one
/// that Rust comes with, or the system's: both know such scripts, others may not.
fn place_sections() {
    const SCRIPT: &str = "src/sections.ld";
    println!("cargo::rerun-if-changed={SCRIPT}");
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if std::env::var_os("RUSTC_LINKER").is_some()
        || ["fuse-ld", "linker"].iter().any(|word| flags.contains(word))
    {
        return;
    }
    let Ok(package) = std::env::var("CARGO_MANIFEST_DIR") else { return };
    let script = Path::new(&package).join(SCRIPT);
    // Segments begin where what the kernel maps at a time begins.
    for word in ["-T", &script.to_string_lossy(), "-z", "max-page-size=65536"] {
        println!("cargo::rustc-cdylib-link-arg=-Wl,{word}");
    }
}

fn is(what: &str, value: &str) -> bool {
    std::env::var(format!("CARGO_CFG_TARGET_{what}")).is_ok_and(|found| found == value)
}

/// Puts the unwinder, which Rust's standard library names, into the C library itself. Otherwise every
/// process that preloads it would load and initialise `libgcc_s.so` for nothing. Only where the system's
/// compiler is one for the target and has it.
fn link_unwinder() {
    let host = std::env::var("HOST");
    if host.is_err() || host != std::env::var("TARGET") {
        return;
    }
    let Ok(output) = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output() else {
        return;
    };
    let path = String::from_utf8_lossy(&output.stdout).trim().to_string();
    // A compiler that has none says the name only.
    if Path::new(&path).is_absolute() && Path::new(&path).exists() {
        // All of it: it comes after the shared one on the command line, which would be preferred.
        for word in ["--whole-archive", &path, "--no-whole-archive"] {
            println!("cargo::rustc-cdylib-link-arg=-Wl,{word}");
        }
    }
}
