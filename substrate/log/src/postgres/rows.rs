//! Events as rows, both ways. A row is checked as bytes of a file are: it may have been changed.

use serde_json::value::RawValue;
use tabbify_types::{EventId, Position, Recorded, Rev, Timestamp};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::record::BatchPlace;

/// The columns of an event, in the order of [`decode`] and [`Columns`].
pub(super) const COLUMNS: &str = "position, segment, key, rev, id, kind, version, batch_index, batch_len, \
     at, actor, cause, trace, data";

/// A number of ours as PostgreSQL has it. Ours stay far below: they count things that were written.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A position from a row; what is below zero becomes 0, which is none.
pub(super) fn position(number: i64) -> Position {
    Position(u64::try_from(number).unwrap_or(0))
}

/// The event of a row of [`COLUMNS`].
pub(super) fn decode(row: &Row) -> Result<(Recorded, BatchPlace), &'static str> {
    let number = |column: usize| {
        let number: i64 = row.get(column);
        u64::try_from(number).map_err(|_| "a number below zero")
    };
    let small = |column: usize| {
        let number: i32 = row.get(column);
        u16::try_from(number).map_err(|_| "a number beyond 65535")
    };
    let text = |column: usize| {
        let bytes: &[u8] = row.get(column);
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| "a text that is not UTF-8")
    };
    let segment: &str = row.get(1);
    let (cause, trace) = (number(11)?, text(12)?);
    let event = Recorded {
        position: Position(number(0)?),
        segment: segment.parse().map_err(|_| "an event of a bad segment")?,
        key: text(2)?,
        rev: Rev(number(3)?),
        id: EventId::from_uuid(row.get(4)),
        kind: row.get(5),
        version: small(6)?,
        at: Timestamp::from_millis(number(9)?),
        actor: text(10)?,
        cause: (cause != 0).then_some(Position(cause)),
        trace: (!trace.is_empty()).then_some(trace),
        data: RawValue::from_string(row.get(13)).map_err(|_| "an event whose data is not JSON")?,
    };
    let place = BatchPlace {
        index: small(7)?,
        len: small(8)?,
    };
    Ok((event, place))
}

/// Events as one array a column, for an insert of any number of rows.
#[derive(Debug, Default)]
pub(super) struct Columns<'a> {
    position: Vec<i64>,
    segment: Vec<&'a str>,
    key: Vec<&'a [u8]>,
    rev: Vec<i64>,
    id: Vec<Uuid>,
    kind: Vec<&'a str>,
    version: Vec<i32>,
    batch_index: Vec<i32>,
    batch_len: Vec<i32>,
    at: Vec<i64>,
    actor: Vec<&'a [u8]>,
    cause: Vec<i64>,
    trace: Vec<&'a [u8]>,
    data: Vec<&'a str>,
}

/// The types of [`Columns::arrays`].
pub(super) const ARRAYS: [Type; 14] = [
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT8_ARRAY,
    Type::UUID_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT4_ARRAY,
    Type::INT4_ARRAY,
    Type::INT4_ARRAY,
    Type::INT8_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT8_ARRAY,
    Type::BYTEA_ARRAY,
    Type::TEXT_ARRAY,
];

impl<'a> Columns<'a> {
    pub(super) fn push(&mut self, event: &'a Recorded, place: BatchPlace) {
        self.position.push(signed(event.position.get()));
        self.segment.push(event.segment.as_str());
        self.key.push(event.key.as_bytes());
        self.rev.push(signed(event.rev.get()));
        self.id.push(event.id.uuid());
        self.kind.push(&event.kind);
        self.version.push(event.version.into());
        self.batch_index.push(place.index.into());
        self.batch_len.push(place.len.into());
        self.at.push(signed(event.at.millis()));
        self.actor.push(event.actor.as_bytes());
        self.cause
            .push(signed(event.cause.map_or(0, Position::get)));
        self.trace
            .push(event.trace.as_deref().unwrap_or_default().as_bytes());
        self.data.push(event.data.get());
    }

    /// In the order of [`COLUMNS`].
    pub(super) fn arrays(&self) -> [&(dyn ToSql + Sync); 14] {
        [
            &self.position,
            &self.segment,
            &self.key,
            &self.rev,
            &self.id,
            &self.kind,
            &self.version,
            &self.batch_index,
            &self.batch_len,
            &self.at,
            &self.actor,
            &self.cause,
            &self.trace,
            &self.data,
        ]
    }
}
