//! What the system lets this process have.
#![allow(unsafe_code)] // getrlimit

use super::{monotonic_coarse_ns, page_size, read_small_file};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::futex::KeepErrno;

/// Largest file this process may make, in bytes (`RLIMIT_FSIZE`); `u64::MAX` without a limit.
pub(crate) fn file_limit() -> u64 {
    limit(libc::RLIMIT_FSIZE)
}

/// Bytes of addresses this process may have (`RLIMIT_AS`); `u64::MAX` without a limit.
pub(crate) fn address_limit() -> u64 {
    limit(libc::RLIMIT_AS)
}

fn limit(resource: libc::__rlimit_resource_t) -> u64 {
    let _errno = KeepErrno::new();
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a place for the result.
    let result = unsafe { libc::getrlimit(resource, &mut limit) };
    if result != 0 || limit.rlim_cur == libc::RLIM_INFINITY { u64::MAX } else { limit.rlim_cur }
}

/// Bytes of addresses this process has now; `None` where `/proc` is not mounted.
pub(crate) fn address_use() -> Option<u64> {
    bytes_in_use(0)
}

/// A field of `/proc/self/statm`, in bytes.
fn bytes_in_use(field: usize) -> Option<u64> {
    let mut buffer = [0; 192];
    let text = read_small_file(c"/proc/self/statm", &mut buffer).ok()?;
    let pages = text.split(|&byte| byte == b' ').nth(field)?;
    Some(number(pages)?.saturating_mul(page_size() as u64))
}

/// Bytes of addresses this process may still take; `u64::MAX` without a limit.
pub(crate) fn address_room() -> u64 {
    match address_limit() {
        u64::MAX => u64::MAX,
        limit => limit.saturating_sub(address_use().unwrap_or(limit / 2)),
    }
}

/// Bytes of private memory this process may still map (`RLIMIT_DATA`), touched or not, stacks of threads
/// included; `u64::MAX` without a limit.
pub(crate) fn private_room() -> u64 {
    match limit(libc::RLIMIT_DATA) {
        u64::MAX => u64::MAX,
        // Of data and stacks together; only data count for the limit.
        limit => limit.saturating_sub(bytes_in_use(5).unwrap_or(limit / 2)),
    }
}

/// The system's overcommit mode: 0 a guess, 1 always, 2 never beyond the commit limit. As it was a
/// second ago at most.
pub(crate) fn overcommit_mode() -> u8 {
    const SECOND: u64 = 1_000_000_000;
    /// When it was asked for last, with the answer + 1 in the lowest bits.
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let (now, seen) = (monotonic_coarse_ns() & !3, SEEN.load(Ordering::Relaxed));
    if seen != 0 && now.wrapping_sub(seen & !3) < SECOND {
        return (seen & 3) as u8 - 1;
    }
    let mut buffer = [0; 8];
    let mode = match read_small_file(c"/proc/sys/vm/overcommit_memory", &mut buffer) {
        Ok([mode @ b'0'..=b'2', ..]) => mode - b'0',
        _ => 0,
    };
    SEEN.store(now | u64::from(mode + 1), Ordering::Relaxed);
    mode
}

/// The decimal number that `text` begins with.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let mut value: Option<u64> = None;
    for digit in text.iter().take_while(|byte| byte.is_ascii_digit()) {
        let so_far = value.unwrap_or(0);
        value = Some(so_far.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_the_system() {
        assert!(file_limit() > 0 && address_limit() > 0 && address_room() > 0);
        assert!(address_use().unwrap() > 1 << 20);
        let mode = overcommit_mode();
        assert!(mode <= 2);
        // Kept, and asked for.
        assert_eq!((overcommit_mode(), overcommit_mode()), (mode, mode));
        let data = bytes_in_use(5).unwrap();
        assert!(data > 64 << 10 && data < address_use().unwrap());
        assert!(private_room() > 0);
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b"123 4"), Some(123));
        assert_eq!(number(b""), None);
        assert_eq!(number(b"x"), None);
        assert_eq!(number(b"99999999999999999999999"), None);
    }
}
