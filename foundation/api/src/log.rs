//! The log, as every role uses it: one trait, two transports (in process and HTTP), the same
//! semantics.
//!
//! **Law.** An event is a fact. It has its gapless global position from commit on, never before.
//! Once [`EventLog::append`] has answered, the event survives a crash of every process and loss of
//! power. Readers see events in position order, each exactly as appended.
//!
//! ```text
//!   positions   1  2  3  4  5  6 │ 7 …
//!                                └ head = 6: the last durable position
//!   subscribe(after = 3):  4 5 6 CaughtUp(6) then 7 as it commits; no gap, no duplicate
//! ```

mod line;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tabbify_types::{EventId, NewEvent, Position, Recorded, Rev, Segment, SegmentGlob, Tenant};

use crate::auth::{AuthError, Identity};
use crate::{BoxFuture, ErrorCode};

pub use line::Line;

/// LIMIT: events in one batch.
pub const BATCH_EVENTS_MAX: usize = 1024;
/// LIMIT: bytes of one batch, as encoded in a frame.
pub const BATCH_LEN_MAX: usize = 4 * 1024 * 1024;
/// LIMIT: events in one page of a read.
pub const PAGE_EVENTS_MAX: usize = 10_000;

/// LIMIT: globs in one filter, and types in one filter.
pub const FILTER_GLOBS_MAX: usize = 64;
/// LIMIT: body of a request, in bytes of JSON.
pub const BODY_LEN_MAX: usize = 8 * 1024 * 1024;

/// `POST` an [`Append`], answered by [`Appended`].
pub const APPEND_PATH: &str = "/v1/log/append";
/// `GET` a page as lines of JSON, one event each. Query: `after`, `limit`, `segment` and `type` (both
/// repeatable), `key`. The page's other fields are in [`NEXT_AFTER_HEADER`] and [`HEAD_HEADER`].
pub const EVENTS_PATH: &str = "/v1/log/events";
/// `GET` a subscription: server-sent events, where every event has its position as `id`, or for
/// whoever accepts [`STREAM_MEDIA_TYPE`] frames with a length. Query as of [`EVENTS_PATH`] without
/// `limit`; the header `last-event-id` stands above `after`.
pub const SUBSCRIBE_PATH: &str = "/v1/log/subscribe";
/// `GET` with `upgrade:` [`SESSION_PROTOCOL`]: appends and their answers as frames on one connection.
pub const SESSION_PATH: &str = "/v1/log/session";
/// `POST` verifies the log as it is now, in the background, one verification at a time; `GET` is the
/// [`Verification`] that runs or ran last.
pub const VERIFY_PATH: &str = "/v1/log/verify";
/// `GET` the [`Head`].
pub const HEAD_PATH: &str = "/v1/log/head";
/// `GET` the list of consumers. Below it, by name: `PUT` makes one, `GET` is its status, `DELETE` ends
/// it; `POST` to `next`, `ack`, `nack`, `retry`, `drop`, `reset`; `GET` of `parked`.
pub const CONSUMERS_PATH: &str = "/v1/log/consumers";

/// Media type of a subscription as frames with a length (docs/protocols/log-http.md).
pub const STREAM_MEDIA_TYPE: &str = "application/vnd.tabbify.log-stream";
/// Protocol that [`SESSION_PATH`] upgrades to (docs/protocols/log-http.md).
pub const SESSION_PROTOCOL: &str = "tabbify-log-session/1";

/// Header of a page: [`Page::next_after`].
pub const NEXT_AFTER_HEADER: &str = "x-tabbify-next-after";
/// Header of a page: [`Page::head`].
pub const HEAD_HEADER: &str = "x-tabbify-head";

/// Server-sent event of [`Delivery::CaughtUp`]; its data is a [`Head`]. Log events have no name.
pub const CAUGHT_UP_EVENT: &str = "caught_up";
/// Server-sent event of [`Delivery::Progress`]; its data is a [`Head`].
pub const PROGRESS_EVENT: &str = "progress";
/// Server-sent event that ends a subscription; its data is a [`Problem`](crate::Problem).
pub const END_EVENT: &str = "end";

/// A position, as answer and as data of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The position.
    pub position: Position,
}

/// What exactly the log refuses: carried by a [`Problem`](crate::Problem), so that a client over the
/// network has the error that it would have in process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogProblem {
    /// [`AppendError::Conflict`]: the current revision.
    Conflict {
        /// The segment.
        segment: Segment,
        /// The key.
        key: String,
        /// Its current revision; 0 if nothing is there.
        rev: Rev,
    },
    /// [`AppendError::IdConflict`].
    IdConflict {
        /// The first such id.
        id: EventId,
    },
    /// [`AppendError::ExpectAhead`].
    ExpectAhead {
        /// The segment.
        segment: Segment,
        /// The key.
        key: String,
        /// What the writer expected.
        expected: Rev,
        /// Its current revision; 0 if nothing is there.
        rev: Rev,
    },
    /// [`AppendError::UnknownSegment`].
    UnknownSegment {
        /// The segment.
        segment: Segment,
    },
    /// [`AppendError::UnknownVersion`].
    UnknownVersion {
        /// The type.
        kind: String,
        /// The version that it came with.
        version: u16,
        /// The newest version that the log knows.
        newest: u16,
    },
    /// [`AppendError::Rate`].
    Rate {
        /// Whose.
        tenant: Tenant,
        /// When the same batch would be taken if nothing else came, in milliseconds.
        retry_after_ms: u64,
    },
    /// The caller may not write here.
    MayNotWrite {
        /// Who asked.
        actor: String,
        /// The segment.
        segment: Segment,
    },
    /// The caller may not read there.
    MayNotRead {
        /// Who asked.
        actor: String,
        /// The glob.
        glob: SegmentGlob,
    },
    /// [`ReadError::BeyondHead`].
    BeyondHead {
        /// What was asked for.
        after: Position,
        /// The last durable position.
        head: Position,
    },
    /// Positions that the member does not hold.
    NotDelivered {
        /// The positions.
        positions: Vec<Position>,
    },
    /// A position where nothing is parked.
    NotParked {
        /// The position.
        position: Position,
    },
    /// How many events are parked.
    ParkedFull {
        /// The number.
        parked: usize,
    },
    /// A limit on the number of things.
    TooMany {
        /// Of what.
        what: String,
        /// The limit.
        max: usize,
    },
}

/// What the writer believes about one (segment, key) before its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// Nothing has been written under the key yet.
    None,
    /// The last event under the key has this revision.
    Rev(Rev),
}

/// One atomic batch. A (segment, key) without an expectation is not checked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Append {
    /// 1 to [`BATCH_EVENTS_MAX`] events; all are written or none.
    pub events: Vec<NewEvent>,
    /// Conditions, each for one (segment, key).
    #[serde(default)]
    pub expect: Vec<Expectation>,
}

/// A condition of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The segment.
    pub segment: Segment,
    /// The key in it.
    pub key: String,
    /// What must hold.
    pub expect: Expect,
}

impl Append {
    /// A batch without conditions.
    #[must_use]
    pub fn of(events: Vec<NewEvent>) -> Self {
        Self {
            events,
            expect: Vec::new(),
        }
    }

    /// The same batch, written only if `expect` holds for (segment, key).
    #[must_use]
    pub fn expecting(mut self, segment: Segment, key: impl Into<String>, expect: Expect) -> Self {
        self.expect.push(Expectation {
            segment,
            key: key.into(),
            expect,
        });
        self
    }
}

/// The answer to a batch: the same for its first append and for every repetition of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// Position of the first event; the others follow without a gap.
    pub first: Position,
    /// Position of the last event.
    pub last: Position,
    /// Revision of each event in its (segment, key), in batch order.
    pub revs: Vec<Rev>,
}

/// Why a batch was not written. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// An expectation does not hold.
    #[error("{segment} {key:?} is at revision {actual}, not where the writer expected it")]
    Conflict {
        /// The segment.
        segment: Segment,
        /// The key.
        key: String,
        /// Its current revision; 0 if nothing is there.
        actual: Rev,
    },
    /// An id is in the log with other content, or a batch mixes known and new ids.
    #[error("event id {id} is in the log with other content or in another batch")]
    IdConflict {
        /// The first such id.
        id: EventId,
    },
    /// The writer expects a revision that the key has not reached: its record is of another log, or
    /// of one that lost its tail. Unlike a conflict, reading again does not mend it.
    #[error("{segment} {key:?} is at revision {actual}, and the writer has seen {expected}")]
    ExpectAhead {
        /// The segment.
        segment: Segment,
        /// The key.
        key: String,
        /// What the writer expected.
        expected: Rev,
        /// Its current revision; 0 if nothing is there.
        actual: Rev,
    },
    /// An event has more data than one may have. Larger things go to the object store.
    #[error("the event is too large: {detail}")]
    EventTooLarge {
        /// Which, how large, and the limit.
        detail: String,
    },
    /// The batch has more events or bytes than one may have.
    #[error("the batch is too large: {detail}")]
    BatchTooLarge {
        /// How large, and the limit.
        detail: String,
    },
    /// No such segment: neither one of the catalog nor, with an app's own types, one of a tenant.
    #[error("there is no segment {segment}; see docs/protocols/events.md")]
    UnknownSegment {
        /// The segment.
        segment: Segment,
    },
    /// The type is one of the catalog, and this version of it is newer than the log: versions are
    /// raised on the log first, and on its writers after `platform_version_raised`.
    #[error("version {version} of {kind} is not known here, up to {newest} is")]
    UnknownVersion {
        /// The type.
        kind: String,
        /// The version that it came with.
        version: u16,
        /// The newest version that the log knows.
        newest: u16,
    },
    /// The tenant appends more events or bytes than it may.
    #[error("{tenant} appends too fast; again in {retry_after_ms} ms")]
    Rate {
        /// Whose rate.
        tenant: Tenant,
        /// When the same batch would be taken if nothing else came.
        retry_after_ms: u64,
    },
    /// The service refuses the request as such: a token that is not valid any more, a body that it
    /// does not understand. The same request would be refused again.
    #[error("the log's service refuses: {}: {detail}", code.as_str())]
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        detail: String,
    },
    /// The batch breaks a limit or an event is malformed.
    #[error("the batch is refused: {detail}")]
    Invalid {
        /// What is wrong, with the limit.
        detail: String,
    },
    /// The writer's scope does not cover a segment.
    #[error("{actor} may not write to {segment}")]
    Forbidden {
        /// Who asked.
        actor: String,
        /// The segment.
        segment: Segment,
    },
    /// The log cannot grow: the disk is full. Known before the commit, so nothing is half-written
    /// and smaller batches may still fit; reading goes on.
    #[error("the log cannot grow: {detail}")]
    NoSpace {
        /// What the disk said.
        detail: String,
    },
    /// The log is stopping or has failed; the batch may or may not be written: repeat it with the
    /// same ids.
    #[error("the log is stopping")]
    Stopping,
}

/// What to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Segments to include; empty means every segment that the reader may read.
    #[serde(default)]
    pub segments: Vec<SegmentGlob>,
    /// Types to include; empty means all.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// Only this key.
    #[serde(default)]
    pub key: Option<String>,
}

impl Filter {
    /// Everything in the segments of these globs.
    #[must_use]
    pub fn segments(globs: impl IntoIterator<Item = SegmentGlob>) -> Self {
        Self {
            segments: globs.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Whether `event` is wanted.
    #[must_use]
    pub fn matches(&self, event: &Recorded) -> bool {
        (self.segments.is_empty()
            || self
                .segments
                .iter()
                .any(|glob| glob.matches(&event.segment)))
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.key.as_ref().is_none_or(|key| *key == event.key)
    }
}

/// One page of history.
#[derive(Debug, Clone)]
pub struct Page {
    /// Matching events in position order.
    pub events: Vec<Arc<Recorded>>,
    /// Read on from here: everything up to and including it has been looked at.
    pub next_after: Position,
    /// The last durable position when the page was read.
    pub head: Position,
}

/// Why the log cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The position is beyond the last durable one: the reader's own record is from another log or
    /// from one that lost its tail.
    #[error("position {after} is beyond the head of the log, {head}")]
    BeyondHead {
        /// What was asked for.
        after: Position,
        /// The last durable position.
        head: Position,
    },
    /// The reader's scope does not cover what it asked for.
    #[error("{actor} may not read {glob}")]
    Forbidden {
        /// Who asked.
        actor: String,
        /// The glob.
        glob: SegmentGlob,
    },
    /// The service refuses the request as such, such as a token that has ended. Final for this token:
    /// asking again asks with the next one.
    #[error("the log's service refuses: {}: {detail}", code.as_str())]
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        detail: String,
    },
    /// The stored bytes are not what was written.
    #[error("the log is damaged: {detail}")]
    Damaged {
        /// Extent, byte and what is wrong there.
        detail: String,
    },
    /// A part of the log is in an object store, and what is asked for cannot be read from there: the
    /// store is away, or has lost or damaged it. The rest is read, and appends are taken.
    #[error("a stored part of the log cannot be read: {detail}")]
    Stored {
        /// Extent, object, and what to do.
        detail: String,
    },
    /// The log is stopping.
    #[error("the log is stopping")]
    Stopping,
}

/// What a subscription delivers.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// The next matching event.
    Event(Arc<Recorded>),
    /// Every event up to here has been delivered or did not match; what follows is live. Comes once.
    CaughtUp(Position),
    /// Nothing matched up to here: a subscriber may store it and resume from it.
    Progress(Position),
}

/// A subscription: history first, then live. Pulling is the only back-pressure: a reader that stops
/// costs the writer nothing and later reads from disk.
pub trait Subscribe: Send + fmt::Debug {
    /// The next delivery; waits while there is none. Safe to cancel.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, ReadError>>;
}

/// The log, with the scope of one reader and writer.
pub trait EventLog: Send + Sync + fmt::Debug {
    /// Writes a batch durably, or nothing. Ids are checked before expectations: a batch whose ids
    /// are all known, in the same order and with the same content, gets its first answer.
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>>;

    /// Up to `limit` matching events after `after`.
    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>>;

    /// Matching events from after `after` on, without end.
    ///
    /// # Errors
    /// [`ReadError::BeyondHead`] and [`ReadError::Forbidden`]. A log that is reached over a network
    /// cannot know at once: it says the same in the first [`Subscribe::next`].
    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError>;

    /// The last durable position; over a network, the last that this client has been told of.
    fn head(&self) -> Position;
}

/// A log on its storage, before anybody's scope: what a service of the log serves.
pub trait LogEngine: Send + Sync + fmt::Debug {
    /// The log as `scope` may use it.
    fn client(&self, scope: LogScope) -> Arc<dyn EventLog>;

    /// The last durable position.
    fn head(&self) -> Position {
        self.client(LogScope::verifier()).head()
    }

    /// Verifies what is stored of the events after `after`, up to `upto`: one piece of it, so that
    /// whoever asks may pause. Answers the last position that is verified with it. An engine with a
    /// chain overrides this: reading every event checks what reading checks.
    fn verify(
        &self,
        after: Position,
        upto: Position,
    ) -> BoxFuture<'_, Result<Position, ReadError>> {
        let client = self.client(LogScope::verifier());
        Box::pin(async move {
            let page = client
                .read(Filter::default(), after, PAGE_EVENTS_MAX)
                .await?;
            let due = (after.get() + 1..).map(Position);
            let mut pairs = page.events.iter().zip(due);
            match pairs.find(|(event, due)| event.position != *due) {
                None => Ok(page.next_after.min(upto)),
                Some((_, due)) => Err(ReadError::Damaged {
                    detail: format!("no event is at position {due}"),
                }),
            }
        })
    }
}

/// How far a verification of the log has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// What is verified: everything up to the head when it began.
    pub upto: Position,
    /// Everything up to here is intact.
    pub verified: Position,
    /// Whether it goes on.
    pub state: VerificationState,
}

/// What became of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerificationState {
    /// It goes on.
    Running,
    /// It found everything intact.
    Intact,
    /// It found damage behind the last verified position.
    Damaged {
        /// Where and what.
        detail: String,
    },
    /// It broke off: the log is stopping, or could not be read.
    Stopped,
}

/// Says what the bearer of a token may do with the log. Offline: called once a request.
pub trait Authorize: Send + Sync + fmt::Debug {
    /// The scope that the token gives; its actor stands in every event that the bearer appends.
    ///
    /// # Errors
    /// [`AuthError`], if the token gives none.
    fn authorize(&self, token: &str) -> Result<LogScope, AuthError>;
}

/// Who uses the log and for what; in process it is given at start, over HTTP it comes from a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogScope {
    /// Stands as `actor` in every event.
    pub actor: String,
    /// Segments it may append to.
    pub write: Vec<SegmentGlob>,
    /// Segments it may read.
    pub read: Vec<SegmentGlob>,
}

impl LogScope {
    /// Reads everything to verify it, and writes nothing.
    fn verifier() -> Self {
        Self {
            actor: "verifier".to_owned(),
            write: Vec::new(),
            read: vec![SegmentGlob::all()],
        }
    }
}

/// The log for callers that a service has authenticated: each writes under its own name and no
/// further than its own tenant. In process the composition root gives it; over the network it is
/// the caller's token.
pub trait LogAccess: Send + Sync + fmt::Debug {
    /// The log as this caller may use it.
    fn of(&self, caller: &Identity) -> Arc<dyn EventLog>;
}

/// The head revisions of a projection's keys, for `expect`.
pub type Revs = BTreeMap<(Segment, String), Rev>;
