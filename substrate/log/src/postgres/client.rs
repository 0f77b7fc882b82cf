//! What clients read of a log in PostgreSQL: a page, or a subscription.

use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::log::{Page, ReadError, Subscribe};
use tabbify_types::Position;
use tokio::sync::{Semaphore, mpsc};

use super::Shared;
use super::reader::{Bounds, Reading};
use super::subscription::Subscription;
use crate::client::Engine;
use crate::pass::Room;
use crate::reader::Wanted;
use crate::writer::Request;

/// LIMIT: positions looked at for one page: it may come back short, or empty, before the head;
/// `next_after` says how far it has looked.
const PAGE_POSITIONS_MAX: u64 = 256 * 1024;

impl Engine for Shared {
    fn head(&self) -> Position {
        Self::head(self)
    }

    fn room(&self) -> &Arc<Semaphore> {
        &self.room
    }

    fn requests(&self) -> Option<mpsc::Sender<Request>> {
        Self::requests(self)
    }

    fn page(
        self: Arc<Self>,
        wanted: Wanted,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page, ReadError>> {
        Box::pin(async move {
            let (mut reading, head) = (Reading::new(wanted), Self::head(&self));
            let bounds = Bounds {
                room: Room::page(limit),
                positions: PAGE_POSITIONS_MAX,
            };
            let looked = match reading.pass_in_memory(&self, after, head, bounds) {
                Some(looked) => looked,
                None => reading.pass_in_tables(&self, after, head, bounds).await?,
            };
            Ok(Page {
                events: looked.events,
                next_after: looked.upto,
                head,
            })
        })
    }

    fn follow(self: Arc<Self>, wanted: Wanted, after: Position) -> Box<dyn Subscribe> {
        Box::new(Subscription::new(self, Reading::new(wanted), after))
    }
}
