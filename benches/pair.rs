//! Blocks of one size, allocated and freed at once.

#[path = "loads/crit.rs"]
mod crit;
mod loads;

fn main() {
    crit::run("pair");
}
