//! Accepting connections from peers.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddrV6;
use std::sync::{Arc, PoisonError, RwLock};

use tabbify_types::MeshKey;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::endpoint::Endpoint;
use crate::stack::{Door, Doors};
use crate::{MeshError, Stream};

/// A connection that a peer opened.
#[derive(Debug)]
pub struct Incoming {
    /// The connection.
    pub stream: Stream,
    /// Who opened it, authenticated.
    pub peer: MeshKey,
    /// The peer's end; the address is one that the peer owns.
    pub remote: SocketAddrV6,
    /// Our end; says which of our addresses was dialed.
    pub local: SocketAddrV6,
}

/// Accepts connections to one port on all our addresses. Dropping it closes the port; connections
/// that it has accepted go on.
pub struct Listener {
    port: u16,
    queue: mpsc::Receiver<Incoming>,
    endpoint: Arc<Endpoint>,
}

impl Listener {
    pub(crate) fn new(endpoint: Arc<Endpoint>, port: u16) -> Result<Self, MeshError> {
        let queue = endpoint
            .listeners
            .open(port, endpoint.ours.limits.backlog)?;
        Ok(Self {
            port,
            queue,
            endpoint,
        })
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the next connection. Safe to cancel.
    ///
    /// # Errors
    /// [`MeshError::Closed`] when the mesh was dropped.
    pub async fn accept(&mut self) -> Result<Incoming, MeshError> {
        tokio::select! {
            incoming = self.queue.recv() => incoming.ok_or(MeshError::Closed),
            () = self.endpoint.stop.cancelled() => Err(MeshError::Closed),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.endpoint.listeners.close(self.port);
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
        let mut ports = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if port == 0 || ports.contains_key(&port) {
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
        let Some(sender) = ports.get(&port) else {
            return Door::Closed;
        };
        match sender.clone().try_reserve_owned() {
            Ok(seat) => Door::Open(seat),
            Err(TrySendError::Full(_)) => Door::Full,
            Err(TrySendError::Closed(_)) => Door::Closed,
        }
    }
}
