//! Auth over HTTP/1.1: connections and their limits. Where they come from is the caller's: a unix
//! socket, TCP, the mesh; with each stream comes what is known about the other end.
//!
//! Spawns one task a connection, which ends with the tasks it was made with.

mod handle;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tabbify_http::{Accept, Handle, Limits, Origin, Server};
use tabbify_process::Tasks;
use tabbify_types::MeshKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::authority::Auth;

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
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it comes from, such as an address: failures are limited by it.
    pub source: String,
    /// The WireGuard key that it has proven, if it came over the mesh.
    pub proven: Option<MeshKey>,
    /// Whether it is a role of this platform on this machine, such as over a socket that nobody else
    /// can open: it says whom it asks for, and opens apps for whom it has verified.
    pub trusted: bool,
}

impl Peer {
    /// A role of this platform, over a socket that nobody else can open.
    #[must_use]
    pub fn role() -> Self {
        Self {
            source: "local".to_owned(),
            proven: None,
            trusted: true,
        }
    }

    /// Somebody, known by an address and nothing else.
    #[must_use]
    pub fn at(source: impl ToString) -> Self {
        Self {
            source: source.to_string(),
            proven: None,
            trusted: false,
        }
    }
}

/// Serves auth.
#[derive(Clone)]
pub struct Service {
    auth: Arc<Auth>,
    server: Server,
}

impl Service {
    /// A service of `auth` that ends with `tasks`: what is being answered is answered.
    #[must_use]
    pub fn new(auth: Auth, tasks: &Tasks) -> Self {
        Self {
            auth: Arc::new(auth),
            server: Server::new("auth connection", LIMITS, tasks),
        }
    }

    /// Serves the roles of this machine over a unix socket, until the tasks end. Its permissions are
    /// the caller's: whoever can open it is trusted.
    pub async fn serve_unix(self, listener: UnixListener) {
        self.serve(listener).await;
    }

    /// Serves whoever comes over a TCP socket, until the tasks end.
    pub async fn serve_tcp(self, listener: TcpListener) {
        self.serve(listener).await;
    }

    async fn serve(self, listener: impl Accept) {
        let server = self.server.clone();
        let requests = |origin| {
            self.requests(match origin {
                Origin::Local => Peer::role(),
                Origin::At(address) => Peer::at(address.ip()),
            })
        };
        server.serve(listener, requests).await;
    }

    /// Serves one connection, whatever it is made of, to its end.
    pub fn connection<S>(self, stream: S, peer: Peer) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = self.requests(peer);
        self.server.connection(stream, requests)
    }

    fn requests(&self, peer: Peer) -> Requests {
        let auth = Arc::clone(&self.auth);
        Requests { auth, peer }
    }
}

/// Those of one connection.
struct Requests {
    auth: Arc<Auth>,
    peer: Peer,
}

impl Handle for Requests {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        handle::handle(&self.auth, &self.peer, request).await
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
