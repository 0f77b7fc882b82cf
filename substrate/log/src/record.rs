//! One event inside a frame: a fixed header, the texts, the JSON as it was given.
//!
//! ```text
//!   0        4        8      16     24      32     48       50     52     54       59    64
//!   ├────────┼────────┼──────┼──────┼───────┼──────┼────────┼──────┼──────┼────────┼─────┤
//!   │ record │ data   │ rev  │ at   │ cause │ id   │ data   │ place│ batch│ text   │ 0   │
//!   │ length │ length │ u64  │ ms   │ 0=none│ 16 B │ version│ u16  │ len  │ lengths│     │
//!   └────────┴────────┴──────┴──────┴───────┴──────┴────────┴──────┴──────┴────────┴─────┘
//!   64: segment · key · type · actor · trace · data      (five text lengths, one byte each)
//! ```

use serde_json::value::RawValue;
use tabbify_types::envelope::DATA_LEN_MAX;
use tabbify_types::{EventId, NewEvent, Position, Recorded, Rev, Segment, Timestamp};
use uuid::Uuid;

use crate::fields::{Fields, size};

/// Bytes before the texts.
pub(crate) const RECORD_HEADER_LEN: usize = 64;
/// LIMIT: bytes of one record: its texts are at most 255 bytes each.
pub(crate) const RECORD_LEN_MAX: usize = RECORD_HEADER_LEN + 5 * 255 + DATA_LEN_MAX;

/// Where an event stands in the batch it was appended with: a repeated batch must be the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchPlace {
    pub(crate) index: u16,
    pub(crate) len: u16,
}

/// An event as it lies in a frame; borrowing, with the JSON not looked at.
#[derive(Debug)]
pub struct EventRef<'a> {
    /// As of [`Recorded`].
    pub position: Position,
    /// As of [`Recorded`].
    pub rev: Rev,
    /// As of [`Recorded`].
    pub at: Timestamp,
    /// As of [`Recorded`].
    pub cause: Option<Position>,
    /// As of [`Recorded`].
    pub id: EventId,
    /// As of [`Recorded`].
    pub version: u16,
    pub(crate) place: BatchPlace,
    /// As of [`Recorded`].
    pub segment: &'a str,
    /// As of [`Recorded`].
    pub key: &'a str,
    /// As of [`Recorded`].
    pub kind: &'a str,
    /// As of [`Recorded`].
    pub actor: &'a str,
    /// As of [`Recorded`].
    pub trace: Option<&'a str>,
    /// The JSON object that the writer gave, byte for byte.
    pub data: &'a str,
    /// The whole record.
    pub(crate) bytes: &'a [u8],
}

impl EventRef<'_> {
    /// The event as readers get it. Here the JSON is checked, which is all that is done to it.
    pub(crate) fn to_recorded(&self) -> Result<Recorded, &'static str> {
        let segment: Segment = self
            .segment
            .parse()
            .map_err(|_| "an event of a bad segment")?;
        self.to_recorded_in(segment)
    }

    /// The same, of a segment that has been parsed.
    pub(crate) fn to_recorded_in(&self, segment: Segment) -> Result<Recorded, &'static str> {
        let data = RawValue::from_string(self.data.to_owned());
        Ok(Recorded {
            position: self.position,
            segment,
            key: self.key.to_owned(),
            rev: self.rev,
            id: self.id,
            kind: self.kind.to_owned(),
            version: self.version,
            at: self.at,
            actor: self.actor.to_owned(),
            cause: self.cause,
            trace: self.trace.map(str::to_owned),
            data: data.map_err(|_| "an event whose data is not JSON")?,
        })
    }
}

/// Bytes that `event` takes in a frame when `actor` writes it.
pub(crate) fn record_len(event: &NewEvent, actor: &str) -> usize {
    RECORD_HEADER_LEN
        + event.segment.as_str().len()
        + event.key.len()
        + event.kind.len()
        + actor.len()
        + event.trace.as_ref().map_or(0, String::len)
        + event.data.get().len()
}

/// Appends the bytes of `event` to `buf`.
pub(crate) fn encode(buf: &mut Vec<u8>, event: &Recorded, place: BatchPlace) {
    let text_len = |text: &str| {
        u8::try_from(text.len()).expect("INVARIANT: batch::check has bounded every text")
    };
    let trace = event.trace.as_deref().unwrap_or_default();
    let segment = event.segment.as_str();
    let start = buf.len();
    buf.extend_from_slice(&[0; 4]);
    let data_len = u32::try_from(event.data.get().len());
    let data_len = data_len.expect("INVARIANT: batch::check has bounded the data");
    buf.extend_from_slice(&data_len.to_le_bytes());
    buf.extend_from_slice(&event.rev.get().to_le_bytes());
    buf.extend_from_slice(&event.at.millis().to_le_bytes());
    buf.extend_from_slice(&event.cause.map_or(0, Position::get).to_le_bytes());
    buf.extend_from_slice(event.id.uuid().as_bytes());
    buf.extend_from_slice(&event.version.to_le_bytes());
    buf.extend_from_slice(&place.index.to_le_bytes());
    buf.extend_from_slice(&place.len.to_le_bytes());
    for text in [segment, &event.key, &event.kind, &event.actor, trace] {
        buf.push(text_len(text));
    }
    buf.extend_from_slice(&[0; 5]);
    for text in [
        segment,
        &event.key,
        &event.kind,
        &event.actor,
        trace,
        event.data.get(),
    ] {
        buf.extend_from_slice(text.as_bytes());
    }
    let len = u32::try_from(buf.len() - start);
    let len = len.expect("INVARIANT: batch::check has bounded the record");
    buf[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

/// The event at the start of `bytes`, and the bytes it takes.
pub(crate) fn decode(
    bytes: &[u8],
    position: Position,
) -> Result<(EventRef<'_>, usize), &'static str> {
    let len = Fields::new(bytes)
        .u32()
        .ok_or("an event without a length")?;
    let whole = bytes
        .get(..size(len))
        .ok_or("an event longer than its frame")?;
    let event = fields(whole, position).ok_or("an event of malformed fields")?;
    Ok((event, whole.len()))
}

fn fields(whole: &[u8], position: Position) -> Option<EventRef<'_>> {
    let mut header = Fields::new(whole.get(..RECORD_HEADER_LEN)?);
    let mut rest = Fields::new(whole.get(RECORD_HEADER_LEN..)?);
    let (len, data_len) = (header.u32()?, header.u32()?);
    let (rev, at, cause) = (header.u64()?, header.u64()?, header.u64()?);
    let id = header.array::<16>()?;
    let (version, index, batch_len) = (header.u16()?, header.u16()?, header.u16()?);
    let mut texts = [""; 5];
    for text in &mut texts {
        *text = rest.text(usize::from(header.u8()?))?;
    }
    let data = rest.text(size(data_len))?;
    let [segment, key, kind, actor, trace] = texts;
    let used = RECORD_HEADER_LEN + texts.iter().map(|t| t.len()).sum::<usize>() + data.len();
    let sound = header.array::<5>()? == [0; 5]
        && used == size(len)
        && index < batch_len
        && Timestamp::from_millis(at).millis() == at;
    sound.then_some(EventRef {
        position,
        rev: Rev(rev),
        at: Timestamp::from_millis(at),
        cause: (cause != 0).then_some(Position(cause)),
        id: EventId::from_uuid(Uuid::from_bytes(id)),
        version,
        place: BatchPlace {
            index,
            len: batch_len,
        },
        segment,
        key,
        kind,
        actor,
        trace: (!trace.is_empty()).then_some(trace),
        data,
        bytes: whole,
    })
}
