//! Scopes: who may write where, and who may read what. Enforced by the log, whoever asks.

use tabbify_api::log::{Append, AppendError, Expect, Filter, ReadError};
use tabbify_types::Position;

use super::Fixture;
use super::case::Case;
use crate::support::{Outcome, event, globs, read_all, refused_subscription, scope, segment};

type Write = (&'static [&'static str], &'static str, bool);

/// What a writer may write, where it writes, whether it may.
const WRITES: &[Write] = &[
    (&["tenant_a.apps"], "tenant_a.apps", true),
    (&["tenant_a.apps"], "tenant_a.builds", false),
    (&["tenant_a.*"], "tenant_a.builds", true),
    (&["tenant_a.*"], "tenant_ab.apps", false),
    (&["tenant_*.apps"], "tenant_b.apps", true),
    (&["tenant_*.apps"], "tenant_b.builds", false),
    (
        &["platform.hosts.box1.reports"],
        "platform.hosts.box1.reports",
        true,
    ),
    (
        &["platform.hosts.box1.reports"],
        "platform.hosts.box2.reports",
        false,
    ),
    (
        &["platform.hosts.box1.reports"],
        "platform.hosts.box1",
        false,
    ),
    (&["platform.**"], "platform.auth", true),
    (&["platform.**"], "platform", false),
    (&["platform", "tenant_a.apps"], "tenant_a.apps", true),
    (&["**"], "platform", true),
    (&[], "platform", false),
];

type Read = (
    &'static [&'static str],
    &'static [&'static str],
    Option<&'static [&'static str]>,
);

const PLACES: [&str; 5] = [
    "tenant_a.apps",
    "tenant_a.chat",
    "tenant_b.apps",
    "platform",
    "platform.auth",
];

/// What a reader may read, what it asks for, what it sees; `None` if it may not ask.
const READS: &[Read] = &[
    (&["**"], &[], Some(&PLACES)),
    (
        &["tenant_a.*"],
        &[],
        Some(&["tenant_a.apps", "tenant_a.chat"]),
    ),
    (
        &["tenant_a.*"],
        &["tenant_a.apps"],
        Some(&["tenant_a.apps"]),
    ),
    (
        &["tenant_a.*"],
        &["tenant_a.*"],
        Some(&["tenant_a.apps", "tenant_a.chat"]),
    ),
    (&["tenant_a.*"], &["tenant_*.apps"], None),
    (&["tenant_a.*"], &["tenant_b.apps"], None),
    (&["tenant_a.*"], &["**"], None),
    (&["tenant_a.*"], &["tenant_a.apps", "platform"], None),
    (
        &["tenant_*.apps"],
        &["tenant_b.apps"],
        Some(&["tenant_b.apps"]),
    ),
    (&["tenant_*.apps"], &["tenant_b.*"], None),
    (&["platform"], &["platform"], Some(&["platform"])),
    (&["platform"], &["platform.**"], None),
    (
        &["platform.**"],
        &["platform.auth"],
        Some(&["platform.auth"]),
    ),
    (&["platform.**"], &["platform"], None),
    (&[], &[], Some(&[])),
    (&[], &["platform"], None),
];

type Peek = (&'static [&'static str], &'static [&'static str], bool);

/// What a writer may write and read beside its own segment, and whether it may expect something of
/// `platform.auth`: the answer tells a revision.
const PEEKS: &[Peek] = &[
    (&[], &[], false),
    (&["platform.auth"], &[], true),
    (&[], &["platform.auth"], true),
    (&[], &["platform.**"], true),
    (&["platform"], &["platform"], false),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in WRITES {
        let name = format!("scopes::{:?} writes {}", row.0, row.1);
        cases.push(Case::new(name, move |fixture| {
            Box::pin(writes(fixture, row))
        }));
    }
    for row in READS {
        let name = format!("scopes::{:?} reads {:?}", row.0, row.1);
        cases.push(Case::new(name, move |fixture| {
            Box::pin(reads(fixture, row))
        }));
    }
    for row in PEEKS {
        let name = format!("scopes::with {:?} and {:?} expects", row.0, row.1);
        cases.push(Case::new(name, move |fixture| {
            Box::pin(peeks(fixture, row))
        }));
    }
    cases
}

async fn writes(fixture: &dyn Fixture, row: &Write) -> Outcome {
    let (may, place, allowed) = *row;
    let dir = tempfile::tempdir()?;
    let (served, all) = fixture.open(dir.path(), 1 << 16).await?;
    let writer = served.client(scope("writer", may, &[])?).await?;
    let answer = writer
        .append(Append::of(vec![event(place, "k", "{}")]))
        .await;
    let written = read_all(&*all, Filter::default(), 10).await?;
    if allowed {
        assert_eq!(answer?.first, Position(1));
        assert_eq!((written.len(), &*written[0].actor), (1, "writer"));
        return Ok(());
    }
    let (actor, segment) = ("writer".to_owned(), segment(place));
    assert_eq!(answer, Err(AppendError::Forbidden { actor, segment }));
    assert!(written.is_empty());
    Ok(())
}

async fn reads(fixture: &dyn Fixture, row: &Read) -> Outcome {
    let (may, asked, seen) = *row;
    let dir = tempfile::tempdir()?;
    let (served, all) = fixture.open(dir.path(), 1 << 16).await?;
    let events = PLACES.map(|place| event(place, "k", "{}")).to_vec();
    all.append(Append::of(events)).await?;
    let reader = served.client(scope("reader", &[], may)?).await?;
    let filter = Filter::segments(globs(asked)?);
    if let Some(seen) = seen {
        let read = read_all(&*reader, filter, 2).await?;
        let places: Vec<_> = read.iter().map(|event| event.segment.as_str()).collect();
        assert_eq!(places, seen);
        return Ok(());
    }
    let page = reader.read(filter.clone(), Position(0), 10).await;
    let subscribed = refused_subscription(&*reader, filter, Position(0)).await?;
    let Err(ReadError::Forbidden { actor, glob }) = page else {
        return Err("it may".into());
    };
    assert_eq!(actor, "reader");
    assert!(asked.contains(&glob.as_str()), "{glob}");
    assert_eq!(subscribed, ReadError::Forbidden { actor, glob });
    Ok(())
}

async fn peeks(fixture: &dyn Fixture, row: &Peek) -> Outcome {
    let (writes, reads, allowed) = *row;
    let dir = tempfile::tempdir()?;
    let (served, all) = fixture.open(dir.path(), 1 << 16).await?;
    let auth = || event("platform.auth", "key", "{}");
    all.append(Append::of(vec![auth(), auth()])).await?;
    let writes = [writes, &["tenant_a.apps"]].concat();
    let writer = served.client(scope("writer", &writes, reads)?).await?;
    let batch = || Append::of(vec![event("tenant_a.apps", "k", "{}")]);
    let place = segment("platform.auth");
    let answer = writer
        .append(batch().expecting(place.clone(), "key", Expect::None))
        .await;
    match answer {
        Err(AppendError::Conflict { actual, .. }) if allowed => assert_eq!(actual.get(), 2),
        Err(AppendError::Forbidden { segment, .. }) if !allowed => assert_eq!(segment, place),
        other => return Err(format!("{other:?}").into()),
    }
    assert_eq!(served.head(), Position(2));
    Ok(())
}
