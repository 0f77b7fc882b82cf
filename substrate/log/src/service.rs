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

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use tabbify_api::log::{Authorize, BODY_LEN_MAX, LogEngine};
use tabbify_http::{Handle, Limits, Server};
use tabbify_process::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::consumers::Consumers;
use answer::Answer;
use bearer::{BELIEVED_FOR, LastSeen};
use verify::Verifier;

/// LIMIT: connections at once; bytes of one connection that wait to be read or written, and so of a
/// request's head; how long a connection may be open without a request, or take for a request's head.
/// A subscriber may stop reading for as long as it likes.
const LIMITS: Limits = Limits {
    connections: 1024,
    buffer_len: 64 * 1024,
    idle: Duration::from_secs(60),
    stalled: None,
};
/// LIMIT: bytes of request bodies that are being received or worked on, over all connections.
const BODIES_LEN_MAX: usize = 8 * BODY_LEN_MAX;

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
    server: Server,
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
            server: Server::new("log connection", LIMITS, tasks),
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

    /// The same service within the same limits, for a connection of whose other end more is known, such as
    /// the key that it has proven.
    #[must_use]
    pub fn authorized_by(&self, authorize: Arc<dyn Authorize>) -> Self {
        let mut shared = Shared::clone(&self.shared);
        shared.authorize = authorize;
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves the connections of a unix socket until the tasks end. Its permissions are the caller's.
    pub async fn serve_unix(self, listener: UnixListener) {
        let server = self.shared.server.clone();
        server.serve(listener, |_| self.requests()).await;
    }

    /// Serves the connections of a TCP socket until the tasks end.
    pub async fn serve_tcp(self, listener: TcpListener) {
        let server = self.shared.server.clone();
        server.serve(listener, |_| self.requests()).await;
    }

    /// Serves one connection, whatever it is made of, to its end.
    pub fn connection<S>(self, stream: S) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.shared.server.clone();
        server.connection(stream, self.requests())
    }

    fn requests(&self) -> Requests {
        Requests {
            shared: Arc::clone(&self.shared),
            last_seen: LastSeen::default(),
        }
    }
}

/// Those of one connection.
struct Requests {
    shared: Arc<Shared>,
    last_seen: LastSeen,
}

impl Handle for Requests {
    type Body = answer::Body;

    async fn handle(&self, request: Request<Incoming>) -> Answer {
        handle::handle(&self.shared, &self.last_seen, request).await
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("server", &self.shared.server)
            .finish_non_exhaustive()
    }
}
