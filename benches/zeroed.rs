//! Zeroed memory, every page of which is then touched.

#[path = "loads/crit.rs"]
mod crit;
mod loads;

fn main() {
    crit::run("zeroed");
}
