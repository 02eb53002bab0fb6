//! What an arena did: counts, a log, and the pushes that are there. Compiled in with the feature
//! `arena-trace`; without it every call here is empty and costs nothing.

#[cfg(not(feature = "arena-trace"))]
pub(super) use off::{Log, NO_LOG, Trace};
#[cfg(feature = "arena-trace")]
pub use on::{ArenaEvent, ArenaLog, ArenaStats};
#[cfg(feature = "arena-trace")]
pub(super) use on::{Log, NO_LOG, Trace};

#[cfg(not(feature = "arena-trace"))]
mod off {
    use crate::arena::options::Options;

    /// Nothing to call.
    pub(in crate::arena) type Log = ();
    pub(in crate::arena) const NO_LOG: Log = ();

    #[derive(Debug)]
    pub(in crate::arena) struct Trace;

    impl Trace {
        pub(in crate::arena) const fn new() -> Trace {
            Trace
        }
        pub(in crate::arena) fn remember_nothing(&self) {}
        pub(in crate::arena) fn log(&self) -> Log {}
        pub(in crate::arena) fn set_log(&self, _: Log) {}
        #[inline(always)]
        pub(in crate::arena) fn pushed(
            &self,
            _: &Options,
            _at: impl Fn() -> usize,
            _: usize,
            _: usize,
        ) {
        }
        #[inline(always)]
        pub(in crate::arena) fn popped(&self, _: &Options, _to: impl Fn() -> usize) {}
        #[inline(always)]
        pub(in crate::arena) fn committed(&self, _: &Options, _: usize) {}
        #[inline(always)]
        pub(in crate::arena) fn chained(&self, _: &Options, _tail: usize) {}
    }
}

#[cfg(feature = "arena-trace")]
mod on {
    use core::cell::{Cell, RefCell};

    use crate::arena::options::Options;

    /// What happened to an arena. Positions and lengths are in bytes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum ArenaEvent {
        /// `len` bytes were pushed at `position`, after `padding` bytes for their alignment.
        Push {
            /// Where the bytes begin.
            position: usize,
            /// Bytes skipped before them.
            padding: usize,
            /// How many they are.
            len: usize,
        },
        /// Everything from `to` on was taken back.
        Pop {
            /// The position now.
            to: usize,
        },
        /// `bytes` of memory were committed.
        Commit {
            /// How many.
            bytes: usize,
        },
        /// A block was chained; the one before it had `tail` bytes left, which are skipped.
        Chain {
            /// How many.
            tail: usize,
        },
    }

    /// Takes the arena's name and what happened to it. While it runs, the arena is closed: a push into it
    /// is [`Error::ScopeOpen`](crate::Error::ScopeOpen). (A [`SyncArena`](crate::arena::SyncArena) is locked:
    /// a log must not use it, nor fork.)
    pub type ArenaLog = fn(name: &str, event: ArenaEvent);

    /// What is called, if anything.
    pub(in crate::arena) type Log = Option<ArenaLog>;
    pub(in crate::arena) const NO_LOG: Log = None;

    /// Counts since the arena was made. See [`Arena::stats`](crate::arena::Arena::stats).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct ArenaStats {
        /// Pushes, the growth of one in place included.
        pub pushes: u64,
        /// Bytes pushed.
        pub bytes: u64,
        /// Bytes skipped for alignment.
        pub padding: u64,
        /// Bytes left over at the ends of blocks when others were chained to them.
        pub tails: u64,
        /// Times that memory was committed.
        pub commits: u64,
        /// Blocks chained.
        pub chained: u64,
        /// Times that something was taken back.
        pub pops: u64,
        /// The highest position that there was, in bytes.
        pub high_water: usize,
    }

    /// Pushes remembered for drawing.
    const REMEMBERED: usize = 1 << 16;

    #[derive(Debug)]
    pub(in crate::arena) struct Trace {
        stats: Cell<ArenaStats>,
        log: Cell<Option<ArenaLog>>,
        /// Start and end of the pushes that are there, in order.
        pushes: RefCell<Vec<(usize, usize)>>,
        /// How many of them at the most.
        most: Cell<usize>,
    }

    impl Trace {
        pub(in crate::arena) fn new() -> Trace {
            Trace {
                stats: Cell::default(),
                log: Cell::new(None),
                pushes: RefCell::new(Vec::new()),
                most: Cell::new(REMEMBERED),
            }
        }
        /// For an arena that is never dropped, and so must not have anything on the heap.
        pub(in crate::arena) fn remember_nothing(&self) {
            self.most.set(0);
        }
        pub(in crate::arena) fn stats(&self) -> ArenaStats {
            self.stats.get()
        }
        pub(in crate::arena) fn log(&self) -> Log {
            self.log.get()
        }
        pub(in crate::arena) fn set_log(&self, log: Log) {
            self.log.set(log);
        }
        pub(in crate::arena) fn spans(&self) -> Vec<(usize, usize)> {
            self.pushes.borrow().clone()
        }

        fn note(&self, options: &Options, event: ArenaEvent, count: impl FnOnce(&mut ArenaStats)) {
            let mut stats = self.stats.get();
            count(&mut stats);
            self.stats.set(stats);
            if let Some(log) = self.log.get() {
                log(options.name(), event);
            }
        }

        pub(in crate::arena) fn pushed(
            &self,
            options: &Options,
            at: impl Fn() -> usize,
            padding: usize,
            len: usize,
        ) {
            let position = at();
            self.note(options, ArenaEvent::Push { position, padding, len }, |stats| {
                stats.pushes += 1;
                stats.bytes += len as u64;
                stats.padding += padding as u64;
                stats.high_water = stats.high_water.max(position + len);
            });
            let mut pushes = self.pushes.borrow_mut();
            if len != 0 && pushes.len() < self.most.get() {
                pushes.push((position, position + len));
            }
        }
        pub(in crate::arena) fn popped(&self, options: &Options, to: impl Fn() -> usize) {
            let to = to();
            self.note(options, ArenaEvent::Pop { to }, |stats| stats.pops += 1);
            let mut pushes = self.pushes.borrow_mut();
            while pushes.last().is_some_and(|&(start, _)| start >= to) {
                pushes.pop();
            }
            if let Some((_, end)) = pushes.last_mut() {
                *end = to.min(*end);
            }
        }
        pub(in crate::arena) fn committed(&self, options: &Options, bytes: usize) {
            self.note(options, ArenaEvent::Commit { bytes }, |stats| stats.commits += 1);
        }
        pub(in crate::arena) fn chained(&self, options: &Options, tail: usize) {
            self.note(options, ArenaEvent::Chain { tail }, |stats| {
                stats.chained += 1;
                stats.tails += tail as u64;
            });
        }
    }
}
