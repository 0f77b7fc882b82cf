//! Reads extents and verifies every byte of them, in order. Changes nothing.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_types::{Position, Rev};

use crate::disk::{Disk, DiskFile};
use crate::error::{OpenError, TornTail};
use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader};
use crate::fields::size;
use crate::frame::{FRAME_HEADER_LEN, Frame, FrameError, FrameHash, FrameHeader, SECTOR};
use crate::index::{ExtentEntry, KeyHash, spread};
use crate::record::EventRef;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tip {
    pub(crate) head: Position,
    pub(crate) hash: FrameHash,
    pub(crate) epoch: u64,
}

impl Tip {
    /// Before the first frame.
    pub(crate) fn genesis(log_id: [u8; 16]) -> Self {
        Self {
            head: Position(0),
            hash: extent::genesis(log_id),
            epoch: 0,
        }
    }

    /// Behind a closed extent.
    pub(crate) const fn after(extent: &ExtentEntry) -> Self {
        Self {
            head: extent.last,
            hash: extent.hash,
            epoch: extent.epoch,
        }
    }
}

/// Takes what is found, in order; every frame comes before its events. An error is what is wrong.
pub(crate) trait Collect {
    /// An intact frame that is due, and where it starts in its extent.
    fn frame(&mut self, frame: &Frame<'_>, offset: u64) -> Result<(), String>;

    /// One of its events, and where its record starts in the extent.
    fn event(&mut self, event: &EventRef<'_>, offset: u64) -> Result<(), String>;
}

/// A log as found on disk.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) log_id: [u8; 16],
    pub(crate) extents: usize,
    pub(crate) frames: usize,
    pub(crate) tip: Tip,
    pub(crate) torn: Option<TornTail>,
}

/// One extent, read whole.
#[derive(Debug)]
pub(crate) struct LastExtent {
    pub(crate) path: PathBuf,
    pub(crate) first: Position,
    pub(crate) len: u64,
    /// The end of its last good frame.
    pub(crate) end: u64,
    /// That frame, if it has one.
    pub(crate) frame: Option<Range<u64>>,
}

/// Reads the log in `dir`; `None` if it has no extent.
pub(crate) fn scan(
    disk: &dyn Disk,
    dir: &Path,
    depth: Depth,
) -> Result<Option<Scanned>, OpenError> {
    scan_into(disk, dir, depth, &mut Whole::default())
}

/// As [`scan`], giving everything to `collect`.
pub(crate) fn scan_into(
    disk: &dyn Disk,
    dir: &Path,
    depth: Depth,
    collect: &mut dyn Collect,
) -> Result<Option<Scanned>, OpenError> {
    let extents = extent::list(disk, dir)?;
    let Some((_, first)) = extents.first() else {
        return Ok(None);
    };
    let log_id = header(disk, first)?.log_id;
    let mut scanner = Scanner::new(disk, log_id, Tip::genesis(log_id), depth);
    let mut torn = None;
    for (index, (_, path)) in extents.iter().enumerate() {
        let read = scanner.extent(path, collect)?;
        torn = read.1;
        if index + 1 < extents.len() {
            closed_is_whole(path, torn.as_ref())?;
        }
    }
    Ok(Some(Scanned {
        log_id,
        extents: extents.len(),
        frames: scanner.frames,
        tip: scanner.tip,
        torn,
    }))
}

/// Reads a closed extent, the one after `before`.
pub(crate) fn closed(
    disk: &dyn Disk,
    path: &Path,
    log_id: [u8; 16],
    before: Tip,
    collect: &mut dyn Collect,
) -> Result<ExtentEntry, OpenError> {
    let mut scanner = Scanner::new(disk, log_id, before, Depth::Bytes);
    let (read, torn) = scanner.extent(path, collect)?;
    closed_is_whole(path, torn.as_ref())?;
    let (first, tip) = (before.head.next(), scanner.tip);
    if tip.head < first {
        let what = "an extent without an event that is not the last";
        return Err(OpenError::damaged(path, read.end, what));
    }
    let end = u32::try_from(read.end);
    Ok(ExtentEntry {
        first,
        last: tip.head,
        len: read.len,
        end: end.map_err(|_| OpenError::damaged(path, read.end, "an extent of 4 GiB"))?,
        epoch: tip.epoch,
        hash: tip.hash,
    })
}

/// Reads the last extent, the one after `before`.
pub(crate) fn last(
    disk: &dyn Disk,
    path: &Path,
    log_id: [u8; 16],
    before: Tip,
    collect: &mut dyn Collect,
) -> Result<(LastExtent, Tip, Option<TornTail>), OpenError> {
    let mut scanner = Scanner::new(disk, log_id, before, Depth::Bytes);
    let (read, torn) = scanner.extent(path, collect)?;
    Ok((read, scanner.tip, torn))
}

fn closed_is_whole(path: &Path, torn: Option<&TornTail>) -> Result<(), OpenError> {
    let what = "an unfinished frame in an extent that is not the last";
    torn.map_or(Ok(()), |torn| {
        Err(OpenError::damaged(path, torn.from, what))
    })
}

/// The header of an extent, of which nothing else is read.
pub(crate) fn header(disk: &dyn Disk, path: &Path) -> Result<ExtentHeader, OpenError> {
    let file = disk.open(path).map_err(OpenError::io("open", path))?;
    let len = file.len().map_err(OpenError::io("read", path))?;
    let mut bytes = [0; EXTENT_HEADER_LEN];
    let there = usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()));
    file.read_exact_at(&mut bytes[..there], 0)
        .map_err(OpenError::io("read", path))?;
    header_of(path, &bytes[..there], len)
}

fn header_of(path: &Path, bytes: &[u8], len: u64) -> Result<ExtentHeader, OpenError> {
    let header = ExtentHeader::decode(bytes).map_err(|error| refused(path, 0, error))?;
    if header.len != len {
        let what = format!("{len} bytes in a file that must have {}", header.len);
        return Err(OpenError::damaged(path, len.min(header.len), what));
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

struct Scanner<'a> {
    disk: &'a dyn Disk,
    depth: Depth,
    log_id: [u8; 16],
    tip: Tip,
    frames: usize,
}

impl<'a> Scanner<'a> {
    const fn new(disk: &'a dyn Disk, log_id: [u8; 16], tip: Tip, depth: Depth) -> Self {
        Self {
            disk,
            depth,
            log_id,
            tip,
            frames: 0,
        }
    }

    /// Takes the header, every good frame, and what stands behind them.
    fn extent(
        &mut self,
        path: &Path,
        collect: &mut dyn Collect,
    ) -> Result<(LastExtent, Option<TornTail>), OpenError> {
        let mut window = Window::open(self.disk, path)?;
        let first = self.header(&mut window)?;
        let frame = self.frames(&mut window, collect)?;
        let end = frame.as_ref().map_or(EXTENT_HEADER_LEN as u64, |f| f.end);
        let torn = tail(&mut window, end)?;
        let read = LastExtent {
            path: path.to_owned(),
            first,
            len: window.len(),
            end,
            frame,
        };
        Ok((read, torn))
    }

    /// The extent must be the one that is due.
    fn header(&self, window: &mut Window) -> Result<Position, OpenError> {
        let (path, len) = (window.path.clone(), window.len());
        let bytes = window
            .at(0, EXTENT_HEADER_LEN)
            .map_err(OpenError::io("read", &path))?;
        let header = header_of(&path, bytes, len)?;
        let next = self.tip.head.next();
        let wrong = |what: String| Err(OpenError::damaged(&path, 0, what));
        if header.log_id != self.log_id {
            return wrong("it belongs to another log".to_owned());
        }
        if extent::named(&path) != Some(header.first) || header.first != next {
            return wrong(format!(
                "it starts at {}, where {next} is due",
                header.first
            ));
        }
        if header.previous != self.tip.hash {
            return wrong("its chain does not continue the extent before".to_owned());
        }
        Ok(next)
    }

    /// Takes every good frame; answers where the last one is.
    fn frames(
        &mut self,
        window: &mut Window,
        collect: &mut dyn Collect,
    ) -> Result<Option<Range<u64>>, OpenError> {
        let path = window.path.clone();
        let mut offset = EXTENT_HEADER_LEN as u64;
        let mut last = None;
        loop {
            let bytes = window
                .at(offset, FRAME_HEADER_LEN)
                .map_err(OpenError::io("read", &path))?;
            let Ok(header) = FrameHeader::decode(bytes) else {
                return Ok(last);
            };
            let bytes = window
                .at(offset, size(header.len))
                .map_err(OpenError::io("read", &path))?;
            let Ok(frame) = Frame::decode(bytes) else {
                return Ok(last);
            };
            self.frame(&frame, offset, collect)
                .map_err(|what| OpenError::damaged(&path, offset, what))?;
            let end = offset + u64::from(header.len);
            last = Some(offset..end);
            offset = end;
        }
    }

    /// A frame whose checksums agree must also be the one that is due: if not, that is never a
    /// torn write.
    fn frame(
        &mut self,
        frame: &Frame<'_>,
        offset: u64,
        collect: &mut dyn Collect,
    ) -> Result<(), String> {
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
        collect.frame(frame, offset)?;
        let mut at = offset + FRAME_HEADER_LEN as u64;
        for event in frame.events() {
            let event = event?;
            collect.event(&event, at)?;
            at += event.bytes.len() as u64;
            if self.depth == Depth::Events {
                event.to_recorded()?;
            }
        }
        self.frames += 1;
        self.tip = Tip {
            head: header.last(),
            hash: frame.hash,
            epoch: header.epoch,
        };
        Ok(())
    }
}

/// What stands behind the good frames.
fn tail(window: &mut Window, from: u64) -> Result<Option<TornTail>, OpenError> {
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

/// Knows every id and every revision, of the whole log: some thirty bytes an event, which only a
/// verification takes.
#[derive(Debug, Default)]
struct Whole {
    ids: HashSet<u128>,
    revs: HashMap<KeyHash, Rev>,
}

impl Collect for Whole {
    fn frame(&mut self, _frame: &Frame<'_>, _offset: u64) -> Result<(), String> {
        Ok(())
    }

    fn event(&mut self, event: &EventRef<'_>, _offset: u64) -> Result<(), String> {
        let last = self.revs.entry(KeyHash::of(event.segment, event.key));
        let last = last.or_default();
        *last = last.next();
        if event.rev != *last {
            return Err(format!(
                "position {}: revision {}, not {last}",
                event.position, event.rev
            ));
        }
        if self.ids.insert(spread(event.id)) {
            Ok(())
        } else {
            Err("an event id that is in the log already".to_owned())
        }
    }
}

/// For whoever wants nothing but to know that it is intact.
impl Collect for () {
    fn frame(&mut self, _frame: &Frame<'_>, _offset: u64) -> Result<(), String> {
        Ok(())
    }

    fn event(&mut self, _event: &EventRef<'_>, _offset: u64) -> Result<(), String> {
        Ok(())
    }
}

/// A file read forward through a buffer.
#[derive(Debug)]
pub(crate) struct Window {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    buf: Vec<u8>,
    start: u64,
}

impl Window {
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, OpenError> {
        let opened = disk.open(path).and_then(|file| Ok((file.len()?, file)));
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
