//! The locks of a heap: who takes which, what a death with one leaves to do, and a fork's hold on them all.
//!
//! | lock | protects | after a holder's death |
//! |---|---|---|
//! | reaper | whoever takes a dead process's things apart; the first of these | that can be begun again anywhere |
//! | roots | the directory of named roots; before all of them (`naming`) | a change is one store |
//! | process, in private memory | the process's chunks and lists | goes with the process |
//! | source | chunk ownership | repaired from the chunks' owner words |
//!
//! Who has its process's lock may take the reaper's (`adopt`), and whoever has that one takes no process's,
//! but a fork, which does when nobody is inside the heap. The source's comes last.

use super::layout::{ProcessSlot, RegionHeap};
use crate::base::{Error, Result};
use crate::os;
use crate::sync::atomic::Ordering;
use crate::sync::lock::Guard;
use crate::sync::shm_lock::{Holder, ShmGuard};

/// How long whoever attaches waits for a lock, in nanoseconds of sleep. Nobody holds one for long: it
/// is never held over a wait.
const LOCK_PATIENCE: u64 = 2_000_000_000;

impl RegionHeap {
    /// Takes the source's lock. If its holder is dead, what it protects is put right first.
    #[inline]
    pub(crate) fn lock_source(&self) -> ShmGuard<'_> {
        let lock = &self.source().lock;
        let (guard, inherited) = lock.lock_or_inherit(self.holder(), |who| self.is_dead(who));
        if inherited {
            self.repair_source();
        }
        guard
    }
    /// Looks that every lock of the heap's header can be had: a word that names a living process
    /// which does not leave it would make each later call wait for ever. [`Error::Busy`].
    pub(super) fn check_locks(&self) -> Result<()> {
        let source = self.source();
        for lock in [&source.reaper, &source.roots_lock, &source.lock] {
            let (_guard, inherited) = lock
                .lock_within(LOCK_PATIENCE, self.holder(), |who| self.is_dead(who))
                .ok_or(Error::Busy)?;
            if inherited && core::ptr::eq(lock, &source.lock) {
                self.repair_source();
            }
        }
        Ok(())
    }
    /// Whether a lock of the heap's header names this registration.
    pub(super) fn is_named_by_a_lock(&self, number: u32) -> bool {
        let source = self.source();
        let holder = Holder::number(number);
        [&source.reaper, &source.roots_lock, &source.lock].iter().any(|lock| lock.names(holder))
    }
    /// Takes the lock of what this process owns: its own threads' alone, so it lies in private memory.
    #[inline]
    pub(crate) fn lock_process(&self) -> Guard<'_> {
        self.process_lock.lock()
    }
    /// Takes the lock of whoever takes a dead process's things apart. That work can be begun again
    /// at any point.
    pub(crate) fn lock_reaper(&self) -> ShmGuard<'_> {
        let lock = &self.source().reaper;
        lock.lock_or_inherit(self.holder(), |who| self.is_dead(who)).0
    }
    #[inline]
    pub(super) fn holder(&self) -> Holder {
        Holder::number(self.own.number())
    }
    /// Takes the locks that a fork must not catch half-way: the reaper's, the process's own, and
    /// the source's.
    pub(crate) fn fork_prepare(&self) {
        core::mem::forget(self.lock_reaper());
        self.process_lock.lock_raw();
        core::mem::forget(self.lock_source());
    }
    /// In the parent: leaves them.
    pub(crate) fn fork_parent(&self) {
        self.source().lock.unlock_raw();
        self.process_lock.unlock_raw();
        self.source().reaper.unlock_raw();
    }
    /// In the child, whose copy of the region it is now: frees them whoever held them, and enters
    /// the child as the process in the slot. What belongs to others stays as it is.
    pub(crate) fn fork_child(&self, process: ProcessSlot) {
        self.source().lock.reset();
        self.source().reaper.reset();
        self.source().roots_lock.reset();
        self.detach_others(process);
        let block = self.process(process);
        self.process_lock.unlock_raw();
        // Nobody else sees private memory, so nobody asks.
        let own = os::identity(self.region().is_shared());
        block.pid.store(own.pid, Ordering::Relaxed);
        block.start_time.store(own.start_time, Ordering::Relaxed);
        block.namespace.store(own.namespace, Ordering::Relaxed);
        // The byte that the parent has locked is one of the parent's file.
        block.watched.store(0, Ordering::Relaxed);
        block.program.store(0, Ordering::Relaxed);
    }
}
