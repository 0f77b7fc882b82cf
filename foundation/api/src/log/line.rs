//! A line to a log that may not be there yet, or not any more: whoever follows it has one thing to
//! hold on to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Append, AppendError, Appended, EventLog, Filter, Page, ReadError, Subscribe};
use crate::BoxFuture;
use tabbify_types::Position;

/// A log behind a line that can be joined and cut. Without one behind it, it answers as a log that is
/// stopping: try again.
#[derive(Debug, Default)]
pub struct Line {
    log: RwLock<Option<Arc<dyn EventLog>>>,
    /// The last head that was told.
    told: AtomicU64,
}

impl Line {
    /// A line with `log` behind it.
    #[must_use]
    pub fn to(log: Arc<dyn EventLog>) -> Arc<Self> {
        let line = Self::default();
        line.join(Some(log));
        Arc::new(line)
    }

    /// Joins the line to `log`; `None` cuts it. What was subscribed before goes on where it was.
    pub fn join(&self, log: Option<Arc<dyn EventLog>>) {
        let mut behind = self.log.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = std::mem::replace(&mut *behind, log) {
            self.told.store(before.head().get(), Ordering::Relaxed);
        }
    }

    fn log(&self) -> Option<Arc<dyn EventLog>> {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
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

    /// Without a log behind it what was told before, as a client over a network does.
    fn head(&self) -> Position {
        match self.log() {
            Some(log) => {
                let head = log.head();
                self.told.store(head.get(), Ordering::Relaxed);
                head
            }
            None => Position(self.told.load(Ordering::Relaxed)),
        }
    }
}
