//! A subscription: a position that moves. History from files, then what becomes durable, by the
//! same rule: look at everything between here and the durable position, then wait for it to move.
//! So there is no seam between history and live where an event could be lost or come twice.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::BoxFuture;
use tabbify_api::log::{Delivery, ReadError, Subscribe};
use tabbify_types::Position;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::log::Shared;
use crate::reader::{self, Bounds, Looked, Wanted};

/// LIMIT: one pass of a subscription, which is what it holds in memory.
const PASS: Bounds = Bounds {
    events: 256,
    data_len: 1024 * 1024,
    read_len: 4 * 1024 * 1024,
};
/// Skipped positions after which a subscriber is told, so that it can resume from there.
const PROGRESS_EVENTS: u64 = 1000;

/// Implements [`Subscribe`].
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    durable: watch::Receiver<Position>,
    /// Shared with the pass on the blocking pool; never waited for, since there is one pass at a time.
    wanted: Arc<Mutex<Wanted>>,
    /// Kept across calls: a cancelled `next` goes on waiting for the same pass.
    reading: Option<JoinHandle<Result<Looked, ReadError>>>,
    /// Everything up to here has been looked at.
    looked: Position,
    /// Everything up to here is known to the subscriber once `ready` is empty.
    told: Position,
    caught_up: bool,
    ready: VecDeque<Delivery>,
}

impl Subscription {
    pub(crate) fn new(shared: Arc<Shared>, wanted: Wanted, after: Position) -> Self {
        let durable = shared.durable.clone();
        Self {
            shared,
            durable,
            wanted: Arc::new(Mutex::new(wanted)),
            reading: None,
            looked: after,
            told: after,
            caught_up: false,
            ready: VecDeque::new(),
        }
    }

    async fn advance(&mut self) -> Result<Delivery, ReadError> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(delivery);
            }
            if let Some(pass) = &mut self.reading {
                // It fails to join only when the runtime is going down.
                let looked = pass.await.unwrap_or(Err(ReadError::Stopping));
                self.reading = None;
                self.absorb(looked?);
                continue;
            }
            let head = *self.durable.borrow_and_update();
            if self.looked < head {
                self.pass(head);
            } else if !self.at_head() {
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
            reader::from_memory(&self.shared, &mut wanted, self.looked, head, PASS)
        };
        if let Some(looked) = recent {
            self.absorb(looked);
            return;
        }
        let (shared, wanted) = (Arc::clone(&self.shared), Arc::clone(&self.wanted));
        let after = self.looked;
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
            reader::from_files(&shared, &mut wanted, after, head, PASS)
        }));
    }

    fn absorb(&mut self, looked: Looked) {
        self.looked = looked.upto;
        for event in looked.events {
            self.told = event.position;
            self.ready.push_back(Delivery::Event(event));
        }
        if self.looked.get() - self.told.get() >= PROGRESS_EVENTS {
            self.tell(Delivery::Progress(self.looked));
        }
    }

    /// At the head: says so once, later only that skipped events are behind. Whether it said so.
    fn at_head(&mut self) -> bool {
        if !self.caught_up {
            self.caught_up = true;
            self.tell(Delivery::CaughtUp(self.looked));
            return true;
        }
        let skipped = self.looked > self.told;
        if skipped {
            self.tell(Delivery::Progress(self.looked));
        }
        skipped
    }

    fn tell(&mut self, delivery: Delivery) {
        self.told = self.looked;
        self.ready.push_back(delivery);
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
            .field("looked", &self.looked)
            .field("caught_up", &self.caught_up)
            .finish_non_exhaustive()
    }
}
