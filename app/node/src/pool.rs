//! Connections to instances of apps: which instance gets the next request, and what is kept between
//! requests: at most so many connections, for so long, and none to an instance that has left.
//!
//! ```text
//!   who serves (view) ─▶ choose: least outstanding of two ─▶ kept connection, else dial
//!                          │ not who failed a moment ago        │ fails: not this one for a while
//! ```
//! An instance is known here while it has a request or a kept connection, or has failed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_process::{Importance, TaskHandle, Tasks};
use tabbify_types::{AppId, InstanceId};
use tokio::time::Instant;

use crate::body::RequestBody;
use crate::config::{HEAD_LEN_MAX, HEADERS_MAX, IDLE_MAX, IDLE_PER_APP_MAX, Timeouts};
use crate::dial::{Dial, DialError, address_of};
use crate::replicas::Replicas;

/// How long a kept connection may take to notice that its last exchange is over.
const READY_WITHIN: Duration = Duration::from_millis(2);
/// How long an instance that could not be dialed is left out while others serve, doubled with every
/// failure in a row up to the maximum. Then one request tries it.
const SHUN_FIRST: Duration = Duration::from_millis(500);
const SHUN_MAX: Duration = Duration::from_secs(30);

/// One connection to an instance. Dropping it closes it, whatever is under way on it.
#[derive(Debug)]
pub(crate) struct Upstream {
    app: AppId,
    at: At,
    /// Number of the shelf that it was made for.
    made_for: u64,
    kept: bool,
    pub(crate) sender: SendRequest<RequestBody>,
    driver: Driver,
    /// While it has a request.
    load: Option<Load>,
}

/// Which instance a connection leads to; without, whichever the app's address led to.
pub(crate) type At = Option<InstanceId>;

/// Requests that are under way: at one instance, or at all of them.
type Outstanding = Arc<AtomicUsize>;

/// One request of an instance's, until it is over. It counts among all of them also after its instance has
/// left and is known no more.
#[derive(Debug)]
struct Load([Outstanding; 2]);

impl Load {
    fn on(instance: &Outstanding, all: &Outstanding) -> Self {
        let counts = [instance, all].map(Arc::clone);
        for count in &counts {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Self(counts)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The task that moves a connection's bytes; ends with its owner.
#[derive(Debug)]
struct Driver(Option<TaskHandle>);

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Upstream {
    /// Whether it has served a request before.
    pub(crate) const fn was_kept(&self) -> bool {
        self.kept
    }

    /// Where it leads.
    pub(crate) const fn at(&self) -> At {
        self.at
    }

    /// Leaves it to itself: it ends when its last exchange does.
    pub(crate) fn let_go(mut self) {
        self.driver.0.take();
    }
}

/// A dial that failed. Nothing was sent.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Whom.
    pub(crate) at: At,
    /// Why.
    pub(crate) error: DialError,
}

/// What to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    /// A kept connection if there is one.
    Any,
    /// A new connection.
    New,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PoolStats {
    /// Requests under way at instances now.
    pub outstanding: u64,
    /// Connections to instances that were made.
    pub dialed: u64,
    /// Dials that failed.
    pub failed: u64,
    /// Requests that went to another instance because a dial failed, or because a new connection broke
    /// before anything was answered on it.
    pub elsewhere: u64,
}

#[derive(Debug, Default)]
struct Counters {
    dialed: AtomicU64,
    failed: AtomicU64,
    elsewhere: AtomicU64,
}

/// Connections to all apps.
#[derive(Debug)]
pub(crate) struct Pool {
    dial: Arc<dyn Dial>,
    tasks: Tasks,
    timeouts: Timeouts,
    state: Mutex<State>,
    outstanding: Outstanding,
    counters: Counters,
}

#[derive(Debug)]
struct State {
    apps: HashMap<AppId, Vec<Shelf>>,
    /// Kept connections of all apps.
    idle: usize,
    /// Numbers the shelves.
    shelves: u64,
    dice: u64,
}

/// What is known of one instance.
#[derive(Debug)]
struct Shelf {
    at: At,
    number: u64,
    outstanding: Outstanding,
    /// Kept connections, the one used last at the end.
    idle: Vec<Kept>,
    /// Dials that failed since one succeeded.
    failures: u32,
    /// Whether the last new connection broke off under a request.
    broke: bool,
    shunned: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    upstream: Upstream,
    since: Instant,
}

impl Shelf {
    fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    fn is_shunned(&self, now: Instant) -> bool {
        self.shunned.is_some_and(|until| now < until)
    }

    /// Leaves the instance out from now on, for as long as its failures say.
    fn shun(&mut self, now: Instant) {
        let doubled = self.failures.saturating_sub(1).min(6);
        self.shunned = Some(now + (SHUN_FIRST * (1 << doubled)).min(SHUN_MAX));
    }

    fn fail(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.shun(now);
    }

    /// A new connection broke off under a request. That may be the request's doing, once.
    fn break_off(&mut self, now: Instant) {
        if std::mem::replace(&mut self.broke, true) {
            self.fail(now);
        }
    }

    fn is_needed(&self, now: Instant) -> bool {
        !self.idle.is_empty() || self.outstanding() > 0 || self.is_shunned(now)
    }
}

impl State {
    fn known_mut(&mut self, app: AppId, at: At) -> Option<&mut Shelf> {
        let mut shelves = self.apps.get_mut(&app)?.iter_mut();
        shelves.find(|shelf| shelf.at == at)
    }

    /// The instance's shelf, there from now on.
    fn shelf(&mut self, app: AppId, at: At) -> &mut Shelf {
        let shelves = self.apps.entry(app).or_default();
        let known = shelves.iter().position(|shelf| shelf.at == at);
        let index = known.unwrap_or_else(|| {
            self.shelves += 1;
            shelves.push(Shelf {
                at,
                number: self.shelves,
                outstanding: Arc::default(),
                idle: Vec::new(),
                failures: 0,
                broke: false,
                shunned: None,
            });
            shelves.len() - 1
        });
        &mut shelves[index]
    }

    fn known(&self, app: AppId, at: At) -> Option<&Shelf> {
        self.apps.get(&app)?.iter().find(|shelf| shelf.at == at)
    }

    /// Who gets the next request: of two that were picked at random, who has fewer.
    fn choose(&mut self, app: AppId, replicas: &Replicas, now: Instant) -> At {
        let several = match replicas {
            Replicas::Unknown => return None,
            Replicas::One(instance) => return Some(*instance),
            Replicas::Several(several) => several,
        };
        let shunned = |instance: &&InstanceId| {
            let known = self.known(app, Some(**instance));
            known.is_some_and(|shelf| shelf.is_shunned(now))
        };
        let fit: Vec<InstanceId> = several.iter().filter(|it| !shunned(it)).copied().collect();
        // With all of them left out, none is.
        let from: &[InstanceId] = if fit.is_empty() { several } else { &fit };
        let (first, second) = two_of(from.len(), self.roll());
        let load = |at: usize| {
            self.known(app, Some(from[at]))
                .map_or(0, Shelf::outstanding)
        };
        let chosen = from[if load(second) < load(first) {
            second
        } else {
            first
        }];
        let shelf = self.shelf(app, Some(chosen));
        if shelf.failures > 0 {
            // This request finds out; the others need not wait for what it finds.
            shelf.shun(now);
        }
        Some(chosen)
    }

    /// Xorshift: who is asked is no secret.
    fn roll(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }
}

/// Connections that are kept.
fn kept(shelves: &[Shelf]) -> usize {
    shelves.iter().map(|shelf| shelf.idle.len()).sum()
}

/// Two different numbers below `n`, or twice the only one.
fn two_of(n: usize, dice: u64) -> (usize, usize) {
    let below = |dice: u64, n: usize| usize::try_from(dice % n.max(1) as u64).unwrap_or(0);
    let first = below(dice >> 32, n);
    let second = below(dice & 0xffff_ffff, n.saturating_sub(1));
    match n {
        0 | 1 => (first, first),
        _ => (first, (first + 1 + second) % n),
    }
}

impl Pool {
    pub(crate) fn new(dial: Arc<dyn Dial>, tasks: Tasks, timeouts: Timeouts) -> Self {
        let state = State {
            apps: HashMap::new(),
            idle: 0,
            shelves: 0,
            dice: u64::from_le_bytes(tabbify_process::random()) | 1,
        };
        Self {
            dial,
            tasks,
            timeouts,
            state: Mutex::new(state),
            outstanding: Outstanding::default(),
            counters: Counters::default(),
        }
    }

    /// What was done so far.
    pub(crate) fn stats(&self) -> PoolStats {
        let at = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PoolStats {
            outstanding: self.outstanding.load(Ordering::Relaxed) as u64,
            dialed: at(&self.counters.dialed),
            failed: at(&self.counters.failed),
            elsewhere: at(&self.counters.elsewhere),
        }
    }

    /// Notes that a request goes to another instance than the one that was chosen.
    pub(crate) fn goes_elsewhere(&self) {
        self.counters.elsewhere.fetch_add(1, Ordering::Relaxed);
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection to one of `replicas`.
    pub(crate) async fn get(
        &self,
        app: AppId,
        replicas: &Replicas,
        take: Take,
        within: Duration,
    ) -> Result<Upstream, Failed> {
        let (at, made_for, load, mut kept) = self.with(|state| {
            let at = state.choose(app, replicas, Instant::now());
            let shelf = state.shelf(app, at);
            let load = Load::on(&shelf.outstanding, &self.outstanding);
            let number = shelf.number;
            let kept = match take {
                Take::Any => self.take(state, app, at),
                Take::New => None,
            };
            (at, number, load, kept)
        });
        while let Some(mut upstream) = kept {
            let sender = &mut upstream.sender;
            // The task that ends the last exchange may be a moment behind its last byte.
            let ready = sender.is_ready()
                || matches!(
                    tokio::time::timeout(READY_WITHIN, sender.ready()).await,
                    Ok(Ok(()))
                );
            if ready && !upstream.sender.is_closed() {
                upstream.load = Some(load);
                return Ok(upstream);
            }
            drop(upstream);
            kept = self.with(|state| self.take(state, app, at));
        }
        match self.connect(app, at, within).await {
            Ok((sender, driver)) => {
                self.counters.dialed.fetch_add(1, Ordering::Relaxed);
                self.reached(app, at);
                Ok(Upstream {
                    app,
                    at,
                    made_for,
                    kept: false,
                    sender,
                    driver,
                    load: Some(load),
                })
            }
            Err(error) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                // A limit of ours says nothing about the instance.
                if !matches!(error, DialError::Busy(_)) {
                    self.failed(app, at);
                }
                Err(Failed { at, error })
            }
        }
    }

    async fn connect(
        &self,
        app: AppId,
        at: At,
        within: Duration,
    ) -> Result<(SendRequest<RequestBody>, Driver), DialError> {
        let address = address_of(app, at);
        let connecting = async {
            let stream = self.dial.dial(address).await?;
            let mut builder = Builder::new();
            builder.max_buf_size(HEAD_LEN_MAX).max_headers(HEADERS_MAX);
            let handshake = builder.handshake(TokioIo::new(stream)).await;
            handshake.map_err(|error| DialError::Unreachable {
                address,
                source: Some(error.into()),
            })
        };
        let connected = tokio::time::timeout(within, connecting).await;
        let (sender, connection) = connected.map_err(|_| DialError::TimedOut(address))??;
        let driving = async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%app, %error, "a connection to an app broke");
            }
        };
        let task = self.tasks.spawn("upstream", Importance::Detached, driving);
        Ok((sender, Driver(Some(task))))
    }

    fn reached(&self, app: AppId, at: At) {
        self.with(|state| {
            if let Some(shelf) = state.known_mut(app, at) {
                shelf.failures = 0;
                shelf.shunned = None;
            }
        });
    }

    /// An instance could not be dialed: others are asked for a while.
    pub(crate) fn failed(&self, app: AppId, at: At) {
        self.with(|state| {
            if let Some(shelf) = state.known_mut(app, at) {
                shelf.fail(Instant::now());
            }
        });
    }

    /// An instance broke a new connection off under a request, before it answered: the second time in a row,
    /// others are asked for a while.
    pub(crate) fn broke(&self, app: AppId, at: At) {
        self.with(|state| {
            if let Some(shelf) = state.known_mut(app, at) {
                shelf.break_off(Instant::now());
            }
        });
    }

    /// Keeps a connection whose exchange is over, if there is room and its instance still serves.
    pub(crate) fn put_back(&self, mut upstream: Upstream) {
        drop(upstream.load.take());
        if upstream.sender.is_closed() {
            return;
        }
        upstream.kept = true;
        let since = Instant::now();
        let full = self.with(|state| {
            let fits = state.idle < IDLE_MAX;
            let shelves = state.apps.get_mut(&upstream.app);
            let shelves = shelves.filter(|shelves| fits && kept(shelves) < IDLE_PER_APP_MAX);
            let shelf = shelves.and_then(|shelves| {
                let mut shelves = shelves.iter_mut();
                shelves.find(|shelf| shelf.number == upstream.made_for)
            });
            match shelf {
                Some(shelf) => {
                    shelf.broke = false;
                    shelf.idle.push(Kept { upstream, since });
                    state.idle += 1;
                    None
                }
                None => Some(upstream),
            }
        });
        // Outside the lock: it ends a task.
        drop(full);
    }

    fn take(&self, state: &mut State, app: AppId, at: At) -> Option<Upstream> {
        let oldest = Instant::now().checked_sub(self.timeouts.pooled);
        let kept = state.shelf(app, at).idle.pop()?;
        state.idle -= 1;
        // The newest is on top: if it is too old, all are, and each goes as it is popped.
        oldest
            .is_none_or(|oldest| kept.since >= oldest)
            .then_some(kept.upstream)
    }

    /// Nothing that is kept leads to anybody but `replicas` from now on; requests under way go on. An
    /// app's address may lead elsewhere now, so nothing is kept that was made by it.
    pub(crate) fn switch(&self, app: AppId, replicas: &Replicas) {
        let dropped = self.with(|state| {
            let shelves = state.apps.remove(&app).unwrap_or_default();
            let (stay, leave): (Vec<Shelf>, Vec<Shelf>) = shelves
                .into_iter()
                .partition(|shelf| shelf.at.is_some_and(|at| replicas.contain(at)));
            if !stay.is_empty() {
                state.apps.insert(app, stay);
            }
            state.idle -= kept(&leave);
            leave
        });
        drop(dropped);
    }

    /// Closes connections that were kept for too long, and forgets who has none.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let Some(oldest) = now.checked_sub(self.timeouts.pooled) else {
            return;
        };
        let dropped: Vec<Kept> = self.with(|state| {
            let mut dropped = Vec::new();
            for shelves in state.apps.values_mut() {
                for shelf in shelves.iter_mut() {
                    let old = shelf.idle.partition_point(|kept| kept.since < oldest);
                    dropped.extend(shelf.idle.drain(..old));
                }
                shelves.retain(|shelf| shelf.is_needed(now));
            }
            state.apps.retain(|_, shelves| !shelves.is_empty());
            state.idle -= dropped.len();
            dropped
        });
        drop(dropped);
    }
}

#[cfg(test)]
mod tests;
