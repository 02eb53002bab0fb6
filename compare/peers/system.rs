//! The workloads over the C library's allocator, and over whatever is preloaded in its place.

#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOCATOR: std::alloc::System = std::alloc::System;

fn main() -> std::process::ExitCode {
    workloads::main()
}
