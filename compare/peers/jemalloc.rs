//! The workloads over jemalloc.

#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    workloads::main()
}
