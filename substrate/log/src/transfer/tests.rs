//! Exports that were cut, changed or forged; logs that come back as they were.

use std::io::Cursor;

use proptest::prelude::*;
use serde_json::value::RawValue;
use tabbify_types::{EventId, Recorded, Rev, Timestamp};

use super::*;
use crate::frame::FrameBuilder;
use crate::record::BatchPlace;

const LOG_ID: LogId = LogId(*b"a log of a test!");

fn event(position: u64, text: &str) -> Recorded {
    Recorded {
        position: Position(position),
        segment: "tenant_main.apps".parse().expect("a literal segment"),
        key: "shop".to_owned(),
        rev: Rev(position),
        id: EventId::mint(),
        kind: "thing_happened".to_owned(),
        version: 1,
        at: Timestamp::from_millis(1_795_359_600_123),
        actor: "test".to_owned(),
        cause: None,
        trace: None,
        data: RawValue::from_string(format!("{{\"text\":\"{text}\"}}")).expect("JSON of a test"),
    }
}

/// The records of whole batches, one after the other.
fn records(events: &[Recorded], batch_lens: &[usize]) -> Vec<u8> {
    let mut frame = FrameBuilder::default();
    frame.clear();
    let mut events = events.iter();
    for len in batch_lens {
        for index in 0..*len {
            let small = |n: usize| u16::try_from(n).expect("a small batch");
            let place = BatchPlace {
                index: small(index),
                len: small(*len),
            };
            frame.push(events.next().expect("enough events"), place);
        }
    }
    frame.records().to_vec()
}

fn exported(commits: &[&[u8]]) -> (Vec<u8>, Content) {
    let mut export = Export::start(Vec::new(), LOG_ID).unwrap();
    for records in commits {
        export.commit(records).unwrap();
    }
    export.finish().unwrap()
}

/// Reads to the end, or says why not.
fn imported(bytes: &[u8]) -> Result<(Content, usize), TransferError> {
    let mut import = Import::start(Cursor::new(bytes))?;
    let mut events = 0;
    while let Some((frame, _)) = import.frame()? {
        events += frame.events().count();
    }
    Ok((import.content(), events))
}

#[test]
fn what_goes_out_comes_in_however_it_was_committed() {
    let wide = "x".repeat(60_000);
    let events: Vec<_> = (1..=60).map(|n| event(n, &wide)).collect();
    let one = records(&events, &[1, 2, 3, 14, 40]);
    let (bytes, content) = exported(&[&one]);
    assert_eq!(content.head, Position(60));
    assert_eq!(imported(&bytes).unwrap(), (content.clone(), 60));
    // The same events in three commits: the same file.
    let first = records(&events[..1], &[1]);
    let second = records(&events[1..6], &[2, 3]);
    let third = records(&events[6..], &[14, 40]);
    assert_eq!(
        exported(&[&first, &second, &third]),
        (bytes.clone(), content)
    );
    // A batch is never split; forty events of 60,000 bytes have a frame of their own.
    let mut import = Import::start(Cursor::new(&bytes[..])).unwrap();
    let mut counts = Vec::new();
    while let Some((frame, _)) = import.frame().unwrap() {
        counts.push(frame.header.count);
    }
    assert_eq!(counts, [6, 14, 40]);
}

#[test]
fn an_empty_log_is_two_blocks() {
    let (bytes, content) = exported(&[]);
    assert_eq!(bytes.len(), 2 * BLOCK_LEN);
    assert_eq!(imported(&bytes).unwrap(), (content, 0));
}

#[test]
fn records_that_are_no_whole_batch_are_refused() {
    let events: Vec<_> = (1..=2).map(|n| event(n, "x")).collect();
    let all = records(&events, &[2]);
    for cut in [1, all.len() / 2, all.len() - 1] {
        let mut export = Export::start(Vec::new(), LOG_ID).unwrap();
        assert!(export.commit(&all[..cut]).is_err(), "{cut}");
    }
}

fn small() -> Vec<u8> {
    let events: Vec<_> = (1..=3).map(|n| event(n, "x")).collect();
    exported(&[&records(&events, &[1, 2])]).0
}

#[test]
fn every_flipped_byte_and_every_cut_is_refused_with_its_place() {
    let bytes = small();
    assert!(imported(&bytes).is_ok());
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        let refused = imported(&changed).expect_err("a flipped byte");
        match refused {
            TransferError::Damaged { byte, .. } => {
                assert!(byte <= at as u64, "{byte} is behind {at}");
            }
            TransferError::Newer { .. } => panic!("{at}: a checksum stands before the version"),
            other => panic!("{at}: {other}"),
        }
        let Err(TransferError::Damaged { byte, what }) = imported(&bytes[..at]) else {
            panic!("{at} bytes are taken for a whole export")
        };
        assert!(
            byte == at as u64 && what.contains("not whole"),
            "{byte} {what}"
        );
    }
    let mut longer = bytes.clone();
    longer.push(0);
    let Err(TransferError::Damaged { byte, .. }) = imported(&longer) else {
        panic!("a byte behind the end")
    };
    assert_eq!(byte, bytes.len() as u64);
}

#[test]
fn frames_that_are_left_out_or_of_another_log_are_refused() {
    let wide = "x".repeat(60_000);
    let events: Vec<_> = (1..=40).map(|n| event(n, &wide)).collect();
    let (bytes, _) = exported(&[&records(&events, &[20, 20])]);
    let second = {
        let mut import = Import::start(Cursor::new(&bytes[..])).unwrap();
        let (_, first) = import.frame().unwrap().unwrap();
        BLOCK_LEN + first.len()
    };
    let end = bytes.len() - BLOCK_LEN;
    let without = |from: usize, to: usize| [&bytes[..from], &bytes[to..]].concat();
    let refused = |bytes: &[u8], at: usize, part: &str| {
        let Err(TransferError::Damaged { byte, what }) = imported(bytes) else {
            panic!("taken, where {part:?} is wrong")
        };
        assert!(
            byte == at as u64 && what.contains(part),
            "{byte} {what}, not {at} {part}"
        );
    };
    refused(&without(BLOCK_LEN, second), BLOCK_LEN, "other positions");
    refused(&without(second, end), second, "does not agree");
    refused(&without(end, bytes.len()), end, "not whole");
    // The first block of another log: the chain does not begin there.
    let other = Export::start(Vec::new(), LogId([7; 16]))
        .unwrap()
        .finish()
        .unwrap()
        .0;
    let mut mixed = other[..BLOCK_LEN].to_vec();
    mixed.extend_from_slice(&bytes[BLOCK_LEN..]);
    refused(&mixed, BLOCK_LEN, "does not follow");
    // An export of a later format says so.
    let mut newer = bytes.clone();
    newer[8] = 2;
    let sum = crc32c::crc32c(&newer[..BLOCK_LEN - 4]).to_le_bytes();
    newer[BLOCK_LEN - 4..BLOCK_LEN].copy_from_slice(&sum);
    assert!(matches!(
        imported(&newer),
        Err(TransferError::Newer { version: 2 })
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_an_error(bytes: Vec<u8>) {
        prop_assert!(imported(&bytes).is_err());
    }

    #[test]
    fn any_bytes_behind_a_good_start_are_an_error(bytes: Vec<u8>, keep in 0_usize..1600) {
        let good = small();
        let keep = keep.min(good.len() - 1);
        let mut mixed = good[..keep].to_vec();
        mixed.extend_from_slice(&bytes);
        if mixed != good {
            prop_assert!(imported(&mixed).is_err());
        }
    }
}
