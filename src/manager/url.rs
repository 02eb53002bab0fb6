//! Which backend an address means.
//!
//! ```text
//! shm://name              POSIX shared memory
//! memfd: [label]          an anonymous file; to attach one: memfd:fd:N, memfd:pid:P:fd:N, memfd:<token>
//! file:///absolute/path   a file
//! anon:                   private memory
//! malloc:                 a block of the C library's
//! ```

use crate::base::{Error, Result};
use crate::region::{
    Backend, BackendKind, FileBackend, MallocBackend, MemfdBackend, PosixMmap, PosixShmMmap,
    Region, RegionOptions,
};

/// What to call for a backend of some type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls {
    pub(super) create: fn(&str, &RegionOptions) -> Result<Region>,
    pub(super) attach: fn(&str, &RegionOptions) -> Result<Region>,
    pub(super) destroy: fn(&str) -> Result<()>,
}

impl Calls {
    pub(super) fn of<B: Backend>() -> Calls {
        Calls { create: B::create, attach: B::attach, destroy: B::destroy }
    }
}

/// Takes an address apart; [`Error::BadName`] for one without a scheme that is known.
pub(super) fn parse(url: &str) -> Result<(Calls, &str)> {
    let (kind, name) = split(url).ok_or(Error::BadName)?;
    let calls = match kind {
        BackendKind::PosixShm => Calls::of::<PosixShmMmap>(),
        BackendKind::Memfd => Calls::of::<MemfdBackend>(),
        BackendKind::File => Calls::of::<FileBackend>(),
        BackendKind::PosixMmap => Calls::of::<PosixMmap>(),
        BackendKind::Malloc => Calls::of::<MallocBackend>(),
        BackendKind::Array => return Err(Error::BadName),
    };
    Ok((calls, name))
}

/// The name for a backend of type `B`, given as one, or as an address with its scheme.
pub(super) fn name_for<B: Backend>(url: &str) -> Result<&str> {
    match split(url) {
        Some((kind, name)) if kind == B::KIND => Ok(name),
        Some(_) => Err(Error::BadName),
        None => Ok(url),
    }
}

fn split(url: &str) -> Option<(BackendKind, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    Some(match scheme {
        "shm" => (BackendKind::PosixShm, rest.strip_prefix("//")?),
        "memfd" => (BackendKind::Memfd, rest),
        "file" => (BackendKind::File, rest.strip_prefix("//").filter(|p| p.starts_with('/'))?),
        "anon" if rest.is_empty() => (BackendKind::PosixMmap, rest),
        "malloc" if rest.is_empty() => (BackendKind::Malloc, rest),
        _ => return None,
    })
}

/// The address by which other processes attach a region, if they can.
pub(super) fn address_of(region: &Region, name: &str) -> Result<String> {
    match region.kind() {
        BackendKind::PosixShm => Ok(format!("shm://{name}")),
        BackendKind::File => {
            let path = std::path::absolute(name).map_err(|_| Error::BadName)?;
            Ok(format!("file://{}", path.to_str().ok_or(Error::BadName)?))
        }
        BackendKind::Memfd => Ok(format!("memfd:{}", region.token()?)),
        _ => Err(Error::NotShared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let kind = |url| split(url).map(|(kind, name)| (kind, name.to_owned()));
        let is = |kind, name: &str| Some((kind, name.to_owned()));
        assert_eq!(kind("shm://a"), is(BackendKind::PosixShm, "a"));
        assert_eq!(kind("shm:///a"), is(BackendKind::PosixShm, "/a"));
        assert_eq!(kind("memfd:"), is(BackendKind::Memfd, ""));
        assert_eq!(kind("memfd:pid:1:fd:2"), is(BackendKind::Memfd, "pid:1:fd:2"));
        assert_eq!(kind("file:///tmp/x"), is(BackendKind::File, "/tmp/x"));
        assert_eq!(kind("anon:"), is(BackendKind::PosixMmap, ""));
        assert_eq!(kind("malloc:"), is(BackendKind::Malloc, ""));
        for bad in
            ["", "shm", "shm:a", "file://tmp", "file:/tmp", "anon:x", "malloc:1", "x:", "SHM://a"]
        {
            assert!(split(bad).is_none() && parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(name_for::<PosixShmMmap>("plain"), Ok("plain"));
        assert_eq!(name_for::<PosixShmMmap>("shm://a"), Ok("a"));
        assert_eq!(name_for::<PosixShmMmap>("file:///a"), Err(Error::BadName));
    }
}
