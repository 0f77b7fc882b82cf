//! A subscription: a position that moves. History from files, then what becomes durable, by the
//! same rule: look at everything between here and the durable position, then wait for it to move.
//! So there is no seam between history and live where an event could be lost or come twice.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::BoxFuture;
use tabbify_api::log::{Delivery, ReadError, Subscribe};
use tabbify_types::Position;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::log::Shared;
use crate::marks::Marks;
use crate::pass::{Looked, Room};
use crate::reader::{self, Bounds, Wanted};

/// LIMIT: one pass. Most frames fit whole: one that does not is verified once for each pass over it.
const PASS: Bounds = Bounds {
    room: Room::SUBSCRIPTION,
    read_len: 4 * 1024 * 1024,
};

/// Implements [`Subscribe`].
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    durable: watch::Receiver<Position>,
    /// Shared with the pass on the blocking pool; never waited for, since there is one pass at a time.
    wanted: Arc<Mutex<Wanted>>,
    /// Kept across calls: a cancelled `next` goes on waiting for the same pass.
    reading: Option<JoinHandle<Result<Looked, ReadError>>>,
    marks: Marks,
}

impl Subscription {
    pub(crate) fn new(shared: Arc<Shared>, wanted: Wanted, after: Position) -> Self {
        let durable = shared.durable.clone();
        Self {
            shared,
            durable,
            wanted: Arc::new(Mutex::new(wanted)),
            reading: None,
            marks: Marks::new(after),
        }
    }

    async fn advance(&mut self) -> Result<Delivery, ReadError> {
        loop {
            if let Some(delivery) = self.marks.pop() {
                return Ok(delivery);
            }
            if let Some(pass) = &mut self.reading {
                // It fails to join only when the runtime is going down.
                let looked = pass.await.unwrap_or(Err(ReadError::Stopping));
                self.reading = None;
                let looked = looked?;
                self.marks.absorb(looked.events, looked.upto);
                continue;
            }
            let head = *self.durable.borrow_and_update();
            if self.marks.looked() < head {
                self.pass(head);
            } else if !self.marks.at_head() {
                // Nothing to tell: everything durable has been looked at.
                self.durable
                    .changed()
                    .await
                    .map_err(|_| ReadError::Stopping)?;
            }
        }
    }

    /// Looks on: at once if the events are in memory, on the blocking pool if not.
    fn pass(&mut self, head: Position) {
        let recent = {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            reader::from_memory(&self.shared, &mut wanted, self.marks.looked(), head, PASS)
        };
        if let Some(looked) = recent {
            self.marks.absorb(looked.events, looked.upto);
            return;
        }
        let (shared, wanted) = (Arc::clone(&self.shared), Arc::clone(&self.wanted));
        let after = self.marks.looked();
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
            reader::from_files(&shared, &mut wanted, after, head, PASS)
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
