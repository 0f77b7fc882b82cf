//! A range of a file as a reader of its own, so that many can read one file at once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// `len` bytes of a file, from `start` on.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    file: Arc<File>,
    start: u64,
    len: u64,
    at: u64,
}

impl Slice {
    /// The whole of a file as long as it is now.
    pub(crate) fn whole(file: Arc<File>) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            start: 0,
            len,
            at: 0,
        })
    }

    /// A part of this one, read from its own beginning; `None` if it is not wholly inside.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self {
            file: Arc::clone(&self.file),
            start: self.start + offset,
            len,
            at: 0,
        })
    }

    /// Its length.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.at);
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if count == 0 {
            return Ok(0);
        }
        let read = self
            .file
            .read_at(&mut buffer[..count], self.start + self.at)?;
        if read == 0 {
            // The file was cut while it was read: its end is not the range's.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Slice {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
