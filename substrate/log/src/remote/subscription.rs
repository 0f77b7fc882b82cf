//! A subscription over the network: frames, and a new connection from the last position when one
//! breaks off or its token ends. What was delivered is not delivered again, `CaughtUp` comes once.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tabbify_api::BoxFuture;
use tabbify_api::log::{Delivery, Filter, ReadError, SUBSCRIBE_PATH, Subscribe};
use tabbify_types::Position;

use super::connection::{Answer, Connection};
use super::{Failed, Shared, broken, read_error, succeeded};
use crate::wire::frames::{Frame, Frames, NotFrames, kind};
use crate::wire::query::Query;
use crate::wire::{binary, problem};

/// LIMIT: silence after which the service is taken for gone: three heartbeats.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// LIMIT: connections in a row that bring nothing, before the reader is told; asking again goes on.
const ATTEMPTS_MAX: u32 = 5;
/// The pause before the second attempt; doubles with each.
const PAUSE: Duration = Duration::from_millis(50);

type Opening = BoxFuture<'static, Result<Answer, Failed>>;

/// Implements [`Subscribe`].
pub(super) struct Subscription {
    shared: Arc<Shared>,
    filter: Filter,
    /// Everything up to here has been told to the reader once `ready` is empty.
    told: Position,
    caught_up: bool,
    ready: VecDeque<Delivery>,
    /// Comes after what is ready.
    end: Option<ReadError>,
    /// Kept across calls, so that a cancelled `next` goes on with the same connection.
    opening: Option<Opening>,
    open: Option<Open>,
    failures: u32,
}

struct Open {
    body: Incoming,
    frames: Frames,
    /// Keeps the connection for as long as the body is read.
    _connection: Connection,
}

impl Subscription {
    pub(super) fn new(shared: Arc<Shared>, filter: Filter, after: Position) -> Self {
        Self {
            shared,
            filter,
            told: after,
            caught_up: false,
            ready: VecDeque::new(),
            end: None,
            opening: None,
            open: None,
            failures: 0,
        }
    }

    async fn advance(&mut self) -> Result<Delivery, ReadError> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(delivery);
            }
            if let Some(end) = self.end.take() {
                self.open = None;
                return Err(end);
            }
            if self.open.is_some() {
                self.receive().await;
            } else {
                self.connect().await?;
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ReadError> {
        if self.opening.is_none() {
            self.opening = Some(self.begin());
        }
        let Some(opening) = self.opening.as_mut() else {
            return Ok(());
        };
        let opened = opening.await;
        self.opening = None;
        match opened {
            Ok(answer) if answer.status().is_success() => {
                let (_, body, connection) = answer.into_parts();
                self.open = Some(Open {
                    body,
                    frames: Frames::default(),
                    _connection: connection,
                });
                Ok(())
            }
            Ok(answer) => Err(match succeeded(Ok(answer)).await {
                Err(failed) => read_error(failed),
                Ok(_) => ReadError::Stopping,
            }),
            Err(Failed::Refused(problem)) => Err(problem::to_read(*problem)),
            Err(Failed::Broken) => self.failed(),
        }
    }

    fn begin(&self) -> Opening {
        let query = Query {
            after: self.told,
            limit: 0,
            filter: self.filter.clone(),
        };
        let (shared, failures) = (Arc::clone(&self.shared), self.failures);
        Box::pin(async move {
            if failures > 0 {
                tokio::time::sleep(PAUSE * (1 << (failures - 1))).await;
            }
            let path = format!("{SUBSCRIBE_PATH}?{}", query.encode());
            shared.connections.request(Method::GET, &path, None).await
        })
    }

    /// Another attempt, unless there have been too many.
    fn failed(&mut self) -> Result<(), ReadError> {
        self.open = None;
        self.failures += 1;
        if self.failures < ATTEMPTS_MAX {
            return Ok(());
        }
        self.failures = 0;
        Err(ReadError::Stopping)
    }

    /// Takes in the next piece of the stream.
    async fn receive(&mut self) {
        let Some(open) = self.open.as_mut() else {
            return;
        };
        let frame = tokio::time::timeout(SILENCE_MAX, open.body.frame()).await;
        let piece = match frame {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            ended => {
                if let Ok(Some(Err(error))) = ended {
                    broken("a subscription broke off", &tabbify_process::chain(&error));
                }
                self.end = self.failed().err();
                return;
            }
        };
        open.frames.extend(&piece);
        self.take_frames();
    }

    fn take_frames(&mut self) {
        while let Some(open) = self.open.as_mut() {
            let taken = match open.frames.next() {
                Ok(Some(frame)) => self.take(&frame),
                Ok(None) => return,
                Err(NotFrames(what)) => Err(what),
            };
            match taken {
                Ok(()) => self.failures = 0,
                Err(what) => {
                    broken("a subscription is not understood", &what);
                    self.end.get_or_insert(ReadError::Stopping);
                    return;
                }
            }
        }
    }

    fn take(&mut self, frame: &Frame) -> Result<(), &'static str> {
        match frame.kind {
            kind::EVENT => {
                let event = binary::event(&frame.body)?;
                if event.position > self.told {
                    self.told = event.position;
                    self.shared.told(event.position);
                    self.ready.push_back(Delivery::Event(Arc::new(event)));
                }
            }
            kind::CAUGHT_UP => self.take_mark(binary::position(&frame.body)?, true),
            kind::PROGRESS => self.take_mark(binary::position(&frame.body)?, false),
            kind::END => {
                let problem = binary::problem_in(&frame.body)?;
                if problem::is_about_token(problem.code) {
                    // The next connection has the next token.
                    tracing::debug!(code = problem.code.as_str(), "a subscription goes on anew");
                    self.open = None;
                } else {
                    let end = problem::to_read(*problem);
                    self.end.get_or_insert(end);
                }
            }
            // A service newer than us has more to say.
            _ => {}
        }
        Ok(())
    }

    /// On a connection that is not the first, being caught up again is only progress.
    fn take_mark(&mut self, position: Position, caught_up: bool) {
        let first = caught_up && !self.caught_up;
        if !first && position <= self.told {
            return;
        }
        self.caught_up |= first;
        self.told = self.told.max(position);
        self.shared.told(position);
        self.ready.push_back(if first {
            Delivery::CaughtUp(position)
        } else {
            Delivery::Progress(position)
        });
    }
}

impl Subscribe for Subscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, ReadError>> {
        Box::pin(self.advance())
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("told", &self.told)
            .field("caught_up", &self.caught_up)
            .finish_non_exhaustive()
    }
}
