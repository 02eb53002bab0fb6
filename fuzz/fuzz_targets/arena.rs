//! Rounds of `tests/hostile/arena.rs`, with choices that libFuzzer makes.
#![no_main]

hshm_fuzz::target!(arena);
