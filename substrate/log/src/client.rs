//! The log as one actor may use it, whatever the engine: `scope` says what is allowed, the engine's
//! writer and readers do it.

use std::fmt;
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::log::{
    Append, AppendError, Appended, EventLog, Filter, LogScope, PAGE_EVENTS_MAX, Page, ReadError,
    Subscribe,
};
use tabbify_types::Position;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::batch;
use crate::reader::Wanted;
use crate::scope;
use crate::writer::Request;

/// What clients need of an engine. Nothing of a scope: that is judged before.
pub(crate) trait Engine: fmt::Debug + Send + Sync + 'static {
    /// The last durable position.
    fn head(&self) -> Position;

    /// Bytes of batches that may wait for the writer, as permits.
    fn room(&self) -> &Arc<Semaphore>;

    /// The way into the writer; `None` once the log stops.
    fn requests(&self) -> Option<mpsc::Sender<Request>>;

    /// Up to `limit` events after `after`, which is not beyond the head.
    fn page(
        self: Arc<Self>,
        wanted: Wanted,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page, ReadError>>;

    /// Events after `after`, which is not beyond the head, without end.
    fn follow(self: Arc<Self>, wanted: Wanted, after: Position) -> Box<dyn Subscribe>;
}

/// Implements [`EventLog`] for one actor.
#[derive(Debug)]
pub(crate) struct Client<E> {
    engine: Arc<E>,
    scope: LogScope,
    actor: Arc<str>,
}

impl<E: Engine> Client<E> {
    pub(crate) fn new(engine: Arc<E>, scope: LogScope) -> Self {
        let actor = scope.actor.as_str().into();
        Self {
            engine,
            scope,
            actor,
        }
    }

    async fn append_checked(&self, batch: Append) -> Result<Appended, AppendError> {
        scope::may_append(&self.scope, &batch)?;
        let len = batch::check(&batch, &self.actor)?;
        let permits = u32::try_from(len).map_err(|_| AppendError::Stopping)?;
        let room = Arc::clone(self.engine.room())
            .acquire_many_owned(permits)
            .await;
        let room = room.map_err(|_| AppendError::Stopping)?;
        let requests = self.engine.requests().ok_or(AppendError::Stopping)?;
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

    fn wanted(&self, filter: Filter, after: Position) -> Result<Wanted, ReadError> {
        scope::may_read(&self.scope, &filter, after, self.engine.head())?;
        Ok(Wanted::new(filter, self.scope.read.clone()))
    }
}

impl<E: Engine> EventLog for Client<E> {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(self.append_checked(batch))
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        match self.wanted(filter, after) {
            Ok(wanted) => {
                let limit = limit.min(PAGE_EVENTS_MAX);
                Arc::clone(&self.engine).page(wanted, after, limit)
            }
            Err(refused) => Box::pin(std::future::ready(Err(refused))),
        }
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        let wanted = self.wanted(filter, after)?;
        Ok(Arc::clone(&self.engine).follow(wanted, after))
    }

    fn head(&self) -> Position {
        self.engine.head()
    }
}
