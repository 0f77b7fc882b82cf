//! The form of stored extents: back and forth, every flip, hostile bytes.

use proptest::prelude::*;

use super::*;
use crate::frame::FrameHash;

fn header(len: u64) -> ExtentHeader {
    ExtentHeader {
        len,
        first: Position(4711),
        log_id: *b"a log of a proof",
        previous: FrameHash([7; 32]),
    }
}

/// An extent of so many bytes, its header in front.
fn extent(len: usize) -> Vec<u8> {
    let mut bytes = header(len as u64).encode();
    let pattern = (0..=250_u8).cycle();
    bytes.extend(pattern.take((len / 2).saturating_sub(EXTENT_HEADER_LEN)));
    bytes.resize(len, 0);
    bytes
}

fn stored(bytes: &[u8]) -> (Stored, Vec<u8>) {
    let read = |buf: &mut [u8], at: u64| {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        buf.copy_from_slice(&bytes[at..at + buf.len()]);
        Ok(())
    };
    let made = Stored::compress(&header(bytes.len() as u64), Position(5000), read);
    let (stored, parts) = made.expect("memory can be read");
    (stored, parts.concat())
}

fn expand(stored: &Stored, object: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (mut rest, mut bytes) = (object, Vec::new());
    for number in 0..stored.blocks.len() {
        let (raw, behind) = stored.block(number, rest)?;
        bytes.extend(raw);
        rest = behind;
    }
    Ok(bytes)
}

#[test]
fn an_extent_comes_back_whole_or_in_blocks() {
    for len in [512, BLOCK_LEN, BLOCK_LEN + 512, 3 * BLOCK_LEN + 1024] {
        let bytes = extent(len);
        let (stored, object) = stored(&bytes);
        assert_eq!(stored.object_len(), object.len() as u64);
        assert!(object.len() < len / 4 + 2048, "{} of {len}", object.len());
        assert_eq!(Stored::decode(&stored.encode()), Ok(stored.clone()));
        assert_eq!(Stored::of_tail(&object), Ok(stored.clone()));
        assert_eq!(expand(&stored, &object), Ok(bytes.clone()));
        assert_eq!(stored.header[..], bytes[..EXTENT_HEADER_LEN]);
        let last = stored.blocks.len() - 1;
        let range = stored.range_of(last..last + 1).unwrap();
        let of_last = &object[usize::try_from(range.start).unwrap()..];
        let (raw, _) = stored.block(last, of_last).unwrap();
        assert_eq!(raw, bytes[last * BLOCK_LEN..]);
        // What any program makes of it.
        let all = zstd::stream::decode_all(&object[..]).unwrap();
        assert_eq!(all, bytes);
    }
}

#[test]
fn every_flipped_byte_of_object_and_record_is_seen() {
    let bytes = extent(BLOCK_LEN + 512);
    let (stored, mut object) = stored(&bytes);
    let blocks = usize::try_from(stored.range_of(0..2).unwrap().end).unwrap();
    for at in 0..object.len() {
        object[at] ^= 1 << (at % 8);
        let seen = if at < blocks {
            expand(&stored, &object).is_err()
        } else {
            // The eight bytes before the index are zstd's own.
            at < blocks + SKIPPABLE_HEADER_LEN || Stored::of_tail(&object).is_err()
        };
        assert!(seen, "byte {at}");
        object[at] ^= 1 << (at % 8);
    }
    let record = stored.encode();
    for at in 0..record.len() {
        let mut flipped = record.clone();
        flipped[at] ^= 0x80 >> (at % 8);
        assert!(Stored::decode(&flipped).is_err(), "byte {at}");
        assert!(Stored::decode(&record[..at]).is_err(), "cut at {at}");
    }
    let mut newer = record;
    newer[8] = 2;
    assert_eq!(Stored::decode(&newer), Err(FormatError::Newer(2)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn hostile_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..700), cut in 0..64_usize) {
        prop_assert!(Stored::decode(&bytes).is_err());
        prop_assert!(Stored::of_tail(&bytes).is_err());
        // With a beginning that is right.
        let (stored, _) = stored(&extent(512));
        let mut begun = stored.encode();
        begun.truncate(cut);
        begun.extend_from_slice(&bytes);
        prop_assert!(Stored::decode(&begun).is_err());
        prop_assert!(stored.block(0, &bytes).is_err());
    }
}
