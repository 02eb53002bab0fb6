//! The workloads over hshm with its default settings.

#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOCATOR: hshm::HshmAlloc = hshm::HshmAlloc::new();

fn main() -> std::process::ExitCode {
    workloads::main()
}
