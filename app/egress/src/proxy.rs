//! The proxy of an app whose programs run on a network without a way out: HTTP `CONNECT` for whatever they
//! speak, and requests in absolute form (RFC 9112, section 3.2.2) for HTTP. What it does not do, it refuses
//! with words that say what to do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tabbify_api::BoxFuture;
use tabbify_api::names::MeshName;
use tabbify_http::{Accept, Handle, Limits, Server};
use tabbify_process::connect::Stream;
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::{Body, Not, whole};
use crate::forward::forward;
use crate::rewind::rewind;
use crate::tunnel::{self, Way};
use crate::{Connection, Guard, Host, Inside, Refused, Tell};

/// LIMIT: connections of programs at a time.
const PROGRAMS_MAX: usize = 1024;
/// LIMIT: bytes of a request's head.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// LIMIT: how long a connection may be open without a request, or take for the head of one.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// LIMIT: connections to other apps at a time.
const NEIGHBORS_MAX: usize = 256;
/// The port of a URL that names none.
const HTTP_PORT: u16 = 80;

const NOT_HERE: &str =
    "this is the proxy of an app: ask for a whole URL, as programs do that know HTTP_PROXY";
const NOT_TLS: &str = "https:// is asked for by CONNECT, as programs do that know HTTPS_PROXY";
const NO_HOST: &str = "it does not say whom it is for";
const NO_PORT: &str = "CONNECT names a host and a port";
const NESTED: &str = "there is no CONNECT within a CONNECT";

/// The proxy of one app. Clones are the same one.
#[derive(Clone)]
pub struct Proxy {
    guard: Guard,
    inside: Arc<dyn Inside>,
    tell: Arc<dyn Tell>,
    neighbors: Arc<Semaphore>,
    server: Server,
    tasks: Tasks,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("guard", &self.guard)
            .field("inside", &self.inside)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// Lets an app out as `guard` allows, and to its neighbors by `inside`; what is refused stands in its log.
    /// All that it does ends with `tasks`.
    #[must_use]
    pub fn new(guard: Guard, inside: Arc<dyn Inside>, tell: Arc<dyn Tell>, tasks: &Tasks) -> Self {
        let limits = Limits {
            connections: PROGRAMS_MAX,
            buffer_len: HEAD_LEN_MAX,
            idle: IDLE_MAX,
            stalled: None,
        };
        Self {
            guard,
            inside,
            tell,
            neighbors: Arc::new(Semaphore::new(NEIGHBORS_MAX)),
            server: Server::new("egress", limits, tasks),
            tasks: tasks.clone(),
        }
    }

    /// Serves what comes to `listener`, which only the app's programs can reach, until the tasks end.
    pub async fn serve(self, listener: impl Accept) {
        let server = self.server.clone();
        server.serve(listener, move |_| self.handler(None)).await;
    }

    /// Serves one connection, whatever it is made of, to its end.
    pub async fn connection<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handler = self.handler(None);
        self.server.connection(stream, handler).await;
    }

    fn handler(&self, within: Option<u16>) -> Handler {
        Handler {
            proxy: self.clone(),
            within,
        }
    }

    /// The requests on a connection to `port` that was opened for some name: each says its own.
    fn requests<S>(self, stream: S, port: u16) -> BoxFuture<'static, ()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handler = self.handler(Some(port));
        Box::pin(self.server.connection(stream, handler))
    }

    async fn neighbor(
        &self,
        name: &str,
        port: u16,
    ) -> Result<(Box<dyn Stream>, OwnedSemaphorePermit), Refused> {
        let place = Arc::clone(&self.neighbors).try_acquire_owned();
        let place = place.map_err(|_| Refused::Busy(NEIGHBORS_MAX))?;
        let dialed = self.inside.dial(name, port).await;
        let stream = dialed.map_err(|why| Refused::Neighbor {
            name: name.to_owned(),
            port,
            why,
        })?;
        Ok((stream, place))
    }

    /// Passes an opened connection on, if it is for whom it says it is.
    async fn through<S>(self, mut client: S, mut server: Connection, host: Host, port: u16)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let begun = tunnel::begin(&mut client, &mut server, &self.guard, (&host, port)).await;
        match begun {
            Ok((head, Way::Through)) => tunnel::pass(rewind(head, client), server).await,
            Ok((head, Way::Requests)) => {
                // Each opens its own, to whom it is for.
                drop(server);
                self.requests(rewind(head, client), port).await;
            }
            Err(refused) => self.tell.tell(&refused.line()).await,
        }
    }
}

/// Answers the requests of one connection.
struct Handler {
    proxy: Proxy,
    /// The port of the connection that the requests are in, if they are in one that was opened by `CONNECT`.
    within: Option<u16>,
}

impl Handle for Handler {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let is_connect = request.method() == Method::CONNECT;
        let answered = match (is_connect, self.within) {
            (true, None) => self.connect(request).await,
            (true, Some(_)) => Err(Not::Asked(NESTED)),
            (false, _) => self.forward(request).await,
        };
        match answered {
            Ok(answer) => answer,
            Err(not) => {
                if let Not::Reached(refused) = &not {
                    self.proxy.tell.tell(&refused.line()).await;
                }
                not.answer()
            }
        }
    }
}

impl Handler {
    async fn connect(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Not> {
        let authority = request.uri().authority().ok_or(Not::Asked(NO_PORT))?;
        let port = authority.port_u16().filter(|port| *port > 0);
        let port = port.ok_or(Not::Asked(NO_PORT))?;
        let host = host_of(authority)?;
        let name = host.name().filter(|name| MeshName::is_meant(name));
        let tasks = self.proxy.tasks.clone();
        let run = |tunnel| tasks.spawn("egress tunnel", Importance::Detached, tunnel);
        if let Some(name) = name {
            let (stream, place) = self.proxy.neighbor(name, port).await?;
            let client = hyper::upgrade::on(&mut request);
            run(Box::pin(async move {
                if let Ok(client) = client.await {
                    tunnel::pass(TokioIo::new(client), stream).await;
                }
                drop(place);
            }) as BoxFuture<'static, ()>);
        } else {
            let server = self.proxy.guard.connect(&host, port).await?;
            let client = hyper::upgrade::on(&mut request);
            let proxy = self.proxy.clone();
            run(Box::pin(async move {
                if let Ok(client) = client.await {
                    proxy
                        .through(TokioIo::new(client), server, host, port)
                        .await;
                }
            }));
        }
        Ok(Response::new(whole(String::new())))
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Not> {
        let (host, port) = self.target(&request)?;
        let authority = match port {
            HTTP_PORT => host.to_string(),
            port => format!("{host}:{port}"),
        };
        let tasks = &self.proxy.tasks;
        if let Some(name) = host.name().filter(|name| MeshName::is_meant(name)) {
            let (stream, place) = self.proxy.neighbor(name, port).await?;
            self.proxy.inside.mark(request.headers_mut());
            let stream = Box::new(Placed {
                stream,
                _place: place,
            });
            return forward(request, &authority, stream, tasks).await;
        }
        let server = self.proxy.guard.connect(&host, port).await?;
        forward(request, &authority, Box::new(server), tasks).await
    }

    /// Whom a request is for.
    fn target(&self, request: &Request<Incoming>) -> Result<(Host, u16), Not> {
        let uri = request.uri();
        if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
            return Err(Not::Asked(NOT_TLS));
        }
        if let Some(authority) = uri.authority() {
            let port = authority.port_u16().unwrap_or(HTTP_PORT);
            // Within a connection, its port is the only one.
            return Ok((host_of(authority)?, self.within.unwrap_or(port)));
        }
        let port = self.within.ok_or(Not::Asked(NOT_HERE))?;
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Not::Asked(NO_HOST));
        };
        let authority = Authority::try_from(host.as_bytes()).map_err(|_| Not::Asked(NO_HOST))?;
        Ok((host_of(&authority)?, port))
    }
}

/// The host of an authority, which is all that may stand before the port.
fn host_of(authority: &Authority) -> Result<Host, Not> {
    if authority.as_str().contains('@') {
        return Err(Not::Asked("a name and password in a URL are not passed on"));
    }
    authority
        .host()
        .parse::<Host>()
        .map_err(|error| Not::Reached(error.into()))
}

/// A connection to another app; it counts as one until it is dropped.
struct Placed {
    stream: Box<dyn Stream>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
