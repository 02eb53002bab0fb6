//! Regions of any content: attaching, looking, allocating and freeing give Ok or Err.
//!
//! Each round damages something that was sound (words of a heap's tables, of a buddy's pages, of an
//! arena's header, bytes of a region's header), then uses it as a process would that trusts nobody.
//! Nothing may panic, hang or fault. The rounds run in a process of their own, watched by the
//! test: one that dies, or stands still, is reported with the round in which it did, and a round
//! follows from its number alone:
//!
//! ```sh
//! cargo test --test hostile                                                   # a short form
//! cargo test --release --test hostile -- --ignored --nocapture                # 10^7 rounds, a quarter of an hour
//! HOSTILE_ROUND=heap::damaged:77 cargo test --test hostile -- heap::damaged   # that one again
//! ```
//!
//! `HOSTILE_ROUNDS` is how many rounds the long form has in all, `HOSTILE_SEED` begins elsewhere.
//! `fuzz/` has the same rounds driven by libFuzzer.
//!
//! A lock that a living process holds is waited for, whoever wrote that it does: those words are
//! damaged before a process attaches (which then is an error), and not afterwards.
#![allow(unsafe_code)] // writes into regions under their users
#![allow(unreachable_pub)] // the modules of one program

#[path = "../support/mod.rs"]
mod support;

mod arena;
mod buddy;
mod choices;
mod damage;
mod frees;
mod headers;
mod heap;
mod locks;
mod peer;
mod supervise;
