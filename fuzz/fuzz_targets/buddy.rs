//! Rounds of `tests/hostile/buddy.rs`, with choices that libFuzzer makes.
#![no_main]

hshm_fuzz::target!(buddy);
