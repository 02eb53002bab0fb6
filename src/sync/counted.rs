//! The machine's atomics, counting read-modify-writes: what an allocation costs other cores.
//!
//! Only under `--cfg hshm_count_rmw`, for `tests/read_modify_writes.rs`. Loads and stores are the
//! inner type's; whatever locks a cache line counts, for the thread that does it.

use core::cell::Cell;
use core::ops::Deref;
use core::sync::atomic::{self, Ordering};

std::thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Read-modify-writes of the calling thread so far.
pub(crate) fn read_modify_writes() -> u64 {
    COUNT.with(Cell::get)
}

fn count() {
    COUNT.with(|count| count.set(count.get() + 1));
}

macro_rules! counted {
    ($($name:ident($value:ty)),*) => {$(
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub(crate) struct $name(atomic::$name);

        #[allow(dead_code)] // not every type is used with every operation
        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                $name(atomic::$name::new(value))
            }
            pub(crate) fn into_inner(self) -> $value {
                self.0.into_inner()
            }
            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.0.load(order)
            }
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.0.store(value, order);
            }
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                count();
                self.0.swap(value, order)
            }
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                count();
                self.0.compare_exchange(current, new, success, failure)
            }
            pub(crate) fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                count();
                self.0.compare_exchange_weak(current, new, success, failure)
            }
            counted!(@fetch $value: fetch_add fetch_sub fetch_or fetch_and fetch_max);
        }

        impl Deref for $name {
            type Target = atomic::$name;
            fn deref(&self) -> &atomic::$name {
                &self.0
            }
        }
    )*};
    (@fetch $value:ty: $($fetch:ident)*) => {$(
        pub(crate) fn $fetch(&self, value: $value, order: Ordering) -> $value {
            count();
            self.0.$fetch(value, order)
        }
    )*};
}

counted!(AtomicU8(u8), AtomicU16(u16), AtomicU32(u32), AtomicU64(u64), AtomicUsize(usize));
