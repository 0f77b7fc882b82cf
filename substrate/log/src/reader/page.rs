//! What clients read of the embedded engine: a page, or a subscription.

use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::log::{Page, ReadError, Subscribe};
use tabbify_types::Position;
use tokio::sync::{Semaphore, mpsc};

use super::{Bounds, Wanted, from_files, from_memory};
use crate::client::Engine;
use crate::log::Shared;
use crate::pass::Room;
use crate::subscription::Subscription;
use crate::writer::Request;

/// LIMIT: bytes of frames read for one page: it may come back short, or empty, before the head;
/// `next_after` says how far it has looked.
const PAGE_READ_LEN_MAX: usize = 64 * 1024 * 1024;

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
        mut wanted: Wanted,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page, ReadError>> {
        Box::pin(async move {
            let head = Self::head(&self);
            let bounds = Bounds {
                room: Room::page(limit),
                read_len: PAGE_READ_LEN_MAX,
            };
            let recent = from_memory(&self, &mut wanted, after, head, bounds);
            let looked = match recent {
                Some(looked) => looked,
                None => {
                    let pass = tokio::task::spawn_blocking(move || {
                        from_files(&self, &mut wanted, after, head, bounds)
                    });
                    pass.await.map_err(|_| ReadError::Stopping)??
                }
            };
            Ok(Page {
                events: looked.events,
                next_after: looked.upto,
                head,
            })
        })
    }

    fn follow(self: Arc<Self>, wanted: Wanted, after: Position) -> Box<dyn Subscribe> {
        Box::new(Subscription::new(self, wanted, after))
    }
}
