//! The way out: events from memory when they are recent, from files otherwise. Reading files
//! blocks, so callers are on the blocking pool; every frame is verified again on its way.

mod frames;
mod history;
mod page;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tabbify_api::log::{Filter, ReadError};
use tabbify_process::chain;
use tabbify_types::{Position, Recorded, Segment, SegmentGlob};

use crate::error::OpenError;
use crate::index::{Index, KeyHash};
use crate::log::Shared;
use crate::pass::{self, Looked, Room};
use crate::record::EventRef;

use frames::Frames;

/// LIMIT: segments whose verdict a reader remembers.
const DECIDED_MAX: usize = 4096;

/// What one reader may have and wants: its filter and the read globs of its scope.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    filter: Filter,
    readable: Vec<SegmentGlob>,
    /// Verdict per segment, so that globs are matched once and not once an event.
    decided: HashMap<String, Verdict>,
    /// That of the segment before: one often follows itself.
    last: Option<(String, Verdict)>,
}

/// A segment that is wanted, parsed.
type Verdict = Option<Segment>;

impl Wanted {
    pub(crate) fn new(filter: Filter, readable: Vec<SegmentGlob>) -> Self {
        Self {
            filter,
            readable,
            decided: HashMap::new(),
            last: None,
        }
    }

    /// What the reader wants of what it may have.
    pub(crate) const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The hashes of the keys that the filter names, if it names its segments too.
    fn keys(&self, index: &Index) -> Option<Vec<KeyHash>> {
        let key = self.filter.key.as_ref()?;
        let literal = |glob: &SegmentGlob| glob.as_str().parse::<Segment>().ok();
        let segments: Option<Vec<Segment>> = self.filter.segments.iter().map(literal).collect();
        let mut segments = segments.filter(|segments| !segments.is_empty())?;
        segments.sort();
        segments.dedup();
        let hash = |segment: &Segment| index.hash(segment.as_str(), key);
        Some(segments.iter().map(hash).collect())
    }

    /// An event that is wanted, as readers get it.
    fn recorded(&self, event: &EventRef<'_>) -> Result<Recorded, &'static str> {
        match &self.last {
            Some((text, Some(segment))) if text == event.segment => {
                event.to_recorded_in(segment.clone())
            }
            _ => event.to_recorded(),
        }
    }

    /// Whether an event of these is wanted.
    pub(crate) fn wants(&mut self, segment: &str, kind: &str, key: &str) -> bool {
        self.filter.key.as_ref().is_none_or(|wanted| wanted == key)
            && (self.filter.kinds.is_empty() || self.filter.kinds.iter().any(|k| k == kind))
            && self.selects(segment)
    }

    fn selects(&mut self, segment: &str) -> bool {
        if let Some((last, verdict)) = &self.last
            && last == segment
        {
            return verdict.is_some();
        }
        let verdict = match self.decided.get(segment) {
            Some(verdict) => verdict.clone(),
            None => self.decide(segment),
        };
        let wanted = verdict.is_some();
        self.last = Some((segment.to_owned(), verdict));
        wanted
    }

    fn decide(&mut self, text: &str) -> Verdict {
        let verdict = text.parse().ok().filter(|segment| {
            let any = |globs: &[SegmentGlob]| globs.iter().any(|glob| glob.matches(segment));
            any(&self.readable) && (self.filter.segments.is_empty() || any(&self.filter.segments))
        });
        if self.decided.len() >= DECIDED_MAX {
            self.decided.clear();
        }
        self.decided.insert(text.to_owned(), verdict.clone());
        verdict
    }
}

/// Where one pass stops, whichever comes first. At least one event or frame is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// What it gives.
    pub(crate) room: Room,
    /// Bytes read from files.
    pub(crate) read_len: usize,
}

/// A pass over the events after `after` that are in memory; `None` if the first of them is not.
pub(crate) fn from_memory(
    shared: &Shared,
    wanted: &mut Wanted,
    after: Position,
    upto: Position,
    bounds: Bounds,
) -> Option<Looked> {
    let recent = |after, wide| shared.recent(after, wide);
    pass::in_memory(recent, wanted, (after, upto), bounds.room)
}

/// A pass over the events after `after`, up to `upto`, from files. Blocks. Where the filter names keys
/// of named segments, only their events are looked at, and all others are known not to match.
pub(crate) fn from_files(
    shared: &Shared,
    wanted: &mut Wanted,
    after: Position,
    upto: Position,
    bounds: Bounds,
) -> Result<Looked, ReadError> {
    if let Some(keys) = wanted.keys(&shared.index) {
        return history::pass(shared, wanted, &keys, (after, upto), bounds);
    }
    let mut looked = Looked::from(after);
    let (mut frames, mut read_len) = (Frames::new(shared), 0);
    while looked.upto < upto && !looked.fills(bounds.room) && read_len < bounds.read_len {
        let due = looked.upto.next();
        read_len += frames.read(due)?;
        frames.each(due, upto, |event| {
            looked.upto = event.position;
            if wanted.wants(event.segment, event.kind, event.key) {
                looked.add(Arc::new(wanted.recorded(event)?));
            }
            Ok(match looked.fills(bounds.room) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
    }
    Ok(looked)
}

/// Gives every event after `after` and up to `upto` to `take`, as it lies in its frame, until it breaks
/// off. Blocks. Answers the last position that was given.
pub(crate) fn replay(
    shared: &Shared,
    after: Position,
    upto: Position,
    mut take: impl FnMut(&EventRef<'_>) -> ControlFlow<()>,
) -> Result<Position, ReadError> {
    let (mut frames, mut given) = (Frames::new(shared), after);
    let mut flow = ControlFlow::Continue(());
    while given < upto && flow.is_continue() {
        let due = given.next();
        frames.read(due)?;
        frames.each(due, upto, |event| {
            given = event.position;
            flow = take(event);
            Ok(flow)
        })?;
    }
    Ok(given)
}

fn damaged(extent: &Path, byte: u64, what: &str) -> ReadError {
    ReadError::Damaged {
        detail: format!("{} at byte {byte}: {what}", extent.display()),
    }
}

/// What the index or a file cannot answer.
pub(crate) fn lost(error: &OpenError) -> ReadError {
    match error {
        OpenError::Stored { .. } => ReadError::Stored {
            detail: chain(error).to_string(),
        },
        OpenError::Damaged { extent, byte, what } => damaged(extent, *byte, what),
        OpenError::Io { source, .. } => ReadError::Damaged {
            detail: format!("{error}: {source}"),
        },
        error => ReadError::Damaged {
            detail: error.to_string(),
        },
    }
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
        room: Room {
            events: count,
            data_len: usize::MAX,
        },
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
