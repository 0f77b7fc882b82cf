//! Keeps the [`View`] up with the log, and lets requests wait for what they have written.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tabbify_api::log::{Delivery, EventLog, Filter};
use tabbify_process::chain;
use tabbify_types::{AppId, Position, SegmentGlob};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Refusal;
use crate::view::{CLAIMED, Noticed, View};

/// The view and how far it is.
#[derive(Debug)]
pub(crate) struct Projection {
    /// Held for lookups and single folds only, never across an await.
    view: RwLock<View>,
    progress: watch::Sender<Progress>,
}

/// How far the view is.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    position: Position,
    /// Whether all that was in the log at the start has been folded.
    caught_up: bool,
}

impl Projection {
    pub(crate) fn new() -> Self {
        Self {
            view: RwLock::default(),
            progress: watch::Sender::default(),
        }
    }

    /// Looks at the view. `look` must be short: the fold waits for it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Position up to which the view reaches.
    pub(crate) fn position(&self) -> Position {
        self.progress.borrow().position
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
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.position >= position);
        match tokio::time::timeout(within, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Refusal::ViewLags),
        }
    }

    /// Waits until everything that was in the log at the start is in the view.
    pub(crate) async fn caught_up(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as `self`.
        let _ = progress.wait_for(|progress| progress.caught_up).await;
    }

    /// Waits until `look` finds something in the view, and looks again after every event.
    pub(crate) async fn find<T>(&self, mut look: impl FnMut(&View) -> Option<T>) -> T {
        let mut progress = self.progress.subscribe();
        loop {
            progress.mark_unchanged();
            if let Some(found) = self.read(&mut look) {
                return found;
            }
            // The sender lives as long as `self`, so this ends with a change only.
            let _ = progress.changed().await;
        }
    }

    /// Follows the log until `token` is cancelled; returns early only if it cannot go on, which its
    /// owner takes for the end of the process. `switched` hears of every switch of traffic.
    pub(crate) async fn run(
        self: Arc<Self>,
        log: Arc<dyn EventLog>,
        token: CancellationToken,
        switched: impl Fn(AppId) + Send,
    ) {
        let filter = Filter {
            kinds: CLAIMED.iter().map(|&kind| kind.to_owned()).collect(),
            ..Filter::segments([SegmentGlob::all_apps()])
        };
        let mut subscription = match log.subscribe(filter, Position(0)) {
            Ok(subscription) => subscription,
            Err(error) => {
                tracing::error!(error = %chain(&error), "the node cannot read the log");
                return;
            }
        };
        loop {
            let delivery = tokio::select! {
                delivery = subscription.next() => delivery,
                () = token.cancelled() => return,
            };
            match delivery {
                Ok(delivery) => {
                    if !self.take(&delivery, &switched) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(error = %chain(&error), "the node lost the log");
                    return;
                }
            }
        }
    }

    /// Folds one delivery; false if that is not possible.
    fn take(&self, delivery: &Delivery, switched: &impl Fn(AppId)) -> bool {
        let mut caught_up = false;
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        match delivery {
            Delivery::Event(event) => match view.apply(event) {
                // Before the position is told, so that a request that has waited for a switch
                // goes to the new instance.
                Ok(Noticed::Switched(app)) => switched(app),
                Ok(Noticed::Nothing) => {}
                Err(error) => {
                    let (position, error) = (event.position, chain(&error));
                    tracing::error!(%position, %error, "the node does not understand an event");
                    return false;
                }
            },
            Delivery::CaughtUp(position) => {
                view.reached(*position);
                caught_up = true;
            }
            Delivery::Progress(position) => view.reached(*position),
        }
        let position = view.position();
        drop(view);
        self.progress.send_modify(|progress| {
            progress.position = position;
            progress.caught_up |= caught_up;
        });
        true
    }
}
