//! One event, before and after the log has taken it (DESIGN section 5).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::{Event, EventError};
use crate::{EventId, Position, Rev, Segment, Timestamp};

/// LIMIT: `data` of one event, in bytes of JSON. Larger things go to the object store and the
/// event carries their digest.
pub const DATA_LEN_MAX: usize = 64 * 1024;
/// LIMIT: `key` of one event, in bytes.
pub const KEY_LEN_MAX: usize = 128;
/// LIMIT: `type` of one event, in bytes.
pub const TYPE_LEN_MAX: usize = 64;
/// LIMIT: `actor` of one event, in bytes.
pub const ACTOR_LEN_MAX: usize = 128;
/// LIMIT: `trace` of one event, in bytes: a W3C traceparent is 55.
pub const TRACE_LEN_MAX: usize = 64;

/// An event that a writer hands to the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewEvent {
    /// Chosen by the writer; appending it again appends nothing.
    pub id: EventId,
    /// Where it goes: one literal segment.
    pub segment: Segment,
    /// The entity it is about, such as an app id; orders its history. Any text of 1 to 128 bytes.
    pub key: String,
    /// What happened, `snake_case`, past tense.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version of the shape of `data`, from 1.
    pub version: u16,
    /// The event that this one follows from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Position>,
    /// W3C traceparent of the request that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// A JSON object of at most [`DATA_LEN_MAX`] bytes.
    pub data: Box<RawValue>,
}

/// An event as the log keeps it; equal bytes for every reader, for ever.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recorded {
    /// Gapless global position from 1, given at commit.
    pub position: Position,
    /// Where it lives.
    pub segment: Segment,
    /// The entity it is about.
    pub key: String,
    /// Gapless revision from 1 of this (segment, key).
    pub rev: Rev,
    /// Chosen by the writer.
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version of the shape of `data`.
    pub version: u16,
    /// When the log took it. Never used for order.
    pub at: Timestamp,
    /// Who wrote it: the subject of the writer's token.
    pub actor: String,
    /// The event that this one follows from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Position>,
    /// W3C traceparent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// The JSON object that the writer gave, byte for byte.
    pub data: Box<RawValue>,
}

impl NewEvent {
    /// An event of the catalog with a freshly minted id.
    ///
    /// # Errors
    /// [`EventError::Data`] if its data is not JSON of at most [`DATA_LEN_MAX`] bytes.
    pub fn new(segment: Segment, key: impl ToString, event: &Event) -> Result<Self, EventError> {
        Self::with_id(EventId::mint(), segment, key, event)
    }

    /// An event of the catalog with an id of the caller's, for steps that may be repeated.
    ///
    /// # Errors
    /// As [`NewEvent::new`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "keys are ids and texts, given by value"
    )]
    pub fn with_id(
        id: EventId,
        segment: Segment,
        key: impl ToString,
        event: &Event,
    ) -> Result<Self, EventError> {
        let data = event.data()?;
        Ok(Self {
            id,
            segment,
            key: key.to_string(),
            kind: event.kind().to_owned(),
            version: event.version(),
            cause: None,
            trace: None,
            data,
        })
    }

    /// The same event, following from `cause`.
    #[must_use]
    pub fn caused_by(mut self, cause: Position) -> Self {
        self.cause = Some(cause);
        self
    }
}

impl Recorded {
    /// What the event says, if this version of the catalog knows its type.
    ///
    /// # Errors
    /// [`EventError`] for a known type of unknown version or with data of another shape: the
    /// projection that claims this type must stop.
    pub fn event(&self) -> Result<Option<Event>, EventError> {
        Event::decode(&self.kind, self.version, self.data.get())
    }
}
