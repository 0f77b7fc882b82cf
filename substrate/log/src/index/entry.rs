//! What a run holds: four kinds of entries, each of fixed width, sorted by the key at its start.
//! Positions are kept relative to the run's first; everything is big-endian.
//!
//! ```text
//!   ids      id, spread over all values 16 · position 4 │ place in batch 2 · batch length 2
//!   keys     hash of segment and key 16 · position 4 │ more of the hash 4 · revision 8 ·
//!            offset in the extent 4 · length 4 · first 8 bytes of the record's BLAKE3
//!   spans    position of a frame's first event 4 │ offset in the extent 4
//!   extents  first position 4 │ last position 4 · file length 8 · end of frames 4 · epoch 8 ·
//!            hash of the last frame 32
//! ```

use tabbify_types::{EventId, Position, Rev};

use super::page::Kind;
use super::tree::Shape;
use crate::fields::{Fields, size};
use crate::frame::FrameHash;
use crate::record::BatchPlace;

/// LIMIT: positions that one run covers, as they are relative to its first.
pub(crate) const RUN_EVENTS_MAX: u64 = u32::MAX as u64;

/// Stands for a (segment, key). The first part sorts and may collide; both together do not: whoever
/// looked for two keys with the same 160 bits would look for as long as for a broken chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyHash {
    pub(crate) sort: u128,
    pub(crate) check: u32,
}

impl KeyHash {
    /// Both parts are taken from a hash; that of the segment's length keeps `a.b` + `c` from `a` +
    /// `b.c`.
    pub(crate) fn of(segment: &str, key: &str) -> Self {
        let mut bytes = [0; 2 * 128 + 1];
        let len = segment.len() + 1 + key.len();
        let hash = match (u8::try_from(segment.len()), bytes.get_mut(..len)) {
            (Ok(segment_len), Some(text)) => {
                text[0] = segment_len;
                text[1..=segment.len()].copy_from_slice(segment.as_bytes());
                text[segment.len() + 1..].copy_from_slice(key.as_bytes());
                blake3::hash(text)
            }
            // Longer than any that the log takes: nothing is found under it, whatever it is.
            _ => blake3::hash(segment.as_bytes()),
        };
        let mut parts = Fields::new(hash.as_bytes());
        Self {
            sort: parts.array().map_or(0, u128::from_be_bytes),
            check: parts.array().map_or(0, u32::from_be_bytes),
        }
    }
}

/// How texts become hashes: [`KeyHash::of`], or in tests one that collides.
pub(crate) type HashKey = fn(&str, &str) -> KeyHash;

/// Spreads ids evenly without making two alike: their upper bits are a time, and all that is sorted
/// by them would end in one page of a filter.
pub(crate) fn spread(id: EventId) -> u128 {
    let mut bits = id.uuid().as_u128();
    for odd in [
        0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835,
        0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9,
    ] {
        bits ^= bits >> 67;
        bits = bits.wrapping_mul(odd);
    }
    bits ^ bits >> 64
}

/// Where an id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: Position,
    pub(crate) batch: BatchPlace,
}

/// The place of one id, which is [`spread`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdEntry {
    pub(crate) id: u128,
    pub(crate) place: Place,
}

/// Where the record of an event is in its extent, and what its bytes must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Locator {
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) sum: [u8; 8],
}

impl Locator {
    /// Of a record that starts at `offset` of its extent.
    pub(crate) fn of(record: &[u8], offset: u64) -> Result<Self, String> {
        Ok(Self {
            offset: offset32(offset)?,
            len: u32::try_from(record.len()).map_err(|error| error.to_string())?,
            sum: Self::sum_of(record),
        })
    }

    /// Goes on to be relative to what lies `by` bytes before.
    pub(crate) fn moved(&mut self, by: u64) -> Result<(), String> {
        self.offset = offset32(u64::from(self.offset) + by)?;
        Ok(())
    }

    /// What `sum` must be for these bytes.
    pub(crate) fn sum_of(record: &[u8]) -> [u8; 8] {
        let hash = blake3::hash(record);
        std::array::from_fn(|n| hash.as_bytes()[n])
    }
}

/// An offset in an extent, which is far smaller than what has room in 32 bits.
pub(crate) fn offset32(offset: u64) -> Result<u32, String> {
    u32::try_from(offset).map_err(|_| "an extent of 4 GiB".to_owned())
}

/// One event of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyEntry {
    pub(crate) hash: KeyHash,
    pub(crate) position: Position,
    pub(crate) rev: Rev,
    pub(crate) at: Locator,
}

/// A frame to start reading at: they stand some distance apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpanEntry {
    pub(crate) first: Position,
    pub(crate) offset: u32,
}

/// A closed extent, as it was when every byte of it was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtentEntry {
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) len: u64,
    /// Where its last frame ends.
    pub(crate) end: u32,
    pub(crate) epoch: u64,
    pub(crate) hash: FrameHash,
}

/// An entry as bytes of a page. `base` is the run's first position.
pub(crate) trait Entry: Sized {
    const SHAPE: Shape;

    fn encode(&self, base: Position) -> Vec<u8>;

    /// `None` for bytes that no entry has.
    fn decode(bytes: &[u8], base: Position) -> Option<Self>;

    /// What entries are sorted by.
    fn order(&self) -> (u128, u64);
}

/// A position as a run keeps it.
pub(crate) fn relative(position: Position, base: Position) -> u32 {
    let distance = position.get().wrapping_sub(base.get());
    u32::try_from(distance).expect("INVARIANT: a run covers at most RUN_EVENTS_MAX positions")
}

struct Numbers<'a>(Fields<'a>);

impl Numbers<'_> {
    fn u16(&mut self) -> Option<u16> {
        self.0.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.0.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.0.array().map(u64::from_be_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.0.array().map(u128::from_be_bytes)
    }

    fn position(&mut self, base: Position) -> Option<Position> {
        let relative = u64::from(self.u32()?);
        base.get().checked_add(relative).map(Position)
    }
}

impl Entry for IdEntry {
    const SHAPE: Shape = Shape {
        kind: Kind::Ids,
        width: 24,
        key_len: 16,
    };

    fn encode(&self, base: Position) -> Vec<u8> {
        let Place { position, batch } = self.place;
        let mut bytes = Vec::with_capacity(Self::SHAPE.width);
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&relative(position, base).to_be_bytes());
        bytes.extend_from_slice(&batch.index.to_be_bytes());
        bytes.extend_from_slice(&batch.len.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8], base: Position) -> Option<Self> {
        let mut numbers = Numbers(Fields::new(bytes));
        let (id, position) = (numbers.u128()?, numbers.position(base)?);
        let (index, len) = (numbers.u16()?, numbers.u16()?);
        let batch = BatchPlace { index, len };
        (index < len).then_some(Self {
            id,
            place: Place { position, batch },
        })
    }

    fn order(&self) -> (u128, u64) {
        (self.id, self.place.position.get())
    }
}

impl KeyEntry {
    /// The key of an entry in its tree.
    pub(crate) fn key(sort: u128, position: Position, base: Position) -> [u8; 20] {
        let mut key = [0; 20];
        key[..16].copy_from_slice(&sort.to_be_bytes());
        key[16..].copy_from_slice(&relative(position, base).to_be_bytes());
        key
    }
}

impl Entry for KeyEntry {
    const SHAPE: Shape = Shape {
        kind: Kind::Keys,
        width: 48,
        key_len: 20,
    };

    fn encode(&self, base: Position) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SHAPE.width);
        bytes.extend_from_slice(&Self::key(self.hash.sort, self.position, base));
        bytes.extend_from_slice(&self.hash.check.to_be_bytes());
        bytes.extend_from_slice(&self.rev.get().to_be_bytes());
        bytes.extend_from_slice(&self.at.offset.to_be_bytes());
        bytes.extend_from_slice(&self.at.len.to_be_bytes());
        bytes.extend_from_slice(&self.at.sum);
        bytes
    }

    fn decode(bytes: &[u8], base: Position) -> Option<Self> {
        let mut numbers = Numbers(Fields::new(bytes));
        let (sort, position) = (numbers.u128()?, numbers.position(base)?);
        let (check, rev) = (numbers.u32()?, Rev(numbers.u64()?));
        Some(Self {
            hash: KeyHash { sort, check },
            position,
            rev,
            at: Locator {
                offset: numbers.u32()?,
                len: numbers.u32()?,
                sum: numbers.0.array()?,
            },
        })
    }

    fn order(&self) -> (u128, u64) {
        (self.hash.sort, self.position.get())
    }
}

impl Entry for SpanEntry {
    const SHAPE: Shape = Shape {
        kind: Kind::Spans,
        width: 8,
        key_len: 4,
    };

    fn encode(&self, base: Position) -> Vec<u8> {
        let first = relative(self.first, base).to_be_bytes();
        [first, self.offset.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8], base: Position) -> Option<Self> {
        let mut numbers = Numbers(Fields::new(bytes));
        Some(Self {
            first: numbers.position(base)?,
            offset: numbers.u32()?,
        })
    }

    fn order(&self) -> (u128, u64) {
        (0, self.first.get())
    }
}

impl Entry for ExtentEntry {
    const SHAPE: Shape = Shape {
        kind: Kind::Extents,
        width: 60,
        key_len: 4,
    };

    fn encode(&self, base: Position) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SHAPE.width);
        bytes.extend_from_slice(&relative(self.first, base).to_be_bytes());
        bytes.extend_from_slice(&relative(self.last, base).to_be_bytes());
        bytes.extend_from_slice(&self.len.to_be_bytes());
        bytes.extend_from_slice(&self.end.to_be_bytes());
        bytes.extend_from_slice(&self.epoch.to_be_bytes());
        bytes.extend_from_slice(&self.hash.0);
        bytes
    }

    fn decode(bytes: &[u8], base: Position) -> Option<Self> {
        let mut numbers = Numbers(Fields::new(bytes));
        let entry = Self {
            first: numbers.position(base)?,
            last: numbers.position(base)?,
            len: numbers.u64()?,
            end: numbers.u32()?,
            epoch: numbers.u64()?,
            hash: FrameHash(numbers.0.array()?),
        };
        let sound = entry.first <= entry.last && size(entry.end) as u64 <= entry.len;
        sound.then_some(entry)
    }

    fn order(&self) -> (u128, u64) {
        (0, self.first.get())
    }
}
