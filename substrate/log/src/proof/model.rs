//! The law of the log in its plainest form: a list of batches.

use std::collections::HashMap;
use std::sync::Arc;

use tabbify_api::log::{Append, AppendError, Appended, Expect};
use tabbify_types::{EventId, NewEvent, Position, Recorded, Rev, Segment};

/// What an append is answered.
pub(crate) type Answer = Result<Appended, AppendError>;

/// A log that is only a list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    events: Vec<(Arc<NewEvent>, Rev)>,
    /// Where each batch ends.
    ends: Vec<usize>,
    revs: HashMap<(Segment, String), Rev>,
    /// Index of each id in `events`.
    ids: HashMap<EventId, usize>,
}

impl Model {
    pub(crate) fn head(&self) -> Position {
        Position(self.events.len() as u64)
    }

    pub(crate) fn rev(&self, segment: &Segment, key: &str) -> Rev {
        let known = self.revs.get(&(segment.clone(), key.to_owned()));
        known.copied().unwrap_or_default()
    }

    /// The events after `after`.
    pub(crate) fn after(&self, after: Position) -> impl Iterator<Item = (Position, &NewEvent)> {
        let first = index(after);
        let events = self.events.iter().enumerate().skip(first);
        events.map(|(n, (event, _))| (Position(n as u64 + 1), &**event))
    }

    /// Whether a batch ends at `head`, or nothing is before it.
    pub(crate) fn ends_at(&self, head: Position) -> bool {
        head == Position(0) || self.ends.binary_search(&index(head)).is_ok()
    }

    /// The same log when only the events up to `head`, where a batch ends, had been written.
    pub(crate) fn upto(&self, head: Position) -> Self {
        let mut model = Self::default();
        let mut start = 0;
        for end in self.ends.iter().take_while(|end| **end <= index(head)) {
            for (event, _) in &self.events[start..*end] {
                model.push(Arc::clone(event));
            }
            model.ends.push(*end);
            start = *end;
        }
        model
    }

    /// What the log must answer, and what it is then.
    pub(crate) fn append(&mut self, batch: &Append) -> Answer {
        if let Some(answer) = self.repeated(batch) {
            return answer;
        }
        for expectation in &batch.expect {
            let (segment, key) = (&expectation.segment, &expectation.key);
            let actual = self.rev(segment, key);
            let expected = match expectation.expect {
                Expect::None => Rev(0),
                Expect::Rev(rev) => rev,
            };
            let (segment, key) = (segment.clone(), key.clone());
            if expected < actual {
                return Err(AppendError::Conflict {
                    segment,
                    key,
                    actual,
                });
            }
            if expected > actual {
                return Err(AppendError::ExpectAhead {
                    segment,
                    key,
                    expected,
                    actual,
                });
            }
        }
        let start = self.events.len();
        for event in &batch.events {
            self.push(Arc::new(event.clone()));
        }
        self.ends.push(self.events.len());
        Ok(self.answer(start))
    }

    fn push(&mut self, event: Arc<NewEvent>) {
        let key = (event.segment.clone(), event.key.clone());
        let rev = self.revs.entry(key).or_default();
        *rev = rev.next();
        self.ids.insert(event.id, self.events.len());
        self.events.push((event, *rev));
    }

    /// The answer to a batch of which an id is known.
    fn repeated(&self, batch: &Append) -> Option<Answer> {
        let known = batch.events.iter().find_map(|event| {
            let index = self.ids.get(&event.id)?;
            Some((event.id, *index))
        });
        let (id, at) = known?;
        let which = self.ends.partition_point(|end| *end <= at);
        let start = which.checked_sub(1).map_or(0, |before| self.ends[before]);
        let first = &self.events[start..self.ends[which]];
        let mut pairs = first.iter().zip(&batch.events);
        let same = first.len() == batch.events.len() && pairs.all(|((a, _), b)| same(a, b));
        Some(if same {
            Ok(self.answer(start))
        } else {
            Err(AppendError::IdConflict { id })
        })
    }

    /// The answer to the batch that starts at this index.
    fn answer(&self, start: usize) -> Appended {
        let which = self.ends.partition_point(|end| *end <= start);
        let end = self.ends[which];
        Appended {
            first: Position(start as u64 + 1),
            last: Position(end as u64),
            revs: self.events[start..end]
                .iter()
                .map(|(_, rev)| *rev)
                .collect(),
        }
    }

    /// What is wrong with `found`, which should be the events from position 1 on, as far as it goes.
    pub(crate) fn differs(&self, found: &[Arc<Recorded>]) -> Option<String> {
        if found.len() > self.events.len() {
            let (found, issued) = (found.len(), self.events.len());
            return Some(format!("{found} events where {issued} were issued"));
        }
        for (n, (recorded, (event, rev))) in found.iter().zip(&self.events).enumerate() {
            let position = Position(n as u64 + 1);
            if recorded.position != position || recorded.rev != *rev || !is(recorded, event) {
                return Some(format!(
                    "position {position}: {recorded:?}, not {event:?} as {rev:?}"
                ));
            }
        }
        None
    }
}

/// Whether `recorded` says what `event` does.
pub(crate) fn is(recorded: &Recorded, event: &NewEvent) -> bool {
    recorded.id == event.id
        && recorded.segment == event.segment
        && recorded.key == event.key
        && recorded.kind == event.kind
        && recorded.version == event.version
        && recorded.cause == event.cause
        && recorded.trace == event.trace
        && recorded.data.get() == event.data.get()
}

fn same(a: &NewEvent, b: &NewEvent) -> bool {
    a.id == b.id
        && a.segment == b.segment
        && a.key == b.key
        && a.kind == b.kind
        && a.version == b.version
        && a.cause == b.cause
        && a.data.get() == b.data.get()
}

/// The same answer; of ids that are known with other content, any of the batch may be named.
pub(crate) fn agree(ours: &Answer, model: &Answer) -> bool {
    match (ours, model) {
        (Err(AppendError::IdConflict { .. }), Err(AppendError::IdConflict { .. })) => true,
        _ => ours == model,
    }
}

fn index(position: Position) -> usize {
    usize::try_from(position.get()).unwrap_or(usize::MAX)
}
