//! What was served and what was refused, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened so far, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Files that were begun to be sent.
    pub served: u64,
    /// Files that broke off, for the store could not be read on.
    pub broken: u64,
    /// Requests for what is another app's, or by who is no app.
    pub denied: u64,
    /// Requests for what is not there.
    pub missing: u64,
    /// Requests that cannot be.
    pub malformed: u64,
    /// Connections beyond what one caller may have.
    pub limited: u64,
    /// Requests while the store could not be read.
    pub unavailable: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) served: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) denied: AtomicU64,
    pub(crate) missing: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) limited: AtomicU64,
    pub(crate) unavailable: AtomicU64,
}

impl Counters {
    pub(crate) fn stats(&self) -> Stats {
        let at = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            served: at(&self.served),
            broken: at(&self.broken),
            denied: at(&self.denied),
            missing: at(&self.missing),
            malformed: at(&self.malformed),
            limited: at(&self.limited),
            unavailable: at(&self.unavailable),
        }
    }
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
