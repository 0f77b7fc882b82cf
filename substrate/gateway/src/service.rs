//! The vault over HTTP/1.1: connections and their limits. What carries them is the caller's; with each
//! stream comes what is known about the other end.
//!
//! Spawns one task a connection, which ends with the tasks it was made with.

mod handle;

use std::fmt;
use std::future::Future;
use std::net::Ipv6Addr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tabbify_http::{Handle, Limits, Server};
use tabbify_process::Tasks;
use tabbify_types::MeshKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;

use crate::vault::Vault;

/// LIMIT: connections at once; bytes of one connection that wait to be read or written, and so of a
/// request's head (a bearer token is 8 KiB at most); how long a connection may be open without a
/// request, or take for a request's head; how long the reader of an answer may take nothing of it.
const LIMITS: Limits = Limits {
    connections: 256,
    buffer_len: 16 * 1024,
    idle: Duration::from_secs(20),
    stalled: Some(Duration::from_secs(20)),
};

/// Who is at the other end of a connection, as whoever accepted it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The WireGuard key that it has proven, if it came over the mesh.
    pub proven: Option<MeshKey>,
    /// The inner address that it speaks from, which the mesh knows to be its own.
    pub address: Option<Ipv6Addr>,
}

impl Peer {
    /// A process of this machine, known by nothing but the tokens that it shows.
    #[must_use]
    pub const fn local() -> Self {
        Self {
            proven: None,
            address: None,
        }
    }

    /// Somebody on the mesh.
    #[must_use]
    pub const fn on_mesh(key: MeshKey, address: Ipv6Addr) -> Self {
        Self {
            proven: Some(key),
            address: Some(address),
        }
    }
}

/// Serves a vault.
#[derive(Clone)]
pub struct Service {
    vault: Vault,
    /// Of processes of this machine: instances do not take their places.
    local: Server,
    mesh: Server,
}

impl Service {
    /// A service of `vault` that ends with `tasks`: what is being answered is answered.
    #[must_use]
    pub fn new(vault: Vault, tasks: &Tasks) -> Self {
        Self {
            vault,
            local: Server::new("vault connection", LIMITS, tasks),
            mesh: Server::new("vault connection", LIMITS, tasks),
        }
    }

    /// Serves the processes of this machine over a unix socket, until the tasks end.
    pub async fn serve_unix(self, listener: UnixListener) {
        let server = self.local.clone();
        let requests = |_| self.requests(Peer::local());
        server.serve(listener, requests).await;
    }

    /// Serves one connection of somebody on the mesh, to its end.
    pub fn connection<S>(self, stream: S, peer: Peer) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = self.requests(peer);
        self.mesh.connection(stream, requests)
    }

    fn requests(&self, peer: Peer) -> Requests {
        let vault = self.vault.clone();
        Requests { vault, peer }
    }
}

/// Those of one connection.
struct Requests {
    vault: Vault,
    peer: Peer,
}

impl Handle for Requests {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        handle::handle(&self.vault, self.peer, request).await
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("local", &self.local)
            .field("mesh", &self.mesh)
            .finish_non_exhaustive()
    }
}
