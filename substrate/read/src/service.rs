//! The read model over HTTP/1.1: connections, their limits, and their end.
//!
//! Spawns one task a connection. `handle` is one request, `answer` what goes back, `patience` ends
//! connections whose reader does not read.

mod answer;
mod handle;
mod patience;

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
use tabbify_api::read::{Authorize, ReadModel};
use tabbify_process::{Importance, Tasks, chain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use patience::Patient;

/// LIMIT: connections at once; further ones are closed as they come.
const CONNECTIONS_MAX: usize = 1024;
/// LIMIT: bytes of answers that wait to be read, over all connections.
const ANSWERS_LEN_MAX: usize = 64 * 1024 * 1024;
/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head.
const BUFFER_LEN_MAX: usize = 64 * 1024;
/// LIMIT: how long a connection may be open without a request, or take for a request's head.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// LIMIT: how long the reader of an answer may take nothing of it.
const STALLED_MAX: Duration = Duration::from_secs(20);
/// How long to wait after the system could not give a connection, such as without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a read model to whoever has a token.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

/// What every request needs.
struct Shared {
    model: Arc<dyn ReadModel>,
    authorize: Arc<dyn Authorize>,
    connections: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    tasks: Tasks,
    closing: CancellationToken,
}

impl Service {
    /// A service of `model`. It ends with `tasks`: what is being answered is answered.
    #[must_use]
    pub fn new(model: Arc<dyn ReadModel>, authorize: Arc<dyn Authorize>, tasks: &Tasks) -> Self {
        let shared = Shared {
            model,
            authorize,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            answers: Arc::new(Semaphore::new(ANSWERS_LEN_MAX)),
            tasks: tasks.clone(),
            closing: tasks.token(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves the connections of a unix socket until the tasks end. Its permissions are the caller's.
    pub async fn serve_unix(self, listener: UnixListener) {
        let listener = &listener;
        let next = || async move { listener.accept().await.map(|(stream, _)| stream) };
        self.accept(next).await;
    }

    /// Serves the connections of a TCP socket until the tasks end.
    pub async fn serve_tcp(self, listener: TcpListener) {
        let listener = &listener;
        let next = || async move {
            let (stream, _) = listener.accept().await?;
            // The end of an answer must not wait for the acknowledgment of its beginning.
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(stream)
        };
        self.accept(next).await;
    }

    async fn accept<S, F>(&self, next: impl Fn() -> F + Send)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send,
    {
        loop {
            let accepted = tokio::select! {
                accepted = next() => accepted,
                () = self.shared.closing.cancelled() => return,
            };
            match accepted {
                Ok(stream) => {
                    let serving = self.clone().connection(stream);
                    let tasks = &self.shared.tasks;
                    tasks.spawn("read connection", Importance::Detached, serving);
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
            let service = service_fn(|request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(handle::handle(&shared, &request).await) }
            });
            let stream = TokioIo::new(Patient::new(stream, STALLED_MAX));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_MAX)
                .max_buf_size(BUFFER_LEN_MAX)
                .serve_connection(stream, service);
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

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.shared.connections.available_permits();
        f.debug_struct("Service")
            .field("connections", &(CONNECTIONS_MAX - free))
            .finish_non_exhaustive()
    }
}
