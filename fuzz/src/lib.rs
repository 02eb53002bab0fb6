//! The scenes of `tests/hostile`, for libFuzzer's targets.
#![allow(dead_code)] // the tests themselves stay where they are

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../../tests/hostile/arena.rs"]
pub mod arena;
#[path = "../../tests/hostile/buddy.rs"]
pub mod buddy;
#[path = "../../tests/hostile/choices.rs"]
pub mod choices;
#[path = "../../tests/hostile/damage.rs"]
pub mod damage;
#[path = "../../tests/hostile/headers.rs"]
pub mod headers;
#[path = "../../tests/hostile/heap.rs"]
pub mod heap;
#[path = "../../tests/hostile/supervise.rs"]
pub mod supervise;

pub use libfuzzer_sys;

/// A target that does one round for each input.
#[macro_export]
macro_rules! target {
    ($scene:ident) => {
        thread_local!(static SCENE: $crate::$scene::Scene = $crate::$scene::Scene::new());

        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| {
            SCENE.with(|scene| scene.run(&mut $crate::choices::Choices::Bytes(data)));
        });
    };
}
