//! The lease of this instance: had for a spawn ticket, kept while it lives, lost to a newer instance.
//!
//! ```text
//! Unleased ─ticket─▶ Starting ─exchanged─▶ kept: renewed at half of its life ─fenced─▶ the runner ends
//!     ▲                 │ refused                  └─ no coordinator: goes on for the outage grace
//!     └─────────────────┘ another ticket, please
//! ```
//!
//! Where a coordinator cannot be asked, nothing is concluded: the runner asks again, for as long as a
//! lease that has ended may be used.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::ErrorCode;
use tabbify_api::coordinator::{Ask, Spawn};
use tabbify_api::mesh::Lease;
use tabbify_api::runner::Failure;
use tabbify_membership::{RemoteCoordinator, RequestFailed};
use tabbify_process::{Clock, chain};
use tabbify_types::event::v1::{FailureReason, InstanceRef};
use tabbify_types::{MeshKey, Timestamp};
use tokio::sync::{Mutex, broadcast, mpsc};

use crate::state::State;

/// The pause before asking again, at first and at most; doubles with each attempt.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// LIMIT: tickets that are refused before the runner gives up: a supervisor whose word does not count now
/// may soon, when its certificate is renewed.
const TICKETS_MAX: u32 = 6;
/// LIMIT: renewals in a row that are refused before the lease counts as taken back: one coordinator of
/// several may be behind the log.
const REFUSALS_MAX: u32 = 3;
/// A lease is not renewed more often than this, whatever it says of its end.
const RENEW_MIN: Duration = Duration::from_secs(1);
/// How often the runner makes sure that it is told what happens to its own lease.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Brings spawn tickets from the control socket; one at a time.
pub type Tickets = mpsc::Sender<Spawn>;

/// What the runner needs to have a lease.
#[derive(Debug)]
pub(crate) struct Leaseholder {
    of: InstanceRef,
    coordinator: RemoteCoordinator,
    grace: Duration,
    tickets: Mutex<mpsc::Receiver<Spawn>>,
    state: Arc<State>,
    clock: Arc<dyn Clock>,
}

/// What came of asking once.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The lease, from now on.
    Has(Timestamp),
    /// It is another's, for good: why.
    Lost(String),
    /// It is not given: why.
    Refused(String),
    /// There is no answer: why.
    Later(String),
}

impl Leaseholder {
    /// For the instance `of`, with what the tickets come through.
    pub(crate) fn new(
        of: InstanceRef,
        coordinator: RemoteCoordinator,
        grace: Duration,
        state: Arc<State>,
        clock: Arc<dyn Clock>,
    ) -> (Self, Tickets) {
        let (sender, receiver) = mpsc::channel(1);
        let this = Self {
            of,
            coordinator,
            grace,
            tickets: Mutex::new(receiver),
            state,
            clock,
        };
        (this, sender)
    }

    /// Exchanges tickets until one gives the lease; its end.
    pub(crate) async fn obtain(&self) -> Result<Timestamp, Failure> {
        let mut tickets = self.tickets.lock().await;
        let (mut refused, mut pause) = (0, PAUSE);
        loop {
            let Some(ticket) = tickets.recv().await else {
                // The control socket is gone, and with it the runner.
                return std::future::pending().await;
            };
            let why = match self.exchange(ticket).await {
                Asked::Has(until) => return Ok(until),
                Asked::Lost(why) => return Err(lost(&why)),
                Asked::Later(why) | Asked::Refused(why) => why,
            };
            refused += 1;
            tracing::warn!(why, refused, "a spawn ticket does not count");
            if refused >= TICKETS_MAX {
                return Err(Failure {
                    reason: FailureReason::Spawn,
                    detail: format!("the coordinator gives it no lease: {why}"),
                });
            }
            pause = longer_after(pause).await;
            self.state.unleased();
        }
    }

    /// Shows one ticket until a coordinator has judged it.
    async fn exchange(&self, ticket: Spawn) -> Asked {
        let mut pause = PAUSE;
        loop {
            match self.asked(self.coordinator.spawned(ticket.clone()).await) {
                Asked::Later(why) => tracing::debug!(why, "no lease yet"),
                judged => return judged,
            }
            pause = longer_after(pause).await;
        }
    }

    /// Keeps the lease that ends at `until`; returns when it is lost.
    pub(crate) async fn keep(&self, until: Timestamp) -> Failure {
        let ask = async || self.asked(self.coordinator.renewed().await);
        let kept = keep(until, self.grace, &*self.clock, ask, self.news());
        let why = kept.await;
        if self.state.is_draining() {
            // It has handed over and finishes what it has begun; its supervisor ends it.
            return std::future::pending().await;
        }
        lost(&why)
    }

    /// Returns when something may have happened to our lease.
    fn news(&self) -> impl AsyncFnMut() + use<'_> {
        let (mut gone, own) = (self.coordinator.gone(), self.coordinator.own());
        async move || {
            let mut was_live = false;
            loop {
                // Whoever asks about a key is told of it: it costs nothing while the answer is known.
                let interest = self.coordinator.peer(Ask::Key(own)).await;
                if let Err(error) = interest {
                    tracing::debug!(error = %chain(&error), "not told about the own lease");
                }
                let is_live = self.coordinator.is_live();
                if was_live && !is_live {
                    return;
                }
                was_live = is_live;
                tokio::select! {
                    () = taken_back(&mut gone, own) => return,
                    // Whoever is nobody any more is told nothing any more.
                    () = self.coordinator.unheard() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        }
    }

    fn asked(&self, answer: Result<Lease, RequestFailed>) -> Asked {
        match answer {
            Ok(lease) if lease.app != self.of.app || lease.instance != self.of.instance => {
                Asked::Refused(format!(
                    "the lease is of instance {} of {}",
                    lease.instance, lease.app
                ))
            }
            Ok(lease) => Asked::Has(lease.not_after),
            Err(RequestFailed::Refused(problem)) => match problem.code {
                // A newer instance has taken over; or another key has used the ticket.
                ErrorCode::LeaseFenced | ErrorCode::Conflict => Asked::Lost(problem.detail),
                ErrorCode::RateLimited | ErrorCode::Unavailable | ErrorCode::Internal => {
                    Asked::Later(problem.detail)
                }
                _ => Asked::Refused(problem.detail),
            },
            Err(RequestFailed::Unreachable(why)) => Asked::Later(why),
        }
    }
}

/// Renews at half of a lease's life, and when there are news; returns why it is lost.
async fn keep(
    mut until: Timestamp,
    grace: Duration,
    clock: &dyn Clock,
    ask: impl AsyncFn() -> Asked,
    mut news: impl AsyncFnMut(),
) -> String {
    let mut refused = 0;
    let mut pause = PAUSE;
    let mut wait = half(clock.now(), until);
    loop {
        let told = tokio::time::timeout(wait, news()).await.is_ok();
        let later = match ask().await {
            Asked::Has(renewed) => {
                if refused > 0 || pause > PAUSE {
                    tracing::info!(until = %renewed, "the lease is renewed again");
                }
                (until, refused, pause) = (renewed, 0, PAUSE);
                // Where news come without end, so do not questions.
                wait = half(clock.now(), until);
                if told {
                    tokio::time::sleep(RENEW_MIN).await;
                }
                continue;
            }
            Asked::Lost(why) => return why,
            Asked::Refused(why) => {
                refused += 1;
                if refused >= REFUSALS_MAX {
                    return format!("the platform has taken its lease back: {why}");
                }
                why
            }
            Asked::Later(why) => why,
        };
        let now = clock.now();
        if now >= until.plus(grace) {
            return format!(
                "its lease has ended at {until}, and no coordinator could renew it: {later}"
            );
        }
        if pause == PAUSE {
            tracing::warn!(why = later, %until, "the lease is not renewed");
        } else {
            tracing::debug!(why = later, %until, "the lease is not renewed yet");
        }
        wait = pause;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn half(now: Timestamp, until: Timestamp) -> Duration {
    let left = until.millis().saturating_sub(now.millis());
    Duration::from_millis(left / 2).max(RENEW_MIN)
}

/// Returns when `own` is heard to be nobody's, or that may have been missed.
async fn taken_back(gone: &mut broadcast::Receiver<MeshKey>, own: MeshKey) {
    loop {
        match gone.recv().await {
            Ok(key) if key != own => {}
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

async fn longer_after(pause: Duration) -> Duration {
    tokio::time::sleep(pause).await;
    (pause * 2).min(PAUSE_MAX)
}

fn lost(why: &str) -> Failure {
    Failure {
        reason: FailureReason::Exited,
        detail: format!("it has no lease any more: {why}"),
    }
}

#[cfg(test)]
mod tests;
