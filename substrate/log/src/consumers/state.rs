//! A consumer's file: what it is and how it stands, whole or not at all.
//!
//! ```text
//!   tabbify-consumer 1 <crc32c of the rest, 8 hex digits>\n
//!   { "owner": …, "consumer": …, "globs": …, "state": … }
//! ```

use serde::{Deserialize, Serialize};
use tabbify_api::consumers::{Consumer, Parked};
use tabbify_types::{Position, SegmentGlob};

/// The format that this program writes, and the newest that it reads.
const VERSION: u32 = 1;
const MAGIC: &str = "tabbify-consumer";
/// LIMIT: bytes of one file; the greatest state, with every list and reason at its limit, is below it.
pub(crate) const FILE_LEN_MAX: u64 = 64 * 1024 * 1024;

/// What a crash must not lose of a consumer's progress. Every event up to `read` that is not
/// `unsettled` is settled, every later one has not been looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    pub(crate) read: Position,
    pub(crate) unsettled: Vec<Unsettled>,
    pub(crate) parked: Vec<Parked>,
}

/// An event that is still to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unsettled {
    pub(crate) position: Position,
    #[serde(default)]
    pub(crate) failures: u32,
    #[serde(default)]
    pub(crate) reason: String,
}

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    /// Who made it.
    pub(crate) owner: String,
    /// As it was asked for.
    pub(crate) consumer: Consumer,
    /// The segments that it reads.
    pub(crate) globs: Vec<SegmentGlob>,
    pub(crate) state: Snapshot,
}

impl Stored {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("INVARIANT: our own shapes serialize");
        let mut bytes = format!("{MAGIC} {VERSION} {:08x}\n", crc32c::crc32c(&body)).into_bytes();
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads a file; what is wrong with it is the error.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let line = bytes.iter().take(64).position(|byte| *byte == b'\n');
        let (head, rest) = bytes.split_at(line.ok_or("it has no first line")?);
        let (head, body) = (std::str::from_utf8(head), &rest[1..]);
        let mut words = head.map_err(|_| "its first line is no text")?.split(' ');
        if words.next() != Some(MAGIC) {
            return Err("it is not a consumer's file".to_owned());
        }
        let version: Option<u32> = words.next().and_then(|word| word.parse().ok());
        let version = version.ok_or("its first line names no version")?;
        if version != VERSION {
            return Err(format!(
                "it has format {version}, and this program reads {VERSION}; upgrade it"
            ));
        }
        let sum = format!("{:08x}", crc32c::crc32c(body));
        if words.next() != Some(&*sum) || words.next().is_some() {
            return Err("its content contradicts its checksum".to_owned());
        }
        let stored: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        stored.state.check()?;
        Ok(stored)
    }
}

impl Snapshot {
    /// A consumer that has seen nothing after `start`.
    pub(crate) const fn at(start: Position) -> Self {
        Self {
            read: start,
            unsettled: Vec::new(),
            parked: Vec::new(),
        }
    }

    /// A checksum says that the bytes are as written, not that they make sense.
    fn check(&self) -> Result<(), String> {
        let rising = |positions: &mut dyn Iterator<Item = Position>| {
            let mut last = Position(0);
            for position in positions {
                if position <= last || position > self.read {
                    return false;
                }
                last = position;
            }
            true
        };
        if rising(&mut self.unsettled.iter().map(|unsettled| unsettled.position))
            && rising(&mut self.parked.iter().map(|parked| parked.position))
        {
            Ok(())
        } else {
            Err("its positions are out of order".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tabbify_types::Timestamp;

    use super::*;

    fn stored() -> Stored {
        let parked = Parked {
            position: Position(3),
            segment: "tenant_main.apps".parse().expect("a literal segment"),
            key: "a\0b\n".to_owned(),
            attempts: 5,
            reason: "because \"ü\"".to_owned(),
            at: Timestamp::from_secs(1_700_000_000),
        };
        let unsettled = |position, failures| Unsettled {
            position: Position(position),
            failures,
            reason: "late".to_owned(),
        };
        Stored {
            owner: "service:placer".to_owned(),
            consumer: serde_json::from_str("{}").expect("a consumer"),
            globs: vec![SegmentGlob::all()],
            state: Snapshot {
                read: Position(9),
                unsettled: vec![unsettled(2, 1), unsettled(9, 0)],
                parked: vec![parked],
            },
        }
    }

    #[test]
    fn round_trip() {
        let bytes = stored().encode();
        assert_eq!(Stored::decode(&bytes).unwrap(), stored());
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_seen() {
        let bytes = stored().encode();
        for at in 0..bytes.len() {
            for mask in [1, 0x20, 0x80] {
                let mut bytes = bytes.clone();
                bytes[at] ^= mask;
                assert!(Stored::decode(&bytes).is_err(), "byte {at} with {mask}");
            }
            assert!(Stored::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |change: fn(&mut Stored), part: &str| {
            let mut stored = stored();
            change(&mut stored);
            let error = Stored::decode(&stored.encode()).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        check(|s| s.state.read = Position(8), "out of order");
        check(|s| s.state.unsettled.reverse(), "out of order");
        check(
            |s| s.state.unsettled[0].position = Position(0),
            "out of order",
        );
        check(
            |s| s.state.parked[0].position = Position(10),
            "out of order",
        );
        let newer = b"tabbify-consumer 2 00000000\n{}";
        assert!(Stored::decode(newer).unwrap_err().contains("upgrade"));
        assert!(
            Stored::decode(b"x 1 2\n")
                .unwrap_err()
                .contains("not a consumer")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_state(head in "(tabbify-consumer )?[0-9a-f ]{0,12}\n?", rest: Vec<u8>) {
            let mut bytes = head.into_bytes();
            bytes.extend(rest);
            let _ = Stored::decode(&bytes);
        }
    }
}
