//! Verifies the embedded log while it is in use: closed extents whole, checksums and chain, each
//! held against the end of the one before; what is not closed yet, frame by frame.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::log::ReadError;
use tabbify_types::Position;

use crate::error::OpenError;
use crate::extent;
use crate::log::Shared;
use crate::reader;
use crate::scan::{self, Tip};

/// The end of the piece that was verified last: the chain goes on from it.
#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<Option<Tip>>);

impl Verified {
    fn tip(&self, shared: &Shared, after: Position) -> Option<Tip> {
        if after == Position(0) {
            return Some(Tip::genesis(shared.log_id.0));
        }
        let tip = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tip.filter(|tip| tip.head == after)
    }

    fn keep(&self, tip: Tip) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tip);
    }
}

/// Verifies a piece of what is behind `after`; the last position of it. Blocks.
pub(crate) fn piece(
    shared: &Arc<Shared>,
    verified: &Verified,
    after: Position,
    upto: Position,
) -> Result<Position, ReadError> {
    let over = shared.index.over();
    let extents = extent::list(&*over.disk, &over.dir).map_err(|error| damaged(&error))?;
    let closed = extents.split_last().map_or(&[][..], |(_, closed)| closed);
    let due = closed.iter().find(|(first, _)| *first == after.next());
    // Without the end of the extent before, such as after a restart in between, events are read.
    let Some(((_, path), before)) = due.zip(verified.tip(shared, after)) else {
        return reader::replay(shared, after, upto, |_| ControlFlow::Continue(()));
    };
    let extent = scan::closed(&*over.disk, path, over.log_id, before, &mut ());
    let extent = extent.map_err(|error| damaged(&error))?;
    verified.keep(Tip::after(&extent));
    Ok(extent.last.min(upto))
}

fn damaged(error: &OpenError) -> ReadError {
    if matches!(error, OpenError::Stored { .. }) {
        return reader::lost(error);
    }
    ReadError::Damaged {
        detail: tabbify_process::chain(error).to_string(),
    }
}
