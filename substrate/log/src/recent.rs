//! The last events in memory, for readers at the head, whatever the engine.

use std::collections::VecDeque;
use std::sync::Arc;

use tabbify_types::{Position, Recorded};

/// LIMIT: recent events kept in memory for readers at the head, and their bytes.
const RECENT_EVENTS_MAX: usize = 2048;
const RECENT_LEN_MAX: usize = 4 * 1024 * 1024;

/// The last events, in position order without a gap.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    events: VecDeque<Arc<Recorded>>,
    len: usize,
}

impl Recent {
    /// Keeps an event that has just become durable.
    pub(crate) fn push(&mut self, event: Arc<Recorded>) {
        let weight =
            |event: &Recorded| size_of::<Recorded>() + event.key.len() + event.data.get().len();
        self.len += weight(&event);
        self.events.push_back(event);
        while self.events.len() > RECENT_EVENTS_MAX || self.len > RECENT_LEN_MAX {
            let Some(gone) = self.events.pop_front() else {
                break;
            };
            self.len -= weight(&gone);
        }
    }

    /// Up to `limit` events after `after`, if the first of them is still in memory.
    pub(crate) fn after(&self, after: Position, limit: usize) -> Option<Vec<Arc<Recorded>>> {
        let first = self.events.front()?.position;
        let skip = after.next().get().checked_sub(first.get())?;
        let skip = usize::try_from(skip).ok()?;
        Some(self.events.iter().skip(skip).take(limit).cloned().collect())
    }
}
