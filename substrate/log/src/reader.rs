//! The way out: events from memory when they are recent, from files otherwise. Reading files
//! blocks, so callers are on the blocking pool; every frame is verified again on its way.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use tabbify_api::log::{Filter, ReadError};
use tabbify_types::{Position, Recorded, Segment, SegmentGlob};

use crate::fields::size;
use crate::frame::Frame;
use crate::index::Span;
use crate::log::Shared;

/// LIMIT: bytes of neighboring frames read at once; a longer frame is read alone.
const SPAN_LEN_MAX: usize = 256 * 1024;
/// LIMIT: segments whose verdict a reader remembers.
const DECIDED_MAX: usize = 4096;

/// What one reader may have and wants: its filter and the read globs of its scope.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    filter: Filter,
    readable: Vec<SegmentGlob>,
    /// Verdict per segment, so that globs are matched once and not once an event.
    decided: HashMap<String, bool>,
}

impl Wanted {
    pub(crate) fn new(filter: Filter, readable: Vec<SegmentGlob>) -> Self {
        Self {
            filter,
            readable,
            decided: HashMap::new(),
        }
    }

    fn wants(&mut self, segment: &str, kind: &str, key: &str) -> bool {
        self.filter.key.as_ref().is_none_or(|wanted| wanted == key)
            && (self.filter.kinds.is_empty() || self.filter.kinds.iter().any(|k| k == kind))
            && self.selects(segment)
    }

    fn selects(&mut self, segment: &str) -> bool {
        if let Some(verdict) = self.decided.get(segment) {
            return *verdict;
        }
        let verdict = segment.parse::<Segment>().is_ok_and(|segment| {
            let any = |globs: &[SegmentGlob]| globs.iter().any(|glob| glob.matches(&segment));
            any(&self.readable) && (self.filter.segments.is_empty() || any(&self.filter.segments))
        });
        if self.decided.len() >= DECIDED_MAX {
            self.decided.clear();
        }
        self.decided.insert(segment.to_owned(), verdict);
        verdict
    }
}

/// Where one pass stops, whichever comes first. At least one event or frame is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Matching events.
    pub(crate) events: usize,
    /// Bytes of their data.
    pub(crate) data_len: usize,
    /// Bytes read from files.
    pub(crate) read_len: usize,
}

/// What one pass gave.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    pub(crate) events: Vec<Arc<Recorded>>,
    /// The last position that was looked at.
    pub(crate) upto: Position,
    data_len: usize,
}

impl Looked {
    fn from(after: Position) -> Self {
        Self {
            upto: after,
            ..Self::default()
        }
    }

    fn add(&mut self, event: Arc<Recorded>) {
        self.data_len += event.data.get().len();
        self.events.push(event);
    }

    const fn is_full(&self, bounds: &Bounds) -> bool {
        self.events.len() >= bounds.events || self.data_len >= bounds.data_len
    }
}

/// A pass over the events after `after` that are in memory; `None` if the first of them is not.
pub(crate) fn from_memory(
    shared: &Shared,
    wanted: &mut Wanted,
    after: Position,
    upto: Position,
    bounds: Bounds,
) -> Option<Looked> {
    let wide = usize::try_from(upto.get().saturating_sub(after.get())).unwrap_or(usize::MAX);
    let recent = shared.recent(after, wide)?;
    let mut looked = Looked::from(after);
    for event in recent {
        if looked.is_full(&bounds) {
            break;
        }
        looked.upto = event.position;
        if wanted.wants(event.segment.as_str(), &event.kind, &event.key) {
            looked.add(event);
        }
    }
    Some(looked)
}

/// A pass over the events after `after`, up to `upto`, from files. Blocks.
pub(crate) fn from_files(
    shared: &Shared,
    wanted: &mut Wanted,
    after: Position,
    upto: Position,
    bounds: Bounds,
) -> Result<Looked, ReadError> {
    let mut looked = Looked::from(after);
    let (mut buf, mut read_len) = (Vec::new(), 0);
    while looked.upto < upto && !looked.is_full(&bounds) && read_len < bounds.read_len {
        let due = looked.upto.next();
        let frames = shared.frames.read().unwrap_or_else(PoisonError::into_inner);
        let span = frames.span(due, SPAN_LEN_MAX);
        drop(frames);
        let span = span.ok_or_else(|| ReadError::Damaged {
            detail: format!("no frame holds position {due}"),
        })?;
        read_span(&span, &mut buf)?;
        read_len += span.len;
        take_span(&span, &buf, wanted, upto, &bounds, &mut looked)?;
    }
    Ok(looked)
}

fn damaged(extent: &Path, byte: u64, what: &str) -> ReadError {
    ReadError::Damaged {
        detail: format!("{} at byte {byte}: {what}", extent.display()),
    }
}

fn read_span(span: &Span, buf: &mut Vec<u8>) -> Result<(), ReadError> {
    buf.resize(span.len, 0);
    let read = File::open(&span.extent).and_then(|file| file.read_exact_at(buf, span.offset));
    read.map_err(|error| {
        damaged(
            &span.extent,
            span.offset,
            &format!("cannot be read: {error}"),
        )
    })
}

/// Takes what is wanted from the frames in `bytes`, from the one after `looked.upto` on.
fn take_span(
    span: &Span,
    bytes: &[u8],
    wanted: &mut Wanted,
    upto: Position,
    bounds: &Bounds,
    looked: &mut Looked,
) -> Result<(), ReadError> {
    let mut at = 0;
    while at < bytes.len() && looked.upto < upto && !looked.is_full(bounds) {
        let byte = span.offset + at as u64;
        let wrong = |what: &str| damaged(&span.extent, byte, what);
        let frame = Frame::decode(&bytes[at..]).map_err(|error| wrong(error.what()))?;
        let due = looked.upto.next();
        if frame.header.first > due || frame.header.last() < due {
            return Err(wrong("a frame of other positions"));
        }
        for event in frame.events() {
            let event = event.map_err(wrong)?;
            if event.position < due {
                continue;
            }
            if looked.is_full(bounds) {
                break;
            }
            looked.upto = event.position;
            if wanted.wants(event.segment, event.kind, event.key) {
                looked.add(Arc::new(event.to_recorded().map_err(wrong)?));
            }
        }
        at += size(frame.header.len);
    }
    Ok(())
}

/// The `count` events from `first` on, which are all in the log. May block.
pub(crate) fn exactly(
    shared: &Shared,
    first: Position,
    count: usize,
) -> Result<Vec<Arc<Recorded>>, ReadError> {
    let after = Position(first.get().saturating_sub(1));
    if let Some(events) = shared
        .recent(after, count)
        .filter(|events| events.len() == count)
    {
        return Ok(events);
    }
    let mut all = Wanted::new(Filter::default(), vec![SegmentGlob::all()]);
    let bounds = Bounds {
        events: count,
        data_len: usize::MAX,
        read_len: usize::MAX,
    };
    let upto = Position(after.get().saturating_add(count as u64));
    let found = from_files(shared, &mut all, after, upto, bounds)?.events;
    if found.len() == count {
        Ok(found)
    } else {
        Err(ReadError::Damaged {
            detail: format!("{count} events are not behind {after}"),
        })
    }
}
