//! What the kernels need of the words that they work on: the machine's atomics in the crate, loom's
//! in the models.

use super::atomic::Ordering;

/// An atomic `T`.
pub(crate) trait Word<T> {
    fn load(&self, order: Ordering) -> T;
    fn store(&self, value: T, order: Ordering);
    fn swap(&self, value: T, order: Ordering) -> T;
    fn fetch_or(&self, value: T, order: Ordering) -> T;
    fn fetch_add(&self, value: T, order: Ordering) -> T;
    fn fetch_sub(&self, value: T, order: Ordering) -> T;
    fn compare_exchange(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<T, T>;
}

macro_rules! word {
    ($integer:ty, $type:ty) => {
        impl Word<$integer> for $type {
            #[inline]
            fn load(&self, order: Ordering) -> $integer {
                <$type>::load(self, order)
            }
            #[inline]
            fn store(&self, value: $integer, order: Ordering) {
                <$type>::store(self, value, order);
            }
            #[inline]
            fn swap(&self, value: $integer, order: Ordering) -> $integer {
                <$type>::swap(self, value, order)
            }
            #[inline]
            fn fetch_or(&self, value: $integer, order: Ordering) -> $integer {
                <$type>::fetch_or(self, value, order)
            }
            #[inline]
            fn fetch_add(&self, value: $integer, order: Ordering) -> $integer {
                <$type>::fetch_add(self, value, order)
            }
            #[inline]
            fn fetch_sub(&self, value: $integer, order: Ordering) -> $integer {
                <$type>::fetch_sub(self, value, order)
            }
            #[inline]
            fn compare_exchange(
                &self,
                current: $integer,
                new: $integer,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$integer, $integer> {
                <$type>::compare_exchange(self, current, new, success, failure)
            }
        }
    };
}

word!(u32, super::atomic::AtomicU32);
word!(u64, super::atomic::AtomicU64);
#[cfg(loom)]
word!(u32, super::atomic::model::AtomicU32);
#[cfg(loom)]
word!(u64, super::atomic::model::AtomicU64);
