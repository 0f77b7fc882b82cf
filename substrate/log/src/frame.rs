//! A frame: what one commit writes. All numbers are little-endian.
//!
//! ```text
//!     0 ├ magic "tabFRAME"            8 bytes
//!     8 ├ format version, u16         these four and the header's checksum keep their
//!    10 ├ header length, u16 = 96     place in every version, so that a newer format
//!    12 ├ frame length, u32           is told from damage
//!    16 ├ epoch, u64                  term of the writer: one more at every open
//!    24 ├ first position, u64
//!    32 ├ durable_upto, u64           last position on disk before this frame
//!    40 ├ event count, u32
//!    44 ├ records length, u32
//!    48 ├ hash of the previous frame  32 bytes; the first frame has the log's genesis hash
//!    80 ├ 0                           12 bytes
//!    92 ├ crc32c of bytes 0..92, u32
//!    96 ├ event records               see record.rs
//!       ├ 0                           to a whole number of 512-byte sectors
//!  L-40 ├ BLAKE3 of bytes 0..L-40     32 bytes: this frame's hash, the link of the chain
//!   L-8 ├ crc32c of bytes 0..L-8, u32
//!   L-4 ├ end mark "/tab"             no byte of it is zero or has a single bit
//!     L ┘
//! ```
//!
//! INVARIANT: every sector of a frame has at least two non-zero bytes and its last byte is not
//! zero: JSON and types contain no NUL, and keys, actors and traces, which may, are too short to
//! fill a sector together. `tail` proves a torn write from that.

use tabbify_api::log::BATCH_LEN_MAX;
use tabbify_types::{Position, Recorded};

use crate::fields::{Fields, size};
use crate::record::{self, BatchPlace, EventRef, RECORD_HEADER_LEN};

/// The format that this version writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// Frames start at multiples of this, and a disk writes this much or nothing.
pub(crate) const SECTOR: usize = 512;
pub(crate) const FRAME_MAGIC: [u8; 8] = *b"tabFRAME";
pub(crate) const FRAME_HEADER_LEN: usize = 96;
pub(crate) const TRAILER_LEN: usize = 40;
/// LIMIT: bytes of one frame; a batch of the greatest length fits.
pub(crate) const FRAME_LEN_MAX: usize = frame_len(BATCH_LEN_MAX);
const END_MARK: [u8; 4] = *b"/tab";

/// Bytes of a frame with this many bytes of records.
pub(crate) const fn frame_len(records_len: usize) -> usize {
    (FRAME_HEADER_LEN + records_len + TRAILER_LEN).next_multiple_of(SECTOR)
}

/// BLAKE3 of a frame: what the next one names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHash(pub(crate) [u8; 32]);

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// No frame starts here: no magic, or a header that contradicts its checksum.
    Header(&'static str),
    /// A frame of a later format.
    Newer(u16),
    /// A frame starts here, and something in it is wrong.
    Body(&'static str),
    /// All content is there and agrees with both checksums; only the end mark is wrong.
    EndMark,
}

impl FrameError {
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Header(what) | Self::Body(what) => what,
            Self::Newer(_) => "a frame of a newer format",
            Self::EndMark => "a frame without its end mark",
        }
    }
}

/// The first 96 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: u32,
    pub(crate) epoch: u64,
    pub(crate) first: Position,
    pub(crate) durable_upto: Position,
    pub(crate) count: u32,
    pub(crate) records_len: u32,
    pub(crate) previous: FrameHash,
}

impl FrameHeader {
    /// Reads the start of `bytes`, which may be longer.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(bytes) = bytes.get(..FRAME_HEADER_LEN) else {
            return Err(FrameError::Header("too few bytes for a frame header"));
        };
        if bytes[..8] != FRAME_MAGIC {
            return Err(FrameError::Header("no frame magic"));
        }
        let (covered, sum) = bytes.split_at(FRAME_HEADER_LEN - 4);
        if crc32c::crc32c(covered).to_le_bytes() != sum {
            return Err(FrameError::Header(
                "a frame header that contradicts its checksum",
            ));
        }
        Self::fields(&covered[8..])
            .unwrap_or(Err(FrameError::Body("a frame header of malformed fields")))
    }

    fn fields(bytes: &[u8]) -> Option<Result<Self, FrameError>> {
        let mut fields = Fields::new(bytes);
        let (version, header_len, len) = (fields.u16()?, fields.u16()?, fields.u32()?);
        if version > FORMAT_VERSION {
            return Some(Err(FrameError::Newer(version)));
        }
        let header = Self {
            len,
            epoch: fields.u64()?,
            first: Position(fields.u64()?),
            durable_upto: Position(fields.u64()?),
            count: fields.u32()?,
            records_len: fields.u32()?,
            previous: FrameHash(fields.array()?),
        };
        let records_len = size(header.records_len);
        let sound = fields.array::<12>()? == [0; 12]
            && version == FORMAT_VERSION
            && usize::from(header_len) == FRAME_HEADER_LEN
            && size(len) <= FRAME_LEN_MAX
            && records_len <= BATCH_LEN_MAX
            && frame_len(records_len) == size(len)
            && header.count > 0
            && size(header.count) <= records_len / RECORD_HEADER_LEN
            && header.first > header.durable_upto
            && header
                .first
                .get()
                .checked_add(u64::from(header.count))
                .is_some();
        sound.then_some(Ok(header))
    }

    /// Position of the last event.
    pub(crate) const fn last(&self) -> Position {
        Position(self.first.get() + self.count as u64 - 1)
    }
}

/// A frame whose checksums agree, over its bytes.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) header: FrameHeader,
    pub(crate) hash: FrameHash,
    records: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame at the start of `bytes`, which may be longer.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let header = FrameHeader::decode(bytes)?;
        let Some(bytes) = bytes.get(..size(header.len)) else {
            return Err(FrameError::Body("a frame that is cut off"));
        };
        let (hashed, trailer) = bytes.split_at(bytes.len() - TRAILER_LEN);
        let (hash, trailer) = trailer.split_at(32);
        let (sum, mark) = trailer.split_at(4);
        if crc32c::crc32c(&bytes[..bytes.len() - 8]).to_le_bytes() != sum {
            return Err(FrameError::Body("a frame that contradicts its checksum"));
        }
        if blake3::hash(hashed).as_bytes() != hash {
            return Err(FrameError::Body("a frame that contradicts its hash"));
        }
        if mark != END_MARK {
            return Err(FrameError::EndMark);
        }
        let records_end = FRAME_HEADER_LEN + size(header.records_len);
        let (records, padding) = (
            &hashed[FRAME_HEADER_LEN..records_end],
            &hashed[records_end..],
        );
        if padding.iter().any(|byte| *byte != 0) {
            return Err(FrameError::Body("padding that is not zero"));
        }
        let mut link = [0; 32];
        link.copy_from_slice(hash);
        Ok(Self {
            header,
            hash: FrameHash(link),
            records,
        })
    }

    /// The bytes of its event records.
    pub(crate) const fn records(&self) -> &'a [u8] {
        self.records
    }

    /// Its events in position order; ends after the first that is malformed.
    pub(crate) fn events(&self) -> Events<'a> {
        Events {
            rest: self.records,
            next: self.header.first,
            last: self.header.last(),
            place: BatchPlace { index: 0, len: 0 },
        }
    }
}

/// The events of one frame. Batches must be whole, and as many as the header says.
#[derive(Debug)]
pub(crate) struct Events<'a> {
    rest: &'a [u8],
    next: Position,
    last: Position,
    place: BatchPlace,
}

impl<'a> Events<'a> {
    fn take(&mut self) -> Result<EventRef<'a>, &'static str> {
        let (event, len) = record::decode(self.rest, self.next)?;
        let expected = if self.place.index == self.place.len {
            BatchPlace {
                index: 0,
                len: event.place.len,
            }
        } else {
            self.place
        };
        if event.place != expected {
            return Err("an event out of its batch");
        }
        self.place = BatchPlace {
            index: expected.index + 1,
            len: expected.len,
        };
        self.rest = &self.rest[len..];
        if self.next == self.last && !(self.rest.is_empty() && self.place.index == self.place.len) {
            return Err("events beyond the count, or a batch that is not whole");
        }
        self.next = self.next.next();
        Ok(event)
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<EventRef<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next > self.last {
            return None;
        }
        let taken = self.take();
        if taken.is_err() {
            self.next = self.last.next();
        }
        Some(taken)
    }
}

/// A frame being filled; its buffer is used again and again.
#[derive(Debug, Default)]
pub(crate) struct FrameBuilder {
    buf: Vec<u8>,
    count: u32,
}

impl FrameBuilder {
    /// Empties it.
    pub(crate) fn clear(&mut self) {
        self.buf.clear();
        self.buf.resize(FRAME_HEADER_LEN, 0);
        self.count = 0;
    }

    /// Length of the frame if `more` bytes of records came in.
    pub(crate) fn len_with(&self, more: usize) -> usize {
        frame_len(self.buf.len() - FRAME_HEADER_LEN + more)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds an event; the caller has seen to the limits. Answers its record, and where in the frame
    /// that starts.
    pub(crate) fn push(&mut self, event: &Recorded, place: BatchPlace) -> (&[u8], usize) {
        let start = self.buf.len();
        record::encode(&mut self.buf, event, place);
        self.count += 1;
        (&self.buf[start..], start)
    }

    /// Adds `count` events by their records, as another frame has them.
    pub(crate) fn push_encoded(&mut self, records: &[u8], count: u32) {
        self.buf.extend_from_slice(records);
        self.count += count;
    }

    /// The bytes of the event records so far.
    pub(crate) fn records(&self) -> &[u8] {
        self.buf.get(FRAME_HEADER_LEN..).unwrap_or_default()
    }

    /// The whole frame and its hash.
    pub(crate) fn seal(
        &mut self,
        epoch: u64,
        first: Position,
        durable_upto: Position,
        previous: FrameHash,
    ) -> (&[u8], FrameHash) {
        let records_len = self.buf.len() - FRAME_HEADER_LEN;
        let len = frame_len(records_len);
        let as_u32 = |len: usize| {
            u32::try_from(len).expect("INVARIANT: the writer keeps frames below FRAME_LEN_MAX")
        };
        let mut header = Vec::with_capacity(FRAME_HEADER_LEN);
        header.extend_from_slice(&FRAME_MAGIC);
        header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        header.extend_from_slice(&u16::try_from(FRAME_HEADER_LEN).unwrap_or(0).to_le_bytes());
        header.extend_from_slice(&as_u32(len).to_le_bytes());
        header.extend_from_slice(&epoch.to_le_bytes());
        header.extend_from_slice(&first.get().to_le_bytes());
        header.extend_from_slice(&durable_upto.get().to_le_bytes());
        header.extend_from_slice(&self.count.to_le_bytes());
        header.extend_from_slice(&as_u32(records_len).to_le_bytes());
        header.extend_from_slice(&previous.0);
        header.extend_from_slice(&[0; 12]);
        header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        self.buf[..FRAME_HEADER_LEN].copy_from_slice(&header);
        self.buf.resize(len - TRAILER_LEN, 0);
        let hash = FrameHash(*blake3::hash(&self.buf).as_bytes());
        self.buf.extend_from_slice(&hash.0);
        self.buf
            .extend_from_slice(&crc32c::crc32c(&self.buf).to_le_bytes());
        self.buf.extend_from_slice(&END_MARK);
        (&self.buf, hash)
    }
}

#[cfg(test)]
mod tests;
