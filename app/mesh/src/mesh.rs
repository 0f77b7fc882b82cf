//! The endpoint as its users hold it.

use std::future::poll_fn;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519::PublicKey;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_process::{Importance, Tasks};
use tabbify_types::MeshKey;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::dispatch::{self, HANDSHAKES_WAITING_MAX};
use crate::endpoint::Endpoint;
use crate::session::Ours;
use crate::stack::Dialed;
use crate::stats::{Counters, count};
use crate::underlay::Underlay;
use crate::{Config, DialError, Listener, MeshError, Stats, Stream};

/// A dialed peer that has not let anything be heard after this long is asked for new keys: it may
/// have been restarted in place.
const NUDGE: Duration = Duration::from_millis(500);

/// An endpoint of the mesh. Clones are the same endpoint; when the last is dropped, its listeners and
/// streams end. [`Mesh::close`] lets them finish before.
#[derive(Debug, Clone)]
pub struct Mesh {
    endpoint: Arc<Endpoint>,
    _alive: Arc<Alive>,
}

#[derive(Debug)]
struct Alive(Arc<Endpoint>);

impl Drop for Alive {
    fn drop(&mut self) {
        // First the tasks' owner, so that the end of the essential ones is expected.
        self.0.tasks.stop();
        self.0.stop.cancel();
    }
}

impl Mesh {
    /// Binds the UDP socket and spawns the tasks that serve it.
    ///
    /// The tasks outlive the shutdown of `tasks`, so that a draining process still has its network.
    ///
    /// # Errors
    /// [`MeshError::NoAddress`] and [`MeshError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        config: Config,
        resolver: Arc<dyn Resolver>,
        tasks: &Tasks,
    ) -> Result<Self, MeshError> {
        if config.addresses.is_empty() {
            return Err(MeshError::NoAddress);
        }
        let address = config.underlay;
        let bind = |source| MeshError::Bind { address, source };
        let underlay = Underlay::bind(address).map_err(bind)?;
        let public = PublicKey::from(config.key.public().0);
        let ours = Ours {
            key: config.key,
            addresses: config.addresses.into(),
            indices: IndexTable::from_os_rng(),
            limiter: Arc::new(RateLimiter::new(
                &public,
                config.limits.handshakes_per_second,
            )),
            limits: Arc::new(config.limits),
            counters: Arc::new(Counters::default()),
        };
        let endpoint = Arc::new(Endpoint::new(ours, underlay, resolver, tasks.child()));
        let (sender, receiver) = mpsc::channel(HANDSHAKES_WAITING_MAX);
        let read = dispatch::read(Arc::clone(&endpoint), sender);
        let verify = dispatch::verify(Arc::clone(&endpoint), receiver);
        endpoint
            .tasks
            .spawn("mesh-read", Importance::Essential, read);
        endpoint
            .tasks
            .spawn("mesh-verify", Importance::Essential, verify);
        let alive = Arc::new(Alive(Arc::clone(&endpoint)));
        Ok(Self {
            endpoint,
            _alive: alive,
        })
    }

    /// Our key.
    #[must_use]
    pub fn public_key(&self) -> MeshKey {
        self.endpoint.public
    }

    /// Where the UDP socket is bound.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn underlay_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.underlay.local_addr()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.endpoint
            .ours
            .counters
            .snapshot(self.endpoint.sessions())
    }

    /// Accepts connections to `port` on all our addresses.
    ///
    /// # Errors
    /// [`MeshError::Port`] if someone listens on it.
    pub fn listen(&self, port: u16) -> Result<Listener, MeshError> {
        Listener::new(Arc::clone(&self.endpoint), port)
    }

    /// Connects to whoever answers for the address now, from our first address, within
    /// [`Limits::dial_timeout`](crate::Limits::dial_timeout).
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, remote: SocketAddrV6) -> Result<Stream, DialError> {
        let started = Instant::now();
        let deadline = started + self.endpoint.ours.limits.dial_timeout;
        let record = self.resolve(remote, deadline).await?;
        let since = self.endpoint.epoch.now();
        let (peer, id) = self.endpoint.connect(&record, remote)?;
        // From here on, dropping it (and this future) takes the attempt back.
        let stream = Stream::new(Arc::clone(&peer), id);
        let mut dialed = timeout_at(started + NUDGE, poll_fn(|cx| stream.poll_connect(cx))).await;
        if dialed.is_err() {
            peer.session().nudge(since);
            peer.kick();
            dialed = timeout_at(deadline, poll_fn(|cx| stream.poll_connect(cx))).await;
        }
        match dialed {
            Ok(Dialed::Connected) => {
                count(&self.endpoint.ours.counters.dialed);
                Ok(stream)
            }
            Ok(Dialed::Refused) if self.endpoint.stop.is_cancelled() => Err(DialError::Closed),
            Ok(Dialed::Refused) => Err(DialError::Refused(remote)),
            Err(_) if peer.session().heard_since(since) => Err(DialError::TimedOut(remote)),
            Err(_) => Err(DialError::Unreachable(remote)),
        }
    }

    /// Waits until no connection is left and everything written is acknowledged, at most until
    /// `deadline` has passed; then ends the endpoint as if it were dropped. Returns whether all
    /// connections had ended.
    pub async fn close(self, deadline: Duration) -> bool {
        let quiet = async {
            loop {
                let notified = self.endpoint.quiet.notified();
                if self.endpoint.is_quiet() {
                    return;
                }
                notified.await;
            }
        };
        let quiet = tokio::time::timeout(deadline, quiet).await.is_ok();
        self.endpoint.tasks.stop();
        self.endpoint.stop.cancel();
        quiet
    }

    async fn resolve(
        &self,
        remote: SocketAddrV6,
        deadline: Instant,
    ) -> Result<PeerRecord, DialError> {
        let resolved = self.endpoint.resolver.by_address(*remote.ip());
        let record = timeout_at(deadline, resolved).await.map_err(|_| {
            let source = ResolveError::Unreachable("no answer in time".to_owned());
            DialError::Resolve {
                address: remote,
                source,
            }
        })?;
        match record {
            // A record for another address would lead the bytes astray; one for ourselves has no
            // tunnel to go through.
            Ok(record)
                if !record.addresses.contains(remote.ip())
                    || record.key == self.endpoint.public =>
            {
                Err(DialError::NoLease(remote))
            }
            Ok(record) => Ok(record),
            Err(ResolveError::NoLease(_) | ResolveError::UnknownKey(_)) => {
                Err(DialError::NoLease(remote))
            }
            Err(source) => Err(DialError::Resolve {
                address: remote,
                source,
            }),
        }
    }
}
