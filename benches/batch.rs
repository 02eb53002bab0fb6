//! A thousand blocks, freed in the order they came, the other way round, or in none.

#[path = "loads/crit.rs"]
mod crit;
mod loads;

fn main() {
    crit::run("batch");
}
