//! The relay as its user holds it: a library over sockets and listeners that are given.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::mesh::{Changed, Changes, PeerRecord, ResolveError, Resolver};
use tabbify_process::{Importance, Tasks};
use tabbify_types::MeshKey;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ServerConfig;

use super::clients::{Client, Clients, Refusal};
use super::stats::{Counters, RelayStats, count};
use super::{tls, udp};
use crate::PrivateKey;
use crate::doubt::{Asked, Concern, Doubts};
use crate::review::{Judged, Reviews, told};
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
    /// What changed of what was answered.
    doubts: Doubts,
    /// Who is to be looked up again for it.
    reviews: Reviews,
}

/// A peer that was looked up, and when.
#[derive(Debug)]
pub(super) struct LookedUp {
    record: PeerRecord,
    asked: Asked,
}

impl Shared {
    /// Whether this key may use the relay: whoever the mesh knows may. What was found, if so: see
    /// [`Self::is_overtaken`].
    pub(super) async fn look_up(&self, key: MeshKey) -> Option<LookedUp> {
        let Ok(_permit) = self.lookups.try_acquire() else {
            count(&self.counters.refused_limit);
            return None;
        };
        let asked = self.doubts.ask();
        let record = tokio::time::timeout(LOOKUP_TIMEOUT, self.resolver.by_key(key)).await;
        match record {
            Ok(Ok(record)) if record.key == key => Some(LookedUp { record, asked }),
            refusal => {
                tracing::debug!(peer = %key, ?refusal, "peer refused by the relay");
                count(&self.counters.refused_key);
                None
            }
        }
    }

    /// Whether something has changed since a peer that is registered now was looked up: then it may have
    /// been removed before it was there, and must begin again.
    pub(super) fn is_overtaken(&self, client: &Client, known: &LookedUp) -> bool {
        // First: from here on a change finds it by what it is told now.
        client.stands(&known.record);
        let is_overtaken = !self
            .doubts
            .is_current(known.asked, Concern::of(&known.record));
        is_overtaken && self.clients.remove(client.key)
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
            self.doubts.add(changed.clone());
            match changed {
                Changed::Gone(key) => self.remove(key),
                changed => {
                    let is_concerned = |peer: Concern<'_>| self.doubts.concerns(&changed, peer);
                    self.reviews.add(self.clients.keys(is_concerned));
                }
            }
        }
    }

    async fn judge(&self, key: MeshKey) -> Judged {
        let Some(client) = self.clients.by_key(key) else {
            return Judged::Done;
        };
        let asked = self.doubts.ask();
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.resolver.by_key(key)).await;
        match found {
            Ok(Ok(record)) if record.key == key => {
                if !self.doubts.is_current(asked, Concern::of(&record)) {
                    return Judged::Again;
                }
                client.stands(&record);
                Judged::Done
            }
            Ok(Err(ResolveError::UnknownKey(_) | ResolveError::NoLease(_)))
                if self.doubts.is_current(asked, Concern::of_key(key)) =>
            {
                self.remove(key);
                Judged::Done
            }
            // Nobody who can be believed takes anything back, or it was overtaken.
            _ => Judged::Again,
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
            // Whether one of the machines is the relay's own is not known here.
            doubts: Doubts::new(None),
            reviews: Reviews::default(),
        });
        if let Some(changes) = shared.resolver.changes() {
            let follows = Arc::clone(&shared).follow(changes);
            tasks.spawn("relay-changes", Importance::Detached, follows);
            let (reviewed, stop) = (Arc::clone(&shared), tasks.token());
            tasks.spawn("relay-review", Importance::Detached, async move {
                let judging = reviewed
                    .reviews
                    .run(REVIEWS_AT_ONCE, |key| reviewed.judge(key));
                let _ = stop.run_until_cancelled(judging).await;
            });
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
