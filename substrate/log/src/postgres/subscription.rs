//! A subscription: a position that moves, as the embedded engine's; here history is rows.

use std::fmt;
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::log::{Delivery, ReadError, Subscribe};
use tabbify_types::Position;
use tokio::sync::watch;

use super::Shared;
use super::reader::{Bounds, Reading};
use crate::marks::Marks;
use crate::pass::{Looked, Room};

/// LIMIT: one pass.
const PASS: Bounds = Bounds {
    room: Room::SUBSCRIPTION,
    positions: 64 * 1024,
};

type Pass = BoxFuture<'static, (Reading, Result<Looked, ReadError>)>;

/// Implements [`Subscribe`].
pub(super) struct Subscription {
    shared: Arc<Shared>,
    durable: watch::Receiver<Position>,
    /// Away while a pass has it.
    reading: Option<Reading>,
    /// Kept across calls: a cancelled `next` goes on with the same pass.
    pass: Option<Pass>,
    marks: Marks,
    /// What ended it, told again and again.
    failed: Option<ReadError>,
}

impl Subscription {
    pub(super) fn new(shared: Arc<Shared>, reading: Reading, after: Position) -> Self {
        let durable = shared.durable.clone();
        Self {
            shared,
            durable,
            reading: Some(reading),
            pass: None,
            marks: Marks::new(after),
            failed: None,
        }
    }

    async fn advance(&mut self) -> Result<Delivery, ReadError> {
        loop {
            if let Some(delivery) = self.marks.pop() {
                return Ok(delivery);
            }
            if let Some(failed) = &self.failed {
                return Err(failed.clone());
            }
            if let Some(pass) = &mut self.pass {
                let (reading, looked) = pass.await;
                self.pass = None;
                self.reading = Some(reading);
                match looked {
                    Ok(looked) => self.marks.absorb(looked.events, looked.upto),
                    Err(error) => self.failed = Some(error),
                }
                continue;
            }
            let head = *self.durable.borrow_and_update();
            if self.marks.looked() < head {
                self.look(head);
            } else if !self.marks.at_head() {
                // Nothing to tell: everything durable has been looked at.
                self.durable
                    .changed()
                    .await
                    .map_err(|_| ReadError::Stopping)?;
            }
        }
    }

    /// Looks on: at once if the events are in memory, in the tables if not.
    fn look(&mut self, head: Position) {
        let after = self.marks.looked();
        let mut reading = self
            .reading
            .take()
            .expect("INVARIANT: no pass is under way, so the filter is back");
        if let Some(looked) = reading.pass_in_memory(&self.shared, after, head, PASS) {
            self.marks.absorb(looked.events, looked.upto);
            self.reading = Some(reading);
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.pass = Some(Box::pin(async move {
            let looked = reading.pass_in_tables(&shared, after, head, PASS).await;
            (reading, looked)
        }));
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
            .field("marks", &self.marks)
            .finish_non_exhaustive()
    }
}
