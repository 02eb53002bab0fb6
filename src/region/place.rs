//! Where regions go in the address space.
//!
//! ```text
//!  0x0000.. | 0x1000_0000_0000 ............. 0x5500_0000_0000 | 0x5555.. 0x7f..
//!  program  |  slot  slot  slot  slot  slot  ... (64 GiB each) | program, stacks, libraries
//! ```
//!
//! The address space is cut into slots of 64 GiB. A region starts at a random slot's first byte
//! and owns the slots that it reaches into, so that "which region holds this address" is a shift
//! and a look-up. The range in the middle is where neither programs nor the kernel's own choices
//! usually lie; nothing there is ever replaced, a slot that is not free is left alone.
//!
//! Where no slot can be had (a small address space, valgrind), the kernel chooses, and the
//! registry finds the region by a short search instead.

use crate::base::units::MIB;
use crate::base::{Error, Result, align_up};
use crate::os::{self, Access, At, Fd};

use super::RegionOptions;

/// log2 of [`SLOT`].
pub(crate) const SLOT_SHIFT: u32 = 36;
/// Bytes of a slot.
pub(crate) const SLOT: usize = 1 << SLOT_SHIFT;
/// How many slots the addresses of a process make.
pub(crate) const SLOTS: usize = 1 << (47 - SLOT_SHIFT);

/// The slots that random placement picks from.
pub(super) const FIRST: usize = 0x1000_0000_0000;
/// Position-independent programs, and the C heap behind them, start at 0x5555_5555_4000.
pub(super) const LAST: usize = 0x5500_0000_0000;
/// Addresses below this are the program's; a header that asks for them is not listened to.
const LOWEST: usize = 1 << 32;
/// One past the highest address.
const HIGHEST: usize = 1 << 47;
/// Random slots to try before the kernel chooses.
const TRIES: usize = 16;
/// Alignment of what the kernel chooses.
const FALLBACK_ALIGN: usize = 4 * MIB;

/// A mapping that is undone unless it is kept.
#[derive(Debug)]
pub(super) struct Mapping {
    base: usize,
    len: usize,
}

impl Mapping {
    pub(super) fn base(&self) -> usize {
        self.base
    }
    /// Leaves the mapping to the caller.
    pub(super) fn keep(self) -> usize {
        let base = self.base;
        core::mem::forget(self);
        base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.base, self.len);
    }
}

#[allow(unsafe_code)] // gives a mapping back
fn unmap(base: usize, len: usize) {
    // SAFETY: only called when a `Mapping` is dropped, which owns the range and was never kept, so
    // nobody else knows it.
    unsafe { os::unmap(base, len) }
}

/// Maps `len` bytes of `fd`, or of private memory. `creator` is the address to try first when no
/// other is asked for.
pub(super) fn map(
    fd: Option<&Fd>,
    len: usize,
    creator: Option<usize>,
    options: &RegionOptions,
) -> Result<Mapping> {
    let align = options.align;
    if !align.is_power_of_two() || align > FIRST {
        return Err(Error::BadAlignment { align });
    }
    let access = if options.read_only { Access::Read } else { Access::Write };
    let map_at = |at: At| -> Result<Mapping> {
        let base = match fd {
            Some(fd) => os::map_shared(fd, at, len, access)?,
            None => os::map_private(at, len)?,
        };
        Ok(Mapping { base, len })
    };

    let wanted = options.base.or(creator).filter(|_| !options.relocate);
    if let Some(base) = wanted {
        let sane = base.is_multiple_of(os::page_size())
            && base >= LOWEST
            && base.checked_add(len).is_some_and(|end| end <= HIGHEST);
        match if sane { map_at(At::Free(base)) } else { Err(Error::AlreadyExists) } {
            Ok(mapping) => return Ok(mapping),
            Err(error @ Error::OutOfMemory { .. }) => return Err(error),
            Err(_) => {}
        }
    }
    if options.same_address {
        return Err(Error::Relocated);
    }

    let avoid = |base: usize| options.relocate && creator.is_some_and(|c| c == base);
    if align >= SLOT
        && let Some(span) = align_up(len, SLOT)
        && span <= LAST - FIRST
    {
        let places = ((LAST - FIRST - span) / align) as u64 + 1;
        for _ in 0..TRIES {
            let base = FIRST + (os::random_u64() % places) as usize * align;
            if avoid(base) || !is_free(base, span) {
                continue;
            }
            match map_at(At::Free(base)) {
                Ok(mapping) => return Ok(mapping),
                Err(Error::AlreadyExists) => {}
                Err(Error::OutOfMemory { .. }) => break,
                Err(error) => return Err(error),
            }
        }
    }
    // A slot that is refused for want of memory may only lie outside what the process can have.
    let align = if align >= SLOT { FALLBACK_ALIGN } else { align };
    let base = os::reserve_aligned(len, align)?;
    let reserved = Mapping { base, len };
    over(fd, base, len, access)?;
    Ok(reserved)
}

/// Whether no region of ours reaches into the slots of `[base, base + span)`. (The kernel knows
/// whether anything is mapped there, but a short region leaves most of its slot unmapped.)
fn is_free(base: usize, span: usize) -> bool {
    (base >> SLOT_SHIFT..(base + span) >> SLOT_SHIFT).all(super::registry::slot_is_free)
}

#[allow(unsafe_code)] // maps over a reservation
fn over(fd: Option<&Fd>, base: usize, len: usize, access: Access) -> Result<()> {
    // SAFETY: `map` reserved exactly this range just before and has told nobody.
    unsafe {
        match fd {
            Some(fd) => os::map_shared_over(fd, base, len, access),
            None => os::map_private_over(base, len, access),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::PAGE;

    #[test]
    fn slots_by_default_and_less_on_request() {
        let options = RegionOptions::new();
        let mapping = map(None, 2 * PAGE, None, &options).unwrap();
        assert_eq!(mapping.base() % SLOT, 0);
        assert!((FIRST..LAST).contains(&mapping.base()));
        // The address is taken now, so asking for it again relocates, or fails on demand.
        let again = options.base(mapping.base());
        assert_ne!(map(None, PAGE, None, &again).unwrap().base(), mapping.base());
        assert_eq!(map(None, PAGE, None, &again.same_address(true)).unwrap_err(), Error::Relocated);
        let small = map(None, PAGE, None, &options.align(MIB)).unwrap();
        assert_eq!(small.base() % MIB, 0);
        let wide = map(None, 3 * SLOT, None, &options.align(4 * SLOT)).unwrap();
        assert_eq!(wide.base() % (4 * SLOT), 0);
        assert_eq!(
            map(None, PAGE, None, &options.align(3)).unwrap_err(),
            Error::BadAlignment { align: 3 }
        );
    }

    #[test]
    fn mad_addresses_are_not_listened_to() {
        let options = RegionOptions::new();
        for base in [0, 1, PAGE, 1 << 31, usize::MAX & !(PAGE - 1), HIGHEST - PAGE] {
            let mapping = map(None, 2 * PAGE, Some(base), &options).unwrap();
            assert_ne!(mapping.base(), base);
        }
    }
}
