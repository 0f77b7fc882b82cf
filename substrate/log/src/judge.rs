//! Whether a batch may be written, given everything before it. Pure: what an engine knows comes
//! through [`Past`], so every engine decides alike.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use tabbify_api::log::{Append, AppendError, Appended};
use tabbify_process::chain;
use tabbify_types::{EventId, Position, Recorded, Rev};

use crate::batch::{self, same_content};
use crate::error::OpenError;
use crate::extent;
use crate::index::Place;
use crate::log::Shared;
use crate::reader;

/// What becomes of a batch.
pub(crate) enum Verdict {
    /// It is written already, or refused.
    Answered(Result<Appended, AppendError>),
    /// It is new and nothing is against it: its events get these revisions.
    Write(Vec<Rev>),
}

/// The log as the next batch finds it: what is durable, and behind it what the next commit will
/// make so. An error is the answer of the batch.
pub(crate) trait Past {
    /// The last position.
    fn head(&self) -> Position;

    /// The last revision under a key; 0 if there is none.
    fn rev(&self, segment: &str, key: &str) -> Result<Rev, AppendError>;

    /// Where an id is; `None` if it is nowhere.
    fn place(&self, id: EventId) -> Result<Option<Place>, AppendError>;

    /// The `count` events from `first` on, which are one known batch.
    fn recorded(&self, first: Position, count: usize) -> Result<Vec<Arc<Recorded>>, AppendError>;
}

/// Ids before expectations: a repetition gets its first answer whatever has happened since.
pub(crate) fn verdict(batch: &Append, past: &impl Past) -> Verdict {
    let judged = match repeated(batch, past) {
        Ok(Some(first_answer)) => return Verdict::Answered(Ok(first_answer)),
        Ok(None) => objection(batch, past).and_then(|()| revisions(batch, past)),
        Err(refusal) => Err(refusal),
    };
    match judged {
        Ok(revs) => Verdict::Write(revs),
        Err(refusal) => Verdict::Answered(Err(refusal)),
    }
}

/// Those that the events will have. Found before anything is written, so that a past which cannot be
/// told refuses the batch and not the log.
fn revisions(batch: &Append, past: &impl Past) -> Result<Vec<Rev>, AppendError> {
    let mut last: HashMap<(&str, &str), Rev> = HashMap::new();
    let mut revs = Vec::with_capacity(batch.events.len());
    for event in &batch.events {
        let key = (event.segment.as_str(), event.key.as_str());
        let before = match last.get(&key) {
            Some(rev) => *rev,
            None => past.rev(key.0, key.1)?,
        };
        last.insert(key, before.next());
        revs.push(before.next());
    }
    Ok(revs)
}

/// What is against a batch of which nothing is known.
fn objection(batch: &Append, past: &impl Past) -> Result<(), AppendError> {
    for expectation in &batch.expect {
        let (segment, key) = (&expectation.segment, &expectation.key);
        let actual = past.rev(segment.as_str(), key)?;
        if let Some(refusal) = batch::objection(expectation, actual) {
            return Err(refusal);
        }
    }
    let head = past.head();
    let mut causes = batch.events.iter().filter_map(|event| event.cause);
    match causes.find(|cause| *cause > head) {
        None => Ok(()),
        Some(cause) => Err(AppendError::Invalid {
            detail: format!("cause {cause} is beyond the head of the log, {head}"),
        }),
    }
}

/// The first answer to the batch if all of it is known; `None` if nothing of it is.
fn repeated(batch: &Append, past: &impl Past) -> Result<Option<Appended>, AppendError> {
    let events = &batch.events;
    let mut places = Vec::with_capacity(events.len());
    for event in events {
        places.push(past.place(event.id)?);
    }
    let Some(known) = places.iter().position(Option::is_some) else {
        return Ok(None);
    };
    let refuse = |index: usize| {
        Err(AppendError::IdConflict {
            id: events[index].id,
        })
    };
    let Some(Some(start)) = places.first() else {
        return refuse(known);
    };
    let first = start.position;
    for (index, place) in places.iter().enumerate() {
        let Some(Place { position, batch }) = place else {
            return refuse(known);
        };
        // The same batch: as long, and each event at its own place in it.
        let same_batch = usize::from(batch.len) == events.len()
            && usize::from(batch.index) == index
            && position.get() == first.get() + index as u64;
        if !same_batch {
            return refuse(index);
        }
    }
    let recorded = past.recorded(first, events.len())?;
    let mut pairs = events.iter().zip(&recorded);
    if let Some(index) = pairs.position(|(event, known)| !same_content(event, known)) {
        return refuse(index);
    }
    let revs = recorded.iter().map(|event| event.rev).collect();
    let last = Position(first.get() + events.len() as u64 - 1);
    Ok(Some(Appended { first, last, revs }))
}

/// [`Past`] of the embedded engine.
pub(crate) struct Judge<'a> {
    /// Its index includes the pending events.
    pub(crate) shared: &'a Shared,
    /// The last durable position.
    pub(crate) durable: Position,
    /// Events behind it that the next sync will make durable.
    pub(crate) pending: &'a [Arc<Recorded>],
    /// Set when the log cannot tell what it holds.
    pub(crate) failed: OnceCell<OpenError>,
}

impl Judge<'_> {
    /// What becomes of the batch; an error ends the log.
    pub(crate) fn verdict(self, batch: &Append) -> Result<Verdict, OpenError> {
        let verdict = verdict(batch, &self);
        match self.failed.into_inner() {
            None => Ok(verdict),
            Some(error) => Err(error),
        }
    }

    fn answer<T>(&self, answer: Result<T, OpenError>) -> Result<T, AppendError> {
        answer.map_err(|error| match error {
            // A part of the index had to be made anew, and there is no space for it.
            OpenError::Io { source, .. } if extent::is_full(&source) => AppendError::NoSpace {
                detail: source.to_string(),
            },
            // A part of the index had to be made anew from an extent that is stored. Whoever repeats the
            // batch gets an answer when the store does; the others get theirs.
            error @ OpenError::Stored { .. } => {
                tracing::warn!(error = %chain(&error), "a batch cannot be judged now");
                AppendError::Stopping
            }
            error => {
                self.failed.get_or_init(|| error);
                AppendError::Stopping
            }
        })
    }
}

impl Past for Judge<'_> {
    fn head(&self) -> Position {
        Position(self.durable.get() + self.pending.len() as u64)
    }

    fn rev(&self, segment: &str, key: &str) -> Result<Rev, AppendError> {
        self.answer(self.shared.index.head(segment, key))
    }

    fn place(&self, id: EventId) -> Result<Option<Place>, AppendError> {
        self.answer(self.shared.index.place(id))
    }

    /// Pending, in memory, or on disk.
    fn recorded(&self, first: Position, count: usize) -> Result<Vec<Arc<Recorded>>, AppendError> {
        let pending = first.get().checked_sub(self.durable.next().get());
        if let Some(skip) = pending.and_then(|skip| usize::try_from(skip).ok()) {
            return Ok(self
                .pending
                .iter()
                .skip(skip)
                .take(count)
                .cloned()
                .collect());
        }
        reader::exactly(self.shared, first, count).map_err(|error| {
            tracing::error!(%error, position = %first, "cannot compare a repeated batch");
            AppendError::Stopping
        })
    }
}
