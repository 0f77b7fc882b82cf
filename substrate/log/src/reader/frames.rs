//! Frames from files, read in pieces and verified.

use std::ops::ControlFlow;

use tabbify_api::log::ReadError;
use tabbify_types::Position;

use super::{damaged, lost};
use crate::cold::ColdError;
use crate::error::OpenError;
use crate::fields::size;
use crate::frame::{FRAME_HEADER_LEN, Frame, FrameHeader};
use crate::index::Located;
use crate::log::Shared;
use crate::record::EventRef;

/// LIMIT: bytes of neighboring frames read at once; a longer frame is read alone.
const PIECE_LEN_MAX: u64 = 256 * 1024;

/// Reads on through the extents.
pub(super) struct Frames<'a> {
    shared: &'a Shared,
    /// Frames from `at.offset` on.
    piece: Vec<u8>,
    at: Option<Located>,
    /// Bytes of the piece whose frames have been given.
    given: u64,
    /// The position that the index was last asked for.
    asked: Position,
}

impl<'a> Frames<'a> {
    pub(super) const fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            piece: Vec::new(),
            at: None,
            given: 0,
            asked: Position(0),
        }
    }

    /// Reads the next piece, with or before the frame of position `due`. Answers its length.
    pub(super) fn read(&mut self, due: Position) -> Result<usize, ReadError> {
        let behind = self.at.take().map(|at| Located {
            offset: at.offset + self.given,
            ..at
        });
        let at = match behind.filter(|at| at.offset < at.end) {
            Some(at) => at,
            None if self.asked == due => {
                let what = format!("no frame holds position {due}");
                return Err(ReadError::Damaged { detail: what });
            }
            None => {
                self.asked = due;
                let located = self.shared.index.locate(due);
                located.map_err(|error| lost(&error))?
            }
        };
        self.given = 0;
        let len = (at.end - at.offset).min(PIECE_LEN_MAX);
        self.fill(&at, len)?;
        // The first frame, if it does not fit.
        let header = FrameHeader::decode(&self.piece);
        let whole = header.map_or(0, |header| u64::from(header.len));
        if whole > len && whole <= at.end - at.offset {
            self.fill(&at, whole)?;
        }
        self.at = Some(at);
        Ok(self.piece.len())
    }

    fn fill(&mut self, at: &Located, len: u64) -> Result<(), ReadError> {
        let wrong = |what: &str| damaged(&at.extent, at.offset, what);
        let len = usize::try_from(len).map_err(|_| wrong("more than there is memory"))?;
        self.piece.resize(len, 0);
        let opened = self.shared.files.get(&at.extent);
        let read = opened.and_then(|file| file.read_exact_at(&mut self.piece, at.offset));
        read.map_err(|error| match ColdError::within(&error) {
            Some(_) => lost(&OpenError::io("read", &at.extent)(error)),
            None => wrong(&format!("cannot be read: {error}")),
        })
    }

    /// Gives the events of the piece, from position `due` up to `upto`, until `take` breaks off. A frame
    /// that ends before is passed over; each that has any of them is verified.
    pub(super) fn each(
        &mut self,
        mut due: Position,
        upto: Position,
        mut take: impl FnMut(&EventRef<'_>) -> Result<ControlFlow<()>, &'static str>,
    ) -> Result<(), ReadError> {
        let Some(at) = &self.at else {
            return Ok(());
        };
        while due <= upto {
            let rest = &self.piece[size_of_given(self.given)..];
            let byte = at.offset + self.given;
            let wrong = |what: &str| damaged(&at.extent, byte, what);
            if rest.is_empty() {
                return Ok(());
            }
            let header = FrameHeader::decode(rest).map_err(|error| wrong(error.what()))?;
            if size(header.len) > rest.len() {
                // The piece ends within it; without one frame it would be no piece.
                return match self.given {
                    0 => Err(wrong("a frame that its extent does not hold")),
                    _ => Ok(()),
                };
            }
            if header.last() < due {
                self.given += u64::from(header.len);
                continue;
            }
            if header.first > due {
                return Err(wrong("a frame of other positions"));
            }
            let frame = Frame::decode(rest).map_err(|error| wrong(error.what()))?;
            for event in frame.events() {
                let event = event.map_err(wrong)?;
                if event.position < due {
                    continue;
                }
                if event.position > upto || take(&event).map_err(wrong)?.is_break() {
                    return Ok(());
                }
            }
            due = header.last().next();
            self.given += u64::from(header.len);
        }
        Ok(())
    }

    /// Gives the events of the frame with position `due` from there on, if the piece has it.
    pub(super) fn each_of_frame(
        &mut self,
        due: Position,
        mut take: impl FnMut(&EventRef<'_>, Position) -> Result<ControlFlow<()>, &'static str>,
    ) -> Result<(), ReadError> {
        let mut last = due;
        while let Some(header) = self.next_header() {
            if header.last() >= due {
                last = header.last();
                break;
            }
            self.given += u64::from(header.len);
        }
        self.each(due, last, |event| take(event, last))
    }

    /// The header of the next frame, if the piece has all of the frame.
    fn next_header(&self) -> Option<FrameHeader> {
        let rest = self.piece.get(size_of_given(self.given)..)?;
        let header = FrameHeader::decode(rest).ok()?;
        (size(header.len) <= rest.len()).then_some(header)
    }
}

fn size_of_given(given: u64) -> usize {
    usize::try_from(given).expect("INVARIANT: less than the length of a piece in memory")
}

const _: () = assert!(
    PIECE_LEN_MAX >= FRAME_HEADER_LEN as u64,
    "a piece has a whole header"
);
