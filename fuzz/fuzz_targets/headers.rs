//! Rounds of `tests/hostile/headers.rs`, with choices that libFuzzer makes.
#![no_main]

hshm_fuzz::target!(headers);
