//! A projection of the log in memory, as every role has one: what it is. `tabbify_process::fold` follows
//! the log for it.

pub mod event;
pub mod pairs;

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_types::{Position, Recorded, Timestamp};

use crate::log::{Filter, ReadError};

/// A pure fold `(state, event) → state`.
///
/// **Law.**
/// 1. The state follows from the events of [`Fold::filter`], in position order, and from nothing
///    else: no clock, no randomness, no file. Equal logs give equal states.
/// 2. When [`Fold::apply`] fails, the state is as it was before: following stops there, loudly.
/// 3. What the state serializes to is all of it: read back, it goes on as if it had never been
///    written. Keys of maps must be texts or numbers in JSON: [`pairs`] is for those that are not, and
///    [`event`] for events.
/// 4. Whatever changes what an event does to the state, or how the state is written, raises
///    [`Fold::VERSION`]; snapshots of other versions are not read.
pub trait Fold: Serialize + DeserializeOwned + Clone + Send + Sync + fmt::Debug + 'static {
    /// Names the fold in messages and its file: `a-z`, `0-9`, `-`.
    const NAME: &'static str;
    /// Version of this fold and of the shape of its state, from 1.
    const VERSION: u32;

    /// What applying an event tells whoever listens; `()` if nothing.
    type News;
    /// Why an event cannot be applied.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The events that are folded. It must not change while following.
    fn filter(&self) -> Filter;

    /// Applies the next event.
    ///
    /// # Errors
    /// If the role must stop rather than go on without the event.
    fn apply(&mut self, event: &Recorded) -> Result<Self::News, Self::Error>;
}

/// A state, and how it stands to the log.
#[derive(Debug)]
pub struct View<F> {
    /// The state.
    pub state: F,
    /// Every event up to here that the fold reads is in the state.
    pub position: Position,
    /// Whether the log is being followed.
    pub link: Link,
    /// The state is as of this time, at least; the epoch if it is empty. See [`View::age`].
    pub as_of: Timestamp,
}

impl<F> View<F> {
    /// How old the state may be, at most; zero while it is live.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> Duration {
        match self.link {
            Link::Live => Duration::ZERO,
            _ => Duration::from_millis(now.millis().saturating_sub(self.as_of.millis())),
        }
    }
}

/// How a state stands to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// What is in the log already is being read.
    CatchingUp,
    /// All of it is in the state; what comes now has just happened.
    Live,
    /// The log cannot be reached. It is tried again, for as long as the follower runs.
    Away {
        /// Why.
        reason: String,
    },
}

/// What a fold begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Everything that was in the log.
    CaughtUp,
    /// A snapshot, since the log cannot be reached.
    Snapshot {
        /// How old it may be, at most.
        age: Duration,
    },
}

/// An event that has just been applied, for whoever listens.
#[derive(Debug)]
pub struct Heard<'a, N> {
    /// The event.
    pub event: &'a Recorded,
    /// What applying it told.
    pub news: N,
    /// Whether it has just happened; otherwise it is history.
    pub live: bool,
}

/// Why the log cannot be followed further.
#[derive(Debug, thiserror::Error)]
pub enum FollowError<E: std::error::Error + 'static> {
    /// The log refuses, or is damaged.
    #[error("the log cannot be read")]
    Read(#[source] ReadError),
    /// An event cannot be applied.
    #[error("event {position} cannot be folded into {fold}")]
    Fold {
        /// [`Fold::NAME`].
        fold: &'static str,
        /// Position of the event.
        position: Position,
        /// Why.
        #[source]
        source: E,
    },
    /// The state has been in use and is not the fold of a prefix of this log. The snapshot is
    /// removed: starting again folds everything anew.
    #[error("{fold} has followed another log than this one, up to {position}")]
    OtherLog {
        /// [`Fold::NAME`].
        fold: &'static str,
        /// How far.
        position: Position,
    },
}
