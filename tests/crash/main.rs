//! Kill -9 at every instruction: what survivors find, and what they get back.
//!
//! `cargo test --test crash` runs a short form of each test, some seconds in all. The full figures:
//!
//! ```sh
//! cargo test --release --test crash -- --include-ignored --nocapture
//! ```
//!
//! `steps` has a process execute a number of an operation's instructions, by ptrace, kills it there, and
//! has the survivors go on; `load` kills processes that exchange blocks; `detect`
//! holds the cases in which it is not obvious who is dead.
#![allow(unsafe_code)] // ptrace, fork, and use of what was allocated
#![allow(unreachable_pub)] // the modules of one program

#[path = "../support/mod.rs"]
mod support;

mod detect;
mod estate;
mod load;
mod steps;
mod victim;
mod work;
