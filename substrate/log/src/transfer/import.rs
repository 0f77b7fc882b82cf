//! In: an export is verified frame by frame as it is read. Its bytes may be anything.

use std::io::{self, Read};

use tabbify_types::envelope::DATA_LEN_MAX;
use tabbify_types::{Digest, Position};

use super::{BLOCK_LEN, Content, END_MAGIC, FORMAT_VERSION, START_MAGIC, TransferError};
use crate::extent;
use crate::fields::{Fields, size};
use crate::frame::{FRAME_HEADER_LEN, FRAME_MAGIC, Frame, FrameHash, FrameHeader};
use crate::log::LogId;

/// An export being read. Holds one frame in memory.
#[derive(Debug)]
pub(crate) struct Import<R> {
    from: R,
    log_id: LogId,
    /// Bytes read.
    byte: u64,
    head: Position,
    frames: u64,
    hash: FrameHash,
    digest: blake3::Hasher,
    buf: Vec<u8>,
}

impl<R: Read> Import<R> {
    /// Reads the first block.
    pub(crate) fn start(from: R) -> Result<Self, TransferError> {
        let mut this = Self {
            from,
            log_id: LogId([0; 16]),
            byte: 0,
            head: Position(0),
            frames: 0,
            hash: FrameHash([0; 32]),
            digest: blake3::Hasher::new(),
            buf: Vec::new(),
        };
        this.fill(BLOCK_LEN)?;
        let mut fields = this.block(START_MAGIC, 0)?;
        let log_id = fields.array();
        let rest = fields.bytes(BLOCK_LEN - 4 - 16 - 16);
        let (Some(log_id), true) = (log_id, rest.is_some_and(is_zero)) else {
            return Err(TransferError::damaged(
                0,
                "a first block of malformed fields",
            ));
        };
        this.log_id = LogId(log_id);
        this.hash = extent::genesis(log_id);
        this.buf.clear();
        Ok(this)
    }

    pub(crate) const fn log_id(&self) -> LogId {
        self.log_id
    }

    /// The next frame, verified, with its bytes; `None` at the end, when everything has been.
    pub(crate) fn frame(&mut self) -> Result<Option<(Frame<'_>, &[u8])>, TransferError> {
        let at = self.byte;
        self.buf.clear();
        self.fill(FRAME_MAGIC.len())?;
        if self.buf == END_MAGIC {
            self.end(at)?;
            return Ok(None);
        }
        self.fill(FRAME_HEADER_LEN)?;
        let wrong = |what: &str| TransferError::damaged(at, what);
        let header = FrameHeader::decode(&self.buf).map_err(|error| wrong(error.what()))?;
        self.fill(size(header.len))?;
        let frame = Frame::decode(&self.buf).map_err(|error| wrong(error.what()))?;
        let due = self.head.next();
        if header.first != due || header.durable_upto != self.head {
            return Err(wrong("a frame of other positions than are due"));
        }
        if header.previous != self.hash || header.epoch != 0 {
            return Err(wrong("a frame that does not follow the one before it"));
        }
        for event in frame.events() {
            let event = event.map_err(wrong)?;
            if event.data.len() > DATA_LEN_MAX {
                return Err(wrong("an event with more data than one may have"));
            }
            event.to_recorded().map_err(wrong)?;
        }
        self.head = header.last();
        self.hash = frame.hash;
        self.frames += 1;
        self.digest.update(frame.records());
        Ok(Some((frame, &self.buf)))
    }

    /// What was in it, once [`Import::frame`] has ended.
    pub(crate) fn content(&self) -> Content {
        Content {
            log_id: self.log_id,
            head: self.head,
            digest: Digest(*self.digest.finalize().as_bytes()),
        }
    }

    fn end(&mut self, at: u64) -> Result<(), TransferError> {
        self.fill(BLOCK_LEN)?;
        let digest = *self.digest.finalize().as_bytes();
        let mut fields = self.block(END_MAGIC, at)?;
        let agrees = fields.array() == Some(self.log_id.0)
            && fields.u64() == Some(self.head.get())
            && fields.u64() == Some(self.frames)
            && fields.array() == Some(self.hash.0)
            && fields.array() == Some(digest)
            && fields.bytes(BLOCK_LEN - 4 - 16 - 96).is_some_and(is_zero);
        if !agrees {
            return Err(TransferError::damaged(
                at,
                "an end that does not agree with what came before",
            ));
        }
        let behind = self.byte;
        match self.from.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(TransferError::damaged(behind, "bytes behind the end")),
            Err(error) => Err(unreadable(behind, &error)),
        }
    }

    /// The fields of the block in the buffer, behind what every block begins with.
    fn block(&self, magic: [u8; 8], at: u64) -> Result<Fields<'_>, TransferError> {
        let wrong = |what: &str| Err(TransferError::damaged(at, what));
        let (covered, sum) = self.buf.split_at(BLOCK_LEN - 4);
        if covered[..8] != magic {
            return wrong("not an export of a log");
        }
        if crc32c::crc32c(covered).to_le_bytes() != sum {
            return wrong("a block that contradicts its checksum");
        }
        let mut fields = Fields::new(&covered[8..]);
        let head = (fields.u16(), fields.u16(), fields.array::<4>());
        match head {
            (Some(version), ..) if version > FORMAT_VERSION => {
                Err(TransferError::Newer { version })
            }
            (Some(FORMAT_VERSION), Some(len), Some([0, 0, 0, 0]))
                if usize::from(len) == BLOCK_LEN =>
            {
                Ok(fields)
            }
            _ => wrong("a block of malformed fields"),
        }
    }

    /// Reads on until the buffer has `len` bytes.
    fn fill(&mut self, len: usize) -> Result<(), TransferError> {
        let have = self.buf.len();
        self.buf.resize(len.max(have), 0);
        let mut at = have;
        while at < len {
            match self.from.read(&mut self.buf[at..len]) {
                Ok(0) => {
                    return Err(TransferError::damaged(
                        self.byte,
                        "it ends here, before its end block: it is not whole",
                    ));
                }
                Ok(read) => {
                    at += read;
                    self.byte += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(self.byte, &error)),
            }
        }
        Ok(())
    }
}

fn unreadable(byte: u64, error: &io::Error) -> TransferError {
    TransferError::damaged(byte, format!("it cannot be read: {error}"))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
