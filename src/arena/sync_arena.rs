//! An arena for several threads.
//!
//! A fork copies what other threads are writing, page after page, at any instruction. So hooks hold the
//! locks of all these arenas across it: in the child each arena is whole, and free.
#![allow(unsafe_code)] // shares an arena under a lock

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::{fmt, slice, str};

use self::held::Lock;
use super::push::array_layout;
use super::{Arena, ArenaBuilder};
use crate::base::Result;

mod held;

/// An arena behind a lock, for sharing one between threads. The lock is held while bytes are taken,
/// not while they are written. A fork waits for it: a forked child goes on with a copy, which is whole
/// whatever the parent's other threads were doing. (Over memory that it shares with its parent it gets
/// [`Forked`](crate::Error::Forked).)
///
/// ```
/// use hshm::arena::SyncArena;
/// let arena = &SyncArena::new();
/// let sum: u64 = std::thread::scope(|threads| {
///     let work = |n: u64| threads.spawn(move || &*arena.push_value(n));
///     let both = [work(1), work(2)];
///     both.into_iter().map(|thread| *thread.join().unwrap()).sum()
/// });
/// assert_eq!(sum, 3);
/// ```
pub struct SyncArena {
    lock: Lock,
    arena: UnsafeCell<Arena<'static>>,
}

// SAFETY: the arena is only used under the lock, or through `&mut self`; the bytes that it hands
// out belong to whoever pushed.
unsafe impl Sync for SyncArena {}

#[allow(clippy::mut_from_ref)] // every push gives out bytes that nobody else has
impl SyncArena {
    /// A chained arena with default settings.
    ///
    /// # Panics
    /// As [`Arena::new`].
    pub fn new() -> Self {
        Self::from(Arena::new())
    }

    /// An arena made by these settings.
    ///
    /// # Errors
    /// As [`ArenaBuilder::build`].
    pub fn build(settings: &ArenaBuilder) -> Result<Self> {
        Self::over(settings.build()?)
    }

    fn over(arena: Arena<'static>) -> Result<Self> {
        // After the arena: its allocator's own hooks, if it has any, are registered by now.
        Ok(SyncArena { lock: Lock::new()?, arena: UnsafeCell::new(arena) })
    }

    fn locked<R>(&self, work: impl FnOnce(&Arena<'static>) -> R) -> R {
        let _guard = self.lock.get().lock();
        // SAFETY: under the lock, and the reference does not leave.
        work(unsafe { &*self.arena.get() })
    }

    /// Pushes bytes for a layout, which may hold anything, or says why not.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::Error::OutOfMemory), [`Forked`](crate::Error::Forked).
    pub fn try_push_layout(&self, layout: Layout) -> Result<NonNull<u8>> {
        self.locked(|arena| {
            arena.check_maker()?;
            arena.try_push_layout(layout)
        })
    }

    /// Pushes a value.
    ///
    /// # Panics
    /// Where there is no room.
    pub fn push_value<T>(&self, value: T) -> &mut T {
        self.or_fail(self.try_push_value(value))
    }

    /// Pushes a value, or says why not; then it is dropped.
    ///
    /// # Errors
    /// As [`try_push_layout`](Self::try_push_layout).
    pub fn try_push_value<T>(&self, value: T) -> Result<&mut T> {
        let place = self.try_push_layout(Layout::new::<T>())?.cast::<T>().as_ptr();
        // SAFETY: fresh bytes of the size and alignment of `T`, which nobody else has.
        Ok(unsafe {
            place.write(value);
            &mut *place
        })
    }

    /// Pushes a copy of a slice.
    ///
    /// # Panics
    /// Where there is no room.
    pub fn push_slice<T: Copy>(&self, values: &[T]) -> &mut [T] {
        self.or_fail(self.try_push_slice(values))
    }

    /// Pushes a copy of a slice, or says why not.
    ///
    /// # Errors
    /// As [`try_push_layout`](Self::try_push_layout).
    pub fn try_push_slice<T: Copy>(&self, values: &[T]) -> Result<&mut [T]> {
        let place = self.try_push_layout(array_layout::<T>(values.len())?)?.cast::<T>().as_ptr();
        // SAFETY: fresh bytes for as many values, which nobody else has, so they overlap nothing.
        Ok(unsafe {
            place.copy_from_nonoverlapping(values.as_ptr(), values.len());
            slice::from_raw_parts_mut(place, values.len())
        })
    }

    /// Pushes a copy of a text.
    ///
    /// # Panics
    /// Where there is no room.
    pub fn push_str(&self, text: &str) -> &mut str {
        // SAFETY: a copy of UTF-8.
        unsafe { str::from_utf8_unchecked_mut(self.push_slice(text.as_bytes())) }
    }

    /// Pushes `len` zero bytes.
    ///
    /// # Panics
    /// Where there is no room.
    pub fn push(&self, len: usize) -> &mut [u8] {
        let place = self.or_fail(self.locked(|arena| {
            arena.check_maker()?;
            arena.try_push(len).map(|bytes| NonNull::from(bytes).cast::<u8>())
        }));
        // SAFETY: pushed just now, as long as that, and borrowed from this arena.
        unsafe { slice::from_raw_parts_mut(place.as_ptr(), len) }
    }

    /// See [`Arena::pos`].
    pub fn pos(&self) -> usize {
        self.locked(Arena::pos)
    }

    /// Takes back everything.
    pub fn clear(&mut self) {
        self.get_mut().clear();
    }

    /// The arena, for as long as nobody else has it.
    pub fn get_mut(&mut self) -> &mut Arena<'static> {
        self.arena.get_mut()
    }

    /// The arena without its lock.
    pub fn into_inner(self) -> Arena<'static> {
        self.arena.into_inner()
    }

    #[inline]
    fn or_fail<T>(&self, result: Result<T>) -> T {
        match result {
            Ok(value) => value,
            // Without the lock, which others may want while this thread unwinds.
            Err(error) => panic!("arena: {error}"),
        }
    }
}

impl From<Arena<'static>> for SyncArena {
    /// # Panics
    /// Where there is no memory for the lock.
    fn from(arena: Arena<'static>) -> Self {
        match Self::over(arena) {
            Ok(arena) => arena,
            Err(error) => panic!("cannot share an arena: {error}"),
        }
    }
}

impl Default for SyncArena {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SyncArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing is written under the lock: what it is written to is the user's, and may push.
        let (options, pos) = self.locked(|arena| (arena.body().options, arena.pos()));
        f.debug_struct("SyncArena")
            .field("name", &options.name())
            .field("growth", &options.growth)
            .field("pos", &pos)
            .finish_non_exhaustive()
    }
}
