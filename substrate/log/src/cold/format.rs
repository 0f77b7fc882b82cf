//! A stored extent: its blocks, each compressed alone, and behind them an index, in a frame that every
//! zstd program passes over. So `zstd -d` makes the extent of the object, and one block can be read
//! without the others.
//!
//! ```text
//!   object   zstd frame · zstd frame · … · skippable frame { index }
//!   record   index                          the same bytes, beside where the extent was
//! ```
//!
//! The index names each block by its hash and the object by its own, so whoever has the record can tell
//! every byte of the object that is not what was stored.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use tabbify_types::Position;

use crate::extent::{EXTENT_HEADER_LEN, ExtentHeader};
use crate::fields::{Fields, size};
use crate::log::LogId;

/// Bytes of an extent that are compressed together: what one event of a cold extent costs to read.
pub(crate) const BLOCK_LEN: usize = 256 * 1024;
/// LIMIT: blocks of one extent; the longest has 257.
const BLOCKS_MAX: usize = 1024;
/// LIMIT: bytes of a block that does not compress: zstd adds a few to each 128 KiB.
const COMPRESSED_LEN_MAX: usize = BLOCK_LEN + BLOCK_LEN / 64;
/// The level that zstd itself takes when it is not told: JSON becomes a fifth, at disk speed.
const LEVEL: i32 = 3;

const MAGIC: [u8; 8] = *b"tabSTORE";
/// The format that this version writes, and the newest that it reads.
const VERSION: u16 = 1;
const END_MARK: [u8; 4] = *b"/tab";
/// Opens a frame that decompressors pass over (RFC 8878 section 3.1.2).
const SKIPPABLE: u32 = 0x184D_2A5D;
const SKIPPABLE_HEADER_LEN: usize = 8;

const FIXED_LEN: usize = 64;
const BLOCK_ENTRY_LEN: usize = 36;
const DIGEST_LEN: usize = 32;
/// Behind the digest: the index's length and the end mark.
const END_LEN: usize = 8;
/// LIMIT: bytes of an index.
pub(crate) const INDEX_LEN_MAX: usize =
    FIXED_LEN + EXTENT_HEADER_LEN + BLOCKS_MAX * BLOCK_ENTRY_LEN + DIGEST_LEN + END_LEN;

/// One compressed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    /// Where it begins in the object.
    offset: u64,
    len: u32,
    /// BLAKE3 of its compressed bytes.
    hash: [u8; 32],
}

/// The index of a stored extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) log_id: LogId,
    /// The events in it.
    pub(crate) first: Position,
    pub(crate) last: Position,
    /// Length of the extent.
    pub(crate) len: u64,
    /// The extent's first sector, so that opening a log needs nothing of the object.
    pub(crate) header: [u8; EXTENT_HEADER_LEN],
    blocks: Vec<Block>,
    /// BLAKE3 of all of the above.
    pub(crate) digest: [u8; DIGEST_LEN],
}

/// Why bytes are not a stored extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// Not what was written.
    Damaged(&'static str),
    /// Of a newer program.
    Newer(u16),
}

impl Stored {
    /// Compresses the extent that `read` gives, block by block; answers the object in parts too.
    pub(crate) fn compress(
        header: &ExtentHeader,
        last: Position,
        mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<(Self, Vec<Bytes>)> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        let (mut parts, mut blocks) = (Vec::new(), Vec::new());
        let (mut offset, mut at) = (0, 0);
        let mut first_sector = [0; EXTENT_HEADER_LEN];
        while at < header.len {
            let mut raw = vec![0; raw_len(header.len, at)];
            read(&mut raw, at)?;
            if at == 0 {
                let sector = raw.get(..EXTENT_HEADER_LEN);
                let sector = sector.ok_or(io::ErrorKind::UnexpectedEof)?;
                first_sector.copy_from_slice(sector);
            }
            let block = compressor.compress(&raw)?;
            let len = u32::try_from(block.len()).map_err(io::Error::other)?;
            let hash = *blake3::hash(&block).as_bytes();
            blocks.push(Block { offset, len, hash });
            parts.push(Bytes::from(block));
            (offset, at) = (offset + u64::from(len), at + raw.len() as u64);
        }
        let mut stored = Self {
            log_id: LogId(header.log_id),
            first: header.first,
            last,
            len: header.len,
            header: first_sector,
            blocks,
            digest: [0; DIGEST_LEN],
        };
        stored.digest = *blake3::hash(&stored.covered()).as_bytes();
        let index = stored.encode();
        let mut behind = Vec::with_capacity(SKIPPABLE_HEADER_LEN + index.len());
        behind.extend_from_slice(&SKIPPABLE.to_le_bytes());
        behind.extend_from_slice(&len32(index.len()).to_le_bytes());
        behind.extend_from_slice(&index);
        parts.push(Bytes::from(behind));
        Ok((stored, parts))
    }

    /// What the digest is of.
    fn covered(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.index_len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&len32(BLOCK_LEN).to_le_bytes());
        bytes.extend_from_slice(&self.log_id.0);
        for number in [self.first.get(), self.last.get(), self.len] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&len32(self.blocks.len()).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.header);
        for block in &self.blocks {
            bytes.extend_from_slice(&block.len.to_le_bytes());
            bytes.extend_from_slice(&block.hash);
        }
        bytes
    }

    fn index_len(&self) -> usize {
        let blocks = self.blocks.len() * BLOCK_ENTRY_LEN;
        FIXED_LEN + EXTENT_HEADER_LEN + blocks + DIGEST_LEN + END_LEN
    }

    /// The index, as record and object have it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.covered();
        bytes.extend_from_slice(&self.digest);
        bytes.extend_from_slice(&len32(self.index_len()).to_le_bytes());
        bytes.extend_from_slice(&END_MARK);
        bytes
    }

    /// Reads a record: an index and nothing else.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(bytes);
        if fields.array() != Some(MAGIC) {
            return Err(FormatError::Damaged("no index of a stored extent"));
        }
        match fields.u16() {
            Some(version) if version > VERSION => return Err(FormatError::Newer(version)),
            Some(VERSION) => {}
            _ => return Err(FormatError::Damaged("an index of no version")),
        }
        let stored = Self::fields(&mut fields);
        let stored = stored.ok_or(FormatError::Damaged("an index of malformed fields"))?;
        // Everything of it is in the one form that there is, the digest included.
        let digest = *blake3::hash(&stored.covered()).as_bytes();
        if stored.digest != digest || stored.encode() != bytes {
            return Err(FormatError::Damaged("an index that contradicts its hash"));
        }
        Ok(stored)
    }

    fn fields(fields: &mut Fields<'_>) -> Option<Self> {
        let _zeroes = fields.u16()?;
        let block_len = fields.u32()?;
        let log_id = LogId(fields.array()?);
        let (first, last) = (Position(fields.u64()?), Position(fields.u64()?));
        let (len, count) = (fields.u64()?, size(fields.u32()?));
        let _zeroes = fields.u32()?;
        let header = fields.array()?;
        let due = len.div_ceil(BLOCK_LEN as u64);
        let sound = size(block_len) == BLOCK_LEN
            && (1..=BLOCKS_MAX).contains(&count)
            && due == count as u64
            && Position(0) < first
            && first <= last;
        if !sound {
            return None;
        }
        let (mut blocks, mut offset) = (Vec::with_capacity(count), 0);
        for _ in 0..count {
            let (len, hash) = (fields.u32()?, fields.array()?);
            if size(len) > COMPRESSED_LEN_MAX {
                return None;
            }
            blocks.push(Block { offset, len, hash });
            offset += u64::from(len);
        }
        Some(Self {
            log_id,
            first,
            last,
            len,
            header,
            blocks,
            digest: fields.array()?,
        })
    }

    /// Reads the index at the end of an object, of which `tail` is the end.
    pub(crate) fn of_tail(tail: &[u8]) -> Result<Self, FormatError> {
        let malformed = FormatError::Damaged("an object without an index at its end");
        let (rest, end) = tail.split_last_chunk::<END_LEN>().ok_or(malformed)?;
        let mut end = Fields::new(end);
        let len = end.u32().map_or(usize::MAX, size);
        if end.array() != Some(END_MARK) || len > rest.len() + END_LEN {
            return Err(malformed);
        }
        Self::decode(&tail[tail.len() - len..])
    }

    /// Name of the object, below the place of its store: log, first position, hash.
    pub(crate) fn name(&self) -> String {
        let hash: String = self.digest[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{}{:020}-{hash}", prefix(self.log_id), self.first.get())
    }

    /// Bytes of the object.
    pub(crate) fn object_len(&self) -> u64 {
        let blocks = self.blocks.last();
        let blocks = blocks.map_or(0, |block| block.offset + u64::from(block.len));
        blocks + (SKIPPABLE_HEADER_LEN + self.index_len()) as u64
    }

    /// Where these blocks are in the object.
    pub(crate) fn range_of(&self, blocks: Range<usize>) -> Option<Range<u64>> {
        let of = self.blocks.get(blocks)?;
        let (first, last) = (of.first()?, of.last()?);
        Some(first.offset..last.offset + u64::from(last.len))
    }

    /// Takes block `number` out of `bytes`, which begin with it; answers what follows it too.
    pub(crate) fn block<'b>(
        &self,
        number: usize,
        bytes: &'b [u8],
    ) -> Result<(Vec<u8>, &'b [u8]), &'static str> {
        let block = self.blocks.get(number).ok_or("a block that it has not")?;
        let compressed = bytes.split_at_checked(size(block.len));
        let (compressed, rest) = compressed.ok_or("it is shorter than it was")?;
        if *blake3::hash(compressed).as_bytes() != block.hash {
            return Err("a block that contradicts its hash");
        }
        let mut raw = vec![0; raw_len(self.len, Self::place_of(number))];
        let len = zstd::bulk::decompress_to_buffer(compressed, &mut raw);
        match len {
            Ok(len) if len == raw.len() => Ok((raw, rest)),
            _ => Err("a block that is not compressed as it must be"),
        }
    }

    /// Number of blocks.
    pub(crate) const fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Where block `number` begins in the extent.
    pub(crate) const fn place_of(number: usize) -> u64 {
        (number * BLOCK_LEN) as u64
    }

    /// Where block `number` begins in the object, for people.
    pub(crate) fn offset_of(&self, number: usize) -> u64 {
        self.blocks.get(number).map_or(0, |block| block.offset)
    }
}

/// Where the objects of a log are.
pub(crate) fn prefix(log_id: LogId) -> String {
    format!("{log_id}/")
}

/// Bytes of the block at `at` of an extent of `len`.
fn raw_len(len: u64, at: u64) -> usize {
    usize::try_from(len.saturating_sub(at)).map_or(BLOCK_LEN, |rest| rest.min(BLOCK_LEN))
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("INVARIANT: an index is bounded by INDEX_LEN_MAX")
}

#[cfg(test)]
mod tests;
