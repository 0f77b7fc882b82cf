//! Connections to apps: kept alive between requests, at most so many, for so long, and never
//! across a switch of traffic.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_process::{Importance, TaskHandle, Tasks};
use tabbify_types::AppId;
use tokio::time::Instant;

use crate::body::RequestBody;
use crate::config::{HEAD_LEN_MAX, HEADERS_MAX, IDLE_MAX, IDLE_PER_APP_MAX, Timeouts};
use crate::dial::{Dial, DialError, address_of};

/// How long a kept connection may take to notice that its last exchange is over.
const READY_WITHIN: Duration = Duration::from_millis(2);

/// One connection to a runner. Dropping it closes it, whatever is under way on it.
#[derive(Debug)]
pub(crate) struct Upstream {
    app: AppId,
    generation: u64,
    kept: bool,
    pub(crate) sender: SendRequest<RequestBody>,
    driver: Driver,
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

    /// Leaves it to itself: it ends when its last exchange does.
    pub(crate) fn let_go(mut self) {
        self.driver.0.take();
    }
}

/// Connections to all apps.
#[derive(Debug)]
pub(crate) struct Pool {
    dial: Arc<dyn Dial>,
    tasks: Tasks,
    timeouts: Timeouts,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    apps: HashMap<AppId, Shelf>,
    idle: usize,
}

/// The kept connections of one app, the one used last at the end.
#[derive(Debug, Default)]
struct Shelf {
    /// Counts switches of traffic: a connection of an earlier one leads to the wrong instance.
    generation: u64,
    idle: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    upstream: Upstream,
    since: Instant,
}

impl Pool {
    pub(crate) fn new(dial: Arc<dyn Dial>, tasks: Tasks, timeouts: Timeouts) -> Self {
        Self {
            dial,
            tasks,
            timeouts,
            state: Mutex::default(),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection to `app`: a kept one if there is one, else a new one.
    pub(crate) async fn get(&self, app: AppId) -> Result<Upstream, DialError> {
        while let Some(mut upstream) = self.take(app) {
            let sender = &mut upstream.sender;
            // The task that ends the last exchange may be a moment behind its last byte.
            let ready = sender.is_ready()
                || matches!(
                    tokio::time::timeout(READY_WITHIN, sender.ready()).await,
                    Ok(Ok(()))
                );
            if ready && !upstream.sender.is_closed() {
                return Ok(upstream);
            }
        }
        self.connect(app).await
    }

    /// A new connection to `app`.
    pub(crate) async fn connect(&self, app: AppId) -> Result<Upstream, DialError> {
        let address = address_of(app);
        // Before the dial: a switch during it makes the connection one of the old instance.
        let generation = self.with(|state| state.apps.entry(app).or_default().generation);
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
        let connected = tokio::time::timeout(self.timeouts.connect, connecting).await;
        let (sender, connection) = connected.map_err(|_| DialError::TimedOut(address))??;
        let driving = async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%app, %error, "a connection to an app broke");
            }
        };
        let task = self.tasks.spawn("upstream", Importance::Detached, driving);
        Ok(Upstream {
            app,
            generation,
            kept: false,
            sender,
            driver: Driver(Some(task)),
        })
    }

    /// Keeps a connection whose exchange is over, if there is room and it is still the right one.
    pub(crate) fn put_back(&self, mut upstream: Upstream) {
        if upstream.sender.is_closed() {
            return;
        }
        upstream.kept = true;
        let since = Instant::now();
        let full = self.with(|state| {
            let shelf = state.apps.entry(upstream.app).or_default();
            let fits = shelf.generation == upstream.generation
                && shelf.idle.len() < IDLE_PER_APP_MAX
                && state.idle < IDLE_MAX;
            if fits {
                shelf.idle.push(Kept { upstream, since });
                state.idle += 1;
                None
            } else {
                Some(upstream)
            }
        });
        // Outside the lock: it ends a task.
        drop(full);
    }

    fn take(&self, app: AppId) -> Option<Upstream> {
        let oldest = Instant::now().checked_sub(self.timeouts.pooled);
        self.with(|state| {
            let kept = state.apps.get_mut(&app)?.idle.pop()?;
            state.idle -= 1;
            // The newest is on top: if it is too old, all are, and each goes as it is popped.
            oldest
                .is_none_or(|oldest| kept.since >= oldest)
                .then_some(kept.upstream)
        })
    }

    /// New requests to `app` go to new connections from now on; those under way go on.
    pub(crate) fn switch(&self, app: AppId) {
        let dropped = self.with(|state| {
            let shelf = state.apps.entry(app).or_default();
            shelf.generation += 1;
            let dropped = std::mem::take(&mut shelf.idle);
            state.idle -= dropped.len();
            dropped
        });
        drop(dropped);
    }

    /// Closes connections that were kept for too long.
    pub(crate) fn sweep(&self) {
        let Some(oldest) = Instant::now().checked_sub(self.timeouts.pooled) else {
            return;
        };
        let dropped: Vec<Kept> = self.with(|state| {
            let mut dropped = Vec::new();
            for shelf in state.apps.values_mut() {
                let old = shelf.idle.partition_point(|kept| kept.since < oldest);
                dropped.extend(shelf.idle.drain(..old));
            }
            state.idle -= dropped.len();
            dropped
        });
        drop(dropped);
    }
}
