//! Whether a batch may be written, given everything before it: pure but for reading back what a
//! repetition claims to repeat.

use std::sync::Arc;

use tabbify_api::log::{Append, AppendError, Appended, Expect};
use tabbify_types::{Position, Recorded, Rev};

use crate::batch::same_content;
use crate::index::{Index, Place};
use crate::log::Shared;
use crate::reader;

/// What becomes of a batch.
pub(crate) enum Verdict {
    /// It is written already, or refused.
    Answered(Result<Appended, AppendError>),
    /// It is new and nothing is against it.
    Write,
}

/// The log as the next batch finds it.
pub(crate) struct Judge<'a> {
    pub(crate) shared: &'a Shared,
    /// Includes the pending events.
    pub(crate) index: &'a Index,
    /// The last durable position.
    pub(crate) durable: Position,
    /// Events behind it that the next sync will make durable.
    pub(crate) pending: &'a [Arc<Recorded>],
}

impl Judge<'_> {
    /// Ids before expectations: a repetition gets its first answer whatever has happened since.
    pub(crate) fn verdict(&self, batch: &Append) -> Verdict {
        match self.repeated(batch) {
            Ok(Some(first_answer)) => Verdict::Answered(Ok(first_answer)),
            Err(refusal) => Verdict::Answered(Err(refusal)),
            Ok(None) => match self.objection(batch) {
                Some(refusal) => Verdict::Answered(Err(refusal)),
                None => Verdict::Write,
            },
        }
    }

    /// What is against a batch of which nothing is known.
    fn objection(&self, batch: &Append) -> Option<AppendError> {
        for expectation in &batch.expect {
            let (segment, key) = (&expectation.segment, &expectation.key);
            let actual = self.index.head(segment.as_str(), key);
            let expected = match expectation.expect {
                Expect::None => Rev(0),
                Expect::Rev(rev) => rev,
            };
            if actual != expected {
                let (segment, key) = (segment.clone(), key.clone());
                return Some(AppendError::Conflict {
                    segment,
                    key,
                    actual,
                });
            }
        }
        let head = Position(self.durable.get() + self.pending.len() as u64);
        let causes = batch.events.iter().filter_map(|event| event.cause);
        let cause = causes.into_iter().find(|cause| *cause > head)?;
        let detail = format!("cause {cause} is beyond the head of the log, {head}");
        Some(AppendError::Invalid { detail })
    }

    /// The first answer to the batch if all of it is known; `None` if nothing of it is.
    fn repeated(&self, batch: &Append) -> Result<Option<Appended>, AppendError> {
        let events = &batch.events;
        let places: Vec<Option<Place>> = events
            .iter()
            .map(|event| self.index.place(event.id))
            .collect();
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
        let recorded = self.recorded(first, events.len())?;
        let mut pairs = events.iter().zip(&recorded);
        if let Some(index) = pairs.position(|(event, known)| !same_content(event, known)) {
            return refuse(index);
        }
        let revs = recorded.iter().map(|event| event.rev).collect();
        let last = Position(first.get() + events.len() as u64 - 1);
        Ok(Some(Appended { first, last, revs }))
    }

    /// The events of one known batch: pending, in memory, or on disk.
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
