//! Other apps, by name: where a guest's requests to `http://<app>.<tenant>.internal/…` go. Over the
//! runner's own mesh, which proves who calls and keeps out who may not, so that the app's code holds no
//! secret for it. Both bodies stream.
//!
//! A request costs a connection of its own: the session underneath is kept, so that it costs one round
//! trip of the mesh.

use std::fmt;
use std::net::SocketAddrV6;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_api::apps::PLATFORM_HEADER_PREFIX;
use tabbify_api::names::{MeshName, NameAsk, NameError, Names, NoNames};
use tabbify_mesh::{DialError, Mesh, Stream};
use tabbify_types::{APP_PORT, AppId, AppUla};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::body::Watched;
use super::meter::Meter;
use crate::server::CALLER_HEADER;

/// LIMIT: requests to other apps at a time, of all guests of this runner.
const REQUESTS_MAX: usize = 256;
/// LIMIT: how long a connection may take, the name included; an app may ask for less.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long the head of an answer may take; an app may ask for less.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// LIMIT: how long an answer may pause; an app may ask for less.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// LIMIT: bytes of an answer's head, and of a connection's buffer.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// LIMIT: headers of an answer.
const HEADERS_MAX: usize = 128;

/// The ways to other apps. Clones share their limits.
#[derive(Clone)]
pub struct Neighbors {
    names: Arc<dyn Names>,
    mesh: Option<Mesh>,
    own: AppId,
    places: Arc<Semaphore>,
}

impl Neighbors {
    /// Those of `own`, by `names`, over its `mesh`.
    #[must_use]
    pub fn new(own: AppId, names: Arc<dyn Names>, mesh: Mesh) -> Self {
        Self {
            names,
            mesh: Some(mesh),
            own,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
        }
    }

    /// No way to anybody.
    #[must_use]
    pub fn none(own: AppId) -> Self {
        Self {
            names: Arc::new(NoNames),
            mesh: None,
            own,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
        }
    }
}

impl fmt::Debug for Neighbors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbors")
            .field("own", &self.own)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Why a request did not get to another app: for the guest, and for the app's log.
#[derive(Debug)]
pub(super) struct NotSent {
    pub(super) code: Error,
    pub(super) why: String,
}

impl NotSent {
    fn new(code: Error, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { code, why }
    }
}

/// What `send_request` of wasi:http gives: the answer, and what moves the rest of its body.
pub(super) type Answered = (
    Response<WasiBody>,
    Box<dyn Future<Output = Result<(), Error>> + Send>,
);

/// Whether a request is for another app, well named or not.
pub(super) fn is_meant(uri: &Uri) -> bool {
    uri.host().is_some_and(MeshName::is_meant)
}

impl Neighbors {
    /// Sends `request`, whose host [`is_meant`], and gives the head of the answer.
    pub(super) async fn send(
        &self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        meter: Arc<Meter>,
    ) -> Result<Answered, NotSent> {
        let options = options.unwrap_or_default();
        let limit = |asked: Option<Duration>, max: Duration| asked.map_or(max, |it| it.min(max));
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| {
            let why = format!("more than {REQUESTS_MAX} requests to other apps at a time");
            NotSent::new(Error::ConnectionLimitReached, why)
        })?;
        let name = name_of(&request)?;
        let within = limit(options.connect_timeout, CONNECT_WITHIN);
        let connected = tokio::time::timeout(within, self.connect(&name)).await;
        let stream = connected.map_err(|_| {
            let why = format!("no connection within {within:?}");
            NotSent::new(Error::ConnectionTimeout, why)
        })??;
        let mut builder = Builder::new();
        builder.max_buf_size(HEAD_LEN_MAX).max_headers(HEADERS_MAX);
        let shaken = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| broke(&name, error))?;

        let request = self.onward(request, &meter)?;
        let within = limit(options.first_byte_timeout, ANSWER_WITHIN);
        let answering = answer(sender, connection, request);
        let answered = tokio::time::timeout(within, answering).await;
        let (answer, rest) = answered
            .map_err(|_| {
                let why = format!("no answer within {within:?}");
                NotSent::new(Error::HttpResponseTimeout, why)
            })?
            .map_err(|error| broke(&name, error))?;
        let pause = limit(options.between_bytes_timeout, PAUSE_MAX);
        let body = |body| FromNeighbor {
            body,
            meter,
            pause,
            paused: Box::pin(tokio::time::sleep(pause)),
            _place: place,
        };
        Ok((answer.map(|it| body(it).boxed_unsync()), rest))
    }

    async fn connect(&self, name: &MeshName) -> Result<Stream, NotSent> {
        let nobody = || {
            let why = "there is no such app, or it may not be reached from here";
            NotSent::new(Error::DestinationNotFound, why)
        };
        let found = self.names.find(NameAsk::Name(name.clone())).await;
        let named = found.map_err(|error| match error {
            NameError::Unknown(_) => nobody(),
            NameError::Unreachable(why) => NotSent::new(Error::DnsTimeout, why),
        })?;
        // A machine is none of an app's business, even one that serves it its artifacts.
        let address = AppUla::try_from(named.address).map_err(|_| nobody())?;
        if address == AppUla::derive(self.own) {
            let why = "an app that calls itself would wait for itself";
            return Err(NotSent::new(Error::LoopDetected, why));
        }
        let Some(mesh) = &self.mesh else {
            return Err(NotSent::new(
                Error::DestinationUnavailable,
                "this runner has no mesh",
            ));
        };
        let dialed = mesh.dial(SocketAddrV6::new(address.addr(), APP_PORT, 0, 0));
        dialed.await.map_err(|error| {
            let code = match &error {
                DialError::NoLease(_) | DialError::Unreachable(_) | DialError::Resolve { .. } => {
                    Error::DestinationUnavailable
                }
                DialError::Refused(_) | DialError::Forbidden(_) => Error::ConnectionRefused,
                DialError::TimedOut(_) => Error::ConnectionTimeout,
                DialError::Busy { .. } => Error::ConnectionLimitReached,
                DialError::Closed => Error::ConnectionTerminated,
            };
            NotSent::new(code, tabbify_process::chain(&error).to_string())
        })
    }

    /// The request as the other app gets it: who calls is ours to say, and what else is ours is not the
    /// guest's to send.
    fn onward(
        &self,
        request: Request<WasiBody>,
        meter: &Arc<Meter>,
    ) -> Result<Request<Outgoing>, NotSent> {
        let (mut parts, body) = request.into_parts();
        let bad = |why: String| NotSent::new(Error::HttpRequestUriInvalid, why);
        let path = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        remove_ours(&mut parts.headers);
        let own = HeaderValue::try_from(self.own.to_string());
        let own = own.map_err(|error| bad(error.to_string()))?;
        parts.headers.insert(CALLER_HEADER, own);
        let meter = Arc::clone(meter);
        Ok(Request::from_parts(parts, Watched { body, meter }))
    }
}

/// The app that a request is for.
fn name_of(request: &Request<WasiBody>) -> Result<MeshName, NotSent> {
    let uri = request.uri();
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        let why = format!("{} is not for apps", request.method());
        return Err(NotSent::new(Error::HttpRequestMethodInvalid, why));
    }
    if uri.scheme() != Some(&Scheme::HTTP) {
        let why = "inside the mesh it is http://, which the mesh encrypts";
        return Err(NotSent::new(Error::TlsProtocolError, why));
    }
    if !matches!(uri.port_u16(), None | Some(80 | APP_PORT)) {
        let why = "apps answer at port 80 alone";
        return Err(NotSent::new(Error::ConnectionRefused, why));
    }
    let named = uri.host().unwrap_or_default().parse::<MeshName>();
    named.map_err(|error| NotSent::new(Error::DestinationNotFound, error.to_string()))
}

/// Nothing under the platform's prefix is the guest's to send, whichever way it is written: many programs
/// take `_` for `-`.
fn remove_ours(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| {
        name.as_str()
            .replace('_', "-")
            .starts_with(PLATFORM_HEADER_PREFIX)
    };
    let names: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn broke(name: &MeshName, error: hyper::Error) -> NotSent {
    let why = format!("{name} broke off: {error}");
    NotSent::new(Error::Hyper(error), why)
}

/// A guest's body on its way to another app.
type Outgoing = Watched<WasiBody>;
type Moves = Connection<TokioIo<Stream>, Outgoing>;
type Rest = Box<dyn Future<Output = Result<(), Error>> + Send>;

/// The head of the answer, and what moves the rest.
async fn answer(
    mut sender: SendRequest<Outgoing>,
    connection: Moves,
    request: Request<Outgoing>,
) -> Result<(Response<Incoming>, Rest), hyper::Error> {
    let mut connection = Box::pin(connection);
    let mut sending = Box::pin(sender.send_request(request));
    let mut ended = false;
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut sending => break answer?,
            done = &mut connection, if !ended => {
                done?;
                // The answer may have been its last word.
                ended = true;
            }
        }
    };
    drop(sending);
    let rest = async move {
        if ended {
            return Ok(());
        }
        // The sender lives as long as the exchange: without it hyper would take no more of the body.
        let _sender = sender;
        connection.await.map_err(Error::Hyper)
    };
    Ok((answer, Box::new(rest)))
}

/// Another app's answer on its way to the guest.
struct FromNeighbor {
    body: Incoming,
    meter: Arc<Meter>,
    pause: Duration,
    paused: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for FromNeighbor {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            ready!(self.paused.as_mut().poll(cx));
            return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
        };
        self.meter.progress();
        let until = Instant::now() + self.pause;
        self.paused.as_mut().reset(until);
        Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;

    fn request(method: Method, uri: &str) -> Request<WasiBody> {
        let empty = Empty::new().map_err(|never| match never {});
        let request = Request::builder().method(method).uri(uri);
        request.body(empty.boxed_unsync()).unwrap()
    }

    #[test]
    fn who_is_meant() {
        let meant = |uri: &str| is_meant(&uri.parse().unwrap());
        assert!(meant("http://shop.main.internal/x") && meant("http://x.INTERNAL:81/"));
        assert!(!meant("http://example.com/shop.main.internal") && !meant("/x"));
        let name = |method, uri: &str| name_of(&request(method, uri));
        for uri in [
            "http://shop.main.internal",
            "http://Shop.main.internal:80/a?b",
            "http://shop.main.internal.:8730/",
        ] {
            assert_eq!(
                name(Method::GET, uri).unwrap().to_string(),
                "shop.main.internal"
            );
        }
        let refused = |method, uri: &str| format!("{:?}", name(method, uri).unwrap_err().code);
        let there = "http://shop.main.internal/";
        assert_eq!(refused(Method::CONNECT, there), "HttpRequestMethodInvalid");
        assert_eq!(
            refused(Method::GET, "https://shop.main.internal/"),
            "TlsProtocolError"
        );
        assert_eq!(
            refused(Method::GET, "http://shop.main.internal:22/"),
            "ConnectionRefused"
        );
        assert_eq!(
            refused(Method::GET, "http://a.b.main.internal/"),
            "DestinationNotFound"
        );
    }

    #[test]
    fn what_is_ours_is_not_sent() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-tabbify-user",
            "X_Tabbify_User",
            "x-tabbify-app",
            "x-mine",
            "cookie",
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_static("1"));
        }
        remove_ours(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "x-mine"]);
    }
}
