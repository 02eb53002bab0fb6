//! The first page of every region: what it is, who made it, how long it is.
//!
//! ```text
//!  byte  bytes
//!     0      8  magic "hshm\x1aREG"                        \
//!     8      4  format version                              |
//!    12      4  layout: the constants that shape a region   |
//!    16      4  page size of the creator                    |  written once, before the state;
//!    20      4  granule size                                |  under the checksum
//!    24      8  length of the region in bytes               |
//!    32      8  id (AllocatorId bits)                       |
//!    40      8  the creator's base address                  |
//!    48      4  the creator's pid                           |
//!    52      4  backend kind                                |
//!    56      8  the creator's start time                    |
//!    64      8  random number: tells segments apart         |
//!    72      8  offset of the first byte after the header  /
//!    80      8  checksum of bytes 0..80
//!    88      4  state: 0 being made, 1 ready, 2 destroyed
//!    92      4  engine kind     \
//!    96      8  engine offset    | for the layers above; zero at first
//!   104      8  bytes of the custom header
//!   112      8  its alignment
//!   120     72  9 spare words  /
//!   192    512  16 root slots of 32 bytes: name hash, id, offset, generation, spare
//!   704   3392  zero
//! ```
//!
//! All numbers are in the machine's byte order (a foreign one shows in the magic).
//!
//! The creator's base address is the only address in a region. It is a number to compare with:
//! whoever maps the region there may follow plain references inside it.
//!
//! Ordering: the state is stored last, with Release; who loads it as ready with Acquire sees the
//! whole header. The immutable fields are atomics all the same, because a hostile peer may write
//! them at any time: what we read twice may differ, and must do no harm. So an attaching process
//! reads them *once*, through the file and not the mapping (which a truncation could turn into a
//! signal), validates that copy, and works with it.

use crate::base::units::{CHUNK, GRANULE, PAGE};
use crate::base::{AllocatorId, Error, Result};
use crate::os;
use crate::ptr::AtomicShmPtr;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::BackendKind;

/// Bytes of the header, and so the smallest offset of anything else.
pub(crate) const HEADER_LEN: usize = PAGE;
/// The shortest region: the header and one page.
pub(crate) const MIN_LEN: usize = HEADER_LEN + PAGE;
/// The largest custom header.
pub(crate) const CUSTOM_MAX: usize = 1 << 20;
/// The longest region: half of the address space that Linux gives to processes.
pub(crate) const MAX_LEN: usize = 1 << 46;

const MAGIC: u64 = u64::from_le_bytes(*b"hshm\x1aREG");
const VERSION: u32 = 2;
/// Changes with every constant that shapes a region, so that builds which differ refuse each other.
const LAYOUT: u32 = {
    let parts = [PAGE, GRANULE, CHUNK, ROOTS, size_of::<Header>(), size_of::<Root>()];
    let mut hash = 0x811C_9DC5u32;
    let mut at = 0;
    while at < parts.len() {
        hash = (hash ^ parts[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
};

/// Named roots in a region.
pub(crate) const ROOTS: usize = 16;
/// Bytes at the front that are written once.
const FIXED: usize = 80;
/// Bytes at the front that validation looks at.
pub(crate) const PREFIX: usize = 92;
/// Where the state lies.
pub(crate) const STATE_OFFSET: u64 = 88;

pub(crate) const STATE_MAKING: u32 = 0;
pub(crate) const STATE_READY: u32 = 1;
pub(crate) const STATE_DESTROYED: u32 = 2;

/// A named entry point.
#[repr(C)]
pub(crate) struct Root {
    pub(crate) name_hash: AtomicU64,
    pub(crate) target: AtomicShmPtr<u8>,
    pub(crate) generation: AtomicU32,
    spare: AtomicU32,
}

/// The header as it lies in the region; see the module's picture.
#[repr(C)]
pub(crate) struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    layout: AtomicU32,
    page_size: AtomicU32,
    granule: AtomicU32,
    length: AtomicU64,
    id: AtomicU64,
    base: AtomicU64,
    pid: AtomicU32,
    kind: AtomicU32,
    start_time: AtomicU64,
    nonce: AtomicU64,
    payload: AtomicU64,
    checksum: AtomicU64,
    state: AtomicU32,
    /// Which engine manages the payload; zero for none.
    pub(crate) engine_kind: AtomicU32,
    /// Where that engine's own header lies.
    pub(crate) engine_offset: AtomicU64,
    /// Bytes of the custom header, which lies between this page and the payload; 0 for none.
    pub(super) custom_len: AtomicU64,
    /// Its alignment.
    pub(super) custom_align: AtomicU64,
    spare: [AtomicU64; 9],
    /// Named entry points.
    pub(crate) roots: [Root; ROOTS],
}

const _: () = assert!(core::mem::offset_of!(Header, checksum) == FIXED);
const _: () = assert!(core::mem::offset_of!(Header, state) == STATE_OFFSET as usize);
const _: () = assert!(core::mem::offset_of!(Header, engine_kind) == PREFIX);
const _: () = assert!(core::mem::offset_of!(Header, roots) == 192);
const _: () = assert!(size_of::<Root>() == 32 && size_of::<Header>() == 704);

/// The immutable fields, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Bytes of the region.
    pub(crate) len: usize,
    pub(crate) id: AllocatorId,
    /// The creator's base address.
    pub(crate) base: usize,
    pub(crate) pid: u32,
    pub(crate) kind: BackendKind,
    pub(crate) start_time: u64,
    pub(crate) nonce: u64,
    /// Offset of the first byte that an engine may have: past the custom header.
    pub(crate) payload: usize,
}

impl Facts {
    /// The first bytes of a header that says this, in state `state`.
    fn encode(&self, state: u32) -> [u8; PREFIX] {
        let mut bytes = [0; PREFIX];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            if let Some(room) = bytes.get_mut(at..at + field.len()) {
                room.copy_from_slice(field);
            }
            at += field.len();
        };
        put(&MAGIC.to_ne_bytes());
        put(&VERSION.to_ne_bytes());
        put(&LAYOUT.to_ne_bytes());
        put(&(os::page_size() as u32).to_ne_bytes());
        put(&(GRANULE as u32).to_ne_bytes());
        put(&(self.len as u64).to_ne_bytes());
        put(&self.id.to_bits().to_ne_bytes());
        put(&(self.base as u64).to_ne_bytes());
        put(&self.pid.to_ne_bytes());
        put(&(self.kind as u32).to_ne_bytes());
        put(&self.start_time.to_ne_bytes());
        put(&self.nonce.to_ne_bytes());
        put(&(self.payload as u64).to_ne_bytes());
        let sum = checksum(&bytes);
        if let Some(room) = bytes.get_mut(FIXED..FIXED + 8) {
            room.copy_from_slice(&sum.to_ne_bytes());
        }
        if let Some(room) = bytes.get_mut(FIXED + 8..) {
            room.copy_from_slice(&state.to_ne_bytes());
        }
        bytes
    }

    /// What a header says, and whether that can be believed. `bytes` are the first of the file
    /// (all of it when it is shorter than [`PREFIX`]), `file_len` its length.
    ///
    /// Total: any bytes give an answer.
    pub(crate) fn decode(bytes: &[u8], file_len: u64) -> Result<Facts> {
        if file_len == 0 {
            // The creator makes the name first, then the length, then the header.
            return Err(Error::NotReady);
        }
        let Some(bytes) = bytes.first_chunk::<PREFIX>().filter(|_| file_len >= PREFIX as u64)
        else {
            return Err(Error::Truncated { length: file_len, expected: MIN_LEN as u64 });
        };
        match (word(bytes, 0), half(bytes, STATE_OFFSET as usize)) {
            (0, STATE_MAKING) => return Err(Error::NotReady),
            (MAGIC, _) => {}
            _ => return Err(Error::NotARegion),
        }
        let same = |found: u32, expected: u32| match found == expected {
            true => Ok(()),
            false => Err(Error::Incompatible { found, expected }),
        };
        same(half(bytes, 8), VERSION)?;
        if half(bytes, STATE_OFFSET as usize) == STATE_MAKING {
            return Err(Error::NotReady);
        }
        if word(bytes, FIXED) != checksum(bytes) {
            return Err(Error::Corrupt);
        }
        same(half(bytes, 12), LAYOUT)?;
        same(half(bytes, 16), os::page_size() as u32)?;
        same(half(bytes, 20), GRANULE as u32)?;
        match half(bytes, STATE_OFFSET as usize) {
            STATE_READY => {}
            STATE_DESTROYED => return Err(Error::NotFound),
            _ => return Err(Error::Corrupt),
        }
        let length = word(bytes, 24);
        let kind = BackendKind::from_bits(half(bytes, 52)).ok_or(Error::Corrupt)?;
        let facts = Facts {
            len: length as usize,
            id: AllocatorId::from_bits(word(bytes, 32)),
            base: word(bytes, 40) as usize,
            pid: half(bytes, 48),
            kind,
            start_time: word(bytes, 56),
            nonce: word(bytes, 64),
            payload: word(bytes, 72) as usize,
        };
        let sane = facts.len >= MIN_LEN
            && facts.len <= MAX_LEN
            && facts.len.is_multiple_of(PAGE)
            && facts.base.is_multiple_of(PAGE)
            && !facts.id.is_null()
            && (HEADER_LEN..=HEADER_LEN + CUSTOM_MAX).contains(&facts.payload)
            && facts.payload.is_multiple_of(PAGE)
            && facts.payload < facts.len;
        if !sane {
            return Err(Error::Corrupt);
        }
        if file_len < length {
            return Err(Error::Truncated { length: file_len, expected: length });
        }
        Ok(facts)
    }
}

/// The number at byte `at`; the callers' positions are constants inside the prefix.
fn word(bytes: &[u8; PREFIX], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u64::from_ne_bytes(field.copied().unwrap_or_default())
}

fn half(bytes: &[u8; PREFIX], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_ne_bytes(field.copied().unwrap_or_default())
}

/// FNV-1a over the fixed fields: against accidents, not against forgers.
fn checksum(bytes: &[u8; PREFIX]) -> u64 {
    bytes.iter().take(FIXED).fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

impl Header {
    /// Writes a fresh header over a page of unknown contents, ending with the state "ready".
    ///
    /// `custom` is the custom header's size and alignment.
    pub(super) fn write(&self, facts: &Facts, custom: (usize, usize)) {
        self.state.store(STATE_MAKING, Ordering::Relaxed);
        self.engine_kind.store(0, Ordering::Relaxed);
        self.engine_offset.store(0, Ordering::Relaxed);
        self.custom_len.store(custom.0 as u64, Ordering::Relaxed);
        self.custom_align.store(custom.1 as u64, Ordering::Relaxed);
        for spare in &self.spare {
            spare.store(0, Ordering::Relaxed);
        }
        for root in &self.roots {
            root.name_hash.store(0, Ordering::Relaxed);
            root.target.store(crate::ptr::ShmPtr::NULL);
            root.generation.store(0, Ordering::Relaxed);
            root.spare.store(0, Ordering::Relaxed);
        }
        let bytes = facts.encode(STATE_MAKING);
        self.version.store(half(&bytes, 8), Ordering::Relaxed);
        self.layout.store(half(&bytes, 12), Ordering::Relaxed);
        self.page_size.store(half(&bytes, 16), Ordering::Relaxed);
        self.granule.store(half(&bytes, 20), Ordering::Relaxed);
        self.length.store(word(&bytes, 24), Ordering::Relaxed);
        self.id.store(word(&bytes, 32), Ordering::Relaxed);
        self.base.store(word(&bytes, 40), Ordering::Relaxed);
        self.pid.store(half(&bytes, 48), Ordering::Relaxed);
        self.kind.store(half(&bytes, 52), Ordering::Relaxed);
        self.start_time.store(word(&bytes, 56), Ordering::Relaxed);
        self.nonce.store(word(&bytes, 64), Ordering::Relaxed);
        self.payload.store(word(&bytes, 72), Ordering::Relaxed);
        self.checksum.store(word(&bytes, FIXED), Ordering::Relaxed);
        self.magic.store(word(&bytes, 0), Ordering::Relaxed);
        self.state.store(STATE_READY, Ordering::Release);
    }

    /// The first bytes, for [`Facts::decode`]; each word is read once.
    pub(super) fn prefix(&self) -> [u8; PREFIX] {
        // First, so that what follows is at least as new.
        let state = self.state.load(Ordering::Acquire);
        let mut bytes = [0; PREFIX];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            if let Some(room) = bytes.get_mut(at..at + field.len()) {
                room.copy_from_slice(field);
            }
            at += field.len();
        };
        put(&self.magic.load(Ordering::Relaxed).to_ne_bytes());
        for half in [&self.version, &self.layout, &self.page_size, &self.granule] {
            put(&half.load(Ordering::Relaxed).to_ne_bytes());
        }
        for word in [&self.length, &self.id, &self.base] {
            put(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        for half in [&self.pid, &self.kind] {
            put(&half.load(Ordering::Relaxed).to_ne_bytes());
        }
        for word in [&self.start_time, &self.nonce, &self.payload, &self.checksum] {
            put(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        put(&state.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            len: 1 << 20,
            id: AllocatorId::new(5, 6),
            base: 0x1230_0000_0000,
            pid: 77,
            kind: BackendKind::Memfd,
            start_time: 99,
            nonce: 0xDEAD_BEEF,
            payload: HEADER_LEN + PAGE,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = facts().encode(STATE_READY);
        assert_eq!(Facts::decode(&bytes, 1 << 20), Ok(facts()));
        assert_eq!(Facts::decode(&bytes, 1 << 21), Ok(facts()));
        let short = Error::Truncated { length: 9000, expected: 1 << 20 };
        assert_eq!(Facts::decode(&bytes, 9000), Err(short));
    }

    #[test]
    fn write_and_encode_agree() {
        // SAFETY is not at stake: a zeroed page on the stack, through safe atomics.
        let header = Header {
            magic: AtomicU64::new(1),
            version: AtomicU32::new(0),
            layout: AtomicU32::new(0),
            page_size: AtomicU32::new(0),
            granule: AtomicU32::new(0),
            length: AtomicU64::new(0),
            id: AtomicU64::new(0),
            base: AtomicU64::new(0),
            pid: AtomicU32::new(0),
            kind: AtomicU32::new(0),
            start_time: AtomicU64::new(0),
            nonce: AtomicU64::new(0),
            payload: AtomicU64::new(0),
            checksum: AtomicU64::new(0),
            state: AtomicU32::new(9),
            engine_kind: AtomicU32::new(3),
            engine_offset: AtomicU64::new(4),
            custom_len: AtomicU64::new(5),
            custom_align: AtomicU64::new(6),
            spare: [const { AtomicU64::new(7) }; 9],
            roots: [const {
                Root {
                    name_hash: AtomicU64::new(1),
                    target: AtomicShmPtr::null(),
                    generation: AtomicU32::new(1),
                    spare: AtomicU32::new(1),
                }
            }; ROOTS],
        };
        header.write(&facts(), (24, 8));
        assert_eq!(header.prefix(), facts().encode(STATE_READY));
        assert_eq!(header.state.into_inner(), STATE_READY);
        assert_eq!((header.pid.into_inner(), header.start_time.into_inner()), (77, 99));
        assert_eq!(header.base.into_inner(), 0x1230_0000_0000);
        assert_eq!(header.nonce.into_inner(), 0xDEAD_BEEF);
        assert_eq!(header.magic.into_inner(), MAGIC);
        assert_eq!(header.engine_kind.into_inner(), 0);
        assert_eq!((header.custom_len.into_inner(), header.custom_align.into_inner()), (24, 8));
    }

    #[test]
    fn says_what_is_wrong() {
        let good = facts().encode(STATE_READY);
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Facts::decode(&bytes, 1 << 20)
        };
        assert_eq!(with(0, b'H'), Err(Error::NotARegion));
        assert!(matches!(with(8, 99), Err(Error::Incompatible { found: 99, .. })));
        assert_eq!(with(30, 1), Err(Error::Corrupt));
        assert_eq!(with(88, 0), Err(Error::NotReady));
        assert_eq!(with(88, 2), Err(Error::NotFound));
        assert_eq!(with(88, 3), Err(Error::Corrupt));
        assert_eq!(Facts::decode(&[0; PREFIX], 1 << 20), Err(Error::NotReady));
        assert_eq!(Facts::decode(&[], 0), Err(Error::NotReady));
        assert!(matches!(Facts::decode(&good[..50], 50), Err(Error::Truncated { .. })));
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let good = facts().encode(STATE_READY);
        for at in 0..PREFIX {
            for bit in 0..8 {
                let mut bytes = good;
                bytes[at] ^= 1 << bit;
                assert!(Facts::decode(&bytes, 1 << 20).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn forged_lengths_with_a_good_checksum() {
        for len in [0, 1, PAGE, PAGE + 1, MAX_LEN + PAGE, usize::MAX & !(PAGE - 1)] {
            let bytes = Facts { len, ..facts() }.encode(STATE_READY);
            assert_eq!(Facts::decode(&bytes, u64::MAX), Err(Error::Corrupt));
        }
        for payload in [0, PAGE - 1, PAGE + 1, 1 << 20, 2 * PAGE + CUSTOM_MAX, usize::MAX] {
            let bytes = Facts { payload, ..facts() }.encode(STATE_READY);
            assert_eq!(Facts::decode(&bytes, u64::MAX), Err(Error::Corrupt), "{payload:#x}");
        }
        let null = Facts { id: AllocatorId::NULL, ..facts() }.encode(STATE_READY);
        assert_eq!(Facts::decode(&null, 1 << 20), Err(Error::Corrupt));
    }
}
