//! A line to a log that may not be there yet, or not any more: whoever follows it has one thing to
//! hold on to.

use std::sync::{Arc, PoisonError, RwLock};

use super::{Append, AppendError, Appended, EventLog, Filter, Page, ReadError, Subscribe};
use crate::BoxFuture;
use tabbify_types::Position;

/// A log behind a line that can be joined and cut. Without one behind it, it answers as a log that is
/// stopping: try again.
#[derive(Debug, Default)]
pub struct Line(RwLock<Option<Arc<dyn EventLog>>>);

impl Line {
    /// A line with `log` behind it.
    #[must_use]
    pub fn to(log: Arc<dyn EventLog>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Some(log))))
    }

    /// Joins the line to `log`; `None` cuts it. What was subscribed before goes on where it was.
    pub fn join(&self, log: Option<Arc<dyn EventLog>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = log;
    }

    fn log(&self) -> Option<Arc<dyn EventLog>> {
        let log = self.0.read().unwrap_or_else(PoisonError::into_inner);
        log.clone()
    }
}

impl EventLog for Line {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(async move {
            let log = self.log().ok_or(AppendError::Stopping)?;
            log.append(batch).await
        })
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        Box::pin(async move {
            let log = self.log().ok_or(ReadError::Stopping)?;
            log.read(filter, after, limit).await
        })
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        let log = self.log().ok_or(ReadError::Stopping)?;
        log.subscribe(filter, after)
    }

    /// Nothing, without a log behind it.
    fn head(&self) -> Position {
        self.log().map_or(Position(0), |log| log.head())
    }
}
