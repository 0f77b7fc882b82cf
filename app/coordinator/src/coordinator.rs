//! The shell: folds the log, appends what the plan says, answers who holds a lease.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::FutureExt as _;
use tabbify_api::BoxFuture;
use tabbify_api::log::{AppendError, Delivery, EventLog, LogScope, ReadError, Subscribe};
use tabbify_api::mesh::{Leases, ResolveError};
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_token::{DocumentType, Signer};
use tabbify_types::event::EventError;
use tabbify_types::{MeshKey, Position, Segment, SegmentGlob};

use crate::Config;
use crate::join::{JoinError, join};
use crate::leases::{Candidates, find, lease};
use crate::plan::{Step, plan};
use crate::state::{FoldError, State};

/// LIMIT: attempts to join while others write at the same time.
const JOIN_ATTEMPTS_MAX: usize = 16;

/// Why the coordinator cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Read(#[source] ReadError),
    /// The log cannot be followed.
    #[error("the log cannot be followed")]
    Fold(#[source] FoldError),
    /// The log does not take an append.
    #[error("the log does not take what was decided")]
    Append(#[source] AppendError),
    /// This machine cannot be a member.
    #[error("this machine cannot join")]
    Join(#[source] JoinError),
    /// A decision cannot be written as events.
    #[error("a decision cannot be written")]
    Event(#[source] EventError),
}

/// Decides, and hands out leases. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Coordinator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Arc<RwLock<State>>,
    candidates: Candidates,
    signer: Signer,
    clock: Arc<dyn Clock>,
}

impl Coordinator {
    /// Replays the log, makes this machine a member, then decides in the task `coordinator`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: &Config,
        log: Arc<dyn EventLog>,
        signer: Signer,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let state = Arc::new(RwLock::new(State::default()));
        let events = log
            .subscribe(State::filter(), Position(0))
            .map_err(StartError::Read)?;
        let mut shell = Shell {
            log,
            events,
            state: Arc::clone(&state),
            settled: Position(0),
            live: false,
        };
        shell.catch_up().await?;
        shell.join(config).await?;
        shell.live = true;
        let stop = tasks.token();
        tasks.spawn("coordinator", Importance::Essential, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                ended = shell.run() => match ended {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::error!(role = "coordinator", error = %chain(&error), "stopping");
                    }
                }
            }
        });
        Ok(Self(Arc::new(Inner {
            state,
            candidates: Candidates::default(),
            signer,
            clock,
        })))
    }

    /// What the coordinator may do in the log: it reads what [`State::filter`] names, and writes
    /// the same but for the reports, and the orders to hosts.
    #[must_use]
    pub fn log_scope() -> LogScope {
        let orders = "platform.hosts.*"
            .parse()
            .expect("the text is a segment glob");
        let peers = SegmentGlob::from(&Segment::peers());
        let supervisors = SegmentGlob::from(&Segment::supervisors());
        LogScope {
            actor: "service:coordinator".to_owned(),
            write: vec![peers, supervisors, SegmentGlob::all_apps(), orders],
            read: State::filter().segments,
        }
    }

    fn signed(&self, address: Ipv6Addr) -> Result<String, ResolveError> {
        let inner = &self.0;
        let granted = {
            let state = inner.state.read().unwrap_or_else(PoisonError::into_inner);
            find(&state, address).cloned()
        };
        let granted = granted.ok_or(ResolveError::NoLease(address))?;
        let candidates = inner.candidates.get(&granted.key);
        let candidates = candidates.ok_or(ResolveError::NoLease(address))?;
        let lease = lease(granted, candidates, inner.clock.now());
        let signed = inner.signer.sign_document(DocumentType::Lease, &lease);
        signed.map_err(|error| ResolveError::Refused(error.to_string()))
    }
}

impl Leases for Coordinator {
    fn resolve(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<String, ResolveError>> {
        Box::pin(std::future::ready(self.signed(address)))
    }

    fn report_candidates(&self, key: MeshKey, candidates: Vec<SocketAddr>) {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        self.0
            .candidates
            .put(key, candidates, |key| state.keys.contains(key));
    }
}

struct Shell {
    log: Arc<dyn EventLog>,
    events: Box<dyn Subscribe>,
    state: Arc<RwLock<State>>,
    /// Nothing is planned before the state has reached this: our own last append.
    settled: Position,
    /// Whether what comes now has just happened, rather than being replayed.
    live: bool,
}

impl Shell {
    async fn run(mut self) -> Result<(), StartError> {
        loop {
            // Everything that is there is folded first, so that a plan is made once for it all.
            while let Some(delivery) = self.events.next().now_or_never() {
                self.fold(&delivery.map_err(StartError::Read)?)?;
            }
            if !self.act().await? {
                return Ok(());
            }
            let delivery = self.events.next().await.map_err(StartError::Read)?;
            self.fold(&delivery)?;
        }
    }

    async fn catch_up(&mut self) -> Result<(), StartError> {
        loop {
            let delivery = self.events.next().await.map_err(StartError::Read)?;
            self.fold(&delivery)?;
            if matches!(delivery, Delivery::CaughtUp(_)) {
                let position = self.read(State::position);
                tracing::info!(role = "coordinator", %position, "replayed");
                return Ok(());
            }
        }
    }

    /// Makes the machine a member; several may do so at once, so a conflict means to look again.
    async fn join(&mut self, config: &Config) -> Result<(), StartError> {
        for _ in 0..JOIN_ATTEMPTS_MAX {
            let batch = self
                .read(|state| join(state, config))
                .map_err(StartError::Join)?;
            let Some(batch) = batch else { return Ok(()) };
            match self.log.append(batch).await {
                Ok(appended) => {
                    while self.read(State::position) < appended.last {
                        let delivery = self.events.next().await.map_err(StartError::Read)?;
                        self.fold(&delivery)?;
                    }
                    return Ok(());
                }
                Err(AppendError::Conflict { .. }) => {
                    let delivery = self.events.next().await.map_err(StartError::Read)?;
                    self.fold(&delivery)?;
                }
                Err(error) => return Err(StartError::Append(error)),
            }
        }
        Err(StartError::Join(JoinError::Contended))
    }

    /// Appends what is planned. `false` if the log is stopping.
    async fn act(&mut self) -> Result<bool, StartError> {
        let position = self.read(State::position);
        if position < self.settled {
            return Ok(true);
        }
        let steps = self.read(plan);
        for Step { app, cause, batch } in steps.map_err(StartError::Event)? {
            match self.log.append(batch).await {
                Ok(appended) => self.settled = self.settled.max(appended.last),
                // Somebody else wrote about the app; their event is on its way to us, and what is
                // still to be done is planned again then.
                Err(AppendError::Conflict { .. }) => {}
                Err(AppendError::IdConflict { id }) if self.log.head() > position => {
                    tracing::warn!(role = "coordinator", %app, %cause, %id, "answered by another");
                }
                Err(AppendError::Stopping) => return Ok(false),
                Err(error) => return Err(StartError::Append(error)),
            }
        }
        Ok(true)
    }

    fn fold(&mut self, delivery: &Delivery) -> Result<(), StartError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match delivery {
            Delivery::Event(event) => {
                let rejected = state.apply(event).map_err(StartError::Fold)?;
                if let Some(rejected) = rejected.filter(|_| self.live) {
                    tracing::warn!(role = "coordinator", position = %event.position, %rejected, "report");
                }
            }
            Delivery::CaughtUp(position) | Delivery::Progress(position) => state.skip_to(*position),
        }
        Ok(())
    }

    fn read<T>(&self, with: impl FnOnce(&State) -> T) -> T {
        with(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}
