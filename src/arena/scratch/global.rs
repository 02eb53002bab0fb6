//! Scratch that does not belong to a thread: the process's idle arenas, and mappings of their own.
#![allow(unsafe_code)] // keeps arenas as what is left of them when nobody has them

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::{self, NonNull};

use super::KEEP;
use crate::arena::bump::Body;
use crate::arena::trace::NO_LOG;
use crate::arena::{Arena, ArenaBuilder, Growth};
use crate::base::Result;
use crate::sync::atomic::{AtomicPtr, Ordering};

/// An arena with `capacity` bytes of addresses of its own, all of which go back to the system at
/// once when it is dropped: for temporaries that are large, or that must not outgrow a bound.
///
/// # Errors
/// As [`ArenaBuilder::build`].
pub fn scratch_mapped(capacity: usize) -> Result<Arena<'static>> {
    ArenaBuilder::new().growth(Growth::Reserved).capacity(capacity).name("scratch").build()
}

/// How many idle arenas the process keeps.
const MOST_IDLE: usize = 16;
/// What is left of the idle ones, which are empty. Without a lock: a fork may come while another
/// thread would hold it.
static IDLE: [AtomicPtr<Body>; MOST_IDLE] = [const { AtomicPtr::new(ptr::null_mut()) }; MOST_IDLE];

/// A scratch arena of the process, which may go to another thread: see [`scratch_global`].
#[derive(Debug)]
pub struct GlobalScratch(ManuallyDrop<Arena<'static>>);

/// Memory for temporaries that do not stay on one thread: an arena that no other scratch has, from
/// a list that all threads share.
///
/// # Errors
/// [`OutOfMemory`](crate::Error::OutOfMemory).
pub fn scratch_global() -> Result<GlobalScratch> {
    for place in &IDLE {
        if place.load(Ordering::Relaxed).is_null() {
            continue;
        }
        if let Some(body) = NonNull::new(place.swap(ptr::null_mut(), Ordering::Acquire)) {
            // An empty arena's, which nobody else has taken out.
            return Ok(GlobalScratch(ManuallyDrop::new(Arena::over_body(body))));
        }
    }
    let settings = ArenaBuilder::new().growth(Growth::ReservedThenChained).decommit_above(KEEP);
    let arena = settings.name("global scratch").build()?;
    Ok(GlobalScratch(ManuallyDrop::new(arena)))
}

impl Deref for GlobalScratch {
    type Target = Arena<'static>;
    fn deref(&self) -> &Arena<'static> {
        &self.0
    }
}

impl Drop for GlobalScratch {
    fn drop(&mut self) {
        self.0.clear();
        self.0.align_as_built();
        self.0.body().trace.set_log(NO_LOG);
        let (none, body) = (ptr::null_mut(), self.0.body.as_ptr());
        let put = |place: &AtomicPtr<_>| {
            place.compare_exchange(none, body, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        if !IDLE.iter().any(put) {
            // SAFETY: once, when the guard goes; nobody else has the body.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}
