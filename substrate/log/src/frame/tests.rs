//! The codec: what is written is read, and no other bytes are taken for it.

use proptest::prelude::*;
use serde_json::value::RawValue;
use tabbify_types::{EventId, Rev, Timestamp};
use uuid::Uuid;

use super::*;

fn event(position: u64, key: String, trace: Option<String>, data: &str) -> Recorded {
    Recorded {
        position: Position(position),
        segment: "tenant_main.apps".parse().expect("a segment"),
        key,
        rev: Rev(position),
        id: EventId::from_uuid(Uuid::from_u128(u128::from(position))),
        kind: "app_registered".to_owned(),
        version: 3,
        at: Timestamp::from_millis(1_795_359_600_123),
        actor: "system:test".to_owned(),
        cause: (position > 1).then(|| Position(position - 1)),
        trace,
        data: RawValue::from_string(data.to_owned()).expect("JSON"),
    }
}

/// A frame of one batch, sealed, and its events.
fn sealed(events: &[Recorded]) -> (Vec<u8>, FrameHash) {
    let mut builder = FrameBuilder::default();
    builder.clear();
    let len = u16::try_from(events.len()).expect("a batch");
    for (index, event) in (0..len).zip(events) {
        builder.push(event, BatchPlace { index, len });
    }
    let first = events[0].position;
    let before = Position(first.get() - 1);
    let (bytes, hash) = builder.seal(7, first, before, FrameHash([9; 32]));
    (bytes.to_vec(), hash)
}

fn some_events() -> impl Strategy<Value = Vec<Recorded>> {
    let one = (
        ".{1,32}",
        proptest::option::of("[ -~]{1,64}"),
        "[a-z ]{0,900}",
    );
    (1_u64..1 << 40, proptest::collection::vec(one, 1..6)).prop_map(|(first, parts)| {
        (first..)
            .zip(parts)
            .map(|(position, (key, trace, text))| {
                event(position, key, trace, &format!("{{ \"text\" :\"{text}\"}}"))
            })
            .collect()
    })
}

/// Reads everything there is to read; the answer is of no interest.
fn exercise(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        for event in frame.events().flatten() {
            let _ = event.to_recorded();
        }
    }
}

/// Both checksums of a frame made to agree with its bytes again: what is behind them gets tested.
fn reseal(bytes: &mut [u8]) {
    let len = bytes.len();
    let sum = crc32c::crc32c(&bytes[..FRAME_HEADER_LEN - 4]).to_le_bytes();
    bytes[FRAME_HEADER_LEN - 4..FRAME_HEADER_LEN].copy_from_slice(&sum);
    let hash = *blake3::hash(&bytes[..len - TRAILER_LEN]).as_bytes();
    bytes[len - TRAILER_LEN..len - 8].copy_from_slice(&hash);
    let sum = crc32c::crc32c(&bytes[..len - 8]).to_le_bytes();
    bytes[len - 8..len - 4].copy_from_slice(&sum);
}

#[test]
fn the_layout_is_the_documented_one() {
    let (bytes, hash) = sealed(&[event(5, "k".to_owned(), None, "{}")]);
    assert_eq!(bytes.len(), 512);
    assert_eq!(&bytes[..8], b"tabFRAME");
    assert_eq!(&bytes[8..12], &[1, 0, 96, 0]);
    assert_eq!(&bytes[12..16], &512_u32.to_le_bytes());
    assert_eq!(&bytes[16..24], &7_u64.to_le_bytes());
    assert_eq!(&bytes[24..32], &5_u64.to_le_bytes());
    assert_eq!(&bytes[32..40], &4_u64.to_le_bytes());
    assert_eq!(&bytes[40..44], &1_u32.to_le_bytes());
    assert_eq!(&bytes[48..80], &[9; 32]);
    assert_eq!(&bytes[472..504], &hash.0);
    assert_eq!(&bytes[508..], b"/tab");
    let record_len = 64 + 16 + 1 + 14 + 11 + 2;
    assert_eq!(&bytes[44..48], &u32::to_le_bytes(record_len));
    assert_eq!(&bytes[96..100], &u32::to_le_bytes(record_len));
    assert_eq!(&bytes[128..144], &5_u128.to_be_bytes());
    assert_eq!(&bytes[160..160 + 17], b"tenant_main.appsk");
}

#[test]
fn every_flipped_byte_is_seen() {
    let (bytes, _) = sealed(&[
        event(1, "a".to_owned(), None, "{}"),
        event(2, "b".to_owned(), None, "{}"),
    ]);
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= mask;
            assert!(Frame::decode(&flipped).is_err(), "byte {at} ^ {mask:#x}");
        }
    }
    for len in 0..bytes.len() {
        assert!(Frame::decode(&bytes[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn batches_must_be_whole() {
    let (mut bytes, _) = sealed(&[
        event(1, "a".to_owned(), None, "{}"),
        event(2, "b".to_owned(), None, "{}"),
    ]);
    // The batch of the first event claims three events, of which the frame has two.
    for record in [96, 96 + 64 + 16 + 1 + 14 + 11 + 2] {
        bytes[record + 52] = 3;
    }
    reseal(&mut bytes);
    let frame = Frame::decode(&bytes).unwrap();
    assert!(frame.events().any(|event| event.is_err()));
}

proptest! {
    #[test]
    fn frames_round_trip(events in some_events()) {
        let (bytes, hash) = sealed(&events);
        let frame = Frame::decode(&bytes).unwrap();
        prop_assert_eq!(frame.hash, hash);
        prop_assert_eq!(bytes.len() % SECTOR, 0);
        let read: Vec<_> = frame.events().map(|event| event.unwrap().to_recorded().unwrap()).collect();
        // Recorded has no equality of its own; its JSON names every field.
        let json = |events: &[Recorded]| serde_json::to_string(events).unwrap();
        prop_assert_eq!(json(&read), json(&events));
        for sector in bytes.chunks(SECTOR) {
            prop_assert!(sector.iter().filter(|byte| **byte != 0).count() >= 2);
        }
    }

    #[test]
    fn any_bytes_are_refused_in_peace(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), magic: bool) {
        if magic && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&FRAME_MAGIC);
        }
        prop_assert!(Frame::decode(&bytes).is_err());
        prop_assert!(crate::extent::ExtentHeader::decode(&bytes).is_err());
        let _ = record::decode(&bytes, Position(1));
    }

    #[test]
    fn perturbed_frames_never_panic(
        events in some_events(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut bytes, _) = sealed(&events);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        exercise(&bytes);
        reseal(&mut bytes);
        exercise(&bytes);
    }

    #[test]
    fn the_sparsest_frames_have_no_empty_sector(count in 1_usize..40) {
        let nul = |len: usize| "\0".repeat(len);
        let events: Vec<_> = (1..=count as u64)
            .map(|position| Recorded {
                actor: nul(128),
                segment: "a".parse().expect("a segment"),
                kind: "a".to_owned(),
                ..event(position, nul(128), Some(nul(64)), "{}")
            })
            .collect();
        let (bytes, _) = sealed(&events);
        for sector in bytes.chunks(SECTOR) {
            prop_assert!(sector.iter().filter(|byte| **byte != 0).count() >= 2);
        }
    }
}
