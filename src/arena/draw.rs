//! An arena as a picture: text for a terminal, SVG for a browser.

use core::fmt::Write;

use super::Arena;
use super::trace::{ArenaLog, ArenaStats};

/// One block, by positions.
struct Stretch {
    start: usize,
    used: usize,
    committed: usize,
    end: usize,
}

/// With the feature `arena-trace`.
impl Arena<'_> {
    /// What the arena and its scopes did so far.
    ///
    /// ```
    /// let arena = hshm::arena::Arena::new();
    /// arena.push_value(1u8);
    /// arena.push_value(2u64);
    /// let stats = arena.stats();
    /// assert_eq!((stats.pushes, stats.bytes, stats.padding, stats.high_water), (2, 9, 7, 16));
    /// ```
    pub fn stats(&self) -> ArenaStats {
        self.body().trace.stats()
    }

    /// Calls `log` for everything that happens from now on to the arena and its scopes. What a scratch
    /// sets ends with that scratch.
    pub fn set_log(&self, log: Option<ArenaLog>) {
        self.body().trace.set_log(log);
    }

    /// The blocks, from the first on.
    fn stretches(&self) -> Vec<Stretch> {
        let body = self.body();
        let mark = self.top().addr();
        let spans = body.trace.spans();
        let mut newest = true;
        let mut all: Vec<Stretch> = body
            .blocks()
            .map(|block| {
                let at =
                    |address: usize| block.before.get() + address.saturating_sub(block.data.addr());
                let current = core::mem::take(&mut newest);
                let committed = block.committed.get();
                let last = spans.partition_point(|span| span.1 <= at(block.end));
                let used = if current && block.holds(mark) {
                    at(mark)
                } else {
                    // What the last push before the next block left is skipped.
                    last.checked_sub(1).map_or(0, |index| spans[index].1)
                };
                Stretch {
                    start: block.before.get(),
                    used: used.clamp(block.before.get(), at(committed)),
                    committed: at(committed),
                    end: at(block.end),
                }
            })
            .collect();
        all.reverse();
        all
    }

    /// The arena as text, one line for each block: `#` used, `-` padding, `=` committed and free,
    /// `.` reserved; a cell shows what its first byte is. `width` is how many cells a line has, at
    /// least one.
    ///
    /// ```
    /// use hshm::arena::{Arena, Growth};
    /// let arena = Arena::builder().growth(Growth::Reserved).capacity(256 << 10).name("tree").build()?;
    /// arena.push(20_000);
    /// let text = arena.draw_text(32);
    /// assert!(text.contains("tree") && text.contains("[###=====...."), "{text}");
    /// # Ok::<(), hshm::Error>(())
    /// ```
    pub fn draw_text(&self, width: usize) -> String {
        let width = width.max(1);
        let spans = self.body().trace.spans();
        let mut text = String::new();
        let name = if self.name().is_empty() { "arena" } else { self.name() };
        let _ = writeln!(text, "{name}: {} bytes in use", self.pos());
        for block in self.stretches() {
            let len = (block.end - block.start).max(1);
            let cells: String = (0..width)
                .map(|cell| {
                    let at = block.start + cell * (len / width) + cell * (len % width) / width;
                    if at >= block.committed {
                        return '.';
                    }
                    if at >= block.used {
                        return '=';
                    }
                    let before = spans.partition_point(|&(start, _)| start <= at);
                    let inside = before.checked_sub(1).is_none_or(|index| at < spans[index].1);
                    // Pushes past those that are remembered count as used.
                    if inside || before == spans.len() { '#' } else { '-' }
                })
                .collect();
            let _ = writeln!(
                text,
                "{:>12} [{cells}] {} used, {} committed, {} long",
                block.start,
                block.used - block.start,
                block.committed - block.start,
                block.end - block.start,
            );
        }
        text
    }

    /// The arena as an SVG picture: a bar for each block, in it the pushes in two alternating
    /// colours, gaps for padding, then what is committed and what is reserved.
    pub fn draw_svg(&self) -> String {
        const WIDTH: f64 = 960.0;
        const ROW: usize = 56;
        let spans = self.body().trace.spans();
        let blocks = self.stretches();
        let height = 40 + blocks.len() * ROW;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1000\" height=\"{height}\" \
             font-family=\"monospace\" font-size=\"12\">\n<text x=\"20\" y=\"22\">{}: {} bytes in \
             use</text>\n",
            escape(self.name()),
            self.pos(),
        );
        for (row, block) in blocks.iter().enumerate() {
            // What is reserved and never used would make everything else too thin to see.
            let shown = block.end.min(block.start + (block.committed - block.start) * 5 / 4 + 1);
            let scale = WIDTH / (shown - block.start).max(1) as f64;
            let top = 40 + row * ROW;
            let mut bar = |from: usize, to: usize, colour: &str| {
                if to > from {
                    let x = 20.0 + (from - block.start) as f64 * scale;
                    let width = (to - from) as f64 * scale;
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{x:.2}\" y=\"{top}\" width=\"{width:.2}\" height=\"24\" \
                         fill=\"{colour}\"/>"
                    );
                }
            };
            bar(block.start, shown, "#eeeeee");
            bar(block.start, block.committed, "#cfe3cf");
            bar(block.start, block.used, "#f2d9a0");
            let inside = spans.iter().filter(|span| span.0 >= block.start && span.1 <= block.end);
            for (index, &(from, to)) in inside.enumerate() {
                bar(from, to, if index % 2 == 0 { "#3b6ea5" } else { "#6f9fd0" });
            }
            let _ = writeln!(
                svg,
                "<text x=\"20\" y=\"{}\">at {}: {} used, {} committed, {} long</text>",
                top + 40,
                block.start,
                block.used - block.start,
                block.committed - block.start,
                block.end - block.start,
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{ArenaEvent, ArenaLog, ArenaVec, Growth, Scratch, scratch, scratch_global};
    use crate::base::Error;
    use std::cell::{Cell, RefCell};

    #[test]
    fn it_counts() {
        let mut arena = Arena::builder().capacity(1024).build().unwrap();
        arena.push_value(1u8);
        arena.push_value(1u64);
        arena.push(2000);
        arena.temp().push(100);
        let stats = arena.stats();
        assert_eq!((stats.pushes, stats.bytes, stats.padding), (4, 2109, 7));
        assert_eq!((stats.chained, stats.pops), (2, 1));
        assert!(stats.high_water >= arena.pos() + 100);
        assert!(stats.tails > 0 && stats.tails < 1200);
        arena.clear();
        assert_eq!(arena.stats().high_water, stats.high_water);
        let reserved = Arena::builder().growth(Growth::Reserved).capacity(1 << 20).build().unwrap();
        reserved.push(500_000);
        assert_eq!(reserved.stats().commits, 1);
    }

    #[test]
    fn a_room_has_nothing_to_free() {
        let arena = Arena::builder().growth(Growth::Reserved).build().unwrap();
        let room = arena.scope_leaving(1000, |room, _| {
            room.push(100);
            room
        });
        let room = room.unwrap();
        assert_eq!(room.stats().pushes, 1);
        assert!(room.body().trace.spans().is_empty());
    }

    #[test]
    fn it_logs() {
        thread_local!(static SEEN: RefCell<Vec<(String, ArenaEvent)>> = const { RefCell::new(Vec::new()) });
        let mut arena = Arena::builder().name("logged").build().unwrap();
        arena.set_log(Some(|name, event| SEEN.with_borrow_mut(|s| s.push((name.into(), event)))));
        arena.push_value(1u8);
        arena.push_value(1u32);
        arena.clear();
        arena.set_log(None);
        arena.push_value(1u8);
        let events: Vec<_> = SEEN
            .take()
            .into_iter()
            .map(|(name, event)| {
                assert_eq!(name, "logged");
                event
            })
            .collect();
        let push = |position, padding, len| ArenaEvent::Push { position, padding, len };
        assert_eq!(events, [push(0, 0, 1), push(4, 3, 4), ArenaEvent::Pop { to: 0 }]);
    }

    /// A log runs in the middle of a push or a pop: what it does to the arena would be undone, or be
    /// handed out twice.
    #[test]
    fn a_log_cannot_use_the_arena() {
        thread_local!(static ARENA: Cell<Option<&'static Arena<'static>>> = const { Cell::new(None) });
        thread_local!(static REFUSED: Cell<u32> = const { Cell::new(0) });
        let arena: &'static Arena<'static> = Box::leak(Box::new(Arena::new()));
        ARENA.set(Some(arena));
        arena.set_log(Some(|_, _| {
            let arena = ARENA.get().unwrap();
            assert_eq!(arena.try_push_value(1u8), Err(Error::ScopeOpen));
            assert!(arena.try_temp().is_err());
            REFUSED.set(REFUSED.get() + 1);
        }));
        let kept = arena.push_value(7u64);
        drop(ArenaVec::<u64>::with_capacity_in(50, arena));
        arena.scope(|temp| temp.push_value(1u8).is_power_of_two());
        arena.push(10_000);
        assert!(REFUSED.get() >= 7, "{}", REFUSED.get());
        arena.set_log(None);
        assert_eq!((*arena.push_value(8u64), *kept), (8, 7));
    }

    #[test]
    fn a_log_of_a_scratch_gets_another_one() {
        thread_local!(static INSIDE: Cell<bool> = const { Cell::new(false) });
        let first = scratch(&[]);
        first.set_log(Some(|_, _| {
            if !INSIDE.replace(true) {
                scratch(&[]).push(3000).fill(0xEE);
                INSIDE.set(false);
            }
        }));
        let bytes = first.push(1000);
        let second = scratch(&[]);
        second.push(1000).fill(1);
        drop(second);
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_log_ends_with_its_scratch() {
        thread_local!(static SEEN: Cell<u32> = const { Cell::new(0) });
        let log: ArenaLog = |_, _| SEEN.set(SEEN.get() + 1);
        let logs = |arena: &Arena<'_>| {
            let before = SEEN.get();
            arena.push(1);
            SEEN.get() != before
        };
        let first = scratch(&[]);
        first.set_log(Some(log));
        assert!(logs(&first));
        drop(first);
        let first = scratch(&[]);
        assert!(!logs(&first));
        // Behind another one.
        let second = scratch(&[]);
        assert!(second.shares_memory_with(&first));
        second.set_log(Some(log));
        assert!(logs(&second));
        drop(second);
        assert!(!logs(&first));
        first.set_log(Some(log));
        let second = scratch(&[]);
        assert!(logs(&second), "it sees what happens to the arena");
        second.set_log(None);
        drop(second);
        assert!(logs(&first));
        drop(first);
        assert!(!logs(&scratch(&[])));

        let global = scratch_global().unwrap();
        global.set_log(Some(log));
        drop(global);
        let all: Vec<_> = (0..20).map(|_| scratch_global().unwrap()).collect();
        assert!(!all.iter().any(|scratch| logs(scratch)));
    }

    thread_local!(static AROUND: Cell<Option<Scratch>> = const { Cell::new(None) });
    type Taken = (&'static Scratch, &'static mut [u8]);
    thread_local!(static TAKEN: RefCell<Vec<Taken>> = const { RefCell::new(Vec::new()) });

    /// What the logs below do besides.
    fn take_one_for_good() {
        let temp: &'static Scratch = Box::leak(Box::new(scratch(&[])));
        let bytes = temp.push(3000);
        bytes.fill(0xEE);
        TAKEN.with_borrow_mut(|taken| taken.push((temp, bytes)));
    }

    /// Takes a scratch behind [`AROUND`], which the log drops or changes when that one is taken, or
    /// when it ends. Whatever comes of it, no bytes are in use twice.
    fn with_a_log(depth: usize, at_end: bool, log: ArenaLog) {
        let work = move || {
            let outer: Vec<_> = (0..depth).map(|_| scratch(&[])).collect();
            let around = scratch(&[]);
            around.push(100).fill(1);
            let install = |around: Scratch| {
                around.set_log(Some(log));
                AROUND.set(Some(around));
            };
            let take = || {
                let inner = scratch(&[]);
                inner.push(3000).fill(2);
                inner
            };
            let (inner, around) = if at_end {
                (take(), Some(around))
            } else {
                install(around);
                (take(), None)
            };
            let bytes = inner.push(3000);
            bytes.fill(3);
            let more = || {
                TAKEN.with_borrow(|taken| {
                    taken.iter().for_each(|(temp, _)| temp.push(3000).fill(4));
                    taken.len()
                })
            };
            assert_eq!(more(), usize::from(!at_end));
            assert!(bytes.iter().all(|&byte| byte == 3));
            around.map(install);
            drop(inner);
            assert_eq!(more(), 1);
            drop(AROUND.take());
            drop(outer);
            let idle = scratch(&[]);
            idle.push(30_000).fill(5);
            let (temp, bytes) = TAKEN.take().pop().unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0xEE));
            assert!(!idle.shares_memory_with(temp));
            drop(idle);
            assert_eq!(scratch(&[]).pos(), 0);
        };
        std::thread::spawn(work).join().unwrap();
    }

    #[test]
    fn a_log_may_drop_the_scratch_around() {
        for (depth, at_end) in [(0, false), (0, true), (1, false), (1, true), (2, true)] {
            with_a_log(depth, at_end, |_, _| {
                if let Some(around) = AROUND.take() {
                    drop(around);
                    take_one_for_good();
                }
            });
        }
    }

    #[test]
    fn a_log_may_clear_the_scratch_around() {
        for (depth, at_end) in [(0, false), (0, true), (1, false), (1, true), (2, true)] {
            with_a_log(depth, at_end, |_, _| {
                if let Some(mut around) = AROUND.take() {
                    around.clear();
                    let first = TAKEN.with_borrow(|taken| taken.is_empty());
                    AROUND.set(Some(around));
                    if first {
                        take_one_for_good();
                    }
                }
            });
        }
    }

    #[test]
    fn it_draws() {
        let arena = Arena::builder().capacity(1000).name("a<b").build().unwrap();
        arena.push(300);
        arena.push_aligner(512).unwrap();
        arena.push(100);
        arena.push(3000);
        let text = arena.draw_text(40);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains('#') && text.contains('='), "{text}");
        let svg = arena.draw_svg();
        assert!(svg.contains("a&lt;b") && svg.ends_with("</svg>\n"));
        // A bar and a half for each block, and one for each push.
        assert!(svg.matches("<rect").count() >= 3 + 4, "{svg}");
        assert_eq!(svg.matches("#3b6ea5").count() + svg.matches("#6f9fd0").count(), 3);
    }
}
