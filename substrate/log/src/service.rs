//! The log over HTTP/1.1: connections, their limits, and their end.
//!
//! Spawns one task a connection, one a session of appends and one for a verification. A subscription
//! takes its connection as long as it lasts, so there is at most one on each; a reader that does not
//! read holds its connection and a few buffers, and the writer never learns of it. What is said on the
//! wire: docs/protocols/log-http.md.

mod answer;
mod bearer;
mod consumers;
mod feed;
mod handle;
mod session;
mod verify;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tabbify_api::log::{Authorize, BODY_LEN_MAX, LogEngine};
use tabbify_process::{Importance, Tasks, chain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::consumers::Consumers;
use bearer::{BELIEVED_FOR, LastSeen};
use verify::Verifier;

/// LIMIT: connections at once; further ones are closed as they come.
const CONNECTIONS_MAX: usize = 1024;
/// LIMIT: bytes of request bodies that are being received or worked on, over all connections.
const BODIES_LEN_MAX: usize = 8 * BODY_LEN_MAX;
/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head.
const BUFFER_LEN_MAX: usize = 64 * 1024;
/// LIMIT: how long a connection may be open without a request, or take for a request's head.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long to wait after the system could not give a connection, such as without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a log and its consumers to whoever has a token.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

/// What every request needs.
#[derive(Clone)]
struct Shared {
    engine: Arc<dyn LogEngine>,
    consumers: Arc<Consumers>,
    authorize: Arc<dyn Authorize>,
    connections: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    tasks: Tasks,
    closing: CancellationToken,
    /// How long a judged token is believed.
    believed_for: Duration,
    verifier: Arc<Verifier>,
}

impl Service {
    /// A service of `engine` and of `consumers`, which are of the same log. It ends with `tasks`:
    /// subscriptions are told so, what is being answered is answered.
    #[must_use]
    pub fn new(
        engine: Arc<dyn LogEngine>,
        consumers: Arc<Consumers>,
        authorize: Arc<dyn Authorize>,
        tasks: &Tasks,
    ) -> Self {
        let shared = Shared {
            verifier: Arc::new(Verifier::new(Arc::clone(&engine))),
            engine,
            consumers,
            authorize,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            bodies: Arc::new(Semaphore::new(BODIES_LEN_MAX)),
            tasks: tasks.clone(),
            closing: tasks.token(),
            believed_for: BELIEVED_FOR,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// How long a token is believed once it has been judged, instead of a second. A subscription or
    /// session whose token ends or is revoked ends within this time.
    #[must_use]
    pub fn believing_for(mut self, believed_for: Duration) -> Self {
        let mut shared = Shared::clone(&self.shared);
        shared.believed_for = believed_for;
        self.shared = Arc::new(shared);
        self
    }

    /// Serves the connections of a unix socket until the tasks end. Its permissions are the caller's.
    pub async fn serve_unix(self, listener: UnixListener) {
        self.accept(listener).await;
    }

    /// Serves the connections of a TCP socket until the tasks end.
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
                Ok(stream) => {
                    let serving = self.clone().connection(stream);
                    let tasks = &self.shared.tasks;
                    tasks.spawn("log connection", Importance::Detached, serving);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection, whatever it is made of, to its end.
    pub fn connection<S>(self, stream: S) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.shared;
        async move {
            let Ok(_place) = Arc::clone(&shared.connections).try_acquire_owned() else {
                tracing::warn!(CONNECTIONS_MAX, "a connection too many is closed");
                return;
            };
            let last_seen = Arc::new(LastSeen::default());
            let service = service_fn(|request: Request<Incoming>| {
                let (shared, last_seen) = (Arc::clone(&shared), Arc::clone(&last_seen));
                async move { Ok::<_, Infallible>(handle::handle(&shared, &last_seen, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_MAX)
                .max_buf_size(BUFFER_LEN_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
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

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Small events must not wait for each other's acknowledgment.
        stream.set_nodelay(true)?;
        Ok(stream)
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
