//! Auth over HTTP/1.1: connections and their limits. Where they come from is the caller's: a unix
//! socket, TCP, the mesh; with each stream comes what is known about the other end.
//!
//! Spawns one task a connection, which ends with the tasks it was made with.

mod handle;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tabbify_process::{Importance, Tasks, chain};
use tabbify_types::MeshKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::authority::Auth;

/// LIMIT: connections at once; further ones are closed as they come.
const CONNECTIONS_MAX: usize = 256;
/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head: a
/// bearer token is 8 KiB at most.
const BUFFER_LEN_MAX: usize = 16 * 1024;
/// LIMIT: how long a connection may be open without a request, or take for a request's head.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// How long to wait after the system could not give a connection, such as without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    shared: Arc<Shared>,
}

/// What every request needs.
struct Shared {
    auth: Auth,
    connections: Arc<Semaphore>,
    tasks: Tasks,
    closing: CancellationToken,
}

impl Service {
    /// A service of `auth` that ends with `tasks`: what is being answered is answered.
    #[must_use]
    pub fn new(auth: Auth, tasks: &Tasks) -> Self {
        let shared = Shared {
            auth,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            tasks: tasks.clone(),
            closing: tasks.token(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves the roles of this machine over a unix socket, until the tasks end. Its permissions are
    /// the caller's: whoever can open it is trusted.
    pub async fn serve_unix(self, listener: UnixListener) {
        self.accept(listener).await;
    }

    /// Serves whoever comes over a TCP socket, until the tasks end.
    pub async fn serve_tcp(self, listener: TcpListener) {
        self.accept(listener).await;
    }

    async fn accept(&self, listener: impl Listen) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.next() => accepted,
                () = self.shared.closing.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let serving = self.clone().connection(stream, peer);
                    let tasks = &self.shared.tasks;
                    tasks.spawn("auth connection", Importance::Detached, serving);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection, whatever it is made of, to its end.
    pub fn connection<S>(self, stream: S, peer: Peer) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.shared;
        async move {
            let Ok(_place) = Arc::clone(&shared.connections).try_acquire_owned() else {
                tracing::warn!(CONNECTIONS_MAX, "a connection too many is closed");
                return;
            };
            let peer = &peer;
            let service = service_fn(|request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(handle::handle(&shared.auth, peer, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_MAX)
                .max_buf_size(BUFFER_LEN_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = shared.closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = %chain(&error), "connection ended early");
            }
        }
    }
}

/// Where connections come from.
trait Listen: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, Peer::role()))
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, Peer::at(address.ip())))
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.shared.connections.available_permits();
        f.debug_struct("Service")
            .field("connections", &(CONNECTIONS_MAX - free))
            .finish_non_exhaustive()
    }
}
