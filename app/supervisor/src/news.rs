//! What the tasks of the loop have to tell it.

use tabbify_api::runner::Failure;
use tabbify_types::Position;
use tabbify_types::event::v1::InstanceRef;

use crate::Error;
use crate::act::Spawned;
use crate::plan::{Drain, Life};

/// What a task of the loop has to tell.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) of: InstanceRef,
    pub(crate) what: What,
}

/// See [`News`].
#[derive(Debug)]
pub(crate) enum What {
    /// From its watch.
    Seen(Life),
    /// From its watch: it cannot serve, and says why.
    Failed(Failure),
    /// From the doorbell: somebody who rang for it is served.
    Visited,
    /// From its action.
    Done(Result<Done, Error>),
}

/// What an action came to.
#[derive(Debug)]
pub(crate) enum Done {
    Spawned(Spawned),
    Reported(Position),
    Drained(Drain),
    /// Callers are sent to the doorbell.
    Told,
    Stopped,
    Removed,
}
