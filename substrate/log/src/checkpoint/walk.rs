//! Goes through the frames of a log in their files, from the first or from behind a checkpoint, and
//! verifies each on its way. Needs no lock: it is told how far to go, and what is on disk up to a
//! durable position never changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_types::Position;

use crate::disk::Disk;
use crate::error::OpenError;
use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader};
use crate::fields::size;
use crate::frame::{FRAME_HEADER_LEN, Frame, FrameHash, FrameHeader};
use crate::scan::Window;

use super::Checkpoint;

/// Where the next frame is: extent and byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    path: PathBuf,
    offset: u64,
}

/// A walk; it stands behind a frame, or before the first.
#[derive(Debug)]
pub(crate) struct Walk {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    log_id: [u8; 16],
    position: Position,
    frame: FrameHash,
    at: Option<(Window, Place)>,
}

impl Walk {
    /// From the first frame of the log in `dir`.
    pub(crate) fn begin(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, OpenError> {
        let first = extent::list(&*disk, dir)?.into_iter().next();
        let (_, path) = first.ok_or_else(|| OpenError::Missing {
            dir: dir.to_owned(),
        })?;
        let header = header_of(&mut Window::open(&*disk, &path)?, &path)?;
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            log_id: header.log_id,
            position: Position(0),
            frame: extent::genesis(header.log_id),
            at: None,
        })
    }

    /// From the frame behind a checkpoint that can be relied on; `place` is where it is thought to be.
    pub(crate) fn after(
        disk: Arc<dyn Disk>,
        dir: &Path,
        checkpoint: &Checkpoint,
        place: Option<Place>,
    ) -> Self {
        // Where it cannot be opened any more it is looked for.
        let open = |place: Place| Some((Window::open(&*disk, &place.path).ok()?, place));
        Self {
            at: place.and_then(open),
            disk,
            dir: dir.to_owned(),
            log_id: checkpoint.log_id.0,
            position: checkpoint.position,
            frame: checkpoint.frame,
        }
    }

    pub(crate) const fn log_id(&self) -> [u8; 16] {
        self.log_id
    }

    /// The last event and the hash of the frame that the walk stands behind.
    pub(crate) const fn end(&self) -> (Position, FrameHash) {
        (self.position, self.frame)
    }

    /// Where the next frame is, or will be unless it begins an extent.
    pub(crate) fn place(&self) -> Option<Place> {
        self.at.as_ref().map(|(_, place)| place.clone())
    }

    /// The next frame and its bytes; `None` when the walk has come to `upto`, which must be in the log.
    pub(crate) fn next(&mut self, upto: Position) -> Result<Option<(Frame<'_>, &[u8])>, OpenError> {
        if self.position >= upto {
            return Ok(None);
        }
        self.seek()?;
        let at = self.at.as_mut();
        let (window, place) = at.expect("INVARIANT: seek leaves it at a frame");
        let unreadable = |error| OpenError::io("read", &place.path)(error);
        let damaged = |what: &str| OpenError::damaged(&place.path, place.offset, what);
        let start = window
            .at(place.offset, FRAME_HEADER_LEN)
            .map_err(unreadable)?;
        let header = FrameHeader::decode(start).map_err(|error| damaged(error.what()))?;
        let bytes = window
            .at(place.offset, size(header.len))
            .map_err(unreadable)?;
        let frame = Frame::decode(bytes).map_err(|error| damaged(error.what()))?;
        if header.previous != self.frame {
            return Err(damaged("a frame that does not name the one before it"));
        }
        (self.position, self.frame) = (header.last(), frame.hash);
        place.offset += u64::from(header.len);
        Ok(Some((frame, bytes)))
    }

    /// Goes to where the frame that is due begins.
    fn seek(&mut self) -> Result<(), OpenError> {
        let due = self.position.next();
        if let Some((window, place)) = &mut self.at
            && first_at(window, place)? == Some(due)
        {
            return Ok(());
        }
        // In the next extent, or, where a walk begins, somewhere in one.
        let extents = extent::list(&*self.disk, &self.dir)?;
        let holds = extents.into_iter().rev().find(|(first, _)| *first <= due);
        let (_, path) = holds.ok_or_else(|| missing(&self.dir, due))?;
        let mut window = Window::open(&*self.disk, &path)?;
        let header = header_of(&mut window, &path)?;
        if header.log_id != self.log_id || Some(header.first) != extent::named(&path) {
            return Err(OpenError::damaged(&path, 0, "it belongs to another log"));
        }
        let offset = EXTENT_HEADER_LEN as u64;
        let mut place = Place { path, offset };
        loop {
            match first_at(&mut window, &place)? {
                Some(first) if first == due => break,
                Some(first) if first < due => place.offset += frame_len(&mut window, &place)?,
                _ => {
                    let what = format!("no frame that begins at position {due}");
                    return Err(OpenError::damaged(&place.path, place.offset, what));
                }
            }
        }
        self.at = Some((window, place));
        Ok(())
    }
}

/// The hash of the frame whose last event is at `position`, which is in the log; `None` if no frame
/// ends there.
pub(crate) fn frame_ending_at(
    disk: &dyn Disk,
    dir: &Path,
    position: Position,
) -> Result<Option<FrameHash>, OpenError> {
    let extents = extent::list(disk, dir)?;
    let holds = extents
        .into_iter()
        .rev()
        .find(|(first, _)| *first <= position);
    let (_, path) = holds.ok_or_else(|| missing(dir, position))?;
    let mut window = Window::open(disk, &path)?;
    let mut place = Place {
        path,
        offset: EXTENT_HEADER_LEN as u64,
    };
    loop {
        let unreadable = |error| OpenError::io("read", &place.path)(error);
        let bytes = window
            .at(place.offset, FRAME_HEADER_LEN)
            .map_err(unreadable)?;
        let header = match FrameHeader::decode(bytes) {
            Ok(header) if header.last() <= position => header,
            _ => return Ok(None),
        };
        if header.last() == position {
            let bytes = window
                .at(place.offset, size(header.len))
                .map_err(unreadable)?;
            return match Frame::decode(bytes) {
                Ok(frame) => Ok(Some(frame.hash)),
                Err(error) => Err(OpenError::damaged(&place.path, place.offset, error.what())),
            };
        }
        place.offset += u64::from(header.len);
    }
}

fn missing(dir: &Path, due: Position) -> OpenError {
    OpenError::damaged(dir, 0, format!("no extent holds position {due}"))
}

fn header_of(window: &mut Window, path: &Path) -> Result<ExtentHeader, OpenError> {
    let bytes = window
        .at(0, EXTENT_HEADER_LEN)
        .map_err(OpenError::io("read", path))?;
    ExtentHeader::decode(bytes).map_err(|error| OpenError::damaged(path, 0, error.what()))
}

/// The first position of the frame at a place; `None` if none begins there.
fn first_at(window: &mut Window, place: &Place) -> Result<Option<Position>, OpenError> {
    let bytes = window
        .at(place.offset, FRAME_HEADER_LEN)
        .map_err(OpenError::io("read", &place.path))?;
    Ok(FrameHeader::decode(bytes).ok().map(|header| header.first))
}

fn frame_len(window: &mut Window, place: &Place) -> Result<u64, OpenError> {
    let bytes = window
        .at(place.offset, FRAME_HEADER_LEN)
        .map_err(OpenError::io("read", &place.path))?;
    let header = FrameHeader::decode(bytes);
    let header =
        header.map_err(|error| OpenError::damaged(&place.path, place.offset, error.what()))?;
    Ok(u64::from(header.len))
}
