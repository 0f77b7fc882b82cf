//! Accepting connections from peers.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tabbify_types::MeshKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::endpoint::Endpoint;
use crate::kernel::{Alias, KernelStream, Place, conn};
use crate::stack::{Door, Doors};
use crate::stats::count;
use crate::{MeshError, Stream};

/// How long nothing is accepted after the kernel had no descriptor or memory for a connection. Those
/// that wait are in its backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Stands for every port without a listener of its own; nobody can connect to it by number.
const ALL: u16 = 0;

/// A connection that a peer opened.
#[derive(Debug)]
pub struct Incoming {
    /// The connection.
    pub stream: Stream,
    /// Who opened it, authenticated.
    pub peer: MeshKey,
    /// Whether the platform's word for that key names a public edge, as it was when it was opened:
    /// [`PeerRecord::is_node`](tabbify_api::mesh::PeerRecord::is_node). Once it does not any more, the
    /// connection ends.
    pub is_node: bool,
    /// The peer's end; the address is one that the peer owns.
    pub remote: SocketAddrV6,
    /// Our end; says which of our addresses was dialed.
    pub local: SocketAddrV6,
}

/// Accepts connections to one port on all our addresses. Dropping it closes the port; connections
/// that it has accepted go on.
pub struct Listener {
    port: u16,
    source: Source,
    endpoint: Arc<Endpoint>,
}

/// Where connections come from.
enum Source {
    User(mpsc::Receiver<Incoming>),
    Kernel(TcpListener),
}

impl Listener {
    pub(crate) fn new(endpoint: Arc<Endpoint>, port: u16) -> Result<Self, MeshError> {
        let backlog = endpoint.ours.limits.backlog;
        let source = match &endpoint.kernel {
            None => Source::User(endpoint.listeners.open(port, backlog)?),
            Some(_) if port == 0 => return Err(MeshError::Port(port)),
            Some(kernel) => {
                let listener = kernel.sockets.take();
                let listener = listener.and_then(|socket| conn::listener(socket, port, backlog));
                Source::Kernel(listener.map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => MeshError::Port(port),
                    io::ErrorKind::NotConnected => MeshError::Closed,
                    _ => MeshError::Socket(error),
                })?)
            }
        };
        Ok(Self {
            port,
            source,
            endpoint,
        })
    }

    /// Takes what no other listener takes.
    pub(crate) fn of_all(endpoint: Arc<Endpoint>) -> Result<Self, MeshError> {
        if endpoint.kernel.is_some() {
            return Err(MeshError::Port(ALL));
        }
        let backlog = endpoint.ours.limits.backlog;
        let source = Source::User(endpoint.listeners.insert(ALL, backlog)?);
        Ok(Self {
            port: ALL,
            source,
            endpoint,
        })
    }

    /// The port; 0 for all that no other listener has.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the next connection. Safe to cancel.
    ///
    /// # Errors
    /// [`MeshError::Closed`] when the mesh was dropped.
    pub async fn accept(&mut self) -> Result<Incoming, MeshError> {
        let endpoint = &self.endpoint;
        let next = async {
            match &mut self.source {
                Source::User(queue) => queue.recv().await.ok_or(MeshError::Closed),
                Source::Kernel(listener) => loop {
                    match listener.accept().await {
                        Ok((tcp, from)) => {
                            if let Some(incoming) = admit(endpoint, tcp, from) {
                                return Ok(incoming);
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "connection not accepted");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                },
            }
        };
        tokio::select! {
            incoming = next => incoming,
            () = endpoint.stop.cancelled() => Err(MeshError::Closed),
        }
    }
}

/// Says whose a connection is that the kernel has accepted. Those of a peer that is gone, or has too
/// many, are refused.
fn admit(endpoint: &Endpoint, tcp: TcpStream, from: SocketAddr) -> Option<Incoming> {
    let found = conn::v6(from).ok().and_then(|from| {
        let alias = Alias::of(*from.ip())?;
        let peer = endpoint.linked(alias)?;
        let mut session = peer.session();
        let link = session.link.as_mut()?;
        let address = link.address(alias)?;
        let number = link.reserve(endpoint.ours.limits.connections_per_peer)?;
        // Under the same lock: whoever takes it back then ends what was reserved.
        let is_node = session.is_node();
        drop(session);
        let remote = SocketAddrV6::new(address, from.port(), 0, 0);
        Some((Place::new(peer, number), remote, is_node))
    });
    let Some((place, remote, is_node)) = found else {
        conn::refuse(tcp);
        return None;
    };
    let peer = place.key();
    // It may have ended since; then nobody needs to hear of it.
    let local = tcp.local_addr().and_then(conn::v6).ok()?;
    let stream = KernelStream::accepted(tcp, place, local, remote).ok()?;
    count(&endpoint.ours.counters.accepted);
    Some(Incoming {
        stream: Stream::kernel(stream),
        peer,
        is_node,
        remote,
        local,
    })
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Source::User(_) = self.source {
            self.endpoint.listeners.close(self.port);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// The ports that are open.
#[derive(Debug, Default)]
pub(crate) struct Listeners(RwLock<HashMap<u16, mpsc::Sender<Incoming>>>);

impl Listeners {
    pub(crate) fn open(
        &self,
        port: u16,
        backlog: usize,
    ) -> Result<mpsc::Receiver<Incoming>, MeshError> {
        if port == ALL {
            return Err(MeshError::Port(port));
        }
        self.insert(port, backlog)
    }

    fn insert(&self, port: u16, backlog: usize) -> Result<mpsc::Receiver<Incoming>, MeshError> {
        let mut ports = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if ports.contains_key(&port) {
            return Err(MeshError::Port(port));
        }
        let (sender, receiver) = mpsc::channel(backlog.max(1));
        ports.insert(port, sender);
        Ok(receiver)
    }

    fn close(&self, port: u16) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&port);
    }
}

impl Doors for Listeners {
    fn knock(&self, port: u16) -> Door {
        let ports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = ports.get(&port).or_else(|| ports.get(&ALL)) else {
            return Door::Closed;
        };
        match sender.clone().try_reserve_owned() {
            Ok(seat) => Door::Open(seat),
            Err(TrySendError::Full(_)) => Door::Full,
            Err(TrySendError::Closed(_)) => Door::Closed,
        }
    }
}
