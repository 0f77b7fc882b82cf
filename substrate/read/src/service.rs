//! The read model over HTTP/1.1: connections, their limits, and their end.
//!
//! Spawns one task a connection. `handle` is one request, `answer` what goes back.

mod answer;
mod handle;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use tabbify_api::read::{Authorize, ReadModel};
use tabbify_http::{Handle, Limits, Server};
use tabbify_process::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use answer::Answer;

/// LIMIT: connections at once; bytes of one connection that wait to be read or written, and so of a
/// request's head; how long a connection may be open without a request, or take for a request's head;
/// how long the reader of an answer may take nothing of it.
const LIMITS: Limits = Limits {
    connections: 1024,
    buffer_len: 64 * 1024,
    idle: Duration::from_secs(60),
    stalled: Some(Duration::from_secs(20)),
};
/// LIMIT: bytes of answers that wait to be read, over all connections.
const ANSWERS_LEN_MAX: usize = 64 * 1024 * 1024;

/// Serves a read model to whoever has a token.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

/// What every request needs.
#[derive(Clone)]
struct Shared {
    model: Arc<dyn ReadModel>,
    authorize: Arc<dyn Authorize>,
    server: Server,
    answers: Arc<Semaphore>,
    closing: CancellationToken,
}

impl Service {
    /// A service of `model`. It ends with `tasks`: what is being answered is answered.
    #[must_use]
    pub fn new(model: Arc<dyn ReadModel>, authorize: Arc<dyn Authorize>, tasks: &Tasks) -> Self {
        let shared = Shared {
            model,
            authorize,
            server: Server::new("read connection", LIMITS, tasks),
            answers: Arc::new(Semaphore::new(ANSWERS_LEN_MAX)),
            closing: tasks.token(),
        };
        Self {
            shared: Arc::new(shared),
        }
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
        Requests(Arc::clone(&self.shared))
    }
}

/// Those of one connection.
struct Requests(Arc<Shared>);

impl Handle for Requests {
    type Body = answer::Body;

    async fn handle(&self, request: Request<Incoming>) -> Answer {
        handle::handle(&self.0, &request).await
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("server", &self.shared.server)
            .finish_non_exhaustive()
    }
}
