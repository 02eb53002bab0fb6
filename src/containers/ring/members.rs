//! Who has a ring open, and whether they live.
//!
//! ```text
//! state: 0 free    otherwise pid namespace (32) | generation (10) | pid (22)
//! ```
//!
//! The state is claimed by one exchange, so that a process that dies right after it is known. What
//! else a member says comes later; until then its start time is 0, which tells nothing. The
//! generation tells a member from one of the same pid before it.

use crate::base::{Error, Result};
use crate::os::{self, Presence};
use crate::sync::atomic::{AtomicU64, Ordering};

/// One member, as it lies in the ring.
#[repr(C, align(64))]
pub(super) struct Member {
    state: AtomicU64,
    start_time: AtomicU64,
    /// What the generation counts; never goes back.
    joined: AtomicU64,
    /// The cell that the member is at, + 1; see the kernel.
    pub(super) own: AtomicU64,
}

const _: () = assert!(size_of::<Member>() == 64);
const PID: u64 = (1 << 22) - 1;

/// This process's own view of the namespace: 0 where it cannot tell.
fn namespace() -> u64 {
    os::pid_namespace() & u64::from(u32::MAX)
}

impl Member {
    /// Takes a free place among the members, for this process.
    pub(super) fn join(members: &[Member]) -> Result<usize> {
        let namespace = namespace();
        let claim = || members.iter().position(|member| member.claim(namespace));
        let found = claim().or_else(|| {
            let freed = members.iter().filter(|member| member.bury(namespace)).count();
            if freed > 0 { claim() } else { None }
        });
        found.ok_or(Error::TableFull { slots: members.len() })
    }

    fn claim(&self, namespace: u64) -> bool {
        if self.state.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let pid = os::process_id();
        let generation = self.joined.fetch_add(1, Ordering::Relaxed) & 0x3FF;
        let state = namespace << 32 | generation << 22 | u64::from(pid) & PID;
        if self.state.compare_exchange(0, state, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.own.store(0, Ordering::Release);
        // Without its own `/proc` it would read another process's time.
        let started = if namespace == 0 { None } else { os::process_start_time(pid) };
        self.start_time.store(started.unwrap_or(0), Ordering::Release);
        true
    }

    /// Gives the place back.
    pub(super) fn leave(&self) {
        self.own.store(0, Ordering::Release);
        self.start_time.store(0, Ordering::Release);
        self.state.store(0, Ordering::Release);
    }

    /// The state, if it is a dead process's.
    fn dead(&self, namespace: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        if state == 0 || namespace == 0 || state >> 32 != namespace {
            return None;
        }
        let started = self.start_time.load(Ordering::Acquire);
        let dead = match os::presence((state & PID) as u32) {
            Presence::Gone => true,
            Presence::Running { start_time } => started != 0 && started != start_time,
            Presence::Unknown => false,
        };
        // The start time may be the next one's.
        (dead && self.state.load(Ordering::Acquire) == state).then_some(state)
    }

    /// Frees the place of a dead process.
    fn bury(&self, namespace: u64) -> bool {
        let Some(state) = self.dead(namespace) else { return false };
        // Another may be quicker; the next one then says again when it started, or does not.
        self.start_time.store(0, Ordering::Release);
        self.state.compare_exchange(state, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// For the kernel: what the living say, at each call anew. Who lives is asked once, of those that
    /// have something to say.
    pub(super) fn owns(members: &[Member]) -> impl FnMut(&mut dyn FnMut(u64)) {
        let namespace = namespace();
        let dead: Vec<Option<u64>> = members
            .iter()
            .map(|member| match member.own.load(Ordering::Acquire) {
                0 => None,
                _ => member.dead(namespace),
            })
            .collect();
        move |tell| {
            for (member, dead) in members.iter().zip(&dead) {
                let state = member.state.load(Ordering::Acquire);
                // A free place may still say what a dead member said. Nobody living is at it: who
                // joined before he was at a cell, and has left, was done with it first.
                if state != 0 && Some(state) != *dead {
                    tell(member.own.load(Ordering::Acquire));
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn member() -> Member {
        let word = || AtomicU64::new(0);
        Member { state: word(), start_time: word(), joined: word(), own: word() }
    }

    /// Cells of dead members stay theirs in words only: nobody may take those for a living one's
    /// when the places are free again.
    #[test]
    fn the_buried_hold_no_cell() {
        // The highest of all, which nobody has: that of a child that ended may be somebody else's.
        let dead = namespace() << 32 | PID;
        let members = [(); 3].map(|()| member());
        for (cell, member) in members.iter().enumerate() {
            member.state.store(dead, Ordering::Relaxed);
            member.own.store(cell as u64 + 1, Ordering::Relaxed);
        }
        let mut told = Vec::new();
        Member::owns(&members)(&mut |own| told.push(own));
        assert!(told.iter().all(|&own| own == 0), "{told:?}");
        // All three are buried, one of the places is taken.
        assert_eq!(Member::join(&members), Ok(0));
        assert_eq!(members[2].state.load(Ordering::Relaxed), 0);
        told.clear();
        Member::owns(&members)(&mut |own| told.push(own));
        assert!(told.iter().all(|&own| own == 0), "{told:?}");
        // The living hold what they say.
        members[0].own.store(8, Ordering::Relaxed);
        told.clear();
        Member::owns(&members)(&mut |own| told.push(own));
        assert!(told.contains(&8));
    }
}
