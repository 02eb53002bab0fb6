//! The workloads over rpmalloc.

#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOCATOR: rpmalloc::RpMalloc = rpmalloc::RpMalloc;

fn main() -> std::process::ExitCode {
    workloads::main()
}
