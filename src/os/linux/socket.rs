//! Descriptors over Unix sockets.
#![allow(unsafe_code)] // control messages

use core::mem::size_of;

use super::{Fd, errno, last_error};
use crate::base::{Error, Result};
use crate::sync::futex::KeepErrno;

/// Room for the control message with one descriptor, aligned for its header.
#[repr(C)]
union Control {
    bytes: [u8; 64],
    _align: libc::cmsghdr,
}

/// Calls `work` with a message of one byte and room for a control message.
fn with_message<R>(work: impl FnOnce(&mut libc::msghdr) -> R) -> R {
    let mut byte = b'h';
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: all zeroes are an empty message.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: a computation.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<i32>() as u32) } as _;
    work(&mut message)
}

/// Sends a descriptor, with one byte of data.
pub(crate) fn send_descriptor(socket: i32, fd: i32) -> Result<()> {
    let _errno = KeepErrno::new();
    with_message(|message| {
        // SAFETY: the message has room for a header and one descriptor (`with_message`), which the
        // macros compute the places of.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as _;
            libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        }
        loop {
            // SAFETY: all that the message points to lives until `work` returns.
            match unsafe { libc::sendmsg(socket, message, libc::MSG_NOSIGNAL) } {
                1.. => return Ok(()),
                _ if errno() == libc::EINTR => {}
                _ => return Err(last_error(0)),
            }
        }
    })
}

/// Receives a descriptor, closed at exec. A message without one is [`Error::NotFound`].
pub(crate) fn receive_descriptor(socket: i32) -> Result<Fd> {
    let _errno = KeepErrno::new();
    with_message(|message| {
        // With the padding there would be room for two, and a second one would stay open.
        // SAFETY: a computation.
        message.msg_controllen = unsafe { libc::CMSG_LEN(size_of::<i32>() as u32) } as _;
        loop {
            // SAFETY: as for sending.
            match unsafe { libc::recvmsg(socket, message, libc::MSG_CMSG_CLOEXEC) } {
                0 => return Err(Error::NotFound),
                1.. => break,
                _ if errno() == libc::EINTR => {}
                _ => return Err(last_error(0)),
            }
        }
        // SAFETY: the kernel has filled the control part and set its length, within which the
        // macro finds the header or gives null; there was room for no more than one descriptor.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            let fits = !header.is_null()
                && (*header).cmsg_level == libc::SOL_SOCKET
                && (*header).cmsg_type == libc::SCM_RIGHTS
                && (*header).cmsg_len as usize >= libc::CMSG_LEN(size_of::<i32>() as u32) as usize;
            if !fits {
                return Err(Error::NotFound);
            }
            Ok(Fd::from_raw(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    /// Whoever sends more than was asked for must not fill our table.
    #[test]
    fn one_descriptor_and_no_more_is_taken() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mine, sent) = UnixStream::pair().unwrap();
        mine.set_read_timeout(Some(std::time::Duration::from_secs(300))).unwrap();
        let file = super::super::memfd_create(c"hshm-test").unwrap();
        with_message(|message| {
            // SAFETY: as in `send_descriptor`; `Control` has room for two.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(8) as _;
                let header = libc::CMSG_FIRSTHDR(message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(8) as _;
                let both = [file.raw(), sent.as_raw_fd()];
                libc::CMSG_DATA(header).cast::<[i32; 2]>().write_unaligned(both);
                assert_eq!(libc::sendmsg(here.as_raw_fd(), message, 0), 1);
            }
        });
        drop(sent);
        let got = receive_descriptor(there.as_raw_fd()).unwrap();
        let inode = |fd: &Fd| super::super::stat(fd).unwrap().inode;
        assert_eq!(inode(&got), inode(&file));
        // The end of the stream: nobody has the other one open any more.
        let read = std::io::Read::read(&mut &mine, &mut [0; 1]);
        assert_eq!(read.map_err(|error| error.kind()), Ok(0));
    }

    #[test]
    fn a_descriptor_goes_over() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = super::super::memfd_create(c"hshm-test").unwrap();
        send_descriptor(here.as_raw_fd(), file.raw()).unwrap();
        let again = receive_descriptor(there.as_raw_fd()).unwrap();
        let inode = |fd: &Fd| super::super::stat(fd).unwrap().inode;
        assert_eq!(inode(&again), inode(&file));
        std::io::Write::write_all(&mut &here, b"x").unwrap();
        assert_eq!(receive_descriptor(there.as_raw_fd()).unwrap_err(), Error::NotFound);
        drop(here);
        assert_eq!(receive_descriptor(there.as_raw_fd()).unwrap_err(), Error::NotFound);
        assert!(send_descriptor(there.as_raw_fd(), file.raw()).is_err());
    }
}
