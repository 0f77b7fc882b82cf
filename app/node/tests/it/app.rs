//! An app as the node sees it: an HTTP/1 server at the end of a dialed connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tabbify_api::BoxFuture;
use tabbify_process::{Importance, Tasks};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

pub(crate) type Body = UnsyncBoxBody<Bytes, anyhow::Error>;
pub(crate) type Handler =
    Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A running app.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    dead: CancellationToken,
    /// Holds the port without listening, so that nobody else gets it once the app is dead.
    _port: Arc<TcpSocket>,
}

/// A socket on this address that others of ours may share.
fn bound(address: SocketAddr) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl App {
    /// How many connections it has accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many requests it has got.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Ends it as a crash would: what it was doing is lost, and nobody listens any more.
    pub(crate) fn kill(&self) {
        self.dead.cancel();
    }

    /// Serves `handler`.
    #[expect(
        clippy::unused_async,
        reason = "its listener needs a runtime: so it cannot be called without one"
    )]
    pub(crate) async fn start<F, R>(tasks: &Tasks, handler: F) -> Result<Self>
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let port = bound(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = port.local_addr()?;
        let listener = bound(address)?.listen(1024)?;
        let app = Self {
            address,
            _port: Arc::new(port),
            connections: Arc::default(),
            requests: Arc::default(),
            dead: CancellationToken::new(),
        };
        let (counts, children) = (app.clone(), tasks.clone());
        tasks.spawn("app", Importance::Detached, async move {
            let dead = counts.dead.clone();
            while let Some(Ok((stream, _))) = dead.run_until_cancelled(listener.accept()).await {
                counts.connections.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                let (handler, counts) = (Arc::clone(&handler), counts.clone());
                let dead = counts.dead.clone();
                children.spawn("app connection", Importance::Detached, async move {
                    let service = service_fn(move |request| {
                        counts.requests.fetch_add(1, Ordering::SeqCst);
                        let answering = handler(request);
                        async move { Ok::<_, Infallible>(answering.await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    let _ = dead.run_until_cancelled(connection).await;
                });
            }
        });
        Ok(app)
    }
}

/// An answer of these bytes.
pub(crate) fn text(bytes: impl Into<Bytes>) -> Response<Body> {
    Response::new(
        Full::new(bytes.into())
            .map_err(|never| match never {})
            .boxed_unsync(),
    )
}

/// Answers with the request's line, headers and body, one a line.
pub(crate) async fn mirror(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut lines = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        lines += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    lines += &format!("\n{}", String::from_utf8_lossy(&body));
    text(lines)
}

/// Sends each frame back as it comes, trailers too if they were announced.
pub(crate) async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut answer = Response::new(body.map_err(anyhow::Error::from).boxed_unsync());
    if let Some(names) = parts.headers.get("trailer") {
        answer.headers_mut().insert("trailer", names.clone());
    }
    answer
}
