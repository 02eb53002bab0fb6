//! Telling another process where a region is.

use core::fmt;
use core::str::FromStr;

use super::make;
use crate::base::{AllocatorId, Error, Result};
use crate::os;

/// What another process of the same user needs to attach a region: who has it open, under which
/// descriptor, and what it must find there.
///
/// As text: `hshm:<pid>:<fd>:<id>:<base>:<len>`, the last three in hexadecimal. It holds no secret
/// and gives no rights: the kernel checks the user, and attaching checks the id.
///
/// ```
/// use hshm::{Backend, MemfdBackend, Region, RegionOptions, ShareToken, Unit};
/// let region = MemfdBackend::create("", &RegionOptions::new().capacity(Unit::megabytes(1)))?;
/// let text = region.token()?.to_string();
/// // ... in another process:
/// let token: ShareToken = text.parse()?;
/// let again = Region::attach_token(&token, &RegionOptions::new())?;
/// assert_eq!(again.id(), region.id());
/// # Ok::<(), hshm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareToken {
    /// The process that has the region.
    pub pid: u32,
    /// Its descriptor.
    pub fd: i32,
    /// The id in the region's header.
    pub id: AllocatorId,
    /// Where that process sees offset 0.
    pub base: usize,
    /// Bytes of the region.
    pub len: usize,
}

impl ShareToken {
    /// The token of the region behind a descriptor of a process, which may be anything.
    pub(crate) fn of_descriptor(pid: u32, fd: i32) -> Result<ShareToken> {
        let file = os::open_fd_of(pid, fd, false)?;
        let (facts, _) = make::inspect(&file, make::Names::Any)?;
        Ok(ShareToken { pid, fd, id: facts.id, base: facts.base, len: facts.len })
    }
}

impl fmt::Display for ShareToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ShareToken { pid, fd, id, base, len } = self;
        write!(f, "hshm:{pid}:{fd}:{:x}:{base:x}:{len:x}", id.to_bits())
    }
}

impl FromStr for ShareToken {
    type Err = Error;

    /// Any other text is [`Error::BadName`].
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(Error::BadName);
        if next()? != "hshm" {
            return Err(Error::BadName);
        }
        let pid = next()?.parse().map_err(|_| Error::BadName)?;
        let fd = next()?.parse().map_err(|_| Error::BadName)?;
        let mut hex = || u64::from_str_radix(next()?, 16).map_err(|_| Error::BadName);
        let id = AllocatorId::from_bits(hex()?);
        let (base, len) = (hex()? as usize, hex()? as usize);
        if parts.next().is_some() {
            return Err(Error::BadName);
        }
        Ok(ShareToken { pid, fd, id, base, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let token = ShareToken {
            pid: 12,
            fd: 3,
            id: AllocatorId::new(0xFFFF_FFFF, 7),
            base: 0x1230_0000_0000,
            len: 1 << 30,
        };
        let text = token.to_string();
        assert_eq!(text, "hshm:12:3:ffffffff00000007:123000000000:40000000");
        assert_eq!(text.parse(), Ok(token));
        for bad in ["", "hshm", "hshm:1:2:3:4", "hshm:1:2:3:4:5:6", "x:1:2:3:4:5", "hshm:a:2:3:4:5"]
        {
            assert_eq!(bad.parse::<ShareToken>(), Err(Error::BadName));
        }
    }
}
