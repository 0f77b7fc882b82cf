//! Durable named consumers of the log: work that is handed out, acknowledged, and handed out again
//! until it is.
//!
//! **Law.** Every event that matches is delivered at least once, until it is acknowledged or
//! parked; nothing is skipped, whoever crashes. Of one (segment, key) at most one event is with a
//! member at a time, and the next one follows only when that one is acknowledged, parked or dropped:
//! members share the work by key, and order per key holds. An event that failed
//! [`Consumer::attempts_max`] times is parked with its last reason, where people see it, and its key
//! goes on.
//!
//! ```text
//!   waiting ──next──▶ with a member ──ack──▶ settled
//!      ▲                │ nack, or no ack in time
//!      └── again later ─┤
//!                       └ too often ─▶ parked ──retry──▶ waiting
//!                                            └──drop───▶ settled
//! ```

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
pub use tabbify_types::{ConsumerName, MemberName};
use tabbify_types::{Position, Recorded, Segment, SegmentGlob, Timestamp};

use crate::BoxFuture;
use crate::log::{Filter, ReadError};

/// LIMIT: consumers of one log.
pub const CONSUMERS_MAX: usize = 256;
/// LIMIT: members of one consumer that hold events or have asked lately.
pub const MEMBERS_MAX: usize = 64;
/// LIMIT: events of one consumer that are with its members, and so the most that one call gives.
pub const IN_FLIGHT_MAX: usize = 1_000;
/// LIMIT: parked events of one consumer; from here on it gives out nothing until people act.
pub const PARKED_MAX: usize = 10_000;
/// LIMIT: bytes of a reason; a longer one is cut.
pub const REASON_LEN_MAX: usize = 512;
/// LIMIT: how long one call waits for an event, in milliseconds; a longer wait is cut to this.
pub const WAIT_MS_MAX: u64 = 30_000;
/// Bounds of [`Consumer::ack_timeout_ms`].
pub const ACK_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
/// Bounds of [`Consumer::attempts_max`].
pub const ATTEMPTS: std::ops::RangeInclusive<u32> = 1..=100;

const ACK_TIMEOUT_MS_DEFAULT: u64 = 30_000;
const ATTEMPTS_DEFAULT: u32 = 5;

/// Where a new consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With the first event of the log.
    #[default]
    Beginning,
    /// With the first event after the consumer was made.
    Head,
    /// With the first event after this position.
    After(Position),
}

/// What a consumer is. Fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    /// Which events it gets. Without a segment: every segment that its maker may read, for ever.
    #[serde(default)]
    pub filter: Filter,
    /// Where it begins.
    #[serde(default)]
    pub start: Start,
    /// How long a member may hold an event, in milliseconds, within [`ACK_TIMEOUT_MS`].
    #[serde(default = "ack_timeout_ms")]
    pub ack_timeout_ms: u64,
    /// How often an event may fail before it is parked, within [`ATTEMPTS`].
    #[serde(default = "attempts_max")]
    pub attempts_max: u32,
}

const fn ack_timeout_ms() -> u64 {
    ACK_TIMEOUT_MS_DEFAULT
}

const fn attempts_max() -> u32 {
    ATTEMPTS_DEFAULT
}

impl Consumer {
    /// A consumer of these events from the beginning: 30 seconds to acknowledge, 5 attempts.
    #[must_use]
    pub const fn of(filter: Filter) -> Self {
        Self {
            filter,
            start: Start::Beginning,
            ack_timeout_ms: ACK_TIMEOUT_MS_DEFAULT,
            attempts_max: ATTEMPTS_DEFAULT,
        }
    }
}

/// A member asks for work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Poll {
    /// Who asks.
    pub member: MemberName,
    /// At most this many events.
    pub max: usize,
    /// How long to wait for the first one, in milliseconds; 0 is not at all.
    #[serde(default)]
    pub wait_ms: u64,
}

/// A member has done its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Who acknowledges.
    pub member: MemberName,
    /// What: at most [`IN_FLIGHT_MAX`] positions.
    pub positions: Vec<Position>,
}

/// A member has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nack {
    /// Who failed.
    pub member: MemberName,
    /// At what.
    pub position: Position,
    /// Why, for people.
    pub reason: String,
}

/// The body of what acts on one position: retry and drop of a parked event, and reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct At {
    /// Which.
    pub position: Position,
}

/// An event in the hands of a member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delivered {
    /// The event.
    pub event: Arc<Recorded>,
    /// Which attempt this is, from 1. Attempts that a crash of the log cut short are not counted.
    pub attempt: u32,
}

/// An event that failed too often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Which.
    pub position: Position,
    /// Where it lives.
    pub segment: Segment,
    /// The entity it is about.
    pub key: String,
    /// How often it failed.
    pub attempts: u32,
    /// Why it failed the last time.
    pub reason: String,
    /// When it was parked.
    pub at: Timestamp,
}

/// How a consumer stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerStatus {
    /// Its name.
    pub name: ConsumerName,
    /// What it is.
    pub consumer: Consumer,
    /// Every event up to here is settled: acknowledged, parked, dropped, or not for this consumer.
    pub floor: Position,
    /// The last position that has been looked at.
    pub read: Position,
    /// The last position of the log.
    pub head: Position,
    /// Positions from `floor` to `head`: at most so many events are still to be done.
    pub lag: u64,
    /// Events that are with members.
    pub in_flight: usize,
    /// Events that have been read and wait, for their key or for their next attempt.
    pub waiting: usize,
    /// Events that failed too often.
    pub parked: usize,
    /// Members that hold events or have asked lately.
    pub members: usize,
    /// Why it gives out nothing, if people must act first.
    pub stopped: Option<String>,
}

/// Why a consumer does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumerError {
    /// There is none of this name.
    #[error("there is no consumer {name}")]
    Unknown {
        /// The name.
        name: ConsumerName,
    },
    /// There is one of this name, and it is another.
    #[error("consumer {name} exists and is another")]
    Exists {
        /// The name.
        name: ConsumerName,
    },
    /// The member does not hold these events: they were never given to it, or it held them for too
    /// long. Whatever else the call named is done.
    #[error("{} events, the first at {}, are not with this member", positions.len(), positions.first().copied().unwrap_or_default())]
    NotDelivered {
        /// Their positions.
        positions: Vec<Position>,
    },
    /// No parked event is at this position.
    #[error("no parked event is at {position}")]
    NotParked {
        /// The position.
        position: Position,
    },
    /// [`PARKED_MAX`] events are parked: somebody must look at them first.
    #[error(
        "{parked} events are parked, and the consumer gives out nothing until some are retried or dropped"
    )]
    ParkedFull {
        /// How many.
        parked: usize,
    },
    /// A limit on the number of things.
    #[error("there are {max} {what}, which is the most there may be")]
    TooMany {
        /// Of what: `consumers` or `members`.
        what: String,
        /// The limit.
        max: usize,
    },
    /// The request is out of bounds.
    #[error("the request is refused: {detail}")]
    Invalid {
        /// What is wrong, with the limit.
        detail: String,
    },
    /// The caller may not read what the consumer reads.
    #[error("{actor} may not read {glob}")]
    Forbidden {
        /// Who asked.
        actor: String,
        /// The glob.
        glob: SegmentGlob,
    },
    /// The log under the consumer.
    #[error(transparent)]
    Read(ReadError),
    /// The change could not be made durable, and may be undone by a crash.
    #[error("the consumer's state cannot be stored: {detail}")]
    Storage {
        /// What the file system said.
        detail: String,
    },
}

/// The consumers of one log, with the scope of one caller. Whoever may read all that a consumer
/// reads may use it. In process or over HTTP; the same semantics.
pub trait Consumers: Send + Sync + fmt::Debug {
    /// Makes a consumer, durably. Making it again, the same, changes nothing.
    fn create(
        &self,
        name: ConsumerName,
        consumer: Consumer,
    ) -> BoxFuture<'_, Result<ConsumerStatus, ConsumerError>>;

    /// Ends a consumer and forgets its state, durably.
    fn remove(&self, name: ConsumerName) -> BoxFuture<'_, Result<(), ConsumerError>>;

    /// Those that the caller may use, by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ConsumerStatus>, ConsumerError>>;

    /// How one stands.
    fn status(&self, name: ConsumerName) -> BoxFuture<'_, Result<ConsumerStatus, ConsumerError>>;

    /// The next events for a member, oldest first; none if none came while it waited. Fewer than
    /// asked for is usual. An answer that is lost on its way is delivered again after the timeout.
    fn next(
        &self,
        name: ConsumerName,
        poll: Poll,
    ) -> BoxFuture<'_, Result<Vec<Delivered>, ConsumerError>>;

    /// Settles events. After a crash of the log an acknowledgment of the last second may be
    /// forgotten and the event delivered again.
    fn ack(&self, name: ConsumerName, ack: Ack) -> BoxFuture<'_, Result<(), ConsumerError>>;

    /// Gives an event back: it comes again after a pause that doubles, or is parked.
    fn nack(&self, name: ConsumerName, nack: Nack) -> BoxFuture<'_, Result<(), ConsumerError>>;

    /// Up to `limit` parked events after a position, oldest first.
    fn parked(
        &self,
        name: ConsumerName,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Parked>, ConsumerError>>;

    /// Puts a parked event in front of its key again, with all its attempts, durably.
    fn retry(
        &self,
        name: ConsumerName,
        position: Position,
    ) -> BoxFuture<'_, Result<(), ConsumerError>>;

    /// Gives a parked event up, durably.
    fn drop_parked(
        &self,
        name: ConsumerName,
        position: Position,
    ) -> BoxFuture<'_, Result<(), ConsumerError>>;

    /// Begins again after `position`, durably: what is with members is taken from them, what is
    /// parked behind it comes again.
    fn reset(
        &self,
        name: ConsumerName,
        position: Position,
    ) -> BoxFuture<'_, Result<ConsumerStatus, ConsumerError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_may_be_as_short_as_nothing() {
        let consumer: Consumer = serde_json::from_str("{}").unwrap();
        assert_eq!(consumer, Consumer::of(Filter::default()));
        assert!(serde_json::from_str::<Consumer>("{\"from\": 1}").is_err());
        let consumer: Consumer = serde_json::from_str("{\"start\":{\"after\":7}}").unwrap();
        assert_eq!(consumer.start, Start::After(Position(7)));
    }
}
