//! One pass of a reader over the log, whatever engine keeps it: what it may take, and what it gave.

use std::sync::Arc;

use tabbify_types::{Position, Recorded};

use crate::reader::Wanted;

/// What one pass gives at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Matching events.
    pub(crate) events: usize,
    /// Bytes of their data.
    pub(crate) data_len: usize,
}

impl Room {
    /// LIMIT: what a subscription holds in memory.
    pub(crate) const SUBSCRIPTION: Self = Self {
        events: 2048,
        data_len: 1024 * 1024,
    };

    /// LIMIT: 8 MiB of data in one page, and the events that are asked for.
    pub(crate) const fn page(events: usize) -> Self {
        Self {
            events,
            data_len: 8 * 1024 * 1024,
        }
    }
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
    pub(crate) fn from(after: Position) -> Self {
        Self {
            upto: after,
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, event: Arc<Recorded>) {
        self.data_len += event.data.get().len();
        self.events.push(event);
    }

    pub(crate) const fn fills(&self, room: Room) -> bool {
        self.events.len() >= room.events || self.data_len >= room.data_len
    }
}

/// A pass over the events after `after` that are in memory, which `recent` gives, so many at most;
/// `None` if it does not have the first of them.
pub(crate) fn in_memory(
    recent: impl FnOnce(Position, usize) -> Option<Vec<Arc<Recorded>>>,
    wanted: &mut Wanted,
    (after, upto): (Position, Position),
    room: Room,
) -> Option<Looked> {
    let wide = usize::try_from(upto.get().saturating_sub(after.get())).unwrap_or(usize::MAX);
    let mut looked = Looked::from(after);
    for event in recent(after, wide)? {
        if looked.fills(room) {
            break;
        }
        looked.upto = event.position;
        if wanted.wants(event.segment.as_str(), &event.kind, &event.key) {
            looked.add(event);
        }
    }
    Some(looked)
}
