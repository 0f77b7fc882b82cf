//! The relay as its user holds it: a library over sockets and listeners that are given.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tabbify_api::mesh::{Changed, Changes, ResolveError, Resolver};
use tabbify_process::{Importance, Tasks};
use tabbify_types::MeshKey;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ServerConfig;

use super::clients::{Clients, Refusal};
use super::stats::{Counters, RelayStats, count};
use super::{tls, udp};
use crate::PrivateKey;
use crate::review::told;
use crate::underlay::Socket;

/// LIMIT: peers that are looked up at once, and for how long each.
const LOOKUPS_MAX: usize = 64;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// LIMIT: peers that are looked up again at once after a change.
const REVIEWS_AT_ONCE: usize = 32;
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// What one relay spends at most. The defaults suit a machine with 1 Gbit/s and some hundred hosts.
#[derive(Debug, Clone)]
pub struct RelayLimits {
    /// LIMIT: peers that are registered at once.
    pub clients: usize,
    /// LIMIT: TLS connections at once, those that have proven nothing yet included.
    pub connections: usize,
    /// LIMIT: bytes that one peer may send per second, and at once after a pause.
    pub bytes_per_second: u64,
    /// See [`Self::bytes_per_second`].
    pub burst_bytes: u64,
    /// LIMIT: proofs that are verified per second and source address; each costs 30 µs.
    pub proofs_per_second: u64,
    /// LIMIT: answers per second to who has proven nothing: cookies, STUN.
    pub answers_per_second: u64,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            clients: 10_000,
            connections: 4096,
            bytes_per_second: 25_000_000,
            burst_bytes: 4_000_000,
            proofs_per_second: 100,
            answers_per_second: 20_000,
        }
    }
}

/// Why a relay cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The socket that was given cannot be used.
    #[error("the relay's socket cannot be used")]
    Socket(#[source] io::Error),
}

/// A relay. Clones are the same relay; it serves until the tasks that it was given are stopped.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

pub(super) struct Shared {
    pub(super) key: PrivateKey,
    pub(super) limits: RelayLimits,
    pub(super) tasks: Tasks,
    pub(super) clients: Clients,
    pub(super) counters: Counters,
    pub(super) connections: Arc<Semaphore>,
    resolver: Arc<dyn Resolver>,
    lookups: Arc<Semaphore>,
    /// Counts what changed of what was answered.
    doubts: AtomicU64,
}

impl Shared {
    /// Whether this key may use the relay: whoever the mesh knows may. If so, what was known of changes then:
    /// see [`Self::is_overtaken`].
    pub(super) async fn is_known(&self, key: MeshKey) -> Option<u64> {
        let Ok(_permit) = self.lookups.try_acquire() else {
            count(&self.counters.refused_limit);
            return None;
        };
        let doubts = self.doubts.load(Ordering::Acquire);
        let record = tokio::time::timeout(LOOKUP_TIMEOUT, self.resolver.by_key(key)).await;
        let is_known = matches!(&record, Ok(Ok(record)) if record.key == key);
        if !is_known {
            tracing::debug!(peer = %key, ?record, "peer refused by the relay");
            count(&self.counters.refused_key);
        }
        is_known.then_some(doubts)
    }

    /// Whether something has changed since a peer that is registered now was looked up: then it may have
    /// been removed before it was there, and must begin again.
    pub(super) fn is_overtaken(&self, key: MeshKey, doubts: u64) -> bool {
        let is_overtaken = self.doubts.load(Ordering::Acquire) != doubts;
        is_overtaken && self.clients.remove(key)
    }

    /// Takes peers out whose keys are nobody's any more, as the resolver tells it.
    async fn follow(self: Arc<Self>, mut changes: Box<dyn Changes>) {
        let stopped = self.tasks.token();
        loop {
            let changed = tokio::select! {
                changed = told(&mut changes, &*self.resolver) => changed,
                () = stopped.cancelled() => return,
            };
            // First: whoever is being looked up meanwhile begins again.
            self.doubts.fetch_add(1, Ordering::AcqRel);
            match changed {
                Changed::Gone(key) => self.remove(key),
                Changed::Everything => {
                    let judged = stream::iter(self.clients.keys())
                        .for_each_concurrent(REVIEWS_AT_ONCE, |key| self.judge(key));
                    tokio::select! {
                        () = judged => {}
                        () = stopped.cancelled() => return,
                    }
                }
            }
        }
    }

    async fn judge(&self, key: MeshKey) {
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.resolver.by_key(key)).await;
        if let Ok(Err(ResolveError::UnknownKey(_) | ResolveError::NoLease(_))) = found {
            self.remove(key);
        }
    }

    fn remove(&self, key: MeshKey) {
        if self.clients.remove(key) {
            tracing::debug!(peer = %key, "peer may not use the relay any more");
            count(&self.counters.revoked);
        }
    }

    pub(super) fn refuse(&self, refusal: Refusal) {
        count(match refusal {
            Refusal::Full => &self.counters.refused_limit,
            Refusal::Tag => &self.counters.refused_key,
        });
    }
}

impl Relay {
    /// A relay with this identity, for the peers that `resolver` knows by their keys; who it says is nobody
    /// any more is taken out.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(
        key: PrivateKey,
        resolver: Arc<dyn Resolver>,
        limits: RelayLimits,
        tasks: &Tasks,
    ) -> Self {
        let shared = Arc::new(Shared {
            key,
            connections: Arc::new(Semaphore::new(limits.connections)),
            clients: Clients::new(limits.clone()),
            limits,
            tasks: tasks.clone(),
            counters: Counters::default(),
            resolver,
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            doubts: AtomicU64::new(0),
        });
        if let Some(changes) = shared.resolver.changes() {
            let follows = Arc::clone(&shared).follow(changes);
            tasks.spawn("relay-changes", Importance::Detached, follows);
        }
        let (swept, token) = (Arc::downgrade(&shared), tasks.token());
        tasks.spawn("relay-sweep", Importance::Detached, async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(SWEEP_EVERY) => {}
                    () = token.cancelled() => return,
                }
                let Some(shared) = swept.upgrade() else {
                    return;
                };
                shared.clients.sweep(tokio::time::Instant::now());
            }
        });
        Self(shared)
    }

    /// Its key, which its clients must know.
    #[must_use]
    pub fn key(&self) -> MeshKey {
        self.0.key.public()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        self.0.counters.snapshot(self.0.clients.len())
    }

    /// Relays over this UDP socket, and answers STUN requests on it; returns where it is bound.
    ///
    /// # Errors
    /// If the socket cannot be used.
    pub fn serve_udp(&self, socket: std::net::UdpSocket) -> Result<SocketAddr, RelayError> {
        let socket = Socket::over(socket).map_err(RelayError::Socket)?;
        let address = socket.local_addr().map_err(RelayError::Socket)?;
        let server = udp::Server::new(Arc::clone(&self.0), socket).map_err(RelayError::Socket)?;
        self.0
            .tasks
            .spawn("relay-udp", Importance::Essential, server.run());
        Ok(address)
    }

    /// Relays over TLS connections to this listener. The configuration may have any certificate;
    /// TLS 1.3 must be in it.
    pub fn serve_tls(&self, listener: TcpListener, config: Arc<ServerConfig>) {
        let accept = tls::accept(Arc::clone(&self.0), listener, config);
        self.0
            .tasks
            .spawn("relay-accept", Importance::Essential, accept);
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("key", &self.key())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
