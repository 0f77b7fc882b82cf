//! The way to an app that listens at an address: HTTP/1.1 to a container or a virtual machine.
//!
//! ```text
//! request ─▶ serve ─▶ connection (kept, or new) ─▶ the app
//! response ◀── FromApp ([`body`]): gives the connection back at the answer's end, closes it before that
//! ```
//! Both bodies stream as the app takes and gives them. A connection that becomes another protocol's
//! (WebSocket) is passed through until either side ends it ([`switch`]).

mod body;
mod switch;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRAILER, UPGRADE};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_api::ErrorCode;
use tabbify_http::tokens;
use tabbify_process::{Importance, Tasks, chain};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use self::body::FromApp;
use crate::runtime::{Body, RequestError};
use crate::traffic::Permit;

/// LIMIT: connections that are kept without a request.
const IDLE_MAX: usize = 64;
/// LIMIT: how long one is kept: less than the shortest time after which servers commonly close theirs (5 s),
/// so that few requests meet a connection that is just being closed.
const IDLE_FOR: Duration = Duration::from_secs(3);
/// LIMIT: how long an app of this machine may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long the head of an answer may take. Whoever waits at the other end gives up before.
const ANSWER_WITHIN: Duration = Duration::from_secs(3600);
/// LIMIT: bytes of an answer's head, and of a connection's buffer.
const BUFFER_LEN_MAX: usize = 64 * 1024;
/// Headers of one connection (RFC 9110, section 7.6.1), which says of each that it goes no further. What a
/// body's end is, both sides of us see to themselves.
const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

type Sender = SendRequest<Body>;

/// Connections that wait for a request, the freshest last.
#[derive(Clone, Default)]
struct Idle(Arc<Mutex<Vec<(Instant, Sender)>>>);

impl Idle {
    fn take(&self) -> Option<Sender> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, sender)| since.elapsed() < IDLE_FOR && !sender.is_closed());
        idle.pop().map(|(_, sender)| sender)
    }

    fn keep(&self, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, sender)| since.elapsed() < IDLE_FOR && !sender.is_closed());
        if idle.len() < IDLE_MAX {
            idle.push((Instant::now(), sender));
        }
    }
}

/// An app that listens. Clones share its connections.
#[derive(Clone)]
pub struct Upstream {
    address: SocketAddr,
    idle: Idle,
    tasks: Tasks,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Why a request has no answer.
enum Lost {
    /// Nothing of it has left us.
    Unsent(Box<Request<Body>>),
    /// The connection ended before the answer did.
    Broken(hyper::Error),
    /// The app takes too long.
    Late,
}

impl Upstream {
    /// The app at `address`. Its connections are tasks of `tasks`.
    #[must_use]
    pub fn new(address: SocketAddr, tasks: &Tasks) -> Self {
        Self {
            address,
            idle: Idle::default(),
            tasks: tasks.clone(),
        }
    }

    /// Answers a request, as [`Runtime::serve`](crate::runtime::Runtime::serve) must.
    ///
    /// # Errors
    /// The app does not answer.
    pub async fn serve(
        &self,
        mut request: Request<Body>,
        permit: Permit,
    ) -> Result<Response<Body>, RequestError> {
        let caller = switch::wanted(&mut request);
        let protocol = caller.as_ref().map(|(protocol, _)| protocol.clone());
        prepare(&mut request, self.address, protocol);
        let no_body = request.method() == Method::HEAD;
        let (response, sender) = self.send(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some((_, caller)) = caller else {
                return Err(unanswered("The app speaks another protocol, unasked."));
            };
            return Ok(switch::through(response, caller, permit, &self.tasks));
        }
        let (mut head, body) = response.into_parts();
        remove_hop_by_hop(&mut head.headers);
        head.version = Version::HTTP_11;
        let idle = self.idle.clone();
        let body = FromApp::new(body, no_body, sender, idle, permit);
        Ok(Response::from_parts(head, body.boxed_unsync()))
    }

    /// Sends a request on a kept connection, or on a new one where that has ended: it is sent twice only
    /// if nothing of it has left us, or if twice is once (RFC 9110, section 9.2.2) and it has no body.
    async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Sender), RequestError> {
        let mut request = request;
        while let Some(mut sender) = self.idle.take() {
            if sender.ready().await.is_err() {
                continue;
            }
            let again = again(&request);
            match exchange(sender, request).await {
                Ok(answered) => return Ok(answered),
                Err(Lost::Unsent(unsent)) => request = *unsent,
                Err(Lost::Broken(error)) => match again {
                    Some(again) if !error.is_timeout() => request = again,
                    _ => return Err(broken(&error)),
                },
                Err(Lost::Late) => return Err(late()),
            }
        }
        match exchange(self.connect().await?, request).await {
            Ok(answered) => Ok(answered),
            Err(Lost::Unsent(_)) => Err(unanswered("The app closed the connection.")),
            Err(Lost::Broken(error)) => Err(broken(&error)),
            Err(Lost::Late) => Err(late()),
        }
    }

    async fn connect(&self) -> Result<Sender, RequestError> {
        let connected = timeout(CONNECT_WITHIN, TcpStream::connect(self.address)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, address = %self.address, "the app cannot be reached");
                return Err(unanswered("The app does not take connections."));
            }
            Err(_) => return Err(late()),
        };
        // Chunks are small and answers are awaited; where it cannot be had, they are slower.
        let _ = stream.set_nodelay(true);
        let shaken = http1::Builder::new()
            .max_buf_size(BUFFER_LEN_MAX)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = shaken.await.map_err(|error| broken(&error))?;
        self.tasks
            .spawn("app connection", Importance::Detached, async {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(error = %chain(&error), "the app's connection ended early");
                }
            });
        Ok(sender)
    }
}

/// Answers a request as the app does; one without an upstream is a worker, which answers none.
///
/// # Errors
/// The app does not answer.
pub async fn serve(
    upstream: Option<&Upstream>,
    request: Request<Body>,
    permit: Permit,
) -> Result<Response<Body>, RequestError> {
    match upstream {
        Some(upstream) => upstream.serve(request, permit).await,
        None => Err(unanswered(
            "The app is a worker, which answers no requests.",
        )),
    }
}

async fn exchange(
    mut sender: Sender,
    request: Request<Body>,
) -> Result<(Response<Incoming>, Sender), Lost> {
    match timeout(ANSWER_WITHIN, sender.try_send_request(request)).await {
        Ok(Ok(response)) => Ok((response, sender)),
        Ok(Err(mut lost)) => Err(match lost.take_message() {
            Some(request) => Lost::Unsent(Box::new(request)),
            None => Lost::Broken(lost.into_error()),
        }),
        Err(_) => Err(Lost::Late),
    }
}

/// A copy of a request, where sending it twice does what sending it once does.
fn again(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let empty = Empty::<Bytes>::new().map_err(|never| match never {});
    let mut copy = Request::new(empty.boxed_unsync());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Makes a caller's request one to the app: of its own connection, with a path and a `Host`.
fn prepare(request: &mut Request<Body>, address: SocketAddr, protocol: Option<HeaderValue>) {
    let path = request.uri().path_and_query();
    let path = path.map_or("/", |path| path.as_str());
    // `*` and paths are all that a caller's parser lets through.
    let path = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    *request.uri_mut() = path;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    // Whoever sends a body has been told to go on by us.
    headers.remove(http::header::EXPECT);
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::try_from(address.to_string())
    {
        headers.insert(HOST, host);
    }
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Removes what is of one connection: the known headers, and those that `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|name| name.parse().ok())
        // Announced trailers pass: they end the body that passes.
        .filter(|name| *name != TRAILER && *name != HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn unanswered(detail: &str) -> RequestError {
    RequestError::new(ErrorCode::AppNoResponse, detail)
}

fn broken(error: &hyper::Error) -> RequestError {
    tracing::debug!(error = %chain(error), "the app did not answer");
    if error.is_parse() {
        return unanswered("The app did not answer in HTTP.");
    }
    unanswered("The app ended the connection without an answer.")
}

fn late() -> RequestError {
    RequestError::new(ErrorCode::AppTimeout, "The app did not answer in time.")
}
