//! Anonymous files in memory.

use super::make::{self, Names};
use super::{Backend, BackendKind, Region, RegionOptions, ShareToken};
use crate::base::{Error, Result};
use crate::os::{self, ShortName};

/// An anonymous file in memory (`memfd_create`), whose length nobody can reduce. Nothing is left
/// behind however its users end; who wants to attach needs a descriptor.
///
/// The url of [`create`](Backend::create) is a label for `/proc`, and may be empty (up to 200
/// bytes). The url of [`attach`](Backend::attach) is `fd:N` for a descriptor of this process
/// (inherited, or received over a socket), `pid:P:fd:N` for one of another process of this user,
/// or the text of a [`ShareToken`].
#[derive(Clone, Copy, Debug)]
pub struct MemfdBackend;

impl MemfdBackend {
    /// Attaches the region behind a descriptor of this process, which stays the caller's. One that
    /// is not open is [`Error::NotFound`]; otherwise as [`Backend::attach`].
    pub fn attach_fd(fd: i32, options: &RegionOptions) -> Result<Region> {
        make::attach_shared(os::duplicate(fd)?, Names::Any, None, options)
    }

    /// Attaches the region behind descriptor `fd` of process `pid`, which must be this user's. A
    /// process or descriptor that is not there is [`Error::NotFound`].
    pub fn attach_process(pid: u32, fd: i32, options: &RegionOptions) -> Result<Region> {
        let fd = os::open_fd_of(pid, fd, !options.read_only)?;
        make::attach_shared(fd, Names::Any, None, options)
    }
}

impl Backend for MemfdBackend {
    const KIND: BackendKind = BackendKind::Memfd;

    fn create(url: &str, options: &RegionOptions) -> Result<Region> {
        if url.len() > 200 {
            return Err(Error::BadName);
        }
        let label = if url.is_empty() { "hshm" } else { url };
        let label = ShortName::of(&[label.as_bytes()])?;
        make::length(options, true)?;
        make::create_shared(os::memfd_create(label.as_c_str())?, Self::KIND, options)
    }

    fn attach(url: &str, options: &RegionOptions) -> Result<Region> {
        if let Ok(token) = url.parse::<ShareToken>() {
            return Region::attach_token(&token, options);
        }
        let mut parts = url.split(':');
        let mut next = || parts.next().unwrap_or("");
        match (next(), next(), next(), next(), next()) {
            ("fd", fd, "", "", "") => {
                Self::attach_fd(fd.parse().map_err(|_| Error::BadName)?, options)
            }
            ("pid", pid, "fd", fd, "") => {
                let pid = pid.parse().map_err(|_| Error::BadName)?;
                Self::attach_process(pid, fd.parse().map_err(|_| Error::BadName)?, options)
            }
            _ => Err(Error::BadName),
        }
    }
}
