//! A block that grows by doubling, as a `Vec` does, to 64 KiB and to 64 MiB.

#[path = "loads/crit.rs"]
mod crit;
mod loads;

fn main() {
    crit::run("realloc");
}
