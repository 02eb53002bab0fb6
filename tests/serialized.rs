//! Pointers and ids as data: an id and an offset, never an address.

use hshm::{
    AllocatorId, FullPtr, MemContext, MemoryBackendId, OffsetPtr, Region, ShmPtr, ThreadId,
};
use serde::{Serialize, de::DeserializeOwned};

#[track_caller]
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T, text: &str) {
    let written = serde_json::to_string(&value).unwrap();
    assert_eq!(written, text);
    assert_eq!(serde_json::from_str::<T>(&written).unwrap(), value);
}

#[test]
fn pointers_and_ids_come_back() {
    let id = AllocatorId::new(7, u32::MAX - 1);
    round_trip(id, r#"{"major":7,"minor":4294967294}"#);
    round_trip(AllocatorId::NULL, r#"{"major":4294967295,"minor":4294967295}"#);
    round_trip(MemoryBackendId::get(3), "3");
    round_trip(ThreadId::new(12), "12");
    round_trip(MemContext::DEFAULT, r#"{"tid":-1}"#);
    assert_eq!(serde_json::from_str::<ThreadId>("-77").unwrap(), ThreadId::NULL);
    round_trip(OffsetPtr::<String>::new(4096), "4096");
    round_trip(OffsetPtr::<u8>::NULL, "18446744073709551615");
    let text = r#"[{"major":7,"minor":4294967294},4097]"#;
    round_trip(ShmPtr::<u8>::new(id, OffsetPtr::new(4097)), text);
    round_trip(
        vec![ShmPtr::<[u64; 9]>::NULL; 2],
        r#"[[{"major":4294967295,"minor":4294967295},18446744073709551615],[{"major":4294967295,"minor":4294967295},18446744073709551615]]"#,
    );
}

/// What is written is the same wherever the region is mapped, and finds its place again.
#[test]
fn a_pointer_in_a_message_is_found_again() {
    let region = Region::anonymous(AllocatorId::new(79, 1), 1 << 20).unwrap();
    let full = FullPtr::from_ptr(region.base().wrapping_add(8192).cast::<u64>()).unwrap();
    let text = serde_json::to_string(&full.shm()).unwrap();
    assert_eq!(text, r#"[{"major":79,"minor":1},8192]"#);
    let read: ShmPtr<u64> = serde_json::from_str(&text).unwrap();
    assert_eq!(FullPtr::from_shm(read).unwrap(), full);
}

#[test]
fn other_data_is_refused() {
    for text in
        ["", "{}", "[]", "7", "[1,2]", r#"[{"major":1},2]"#, r#"[{"major":1,"minor":2},-3]"#]
    {
        assert!(serde_json::from_str::<ShmPtr<u8>>(text).is_err(), "{text}");
    }
    for text in ["", "-1", "1.5", "\"8\"", "18446744073709551616"] {
        assert!(serde_json::from_str::<OffsetPtr<u8>>(text).is_err(), "{text}");
    }
    assert!(serde_json::from_str::<AllocatorId>(r#"{"major":4294967296,"minor":0}"#).is_err());
}
