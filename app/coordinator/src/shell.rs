//! The shell: follows the log, appends what the plan says, tells watchers what changed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tabbify_api::coordinator::Change;
use tabbify_api::log::{AppendError, EventLog};
use tabbify_process::chain;
use tabbify_process::fold::{Folded, Follow, FollowError, Heard, Link};
use tabbify_types::Position;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::coordinator::StartError;
use crate::join::{JoinError, join};
use crate::plan::{Step, plan};
use crate::state::{FoldError, News, State};
use crate::watch::Watchers;

/// LIMIT: attempts to join while others write at the same time.
const JOIN_ATTEMPTS_MAX: usize = 16;
/// How long to wait with what the log did not take, if nothing happens meanwhile.
const RETRY: Duration = Duration::from_millis(500);

/// News of events that were applied and are not told yet.
type Heap = Arc<Mutex<Vec<(Position, News)>>>;

pub(crate) struct Shell {
    log: Arc<dyn EventLog>,
    follow: Follow<State>,
    folded: Folded<State>,
    news: Heap,
    watchers: Watchers,
    /// Whether somebody may watch.
    told: Arc<AtomicBool>,
    /// Of a machine's memory, how many hundredths may be promised.
    overcommit_percent: u32,
    /// Nothing is planned before the state has reached this: our own last append.
    settled: Position,
}

impl Shell {
    pub(crate) fn new(
        log: Arc<dyn EventLog>,
        follow: Follow<State>,
        watchers: Watchers,
        overcommit_percent: u32,
    ) -> Self {
        let news = Heap::default();
        let told = Arc::<AtomicBool>::default();
        let (heap, tells) = (Arc::clone(&news), Arc::clone(&told));
        let follow = follow.hear(move |heard: Heard<'_, Option<News>>| {
            let Some(news) = heard.news else { return };
            // What history rejected was said when it happened, and nobody watches before the start.
            let concerns = match news {
                News::Rejected(_) => heard.live,
                News::Changed(_) => tells.load(Ordering::Relaxed),
            };
            if concerns {
                let mut heap = heap.lock().unwrap_or_else(PoisonError::into_inner);
                heap.push((heard.event.position, news));
            }
        });
        let folded = follow.folded();
        Self {
            log,
            follow,
            folded,
            news,
            watchers,
            told,
            overcommit_percent,
            settled: Position(0),
        }
    }

    pub(crate) fn folded(&self) -> Folded<State> {
        self.folded.clone()
    }

    /// Reads what is in the log, or begins with a snapshot while the log is away.
    pub(crate) async fn catch_up(&mut self) -> Result<(), FollowError<FoldError>> {
        let caught = self.follow.catch_up().await.map(drop);
        // History is nobody's news.
        self.take_news();
        self.watchers.begin_at(self.position());
        self.told.store(true, Ordering::Relaxed);
        caught
    }

    /// Makes the machine a member; several may do so at once, so a conflict means to look again.
    pub(crate) async fn join(&mut self, config: &Config) -> Result<(), StartError> {
        for _ in 0..JOIN_ATTEMPTS_MAX {
            let batch = self.follow.read(|view| join(&view.state, config));
            let Some(batch) = batch.map_err(StartError::Join)? else {
                return Ok(());
            };
            match self.log.append(batch).await {
                Ok(appended) => {
                    while self.position() < appended.last {
                        self.next().await?;
                    }
                    return Ok(());
                }
                // Somebody was faster, or the log is away: either is told, if it lasts.
                Err(AppendError::Conflict { .. } | AppendError::Stopping) => self.next().await?,
                Err(error) => return Err(StartError::Append(error)),
            }
        }
        Err(StartError::Join(JoinError::Contended))
    }

    /// Goes on until `stop`, then stores the state.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), StartError> {
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = self.decide() => ended,
        };
        self.follow.close().await;
        ended
    }

    async fn decide(&mut self) -> Result<(), StartError> {
        loop {
            // Everything that is there is folded first, so that a plan is made once for it all.
            while let Some(next) = self.next().now_or_never() {
                next?;
            }
            let all_written = self.act().await?;
            if all_written {
                self.next().await?;
            } else {
                // If nothing happens, it is tried again; a failure of the log is news in itself.
                tokio::time::timeout(RETRY, self.next())
                    .await
                    .unwrap_or(Ok(()))?;
            }
        }
    }

    /// Takes a step with the log, then tells what it brought: by then, who asks gets the new answer.
    async fn next(&mut self) -> Result<(), StartError> {
        let next = self.follow.next().await;
        self.tell();
        next.map_err(StartError::Follow)
    }

    fn tell(&self) {
        for (position, news) in self.take_news() {
            match news {
                News::Rejected(rejected) => {
                    tracing::warn!(role = "coordinator", %position, %rejected, "report");
                }
                News::Changed(change) => self.publish(position, change),
            }
        }
    }

    fn publish(&self, position: Position, change: Change) {
        let gone = match &change {
            Change::App { gone, .. } | Change::Host { gone, .. } => *gone,
            _ => None,
        };
        self.watchers.publish(position, change);
        if let Some(key) = gone {
            self.watchers.end_of(&key);
        }
    }

    fn take_news(&self) -> Vec<(Position, News)> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn position(&self) -> Position {
        self.follow.read(|view| view.position)
    }

    /// Appends what is planned. Whether the log took everything that is ours to write.
    async fn act(&mut self) -> Result<bool, StartError> {
        let (position, live) = self
            .follow
            .read(|view| (view.position, view.link == Link::Live));
        if position < self.settled || !live {
            return Ok(true);
        }
        let percent = self.overcommit_percent;
        let steps = self.follow.read(|view| plan(&view.state, percent));
        for Step { app, cause, batch } in steps.map_err(StartError::Event)? {
            match self.log.append(batch).await {
                Ok(appended) => self.settled = self.settled.max(appended.last),
                // Somebody else wrote about the app; their event is on its way to us, and what is
                // still to be done is planned again then.
                Err(AppendError::Conflict { .. }) => {}
                Err(AppendError::IdConflict { id }) if self.log.head() > position => {
                    tracing::warn!(role = "coordinator", %app, %cause, %id, "answered by another");
                }
                // The log is away, or wants our next token: what is planned is planned again.
                Err(error @ (AppendError::Stopping | AppendError::Refused { .. })) => {
                    let error = chain(&error);
                    tracing::warn!(role = "coordinator", %error, "not written yet");
                    return Ok(false);
                }
                Err(error) => return Err(StartError::Append(error)),
            }
        }
        Ok(true)
    }
}
