//! The endpoint as its users hold it.

use std::future::poll_fn;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519::PublicKey;
use rustix::process::{Resource, getrlimit};
use tabbify_api::mesh::{Changed, PeerRecord, ResolveError, Resolver};
use tabbify_process::clock::{Clock as _, SystemClock};
use tabbify_process::{Importance, Tasks};
use tabbify_types::MeshKey;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::dispatch::{self, HANDSHAKES_WAITING_MAX, Handshake};
use crate::doorbell;
use crate::doubt::Asked;
use crate::endpoint::Endpoint;
use crate::kernel::{self, Kernel, KernelStream, Place};
use crate::path::{Discovery, Surroundings};
use crate::peer::Peer;
use crate::review;
use crate::session::{Ours, Session};
use crate::stack::Dialed;
use crate::stats::{Counters, count};
use crate::status::{Examined, OwnStatus, PeerStatus};
use crate::stream::UserStream;
use crate::survey::survey;
use crate::underlay::{Inlet, Own, Underlay, Watched};
use crate::{Config, DialError, Listener, MeshError, StackChoice, StackInUse, Stats, Stream};

/// A dialed peer that has not let anything be heard after this long is asked for new keys: it may
/// have been restarted in place.
const NUDGE: Duration = Duration::from_millis(500);

/// How often it is asked for meanwhile where it is.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The port of who only wants a session: none.
const LOOK: u16 = 0;

/// How long a closing endpoint waits, first and at most, before it asks the kernel again whether
/// everything is acknowledged: it does not tell by itself, and an answer costs it a walk through all
/// connections of the machine.
const SETTLING_FIRST: Duration = Duration::from_millis(5);
const SETTLING_MAX: Duration = Duration::from_millis(100);

/// An endpoint of the mesh. Clones are the same endpoint; when the last is dropped, its listeners and
/// streams end. [`Mesh::close`] lets them finish before.
#[derive(Debug, Clone)]
pub struct Mesh {
    endpoint: Arc<Endpoint>,
    stack: Arc<StackInUse>,
    has_relays: bool,
    /// How many are configured.
    relays: u16,
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

/// A connection that is being made. Dropping it takes the attempt back.
enum Attempt {
    User(UserStream),
    Kernel(KernelStream),
}

impl Attempt {
    async fn dialed(&self) -> Dialed {
        match self {
            Self::User(stream) => poll_fn(|cx| stream.poll_connect(cx)).await,
            Self::Kernel(stream) => match stream.connected().await {
                Ok(()) => Dialed::Connected,
                Err(_) => Dialed::Refused,
            },
        }
    }

    fn stream(self) -> Stream {
        match self {
            Self::User(stream) => Stream::user(stream),
            Self::Kernel(stream) => Stream::kernel(stream),
        }
    }
}

/// Opens the kernel's stack, if it is wanted and can be had.
fn open_stack(choice: StackChoice, ours: &Ours) -> Result<(Option<Kernel>, StackInUse), MeshError> {
    let given = match (&ours.gate, choice) {
        (Some(_), _) => Some("it answers for addresses that are not its own"),
        (None, StackChoice::Userspace) => Some("configured"),
        (None, _) => None,
    };
    if let Some(reason) = given.map(str::to_owned) {
        return Ok((None, StackInUse::Userspace { reason }));
    }
    match Kernel::open(Arc::clone(&ours.addresses), ours.limits.tcp_buffer_bytes) {
        Ok(kernel) => {
            let rootless = kernel.rootless;
            Ok((Some(kernel), StackInUse::Kernel { rootless }))
        }
        Err(error) if choice == StackChoice::Auto => {
            let reason = tabbify_process::chain(&error).to_string();
            Ok((None, StackInUse::Userspace { reason }))
        }
        Err(error) => Err(MeshError::Kernel(error)),
    }
}

/// Lets in what comes over relays and spare sockets.
fn start_underlay(endpoint: &Arc<Endpoint>, handshakes: &mpsc::Sender<Handshake>) {
    let (weak, handshakes) = (Arc::downgrade(endpoint), handshakes.clone());
    let inlet: Inlet = Arc::new(move |path, datagram| {
        if let Some(endpoint) = weak.upgrade() {
            dispatch::take(&endpoint, &handshakes, path, datagram);
        }
    });
    let underlay = Arc::clone(&endpoint.underlay);
    underlay.start(inlet, &endpoint.tasks, &endpoint.stop);
}

impl Mesh {
    /// Binds the UDP socket and spawns the tasks that serve it. Takes some milliseconds where the
    /// kernel's stack is used, to make its namespace.
    ///
    /// The tasks outlive the shutdown of `tasks`, so that a draining process still has its network.
    ///
    /// # Errors
    /// [`MeshError::NoAddress`] and [`MeshError::Bind`]; [`MeshError::Kernel`] and
    /// [`MeshError::Thread`] only if the kernel's stack is insisted on.
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
        let started = SystemClock.now().millis().saturating_mul(1000);
        let around = Arc::new(Surroundings::new(started));
        let own = Own::bind(address, &config.key, &config.relays, Arc::clone(&around));
        let underlay: Arc<dyn Underlay> = Arc::new(own.map_err(bind)?);
        let relays = config.relays.iter().filter_map(|relay| relay.udp);
        let servers: Vec<SocketAddr> = config.stun.iter().copied().chain(relays).collect();
        let public = PublicKey::from(config.key.public().0);
        let ours = Ours {
            key: config.key,
            addresses: config.addresses.into(),
            indices: IndexTable::from_os_rng(),
            // Cookies are asked for before (`intake`).
            limiter: Arc::new(RateLimiter::new(&public, u64::MAX)),
            limits: Arc::new(config.limits),
            counters: Arc::new(Counters::default()),
            around,
            gate: config.gate,
        };
        let (kernel, stack) = open_stack(config.stack, &ours)?;
        let watched = match kernel {
            Some(_) => None,
            None => Some(Watched::new(Arc::clone(&underlay)).map_err(bind)?),
        };
        tracing::debug!(%stack, "mesh stack");
        let tasks = tasks.child();
        let discovery = (Discovery::new(&servers), config.ask_nat);
        let endpoint = Endpoint::new(ours, underlay, watched, discovery, kernel, resolver, tasks);
        let endpoint = Arc::new(endpoint);
        // From here on, dropping it ends what was begun.
        let alive = Arc::new(Alive(Arc::clone(&endpoint)));
        let (sender, receiver) = mpsc::channel(HANDSHAKES_WAITING_MAX);
        start_underlay(&endpoint, &sender);
        if endpoint.kernel.is_some() {
            kernel::start(&endpoint, sender).map_err(MeshError::Thread)?;
        } else {
            let read = dispatch::read(Arc::clone(&endpoint), sender);
            endpoint
                .tasks
                .spawn("mesh-read", Importance::Essential, read);
        }
        let verify = dispatch::verify(Arc::clone(&endpoint), receiver);
        endpoint
            .tasks
            .spawn("mesh-verify", Importance::Essential, verify);
        review::start(&endpoint);
        let survey = survey(Arc::clone(&endpoint));
        endpoint
            .tasks
            .spawn("mesh-survey", Importance::Detached, survey);
        Ok(Self {
            endpoint,
            stack: Arc::new(stack),
            has_relays: !config.relays.is_empty(),
            relays: u16::try_from(config.relays.len()).unwrap_or(u16::MAX),
            _alive: alive,
        })
    }

    /// Which TCP/IP stack is in use, and why not the other.
    #[must_use]
    pub fn stack(&self) -> &StackInUse {
        &self.stack
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

    /// Where we may be reached from outside, to be reported to whoever resolves our addresses; best
    /// first, and again whenever it changes.
    #[must_use]
    pub fn candidates(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.endpoint.candidates.subscribe()
    }

    /// The peers with a session, and the path to each.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.endpoint.statuses()
    }

    /// The paths to a peer with a session, and what is known of its side.
    #[must_use]
    pub fn examine(&self, key: MeshKey) -> Option<Examined> {
        self.endpoint.examine(key)
    }

    /// Our side of every path.
    ///
    /// # Errors
    /// Those of the operating system, if it does not tell where the socket is bound.
    pub fn own(&self) -> std::io::Result<OwnStatus> {
        let side = self.endpoint.ours.around.side();
        Ok(OwnStatus {
            key: self.endpoint.public,
            addresses: self.endpoint.ours.addresses.to_vec(),
            underlay: self.underlay_addr()?,
            stack: StackInUse::clone(&self.stack),
            candidates: side.candidates.clone(),
            hard: side.hard,
            relays_configured: self.relays,
            relays_connected: side.relays.clone(),
        })
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.endpoint
            .ours
            .counters
            .snapshot(self.endpoint.sessions())
    }

    /// Cuts the sessions with a key off, at once; whether there was one. It comes back if the resolver still
    /// knows it. What [`Resolver::changes`] tells does this by itself.
    pub fn revoke(&self, key: MeshKey) -> bool {
        self.endpoint.doubts.add(Changed::Gone(key));
        self.endpoint.revoke(key)
    }

    /// Accepts connections to `port` on all our addresses.
    ///
    /// # Errors
    /// [`MeshError::Port`] if someone listens on it; [`MeshError::Socket`] if the kernel has no socket
    /// for it; [`MeshError::Closed`] if the mesh is closed.
    pub fn listen(&self, port: u16) -> Result<Listener, MeshError> {
        Listener::new(Arc::clone(&self.endpoint), port)
    }

    /// Accepts the connections to every port that has no listener of its own, on our addresses and on
    /// those that the [`Gate`](crate::Gate) covers, as far as it admits them.
    ///
    /// # Errors
    /// [`MeshError::Port`] if somebody does so already, or with the kernel's stack, which it needs a gate
    /// to do without.
    pub fn listen_all(&self) -> Result<Listener, MeshError> {
        Listener::of_all(Arc::clone(&self.endpoint))
    }

    /// Connects to whoever answers for the address now, from our first address, within
    /// [`Limits::dial_timeout`](crate::Limits::dial_timeout).
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, remote: SocketAddrV6) -> Result<Stream, DialError> {
        let started = Instant::now();
        let deadline = started + self.endpoint.ours.limits.dial_timeout;
        loop {
            let (record, asked) = self.find(remote, deadline).await?;
            let found = (&record, asked);
            let reached = match record.door {
                Some(of) => self.knock(of, found, remote, deadline).await?,
                None => self.dial_at(found, remote, remote, deadline).await?,
            };
            if let Some(stream) = reached {
                return Ok(stream);
            }
        }
    }

    /// A connection to `at` of the peer of `record`, by whose means `remote` is dialed; none if somebody else is
    /// behind that now, or may be.
    pub(crate) async fn dial_at(
        &self,
        (record, asked): (&PeerRecord, Asked),
        at: SocketAddrV6,
        remote: SocketAddrV6,
        deadline: Instant,
    ) -> Result<Option<Stream>, DialError> {
        let (started, since) = (Instant::now(), self.endpoint.epoch.now());
        let Some((peer, attempt)) = self.attempt(record, asked, at)? else {
            return Ok(None);
        };
        let nudge = deadline.min(started + NUDGE);
        let mut dialed = timeout_at(nudge, attempt.dialed()).await;
        if dialed.is_err() {
            let is_silent = {
                let mut session = peer.session();
                session.nudge(since);
                !session.heard_since(since)
            };
            peer.kick();
            let looking = async {
                if !is_silent || !self.look_again(remote, deadline, &peer, since).await {
                    std::future::pending::<()>().await;
                }
            };
            dialed = tokio::select! {
                dialed = timeout_at(deadline, attempt.dialed()) => dialed,
                () = looking => return Ok(None),
            };
        }
        match dialed {
            Ok(Dialed::Connected) => {
                count(&self.endpoint.ours.counters.dialed);
                Ok(Some(attempt.stream()))
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
                    break;
                }
                notified.await;
            }
            // The kernel still sends what was written to sockets that were closed.
            let mut pause = SETTLING_FIRST;
            while let Some(kernel) = &self.endpoint.kernel {
                if kernel.sockets.are_settled().unwrap_or(true) {
                    break;
                }
                tokio::time::sleep(pause).await;
                pause = SETTLING_MAX.min(pause * 2);
            }
        };
        let quiet = tokio::time::timeout(deadline, quiet).await.is_ok();
        self.endpoint.tasks.stop();
        self.endpoint.stop.cancel();
        quiet
    }

    /// Begins to connect, if the record still counts.
    fn attempt(
        &self,
        record: &PeerRecord,
        asked: Asked,
        remote: SocketAddrV6,
    ) -> Result<Option<(Arc<Peer>, Attempt)>, DialError> {
        let endpoint = &self.endpoint;
        let Some(kernel) = &endpoint.kernel else {
            let connect = |session: &mut Session| session.connect(remote);
            let begun = endpoint.connect(record, asked, remote, connect)?;
            return Ok(begun.map(|(peer, id)| {
                let stream = UserStream::new(Arc::clone(&peer), id);
                (peer, Attempt::User(stream))
            }));
        };
        let reserve = |session: &mut Session| session.reserve(*remote.ip());
        let begun = endpoint.connect(record, asked, remote, reserve)?;
        let Some((peer, (number, alias))) = begun else {
            return Ok(None);
        };
        let place = Place::new(Arc::clone(&peer), number);
        let begin = |socket| KernelStream::begin(socket, place, alias.address(), remote);
        match kernel.sockets.take().and_then(begin) {
            Ok(stream) => Ok(Some((peer, Attempt::Kernel(stream)))),
            Err(_) if endpoint.stop.is_cancelled() => Err(DialError::Closed),
            Err(error) => {
                // It has run out of descriptors, as good as always.
                tracing::warn!(%error, "no socket to dial with");
                let limit = getrlimit(Resource::Nofile).current;
                Err(DialError::Busy {
                    what: "descriptors in this process",
                    limit: limit.and_then(|n| n.try_into().ok()).unwrap_or(usize::MAX),
                })
            }
        }
    }

    /// Asks anew, now and then, where a silent peer is: it may have moved, and nobody told. Whether another is
    /// in its place now.
    async fn look_again(
        &self,
        remote: SocketAddrV6,
        deadline: Instant,
        peer: &Peer,
        since: smoltcp::time::Instant,
    ) -> bool {
        while Instant::now() < deadline && !peer.session().heard_since(since) {
            self.endpoint.resolver.doubt(*remote.ip());
            match self.find(remote, deadline).await {
                Ok((record, _)) if record.key != peer.key => return true,
                Ok((record, asked)) => self.endpoint.look_there(&record, asked),
                Err(error) => {
                    tracing::debug!(%remote, %error, "a silent peer is not looked up again");
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        false
    }

    /// Who is behind an address, and when that was asked for. Where changes overtake every answer, it is like
    /// nobody answers in time.
    async fn find(
        &self,
        remote: SocketAddrV6,
        deadline: Instant,
    ) -> Result<(PeerRecord, Asked), DialError> {
        let asked = self.endpoint.doubts.ask();
        let record = self.resolve(remote, deadline).await?;
        let ports = record.outbound.as_ref();
        // No port at all is meant by a look, which opens none.
        if remote.port() != LOOK && ports.is_some_and(|ports| !ports.admit(remote.port())) {
            return Err(DialError::Forbidden(remote));
        }
        if record.endpoints.is_empty() {
            self.await_relay(deadline).await;
        }
        Ok((record, asked))
    }

    pub(crate) const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The session with whoever answers for an address, there from now on.
    pub(crate) async fn meet(
        &self,
        address: Ipv6Addr,
        deadline: Instant,
    ) -> Result<Arc<Peer>, DialError> {
        let remote = SocketAddrV6::new(address, LOOK, 0, 0);
        loop {
            let (record, asked) = self.find(remote, deadline).await?;
            let begun = self.endpoint.connect(&record, asked, remote, |_| Ok(()))?;
            if let Some((peer, ())) = begun {
                return Ok(peer);
            }
        }
    }

    /// Waits until one of our relays is connected, if we have any.
    async fn await_relay(&self, deadline: Instant) {
        let around = &self.endpoint.ours.around;
        let mut connected = pin!(around.connected.notified());
        connected.as_mut().enable();
        if self.has_relays && around.side().relays.is_empty() {
            // What comes of it, the attempt shows.
            let _ = timeout_at(deadline, connected).await;
        }
    }

    /// Whether what a resolver has answered is about `address`, and somebody else than us.
    fn leads_there(&self, record: &PeerRecord, address: Ipv6Addr) -> bool {
        match record.door {
            // Our own machine's doorbell is reached inside.
            Some(of) => doorbell::is_of(of, address),
            None => record.addresses.contains(&address) && record.key != self.endpoint.public,
        }
    }

    async fn resolve(
        &self,
        remote: SocketAddrV6,
        deadline: Instant,
    ) -> Result<PeerRecord, DialError> {
        let late = || {
            let source = ResolveError::Unreachable("no answer in time".to_owned());
            DialError::Resolve {
                address: remote,
                source,
            }
        };
        // An answer that is there at once would be taken however late it is.
        if Instant::now() >= deadline {
            return Err(late());
        }
        let resolved = self.endpoint.resolver.by_address(*remote.ip());
        let record = timeout_at(deadline, resolved).await.map_err(|_| late())?;
        match record {
            // A record for another address would lead the bytes astray; one for ourselves has no
            // tunnel to go through.
            Ok(record) if !self.leads_there(&record, *remote.ip()) => {
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
