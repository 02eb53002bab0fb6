//! Joining and leaving a region, and telling whether the others still live.
//!
//! A process that joins claims a slot of the process table and gets a number that no other
//! registration ever has. Locks and pending announcements carry the number, not the slot: a slot
//! serves again, a number never does.
//!
//! ```text
//! FREE -> CLAIMED -> LIVE -> FREE                  joined, left
//!         CLAIMED -> FREE, LIVE -> DYING -> FREE   died, reaped
//! ```
//!
//! Whether a process lives is for the kernel to say; nothing that a process writes down itself can
//! tell. Two witnesses (`os::liveness`):
//!
//! | | same pid and time namespace | another one |
//! |---|---|---|
//! | process table | no such pid, ended, or started at another time: dead | says nothing |
//! | byte lock of the slot | asked where the table cannot tell | free: dead |
//! | both | lock free, and the process runs another program than it did: dead | |
//!
//! The lock is taken before the slot is claimed and goes with the process. A process that could not
//! have one (no `/proc`, a file system without locks) is believed to live by everybody who cannot
//! see it in the process table. Where the witnesses cannot be heard the answer is "lives": then
//! memory is not reclaimed, but nobody's is taken away.
//!
//! Regions of private memory have no other processes, and none of this.

use core::cell::Cell;

use super::layout::{ProcessSlot, RegionHeap};
use super::process::{LEAVING, SLOT_OTHERS, SLOT_UNWATCHED};
use super::process::{ProcessBlock, SLOT_CLAIMED, SLOT_DYING, SLOT_FREE, SLOT_LIVE};
use crate::base::{Error, Result};
use crate::os::{self, ByteLock, Identity, Presence};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, Ordering::Relaxed};
use crate::sync::shm_lock::Holder;

/// Numbers fit the lock's word: from 1 to this.
const NUMBERS: u32 = (1 << 31) - 3;

/// What tells one view's registration from all others, in private memory.
#[derive(Debug, Default)]
pub(crate) struct Own {
    number: AtomicU32,
    /// When this process last looked for dead ones, by the coarse monotonic clock.
    looked: AtomicU64,
    lock: Option<ByteLock>,
}

impl Own {
    /// The registration's number; one that is never given out before there is one.
    #[inline]
    pub(super) fn number(&self) -> u32 {
        match self.number.load(Relaxed) {
            0 => NUMBERS + 1,
            number => number,
        }
    }
    /// Whether `interval` nanoseconds have passed since the last time it did.
    pub(super) fn is_time(&self, interval: u64) -> bool {
        let now = os::monotonic_coarse_ns();
        let last = self.looked.load(Relaxed);
        now.saturating_sub(last) >= interval
            && self.looked.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }
}

/// What a process wants when it joins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Joining {
    /// Most bytes of chunks it may own; 0 is no limit.
    pub(crate) max_bytes: u64,
    /// Most thread blocks it may hold.
    pub(crate) max_blocks: u32,
    /// Whether others must be able to tell when it dies.
    pub(crate) watched: bool,
    /// Which region of the process's global heap it is, from 1 on; 0 for none.
    pub(crate) global: u32,
}

/// What a process writes down about itself, for those who see the same process table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described {
    pub(crate) pid: u32,
    /// See [`os::process_start_time`]; 0 where it could not be told.
    pub(crate) start_time: u64,
    /// See [`os::pid_namespace`]; 0 where it could not be told.
    pub(crate) namespace: u64,
}

impl Described {
    /// The calling process.
    pub(crate) fn own() -> Described {
        let Identity { pid, start_time, namespace, .. } = os::identity(true);
        Described { pid, start_time, namespace }
    }

    /// Whether the process lives, by the process table; `None` where that cannot tell.
    pub(crate) fn in_process_table(self) -> Option<bool> {
        self.at_a_look(&Look::default())
    }

    fn at_a_look(self, look: &Look) -> Option<bool> {
        if self.namespace == 0 || self.namespace != look.namespace() {
            return None;
        }
        if self.start_time != 0 && look.seen.get() == (self.pid, self.start_time) {
            return Some(true);
        }
        match os::presence(self.pid) {
            Presence::Gone => Some(false),
            Presence::Running { start_time } if self.start_time != 0 => {
                look.seen.set((self.pid, start_time));
                Some(start_time == self.start_time)
            }
            _ => None,
        }
    }
}

/// What one look through the slots asks the system once. That a process runs is as good a moment later
/// in the same look; that one does not is asked anew, for its pid may be another's by then.
#[derive(Default)]
struct Look {
    namespace: Cell<Option<u64>>,
    /// Who was found running last: its pid, and when it started.
    seen: Cell<(u32, u64)>,
}

impl Look {
    fn namespace(&self) -> u64 {
        let namespace = self.namespace.get().unwrap_or_else(os::pid_namespace);
        self.namespace.set(Some(namespace));
        namespace
    }
}

impl RegionHeap {
    /// Claims a slot of the process table for this process. Once for each view.
    ///
    /// [`Error::Busy`] where a lock of the heap is held by a process that lives, and stays so.
    pub(crate) fn register(&mut self, joining: Joining) -> Result<ProcessSlot> {
        let slot = match self.claim_any(joining) {
            Err(Error::TableFull { .. }) if self.visit_and_reap() => self.claim_any(joining),
            result => result,
        }?;
        if let Err(error) = self.check_locks() {
            self.unregister(slot);
            return Err(error);
        }
        Ok(slot)
    }

    fn claim_any(&mut self, joining: Joining) -> Result<ProcessSlot> {
        let slots = self.process_slots();
        for slot in (0..slots).map(ProcessSlot) {
            let is_free = self.process(slot).state.load(Relaxed) == SLOT_FREE;
            if is_free && self.claim_slot(slot, joining).is_ok() {
                return Ok(slot);
            }
        }
        Err(Error::TableFull { slots: slots as usize })
    }

    /// Claims one slot: the kernel's lock first, where there can be one, then the state.
    fn claim_slot(&mut self, slot: ProcessSlot, joining: Joining) -> Result<()> {
        let fd = if joining.watched { self.region().own_fd() } else { None };
        let byte = self.region().lock_byte(slot.0);
        let (lock, claim) = match fd.map(|fd| ByteLock::take(fd, byte)) {
            // Somebody is quicker, or a child of whoever had the slot still shares the lock.
            Some(Err(Error::AlreadyExists)) => return Err(Error::AlreadyExists),
            Some(Ok(lock)) => (Some(lock), SLOT_CLAIMED),
            _ => (None, SLOT_UNWATCHED),
        };
        if slot == self.visitor() && lock.is_none() {
            return Err(Error::Unsupported);
        }
        let block = self.process(slot);
        // Nobody else has the visitor's lock now, so nobody is the visitor.
        let from = if slot == self.visitor() { block.state.load(Relaxed) } else { SLOT_FREE };
        block
            .state
            .compare_exchange(from, claim, Ordering::Acquire, Relaxed)
            .map_err(|_| Error::AlreadyExists)?;
        // Who is alone is not asked for.
        let own = os::identity(self.region().is_shared());
        block.pid.store(own.pid, Relaxed);
        block.start_time.store(own.start_time, Relaxed);
        block.namespace.store(own.namespace, Relaxed);
        block.watched.store(lock.is_some() as u32, Relaxed);
        block.program.store(if lock.is_some() { own.program } else { 0 }, Relaxed);
        block.image.store(os::image_number(), Relaxed);
        block.global.store(joining.global, Relaxed);
        block.open_account(joining.max_bytes, joining.max_blocks);
        let number = self.fresh_number();
        block.number.store(number, Relaxed);
        block.state.store(SLOT_LIVE, Ordering::Release);
        self.own.number.store(number, Relaxed);
        self.own.lock = lock;
        Ok(())
    }

    /// A number that nobody has. Counted, and so never given out twice; but the count is the heap's
    /// word: one that a slot or a lock names is not taken, or a damaged lock would seem this
    /// process's own.
    fn fresh_number(&self) -> u32 {
        // Whoever made the heap and is the first in it looks at no slot: each is a page of shared memory for
        // every twenty, which to look at is to have.
        let is_first = self.region().is_creator() && self.source().attached.load(Relaxed) == 0;
        let last = if is_first { 0 } else { self.visitor().0 };
        let next = || self.source().attached.fetch_add(1, Relaxed) % NUMBERS + 1;
        let is_taken = |number: u32| {
            let holds = |slot| self.process(ProcessSlot(slot)).number.load(Relaxed) == number;
            self.is_named_by_a_lock(number) || (0..=last).any(holds)
        };
        let mut number = next();
        // Fewer than so many can be taken.
        for _ in 0..self.visitor().0 + 8 {
            if !is_taken(number) {
                break;
            }
            number = next();
        }
        number
    }

    /// Every slot is taken, maybe by the dead: becomes the visitor for as long as it takes to reap
    /// them. Whether that made a difference.
    fn visit_and_reap(&mut self) -> bool {
        let visitor = self.visitor();
        let joining = Joining { watched: true, ..Joining::default() };
        if self.region().own_fd().is_none() || self.claim_slot(visitor, joining).is_err() {
            return false;
        }
        let watched = self.own.lock.is_some() && self.check_locks().is_ok();
        let reaped = watched && self.reap(visitor).processes > 0;
        self.unregister(visitor);
        reaped
    }

    /// Gives the slot back, in which nothing is left.
    pub(super) fn leave_slot(&self, slot: ProcessSlot) {
        let block = self.process(slot);
        block.number.store(0, Relaxed);
        block.state.store(SLOT_FREE, Ordering::Release);
    }

    /// The slots of processes that are dead and not reaped, all but `own`.
    pub(super) fn dead_slots(&self, own: Option<ProcessSlot>) -> impl Iterator<Item = ProcessSlot> {
        let look = Look::default();
        (0..self.process_slots())
            .map(ProcessSlot)
            .filter(move |&slot| Some(slot) != own && self.is_dead_at(slot, &look))
    }

    /// Whether a slot is a dead process's.
    pub(super) fn is_left_behind(&self, slot: ProcessSlot) -> bool {
        self.is_dead_at(slot, &Look::default())
    }

    fn is_dead_at(&self, slot: ProcessSlot, look: &Look) -> bool {
        let block = self.process(slot);
        let number = block.number.load(Ordering::Acquire);
        match block.state.load(Ordering::Acquire) {
            // One that left meanwhile, and another that came, would make a mixture of the two: its
            // number goes first and comes last.
            SLOT_LIVE => {
                !self.lives(slot, look)
                    && block.number.load(Ordering::Acquire) == number
                    && block.state.load(Ordering::Acquire) == SLOT_LIVE
            }
            // What else it says may be what the one before wrote.
            SLOT_CLAIMED => self.lock_is_free(slot),
            SLOT_DYING => true,
            _ => false,
        }
    }

    /// Asks the witnesses about the process in a slot that is live.
    fn lives(&self, slot: ProcessSlot, look: &Look) -> bool {
        let block = self.process(slot);
        let described = Described {
            pid: block.pid.load(Relaxed),
            start_time: block.start_time.load(Relaxed),
            namespace: block.namespace.load(Relaxed),
        };
        let locked = || block.watched.load(Relaxed) == 0 || !self.lock_is_free(slot);
        match described.at_a_look(look) {
            Some(true) => locked() || !self.has_executed(slot),
            Some(false) => false,
            None => locked(),
        }
    }

    /// Whether the process in a slot, whose lock is gone, has become another program (`execve`): its
    /// threads and all that they had are gone. (A program that merely closes all descriptors loses
    /// its lock, too.)
    ///
    /// What it was itself before, a process tells for sure: not even the same program at the same addresses
    /// has the same number of the kernel's.
    fn has_executed(&self, slot: ProcessSlot) -> bool {
        let block = self.process(slot);
        if block.pid.load(Relaxed) == os::process_id() {
            let (then, now) = (block.image.load(Relaxed), os::image_number());
            return then != 0 && now != 0 && then != now;
        }
        let before = block.program.load(Relaxed);
        if before == 0 {
            return false;
        }
        let now = os::program_of(block.pid.load(Relaxed));
        now != 0 && before != now
    }

    fn lock_is_free(&self, slot: ProcessSlot) -> bool {
        let Some(fd) = self.region().own_fd() else { return false };
        matches!(ByteLock::is_taken(fd, self.region().lock_byte(slot.0)), Ok(false))
    }

    /// Whether the process that holds a lock is dead. Who never joined holds none: its number is
    /// damage.
    pub(super) fn is_dead(&self, holder: Holder) -> bool {
        holder.get().is_none_or(|number| !self.is_number_alive(number))
    }

    /// Whether the registration with this number is a living process's.
    pub(super) fn is_number_alive(&self, number: u32) -> bool {
        if number == self.own.number() {
            return true;
        }
        // The estate has none.
        number != 0
            && (0..=self.visitor().0).map(ProcessSlot).any(|slot| {
                let block = self.process(slot);
                block.number.load(Relaxed) == number
                    && block.state.load(Relaxed) != SLOT_FREE
                    && !self.is_left_behind(slot)
            })
    }

    /// Gives a slot back that this process has just got, and in which it has nothing.
    pub(crate) fn unregister(&mut self, slot: ProcessSlot) {
        self.leave_slot(slot);
        self.own.number.store(0, Relaxed);
        self.own.lock = None;
    }

    /// This process is about to end. Whether no other has a slot that lives and is not about to end.
    ///
    /// Under the reaper's lock, and holds as long as that does: whoever joins later takes it before it
    /// relies on the region.
    pub(crate) fn is_last(&self, own: ProcessSlot) -> bool {
        let mine = self.process(own);
        // Of several that end at once, one is the last.
        mine.global.store(LEAVING, Relaxed);
        (0..=self.visitor().0).map(ProcessSlot).all(|slot| {
            let block = self.process(slot);
            let same = |word: fn(&ProcessBlock) -> u64| word(block) == word(mine);
            // A process may have joined more than once.
            let is_own = same(|block| block.pid.load(Relaxed).into())
                && same(|block| block.start_time.load(Relaxed))
                && same(|block| block.namespace.load(Relaxed));
            slot == self.estate()
                || block.state.load(Ordering::SeqCst) == SLOT_FREE
                || block.global.load(Relaxed) == LEAVING
                || is_own
                || self.is_left_behind(slot)
        })
    }

    /// The part that the process `pid`, as its own pid namespace numbers it, says this region is of
    /// its global heap, from 1 on.
    pub(crate) fn global_part_of(&self, pid: u32, started: u64) -> Option<u32> {
        (0..self.process_slots()).map(ProcessSlot).find_map(|slot| {
            let block = self.process(slot);
            let part = block.global.load(Relaxed);
            let its = block.state.load(Ordering::Acquire) == SLOT_LIVE
                && block.pid.load(Relaxed) == pid
                && [0, started].contains(&block.start_time.load(Relaxed));
            (its && part != 0 && part != LEAVING).then_some(part)
        })
    }

    /// In a forked child's copy of the region: nobody but the child will ever change what the
    /// other processes own there.
    pub(super) fn detach_others(&self, own: ProcessSlot) {
        for slot in (0..self.process_slots()).map(ProcessSlot).filter(|&slot| slot != own) {
            let state = &self.process(slot).state;
            if state.load(Relaxed) != SLOT_FREE {
                state.store(SLOT_OTHERS, Relaxed);
            }
        }
    }

    /// Whether any other process ever joined.
    #[inline]
    pub(super) fn has_company(&self) -> bool {
        self.source().attached.load(Relaxed) > 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::layout::TableSizes;
    use super::*;
    use crate::base::AllocatorId;
    use crate::base::units::MIB;
    use crate::region::{Backend, MemfdBackend, Region, RegionOptions};

    /// Shared memory that is looked at is there: the first in a heap has the page of its own slot only.
    #[test]
    fn the_first_looks_at_no_other_slot() {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(32 * MIB)).unwrap();
        let token = region.token().unwrap();
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let table = |heap: &RegionHeap| {
            let at = |slot| core::ptr::from_ref(heap.process(ProcessSlot(slot))).addr();
            // The last slot is the estate's, which is looked at.
            crate::os::resident(at(40), at(200) - at(40)).unwrap()
        };
        assert!(heap.process_slots() > 200);
        let joining = Joining { max_blocks: 1, ..Joining::default() };
        assert_eq!(heap.register(joining), Ok(ProcessSlot(0)));
        assert_eq!(heap.process(ProcessSlot(0)).number.load(Relaxed), 1);
        assert_eq!(table(&heap), 0);
        // Whoever comes later takes no number that anybody has.
        heap.source().attached.store(0, Relaxed);
        let region = Region::attach_token(&token, &RegionOptions::new()).unwrap();
        let mut second = RegionHeap::attach(region).unwrap();
        let slot = second.register(joining).unwrap();
        assert_eq!((slot, second.process(slot).number.load(Relaxed)), (ProcessSlot(1), 2));
    }

    /// Its state says nothing: that nobody else is the visitor only the kernel's lock tells.
    #[test]
    fn nobody_visits_without_the_lock() {
        let region = Region::anonymous(AllocatorId::new(0x11FE, 0), 24 * MIB).unwrap();
        let mut heap = RegionHeap::create(region, TableSizes::default()).unwrap();
        let joining = Joining { max_bytes: 0, max_blocks: 0, watched: false, global: 0 };
        let visitor = heap.visitor();
        assert!(heap.claim_slot(visitor, joining).is_err());
        assert_eq!(heap.process(visitor).state.load(Relaxed), SLOT_FREE);
    }
}
