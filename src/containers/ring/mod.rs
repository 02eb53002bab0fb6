//! `ShmRing`: a queue between processes.
//!
//! ```text
//! ShmRing: heap's id | block | capacity, members          24 bytes
//! block:   tail | head | bells | members (64 B each) | slots | cells | messages
//! ```
//!
//! How it works is the [`kernel`]'s to say; this file lays it out in a block, moves messages in and
//! out, and lets those sleep who want to wait.
//!
//! Who waits sets `waiting` and looks again before it sleeps; who puts something in looks at `waiting`
//! afterwards. For messages both are sequentially consistent with the slot's exchange, so that one
//! sees the other. For room they are not (freeing a cell is a plain store), and a waker may die
//! before it wakes anybody: nobody sleeps for long at a time.
#![allow(unsafe_code)] // moves values in shared memory

mod kernel;
mod members;

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::slice;
use core::time::Duration;
use std::time::Instant;

use self::kernel::{Kernel, MAX_CELLS};
use self::members::Member;
use super::heap::{self, ShmHeap, too_large};
use crate::base::{AllocatorId, Error, Result};
use crate::os;
use crate::ptr::{OffsetPtr, ShmSafe};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::futex::{self, Scope};

/// Fewer slots share cache lines for no gain.
const LEAST_SLOTS: usize = 64;
const MEMBERS: usize = 64;
const MAX_MEMBERS: usize = 4096;
/// How often a member looks for lost cells, in nanoseconds.
const LOOK_NS: u64 = 10_000_000;
/// How long who waits sleeps at a time: for messages, for room.
const NAPS_NS: [u64; 2] = [50_000_000, 2_000_000];

/// What those who wait sleep on.
#[repr(C, align(64))]
struct Bell {
    waiting: AtomicU32,
    rung: AtomicU32,
}

impl Bell {
    /// Wakes those who wait.
    #[inline]
    fn ring(&self) {
        if self.waiting.load(Ordering::SeqCst) != 0 {
            self.ring_aloud();
        }
    }
    #[cold]
    fn ring_aloud(&self) {
        self.waiting.store(0, Ordering::SeqCst);
        self.rung.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.rung, u32::MAX, Scope::Shared);
    }

    /// Tries until it works or the time is up.
    fn wait<R>(
        &self,
        nap: u64,
        timeout: Duration,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        if let Some(done) = attempt() {
            return Some(done);
        }
        let start = Instant::now();
        loop {
            let rung = self.rung.load(Ordering::SeqCst);
            self.waiting.store(1, Ordering::SeqCst);
            if let Some(done) = attempt() {
                return Some(done);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return None;
            }
            let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
            futex::wait(&self.rung, rung, Some(left.min(nap)), Scope::Shared);
        }
    }
}

/// The first bytes of a ring's block.
#[repr(C, align(64))]
struct Shared {
    tail: Line,
    head: Line,
    messages: Bell,
    room: Bell,
}

#[repr(C, align(64))]
struct Line(AtomicU64);

/// Where everything is in a block.
struct Places {
    slots: usize,
    cells: usize,
    messages: usize,
    layout: Layout,
    slot_count: usize,
}

impl Places {
    fn of<T>(capacity: usize, members: usize) -> Result<Places> {
        if !(1..MAX_CELLS).contains(&capacity) {
            return Err(Error::TooLarge { given: capacity, maximum: MAX_CELLS - 1 });
        }
        if !(1..=MAX_MEMBERS).contains(&members) {
            return Err(Error::TooLarge { given: members, maximum: MAX_MEMBERS });
        }
        let slot_count = capacity.next_power_of_two().max(LEAST_SLOTS);
        let extend = |layout: Layout, more: Layout| layout.extend(more).map_err(|_| too_large());
        let words = |count| Layout::array::<u64>(count).map_err(|_| too_large());
        let all = Layout::new::<Shared>();
        let (all, _) = extend(all, Layout::array::<Member>(members).map_err(|_| too_large())?)?;
        let (all, slots) = extend(all, words(slot_count)?)?;
        let (all, cells) = extend(all, words(capacity)?)?;
        let (all, messages) = extend(all, Layout::array::<T>(capacity).map_err(|_| too_large())?)?;
        Ok(Places { slots, cells, messages, layout: all, slot_count })
    }
}

/// A ring in a heap, as this process sees it.
struct View<'a, T> {
    shared: &'a Shared,
    members: &'a [Member],
    kernel: Kernel<'a, AtomicU64>,
    messages: NonNull<T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

/// A bounded queue in a heap, for many producers and consumers in any threads of any processes.
///
/// Each producer and consumer has a [handle](RingHandle), from [`join`](Self::join). The ring is
/// lock-free: whatever the others do, be it that they are stopped or killed between any two
/// instructions, somebody who pushes or pops gets on. Messages come out in the order in which they
/// went in. They are moved, not copied: what a [`ShmString`](crate::ShmString) or
/// [`ShmBox`](crate::ShmBox) in a message holds stays where it is.
///
/// When a process is killed
/// - while it pushes: the message is in the ring, or it is not; there are no halves;
/// - while it pops: the one message that it was taking is in the ring, or gone with it;
/// - either way, the place that it had is used again, as soon as somebody needs it who can tell that
///   the process is dead (which for processes in different pid namespaces nobody can). What a lost
///   message held in other blocks stays allocated.
///
/// A process that is stopped keeps one place of the ring occupied, at most, for each of its handles.
///
/// ```
/// use hshm::{ShmHeap, ShmRing};
/// # use hshm::{AllocatorId, Region, ThreadLocalAllocator};
/// # let region = Region::anonymous(AllocatorId::new(906, 0), 16 << 20)?;
/// # let heap = ShmHeap::of(Box::leak(Box::new(ThreadLocalAllocator::shm_init(region)?)))?;
/// let ring = ShmRing::with_capacity_in(2, heap)?;
/// let (mut producer, mut consumer) = (ring.join()?, ring.join()?);
/// assert_eq!(producer.push(1u32), Ok(()));
/// assert_eq!(producer.push(2), Ok(()));
/// assert_eq!(producer.push(3), Err(3));
/// assert_eq!(consumer.pop(), Some(1));
/// assert_eq!(consumer.drain().collect::<Vec<_>>(), [2]);
/// # Ok::<(), hshm::Error>(())
/// ```
#[repr(C)]
pub struct ShmRing<T: ShmSafe> {
    heap: AllocatorId,
    block: OffsetPtr<T>,
    capacity: u32,
    members: u32,
    _owns: PhantomData<T>,
}

// SAFETY: an id, an offset and counts; the destructor looks the id up where it runs.
unsafe impl<T: ShmSafe> ShmSafe for ShmRing<T> {}

impl<T: ShmSafe> ShmRing<T> {
    /// A ring for `capacity` messages (fewer than 16 million), with room for 64 handles.
    pub fn with_capacity_in(capacity: usize, heap: ShmHeap) -> Result<Self> {
        Self::with_handles_in(capacity, MEMBERS, heap)
    }

    /// A ring for `capacity` messages and so many handles (at most 4096) at a time.
    pub fn with_handles_in(capacity: usize, handles: usize, heap: ShmHeap) -> Result<Self> {
        let places = Places::of::<T>(capacity, handles)?;
        let block = heap::allocate(heap.id(), places.layout)?;
        let ring = ShmRing {
            heap: heap.id(),
            block: OffsetPtr::new(block),
            capacity: capacity as u32,
            members: handles as u32,
            _owns: PhantomData,
        };
        let start = heap::place::<u8>(heap.id(), block, places.layout.size() as u64)?;
        // SAFETY: a fresh block of that size. All zeroes are an empty ring that nobody has joined.
        unsafe { start.as_ptr().write_bytes(0, places.messages) };
        Ok(ring)
    }

    /// The heap.
    pub fn heap(&self) -> Result<ShmHeap> {
        ShmHeap::by_id(self.heap)
    }
    /// How many messages there is room for; those that are being written and read count, too.
    pub const fn capacity(&self) -> usize {
        self.capacity as usize
    }
    /// How many messages there are, about: others may be at work.
    pub fn len(&self) -> usize {
        self.view().map_or(0, |view| view.kernel.len())
    }
    /// Whether there are none, at some moment of the call.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn view(&self) -> Result<View<'_, T>> {
        let (capacity, members) = (self.capacity as usize, self.members as usize);
        let places = Places::of::<T>(capacity, members).map_err(|_| Error::Corrupt)?;
        let size = places.layout.size() as u64;
        let start = heap::place::<u8>(self.heap, self.block.offset(), size)?;
        if start.addr().get() & (places.layout.align() - 1) != 0 {
            return Err(Error::BadAlignment { align: places.layout.align() });
        }
        // SAFETY: all of it is inside the heap, aligned, and made of atomics, for which any bits
        // do, up to the messages; the ring keeps its block while it is borrowed.
        unsafe {
            let shared = start.cast::<Shared>().as_ref();
            let at = |offset| start.as_ptr().wrapping_add(offset);
            let words =
                |offset, count| slice::from_raw_parts(at(offset).cast::<AtomicU64>(), count);
            Ok(View {
                shared,
                members: slice::from_raw_parts(at(size_of::<Shared>()).cast(), members),
                kernel: Kernel {
                    slots: words(places.slots, places.slot_count),
                    cells: words(places.cells, capacity),
                    tail: &shared.tail.0,
                    head: &shared.head.0,
                },
                messages: start.add(places.messages).cast(),
            })
        }
    }

    /// A handle to push and pop with: one for each thread that does.
    ///
    /// # Errors
    /// [`Error::TableFull`] where all handles are taken by the living; [`Error::Corrupt`] and others
    /// for a ring that is damaged, or whose heap this process has not; [`Error::ReadOnly`] where it has
    /// it to read.
    pub fn join(&self) -> Result<RingHandle<'_, T>>
    where
        T: Send,
    {
        heap::writable(self.heap)?;
        let view = self.view()?;
        let member = Member::join(view.members)?;
        let cursor = view.kernel.tail.load(Ordering::Relaxed) as usize % view.kernel.cells.len();
        Ok(RingHandle { view, member, cursor, looked: 0, generation: os::fork_generation() })
    }
}

impl<T: ShmSafe> Drop for ShmRing<T> {
    fn drop(&mut self) {
        // Where the heap is not known, nothing can be reached, and nothing freed.
        if heap::owned(self.heap)
            && let Ok(view) = self.view()
        {
            let own = AtomicU64::new(0);
            while let Ok(Some(cell)) = view.kernel.take(&own) {
                view.kernel.release(&own, cell);
                // SAFETY: a message that was in the ring, and that nobody else takes: the ring is
                // its owner's alone.
                unsafe { view.messages.as_ptr().add(cell).drop_in_place() };
            }
            // SAFETY: the ring's own block, not used again.
            unsafe { heap::free(self.heap, self.block.offset()) };
        }
    }
}

impl<T: ShmSafe> fmt::Debug for ShmRing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmRing")
            .field("capacity", &self.capacity)
            .field("len", &self.len())
            .finish()
    }
}

/// One who pushes and pops: a thread's way into a [`ShmRing`], from [`ShmRing::join`].
///
/// It belongs to the process that joined. In a forked child it does nothing, and says that the ring
/// is full, or empty; the child joins anew.
pub struct RingHandle<'a, T: ShmSafe + Send> {
    view: View<'a, T>,
    member: usize,
    /// Where it begins to look for a free cell.
    cursor: usize,
    /// When it last looked for lost cells, by the monotonic clock.
    looked: u64,
    generation: Option<u32>,
}

// SAFETY: what it refers to is made for many threads; its place among the members moves along, and
// messages are `Send`.
unsafe impl<T: ShmSafe + Send> Send for RingHandle<'_, T> {}

impl<T: ShmSafe + Send> RingHandle<'_, T> {
    #[inline]
    fn own(&self) -> &AtomicU64 {
        &self.view.members[self.member].own
    }

    /// Whether the handle works: [`Error::Forked`] in a forked child, [`Error::Corrupt`] for a ring
    /// whose words say what cannot be.
    pub fn check(&self) -> Result<()> {
        if os::fork_generation() != self.generation {
            return Err(Error::Forked);
        }
        self.view.kernel.check()
    }

    /// How many messages there are, about: others may be at work.
    pub fn len(&self) -> usize {
        self.view.kernel.len()
    }
    /// Whether there are none, at some moment of the call.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a message; gives it back where no room was found (what others free and take
    /// meanwhile may escape it).
    #[inline]
    pub fn push(&mut self, message: T) -> Result<(), T> {
        if os::fork_generation() != self.generation || self.view.kernel.is_full() {
            return Err(message);
        }
        let Some(cell) = self.claim() else { return Err(message) };
        self.cursor = cell + 1;
        // SAFETY: the cell is this member's until it is put into the queue.
        let place = unsafe { self.view.messages.as_ptr().add(cell) };
        // SAFETY: as above.
        unsafe { place.write(message) };
        if self.view.kernel.put(self.own(), cell).is_err() {
            // SAFETY: written just now, and nobody got it.
            let message = unsafe { place.read() };
            self.view.kernel.release(self.own(), cell);
            return Err(message);
        }
        self.view.shared.messages.ring();
        Ok(())
    }

    #[inline]
    fn claim(&mut self) -> Option<usize> {
        let found = self.view.kernel.claim(self.own(), self.cursor);
        if found.is_some() { found } else { self.claim_lost() }
    }

    /// No cell is free, though some are not in the queue: somebody is at work with them, or died.
    #[cold]
    fn claim_lost(&mut self) -> Option<usize> {
        let now = os::monotonic_ns();
        if now.saturating_sub(self.looked) < LOOK_NS {
            return None;
        }
        self.looked = now;
        match self.view.kernel.reclaim(Member::owns(self.view.members)) {
            0 => None,
            _ => self.view.kernel.claim(self.own(), self.cursor),
        }
    }

    /// Appends a message, and waits for room up to so long; gives it back then.
    pub fn push_wait(&mut self, message: T, timeout: Duration) -> Result<(), T> {
        let mut message = Some(message);
        let view = self.view;
        let done =
            view.shared.room.wait(NAPS_NS[1], timeout, || match self.push(message.take()?) {
                Ok(()) => Some(()),
                Err(back) => {
                    message = Some(back);
                    None
                }
            });
        match (done, message) {
            (None, Some(message)) => Err(message),
            _ => Ok(()),
        }
    }

    /// Takes the message that has been in the ring longest.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if os::fork_generation() != self.generation {
            return None;
        }
        let cell = self.view.kernel.take(self.own()).ok()??;
        // SAFETY: the message of a cell that came out of the queue, which is this member's now.
        let message = unsafe { self.view.messages.as_ptr().add(cell).read() };
        self.view.kernel.release(self.own(), cell);
        self.view.shared.room.ring();
        Some(message)
    }

    /// Takes the next message, and waits for one up to so long.
    pub fn pop_wait(&mut self, timeout: Duration) -> Option<T> {
        let view = self.view;
        view.shared.messages.wait(NAPS_NS[0], timeout, || self.pop())
    }

    /// Takes messages until there are none.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        core::iter::from_fn(|| self.pop())
    }
}

impl<T: ShmSafe + Send> Drop for RingHandle<'_, T> {
    fn drop(&mut self) {
        if os::fork_generation() == self.generation {
            self.view.members[self.member].leave();
        }
    }
}

impl<T: ShmSafe + Send> fmt::Debug for RingHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingHandle").field("len", &self.len()).finish_non_exhaustive()
    }
}
