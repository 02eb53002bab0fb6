//! The workloads over snmalloc.

#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOCATOR: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;

fn main() -> std::process::ExitCode {
    workloads::main()
}
