//! The log of another process over HTTP: the same traits, the same semantics, the same tests.
//!
//! Spawns one task a connection, which moves its bytes, and one for the session of appends;
//! connections are kept between requests, and a subscription has one of its own. Appends carry ids, so
//! that a request whose answer was lost may be sent again; nothing else that changes anything is.

mod connection;
mod consumers;
mod session;
mod subscription;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::Method;
use tabbify_api::log::{
    Append, AppendError, Appended, EVENTS_PATH, EventLog, Filter, HEAD_HEADER, HEAD_PATH, Head,
    NEXT_AFTER_HEADER, PAGE_EVENTS_MAX, Page, ReadError, Subscribe, VERIFY_PATH, Verification,
};
use tabbify_api::{BoxFuture, Problem};
use tabbify_process::Tasks;
pub use tabbify_process::connect::{Bearer, Connect, Stream, UnixSocket};
use tabbify_types::{Position, Recorded};

use crate::wire::frames::{Frames, NotFrames, kind};
use crate::wire::query::Query;
use crate::wire::{binary, problem};
use connection::Connections;
use consumers::RemoteConsumers;
use session::Sessions;
use subscription::Subscription;

/// LIMIT: bytes of one answer: a page has 8 MiB of data, six times that if every character of it is
/// escaped, and may carry it twice.
const ANSWER_LEN_MAX: usize = 128 * 1024 * 1024;

/// A log that another process serves, as the bearer of a token may use it.
#[derive(Debug, Clone)]
pub struct RemoteLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    connections: Connections,
    appends: Sessions,
    /// The last durable position that we have been told of.
    head: AtomicU64,
}

/// Why a request has no answer of its own.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The service refuses it.
    Refused(Box<Problem>),
    /// It did not arrive, or its answer did not, or that made no sense; it has been logged.
    Broken,
}

impl RemoteLog {
    /// Connects, and asks for the head of the log.
    ///
    /// # Errors
    /// What the service says, or [`ReadError::Stopping`] if it cannot be reached.
    pub async fn connect(
        connect: Arc<dyn Connect>,
        bearer: Bearer,
        tasks: &Tasks,
    ) -> Result<Self, ReadError> {
        // Kept connections and sessions end with their client: nobody waits for them.
        let kept = tasks.child();
        let shared = Shared {
            connections: Connections::new(connect, bearer, &kept),
            appends: Sessions::new(kept.clone()),
            head: AtomicU64::new(0),
        };
        let log = Self {
            shared: Arc::new(shared),
        };
        log.ask_head().await?;
        Ok(log)
    }

    /// The last durable position, asked for now.
    ///
    /// # Errors
    /// As [`RemoteLog::connect`].
    pub async fn ask_head(&self) -> Result<Position, ReadError> {
        let asked = self
            .shared
            .connections
            .request(Method::GET, HEAD_PATH, None);
        let answer: Head = json(asked.await).await.map_err(read_error)?;
        self.shared.told(answer.position);
        Ok(self.shared.head())
    }

    /// The consumers of the log.
    #[must_use]
    pub fn consumers(&self) -> Arc<dyn tabbify_api::consumers::Consumers> {
        Arc::new(RemoteConsumers::new(Arc::clone(&self.shared)))
    }

    /// Begins a verification of the log, or tells how far the one that runs has come.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] unless the bearer may read everything; as [`RemoteLog::connect`].
    pub async fn verify(&self) -> Result<Verification, ReadError> {
        let begin = Some((Vec::new(), connection::Again::Harmless));
        let connections = &self.shared.connections;
        let asked = connections.request(Method::POST, VERIFY_PATH, begin).await;
        json(asked).await.map_err(read_error)
    }

    /// The verification that runs or ran last.
    ///
    /// # Errors
    /// As [`RemoteLog::verify`], and [`ReadError::Refused`] if there has been none.
    pub async fn verification(&self) -> Result<Verification, ReadError> {
        let connections = &self.shared.connections;
        let asked = connections.request(Method::GET, VERIFY_PATH, None).await;
        json(asked).await.map_err(read_error)
    }

    async fn send(&self, batch: Append) -> Result<Appended, AppendError> {
        let Shared {
            connections,
            appends,
            ..
        } = &*self.shared;
        let answered = appends.append(connections, &batch).await;
        let answer = answered.map_err(|failed| match failed {
            Failed::Refused(problem) => problem::to_append(*problem),
            Failed::Broken => AppendError::Stopping,
        })?;
        self.shared.told(answer.last);
        Ok(answer)
    }

    async fn read_page(&self, query: Query) -> Result<Page, ReadError> {
        let path = format!("{EVENTS_PATH}?{}", query.encode());
        let asked = self.shared.connections.request(Method::GET, &path, None);
        let page = page(asked.await).await.map_err(read_error)?;
        self.shared.told(page.head);
        Ok(page)
    }
}

impl Shared {
    fn head(&self) -> Position {
        Position(self.head.load(Ordering::Acquire))
    }

    /// The log is durable up to here at least.
    fn told(&self, position: Position) {
        self.head.fetch_max(position.get(), Ordering::AcqRel);
    }
}

fn read_error(failed: Failed) -> ReadError {
    match failed {
        Failed::Refused(problem) => problem::to_read(*problem),
        Failed::Broken => ReadError::Stopping,
    }
}

type Received = Result<connection::Answer, Failed>;

/// The whole body of an answer; its connection may be used again then.
async fn whole(answer: connection::Answer) -> Result<(http::response::Parts, Bytes), Failed> {
    let received = answer.whole(ANSWER_LEN_MAX).await;
    received.map_err(|error| connection::unanswered(&error))
}

/// The answer, if it is one; otherwise the problem that it is.
async fn succeeded(received: Received) -> Result<(http::response::Parts, Bytes), Failed> {
    let (parts, bytes) = whole(received?).await?;
    if parts.status.is_success() {
        return Ok((parts, bytes));
    }
    Err(Failed::Refused(Box::new(Problem::of_answer(
        parts.status.as_u16(),
        &bytes,
    ))))
}

async fn json<T: serde::de::DeserializeOwned>(received: Received) -> Result<T, Failed> {
    let (_, bytes) = succeeded(received).await?;
    serde_json::from_slice(&bytes).map_err(|error| broken("an answer is not understood", &error))
}

async fn page(received: Received) -> Result<Page, Failed> {
    let (parts, bytes) = succeeded(received).await?;
    let position = |name: &str| {
        let value = parts.headers.get(name)?.to_str().ok()?;
        value.parse::<Position>().ok()
    };
    let (Some(next_after), Some(head)) = (position(NEXT_AFTER_HEADER), position(HEAD_HEADER))
    else {
        return Err(broken("a page does not say where it ends", &"no header"));
    };
    let events = events(&bytes);
    Ok(Page {
        events: events.map_err(|what| broken("a page is not understood", &what))?,
        next_after,
        head,
    })
}

/// The events of a page, which is frames from end to end.
fn events(bytes: &[u8]) -> Result<Vec<Arc<Recorded>>, &'static str> {
    let wrong = |NotFrames(what): NotFrames| what;
    let mut frames = Frames::default();
    frames.extend(bytes);
    let mut events = Vec::new();
    while let Some(frame) = frames.next().map_err(wrong)? {
        if frame.kind == kind::EVENT {
            events.push(Arc::new(binary::event(&frame.body)?));
        }
    }
    match frames.has_begun() {
        true => Err("a page that breaks off"),
        false => Ok(events),
    }
}

fn broken(what: &'static str, error: &dyn fmt::Display) -> Failed {
    tracing::warn!(%error, "{what}");
    Failed::Broken
}

impl EventLog for RemoteLog {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(self.send(batch))
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        let limit = limit.min(PAGE_EVENTS_MAX);
        Box::pin(self.read_page(Query {
            after,
            limit,
            filter,
        }))
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(Subscription::new(shared, filter, after)))
    }

    fn head(&self) -> Position {
        self.shared.head()
    }
}
