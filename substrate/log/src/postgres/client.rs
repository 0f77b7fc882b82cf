//! The log as one actor may use it: `scope` says what, this module does it.

use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::log::{
    Append, AppendError, Appended, EventLog, Filter, LogScope, PAGE_EVENTS_MAX, Page, ReadError,
    Subscribe,
};
use tabbify_types::Position;
use tokio::sync::oneshot;

use super::Shared;
use super::reader::{Bounds, Reading};
use super::subscription::Subscription;
use crate::batch;
use crate::scope;
use crate::writer::Request;

/// LIMIT: bytes of data in one page, and positions looked at for it: a page may come back short, or
/// empty, before the head; `next_after` says how far it has looked.
const PAGE_DATA_LEN_MAX: usize = 8 * 1024 * 1024;
const PAGE_POSITIONS_MAX: u64 = 256 * 1024;

/// Implements [`EventLog`].
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    scope: LogScope,
    actor: Arc<str>,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, scope: LogScope) -> Self {
        let actor = scope.actor.as_str().into();
        Self {
            shared,
            scope,
            actor,
        }
    }

    async fn append_checked(&self, batch: Append) -> Result<Appended, AppendError> {
        scope::may_append(&self.scope, &batch)?;
        let len = batch::check(&batch, &self.actor)?;
        let permits = u32::try_from(len).map_err(|_| AppendError::Stopping)?;
        let room = Arc::clone(&self.shared.room)
            .acquire_many_owned(permits)
            .await;
        let room = room.map_err(|_| AppendError::Stopping)?;
        let requests = self.shared.requests().ok_or(AppendError::Stopping)?;
        let (answer, answered) = oneshot::channel();
        let actor = Arc::clone(&self.actor);
        let request = Request {
            batch,
            actor,
            len,
            answer,
            room,
        };
        requests
            .send(request)
            .await
            .map_err(|_| AppendError::Stopping)?;
        // The writer ends when no sender is left, so this one must not outlive the sending.
        drop(requests);
        answered.await.unwrap_or(Err(AppendError::Stopping))
    }

    fn reading(&self, filter: Filter, after: Position) -> Result<Reading, ReadError> {
        scope::may_read(&self.scope, &filter, after, self.shared.head())?;
        Ok(Reading::new(filter, self.scope.read.clone()))
    }

    async fn read_page(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let mut reading = self.reading(filter, after)?;
        let head = self.shared.head();
        let bounds = Bounds {
            events: limit.min(PAGE_EVENTS_MAX),
            data_len: PAGE_DATA_LEN_MAX,
            positions: PAGE_POSITIONS_MAX,
        };
        let looked = match reading.pass_in_memory(&self.shared, after, head, bounds) {
            Some(looked) => looked,
            None => {
                reading
                    .pass_in_tables(&self.shared, after, head, bounds)
                    .await?
            }
        };
        Ok(Page {
            events: looked.events,
            next_after: looked.upto,
            head,
        })
    }
}

impl EventLog for Client {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(self.append_checked(batch))
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        Box::pin(self.read_page(filter, after, limit))
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        let reading = self.reading(filter, after)?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(Subscription::new(shared, reading, after)))
    }

    fn head(&self) -> Position {
        self.shared.head()
    }
}
