//! The lease of this instance: had for a spawn ticket, kept while it lives, lost to a newer instance.
//!
//! ```text
//! Unleased ─ticket─▶ Starting ─exchanged─▶ kept: renewed at half of its life ─fenced─▶ the runner ends
//!     ▲                 │ refused                  └─ no coordinator: goes on for the outage grace
//!     └─────────────────┘ another ticket, please
//! ```
//!
//! Where a coordinator cannot be asked, nothing is concluded: the runner asks again, for as long as a
//! lease that has ended may be used. How long that is, is measured from when the lease came, by a clock that
//! nobody sets: the machine's own may be an hour off.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::ErrorCode;
use tabbify_api::coordinator::{Ask, Spawn};
use tabbify_api::runner::Failure;
use tabbify_membership::{Leased, RemoteCoordinator, RequestFailed};
use tabbify_process::chain;
use tabbify_types::MeshKey;
use tabbify_types::event::v1::{FailureReason, InstanceRef};
use tokio::sync::{Mutex, broadcast, mpsc};
use tokio::time::Instant;

use crate::state::State;

/// The pause before asking again, at first and at most; doubles with each attempt.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// LIMIT: tickets that are refused before the runner gives up: a supervisor whose word does not count now
/// may soon, when its certificate is renewed.
const TICKETS_MAX: u32 = 6;
/// The pause before the second ticket is wanted; doubles with each, so that all of them take a while.
const TICKET_PAUSE: Duration = Duration::from_millis(400);
/// LIMIT: renewals in a row that are refused, each [`PAUSE_MAX`] or more after the one before, until the lease
/// counts as taken back: one coordinator of several may be behind the log.
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
    /// Whether its instance was idle, and so had a lease with another key.
    is_woken: bool,
    coordinator: RemoteCoordinator,
    grace: Duration,
    tickets: Mutex<mpsc::Receiver<Spawn>>,
    state: Arc<State>,
}

/// What came of asking once.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The lease, for so long from now on.
    Has(Duration),
    /// It is another's, for good: why.
    Lost(String),
    /// Another key of the instance has it: why.
    Taken(String),
    /// It is not given: why.
    Refused(String),
    /// There is no answer: why.
    Later(String),
}

impl Leaseholder {
    /// For the instance `of`, with what the tickets come through.
    pub(crate) fn new(
        of: InstanceRef,
        is_woken: bool,
        coordinator: RemoteCoordinator,
        grace: Duration,
        state: Arc<State>,
    ) -> (Self, Tickets) {
        let (sender, receiver) = mpsc::channel(1);
        let this = Self {
            of,
            is_woken,
            coordinator,
            grace,
            tickets: Mutex::new(receiver),
            state,
        };
        (this, sender)
    }

    /// Returns once a coordinator has heard where this runner may be reached.
    pub(crate) async fn found(&self) {
        self.coordinator.found().await;
    }

    /// Exchanges tickets until one gives the lease; when it ends.
    pub(crate) async fn obtain(&self) -> Result<Instant, Failure> {
        let mut tickets = self.tickets.lock().await;
        let (mut refused, mut pause) = (0, TICKET_PAUSE);
        loop {
            let Some(ticket) = tickets.recv().await else {
                // The control socket is gone, and with it the runner.
                return std::future::pending().await;
            };
            let why = match self.exchange(ticket).await {
                Asked::Has(life) => return Ok(Instant::now() + life),
                Asked::Lost(why) => return Err(lost(&why)),
                // A coordinator that has not read yet that the instance was idle knows the key of the process before.
                Asked::Taken(why) if !self.is_woken => return Err(lost(&why)),
                Asked::Taken(why) | Asked::Later(why) | Asked::Refused(why) => why,
            };
            refused += 1;
            self.coordinator.ask_elsewhere();
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
    pub(crate) async fn keep(&self, until: Instant) -> Failure {
        let ask = async || {
            let asked = self.asked(self.coordinator.renewed().await);
            if matches!(asked, Asked::Refused(_)) {
                // The next time, another one is asked, which may have read more of the log.
                self.coordinator.ask_elsewhere();
            }
            asked
        };
        let kept = keep(until, self.grace, ask, self.news());
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

    fn asked(&self, answer: Result<Leased, RequestFailed>) -> Asked {
        match answer {
            Ok(Leased { lease, .. })
                if lease.app != self.of.app || lease.instance != self.of.instance =>
            {
                Asked::Refused(format!(
                    "the lease is of instance {} of {}",
                    lease.instance, lease.app
                ))
            }
            Ok(Leased { life, .. }) => Asked::Has(life),
            Err(error) if error.is_no_answer() => Asked::Later(chain(&error).to_string()),
            Err(RequestFailed::Refused(problem)) => match problem.code {
                // A newer instance has taken over.
                ErrorCode::LeaseFenced => Asked::Lost(problem.detail),
                // Another key has used the ticket.
                ErrorCode::Conflict => Asked::Taken(problem.detail),
                _ => Asked::Refused(problem.detail),
            },
            Err(RequestFailed::Unreachable(why)) => Asked::Later(why),
        }
    }
}

/// Renews at half of a lease's life, and when there are news; returns why it is lost.
async fn keep(
    mut until: Instant,
    grace: Duration,
    ask: impl AsyncFn() -> Asked,
    mut news: impl AsyncFnMut(),
) -> String {
    let mut refusals = Refusals::default();
    let mut pause = PAUSE;
    let mut wait = half(until - Instant::now());
    loop {
        let told = tokio::time::timeout(wait, news()).await.is_ok();
        let later = match ask().await {
            Asked::Has(life) => {
                if refusals.any() || pause > PAUSE {
                    tracing::info!(seconds = life.as_secs(), "the lease is renewed again");
                }
                (until, pause) = (Instant::now() + life, PAUSE);
                refusals = Refusals::default();
                wait = half(life);
                // Where news come without end, questions do not.
                if told {
                    tokio::time::sleep(RENEW_MIN).await;
                }
                continue;
            }
            Asked::Lost(why) | Asked::Taken(why) => return why,
            Asked::Refused(why) => {
                if refusals.are_enough_with_one_more() {
                    return format!("the platform has taken its lease back: {why}");
                }
                why
            }
            Asked::Later(why) => {
                // Who cannot answer now does not say that those before were right.
                refusals = Refusals::default();
                why
            }
        };
        let over = Instant::now().saturating_duration_since(until);
        if Instant::now() >= until && over >= grace {
            return format!(
                "its lease has ended {} s ago, and no coordinator could renew it: {later}",
                over.as_secs()
            );
        }
        if pause == PAUSE {
            tracing::warn!(why = later, "the lease is not renewed");
        } else {
            tracing::debug!(why = later, "the lease is not renewed yet");
        }
        if told {
            tokio::time::sleep(pause).await;
        }
        wait = pause;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Refusals in a row, as far as they count: those that come at once after another say nothing new.
#[derive(Debug, Default)]
struct Refusals {
    counted: u32,
    last: Option<Instant>,
}

impl Refusals {
    const fn any(&self) -> bool {
        self.counted > 0
    }

    fn are_enough_with_one_more(&mut self) -> bool {
        if self.last.is_none_or(|last| last.elapsed() >= PAUSE_MAX) {
            (self.counted, self.last) = (self.counted + 1, Some(Instant::now()));
        }
        self.counted >= REFUSALS_MAX
    }
}

fn half(life: Duration) -> Duration {
    (life / 2).max(RENEW_MIN)
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
