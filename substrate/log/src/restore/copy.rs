//! One place that may hold frames: a directory with extents, of which any part may be missing or
//! damaged. Read forward once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_process::chain;
use tabbify_types::Position;

use crate::disk::Disk;
use crate::error::OpenError;
use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader};
use crate::fields::size;
use crate::frame::{FRAME_HEADER_LEN, Frame, FrameHash, FrameHeader, SECTOR};
use crate::log::LogId;
use crate::scan::Window;

use super::Taken;

/// A frame that is intact and the one that was asked for.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) bytes: Vec<u8>,
    pub(super) last: Position,
    pub(super) hash: FrameHash,
    /// Length of the extent that it begins, if it does.
    pub(super) begins: Option<u64>,
}

/// A copy, and how far it has been read.
#[derive(Debug)]
pub(super) struct Copy {
    disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    extents: Vec<(Position, PathBuf)>,
    /// Which extent, and where in it.
    at: usize,
    window: Option<(Window, u64)>,
    events: u64,
    unreadable: Option<String>,
    /// An object store that does not answer: what it has may be just what is needed.
    away: Option<OpenError>,
}

impl Copy {
    pub(super) fn open(disk: &Arc<dyn Disk>, dir: &Path) -> io::Result<Self> {
        let mut extents = Vec::new();
        for path in disk.list(dir)? {
            // What has another name is not looked at: it is a copy of something, not the log.
            extents.extend(extent::named(&path).map(|first| (first, path)));
        }
        extents.sort();
        Ok(Self {
            disk: Arc::clone(disk),
            dir: dir.to_owned(),
            extents,
            at: 0,
            window: None,
            events: 0,
            unreadable: None,
            away: None,
        })
    }

    /// The same, with another name for people.
    pub(super) fn shown_as(mut self, place: &str) -> Self {
        self.dir = place.into();
        self
    }

    /// That a part of it could not be looked at, but may be there.
    pub(super) const fn away(&mut self) -> Option<OpenError> {
        self.away.take()
    }

    pub(super) fn into_taken(self) -> Taken {
        Taken {
            from: self.dir,
            events: self.events,
            unreadable: self.unreadable,
        }
    }

    /// The log that it is a copy of, if one of its extents says so.
    pub(super) fn log_id(&mut self) -> Option<LogId> {
        self.extents.iter().find_map(|(_, path)| {
            let mut window = Window::open(&*self.disk, path).ok()?;
            let header = window.at(0, EXTENT_HEADER_LEN).ok()?;
            Some(LogId(ExtentHeader::decode(header).ok()?.log_id))
        })
    }

    /// The frame that begins at `due` and names `previous`, if it is here and intact. What is asked
    /// for only ever rises.
    pub(super) fn frame(&mut self, due: Position, previous: FrameHash) -> Option<Found> {
        loop {
            let next = self.extents.get(self.at + 1);
            if next.is_some_and(|(first, _)| *first <= due) {
                self.leave(None);
                continue;
            }
            let (first, path) = self.extents.get(self.at)?.clone();
            if first > due {
                return None;
            }
            let opened = match self.window.take() {
                Some(opened) => Ok(opened),
                None => {
                    let window = Window::open(&*self.disk, &path);
                    window.map(|window| (window, EXTENT_HEADER_LEN as u64))
                }
            };
            let (mut window, mut offset) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    self.leave(Some(error));
                    continue;
                }
            };
            let looked = look(&mut window, &mut offset, due, previous);
            let found = match looked {
                Ok(Looked::Found(found)) => Some(found),
                Ok(Looked::NotHere) => None,
                Ok(Looked::End) => {
                    self.leave(None);
                    continue;
                }
                Err(error) => {
                    self.leave(Some(OpenError::io("read", &path)(error)));
                    continue;
                }
            };
            let begins = (offset == EXTENT_HEADER_LEN as u64 && first == due)
                .then(|| extent_len(&mut window));
            self.window = Some((window, offset));
            let found = found.map(|found| Found { begins, ..found })?;
            self.events += found.last.get() - due.get() + 1;
            return Some(found);
        }
    }

    /// Goes on in the next extent.
    fn leave(&mut self, why: Option<OpenError>) {
        self.at += 1;
        self.window = None;
        // The first is the one to tell; whoever mends it will see the next.
        let text = why.as_ref().map(|why| chain(why).to_string());
        self.unreadable = self.unreadable.take().or(text);
        if let Some(OpenError::Stored { source, .. }) = &why
            && source.passes()
        {
            self.away = self.away.take().or(why);
        }
    }
}

enum Looked {
    Found(Found),
    /// It is not here, or another one is in its place.
    NotHere,
    /// The extent has no more frames.
    End,
}

/// Goes forward from `offset` to the frame that is due; past what is damaged, sector by sector.
fn look(
    window: &mut Window,
    offset: &mut u64,
    due: Position,
    previous: FrameHash,
) -> io::Result<Looked> {
    while *offset < window.len() {
        let Ok(header) = FrameHeader::decode(window.at(*offset, FRAME_HEADER_LEN)?) else {
            *offset += SECTOR as u64;
            continue;
        };
        if header.first > due {
            return Ok(Looked::NotHere);
        }
        if header.first < due {
            *offset += u64::from(header.len);
            continue;
        }
        let bytes = window.at(*offset, size(header.len))?;
        let Ok(frame) = Frame::decode(bytes) else {
            *offset += SECTOR as u64;
            continue;
        };
        if header.previous != previous {
            return Ok(Looked::NotHere);
        }
        return Ok(Looked::Found(Found {
            bytes: bytes[..size(header.len)].to_vec(),
            last: header.last(),
            hash: frame.hash,
            begins: None,
        }));
    }
    Ok(Looked::End)
}

/// The length that the extent was made with, as far as can be told.
fn extent_len(window: &mut Window) -> u64 {
    let there = window.len();
    let header = window.at(0, EXTENT_HEADER_LEN).ok();
    let header = header.and_then(|bytes| ExtentHeader::decode(bytes).ok());
    header.map_or(there, |header| header.len)
}
