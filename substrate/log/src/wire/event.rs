//! One event as one line of JSON.
//!
//! The data of an event is kept byte for byte, and JSON may have line breaks between its tokens. A
//! line cannot: there they become spaces, and the exact text comes along as a string, `verbatim`.
//! Readers that only want the meaning need not know.

use serde_json::value::RawValue;
use tabbify_types::Recorded;

/// The event without a line break.
pub(crate) fn to_line(event: &Recorded) -> Vec<u8> {
    let exact = event.data.get();
    let encode =
        |event: &Recorded| serde_json::to_vec(event).expect("INVARIANT: our own shapes serialize");
    if !exact.contains(['\n', '\r']) {
        return encode(event);
    }
    let flat = RawValue::from_string(exact.replace(['\n', '\r'], " "));
    let mut event = event.clone();
    let exact = std::mem::replace(
        &mut event.data,
        flat.expect("INVARIANT: line breaks in JSON stand between tokens, where spaces may"),
    );
    let mut line = encode(&event);
    line.pop();
    let text = serde_json::to_string(exact.get()).expect("INVARIANT: a text serializes");
    line.extend_from_slice(b",\"verbatim\":");
    line.extend_from_slice(text.as_bytes());
    line.push(b'}');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;
    use tabbify_types::{EventId, Position, Rev, Timestamp};

    use super::*;

    #[derive(Deserialize)]
    struct Verbatim {
        verbatim: Option<String>,
    }

    /// Reads a line as a program does that wants the exact text.
    fn from_line(line: &[u8]) -> Result<Recorded, serde_json::Error> {
        let mut event: Recorded = serde_json::from_slice(line)?;
        let Verbatim { verbatim } = serde_json::from_slice(line)?;
        if let Some(exact) = verbatim {
            event.data = RawValue::from_string(exact)?;
        }
        Ok(event)
    }

    fn event(key: &str, data: &str) -> Recorded {
        Recorded {
            position: Position(7),
            segment: "tenant_main.apps".parse().expect("a literal segment"),
            key: key.to_owned(),
            rev: Rev(3),
            id: EventId::mint(),
            kind: "thing_happened".to_owned(),
            version: 2,
            at: Timestamp::from_millis(1_795_359_600_123),
            actor: "test".to_owned(),
            cause: Some(Position(3)),
            trace: None,
            data: RawValue::from_string(data.to_owned()).expect("JSON of a test"),
        }
    }

    fn same(event: &Recorded) {
        let line = to_line(event);
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
        let read = from_line(&line).expect("our own line");
        assert_eq!(read.data.get(), event.data.get());
        assert_eq!((&read.key, read.id), (&event.key, event.id));
        // Without the exact text it is the same value.
        let plain: Recorded = serde_json::from_slice(&line).expect("our own line");
        let value = |raw: &RawValue| serde_json::from_str::<serde_json::Value>(raw.get()).ok();
        assert_eq!(value(&plain.data), value(&event.data));
    }

    #[test]
    fn data_arrives_byte_for_byte() {
        for data in [
            "{}",
            "{ \"a\" : 1,\n \"a\":2, \"\\u00e9\": \"é\" }",
            "{\r\n\"a\":\t[1e5 ,\n1.0]\r}",
            "{\"verbatim\":\"x\"}",
            "{\n\"verbatim\":\"x\\n\"\n}",
        ] {
            same(&event("a\0\n\"b", data));
        }
    }

    proptest! {
        #[test]
        fn any_key_and_any_space(key in "\\PC{1,20}", space in "[ \t\r\n]{0,6}") {
            same(&event(&key, &format!("{{{space}\"a\"{space}:{space}null{space}}}")));
        }
    }
}
