//! Connections to the service: how they come to be, and how they are kept between requests.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tabbify_process::connect::{Bearer, Connect};
use tabbify_process::{Importance, Tasks, chain};

use super::{Failed, broken, succeeded};

/// LIMIT: connections that are kept without a request.
const IDLE_MAX: usize = 16;
/// LIMIT: how long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long the head of an answer may take: a poll waits for half of it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What this client understands: frames wherever the service has them.
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("application/vnd.tabbify.log-stream, application/json");

/// Whether a request with a body may be sent twice, when its answer was lost with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Twice is once.
    Harmless,
    /// The caller decides.
    Never,
}

type Sender = SendRequest<Full<Bytes>>;

pub(super) struct Connections {
    connect: Arc<dyn Connect>,
    bearer: Bearer,
    tasks: Tasks,
    idle: Arc<Mutex<Vec<Sender>>>,
}

/// A connection with an answer under way. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Used {
    sender: Sender,
    idle: Arc<Mutex<Vec<Sender>>>,
}

impl Used {
    /// Its answer has been read to the end: the next request may have it.
    pub(super) fn keep(self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !self.sender.is_closed() {
            idle.push(self.sender);
        }
    }
}

/// The head of an answer, and its body to come.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response<Incoming>,
    connection: Used,
}

impl Answer {
    pub(super) fn into_parts(self) -> (http::response::Parts, Incoming, Used) {
        let (parts, body) = self.response.into_parts();
        (parts, body, self.connection)
    }

    pub(super) fn is_success(&self) -> bool {
        self.response.status().is_success()
    }
}

impl Connections {
    pub(super) fn new(connect: Arc<dyn Connect>, bearer: Bearer, tasks: Tasks) -> Self {
        Self {
            connect,
            bearer,
            tasks,
            idle: Arc::default(),
        }
    }

    /// Sends a request and gives the head of its answer. A kept connection may have been closed
    /// meanwhile: if that loses the request, it is sent again on a new one, where that is harmless.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(Vec<u8>, Again)>,
    ) -> Result<Answer, Failed> {
        let (body, again) = match body {
            Some((body, again)) => (Bytes::from(body), again),
            None => (Bytes::new(), Again::Harmless),
        };
        let again = if method == Method::GET {
            Again::Harmless
        } else {
            again
        };
        while let Some(mut sender) = self.kept() {
            if sender.ready().await.is_err() {
                continue;
            }
            let request = self.head(&method, path, body.clone())?;
            match self.send(sender, request).await {
                Ok(answer) => return answer,
                Err(error) if error.is_canceled() || again == Again::Harmless => {
                    tracing::debug!(error = %chain(&error), "a kept connection has ended");
                }
                Err(error) => return Err(broken("a request broke off", &chain(&error))),
            }
        }
        let sender = self.new_connection().await?;
        let request = self.head(&method, path, body)?;
        let sent = self.send(sender, request).await;
        sent.map_err(|error| broken("a request broke off", &chain(&error)))?
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    /// A connection that ended is the outer error: the request may be sent on another.
    async fn send(
        &self,
        mut sender: Sender,
        request: Request<Full<Bytes>>,
    ) -> Result<Result<Answer, Failed>, hyper::Error> {
        let response = tokio::time::timeout(ANSWER_WITHIN, sender.send_request(request)).await;
        let response = match response {
            Ok(response) => response?,
            Err(late) => return Ok(Err(broken("the log does not answer", &late))),
        };
        let idle = Arc::clone(&self.idle);
        let connection = Used { sender, idle };
        Ok(Ok(Answer {
            response,
            connection,
        }))
    }

    fn head(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failed> {
        let bearer = HeaderValue::try_from(format!("Bearer {}", (self.bearer)()));
        let mut bearer = bearer.map_err(|error| broken("the token is no token", &error))?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "log")
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, ACCEPTED)
            .body(Full::new(body));
        request.map_err(|error| broken("the request is malformed", &error))
    }

    /// A connection of its own that speaks `protocol` from here on, if the service grants it.
    pub(super) async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<Upgraded, Failed> {
        let sender = self.new_connection().await?;
        let mut request = self.head(&Method::GET, path, Bytes::new())?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
        let sent = self.send(sender, request).await;
        let answer = sent.map_err(|error| broken("a request broke off", &chain(&error)))??;
        if answer.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let refused = succeeded(Ok(answer)).await.err();
            return Err(refused.unwrap_or(Failed::Broken));
        }
        let upgraded = hyper::upgrade::on(answer.response).await;
        upgraded.map_err(|error| broken("an upgrade broke off", &chain(&error)))
    }

    async fn new_connection(&self) -> Result<Sender, Failed> {
        let connected = tokio::time::timeout(CONNECT_WITHIN, self.connect.connect()).await;
        let connected = connected.map_err(|late| broken("the log does not answer", &late))?;
        let stream = connected.map_err(|error| broken("the log cannot be reached", &error))?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            shaken.map_err(|error| broken("the log cannot be reached", &chain(&error)))?;
        self.tasks
            .spawn("log client", Importance::Detached, async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(error = %chain(&error), "connection to the log ended early");
                }
            });
        Ok(sender)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("connect", &self.connect)
            .finish_non_exhaustive()
    }
}
