//! A projection of the log in memory, the same for every role: replayed from a snapshot, followed
//! live, and readable while the log is down.
//!
//! ```text
//!   snapshot on disk ─▶ state ◀─ apply ◀─ log: history, then live; away? wait, go on from there
//!          ▲              │ watch channel
//!          └── save ──────┴──▶ readers: Folded
//! ```

mod follow;
mod snapshot;

use std::time::Duration;

pub use tabbify_api::fold::{Fold, FollowError, Heard, Link, Start, View, event, pairs};
use tabbify_types::Position;
use tokio::sync::watch;

pub use follow::Follow;
pub use snapshot::SNAPSHOT_LEN_MAX;

/// Reads what a [`Follow`] folds. Clones read the same.
#[derive(Debug)]
pub struct Folded<F>(watch::Receiver<View<F>>);

impl<F> Clone for Folded<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: Fold> Folded<F> {
    /// Looks at the state. `look` must be short: the fold waits for it.
    pub fn read<T>(&self, look: impl FnOnce(&View<F>) -> T) -> T {
        look(&self.0.borrow())
    }

    /// Waits until the view is as `wanted` says, and looks again after every change of it; false if
    /// following ended before.
    pub async fn until(&self, wanted: impl FnMut(&View<F>) -> bool) -> bool {
        self.0.clone().wait_for(wanted).await.is_ok()
    }

    /// Waits until `look` finds something; none if following ended before.
    pub async fn find<T>(&self, mut look: impl FnMut(&View<F>) -> Option<T>) -> Option<T> {
        let mut found = None;
        self.until(|view| {
            found = look(view);
            found.is_some()
        })
        .await;
        found
    }

    /// Waits until everything up to `position` is in the state, at most for `within`; whether it is.
    pub async fn reach(&self, position: Position, within: Duration) -> bool {
        let reached = self.until(|view| view.position >= position);
        tokio::time::timeout(within, reached).await.unwrap_or(false)
    }
}
