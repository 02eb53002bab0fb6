//! A region's descriptor over a Unix socket: for processes that may not look at each other's
//! `/proc`, and for those that got the socket and nothing else.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use crate::base::Result;
use crate::os;
use crate::region::{MemfdBackend, Region, RegionOptions};

/// Sends the descriptor of a region's segment. Private memory is
/// [`Error::NotShared`](crate::Error::NotShared), a region inside another one
/// [`Error::Unsupported`](crate::Error::Unsupported).
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use hshm::{Backend, MemfdBackend, RegionOptions, receive_region, send_region};
/// let (here, there) = UnixStream::pair().unwrap();
/// let region = MemfdBackend::create("", &RegionOptions::new().capacity(1 << 20))?;
/// send_region(&here, &region)?;
/// let same = receive_region(&there, &RegionOptions::new())?;
/// assert_eq!(same.id(), region.id());
/// # Ok::<(), hshm::Error>(())
/// ```
pub fn send_region(socket: &UnixStream, region: &Region) -> Result<()> {
    let fd = region.segment_fd()?;
    os::send_descriptor(socket.as_raw_fd(), fd)
}

/// Receives what [`send_region`] sent and attaches it; errors as
/// [`MemfdBackend::attach_fd`]. Anything but one descriptor is [`Error::NotFound`](crate::Error::NotFound).
pub fn receive_region(socket: &UnixStream, options: &RegionOptions) -> Result<Region> {
    let fd = os::receive_descriptor(socket.as_raw_fd())?;
    MemfdBackend::attach_fd(fd.raw(), options)
}
