//! What may be appended: limits and shapes, checked before a batch reaches the writer.

mod known;

use std::cmp::Ordering;
use std::collections::HashSet;

use tabbify_api::log::{Append, AppendError, BATCH_EVENTS_MAX, BATCH_LEN_MAX, Expect, Expectation};
use tabbify_types::envelope::{
    ACTOR_LEN_MAX, DATA_LEN_MAX, KEY_LEN_MAX, TRACE_LEN_MAX, TYPE_LEN_MAX,
};
use tabbify_types::{NewEvent, Position, Recorded, Rev, Timestamp};

use crate::record::record_len;

/// The batch's length in a frame, or why no log takes it, whatever it holds.
pub(crate) fn check(batch: &Append, actor: &str) -> Result<usize, AppendError> {
    let count = batch.events.len();
    if count > BATCH_EVENTS_MAX {
        let detail = format!("{count} events, at most {BATCH_EVENTS_MAX}");
        return Err(AppendError::BatchTooLarge { detail });
    }
    check_shape(batch, actor).map_err(|detail| AppendError::Invalid { detail })?;
    let mut len = 0;
    for (index, event) in batch.events.iter().enumerate() {
        let data_len = event.data.get().len();
        if data_len > DATA_LEN_MAX {
            let detail = format!("event {index}: {data_len} bytes of data, at most {DATA_LEN_MAX}");
            return Err(AppendError::EventTooLarge { detail });
        }
        known::check(event)?;
        len += record_len(event, actor);
    }
    if len > BATCH_LEN_MAX {
        let detail = format!("{len} bytes, at most {BATCH_LEN_MAX}");
        return Err(AppendError::BatchTooLarge { detail });
    }
    Ok(len)
}

/// The event as the log keeps it from here on.
pub(crate) fn recorded(
    event: NewEvent,
    position: Position,
    rev: Rev,
    at: Timestamp,
    actor: &str,
) -> Recorded {
    Recorded {
        position,
        segment: event.segment,
        key: event.key,
        rev,
        id: event.id,
        kind: event.kind,
        version: event.version,
        at,
        actor: actor.to_owned(),
        cause: event.cause,
        trace: event.trace,
        data: event.data,
    }
}

/// What is against a batch with this expectation where the key is at `actual`.
pub(crate) fn objection(expectation: &Expectation, actual: Rev) -> Option<AppendError> {
    let expected = match expectation.expect {
        Expect::None => Rev(0),
        Expect::Rev(rev) => rev,
    };
    let (segment, key) = (expectation.segment.clone(), expectation.key.clone());
    match expected.cmp(&actual) {
        Ordering::Equal => None,
        Ordering::Less => Some(AppendError::Conflict {
            segment,
            key,
            actual,
        }),
        Ordering::Greater => Some(AppendError::ExpectAhead {
            segment,
            key,
            expected,
            actual,
        }),
    }
}

fn check_shape(batch: &Append, actor: &str) -> Result<(), String> {
    within("events", batch.events.len(), BATCH_EVENTS_MAX)?;
    if batch.expect.len() > BATCH_EVENTS_MAX {
        return Err(format!(
            "{} expectations, at most {BATCH_EVENTS_MAX}",
            batch.expect.len()
        ));
    }
    within("bytes of actor", actor.len(), ACTOR_LEN_MAX)?;
    for expectation in &batch.expect {
        let len = expectation.key.len();
        within("bytes of an expected key", len, KEY_LEN_MAX)?;
    }
    let mut ids = HashSet::with_capacity(batch.events.len());
    for (index, event) in batch.events.iter().enumerate() {
        check_event(event).map_err(|what| format!("event {index}: {what}"))?;
        if !ids.insert(event.id) {
            return Err(format!(
                "event {index}: its id {} is in the batch twice",
                event.id
            ));
        }
    }
    Ok(())
}

fn check_event(event: &NewEvent) -> Result<(), String> {
    within("bytes of key", event.key.len(), KEY_LEN_MAX)?;
    within("bytes of type", event.kind.len(), TYPE_LEN_MAX)?;
    if !is_kind(&event.kind) {
        return Err(format!(
            "type {:?} is not snake_case, or x. and snake_case",
            event.kind
        ));
    }
    if event.version == 0 {
        return Err("version 0; versions count from 1".to_owned());
    }
    if event.cause.is_some_and(|cause| cause.get() == 0) {
        return Err("cause 0; positions count from 1".to_owned());
    }
    if let Some(trace) = &event.trace {
        within("bytes of trace", trace.len(), TRACE_LEN_MAX)?;
    }
    if event.data.get().starts_with('{') {
        Ok(())
    } else {
        Err("data is not a JSON object".to_owned())
    }
}

fn within(what: &str, found: usize, max: usize) -> Result<(), String> {
    if (1..=max).contains(&found) {
        Ok(())
    } else {
        Err(format!("{found} {what}, must be 1 to {max}"))
    }
}

/// `snake_case`; an app's own types are named `x.` and `snake_case`.
fn is_kind(kind: &str) -> bool {
    let name = kind.strip_prefix("x.").unwrap_or(kind);
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Whether `event` says what was recorded under its id. Actor, trace and time are not compared: a
/// repetition may come through another token and request.
pub(crate) fn same_content(event: &NewEvent, recorded: &Recorded) -> bool {
    event.id == recorded.id
        && event.segment == recorded.segment
        && event.key == recorded.key
        && event.kind == recorded.kind
        && event.version == recorded.version
        && event.cause == recorded.cause
        && event.data.get() == recorded.data.get()
}
