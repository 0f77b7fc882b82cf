//! Connections to the service: how they come to be, and how they are kept between requests.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tabbify_api::read::{PAGE_LEN_MAX, QueryError, WAIT_MS_MAX};
use tabbify_process::connect::{Bearer, Connect};
use tabbify_process::{Importance, Tasks, chain};

use super::broken;

/// LIMIT: connections that are kept without a request.
const IDLE_MAX: usize = 16;
/// LIMIT: how long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long a whole answer may take, beyond the longest wait that it may be asked for.
const ANSWER_WITHIN: Duration = Duration::from_millis(WAIT_MS_MAX + 30_000);
/// LIMIT: bytes of one answer: those of a page, six times that if every character is escaped, and what
/// is around them.
const ANSWER_LEN_MAX: usize = 8 * PAGE_LEN_MAX;

type Sender = SendRequest<Empty<Bytes>>;
type Error = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Connections {
    connect: Arc<dyn Connect>,
    bearer: Bearer,
    tasks: Tasks,
    idle: Mutex<Vec<Sender>>,
}

impl Connections {
    pub(super) fn new(connect: Arc<dyn Connect>, bearer: Bearer, tasks: Tasks) -> Self {
        Self {
            connect,
            bearer,
            tasks,
            idle: Mutex::default(),
        }
    }

    /// The whole answer to a `GET`. A kept connection may have been closed meanwhile: then it is asked
    /// again on another.
    pub(super) async fn get(&self, path: &str) -> Result<(Parts, Bytes), QueryError> {
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.get_patiently(path)).await;
        answered.map_err(|late| broken("the read node does not answer", &late))?
    }

    async fn get_patiently(&self, path: &str) -> Result<(Parts, Bytes), QueryError> {
        while let Some(sender) = self.kept() {
            match self.send(sender, path).await? {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is::<LengthLimitError>() => {
                    return Err(broken("an answer is too long", &error));
                }
                Err(error) => {
                    tracing::debug!(error = %chain(&*error), "a kept connection has ended");
                }
            }
        }
        let sender = self.new_connection().await?;
        let sent = self.send(sender, path).await?;
        sent.map_err(|error| broken("a request broke off", &chain(&*error)))
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    /// A connection that ended is the inner error: the request may be sent on another.
    async fn send(
        &self,
        mut sender: Sender,
        path: &str,
    ) -> Result<Result<(Parts, Bytes), Error>, QueryError> {
        let request = self.request(path)?;
        let received = async {
            sender.ready().await?;
            let (parts, body) = sender.send_request(request).await?.into_parts();
            let bytes = Limited::new(body, ANSWER_LEN_MAX).collect().await?;
            Ok::<_, Error>((parts, bytes.to_bytes()))
        };
        let received = received.await;
        if received.is_ok() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX && !sender.is_closed() {
                idle.push(sender);
            }
        }
        Ok(received)
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, QueryError> {
        let bearer = HeaderValue::try_from(format!("Bearer {}", (self.bearer)()));
        let mut bearer = bearer.map_err(|error| broken("the token is no token", &error))?;
        bearer.set_sensitive(true);
        let request = Request::get(path)
            .header(header::HOST, "read")
            .header(header::AUTHORIZATION, bearer)
            .body(Empty::new());
        request.map_err(|error| broken("the request is malformed", &error))
    }

    async fn new_connection(&self) -> Result<Sender, QueryError> {
        let connected = tokio::time::timeout(CONNECT_WITHIN, self.connect.connect()).await;
        let connected = connected.map_err(|late| broken("the read node does not answer", &late))?;
        let stream =
            connected.map_err(|error| broken("the read node cannot be reached", &error))?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            shaken.map_err(|error| broken("the read node cannot be reached", &chain(&error)))?;
        self.tasks
            .spawn("read client", Importance::Detached, async move {
                if let Err(error) = connection.await {
                    tracing::debug!(error = %chain(&error), "connection to the read node ended early");
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
