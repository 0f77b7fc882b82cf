//! The node's [`View`] of the log, for requests: looked at, and waited for by whoever has written.

use std::time::Duration;

use tabbify_process::fold::{Folded, Link};
use tabbify_types::{Position, Timestamp};

use crate::error::Refusal;
use crate::view::View;

/// Reads the view while somebody else follows the log for it.
#[derive(Debug)]
pub(crate) struct Projection(Folded<View>);

impl Projection {
    pub(crate) const fn new(folded: Folded<View>) -> Self {
        Self(folded)
    }

    /// Looks at the view. `look` must be short: the fold waits for it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        self.0.read(|folded| look(&folded.state))
    }

    /// Position up to which the view reaches.
    pub(crate) fn position(&self) -> Position {
        self.0.read(|folded| folded.position)
    }

    /// How old the view may be, if the log is away.
    pub(crate) fn away(&self, now: Timestamp) -> Option<Duration> {
        let away = |link: &Link| matches!(link, Link::Away { .. });
        self.0
            .read(|folded| away(&folded.link).then(|| folded.age(now)))
    }

    /// Waits until `position` is in the view.
    ///
    /// # Errors
    /// [`Refusal::ViewLags`] if that takes longer than `within`.
    pub(crate) async fn wait_for(
        &self,
        position: Position,
        within: Duration,
    ) -> Result<(), Refusal> {
        match self.0.reach(position, within).await {
            true => Ok(()),
            false => Err(Refusal::ViewLags),
        }
    }

    /// Waits until `look` finds something in the view, and looks again after every change of it.
    pub(crate) async fn find<T>(&self, mut look: impl FnMut(&View) -> Option<T>) -> T {
        match self.0.find(|folded| look(&folded.state)).await {
            Some(found) => found,
            // The log is not followed any more: the process is about to end.
            None => std::future::pending().await,
        }
    }
}
