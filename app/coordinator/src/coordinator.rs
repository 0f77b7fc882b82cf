//! The coordinator as others hold it: what it answers, from what it has folded.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::coordinator::{Ask, Helpers};
use tabbify_api::fold::Fold as _;
use tabbify_api::log::{AppendError, EventLog, LogScope};
use tabbify_api::mesh::{Leases, ResolveError};
use tabbify_process::fold::{Folded, Follow, FollowError, Link};
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_token::{DocumentType, Signer};
use tabbify_types::event::EventError;
use tabbify_types::{MeshKey, Position, Segment, SegmentGlob, Timestamp};

use crate::Config;
use crate::join::JoinError;
use crate::leases::{Candidates, Holder, door, door_lease, holder, lease};
use crate::limits::Limiter;
use crate::machines::Machines;
use crate::place::OVERCOMMIT_PERCENT;
use crate::refusal::Refusal;
use crate::shell::Shell;
use crate::soft::Soft;
use crate::state::{FoldError, State};
use crate::stats::{Counters, Stats};
use crate::watch::Watchers;

/// How long answers are given from what was known when the log went away, unless it is said otherwise.
pub const OUTAGE_GRACE: Duration = Duration::from_secs(24 * 3600);

/// How long nothing is heard of a machine before it counts as lost, unless it is said otherwise. Machines
/// report three times within it.
pub const LOST_AFTER: Duration = Duration::from_secs(60);

/// LIMIT: attempts to write a decision while others write at the same time.
const ATTEMPTS_MAX: usize = 32;
/// LIMIT: how often a key may be told to be elsewhere, at once, and one more after so long.
const MOVES: (u32, Duration) = (8, Duration::from_secs(10));
/// LIMIT: how long one's own append may take to be folded, or that of another.
const FOLDED_WITHIN: Duration = Duration::from_secs(5);

/// Gives the issuer's signer; asked for every signature, since the key that signs changes with a rotation.
pub type Signers = Arc<dyn Fn() -> Signer + Send + Sync>;

/// Why the coordinator cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be followed.
    #[error("what the coordinator knows cannot be read from the log")]
    Follow(#[source] FollowError<FoldError>),
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

/// How the coordinator works.
#[derive(Clone)]
pub struct Options {
    /// Signs leases and certificates.
    pub signers: Signers,
    /// Where what it knows is stored, so that it starts while the log is down.
    pub snapshots: Option<PathBuf>,
    /// How long it answers from what it knows after the log went away; zero is not at all.
    pub outage_grace: Duration,
    /// How long nothing is heard of a machine before it is declared lost, and its apps go elsewhere.
    pub lost_after: Duration,
    /// How much of a machine's memory may be promised to apps on it, in hundredths: more than a hundred
    /// overcommits it.
    pub overcommit_percent: u32,
    /// What members are told that helps them to find each other.
    pub helpers: Helpers,
}

impl Options {
    /// With this signer, no snapshots and the grace of [`OUTAGE_GRACE`].
    #[must_use]
    pub fn new(signers: Signers) -> Self {
        Self {
            signers,
            snapshots: None,
            outage_grace: OUTAGE_GRACE,
            lost_after: LOST_AFTER,
            overcommit_percent: OVERCOMMIT_PERCENT,
            helpers: Helpers::default(),
        }
    }

    /// The same, with relays and STUN servers that members are told of.
    #[must_use]
    pub fn helpers(mut self, helpers: Helpers) -> Self {
        self.helpers = helpers;
        self
    }

    /// The same, with machines lost after so long a silence.
    #[must_use]
    pub const fn lost_after(mut self, lost_after: Duration) -> Self {
        self.lost_after = lost_after;
        self
    }

    /// The same, with so many hundredths of a machine's memory promised to apps at most.
    #[must_use]
    pub const fn overcommit_percent(mut self, percent: u32) -> Self {
        self.overcommit_percent = percent;
        self
    }

    /// The same, with snapshots in a directory.
    #[must_use]
    pub fn snapshots(mut self, dir: PathBuf) -> Self {
        self.snapshots = Some(dir);
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("snapshots", &self.snapshots)
            .field("outage_grace", &self.outage_grace)
            .field("lost_after", &self.lost_after)
            .field("overcommit_percent", &self.overcommit_percent)
            .finish_non_exhaustive()
    }
}

/// How the coordinator stands to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Everything up to here is known.
    pub position: Position,
    /// Whether the log is being followed.
    pub link: Link,
    /// How old what is known may be, at most.
    pub age: Duration,
}

/// Decides, and hands out leases. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Coordinator(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) folded: Folded<State>,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) soft: Soft,
    pub(crate) watchers: Watchers,
    pub(crate) counters: Counters,
    candidates: Candidates,
    /// How often a key is told to be elsewhere.
    pub(crate) moves: Limiter<MeshKey>,
    /// When this process began to hear where keys are.
    pub(crate) began: Timestamp,
    options: Options,
    clock: Arc<dyn Clock>,
}

impl Coordinator {
    /// Replays the log, or begins with a snapshot while the log is away; makes this machine a member,
    /// then decides in the task `coordinator`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: &Config,
        log: Arc<dyn EventLog>,
        options: Options,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        Self::begin(Some(config), log, options, clock, tasks).await
    }

    /// As [`Coordinator::start`], on a machine that is no member of the mesh by itself.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_apart(
        log: Arc<dyn EventLog>,
        options: Options,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        Self::begin(None, log, options, clock, tasks).await
    }

    async fn begin(
        member: Option<&Config>,
        log: Arc<dyn EventLog>,
        options: Options,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let watchers = Watchers::default();
        let dir = options.snapshots.as_deref();
        let follow = Follow::open(State::default(), Arc::clone(&log), dir, Arc::clone(&clock));
        let percent = options.overcommit_percent;
        let mut shell = Shell::new(Arc::clone(&log), follow, watchers.clone(), percent);
        shell.catch_up().await.map_err(StartError::Follow)?;
        if let Some(config) = member {
            shell.join(config).await?;
        }
        let folded = shell.folded();
        let stop = tasks.token();
        tasks.spawn("coordinator", Importance::Essential, async move {
            if let Err(error) = shell.run(stop).await {
                tracing::error!(role = "coordinator", error = %chain(&error), "stopping");
            }
        });
        let this = Self(Arc::new(Inner {
            folded,
            log,
            soft: Soft::default(),
            watchers,
            counters: Counters::default(),
            candidates: Candidates::default(),
            moves: Limiter::new(MOVES.0, MOVES.1),
            began: clock.now(),
            options,
            clock,
        }));
        let machines = Machines::new(member, this.lost_after());
        let stop = tasks.token();
        let watching = this.clone();
        tasks.spawn("coordinator-machines", Importance::Essential, async move {
            let _ = stop.run_until_cancelled(machines.watch(watching)).await;
        });
        Ok(this)
    }

    /// What the coordinator may do in the log: it reads what [`State`] folds, and writes the same but
    /// for the reports and what is auth's, and the orders to hosts.
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
            read: State::default().filter().segments,
        }
    }

    /// How it stands to the log.
    #[must_use]
    pub fn health(&self) -> Health {
        let now = self.now();
        self.0.folded.read(|view| Health {
            position: view.position,
            link: view.link.clone(),
            age: view.age(now),
        })
    }

    /// What was answered and refused so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.counters.stats(self.0.watchers.delivered())
    }

    /// When a machine was last heard over the network, by this coordinator.
    #[must_use]
    pub fn last_heard(&self, host: &tabbify_types::HostName) -> Option<Timestamp> {
        self.0.soft.last_heard(host)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    pub(crate) fn helpers(&self) -> Helpers {
        self.0.options.helpers.clone()
    }

    pub(crate) fn lost_after(&self) -> Duration {
        self.0.options.lost_after
    }

    pub(crate) fn signer(&self) -> Signer {
        (self.0.options.signers)()
    }

    /// Looks at what is known, unless that is too old to act on.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, Refusal> {
        let now = self.now();
        self.0.folded.read(|view| {
            let age = view.age(now);
            if age > self.0.options.outage_grace {
                let text = format!("the log has been away for {} s", age.as_secs());
                return Err(Refusal::Unavailable(text));
            }
            Ok(look(&view.state))
        })
    }

    /// What `look` finds in what is known. Whatever is not there is refused only after all that is in the log
    /// has been read: who has just started, or is behind another coordinator, knows less than whoever asks.
    pub(crate) async fn find<T>(
        &self,
        look: impl Fn() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let position = || self.0.folded.read(|view| view.position);
        let before = position();
        match look() {
            Err(refusal) if refusal.is_unknown() => {
                self.catch_up().await?;
                if position() == before {
                    return Err(refusal);
                }
                look()
            }
            found => found,
        }
    }

    /// Waits until all that is in the log by now is known.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] while the log is away, or after a while.
    pub(crate) async fn catch_up(&self) -> Result<(), Refusal> {
        let head = self.0.log.head();
        let caught_up = self.0.folded.find(|view| match &view.link {
            Link::Away { reason } => Some(Err(format!("the log is away: {reason}"))),
            Link::Live if view.position >= head => Some(Ok(())),
            Link::Live | Link::CatchingUp => None,
        });
        match tokio::time::timeout(FOLDED_WITHIN, caught_up).await {
            Ok(Some(told)) => told.map_err(Refusal::Unavailable),
            Ok(None) | Err(_) => {
                let text = "not all that is in the log is known here yet";
                Err(Refusal::Unavailable(text.to_owned()))
            }
        }
    }

    /// Writes what `decide` finds missing, until nothing is.
    pub(crate) async fn settle<E: Into<Refusal>>(
        &self,
        decide: impl Fn(&State) -> Result<Option<tabbify_api::log::Append>, E>,
    ) -> Result<(), Refusal> {
        let inner = &self.0;
        for _ in 0..ATTEMPTS_MAX {
            let (decided, position) = inner
                .folded
                .read(|view| (decide(&view.state), view.position));
            let Some(batch) = decided.map_err(Into::into)? else {
                return Ok(());
            };
            match inner.log.append(batch).await {
                Ok(appended) => {
                    if inner.folded.reach(appended.last, FOLDED_WITHIN).await {
                        return Ok(());
                    }
                    let text = "the log is not followed".to_owned();
                    return Err(Refusal::Unavailable(text));
                }
                // Somebody was faster: what they wrote is there, or on its way.
                Err(AppendError::Conflict { .. }) => {
                    let next = Position(position.get() + 1);
                    let theirs = inner.log.head().max(next);
                    inner.folded.reach(theirs, FOLDED_WITHIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::Unavailable("others keep writing".to_owned()))
    }

    /// Where whoever holds a lease may be reached, if somebody said so lately.
    pub(crate) fn candidates(&self, holder: Holder<'_>) -> Option<Vec<SocketAddr>> {
        let key = holder.key();
        let heard = self.0.soft.candidates(holder.host(), &key, self.now());
        heard.or_else(|| self.0.candidates.get(&key))
    }

    async fn signed(&self, address: Ipv6Addr) -> Result<String, ResolveError> {
        let ask = Ask::Address(address);
        let found = self.find(|| {
            let found = self.read(|state| match holder(state, ask) {
                Some(Holder::Instance(granted)) => {
                    Some((granted.clone(), door(state, granted).cloned()))
                }
                Some(Holder::Host(_)) | None => None,
            })?;
            found.ok_or(Refusal::NoLease(ask))
        });
        let (granted, machine) = found.await.map_err(|refusal| match refusal {
            Refusal::NoLease(_) => ResolveError::NoLease(address),
            other => ResolveError::Unreachable(other.to_string()),
        })?;
        let holder = machine
            .as_ref()
            .map_or(Holder::Instance(&granted), Holder::Host);
        let candidates = self.candidates(holder);
        let candidates = candidates.ok_or_else(|| match self.unheard(ask) {
            Refusal::Unavailable(why) => ResolveError::Unreachable(why),
            _ => ResolveError::NoLease(address),
        })?;
        let lease = match &machine {
            Some(machine) => door_lease(granted, machine, candidates, self.now()),
            None => lease(granted, candidates, self.now()),
        };
        let signed = self.signer().sign_document(DocumentType::Lease, &lease);
        signed.map_err(|error| ResolveError::Refused(error.to_string()))
    }
}

impl Leases for Coordinator {
    fn resolve(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<String, ResolveError>> {
        Box::pin(self.signed(address))
    }

    fn report_candidates(&self, key: MeshKey, candidates: Vec<SocketAddr>) {
        let has_moved = self.0.folded.read(|view| {
            let in_use = |key: &MeshKey| view.state.keys.contains_key(key);
            self.0.candidates.put(key, candidates, in_use)
        });
        if has_moved {
            self.tell_moved(&key, None);
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("watchers", &self.watchers)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
