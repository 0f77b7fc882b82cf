//! The log that a restore puts together: frames in order, in extents as they were.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tabbify_types::Position;

use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader};
use crate::frame::{FRAME_LEN_MAX, FrameHash, SECTOR};
use crate::log::LogId;

use super::copy::Found;

/// LIMIT: the longest extent that is made: the greatest of the engine, or one frame of any length.
const EXTENT_LEN_MAX: u64 = 64 * 1024 * 1024;

/// A log in the making. Nothing of it counts before [`Rebuilt::finish`].
#[derive(Debug)]
pub(super) struct Rebuilt {
    dir: PathBuf,
    log_id: LogId,
    head: Position,
    hash: FrameHash,
    extent: Option<Extent>,
}

#[derive(Debug)]
struct Extent {
    file: File,
    len: u64,
    end: u64,
}

impl Rebuilt {
    pub(super) fn new(dir: &Path, log_id: LogId) -> Self {
        Self {
            dir: dir.to_owned(),
            log_id,
            head: Position(0),
            hash: extent::genesis(log_id.0),
            extent: None,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The position that is due, and the frame that the next one must name.
    pub(super) const fn due(&self) -> (Position, FrameHash) {
        (Position(self.head.get() + 1), self.hash)
    }

    /// Takes the frame that is due.
    pub(super) fn push(&mut self, frame: &Found) -> io::Result<()> {
        let needed = frame.bytes.len() as u64;
        let room = self.extent.as_ref().map_or(0, |at| at.len - at.end);
        if frame.begins.is_some() || room < needed {
            let same = self.extent.as_ref().map_or(EXTENT_LEN_MAX, |at| at.len);
            let len = frame.begins.unwrap_or(same);
            self.begin(len.max(EXTENT_HEADER_LEN as u64 + needed))?;
        }
        let at = self.extent.as_mut().ok_or(io::ErrorKind::NotFound)?;
        at.file.write_all_at(&frame.bytes, at.end)?;
        at.end += needed;
        (self.head, self.hash) = (frame.last, frame.hash);
        Ok(())
    }

    /// Goes on in a new extent.
    fn begin(&mut self, len: u64) -> io::Result<()> {
        self.end_extent()?;
        let longest = EXTENT_LEN_MAX.max((EXTENT_HEADER_LEN + FRAME_LEN_MAX) as u64);
        let len = len.next_multiple_of(SECTOR as u64).min(longest);
        let header = ExtentHeader {
            len,
            first: self.due().0,
            log_id: self.log_id.0,
            previous: self.hash,
        };
        let path = self.dir.join(extent::file_name(header.first));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(len)?;
        file.write_all_at(&header.encode(), 0)?;
        self.extent = Some(Extent {
            file,
            len,
            end: EXTENT_HEADER_LEN as u64,
        });
        Ok(())
    }

    fn end_extent(&mut self) -> io::Result<()> {
        match self.extent.take() {
            Some(extent) => extent.file.sync_all(),
            None => Ok(()),
        }
    }

    /// Everything is on disk; answers its end.
    pub(super) fn finish(mut self) -> io::Result<(Position, FrameHash)> {
        self.end_extent()?;
        Ok((self.head, self.hash))
    }
}
