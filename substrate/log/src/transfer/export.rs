//! Out: the records of commits become the frames of an export.

use std::io::{self, Write};

use tabbify_types::{Digest, Position};

use super::{BLOCK_LEN, Content, END_MAGIC, FORMAT_VERSION, START_MAGIC};
use crate::extent;
use crate::frame::{FrameBuilder, FrameHash};
use crate::log::LogId;
use crate::record;

/// Bytes of records in a frame, unless one batch alone has more.
const FRAME_RECORDS_LEN: usize = 1024 * 1024;

/// An export being written. Holds one frame in memory.
#[derive(Debug)]
pub(crate) struct Export<W> {
    out: W,
    log_id: LogId,
    frame: FrameBuilder,
    /// Of the last event.
    head: Position,
    /// Of the last frame.
    written: Position,
    frames: u64,
    hash: FrameHash,
    digest: blake3::Hasher,
}

impl<W: Write> Export<W> {
    /// Begins with the first block.
    pub(crate) fn start(mut out: W, log_id: LogId) -> io::Result<Self> {
        let mut block = Block::of(START_MAGIC);
        block.put(&log_id.0);
        out.write_all(&block.seal())?;
        let mut frame = FrameBuilder::default();
        frame.clear();
        Ok(Self {
            out,
            log_id,
            frame,
            head: Position(0),
            written: Position(0),
            frames: 0,
            hash: extent::genesis(log_id.0),
            digest: blake3::Hasher::new(),
        })
    }

    /// Takes the records of a commit, which are whole batches that follow on what is there.
    pub(crate) fn commit(&mut self, mut records: &[u8]) -> io::Result<()> {
        self.digest.update(records);
        while !records.is_empty() {
            let (count, len) = batch(records, self.head.next())
                .map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
            let (batch, rest) = records.split_at(len);
            let full = self.frame.records().len() + len > FRAME_RECORDS_LEN;
            if full && !self.frame.is_empty() {
                self.close_frame()?;
            }
            self.frame.push_encoded(batch, count);
            self.head = Position(self.head.get() + u64::from(count));
            records = rest;
        }
        Ok(())
    }

    fn close_frame(&mut self) -> io::Result<()> {
        let (bytes, hash) = self
            .frame
            .seal(0, self.written.next(), self.written, self.hash);
        self.out.write_all(bytes)?;
        self.hash = hash;
        self.written = self.head;
        self.frames += 1;
        self.frame.clear();
        Ok(())
    }

    /// Writes the last block and gives back what was written to.
    pub(crate) fn finish(mut self) -> io::Result<(W, Content)> {
        if !self.frame.is_empty() {
            self.close_frame()?;
        }
        let digest = *self.digest.finalize().as_bytes();
        let mut block = Block::of(END_MAGIC);
        block.put(&self.log_id.0);
        block.put(&self.head.get().to_le_bytes());
        block.put(&self.frames.to_le_bytes());
        block.put(&self.hash.0);
        block.put(&digest);
        self.out.write_all(&block.seal())?;
        self.out.flush()?;
        let content = Content {
            log_id: self.log_id,
            head: self.head,
            digest: Digest(digest),
        };
        Ok((self.out, content))
    }
}

/// The events and bytes of the batch that `records` begin with.
fn batch(records: &[u8], first: Position) -> Result<(u32, usize), &'static str> {
    let (mut count, mut len) = (0, 0);
    loop {
        let rest = records.get(len..).filter(|rest| !rest.is_empty());
        let rest = rest.ok_or("a batch that is not whole")?;
        let position = Position(first.get() + u64::from(count));
        let (event, event_len) = record::decode(rest, position)?;
        if u32::from(event.place.index) != count {
            return Err("an event out of its batch");
        }
        count += 1;
        len += event_len;
        if u32::from(event.place.len) == count {
            return Ok((count, len));
        }
    }
}

/// The first or the last 512 bytes of an export.
struct Block(Vec<u8>);

impl Block {
    fn of(magic: [u8; 8]) -> Self {
        let mut bytes = Vec::with_capacity(BLOCK_LEN);
        bytes.extend_from_slice(&magic);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(BLOCK_LEN).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        Self(bytes)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn seal(mut self) -> Vec<u8> {
        self.0.resize(BLOCK_LEN - 4, 0);
        let sum = crc32c::crc32c(&self.0).to_le_bytes();
        self.0.extend_from_slice(&sum);
        self.0
    }
}
