//! Rounds of `tests/hostile/heap.rs`, with choices that libFuzzer makes.
#![no_main]

hshm_fuzz::target!(heap);
