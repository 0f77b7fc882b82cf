//! Append and read: what the trait promises, case by case.

use tabbify_api::log::{
    Append, AppendError, Appended, BATCH_EVENTS_MAX, Expect, Filter, ReadError,
};
use tabbify_types::{EventId, NewEvent, Position, Rev};

use crate::conformance::Fixture;
use crate::support::{Outcome, event, globs, read_all, refused_subscription, scope, segment};

const APPS: &str = "tenant_main.apps";

fn appended(first: u64, last: u64, revs: &[u64]) -> Appended {
    let revs = revs.iter().copied().map(Rev).collect();
    Appended {
        first: Position(first),
        last: Position(last),
        revs,
    }
}

pub(crate) async fn a_batch_is_numbered_and_kept_as_given(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = fixture.open(dir.path(), 1 << 16).await?;
    let data = "{ \"a\" : 1,\n \"a\":2, \"\\u00e9\": \"é\" }";
    let mut one = event(APPS, "shop", data);
    one.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    one.version = 7;
    let two = event("platform", "x\0y", "{}");
    let batch = Append::of(vec![one.clone(), event(APPS, "shop", "{}"), two.clone()]);
    assert_eq!(client.append(batch).await?, appended(1, 3, &[1, 2, 1]));
    let following = event(APPS, "shop", "{}").caused_by(Position(3));
    assert_eq!(
        client.append(Append::of(vec![following])).await?,
        appended(4, 4, &[3])
    );
    assert_eq!((client.head(), log.head()), (Position(4), Position(4)));

    let id = log.log_id();
    for round in ["written", "reopened"] {
        let (log, client) = if round == "written" {
            (None, client.clone())
        } else {
            log.close().await;
            let (log, client) = fixture.open(dir.path(), 1 << 16).await?;
            (Some(log), client)
        };
        assert!(log.as_ref().is_none_or(|log| log.log_id() == id));
        let all = read_all(&*client, Filter::default(), 2).await?;
        let first = &all[0];
        assert_eq!(first.data.get(), data, "{round}");
        assert_eq!(
            (first.id, &first.segment, &first.key),
            (one.id, &one.segment, &one.key)
        );
        assert_eq!(
            (&first.kind, first.version, &first.trace),
            (&one.kind, 7, &one.trace)
        );
        assert_eq!((first.actor.as_str(), first.cause), ("test", None));
        assert!(first.at.millis() > 1_700_000_000_000);
        assert_eq!(
            (&*all[2].key, all[2].id, all[2].rev),
            ("x\0y", two.id, Rev(1))
        );
        assert_eq!(all[3].cause, Some(Position(3)));
        let positions: Vec<u64> = all.iter().map(|event| event.position.get()).collect();
        assert_eq!(positions, [1, 2, 3, 4], "{round}");
    }
    Ok(())
}

pub(crate) async fn expectations_hold_or_nothing_is_written(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = fixture.open(dir.path(), 1 << 16).await?;
    let conflict = |key: &str, actual| {
        let (segment, key, actual) = (segment(APPS), key.to_owned(), Rev(actual));
        Err(AppendError::Conflict {
            segment,
            key,
            actual,
        })
    };
    let ahead = |key: &str, expected, actual| {
        Err(AppendError::ExpectAhead {
            segment: segment(APPS),
            key: key.to_owned(),
            expected: Rev(expected),
            actual: Rev(actual),
        })
    };
    let none = Expect::None;
    let rev = |rev| Expect::Rev(Rev(rev));
    let cases = [
        // Writes to, expects of, the expectation, the answer.
        ("a", "a", none, Ok(appended(1, 1, &[1]))),
        ("a", "a", none, conflict("a", 1)),
        ("a", "a", rev(2), ahead("a", 2, 1)),
        ("a", "a", rev(0), conflict("a", 1)),
        ("a", "a", rev(1), Ok(appended(2, 2, &[2]))),
        ("b", "b", rev(0), Ok(appended(3, 3, &[1]))),
        // A condition on a key that the batch does not write.
        ("c", "a", rev(1), conflict("a", 2)),
        ("c", "a", rev(2), Ok(appended(4, 4, &[1]))),
    ];
    for (written, expected, expect, answer) in cases {
        let batch = Append::of(vec![event(APPS, written, "{}")]);
        let batch = batch.expecting(segment(APPS), expected, expect);
        assert_eq!(
            client.append(batch).await,
            answer,
            "{written}, {expected} {expect:?}"
        );
    }
    // The same key in another segment is another.
    let elsewhere = Append::of(vec![event("platform", "a", "{}")]);
    let elsewhere = elsewhere.expecting(segment("platform"), "a", none);
    assert_eq!(client.append(elsewhere).await?, appended(5, 5, &[1]));
    // All or nothing: the second expectation fails, so neither event is there.
    let both = Append::of(vec![event(APPS, "d", "{}"), event(APPS, "e", "{}")]);
    let both = both
        .expecting(segment(APPS), "d", none)
        .expecting(segment(APPS), "b", none);
    assert_eq!(client.append(both).await, conflict("b", 1));
    let alone = Append::of(vec![event(APPS, "d", "{}")]).expecting(segment(APPS), "d", none);
    assert_eq!(client.append(alone).await?, appended(6, 6, &[1]));
    Ok(())
}

pub(crate) async fn a_repetition_gets_its_first_answer(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (mut log, mut client) = fixture.open(dir.path(), 1 << 16).await?;
    let batch = vec![event(APPS, "a", "{\"n\":1}"), event(APPS, "a", "{\"n\":2}")];
    let first = Append::of(batch.clone()).expecting(segment(APPS), "a", Expect::None);
    let answer = client.append(first.clone()).await?;
    client
        .append(Append::of(vec![event(APPS, "a", "{}")]))
        .await?;

    for _ in 0..2 {
        // Ids before expectations, which do not hold any more. Actor and trace are not compared.
        assert_eq!(client.append(first.clone()).await?, answer);
        let mut traced = first.clone();
        traced.events[0].trace = Some("other".to_owned());
        assert_eq!(client.append(traced).await?, answer);
        let other = log
            .client(scope("somebody_else", &["**"], &["**"])?)
            .await?;
        assert_eq!(other.append(first.clone()).await?, answer);
        assert_eq!(client.head(), Position(3));
        // And after a restart, when nothing is in memory.
        log.close().await;
        (log, client) = fixture.open(dir.path(), 1 << 16).await?;
    }
    Ok(())
}

pub(crate) async fn an_id_stands_for_one_event_in_one_batch(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = fixture.open(dir.path(), 1 << 16).await?;
    let (a, b, c) = (
        event(APPS, "a", "{}"),
        event(APPS, "b", "{}"),
        event(APPS, "c", "{}"),
    );
    client
        .append(Append::of(vec![a.clone(), b.clone()]))
        .await?;
    client.append(Append::of(vec![c.clone()])).await?;
    let new = || event(APPS, "new", "{}");
    let changed = |event: &NewEvent, change: fn(&mut NewEvent)| {
        let mut event = event.clone();
        change(&mut event);
        event
    };
    let cases: Vec<(&str, Vec<NewEvent>, EventId)> = vec![
        ("known and new", vec![a.clone(), b.clone(), new()], a.id),
        ("new and known", vec![new(), a.clone()], a.id),
        ("a part", vec![a.clone()], a.id),
        ("the other part", vec![b.clone()], b.id),
        ("another order", vec![b.clone(), a.clone()], b.id),
        (
            "over two batches",
            vec![a.clone(), b.clone(), c.clone()],
            a.id,
        ),
        (
            "another key",
            vec![changed(&c, |e| e.key = "d".to_owned())],
            c.id,
        ),
        (
            "another segment",
            vec![changed(&c, |e| e.segment = segment("platform"))],
            c.id,
        ),
        (
            "another type",
            vec![changed(&c, |e| e.kind = "other".to_owned())],
            c.id,
        ),
        (
            "another version",
            vec![changed(&c, |e| e.version = 2)],
            c.id,
        ),
        (
            "another cause",
            vec![changed(&c, |e| e.cause = Some(Position(1)))],
            c.id,
        ),
        (
            "other data",
            vec![
                a.clone(),
                changed(&b, |e| e.data = event(APPS, "b", "{ }").data),
            ],
            b.id,
        ),
    ];
    for (what, events, id) in cases {
        let answer = client.append(Append::of(events)).await;
        assert_eq!(answer, Err(AppendError::IdConflict { id }), "{what}");
    }
    assert_eq!(client.head(), Position(3));
    Ok(())
}

/// Batches that are refused, and what is said about them.
fn refused() -> Vec<(&'static str, Append)> {
    let one = |data: &str| Append::of(vec![event(APPS, "a", data)]);
    let many =
        |count: usize, data: &str| Append::of((0..count).map(|_| event(APPS, "a", data)).collect());
    let changed = |change: fn(&mut NewEvent)| {
        let mut event = event(APPS, "a", "{}");
        change(&mut event);
        Append::of(vec![event])
    };
    let wide = |len: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(len));
    let twice = event(APPS, "a", "{}");
    vec![
        ("0 events", many(0, "{}")),
        ("1025 events", many(BATCH_EVENTS_MAX + 1, "{}")),
        ("bytes, at most 4194304", many(70, &wide(65_000))),
        ("0 bytes of key", changed(|e| e.key.clear())),
        ("129 bytes of key", changed(|e| e.key = "x".repeat(129))),
        ("0 bytes of type", changed(|e| e.kind.clear())),
        ("65 bytes of type", changed(|e| e.kind = "x".repeat(65))),
        (
            "not snake_case",
            changed(|e| e.kind = "AppStarted".to_owned()),
        ),
        ("not snake_case", changed(|e| e.kind = "x.".to_owned())),
        ("not snake_case", changed(|e| e.kind = "y.name".to_owned())),
        ("version 0", changed(|e| e.version = 0)),
        ("cause 0", changed(|e| e.cause = Some(Position(0)))),
        (
            "cause 1 is beyond the head",
            changed(|e| e.cause = Some(Position(1))),
        ),
        (
            "0 bytes of trace",
            changed(|e| e.trace = Some(String::new())),
        ),
        (
            "65 bytes of trace",
            changed(|e| e.trace = Some("x".repeat(65))),
        ),
        ("not a JSON object", one("[]")),
        ("not a JSON object", one("null")),
        ("65540 bytes of data", one(&wide(65_532))),
        (
            "is in the batch twice",
            Append::of(vec![twice.clone(), twice]),
        ),
        (
            "0 bytes of an expected key",
            one("{}").expecting(segment(APPS), "", Expect::None),
        ),
    ]
}

pub(crate) async fn limits_are_refused_by_name(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = fixture.open(dir.path(), 1 << 16).await?;
    for (part, batch) in refused() {
        let answer = client.append(batch).await;
        let (Err(AppendError::Invalid { detail })
        | Err(AppendError::EventTooLarge { detail })
        | Err(AppendError::BatchTooLarge { detail })) = &answer
        else {
            panic!("{part}: {answer:?}")
        };
        assert!(detail.contains(part), "{detail:?} does not say {part:?}");
    }
    assert_eq!(client.head(), Position(0));
    // The limits themselves are fine, and so are an app's own types.
    let full = format!("{{\"a\":\"{}\"}}", "x".repeat(65_528));
    let mut largest = event(APPS, &"k".repeat(128), &full);
    largest.kind = format!("x.{}", "n".repeat(62));
    largest.trace = Some("t".repeat(64));
    client.append(Append::of(vec![largest])).await?;
    let many = (0..BATCH_EVENTS_MAX)
        .map(|_| event(APPS, "a", "{}"))
        .collect();
    assert_eq!(client.append(Append::of(many)).await?.last, Position(1025));
    // A batch of nearly the greatest length, far longer than the extents of this log.
    let long = (0..63).map(|_| event(APPS, "b", &full)).collect();
    assert_eq!(client.append(Append::of(long)).await?.last, Position(1088));
    assert_eq!(
        read_all(&*client, Filter::default(), 10_000).await?.len(),
        1088
    );
    Ok(())
}

pub(crate) async fn pages_filter_and_go_on_where_they_ended(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (mut log, mut client) = fixture.open(dir.path(), 1 << 13).await?;
    for n in 0..60 {
        let segment = ["tenant_a.apps", "tenant_b.apps", "platform"][n % 3];
        let mut event = event(segment, &format!("k{}", n % 4), "{}");
        event.kind = ["one", "two"][n % 2].to_owned();
        client.append(Append::of(vec![event])).await?;
    }
    for _ in 0..2 {
        let tenants = Filter::segments(globs(&["tenant_*.apps"])?);
        assert_eq!(read_all(&*client, tenants.clone(), 7).await?.len(), 40);
        let kinds = Filter {
            kinds: vec!["one".to_owned()],
            ..tenants
        };
        assert_eq!(read_all(&*client, kinds.clone(), 1).await?.len(), 20);
        let key = Filter {
            key: Some("k2".to_owned()),
            ..kinds
        };
        let found = read_all(&*client, key.clone(), 3).await?;
        assert_eq!(found.len(), 10);
        assert!(found.iter().all(|event| key.matches(event)));
        let page = client.read(Filter::default(), Position(57), 2).await?;
        assert_eq!((page.next_after, page.head), (Position(59), Position(60)));
        let page = client.read(Filter::default(), Position(60), 2).await?;
        assert!(page.events.is_empty() && page.next_after == Position(60));
        let beyond = client.read(Filter::default(), Position(61), 2).await;
        let expected = ReadError::BeyondHead {
            after: Position(61),
            head: Position(60),
        };
        assert_eq!(beyond.err(), Some(expected.clone()));
        assert_eq!(
            refused_subscription(&*client, Filter::default(), Position(61)).await?,
            expected
        );
        // From memory first, from files after a restart.
        log.close().await;
        (log, client) = fixture.open(dir.path(), 1 << 13).await?;
    }
    Ok(())
}

pub(crate) async fn a_closed_log_says_so(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = fixture.open(dir.path(), 1 << 16).await?;
    client
        .append(Append::of(vec![event(APPS, "a", "{}")]))
        .await?;
    log.close().await;
    let refused = client
        .append(Append::of(vec![event(APPS, "a", "{}")]))
        .await;
    assert_eq!(refused, Err(AppendError::Stopping));
    // The directory is free at once, and closing again does no harm.
    let (_log, _client) = fixture.open(dir.path(), 1 << 16).await?;
    log.close().await;
    Ok(())
}
