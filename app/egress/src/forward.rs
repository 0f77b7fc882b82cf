//! One request, to the server that it was checked for, on a connection of its own; both bodies stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_http::{tokens, wanted_upgrade};
use tabbify_process::connect::Stream;
use tabbify_process::{Importance, Tasks};
use tokio::time::timeout;

use crate::answer::{Body, Not};
use crate::tunnel;

/// LIMIT: how long the head of an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// LIMIT: bytes of an answer's head.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// LIMIT: headers of an answer.
const HEADERS_MAX: usize = 128;
/// Headers that are for us, or for one connection (RFC 9110, section 7.6.1). What a body's end is, both sides of
/// us see to themselves.
const NOT_ONWARD: [&str; 9] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Sends `request` to `authority` over `stream`, and gives its answer.
pub(crate) async fn forward(
    mut request: Request<Incoming>,
    authority: &str,
    stream: Box<dyn Stream>,
    tasks: &Tasks,
) -> Result<Response<Body>, Not> {
    let caller =
        wanted(request.headers()).map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
    let protocol = caller.as_ref().map(|(protocol, _)| protocol.clone());
    prepare(&mut request, authority, protocol)?;
    let broke = |error: hyper::Error| Not::Answered(format!("{authority} broke off: {error}"));
    let mut builder = Builder::new();
    builder.max_buf_size(HEAD_LEN_MAX).max_headers(HEADERS_MAX);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broke)?;
    tasks.spawn("egress connection", Importance::Detached, async {
        if let Err(error) = connection.with_upgrades().await {
            // Whoever reads the answer is told.
            tracing::debug!(%error, "a connection for a request ended early");
        }
    });
    let answered = timeout(ANSWER_WITHIN, sender.send_request(request)).await;
    let mut answer = answered.map_err(|_| Not::Late)?.map_err(broke)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((_, caller)) = caller else {
            return Err(Not::Answered(format!(
                "{authority} speaks another protocol, unasked"
            )));
        };
        let server = hyper::upgrade::on(&mut answer);
        tasks.spawn("egress tunnel", Importance::Detached, async move {
            if let (Ok(caller), Ok(server)) = tokio::join!(caller, server) {
                tunnel::pass(TokioIo::new(caller), TokioIo::new(server)).await;
            }
        });
        return Ok(answer.map(|body| body.boxed_unsync()));
    }
    remove_own(answer.headers_mut());
    let held = |body| Held {
        body,
        _sender: sender,
    };
    Ok(answer.map(|body| held(body).boxed_unsync()))
}

/// The protocol that a request asks for besides HTTP. None that has names of servers of its own: within HTTP/2 or
/// TLS, a server would be asked for others than the one that was checked.
fn wanted(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = wanted_upgrade(headers)?;
    let names = protocol.to_str().ok()?.to_ascii_lowercase();
    let chooses = |name: &str| name.starts_with("tls") || name.starts_with("http");
    let passes = !names.split(',').map(str::trim).any(chooses);
    passes.then_some(protocol)
}

fn prepare(
    request: &mut Request<Incoming>,
    authority: &str,
    protocol: Option<HeaderValue>,
) -> Result<(), Not> {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_own(headers);
    // INVARIANT: the server reads the name that was checked, whatever the program wrote beside it.
    let host = HeaderValue::try_from(authority).map_err(|_| Not::Asked("its host is no header"))?;
    headers.insert(HOST, host);
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    Ok(())
}

fn remove_own(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|name| name.parse().ok())
        // Who is meant, and what a body's length is, are no connection's own.
        .filter(|name| *name != HOST && *name != http::header::CONTENT_LENGTH)
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in NOT_ONWARD {
        headers.remove(name);
    }
}

/// An answer's body; the connection lives as long as it: without its sender, no more of the request is sent.
struct Held {
    body: Incoming,
    _sender: SendRequest<Incoming>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
