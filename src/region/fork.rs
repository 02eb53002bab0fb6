//! A forked child's own copy of a region.
//!
//! A shared mapping is shared with a forked child, too: without care every store of the child
//! would land in the parent's objects. Before the fork the parent copies the used parts of the
//! segment ([`Region::copy_segment`]); the child maps the copy where the original was
//! ([`Region::become_copy`]), so that every pointer it inherited leads to its own objects.
#![allow(unsafe_code)] // remaps a region under its users

use super::backend::BackendKind;
use super::handle::Region;
use super::header::Facts;
use super::registry;
use crate::base::{AllocatorId, Error, Result};
use crate::os;
use crate::sync::atomic::Ordering;

impl Region {
    /// An anonymous file with what this region's segment holds now. Holes stay holes: the cost is
    /// that of the memory in use.
    pub(crate) fn copy_segment(&self) -> Result<os::Fd> {
        let fd = self.own_fd().ok_or(Error::NotFound)?;
        let copy = os::memfd_create(c"hshm")?;
        os::set_len(&copy, self.len())?;
        os::seal_len(&copy)?;
        // SAFETY: the segment is mapped from its start for the region's whole length.
        os::with_fd(fd, |fd| unsafe {
            os::copy_blocks(fd, self.base().addr(), self.len(), &copy)
        })?;
        Ok(copy)
    }

    /// In a forked child that gets no copy: what it stores in the region from now on is its own, or a
    /// fault, where that cannot be had.
    ///
    /// # Safety
    /// The process has one thread.
    pub(crate) unsafe fn leave_to_parent(&self) -> Result<()> {
        let (base, len) = (self.base().addr(), self.len());
        // SAFETY: the range is this region's mapping of this file; a store is nobody else's business.
        let own = self
            .own_fd()
            .ok_or(Error::NotFound)
            .and_then(|fd| os::with_fd(fd, |fd| unsafe { os::map_copy_on_write(fd, base, len) }));
        // SAFETY: as above; who stores is told by the fault.
        own.or_else(|_| unsafe { os::forbid_stores(base, len) })
    }

    /// In a forked child: puts `copy` in the place of the segment that is shared with the parent,
    /// under a new id. Without a copy the child ends: it must not run on in the parent's memory.
    ///
    /// # Safety
    /// The process has one thread, and nothing in the region is in use by the kernel.
    pub(crate) unsafe fn become_copy(&self, copy: Option<os::Fd>) {
        let mut entry = registry::entry(self.record());
        let old = self.own_fd();
        let (base, len) = (self.base().addr(), self.len());
        // SAFETY: the range is this region's mapping, and the copy has the same contents.
        let copy = copy.filter(|copy| unsafe {
            os::map_shared_over(copy, base, len, os::Access::Write).is_ok()
        });
        let Some(copy) = copy else {
            os::write_stderr(b"hshm: no copy of the heap for a forked child, which ends\n");
            os::end_process();
        };
        if let Ok(info) = os::stat(&copy) {
            entry.file = (info.inode, info.device);
        }
        entry.fd = Some(copy.into_raw());
        entry.kind = BackendKind::Memfd;
        entry.flags |= registry::CREATED;
        entry.id = AllocatorId::new(os::random_u64() as u32 ^ os::process_id(), 0);
        entry.nonce = os::random_u64();
        registry::replace(self.record(), &entry);
        let os::Identity { pid, start_time, .. } = os::identity(true);
        let header = self.header();
        let engine = (header.engine_kind.load(Ordering::Relaxed), &header.engine_offset);
        let offset = engine.1.load(Ordering::Relaxed);
        let custom = [&header.custom_len, &header.custom_align]
            .map(|word| word.load(Ordering::Relaxed) as usize);
        let facts = Facts {
            len,
            id: entry.id,
            base,
            pid,
            kind: entry.kind,
            start_time,
            nonce: entry.nonce,
            payload: entry.payload,
        };
        header.write(&facts, custom.into());
        header.engine_offset.store(offset, Ordering::Relaxed);
        header.engine_kind.store(engine.0, Ordering::Release);
        if let Some(old) = old {
            // SAFETY: the descriptor is this process's copy of the parent's, owned by the record.
            drop(unsafe { os::Fd::from_raw(old) });
        }
    }
}
