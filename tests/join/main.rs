//! Programs that have one global heap: each is a process of its own, started with `HSHM_REGION`.
//!
//! `cargo test --test join` runs a short form of the kills. The full figures:
//!
//! ```sh
//! cargo test --release --test join -- --include-ignored --nocapture
//! ```
//!
//! `member` is what the other programs do; `meet` is how they come together and part; `refusals` what
//! cannot be joined; `forks` what their children get; `kills` kills them while they exchange blocks.
#![allow(unsafe_code)] // objects of other programs, fork
#![allow(unreachable_pub)] // the modules of one program

#[path = "../support/mod.rs"]
mod support;

mod forks;
mod kills;
mod meet;
mod member;
mod refusals;

use hshm::HshmAlloc;

#[global_allocator]
static A: HshmAlloc = HshmAlloc::new();
