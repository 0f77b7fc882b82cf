//! One request of a guest on a connection of its own, and its answer: both bodies stream.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_process::connect::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::body::Watched;
use super::meter::Meter;

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

/// Why a request did not get there: for the guest, and for the app's log.
#[derive(Debug)]
pub(super) struct NotSent {
    pub(super) code: Error,
    pub(super) why: String,
}

impl NotSent {
    pub(super) fn new(code: Error, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { code, why }
    }
}

/// What `send_request` of wasi:http gives: the answer, and what moves the rest of its body.
pub(super) type Answered = (
    Response<WasiBody>,
    Box<dyn Future<Output = Result<(), Error>> + Send>,
);

/// How long the parts of an exchange may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) connect: Duration,
    answer: Duration,
    pause: Duration,
}

impl Patience {
    /// What the guest asks for, within what it may have.
    pub(super) fn of(options: Option<RequestOptions>) -> Self {
        let options = options.unwrap_or_default();
        let limit = |asked: Option<Duration>, max: Duration| asked.map_or(max, |it| it.min(max));
        Self {
            connect: limit(options.connect_timeout, CONNECT_WITHIN),
            answer: limit(options.first_byte_timeout, ANSWER_WITHIN),
            pause: limit(options.between_bytes_timeout, PAUSE_MAX),
        }
    }

    /// Waits for a connection.
    pub(super) async fn connect<T>(
        self,
        connecting: impl Future<Output = Result<T, NotSent>>,
    ) -> Result<T, NotSent> {
        let within = self.connect;
        let connected = tokio::time::timeout(within, connecting).await;
        connected.map_err(|_| {
            let why = format!("no connection within {within:?}");
            NotSent::new(Error::ConnectionTimeout, why)
        })?
    }
}

/// What an exchange needs besides its request.
pub(super) struct Exchange {
    pub(super) stream: Box<dyn Stream>,
    pub(super) patience: Patience,
    pub(super) meter: Arc<Meter>,
    /// Held until the answer has been read.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Exchange {
    /// Sends a request to whoever is called `name`, and gives the head of the answer.
    pub(super) async fn send(
        self,
        request: Request<WasiBody>,
        name: &impl fmt::Display,
    ) -> Result<Answered, NotSent> {
        let Self {
            stream,
            patience,
            meter,
            place,
        } = self;
        let mut builder = Builder::new();
        builder.max_buf_size(HEAD_LEN_MAX).max_headers(HEADERS_MAX);
        let shaken = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| broke(name, error))?;
        let watched = Arc::clone(&meter);
        let request = request.map(|body| Watched {
            body,
            meter: watched,
        });
        let within = patience.answer;
        let answering = answer(sender, connection, request);
        let answered = tokio::time::timeout(within, answering).await;
        let (answer, rest) = answered
            .map_err(|_| {
                let why = format!("no answer within {within:?}");
                NotSent::new(Error::HttpResponseTimeout, why)
            })?
            .map_err(|error| broke(name, error))?;
        let pause = patience.pause;
        let body = |body| FromServer {
            body,
            meter,
            pause,
            paused: Box::pin(tokio::time::sleep(pause)),
            _place: place,
        };
        Ok((answer.map(|it| body(it).boxed_unsync()), rest))
    }
}

fn broke(name: &impl fmt::Display, error: hyper::Error) -> NotSent {
    let why = format!("{name} broke off: {error}");
    NotSent::new(Error::Hyper(error), why)
}

/// A guest's body on its way.
type Outgoing = Watched<WasiBody>;
type Moves = Connection<TokioIo<Box<dyn Stream>>, Outgoing>;
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

/// An answer on its way to the guest.
struct FromServer {
    body: Incoming,
    meter: Arc<Meter>,
    pause: Duration,
    paused: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl HttpBody for FromServer {
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
