//! One thread allocates, another frees; a round is one block.

#[path = "loads/crit.rs"]
mod crit;
mod loads;

fn main() {
    crit::run("cross_thread");
}
