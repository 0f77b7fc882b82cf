//! What the tasks of one mesh share: the registry of peers, the routes to them, the listeners.
//!
//! Locks are taken in the order registry, session or routes, doubts; all others alone.

use std::collections::HashMap;
use std::fmt;
use std::io::IoSlice;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use gotatun::packet::{Packet, WgKind};
use tabbify_api::mesh::{Changed, PeerRecord, Resolver};
use tabbify_process::{Importance, Tasks};
use tabbify_types::MeshKey;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::DialError;
use crate::doorbell::OwnDoor;
use crate::doubt::{Asked, Concern, Doubts};
use crate::kernel::{Alias, Kernel};
use crate::listener::Listeners;
use crate::path::{Discovery, Hint, Path};
use crate::peer::{Epoch, Peer, send_all};
use crate::review::Reviews;
use crate::session::{Ours, Outbox, Session};
use crate::stack::ConnectError;
use crate::stats::count;
use crate::status::{Examined, PeerStatus};
use crate::underlay::{Sent, Underlay, Watched, send_now};

/// LIMIT: answers in a row that forbid a session, and that a change has overtaken: with the next one it ends.
/// Whoever may change rules could keep it alive for ever otherwise; if it is allowed after all, it begins anew.
const OVERTAKEN_MAX: u32 = 3;

pub(crate) struct Endpoint {
    pub(crate) ours: Ours,
    pub(crate) public: MeshKey,
    pub(crate) underlay: Arc<dyn Underlay>,
    /// Set if the runtime waits for the underlay, not a thread of its own: that would be woken for
    /// every train, for nothing.
    pub(crate) watched: Option<Watched>,
    /// Where we may be reached from outside.
    pub(crate) candidates: watch::Sender<Vec<SocketAddr>>,
    discovery: Mutex<Discovery>,
    /// Asks the NAT for a port.
    pub(crate) asks_nat: bool,
    /// Set if the kernel's stack is in use.
    pub(crate) kernel: Option<Kernel>,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) tasks: Tasks,
    /// Ends the tasks: when the mesh is dropped, not when the process begins to drain.
    pub(crate) stop: CancellationToken,
    pub(crate) epoch: Epoch,
    pub(crate) listeners: Listeners,
    /// Where idle instances of this machine are woken, if it is here.
    pub(crate) own_door: Mutex<Option<OwnDoor>>,
    /// Notified when a peer has no connection left.
    pub(crate) quiet: Notify,
    /// What changed of what was answered.
    pub(crate) doubts: Doubts,
    /// Who is to be looked up again for it.
    pub(crate) reviews: Reviews,
    peers: Mutex<HashMap<MeshKey, Arc<Peer>>>,
    routes: RwLock<HashMap<u32, Arc<Peer>>>,
    hints: RwLock<HashMap<Hint, Arc<Peer>>>,
}

impl Endpoint {
    pub(crate) fn new(
        ours: Ours,
        underlay: Arc<dyn Underlay>,
        watched: Option<Watched>,
        (discovery, asks_nat): (Discovery, bool),
        kernel: Option<Kernel>,
        resolver: Arc<dyn Resolver>,
        tasks: Tasks,
    ) -> Self {
        Self {
            public: ours.key.public(),
            doubts: Doubts::new(Some(Arc::clone(&ours.addresses))),
            reviews: Reviews::default(),
            ours,
            underlay,
            watched,
            candidates: watch::Sender::default(),
            discovery: Mutex::new(discovery),
            asks_nat,
            kernel,
            resolver,
            tasks,
            stop: CancellationToken::new(),
            epoch: Epoch::start(),
            listeners: Listeners::default(),
            own_door: Mutex::default(),
            quiet: Notify::new(),
            peers: Mutex::default(),
            routes: RwLock::default(),
            hints: RwLock::default(),
        }
    }

    pub(crate) fn sessions(&self) -> usize {
        self.peers().len()
    }

    /// Whether no connection is left.
    pub(crate) fn is_quiet(&self) -> bool {
        let peers: Vec<_> = self.peers().values().cloned().collect();
        peers.iter().all(|peer| peer.session().is_empty())
    }

    /// Begins a connection with the peer of `record`, in a session that is there or a new one. Does nothing
    /// if something has changed since the record was asked for: it may be from before.
    pub(crate) fn connect<T>(
        self: &Arc<Self>,
        record: &PeerRecord,
        asked: Asked,
        remote: SocketAddrV6,
        begin: impl FnOnce(&mut Session) -> Result<T, ConnectError>,
    ) -> Result<Option<(Arc<Peer>, T)>, DialError> {
        let mut peers = self.peers();
        if self.stop.is_cancelled() {
            return Err(DialError::Closed);
        }
        if !self.doubts.is_current(asked, Concern::of(record)) {
            return Ok(None);
        }
        let now = self.epoch.now();
        let known = peers.get(&record.key).cloned();
        let peer = match known {
            Some(peer) => {
                let mut session = peer.session();
                // A door's record is about the instance behind it.
                if record.door.is_some() {
                    session.find_at(&record.endpoints, now);
                } else if session.takes(asked) {
                    session.update(record, now);
                }
                drop(session);
                peer
            }
            None => {
                let limit = self.ours.limits.peers;
                if peers.len() >= limit {
                    return Err(DialError::Busy {
                        what: "peers",
                        limit,
                    });
                }
                if !self.ours.key.contributes(record.key) {
                    return Err(DialError::Unreachable(remote));
                }
                let mut session = Session::new(self.ours.clone(), record, now);
                session.takes(asked);
                self.add(&mut peers, record.key, session, Outbox::default())
            }
        };
        let mut session = peer.session();
        if !session.has_target() {
            return Err(DialError::Unreachable(remote));
        }
        // Under the registry's lock, so that the session cannot be forgotten as unused before.
        let begun = begin(&mut session).map_err(|error| match error {
            ConnectError::Full => {
                let limit = self.ours.limits.connections_per_peer;
                DialError::Busy {
                    what: "connections with one peer",
                    limit,
                }
            }
            ConnectError::Unaddressable => DialError::Refused(remote),
        })?;
        drop(session);
        peer.kick();
        Ok(Some((peer, begun)))
    }

    /// Lets the peer of `record` in, whose initiation this is. Gives the initiation back if something has
    /// changed since the record was asked for: it may be from before.
    pub(crate) fn admit(
        self: &Arc<Self>,
        record: &PeerRecord,
        asked: Asked,
        from: Path,
        initiation: WgKind,
    ) -> Option<WgKind> {
        let counters = &self.ours.counters;
        let mut peers = self.peers();
        if self.stop.is_cancelled() {
            return None;
        }
        if !self.doubts.is_current(asked, Concern::of(record)) {
            return Some(initiation);
        }
        let now = self.epoch.now();
        let known = peers.get(&record.key).cloned();
        // What may reach nothing here goes on with what we have begun, and begins nothing.
        if record.is_forbidden() || known.is_none() && !may_begin(record) {
            count(&counters.dropped_forbidden);
            if record.is_forbidden() {
                self.revoke_locked(&mut peers, record.key);
            }
            return None;
        }
        if let Some(peer) = known {
            let mut session = peer.session();
            if session.takes(asked) {
                session.update(record, now);
                session.let_in(record.inbound.as_ref());
            }
            drop(session);
            if !peer.deliver(from, initiation.into()) {
                count(&counters.dropped_overload);
            }
            return None;
        }
        if peers.len() >= self.ours.limits.peers {
            count(&counters.dropped_overload);
            return None;
        }
        if !self.ours.key.contributes(record.key) {
            count(&counters.dropped_handshake);
            return None;
        }
        // A session is made only for an initiation that the key's holder has signed.
        let mut session = Session::new(self.ours.clone(), record, now);
        session.takes(asked);
        session.let_in(record.inbound.as_ref());
        let mut out = Outbox::default();
        session.receive(from, initiation, &self.listeners, &mut out, now);
        if !out.datagrams.is_empty() {
            self.add(&mut peers, record.key, session, out);
        }
        None
    }

    /// Takes the initiation of a peer that has a session already.
    pub(crate) fn readmit(&self, key: MeshKey, from: Path, initiation: Packet) {
        let peer = self.peers().get(&key).cloned();
        if !peer.is_some_and(|peer| peer.deliver(from, initiation)) {
            count(&self.ours.counters.dropped_unknown_key);
        }
    }

    /// Ends the session of a key that may not talk to us any more; whether there was one.
    pub(crate) fn revoke(&self, key: MeshKey) -> bool {
        self.revoke_locked(&mut self.peers(), key)
    }

    fn revoke_locked(&self, peers: &mut HashMap<MeshKey, Arc<Peer>>, key: MeshKey) -> bool {
        let Some(peer) = peers.get(&key).cloned() else {
            return false;
        };
        self.forget_locked(peers, &peer);
        // At once, whatever its task is busy with.
        peer.session().abort_all();
        peer.revoke();
        count(&self.ours.counters.revoked);
        true
    }

    /// Whether there is a session with this key.
    pub(crate) fn has(&self, key: MeshKey) -> bool {
        self.peers().contains_key(&key)
    }

    /// The peers with a session that a change may concern.
    pub(crate) fn concerned(&self, changed: &Changed) -> Vec<MeshKey> {
        let peers: Vec<_> = self.peers().values().cloned().collect();
        let is_concerned = |peer: &Arc<Peer>| {
            let session = peer.session();
            self.doubts.concerns(changed, session.concern())
        };
        let concerned = peers.iter().filter(|peer| is_concerned(peer));
        concerned.map(|peer| peer.key).collect()
    }

    /// Takes what the peer, if it has a session, may reach here from now on; `false` if something has changed
    /// since that was asked for.
    pub(crate) fn renew(&self, record: &PeerRecord, asked: Asked) -> bool {
        let peers = self.peers();
        if !self.doubts.is_current(asked, Concern::of(record)) {
            return false;
        }
        if let Some(peer) = peers.get(&record.key) {
            let mut session = peer.session();
            if session.takes(asked) {
                session.renew(record);
            }
        }
        true
    }

    /// Ends the session of a key that may not talk to us, as it was answered; `false` if something that
    /// concerns the session has changed since that was asked for. Where changes overtake every answer, the
    /// session ends nevertheless, after so many that all said the same.
    pub(crate) fn refuse(&self, key: MeshKey, asked: Asked) -> bool {
        let mut peers = self.peers();
        let Some(peer) = peers.get(&key).cloned() else {
            return true;
        };
        let mut session = peer.session();
        let is_current = self.doubts.is_current(asked, session.concern());
        if !is_current && session.overtaken() < OVERTAKEN_MAX {
            return false;
        }
        let counts = session.takes(asked);
        drop(session);
        if counts {
            self.revoke_locked(&mut peers, key);
        }
        true
    }

    /// The peer of `record` was silent where it was thought to be, and is looked for where it is said to be now.
    pub(crate) fn look_there(&self, record: &PeerRecord, asked: Asked) {
        let peers = self.peers();
        if !self.doubts.is_current(asked, Concern::of(record)) {
            return;
        }
        if let Some(peer) = peers.get(&record.key) {
            let mut session = peer.session();
            if record.door.is_some() {
                session.find_at(&record.endpoints, self.epoch.now());
            } else if session.takes(asked) {
                session.update(record, self.epoch.now());
            }
            drop(session);
            peer.kick();
        }
    }

    /// Forgets a session that nobody needs; whether it did.
    pub(crate) fn forget_if_over(&self, peer: &Arc<Peer>) -> bool {
        let mut peers = self.peers();
        // Asked again, now that nobody can begin a connection.
        let over = peer.session().is_over(self.epoch.now());
        if over {
            self.forget_locked(&mut peers, peer);
        }
        over
    }

    pub(crate) fn forget(&self, peer: &Arc<Peer>) {
        self.forget_locked(&mut self.peers(), peer);
    }

    fn forget_locked(&self, peers: &mut HashMap<MeshKey, Arc<Peer>>, peer: &Arc<Peer>) {
        if peers
            .get(&peer.key)
            .is_some_and(|known| Arc::ptr_eq(known, peer))
        {
            peers.remove(&peer.key);
        }
        if let (Some(kernel), Some(link)) = (&self.kernel, peer.link) {
            kernel.remove(link);
        }
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.retain(|_, to| !Arc::ptr_eq(to, peer));
        drop(routes);
        let mut hints = self.hints.write().unwrap_or_else(PoisonError::into_inner);
        if hints
            .get(&peer.hint)
            .is_some_and(|known| Arc::ptr_eq(known, peer))
        {
            hints.remove(&peer.hint);
        }
        drop(hints);
        self.underlay.release(peer.spares, &[]);
    }

    /// Directs datagrams with these receiver indices to `peer`.
    pub(crate) fn route(&self, indices: &[u32], peer: &Arc<Peer>) {
        if indices.is_empty() {
            return;
        }
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        // The engine gives indices back when their keys expire.
        routes.retain(|index, to| !Arc::ptr_eq(to, peer) || self.ours.indices.in_use(*index));
        routes.extend(indices.iter().map(|index| (*index, Arc::clone(peer))));
    }

    /// Hands a datagram to the session with this receiver index.
    pub(crate) fn deliver(&self, index: u32, from: Path, datagram: Packet) {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        match routes.get(&index) {
            Some(peer) if peer.deliver(from, datagram) => {}
            Some(_) => count(&self.ours.counters.dropped_overload),
            None => count(&self.ours.counters.dropped_unknown_session),
        }
    }

    /// Hands a probe to the session whose peer it is known by.
    pub(crate) fn deliver_probe(&self, hint: Hint, from: Path, probe: Packet) {
        let hints = self.hints.read().unwrap_or_else(PoisonError::into_inner);
        match hints.get(&hint) {
            Some(peer) if peer.deliver(from, probe) => {}
            Some(_) => count(&self.ours.counters.dropped_overload),
            None => count(&self.ours.counters.dropped_probe),
        }
    }

    /// Sends datagrams of `segment` bytes, the last may be shorter.
    pub(crate) async fn send(&self, path: Path, train: &[IoSlice<'_>], segment: usize) -> Sent {
        match &self.watched {
            Some(watched) => watched.send(path, train, segment).await,
            // A task must not wait for the thread's socket.
            None => send_now(&*self.underlay, path, train, segment, 0),
        }
    }

    /// Works on what is known about our own addresses.
    pub(crate) fn discovery(&self) -> MutexGuard<'_, Discovery> {
        self.discovery
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// All sessions look at their paths.
    pub(crate) fn kick_all(&self) {
        for peer in self.peers().values() {
            peer.kick();
        }
    }

    /// Which peer is on which path, by key.
    pub(crate) fn statuses(&self) -> Vec<PeerStatus> {
        let peers: Vec<_> = self.peers().values().cloned().collect();
        let now = self.epoch.now();
        peers
            .iter()
            .map(|peer| peer.session().status(peer.key, now))
            .collect()
    }

    /// The paths to a peer.
    pub(crate) fn examine(&self, key: MeshKey) -> Option<Examined> {
        let peer = self.peers().get(&key).cloned()?;
        let now = self.epoch.now();
        Some(peer.session().examine(now))
    }

    /// The session with this receiver index.
    pub(crate) fn routed(&self, index: u32) -> Option<Arc<Peer>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(&index).cloned()
    }

    /// The session that this alias is of.
    pub(crate) fn linked(&self, alias: Alias) -> Option<Arc<Peer>> {
        self.kernel.as_ref()?.linked(alias)
    }

    fn add(
        self: &Arc<Self>,
        peers: &mut HashMap<MeshKey, Arc<Peer>>,
        key: MeshKey,
        mut session: Session,
        first: Outbox,
    ) -> Arc<Peer> {
        session.link = self.kernel.as_ref().map(Kernel::link);
        let peer = Arc::new(Peer::new(key, self.epoch, session));
        if let (Some(kernel), Some(link)) = (&self.kernel, peer.link) {
            kernel.add(link, &peer);
        }
        peers.insert(key, Arc::clone(&peer));
        let mut hints = self.hints.write().unwrap_or_else(PoisonError::into_inner);
        hints.insert(peer.hint, Arc::clone(&peer));
        drop(hints);
        let (task, endpoint) = (Arc::clone(&peer), Arc::clone(self));
        // It outlives the request that dialed first, and so has a span of its own.
        let _entered = tracing::debug_span!(parent: None, "session", peer = %key).entered();
        self.tasks
            .spawn("mesh-peer", Importance::Detached, async move {
                endpoint.route(&first.indices, &task);
                send_all(&first.datagrams, &endpoint).await;
                task.run(endpoint).await;
            });
        peer
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<MeshKey, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the peer, looked up by its key, may open connections to us.
fn may_begin(record: &PeerRecord) -> bool {
    let inbound = record.inbound.as_ref();
    inbound.is_some_and(|ports| !ports.is_nothing())
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("public", &self.public)
            .field("underlay", &self.underlay)
            .finish_non_exhaustive()
    }
}
