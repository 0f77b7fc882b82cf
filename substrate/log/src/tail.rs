//! What stands behind the last good frame: nothing, a torn write, or damage.
//!
//! The writer starts a frame only when the one before is on disk, into sectors that are zero. So a
//! crash leaves at most one unfinished frame, each of its sectors whole or zero. A tail is torn
//! only if that explains every byte of it:
//!
//! - its header is there and at least one of its sectors is missing (all zero), or its end is;
//! - its header is missing, and what follows are whole sectors of a frame (two non-zero bytes or
//!   more) within the length of a frame;
//! - it breaks off inside its header, for disks that tear within a sector;
//! - and no intact frame follows, since that would have been written later.
//!
//! A frame with all its sectors and a wrong checksum was written whole and has changed since: that
//! is damage. So is anything behind a frame that is not the start of another.

use std::io;

use crate::fields::size;
use crate::frame::{
    FRAME_HEADER_LEN, FRAME_LEN_MAX, FRAME_MAGIC, Frame, FrameError, FrameHeader, SECTOR,
};
use crate::scan::Window;

/// The verdict on the bytes from an offset to the end of the extent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// All zero.
    Clean,
    /// One unfinished frame, up to this byte, which is a multiple of the sector.
    Torn { to: u64 },
    /// Anything else.
    Damaged { byte: u64, what: String },
}

/// Judges the tail at `from`, where decoding gave `error`.
pub(crate) fn judge(window: &mut Window, from: u64, error: FrameError) -> io::Result<Tail> {
    let survey = Survey::take(window, from)?;
    let Some(last) = survey.last_nonzero else {
        return Ok(Tail::Clean);
    };
    let damaged = |byte: u64, what: &str| {
        Ok(Tail::Damaged {
            byte,
            what: what.to_owned(),
        })
    };
    if let Some(later) = survey.later_frame {
        let what = format!(
            "{}, but an intact frame follows at byte {later}",
            error.what()
        );
        return Ok(Tail::Damaged { byte: from, what });
    }
    let torn = Ok(Tail::Torn {
        to: (last + 1).next_multiple_of(SECTOR as u64),
    });
    let start = window.at(from, SECTOR)?;
    let Ok(header) = FrameHeader::decode(start) else {
        if start.iter().all(|byte| *byte == 0) {
            return match survey.lonely {
                Some(byte) => damaged(byte, "a stray byte where nothing was written"),
                None if last - from >= FRAME_LEN_MAX as u64 => {
                    damaged(last, "bytes where nothing was written")
                }
                None => torn,
            };
        }
        // A start and then nothing: more than one byte, so that a single flip is not taken for it.
        let end = usize::try_from(last - from).unwrap_or(usize::MAX);
        let broken_off = (1..FRAME_HEADER_LEN).contains(&end)
            && start
                .iter()
                .zip(FRAME_MAGIC)
                .take(end + 1)
                .all(|(byte, magic)| *byte == magic);
        return if broken_off {
            torn
        } else {
            damaged(from, error.what())
        };
    };
    let end = from + u64::from(header.len);
    if last >= end {
        return damaged(last, "bytes behind the last frame");
    }
    let bytes = window.at(from, size(header.len))?;
    // A header that promises more than the extent holds was never written by anybody.
    let whole = bytes.len() == size(header.len);
    let sector_missing = bytes
        .chunks(SECTOR)
        .any(|sector| sector.iter().all(|byte| *byte == 0));
    let end_missing = bytes.last() == Some(&0) && error != FrameError::EndMark;
    if whole && (sector_missing || end_missing) {
        torn
    } else {
        damaged(from, error.what())
    }
}

const ZEROES: [u8; SECTOR] = [0; SECTOR];

/// Whether the frame at the start of `bytes` is intact, for [`Survey`].
fn intact(bytes: &[u8]) -> bool {
    Frame::decode(bytes).is_ok()
}

/// One pass over the tail.
#[derive(Debug, Default)]
struct Survey {
    last_nonzero: Option<u64>,
    /// A byte that is alone in its sector: no sector of a frame looks like that.
    lonely: Option<u64>,
    /// Where an intact frame starts, behind the first sector.
    later_frame: Option<u64>,
}

impl Survey {
    fn take(window: &mut Window, from: u64) -> io::Result<Self> {
        let mut survey = Self::default();
        let mut offset = from;
        while offset < window.len() {
            let sector = window.at(offset, SECTOR)?;
            if *sector == ZEROES[..sector.len()] {
                offset += SECTOR as u64;
                continue;
            }
            let count = sector.iter().filter(|byte| **byte != 0).count();
            if let Some(at) = sector.iter().rposition(|byte| *byte != 0) {
                let byte = offset + at as u64;
                survey.last_nonzero = Some(byte);
                if count == 1 {
                    survey.lonely.get_or_insert(byte);
                }
            }
            let header = FrameHeader::decode(sector).ok().filter(|_| offset > from);
            if let Some(header) = header
                && survey.later_frame.is_none()
                && intact(window.at(offset, size(header.len))?)
            {
                survey.later_frame = Some(offset);
            }
            offset += SECTOR as u64;
        }
        Ok(survey)
    }
}
