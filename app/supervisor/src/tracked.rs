//! What the loop keeps about one instance: what was observed, and what is under way.

use std::time::Duration;

use tabbify_process::TaskHandle;
use tabbify_types::Position;
use tokio::time::Instant;

use crate::plan::{Drain, Life, Observed};

/// Pause after an action failed; doubles with each failure in a row.
const SETBACK_MIN: Duration = Duration::from_millis(500);
/// LIMIT: pause after an action failed.
const SETBACK_MAX: Duration = Duration::from_secs(300);

/// Ends a task with its owner.
#[derive(Debug)]
pub(crate) struct Owned(pub(crate) TaskHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One instance that has a directory or an action under way.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) observed: Observed,
    pub(crate) busy: Busy,
    /// Since when it has been starting.
    pub(crate) since: Instant,
    /// Since when callers are sent to the doorbell instead.
    pub(crate) told: Option<Instant>,
    /// Failed actions in a row.
    pub(crate) setbacks: u32,
    pub(crate) watch: Option<Owned>,
}

/// Whether the plan has to wait for something that is under way.
#[derive(Debug)]
pub(crate) enum Busy {
    No,
    /// An action is under way.
    Acting {
        _action: Owned,
    },
    /// The fold has not seen yet what was reported.
    Until(Position),
    /// An action failed.
    Resting(Instant),
}

impl Tracked {
    pub(crate) fn new(life: Life) -> Self {
        Self {
            observed: Observed {
                life,
                starting_for: Duration::ZERO,
                drain: Drain::Untried,
                unspawnable: None,
                failure: None,
                quarantined: false,
                busy: false,
                told_for: None,
                is_wanted: false,
                is_visited: false,
            },
            busy: Busy::No,
            since: Instant::now(),
            told: None,
            setbacks: 0,
            watch: None,
        }
    }

    /// An action failed: nothing more for a while, longer with each time in a row.
    pub(crate) fn rest(&mut self) {
        let pause = SETBACK_MIN.saturating_mul(1 << self.setbacks.min(16));
        self.setbacks = self.setbacks.saturating_add(1);
        self.busy = Busy::Resting(Instant::now() + pause.min(SETBACK_MAX));
    }

    /// Brings what depends on time and on the fold up to date.
    pub(crate) fn refresh(&mut self, now: Instant, folded: Position) {
        let over = match self.busy {
            Busy::No | Busy::Acting { .. } => false,
            Busy::Until(position) => folded >= position,
            Busy::Resting(until) => now >= until,
        };
        if over {
            self.busy = Busy::No;
        }
        self.observed.busy = !matches!(self.busy, Busy::No);
        self.observed.starting_for = now.saturating_duration_since(self.since);
        let told = self.told;
        self.observed.told_for = told.map(|told| now.saturating_duration_since(told));
    }
}
