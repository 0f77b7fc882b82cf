//! Recovery: reads every extent once, verifies every byte, rebuilds the index. Changes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tabbify_types::{Position, Rev};

use crate::error::{OpenError, TornTail};
use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader};
use crate::fields::size;
use crate::frame::{FRAME_HEADER_LEN, Frame, FrameError, FrameHash, FrameHeader, SECTOR};
use crate::index::{Frames, Index, Place};
use crate::tail::{self, Tail};

/// Bytes read ahead.
const WINDOW_LEN: usize = 1024 * 1024;

/// How closely events are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Checksums, chain, positions, revisions, ids: all that a flipped byte can break.
    Bytes,
    /// Also that segments are segments and data is JSON: what a faulty writer could have done.
    Events,
}

/// The end of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tip {
    pub(crate) head: Position,
    pub(crate) hash: FrameHash,
    pub(crate) epoch: u64,
}

/// A log as found on disk.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) log_id: [u8; 16],
    pub(crate) index: Index,
    pub(crate) frames: Frames,
    pub(crate) tip: Tip,
    /// The last extent, its length, and the end of its last good frame.
    pub(crate) last: (PathBuf, u64, u64),
    pub(crate) torn: Option<TornTail>,
}

/// Reads the log in `dir`; `None` if it has no extent.
pub(crate) fn scan(dir: &Path, depth: Depth) -> Result<Option<Scanned>, OpenError> {
    let extents = extent::list(dir)?;
    let Some(((_, first), (_, last))) = extents.first().zip(extents.last()) else {
        return Ok(None);
    };
    let log_id = read_header(&mut Window::open(first)?)?.log_id;
    let mut scanner = Scanner {
        depth,
        log_id,
        index: Index::default(),
        frames: Frames::default(),
        tip: Tip {
            head: Position(0),
            hash: extent::genesis(log_id),
            epoch: 0,
        },
    };
    let mut torn = None;
    let mut end = (last.clone(), 0, 0);
    for (_, path) in &extents {
        let mut window = Window::open(path)?;
        let good_end = scanner.extent(&mut window)?;
        torn = scanner.tail(&mut window, good_end)?;
        if torn.is_some() && path != last {
            let what = "an unfinished frame in an extent that is not the last";
            return Err(OpenError::damaged(path, good_end, what));
        }
        end = (path.clone(), window.len(), good_end);
    }
    let Scanner {
        index, frames, tip, ..
    } = scanner;
    Ok(Some(Scanned {
        log_id,
        index,
        frames,
        tip,
        last: end,
        torn,
    }))
}

fn read_header(window: &mut Window) -> Result<ExtentHeader, OpenError> {
    let path = window.path.clone();
    let bytes = window
        .at(0, EXTENT_HEADER_LEN)
        .map_err(OpenError::io("read", &path))?;
    let header = ExtentHeader::decode(bytes).map_err(|error| refused(&path, 0, error))?;
    if header.len != window.len() {
        let what = format!(
            "{} bytes in a file that must have {}",
            window.len(),
            header.len
        );
        return Err(OpenError::damaged(
            &path,
            window.len().min(header.len),
            what,
        ));
    }
    Ok(header)
}

fn refused(path: &Path, byte: u64, error: FrameError) -> OpenError {
    match error {
        FrameError::Newer(version) => OpenError::Newer {
            extent: path.to_owned(),
            version,
        },
        other => OpenError::damaged(path, byte, other.what()),
    }
}

struct Scanner {
    depth: Depth,
    log_id: [u8; 16],
    index: Index,
    frames: Frames,
    tip: Tip,
}

impl Scanner {
    /// Takes the header and every good frame; answers the end of the last one.
    fn extent(&mut self, window: &mut Window) -> Result<u64, OpenError> {
        let path = window.path.clone();
        let header = read_header(window)?;
        let next = self.tip.head.next();
        let named = extent::named(&path);
        let wrong = |what: String| Err(OpenError::damaged(&path, 0, what));
        if header.log_id != self.log_id {
            return wrong("it belongs to another log".to_owned());
        }
        if named != Some(header.first) || header.first != next {
            return wrong(format!(
                "it starts at {}, where {next} is due",
                header.first
            ));
        }
        if header.previous != self.tip.hash {
            return wrong("its chain does not continue the extent before".to_owned());
        }
        self.frames.push_extent(&path);
        let mut offset = EXTENT_HEADER_LEN as u64;
        loop {
            let bytes = window
                .at(offset, FRAME_HEADER_LEN)
                .map_err(OpenError::io("read", &path))?;
            let Ok(header) = FrameHeader::decode(bytes) else {
                return Ok(offset);
            };
            let bytes = window
                .at(offset, size(header.len))
                .map_err(OpenError::io("read", &path))?;
            let Ok(frame) = Frame::decode(bytes) else {
                return Ok(offset);
            };
            self.frame(&frame)
                .map_err(|what| OpenError::damaged(&path, offset, what))?;
            let at = u32::try_from(offset)
                .map_err(|_| OpenError::damaged(&path, offset, "an extent of 4 GiB"))?;
            self.frames.push(frame.header.first, at, frame.header.len);
            offset += u64::from(frame.header.len);
        }
    }

    /// A frame whose checksums agree must also be the one that is due: if not, that is never a
    /// torn write.
    fn frame(&mut self, frame: &Frame<'_>) -> Result<(), String> {
        let header = &frame.header;
        let due = self.tip.head.next();
        if header.first != due {
            return Err(format!(
                "a frame from position {}, where {due} is due",
                header.first
            ));
        }
        if header.previous != self.tip.hash {
            return Err("a frame that does not name the one before it".to_owned());
        }
        if header.epoch < self.tip.epoch || header.durable_upto > self.tip.head {
            return Err("a frame of an earlier writer, or beyond its time".to_owned());
        }
        for event in frame.events() {
            let event = event?;
            let rev = self.index.advance(event.segment, event.key);
            if event.rev != rev {
                let Rev(found) = event.rev;
                return Err(format!(
                    "position {}: revision {found}, not {rev}",
                    event.position
                ));
            }
            self.index.insert(
                event.id,
                Place {
                    position: event.position,
                    batch: event.place,
                },
            )?;
            if self.depth == Depth::Events {
                event.to_recorded()?;
            }
        }
        self.tip = Tip {
            head: header.last(),
            hash: frame.hash,
            epoch: header.epoch,
        };
        Ok(())
    }

    /// What stands behind the good frames.
    fn tail(&self, window: &mut Window, from: u64) -> Result<Option<TornTail>, OpenError> {
        let path = window.path.clone();
        let unreadable = |error| OpenError::io("read", &path)(error);
        let bytes = window.at(from, FRAME_HEADER_LEN).map_err(unreadable)?;
        let error = match FrameHeader::decode(bytes) {
            Err(newer @ FrameError::Newer(_)) => return Err(refused(&path, from, newer)),
            Err(error) => error,
            Ok(header) => {
                let bytes = window.at(from, size(header.len)).map_err(unreadable)?;
                Frame::decode(bytes)
                    .err()
                    .unwrap_or(FrameError::Body("a frame"))
            }
        };
        match tail::judge(window, from, error).map_err(unreadable)? {
            Tail::Clean => Ok(None),
            Tail::Torn { to } => Ok(Some(TornTail {
                extent: path,
                from,
                to,
            })),
            Tail::Damaged { byte, what } => Err(OpenError::damaged(&path, byte, what)),
        }
    }
}

/// A file read forward through a buffer.
#[derive(Debug)]
pub(crate) struct Window {
    path: PathBuf,
    file: File,
    len: u64,
    buf: Vec<u8>,
    start: u64,
}

impl Window {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (len, file) = opened.map_err(OpenError::io("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
            buf: Vec::new(),
            start: 0,
        })
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// `want` bytes from `offset` on; fewer where the file ends.
    pub(crate) fn at(&mut self, offset: u64, want: usize) -> io::Result<&[u8]> {
        let rest = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let want = want.min(rest);
        let have = usize::try_from(offset.wrapping_sub(self.start)).unwrap_or(usize::MAX);
        if have
            .checked_add(want)
            .is_none_or(|end| end > self.buf.len())
        {
            self.buf.resize(want.max(WINDOW_LEN).min(rest), 0);
            self.file.read_exact_at(&mut self.buf, offset)?;
            self.start = offset;
        }
        let have = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        Ok(&self.buf[have..have + want])
    }
}

const _: () = assert!(
    FRAME_HEADER_LEN <= SECTOR,
    "a header is never torn by a disk"
);
