//! What a batch may hold: everything beyond is refused whole and by name, everything up to it is kept
//! as it was given.

use std::sync::Arc;

use tabbify_api::log::{Append, AppendError, BATCH_EVENTS_MAX, Expect, Filter};
use tabbify_types::{NewEvent, Position};

use super::Fixture;
use super::case::Case;
use crate::support::{Outcome, event, read_all, segment};

const APPS: &str = "tenant_main.apps";

fn good() -> NewEvent {
    event(APPS, "a", "{}")
}

fn with(change: impl FnOnce(&mut NewEvent)) -> Append {
    let mut event = good();
    change(&mut event);
    Append::of(vec![event])
}

fn data(text: &str) -> Append {
    Append::of(vec![event(APPS, "a", text)])
}

fn wide(len: usize) -> String {
    format!("{{\"a\":\"{}\"}}", "x".repeat(len - 8))
}

fn expecting(count: usize) -> Append {
    let batch = Append::of(vec![good()]);
    (0..count).fold(batch, |batch, n| {
        batch.expecting(segment(APPS), format!("k{n}"), Expect::None)
    })
}

type Row = (&'static str, &'static str, fn() -> Append);

/// A name, what the refusal says, and the batch.
const REFUSED: &[Row] = &[
    ("no event", "0 events", || Append::of(Vec::new())),
    ("an event too many", "1025 events", || {
        Append::of((0..=BATCH_EVENTS_MAX).map(|_| good()).collect())
    }),
    ("too many bytes", "at most 4194304", || {
        Append::of((0..70).map(|_| event(APPS, "a", &wide(65_000))).collect())
    }),
    ("one event of too many bytes", "65537 bytes of data", || {
        data(&wide(65_537))
    }),
    ("no key", "0 bytes of key", || with(|e| e.key.clear())),
    ("a long key", "129 bytes of key", || {
        with(|e| e.key = "x".repeat(129))
    }),
    ("a key of long letters", "130 bytes of key", || {
        with(|e| e.key = "é".repeat(65))
    }),
    ("no type", "0 bytes of type", || with(|e| e.kind.clear())),
    ("a long type", "65 bytes of type", || {
        with(|e| e.kind = "x".repeat(65))
    }),
    ("a type in capitals", "not snake_case", || {
        with(|e| e.kind = "AppStarted".to_owned())
    }),
    ("a type from a digit on", "not snake_case", || {
        with(|e| e.kind = "1st".to_owned())
    }),
    ("a type from a line on", "not snake_case", || {
        with(|e| e.kind = "_a".to_owned())
    }),
    ("a type with a dash", "not snake_case", || {
        with(|e| e.kind = "a-b".to_owned())
    }),
    ("a type with a space", "not snake_case", || {
        with(|e| e.kind = "a b".to_owned())
    }),
    ("a type with an accent", "not snake_case", || {
        with(|e| e.kind = "é".to_owned())
    }),
    ("a type of nothing", "not snake_case", || {
        with(|e| e.kind = "x.".to_owned())
    }),
    ("a type of another's", "not snake_case", || {
        with(|e| e.kind = "y.name".to_owned())
    }),
    ("version 0", "version 0", || with(|e| e.version = 0)),
    ("cause 0", "cause 0", || {
        with(|e| e.cause = Some(Position(0)))
    }),
    ("a cause beyond the head", "cause 1 is beyond", || {
        with(|e| e.cause = Some(Position(1)))
    }),
    ("a cause beyond everything", "is beyond the head", || {
        with(|e| e.cause = Some(Position(u64::MAX)))
    }),
    ("an empty trace", "0 bytes of trace", || {
        with(|e| e.trace = Some(String::new()))
    }),
    ("a long trace", "65 bytes of trace", || {
        with(|e| e.trace = Some("x".repeat(65)))
    }),
    ("data that is an array", "not a JSON object", || data("[]")),
    ("data that is null", "not a JSON object", || data("null")),
    ("data that is a text", "not a JSON object", || {
        data("\"{}\"")
    }),
    ("data that is a number", "not a JSON object", || data("1")),
    ("an id twice", "in the batch twice", || {
        let one = good();
        Append::of(vec![one.clone(), good(), one])
    }),
    (
        "an expected key of nothing",
        "0 bytes of an expected key",
        || Append::of(vec![good()]).expecting(segment(APPS), "", Expect::None),
    ),
    (
        "a long expected key",
        "129 bytes of an expected key",
        || Append::of(vec![good()]).expecting(segment(APPS), "x".repeat(129), Expect::None),
    ),
    ("too many expectations", "1025 expectations", || {
        expecting(BATCH_EVENTS_MAX + 1)
    }),
    ("one bad event of three", "0 bytes of key", || {
        let mut bad = good();
        bad.key.clear();
        Append::of(vec![good(), bad, good()])
    }),
];

type Kept = (&'static str, fn() -> Append);

/// Batches at the limit, or odd and fine.
const TAKEN: &[Kept] = &[
    ("as many events as may be", || {
        Append::of((0..BATCH_EVENTS_MAX).map(|_| good()).collect())
    }),
    ("nearly as many bytes as may be", || {
        Append::of((0..63).map(|_| event(APPS, "a", &wide(65_536))).collect())
    }),
    ("as much data as may be", || data(&wide(65_536))),
    ("a key as long as may be", || {
        with(|e| e.key = "k".repeat(128))
    }),
    ("a key with a NUL", || with(|e| e.key = "x\0y\0".to_owned())),
    ("a key with line ends and quotes", || {
        with(|e| e.key = "\"a'\r\n\\".to_owned())
    }),
    ("a key of every width of letter", || {
        with(|e| e.key = "aé€𐍈".to_owned())
    }),
    ("a type as long as may be", || {
        with(|e| e.kind = "x".repeat(64))
    }),
    ("an app's own type", || {
        with(|e| e.kind = "x.a_1".to_owned())
    }),
    ("the last version", || with(|e| e.version = u16::MAX)),
    ("a trace as long as may be", || {
        with(|e| e.trace = Some("t".repeat(64)))
    }),
    ("a trace with a NUL", || {
        with(|e| e.trace = Some("a\0b".to_owned()))
    }),
    ("data with spaces", || data("{ \"a\" :\t1 }")),
    ("data with line ends", || data("{\n\"a\":\r\n1\n}")),
    ("data with a name twice", || data("{\"a\":1,\"a\":2}")),
    ("data with escapes", || {
        data("{\"\\u00e9\":\"\\u0000\\n\\/\"}")
    }),
    ("data with large numbers", || {
        data("{\"a\":1e400,\"b\":-0.0,\"c\":12345678901234567890123}")
    }),
    ("as many expectations as may be", || {
        expecting(BATCH_EVENTS_MAX)
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, part, batch) in REFUSED {
        cases.push(Case::new(
            format!("limits::refused, {name}"),
            move |fixture| Box::pin(refused(fixture, part, batch())),
        ));
    }
    for (name, batch) in TAKEN {
        cases.push(Case::new(
            format!("limits::taken, {name}"),
            move |fixture| Box::pin(taken(fixture, batch())),
        ));
    }
    cases
}

async fn refused(fixture: &dyn Fixture, part: &str, batch: Append) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let error = match client.append(batch).await {
        Err(error) => error,
        Ok(answer) => return Err(format!("taken: {answer:?}").into()),
    };
    let text = error.to_string();
    assert!(text.contains(part), "{text:?} does not say {part:?}");
    assert!(!matches!(error, AppendError::Stopping), "the log goes on");
    // Nothing of it is there, and the next batch is the first.
    assert_eq!(served.head(), Position(0));
    let next = client.append(Append::of(vec![good()])).await?;
    assert_eq!((next.first, next.last), (Position(1), Position(1)));
    Ok(())
}

async fn taken(fixture: &dyn Fixture, batch: Append) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let given = batch.events.clone();
    let answer = client.append(batch).await?;
    assert_eq!(answer.first, Position(1));
    assert_eq!(answer.last, Position(given.len() as u64));
    let kept = read_all(&*client, Filter::default(), 10_000).await?;
    assert_eq!(kept.len(), given.len());
    for ((given, kept), rev) in given.iter().zip(&kept).zip(&answer.revs) {
        same(given, kept);
        assert_eq!(kept.rev, *rev);
    }
    Ok(())
}

/// Byte for byte what was given.
pub(super) fn same(given: &NewEvent, kept: &Arc<tabbify_types::Recorded>) {
    assert_eq!((given.id, &given.segment), (kept.id, &kept.segment));
    assert_eq!((&given.key, &given.kind), (&kept.key, &kept.kind));
    assert_eq!((given.version, given.cause), (kept.version, kept.cause));
    assert_eq!(given.trace, kept.trace);
    assert_eq!(given.data.get(), kept.data.get());
}
