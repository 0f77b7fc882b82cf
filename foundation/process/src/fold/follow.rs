//! The follower: the one that writes the state.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{Delivery, EventLog, Filter, ReadError, Subscribe};
use tabbify_types::{Position, Recorded, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::snapshot::{self, Place, Tip};
use super::{Fold, Folded, FollowError, Heard, Link, Start, View};
use crate::{Clock, Importance, Tasks, chain};

/// Events after which the state is stored again.
const SAVE_EVERY: u64 = 1_000;
/// LIMIT: how often it is stored while events come: a large state costs its reader and the disk.
const SAVE_PAUSE: Duration = Duration::from_secs(10);
/// The pause before the second attempt to reach the log; doubles with each.
const PAUSE: Duration = Duration::from_millis(50);
/// LIMIT: the longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

type Listener<F> = Box<dyn FnMut(Heard<'_, <F as Fold>::News>) + Send>;

/// Folds a log, and owns the state.
pub struct Follow<F: Fold> {
    log: Arc<dyn EventLog>,
    clock: Arc<dyn Clock>,
    /// The state of no events, to begin again with.
    initial: F,
    filter: Filter,
    view: watch::Sender<View<F>>,
    hear: Option<Listener<F>>,
    /// The last event in the state.
    tip: Option<Tip>,
    /// Whether the state comes from a snapshot that no log has confirmed yet.
    unconfirmed: bool,
    events: Option<Box<dyn Subscribe>>,
    /// Attempts in a row that failed.
    failures: u32,
    /// When to try again.
    rest_until: Option<Instant>,
    place: Option<Place>,
    saved: Position,
    unsaved: u64,
    /// When storing began the last time.
    saved_at: Option<Instant>,
    saving: Option<JoinHandle<()>>,
}

impl<F: Fold> Follow<F> {
    /// Begins with the snapshot in `dir` if there is one that can be used, else with `initial`, the
    /// state of no events. Nothing is read from the log before [`Follow::next`].
    ///
    /// A snapshot that is damaged, of another version or of another log is ignored with a warning.
    /// Without a directory, or with one that cannot be used, nothing is stored.
    #[must_use]
    pub fn open(
        initial: F,
        log: Arc<dyn EventLog>,
        dir: Option<&Path>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let place = dir.map(Place::new::<F>).filter(|place| {
            let prepared = place.prepare();
            if let Err(error) = &prepared {
                let path = place.path();
                tracing::warn!(fold = F::NAME, path = %path.display(), %error, "no snapshots are stored");
            }
            prepared.is_ok()
        });
        let mut follow = Self {
            log,
            clock,
            filter: initial.filter(),
            view: watch::Sender::new(View {
                state: initial.clone(),
                position: Position(0),
                link: Link::CatchingUp,
                as_of: Timestamp::default(),
            }),
            initial,
            hear: None,
            tip: None,
            unconfirmed: false,
            events: None,
            failures: 0,
            rest_until: None,
            place,
            saved: Position(0),
            unsaved: 0,
            saved_at: None,
            saving: None,
        };
        follow.load();
        follow
    }

    /// `listener` hears of every event that is applied, before readers see the state with it. It must
    /// be short and must not look at the state through a [`Folded`].
    #[must_use]
    pub fn hear(mut self, listener: impl FnMut(Heard<'_, F::News>) + Send + 'static) -> Self {
        self.hear = Some(Box::new(listener));
        self
    }

    /// Reads what is folded.
    #[must_use]
    pub fn folded(&self) -> Folded<F> {
        Folded(self.view.subscribe())
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&View<F>) -> T) -> T {
        look(&self.view.borrow())
    }

    /// Takes the next step: an event, a mark, or the news that the log cannot be reached, after which
    /// the next call waits longer and longer. Safe to cancel.
    ///
    /// # Errors
    /// [`FollowError`]: the log cannot be followed, whatever is tried.
    pub async fn next(&mut self) -> Result<(), FollowError<F::Error>> {
        if let Some(at) = self.rest_until {
            tokio::time::sleep_until(at).await;
            self.rest_until = None;
        }
        let delivery = match self.events.as_mut() {
            Some(events) => events.next().await,
            None => match self.connect().await? {
                Ok(()) => return Ok(()),
                Err(error) => Err(error),
            },
        };
        match delivery {
            Ok(Delivery::Event(event)) => self.apply(&event),
            Ok(Delivery::CaughtUp(position)) => {
                self.reached(position, Link::Live);
                if self.unsaved > 0 {
                    self.save();
                }
                Ok(())
            }
            Ok(Delivery::Progress(position)) => {
                let link = self.read(|view| view.link.clone());
                self.reached(position, link);
                Ok(())
            }
            Err(error) => self.failed(error),
        }
    }

    /// Waits until everything in the log is folded, or until the log turns out to be away while there
    /// is a snapshot to begin with. Without a snapshot it waits for the log.
    ///
    /// # Errors
    /// As [`Follow::next`].
    pub async fn catch_up(&mut self) -> Result<Start, FollowError<F::Error>> {
        loop {
            self.next().await?;
            let view = self.view.borrow();
            let position = view.position;
            match &view.link {
                Link::Live => {
                    tracing::info!(fold = F::NAME, %position, "caught up with the log");
                    return Ok(Start::CaughtUp);
                }
                Link::Away { reason } if self.unconfirmed => {
                    let age = view.age(self.clock.now());
                    tracing::warn!(fold = F::NAME, %position, ?age, reason, "the log is away: starting with a snapshot");
                    return Ok(Start::Snapshot { age });
                }
                _ => {}
            }
        }
    }

    /// Follows until `stop` is cancelled, then stores the state.
    ///
    /// # Errors
    /// As [`Follow::next`]; the state before that is stored too.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), FollowError<F::Error>> {
        let ended = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                next = self.next() => if let Err(error) = next {
                    break Err(error);
                },
            }
        };
        self.close().await;
        ended
    }

    /// Follows in a task of `tasks`, whose end is logged.
    pub fn spawn(self, name: &'static str, importance: Importance, tasks: &Tasks) -> Folded<F> {
        let (folded, stop) = (self.folded(), tasks.token());
        tasks.spawn(name, importance, async move {
            if let Err(error) = self.run(stop).await {
                tracing::error!(fold = F::NAME, error = %chain(&error), "the log is not followed any more");
            }
        });
        folded
    }

    /// Stores the state, if there is something new in it, and waits until that is done.
    pub async fn close(mut self) {
        self.saved_before().await;
        let (position, is_usable) = self.read(|view| (view.position, !self.unconfirmed));
        if is_usable && (self.unsaved > 0 || position > self.saved) {
            self.save();
            self.saved_before().await;
        }
    }

    async fn saved_before(&mut self) {
        if let Some(saving) = self.saving.take() {
            // It has logged its own failure; a panic in it has been reported by the runtime.
            let _ = saving.await;
        }
    }

    fn load(&mut self) {
        let Some(place) = &self.place else { return };
        let read = place.read().map_err(|error| error.to_string());
        let stored = match read {
            Ok(None) => return,
            Ok(Some(bytes)) => snapshot::decode(&bytes, &self.initial),
            Err(reason) => Err(reason),
        };
        match stored {
            Ok(stored) => {
                let (position, as_of) = (stored.position, stored.as_of);
                self.view.send_modify(|view| {
                    (view.position, view.as_of) = (position, as_of);
                    view.state = stored.state;
                });
                (self.tip, self.saved, self.unconfirmed) = (stored.tip, position, true);
            }
            Err(reason) => {
                let path = place.path();
                tracing::warn!(fold = F::NAME, path = %path.display(), reason, "a snapshot is ignored; folding everything again");
            }
        }
    }

    /// Subscribes from where the state is, once the log has shown that it is the one that was folded.
    async fn connect(&mut self) -> Result<Result<(), ReadError>, FollowError<F::Error>> {
        if let Some(tip) = self.tip.clone() {
            let before = Position(tip.position.get().saturating_sub(1));
            match self.log.read(self.filter.clone(), before, 1).await {
                Ok(page) => {
                    let is_same = |event: &Arc<Recorded>| {
                        event.position == tip.position && event.id == tip.id
                    };
                    if !page.events.first().is_some_and(is_same) {
                        self.begin_again("the log has another event at its end")?;
                    }
                }
                Err(ReadError::BeyondHead { .. }) => {
                    self.begin_again("it is beyond the head of the log")?;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        let after = self.read(|view| view.position);
        match self.log.subscribe(self.filter.clone(), after) {
            Ok(events) => {
                self.events = Some(events);
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn failed(&mut self, error: ReadError) -> Result<(), FollowError<F::Error>> {
        self.events = None;
        match error {
            // Whoever is refused for its token asks with the next one; an object store comes back.
            ReadError::Stopping | ReadError::Stored { .. } | ReadError::Refused { .. } => {
                let pause = pause(self.failures);
                self.failures = self.failures.saturating_add(1);
                self.rest_until = Some(Instant::now() + pause);
                let (now, reason) = (self.clock.now(), error.to_string());
                if self.failures == 1 {
                    tracing::warn!(fold = F::NAME, reason, "the log is away; trying again");
                }
                self.view.send_modify(|view| {
                    if view.link == Link::Live {
                        view.as_of = view.as_of.max(now);
                    }
                    view.link = Link::Away { reason };
                });
                Ok(())
            }
            ReadError::BeyondHead { .. } if self.unconfirmed => {
                self.begin_again("it is beyond the head of the log")
            }
            ReadError::BeyondHead { .. } => Err(self.other_log()),
            error => Err(FollowError::Read(error)),
        }
    }

    /// Gives up a snapshot that is not of this log, unless somebody may have relied on its state.
    fn begin_again(&mut self, reason: &'static str) -> Result<(), FollowError<F::Error>> {
        let was_shown = self.read(|view| view.link != Link::CatchingUp);
        if !self.unconfirmed || was_shown {
            return Err(self.other_log());
        }
        tracing::warn!(
            fold = F::NAME,
            reason,
            "a snapshot is of another log; folding everything again"
        );
        (self.tip, self.unconfirmed, self.saved) = (None, false, Position(0));
        self.view.send_modify(|view| {
            (view.position, view.as_of) = (Position(0), Timestamp::default());
            view.state = self.initial.clone();
        });
        Ok(())
    }

    fn other_log(&mut self) -> FollowError<F::Error> {
        // So that the next start does not come here again.
        if let Some(place) = self.place.take()
            && let Err(error) = place.remove()
        {
            tracing::warn!(fold = F::NAME, path = %place.path().display(), %error, "a snapshot of another log cannot be removed");
        }
        let position = self.read(|view| view.position);
        FollowError::OtherLog {
            fold: F::NAME,
            position,
        }
    }

    fn apply(&mut self, event: &Recorded) -> Result<(), FollowError<F::Error>> {
        let (hear, mut applied) = (&mut self.hear, Ok(()));
        self.view.send_if_modified(|view| {
            match view.state.apply(event) {
                Ok(news) => {
                    let live = view.link == Link::Live;
                    if let Some(hear) = hear {
                        hear(Heard { event, news, live });
                    }
                    view.position = event.position;
                    view.as_of = view.as_of.max(event.at);
                    if !live {
                        view.link = Link::CatchingUp;
                    }
                }
                Err(source) => applied = Err(source),
            }
            applied.is_ok()
        });
        applied.map_err(|source| FollowError::Fold {
            fold: F::NAME,
            position: event.position,
            source,
        })?;
        let (position, id) = (event.position, event.id);
        self.tip = Some(Tip { position, id });
        self.followed();
        self.unsaved += 1;
        let rested = self.saved_at.is_none_or(|at| at.elapsed() >= SAVE_PAUSE);
        if self.unsaved >= SAVE_EVERY && rested {
            self.save();
        }
        Ok(())
    }

    fn reached(&mut self, position: Position, link: Link) {
        self.followed();
        let link = match link {
            Link::Away { .. } => Link::CatchingUp,
            link => link,
        };
        self.view.send_modify(|view| {
            view.position = view.position.max(position);
            view.link = link;
        });
    }

    /// The log has delivered: it is there, and is the one that was folded.
    fn followed(&mut self) {
        (self.failures, self.unconfirmed) = (0, false);
    }

    /// Stores the state, on another thread. Does nothing if the last time is still under way: the
    /// next events ask again.
    fn save(&mut self) {
        let Some(place) = self.place.clone() else {
            return;
        };
        if self
            .saving
            .as_ref()
            .is_some_and(|saving| !saving.is_finished())
        {
            return;
        }
        let now = self.clock.now();
        let view = self.view.borrow();
        let as_of = match view.link {
            Link::Live => now,
            _ => view.as_of,
        };
        (self.saved, self.unsaved, self.saved_at) = (view.position, 0, Some(Instant::now()));
        let encoded = snapshot::encode(&view.state, view.position, self.tip.clone(), as_of);
        drop(view);
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let stored = encoded.and_then(|bytes| {
                let written = place.write(&bytes);
                written.map_err(|error| error.to_string())
            });
            if let Err(reason) = stored {
                tracing::warn!(fold = F::NAME, path = %place.path().display(), reason, "a snapshot is not stored");
            }
        }));
    }
}

/// The pause after so many failures and one more.
fn pause(failures: u32) -> Duration {
    PAUSE.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX)
}

impl<F: Fold> fmt::Debug for Follow<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view.borrow();
        f.debug_struct("Follow")
            .field("fold", &F::NAME)
            .field("position", &view.position)
            .field("link", &view.link)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<u128> = (0..9).map(|n| pause(n).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
