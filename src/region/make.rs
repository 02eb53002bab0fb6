//! The steps of creating and attaching a region that the backends have in common.
//!
//! Every step that can fail holds what was made so far in a value that undoes it when dropped: the
//! descriptor ([`Fd`]), the mapping ([`Mapping`]), the name (the backends). Publishing the record
//! is the last step that can fail.
#![allow(unsafe_code)] // the first look at a fresh mapping

use super::header::{CUSTOM_MAX, Facts, HEADER_LEN, Header, MAX_LEN, PREFIX};
use super::place::{self, Mapping};
use super::registry::{self, Entry};
use super::{BackendKind, Region, RegionOptions};
use crate::base::units::PAGE;
use crate::base::{AllocatorId, Error, Result, align_down, align_up};
use crate::os::{self, Fd, FileInfo};

/// The length of a new region: whole pages, within the format. With
/// [`shrink_to_fit`](RegionOptions::shrink_to_fit) also within the limits of the process.
pub(super) fn length(options: &RegionOptions, is_file: bool) -> Result<usize> {
    let too_large = Error::TooLarge { given: options.capacity, maximum: MAX_LEN };
    if options.read_only {
        return Err(Error::ReadOnly);
    }
    let minimum = payload(options)? + PAGE;
    if options.capacity < minimum {
        return Err(Error::TooSmall { given: options.capacity, minimum });
    }
    let len = align_up(options.capacity, os::page_size()).ok_or(too_large)?;
    if len > MAX_LEN {
        return Err(too_large);
    }
    let file_limit = if is_file { os::file_limit() } else { u64::MAX };
    let Some(least) = options.shrink_to.map(|least| least.clamp(minimum, len)) else {
        return if len as u64 <= file_limit {
            Ok(len)
        } else {
            Err(Error::TooLarge { given: len, maximum: file_limit as usize })
        };
    };
    // Half of what is left: the rest of the program needs addresses, too, and memory of its own.
    let private = if is_file { u64::MAX } else { os::private_room() };
    let room = match os::address_room().min(private) {
        u64::MAX => u64::MAX,
        room => room / 2,
    };
    let fits = room.min(file_limit).min(len as u64) as usize;
    let fits = align_down(fits, os::page_size());
    if fits < least {
        return Err(Error::OutOfMemory { requested: least, available: fits });
    }
    Ok(fits)
}

/// Where the payload of a new region begins: past the header, and the custom one.
pub(super) fn payload(options: &RegionOptions) -> Result<usize> {
    let Some((size, align)) = options.custom else { return Ok(HEADER_LEN) };
    if size > CUSTOM_MAX {
        return Err(Error::TooLarge { given: size, maximum: CUSTOM_MAX });
    }
    if !align.is_power_of_two() || align > PAGE {
        return Err(Error::BadAlignment { align });
    }
    Ok(HEADER_LEN + size.next_multiple_of(PAGE))
}

/// The next length to try after `len` was refused: half of it, while that is allowed.
fn shorter(len: usize, options: &RegionOptions) -> Option<usize> {
    let least = options.shrink_to?.max(payload(options).ok()? + PAGE);
    let half = align_down(len / 2, os::page_size()).max(align_up(least, os::page_size())?);
    (half < len).then_some(half)
}

/// The id of a new region: the one asked for, if nothing else has it, or a random one.
pub(super) fn new_id(options: &RegionOptions) -> Result<AllocatorId> {
    match options.id {
        Some(id) if id.is_null() => Err(Error::UnknownAllocator { id }),
        Some(id) if registry::id_is_free(id) => Ok(id),
        Some(_) => Err(Error::AlreadyExists),
        None => loop {
            let random = os::random_u64() as u32 ^ os::process_id().rotate_left(16);
            let id = AllocatorId::new(random, 0);
            if registry::id_is_free(id) {
                return Ok(id);
            }
        },
    }
}

pub(super) fn facts(
    kind: BackendKind,
    base: usize,
    len: usize,
    id: AllocatorId,
    payload: usize,
) -> Facts {
    // To ask takes longer than the rest of it all, and nobody else will see private memory.
    let os::Identity { pid, start_time, .. } = os::identity(kind.is_shared());
    Facts { len, id, base, pid, kind, start_time, nonce: os::random_u64(), payload }
}

/// Writes the header of a region that only we know of, with an empty custom one.
///
/// # Safety
/// `[base, base + payload)` is writable, page-aligned and belongs to the caller.
pub(super) unsafe fn write_header(facts: &Facts, options: &RegionOptions) {
    let custom = core::ptr::with_exposed_provenance_mut::<u8>(facts.base + HEADER_LEN);
    // SAFETY: the caller vouches for the memory.
    unsafe { custom.write_bytes(0, facts.payload - HEADER_LEN) };
    let header = core::ptr::with_exposed_provenance::<Header>(facts.base);
    // SAFETY: as above; all fields are atomics, for which any bytes do, and the page is longer than
    // the header and more aligned.
    unsafe { (*header).write(facts, options.custom.unwrap_or((0, 0))) }
}

/// Makes a region of an empty file.
pub(super) fn create_shared(fd: Fd, kind: BackendKind, options: &RegionOptions) -> Result<Region> {
    let mut len = length(options, true)?;
    let id = new_id(options)?;
    let mapping = loop {
        os::set_len(&fd, len)?;
        match place::map(Some(&fd), len, None, options) {
            Err(error @ Error::OutOfMemory { .. }) => len = shorter(len, options).ok_or(error)?,
            other => break other?,
        }
    };
    if kind == BackendKind::Memfd {
        os::seal_len(&fd)?;
    }
    // The header's own page, so that a full file system is an error and no signal.
    os::commit(mapping.base(), payload(options)?, Some((&fd, 0)))?;
    let facts = facts(kind, mapping.base(), len, id, payload(options)?);
    let info = os::stat(&fd)?;
    // The record comes first: it can fail, and the header says "ready".
    let region = publish(fd, info, mapping, &facts, registry::CREATED, options)?;
    // SAFETY: the mapping was just made and committed; nobody else can have found the segment
    // ready, and in this process only `region` leads to it.
    unsafe { write_header(&facts, options) };
    Ok(region)
}

/// Makes a region of memory that is this process's alone.
pub(super) fn create_private(options: &RegionOptions) -> Result<Region> {
    let kind = BackendKind::PosixMmap;
    let mut len = length(options, false)?;
    let id = new_id(options)?;
    let mapping = loop {
        match place::map(None, len, None, options) {
            Err(error @ Error::OutOfMemory { .. }) => len = shorter(len, options).ok_or(error)?,
            other => break other?,
        }
    };
    let facts = facts(kind, mapping.base(), len, id, payload(options)?);
    // SAFETY: the mapping was just made, and nobody knows it.
    unsafe { write_header(&facts, options) };
    let flags = registry::CREATED | registry::WRITABLE | registry::KNOWN_ZERO;
    let index = registry::publish(&private_entry(&facts, flags), true)?;
    mapping.keep();
    // SAFETY: the record was just published with one reference, which the handle takes.
    Ok(unsafe { Region::from_record(index) })
}

/// Makes a region of memory that is already there.
///
/// # Safety
/// `[base, base + len)` is writable, page-aligned, at least [`MIN_LEN`] long, and the region's
/// until its last handle is dropped.
pub(super) unsafe fn create_over(
    kind: BackendKind,
    base: usize,
    len: usize,
    options: &RegionOptions,
) -> Result<Region> {
    let id = new_id(options)?;
    let minimum = payload(options)? + PAGE;
    if len < minimum {
        return Err(Error::TooSmall { given: len, minimum });
    }
    let facts = facts(kind, base, len, id, payload(options)?);
    let flags = registry::CREATED | registry::WRITABLE;
    let index = registry::publish(&private_entry(&facts, flags), true)?;
    // SAFETY: the caller vouches for the memory.
    unsafe { write_header(&facts, options) };
    // SAFETY: the record was just published with one reference, which the handle takes.
    Ok(unsafe { Region::from_record(index) })
}

fn private_entry(facts: &Facts, flags: u32) -> Entry {
    Entry {
        base: facts.base,
        len: facts.len,
        id: facts.id,
        nonce: facts.nonce,
        fd: None,
        file: (0, 0),
        kind: facts.kind,
        flags,
        file_at: 0,
        payload: facts.payload,
        parent: None,
    }
}

/// Who may have made a segment for us to attach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// It was opened by its name, and must have that one only.
    One,
    /// It was handed over open.
    Any,
}

/// Whether we may trust a file: ours, for nobody else, and not something else under this name.
fn check_file(info: &FileInfo, names: Names) -> Result<()> {
    if !info.regular {
        return Err(Error::NotARegion);
    }
    if info.uid != os::effective_user() || info.mode & 0o077 != 0 {
        return Err(Error::PermissionDenied);
    }
    match (names, info.links) {
        (Names::One, 0) => Err(Error::NotFound),
        (Names::One, 2..) => Err(Error::PermissionDenied),
        _ => Ok(()),
    }
}

/// What the header of an open file says, if it is a believable region.
pub(super) fn inspect(fd: &Fd, names: Names) -> Result<(Facts, FileInfo)> {
    let info = os::stat(fd)?;
    check_file(&info, names)?;
    let mut bytes = [0; PREFIX];
    let facts = Facts::decode(os::read_at(fd, &mut bytes, 0)?, info.len)?;
    let plausible = facts.kind.is_shared();
    // A memfd that can be shrunk under us is a signal waiting to happen.
    let sealed = facts.kind != BackendKind::Memfd || os::is_len_sealed(fd);
    if plausible && sealed { Ok((facts, info)) } else { Err(Error::Corrupt) }
}

/// Attaches the region in an open file. With `expected` its id must be that.
pub(super) fn attach_shared(
    fd: Fd,
    names: Names,
    expected: Option<AllocatorId>,
    options: &RegionOptions,
) -> Result<Region> {
    let (facts, info) = inspect(&fd, names)?;
    if let Some(expected) = expected
        && expected != facts.id
    {
        return Err(Error::ForeignPointer { found: facts.id, expected });
    }
    if !options.read_only && !os::is_writable(&fd) {
        return Err(Error::PermissionDenied);
    }
    let mapping = place::map(Some(&fd), facts.len, Some(facts.base), options)?;
    let relocated = if mapping.base() == facts.base { 0 } else { registry::RELOCATED };
    let region = publish(fd, info, mapping, &facts, relocated, options)?;
    region.check_custom(options)?;
    Ok(region)
}

fn publish(
    fd: Fd,
    info: FileInfo,
    mapping: Mapping,
    facts: &Facts,
    flags: u32,
    options: &RegionOptions,
) -> Result<Region> {
    let created = flags & registry::CREATED != 0;
    let writable = if options.read_only { 0 } else { registry::WRITABLE };
    let zero = if created { registry::KNOWN_ZERO } else { 0 };
    // Pages of a memfd come from memory alone, which never runs out in a way that is a signal to
    // us, unless the system counts every page beforehand.
    let commit = match facts.kind {
        BackendKind::Memfd if os::overcommit_mode() != 2 => 0,
        _ => registry::MUST_COMMIT,
    };
    let entry = Entry {
        base: mapping.base(),
        len: facts.len,
        id: facts.id,
        nonce: facts.nonce,
        fd: Some(fd.raw()),
        file: (info.inode, info.device),
        kind: facts.kind,
        flags: flags | writable | zero | commit,
        file_at: 0,
        payload: facts.payload,
        parent: None,
    };
    let index = registry::publish(&entry, created)?;
    mapping.keep();
    fd.into_raw();
    // SAFETY: the record was just published with one reference, which the handle takes.
    Ok(unsafe { Region::from_record(index) })
}

/// Undoes a region whose record is gone.
///
/// # Safety
/// `entry` came from the record, nobody uses the memory any more, and this is called once.
pub(super) unsafe fn unmake(entry: &Entry) {
    // SAFETY: the record owned the mapping or the block, as its kind says, unless it lies in
    // another one's.
    unsafe {
        match entry.kind {
            _ if entry.parent.is_some() => {}
            BackendKind::Array => {}
            BackendKind::Malloc => os::c_free(entry.base),
            _ => os::unmap(entry.base, entry.len),
        }
    }
    if let Some(fd) = entry.fd {
        // The program may have closed all its descriptors, and opened others.
        let ours =
            os::with_fd(fd, os::stat).is_ok_and(|info| (info.inode, info.device) == entry.file);
        if ours {
            // SAFETY: the number is that of our file, which the record owned.
            drop(unsafe { Fd::from_raw(fd) });
        }
    }
    if let Some(parent) = entry.parent {
        // SAFETY: the record had a reference on it, which this handle takes over.
        drop(unsafe { Region::from_record(parent) });
    }
}
