//! What one actor may do with a log, whatever the engine. Enforced in the service, not in clients.
//!
//! - An append needs a write glob for the segment of every event. An expectation tells the current
//!   revision, so its segment must be writable or readable.
//! - A reader gets the events that match its filter and a read glob. Naming a glob that no read
//!   glob covers is refused, so that a reader learns of its mistake instead of waiting for ever;
//!   `SegmentGlob::covers` is the rule. Naming none means all that the scope may read.

use tabbify_api::log::{Append, AppendError, Filter, LogScope, ReadError};
use tabbify_types::{Position, Segment, SegmentGlob};

/// Whether `scope` may append `batch`.
pub(crate) fn may_append(scope: &LogScope, batch: &Append) -> Result<(), AppendError> {
    let matches =
        |globs: &[SegmentGlob], segment: &Segment| globs.iter().any(|glob| glob.matches(segment));
    let expected = batch.expect.iter().map(|expectation| &expectation.segment);
    let hidden = expected.filter(|segment| !matches(&scope.read, segment));
    let written = batch.events.iter().map(|event| &event.segment);
    match written
        .chain(hidden)
        .find(|segment| !matches(&scope.write, segment))
    {
        None => Ok(()),
        Some(segment) => Err(AppendError::Forbidden {
            actor: scope.actor.clone(),
            segment: segment.clone(),
        }),
    }
}

/// Whether `scope` may read what `filter` names, after a position that is there.
pub(crate) fn may_read(
    scope: &LogScope,
    filter: &Filter,
    after: Position,
    head: Position,
) -> Result<(), ReadError> {
    let covered = |glob: &SegmentGlob| scope.read.iter().any(|read| read.covers(glob));
    if let Some(glob) = filter.segments.iter().find(|glob| !covered(glob)) {
        let (actor, glob) = (scope.actor.clone(), glob.clone());
        return Err(ReadError::Forbidden { actor, glob });
    }
    if after > head {
        return Err(ReadError::BeyondHead { after, head });
    }
    Ok(())
}
