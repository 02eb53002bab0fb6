//! The workloads over mimalloc 3.
//!
//! The crate has one switch for both versions, so a build with all features on would measure the
//! other one under this name; hence the question before the run.

#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    safe fn mi_version() -> core::ffi::c_int;
}

fn main() -> std::process::ExitCode {
    // 2.2.4 calls itself 224, later ones 20204.
    let version = mi_version().to_string();
    if !version.starts_with('3') {
        eprintln!("this is mimalloc {version}, not 3: build it with the feature mimalloc3 only");
        return std::process::ExitCode::FAILURE;
    }
    workloads::main()
}
