//! Events and batches in frames: both directions of each shape side by side. Numbers are
//! little-endian, a text is its length as u32 and its bytes, data is as it was given.

use bytes::{BufMut as _, BytesMut};
use serde_json::value::RawValue;
use tabbify_api::log::{Append, Appended, Delivery, Expect, Expectation};
use tabbify_api::{ErrorCode, Problem};
use tabbify_types::{EventId, NewEvent, Position, Recorded, Rev, Segment, SegmentGlob, Timestamp};
use uuid::Uuid;

use super::frames::{self, Frame, kind};
use super::problem;
use crate::fields::{Fields, size};

/// Bits that say which optional fields are there.
const HAS_CAUSE: u8 = 1;
const HAS_TRACE: u8 = 2;
/// What an expectation is.
const EXPECT_NONE: u8 = 0;
const EXPECT_REV: u8 = 1;

fn put_text(out: &mut Vec<u8>, text: &str) {
    let len = u32::try_from(text.len());
    let len = len.expect("INVARIANT: nobody holds 4 GiB of text for an event");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn text<'a>(fields: &mut Fields<'a>) -> Option<&'a str> {
    let len = size(fields.u32()?);
    fields.text(len)
}

/// What both kinds of events begin with.
fn put_common(
    out: &mut Vec<u8>,
    id: EventId,
    version: u16,
    cause: Option<Position>,
    trace: Option<&str>,
) {
    out.extend_from_slice(id.uuid().as_bytes());
    out.extend_from_slice(&version.to_le_bytes());
    let flag = |is: bool, bit: u8| if is { bit } else { 0 };
    out.push(flag(cause.is_some(), HAS_CAUSE) | flag(trace.is_some(), HAS_TRACE));
    if let Some(cause) = cause {
        put_u64(out, cause.get());
    }
    if let Some(trace) = trace {
        put_text(out, trace);
    }
}

struct Common<'a> {
    id: EventId,
    version: u16,
    cause: Option<Position>,
    trace: Option<&'a str>,
}

fn common<'a>(fields: &mut Fields<'a>) -> Option<Common<'a>> {
    let id = EventId::from_uuid(Uuid::from_bytes(fields.array()?));
    let (version, flags) = (fields.u16()?, fields.u8()?);
    let mut common = Common {
        id,
        version,
        cause: None,
        trace: None,
    };
    if flags & HAS_CAUSE != 0 {
        common.cause = Some(Position(fields.u64()?));
    }
    if flags & HAS_TRACE != 0 {
        common.trace = Some(text(fields)?);
    }
    (flags & !(HAS_CAUSE | HAS_TRACE) == 0).then_some(common)
}

/// Appends what a subscription delivers.
pub(crate) fn push_delivery(out: &mut Vec<u8>, delivery: &Delivery) {
    match delivery {
        Delivery::Event(event) => push_event(out, event),
        Delivery::CaughtUp(at) => frames::push(out, kind::CAUGHT_UP, |out| put_u64(out, at.get())),
        Delivery::Progress(at) => frames::push(out, kind::PROGRESS, |out| put_u64(out, at.get())),
    }
}

/// Appends an event.
pub(crate) fn push_event(out: &mut Vec<u8>, event: &Recorded) {
    frames::push(out, kind::EVENT, |out| {
        put_u64(out, event.position.get());
        put_u64(out, event.rev.get());
        put_u64(out, event.at.millis());
        put_common(
            out,
            event.id,
            event.version,
            event.cause,
            event.trace.as_deref(),
        );
        for text in [
            event.segment.as_str(),
            &event.key,
            &event.kind,
            &event.actor,
        ] {
            put_text(out, text);
        }
        out.extend_from_slice(event.data.get().as_bytes());
    });
}

/// The event in the body of a frame.
pub(crate) fn event(body: &[u8]) -> Result<Recorded, &'static str> {
    event_fields(body).ok_or("an event of malformed fields")
}

fn event_fields(body: &[u8]) -> Option<Recorded> {
    let mut fields = Fields::new(body);
    let (position, rev, at) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let common = common(&mut fields)?;
    let mut texts = [""; 4];
    for part in &mut texts {
        *part = text(&mut fields)?;
    }
    let [segment, key, kind, actor] = texts;
    let data = std::str::from_utf8(fields.rest()).ok()?;
    Some(Recorded {
        position: Position(position),
        segment: segment.parse().ok()?,
        key: key.to_owned(),
        rev: Rev(rev),
        id: common.id,
        kind: kind.to_owned(),
        version: common.version,
        at: Timestamp::from_millis(at),
        actor: actor.to_owned(),
        cause: common.cause,
        trace: common.trace.map(str::to_owned),
        data: RawValue::from_string(data.to_owned()).ok()?,
    })
}

/// The position in the body of a mark.
pub(crate) fn position(body: &[u8]) -> Result<Position, &'static str> {
    let mut fields = Fields::new(body);
    let position = fields.u64().filter(|_| fields.rest().is_empty());
    position.map(Position).ok_or("a mark without a position")
}

/// A batch as the body of a request, behind the request's number.
pub(crate) fn batch_body(batch: &Append) -> Vec<u8> {
    let data = batch
        .events
        .iter()
        .map(|event| event.data.get().len() + 128);
    let mut out = Vec::with_capacity(64 + data.sum::<usize>());
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&count(batch.events.len()));
    out.extend_from_slice(&count(batch.expect.len()));
    for event in &batch.events {
        let trace = event.trace.as_deref();
        put_common(&mut out, event.id, event.version, event.cause, trace);
        for text in [
            event.segment.as_str(),
            &event.key,
            &event.kind,
            event.data.get(),
        ] {
            put_text(&mut out, text);
        }
    }
    for expectation in &batch.expect {
        put_text(&mut out, expectation.segment.as_str());
        put_text(&mut out, &expectation.key);
        match expectation.expect {
            Expect::None => out.push(EXPECT_NONE),
            Expect::Rev(rev) => {
                out.push(EXPECT_REV);
                put_u64(&mut out, rev.get());
            }
        }
    }
    out
}

/// Appends a request.
pub(crate) fn push_request(out: &mut BytesMut, request: u32, batch_body: &[u8]) {
    let len = u32::try_from(request_len(batch_body));
    let len = len.expect("INVARIANT: its length has been compared with FRAME_LEN_MAX");
    out.put_u32_le(len);
    out.put_u8(kind::APPEND);
    out.put_u32_le(request);
    out.put_slice(batch_body);
}

/// Bytes of the frame of a request with this body, less its length field.
pub(crate) const fn request_len(batch_body: &[u8]) -> usize {
    1 + 4 + batch_body.len()
}

/// The request in the body of a frame: its number, and the batch or what is wrong with it. Without a
/// number nobody could be told: that is the outer error.
pub(crate) fn request(body: &[u8]) -> Result<(u32, Result<Append, Box<Problem>>), &'static str> {
    let mut fields = Fields::new(body);
    let number = fields.u32().ok_or("a request without a number")?;
    Ok((number, batch(&mut fields)))
}

fn batch(fields: &mut Fields<'_>) -> Result<Append, Box<Problem>> {
    let malformed = || problem::plain(ErrorCode::BadRequest, "a batch of malformed fields");
    let (events, expect) = fields.u32().zip(fields.u32()).ok_or_else(malformed)?;
    let mut batch = Append::default();
    // The counts are anybody's claim: room is made as the bytes turn out to be there.
    for _ in 0..events {
        batch.events.push(new_event(fields, &malformed)?);
    }
    for _ in 0..expect {
        let names = text(fields).zip(text(fields)).zip(fields.u8());
        let ((segment, key), tag) = names.ok_or_else(malformed)?;
        let expect = match tag {
            EXPECT_NONE => Expect::None,
            EXPECT_REV => Expect::Rev(Rev(fields.u64().ok_or_else(malformed)?)),
            _ => return Err(malformed()),
        };
        batch.expect.push(Expectation {
            segment: one_segment(segment)?,
            key: key.to_owned(),
            expect,
        });
    }
    match fields.rest().is_empty() {
        true => Ok(batch),
        false => Err(malformed()),
    }
}

fn new_event(
    fields: &mut Fields<'_>,
    malformed: &impl Fn() -> Box<Problem>,
) -> Result<NewEvent, Box<Problem>> {
    let common = common(fields).ok_or_else(malformed)?;
    let mut texts = [""; 4];
    for part in &mut texts {
        *part = text(fields).ok_or_else(malformed)?;
    }
    let [segment, key, kind, data] = texts;
    let data = RawValue::from_string(data.to_owned()).map_err(|error| {
        let detail = format!("the data of {} is not JSON: {error}", common.id);
        problem::plain(ErrorCode::BadJson, &detail)
    });
    Ok(NewEvent {
        id: common.id,
        segment: one_segment(segment)?,
        key: key.to_owned(),
        kind: kind.to_owned(),
        version: common.version,
        cause: common.cause,
        trace: common.trace.map(str::to_owned),
        data: data?,
    })
}

/// The segment of this name; a glob is told from what is no name at all.
pub(crate) fn one_segment(name: &str) -> Result<Segment, Box<Problem>> {
    name.parse().map_err(|error| {
        let code = match name.parse::<SegmentGlob>() {
            Ok(_) => ErrorCode::GlobInAppend,
            Err(_) => ErrorCode::BadRequest,
        };
        problem::plain(code, &format!("{error}"))
    })
}

/// Appends the answer to a request.
pub(crate) fn push_appended(out: &mut Vec<u8>, request: u32, appended: &Appended) {
    frames::push(out, kind::APPENDED, |out| {
        out.extend_from_slice(&request.to_le_bytes());
        put_u64(out, appended.first.get());
        put_u64(out, appended.last.get());
        appended.revs.iter().for_each(|rev| put_u64(out, rev.get()));
    });
}

/// Appends the refusal of a request.
pub(crate) fn push_refused(out: &mut Vec<u8>, request: u32, problem: &Problem) {
    frames::push(out, kind::REFUSED, |out| {
        out.extend_from_slice(&request.to_le_bytes());
        frames::push_json(out, problem);
    });
}

/// What the service says in a session.
#[derive(Debug)]
pub(crate) enum Said {
    /// The answer to a request.
    Answer(u32, Result<Appended, Box<Problem>>),
    /// Its last word.
    End(Box<Problem>),
    /// Something newer than us.
    Other,
}

/// Reads a frame of a session.
pub(crate) fn said(frame: &Frame) -> Result<Said, &'static str> {
    let mut fields = Fields::new(&frame.body);
    let mut number = || fields.u32().ok_or("an answer without a number");
    match frame.kind {
        kind::APPENDED => {
            let number = number()?;
            let appended = appended(&mut fields).ok_or("an answer of malformed fields")?;
            Ok(Said::Answer(number, Ok(appended)))
        }
        kind::REFUSED => {
            let number = number()?;
            Ok(Said::Answer(number, Err(problem_in(fields.rest())?)))
        }
        kind::END => Ok(Said::End(problem_in(&frame.body)?)),
        _ => Ok(Said::Other),
    }
}

fn appended(fields: &mut Fields<'_>) -> Option<Appended> {
    let (first, last) = (Position(fields.u64()?), Position(fields.u64()?));
    let (revs, rest) = fields.rest().as_chunks::<8>();
    rest.is_empty().then(|| Appended {
        first,
        last,
        revs: revs
            .iter()
            .map(|rev| Rev(u64::from_le_bytes(*rev)))
            .collect(),
    })
}

/// The problem document in a body.
pub(crate) fn problem_in(body: &[u8]) -> Result<Box<Problem>, &'static str> {
    serde_json::from_slice(body).map_err(|_| "no problem document")
}

#[cfg(test)]
mod tests;
