//! A service's connections: how many at once, how long each may idle, and how they end.
//!
//! ```text
//!   accept ─▶ a place among the connections ─▶ a task ─▶ request ─▶ Handle ─▶ answer ─▶ … ─▶ end
//! ```
//!
//! When the tasks end, no connection is accepted, what is being answered is answered, and an upgraded
//! connection is its handler's to end.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tabbify_process::{Importance, Tasks, chain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::accept::{Accept, Origin};
use crate::patience::Patient;

/// How long to wait after the system could not give a connection, such as without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a service bears.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones are closed as they come.
    pub connections: usize,
    /// Bytes of one connection that wait to be read or written, and so of a request's head.
    pub buffer_len: usize,
    /// How long a connection may be open without a request, or take for a request's head.
    pub idle: Duration,
    /// How long the reader of an answer may take nothing of it. Without, a reader that does not read
    /// keeps its connection: a subscriber may pause for as long as it likes.
    pub stalled: Option<Duration>,
}

/// Answers the requests of one connection, one after the other.
pub trait Handle: Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;

    /// Answers; a refusal is an answer as well.
    fn handle(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// A place among the connections of a service, free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Serves connections within limits. Clones share the limits.
#[derive(Clone)]
pub struct Server {
    name: &'static str,
    limits: Limits,
    places: Arc<Semaphore>,
    tasks: Tasks,
    closing: CancellationToken,
}

impl Server {
    /// A server whose connections are tasks called `name`, and end with `tasks`.
    #[must_use]
    pub fn new(name: &'static str, limits: Limits, tasks: &Tasks) -> Self {
        Self {
            name,
            limits,
            places: Arc::new(Semaphore::new(limits.connections)),
            tasks: tasks.clone(),
            closing: tasks.token(),
        }
    }

    /// A place for what outlives its connection, such as an upgraded one; none if all are taken.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// Serves the connections of `listener` until the tasks end, each with a handler of its own.
    pub async fn serve<H: Handle>(
        self,
        listener: impl Accept,
        handler: impl Fn(Origin) -> H + Send + Sync,
    ) {
        self.accept(listener, |server, stream, origin| {
            server.connection(stream, handler(origin))
        })
        .await;
    }

    /// Hands each connection of `listener` to `begin` until the tasks end: what that gives runs as a
    /// task, such as a TLS handshake and then [`Server::connection`].
    pub async fn accept<L: Accept, F>(
        self,
        listener: L,
        begin: impl Fn(Self, L::Stream, Origin) -> F + Send + Sync,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => return,
            };
            match accepted {
                Ok((stream, origin)) => {
                    let serving = begin(self.clone(), stream, origin);
                    self.tasks.spawn(self.name, Importance::Detached, serving);
                }
                Err(error) => {
                    tracing::warn!(service = self.name, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection, whatever it is made of, to its end.
    pub async fn connection<S, H>(self, stream: S, handler: H)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Handle,
    {
        let Some(_place) = self.place() else {
            let limit = self.limits.connections;
            tracing::warn!(
                service = self.name,
                limit,
                "a connection too many is closed"
            );
            return;
        };
        let handler = Arc::new(handler);
        let service = service_fn(|request: Request<Incoming>| {
            let handler = Arc::clone(&handler);
            async move { Ok::<_, Infallible>(handler.handle(request).await) }
        });
        let stream = TokioIo::new(Patient::new(stream, self.limits.stalled));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle)
            .max_buf_size(self.limits.buffer_len)
            .serve_connection(stream, service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(service = self.name, error = %chain(&error), "connection ended early");
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.limits.connections - self.places.available_permits();
        f.debug_struct("Server")
            .field("name", &self.name)
            .field("connections", &taken)
            .finish_non_exhaustive()
    }
}
