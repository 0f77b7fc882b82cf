//! A client's connections to one service: how they come to be, and how they are kept between requests.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tabbify_process::connect::Connect;
use tabbify_process::{Importance, Tasks, chain};

/// LIMIT: connections that are kept without a request.
const IDLE_MAX: usize = 16;
/// LIMIT: how long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Whether a request may be sent twice, when its answer was lost with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Twice is once.
    Harmless,
    /// The caller decides.
    Never,
}

/// Why there is no answer. What the service refuses is an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Nobody is there.
    #[error("it cannot be reached")]
    Connect(#[source] io::Error),
    /// It took longer than it may.
    #[error("it does not answer in time")]
    Late,
    /// The connection ended before the answer did: the request may have been done or not.
    #[error("the connection broke off")]
    Broken(#[source] hyper::Error),
    /// The answer is longer than we take.
    #[error("the answer is longer than {limit} bytes")]
    TooLong {
        /// Bytes that would have been taken.
        limit: usize,
    },
}

type Sender = SendRequest<Full<Bytes>>;
type Idle = Arc<Mutex<Vec<Sender>>>;

/// A connection whose answer is under way. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    idle: Idle,
}

impl Connection {
    /// Its answer has been read to the end: the next request may have it.
    pub fn keep(self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !self.sender.is_closed() {
            idle.push(self.sender);
        }
    }
}

/// The head of an answer, and its body to come.
#[derive(Debug)]
pub struct Answer {
    response: Response<Incoming>,
    connection: Connection,
}

impl Answer {
    /// What the service says of the request.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// For whoever reads the body piece by piece, and then keeps the connection or not.
    pub fn into_parts(self) -> (Parts, Incoming, Connection) {
        let (parts, body) = self.response.into_parts();
        (parts, body, self.connection)
    }

    /// The whole of it, of `limit` bytes at most.
    ///
    /// # Errors
    /// [`AnswerError::TooLong`], [`AnswerError::Broken`].
    pub async fn whole(self, limit: usize) -> Result<(Parts, Bytes), AnswerError> {
        let (parts, body, connection) = self.into_parts();
        match Limited::new(body, limit).collect().await {
            Ok(received) => {
                connection.keep();
                Ok((parts, received.to_bytes()))
            }
            Err(error) => Err(match error.downcast() {
                Ok(broken) => AnswerError::Broken(*broken),
                Err(_) => AnswerError::TooLong { limit },
            }),
        }
    }
}

/// Asks one service. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    name: &'static str,
    connect: Arc<dyn Connect>,
    tasks: Tasks,
    answer_within: Duration,
    idle: Idle,
}

impl Client {
    /// Reaches the service over `connect`; its connections are tasks called `name`. The head of an
    /// answer may take `answer_within`.
    #[must_use]
    pub fn new(
        name: &'static str,
        connect: Arc<dyn Connect>,
        answer_within: Duration,
        tasks: &Tasks,
    ) -> Self {
        Self {
            name,
            connect,
            tasks: tasks.clone(),
            answer_within,
            idle: Idle::default(),
        }
    }

    /// Sends a request and gives the head of its answer. A kept connection may have been closed
    /// meanwhile: if that loses the request, it is sent again on another, where that is harmless or
    /// nothing of it has left us.
    ///
    /// # Errors
    /// All but [`AnswerError::TooLong`].
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        again: Again,
    ) -> Result<Answer, AnswerError> {
        while let Some(mut sender) = self.kept() {
            if sender.ready().await.is_err() {
                continue;
            }
            match self.send_on(sender, request.clone()).await {
                Err(AnswerError::Broken(error))
                    if error.is_canceled() || again == Again::Harmless =>
                {
                    tracing::debug!(client = self.name, error = %chain(&error), "a kept connection has ended");
                }
                answered => return answered,
            }
        }
        self.send_on(self.connection().await?, request).await
    }

    /// Sends a request and gives its whole answer, of `limit` bytes at most. As [`Client::send`], also
    /// where a kept connection ends in the middle of an answer.
    ///
    /// # Errors
    /// All of them; [`AnswerError::Late`] is of the head alone, a body takes as long as the caller lets it.
    pub async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        again: Again,
        limit: usize,
    ) -> Result<(Parts, Bytes), AnswerError> {
        let answer = self.send(request.clone(), again).await?;
        match answer.whole(limit).await {
            Err(AnswerError::Broken(_)) if again == Again::Harmless => {
                let fresh = self.connection().await?;
                let answer = self.send_on(fresh, request).await?;
                answer.whole(limit).await
            }
            received => received,
        }
    }

    /// A connection of its own that speaks `protocol` from here on, if the service grants it; else what
    /// it says instead.
    ///
    /// # Errors
    /// All but [`AnswerError::TooLong`].
    pub async fn upgrade(
        &self,
        mut request: Request<Full<Bytes>>,
        protocol: &'static str,
    ) -> Result<Result<Upgraded, Box<Answer>>, AnswerError> {
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
        let answer = self.send_on(self.connection().await?, request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Err(Box::new(answer)));
        }
        let upgraded = hyper::upgrade::on(answer.response).await;
        upgraded.map(Ok).map_err(AnswerError::Broken)
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn send_on(
        &self,
        mut sender: Sender,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, AnswerError> {
        let answered = tokio::time::timeout(self.answer_within, sender.send_request(request)).await;
        let response = answered
            .map_err(|_| AnswerError::Late)?
            .map_err(AnswerError::Broken)?;
        let idle = Arc::clone(&self.idle);
        let connection = Connection { sender, idle };
        Ok(Answer {
            response,
            connection,
        })
    }

    async fn connection(&self) -> Result<Sender, AnswerError> {
        let connected = tokio::time::timeout(CONNECT_WITHIN, self.connect.connect()).await;
        let stream = connected
            .map_err(|_| AnswerError::Late)?
            .map_err(AnswerError::Connect)?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(AnswerError::Broken)?;
        let name = self.name;
        self.tasks.spawn(name, Importance::Detached, async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(client = name, error = %chain(&error), "connection ended early");
            }
        });
        Ok(sender)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .field("connect", &self.connect)
            .finish_non_exhaustive()
    }
}
