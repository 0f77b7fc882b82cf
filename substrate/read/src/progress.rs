//! How far folding is, as the follower tells it and everybody else sees it.

use std::sync::Arc;

use tabbify_api::log::EventLog;
use tabbify_api::read::{ProjectionStatus, ReadStatus};
use tabbify_process::Clock;
use tabbify_types::{Position, Timestamp};
use tokio::sync::watch;

use crate::store::{State, Store};

/// What the follower has done.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) position: Position,
    /// The head of the log when it was last read.
    pub(crate) head: Position,
    /// The content is as of this time, at least.
    pub(crate) fresh_at: Timestamp,
    pub(crate) states: Vec<State>,
    pub(crate) rebuilding: Option<Position>,
    pub(crate) stopped: Option<String>,
}

impl Progress {
    pub(crate) fn of(store: &Store) -> Self {
        Self {
            position: store.position(),
            head: store.position(),
            fresh_at: store.tip_at(),
            states: store.states().to_vec(),
            rebuilding: None,
            stopped: None,
        }
    }
}

/// The status as of now.
pub(crate) fn status(
    progress: &watch::Sender<Progress>,
    log: &Arc<dyn EventLog>,
    clock: &Arc<dyn Clock>,
) -> ReadStatus {
    let now = clock.now();
    // The log is looked at first: what is folded between the two looks makes the lag smaller.
    let head = log.head();
    let seen = progress.borrow().clone();
    let head = head.max(seen.head).max(seen.position);
    let lag_events = head.get() - seen.position.get();
    // A log that cannot be asked may have grown by now.
    let is_fresh = lag_events == 0 && seen.stopped.is_none();
    let lag_ms = match is_fresh {
        true => 0,
        false => now.millis().saturating_sub(seen.fresh_at.millis()).max(1),
    };
    if is_fresh {
        // Looked at and nothing missing: the content is as of now.
        progress.send_if_modified(|progress| {
            if progress.position == head {
                progress.fresh_at = progress.fresh_at.max(now);
            }
            false
        });
    }
    let projections = seen.states.into_iter().map(|state| ProjectionStatus {
        name: state.name.to_owned(),
        position: state.position,
        stopped: state.stopped,
    });
    ReadStatus {
        position: seen.position,
        head,
        lag_events,
        lag_ms,
        projections: projections.collect(),
        rebuilding: seen.rebuilding,
        stopped: seen.stopped,
    }
}
