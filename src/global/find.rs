//! Finding the heap of a process by the process's id.
//!
//! Its regions are files that it has open, so they are among `/proc/<pid>/fd`. Each region's process
//! table says which processes have it for their global heap, and which part of it.
//!
//! Opening another process's descriptor opens the file anew, which some devices do not like. So
//! what is no plain file of this user, for nobody else, is not opened at all.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use super::cache::MAX_REGIONS;
use crate::base::{Error, Result};
use crate::heap::layout::RegionHeap;
use crate::os;
use crate::region::{Region, RegionOptions, ShareToken};

fn error_of(error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::NotFound,
        ErrorKind::PermissionDenied => Error::PermissionDenied,
        _ => Error::Os(error.raw_os_error().unwrap_or(0)),
    }
}

/// The process's id as it knows it itself: in a pid namespace of its own that is another one.
fn own_id_of(pid: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| error_of(&e))?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let own = ids.and_then(|ids| ids.split_whitespace().last()?.parse().ok());
    Ok(own.unwrap_or(pid))
}

/// Whether attaching could accept what a descriptor leads to.
fn is_plausible(pid: u32, fd: i32) -> bool {
    fs::metadata(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|file| {
        file.is_file() && file.uid() == os::effective_user() && file.mode() & 0o077 == 0
    })
}

/// The tokens of the regions of a process's heap, oldest first.
pub(super) fn heap_of(pid: u32) -> Result<Vec<ShareToken>> {
    let own_id = own_id_of(pid)?;
    let started = os::process_start_time(pid).ok_or(Error::NotFound)?;
    let mut parts: Vec<(u32, ShareToken)> = Vec::new();
    let mut incompatible = None;
    let mut descriptors: Vec<i32> = fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(|e| error_of(&e))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    descriptors.sort_unstable();
    for fd in descriptors.into_iter().filter(|&fd| is_plausible(pid, fd)) {
        let found = ShareToken::of_descriptor(pid, fd).and_then(|token| {
            if parts.iter().any(|(_, known)| known.id == token.id) {
                return Ok(None);
            }
            let region = Region::attach_token(&token, &RegionOptions::new().read_only(true))?;
            let part = RegionHeap::attach(region)?.global_part_of(own_id, started);
            Ok(part.map(|part| (part, token)))
        });
        match found {
            Ok(found) => parts.extend(found),
            Err(error @ Error::Incompatible { .. }) => incompatible = Some(error),
            // A file that is something else, or is gone by now.
            Err(_) => {}
        }
    }
    parts.sort_by_key(|(part, _)| *part);
    let is_whole = parts.iter().map(|(part, _)| *part).eq(1..=parts.len() as u32);
    if parts.is_empty() || !is_whole || parts.len() > MAX_REGIONS {
        return Err(incompatible.unwrap_or(Error::NotShared));
    }
    Ok(parts.into_iter().map(|(_, token)| token).collect())
}
