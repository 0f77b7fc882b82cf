//! Filters, each read in pages of every size, by a subscription from the beginning and by one that is
//! resumed. What must come is what [`Filter::matches`] says of everything that is there.

use std::sync::Arc;

use tabbify_api::log::{Append, Delivery, EventLog, Filter};
use tabbify_types::{Position, Recorded};

use super::Fixture;
use super::case::Case;
use crate::support::{Outcome, Wrong, event, globs, next, read_all};

const SEGMENTS: [&str; 5] = [
    "tenant_a.apps",
    "tenant_a.chat",
    "tenant_b.apps",
    "platform",
    "platform.hosts.box1",
];
const EVENTS: usize = 30;

type Row = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    Option<&'static str>,
);

/// A name, globs, types, a key.
const FILTERS: &[Row] = &[
    ("everything", &[], &[], None),
    ("everything by its glob", &["**"], &[], None),
    ("one segment", &["tenant_a.apps"], &[], None),
    ("a part", &["tenant_*.apps"], &[], None),
    ("a piece of a part", &["tenant_a.ch*"], &[], None),
    ("a rest", &["platform.**"], &[], None),
    ("two globs", &["tenant_a.*", "platform"], &[], None),
    (
        "two globs that overlap",
        &["tenant_a.*", "*.apps"],
        &[],
        None,
    ),
    ("a segment that is not there", &["tenant_c.apps"], &[], None),
    ("a type", &[], &["one"], None),
    ("two types", &[], &["one", "two"], None),
    ("a type that is not there", &[], &["four"], None),
    ("a key", &[], &[], Some("k1")),
    ("a key that is not there", &[], &[], Some("k")),
    ("a key and a segment", &["tenant_a.apps"], &[], Some("k1")),
    ("a key and a type", &[], &["two"], Some("k0")),
    ("a glob and a type", &["tenant_*.*"], &["three"], None),
    (
        "a glob, types and a key",
        &["platform", "tenant_b.*"],
        &["one", "three"],
        Some("k1"),
    ),
];

#[derive(Debug, Clone, Copy)]
enum Way {
    Pages(usize),
    Subscribed,
    Resumed,
}

const WAYS: [Way; 5] = [
    Way::Pages(1),
    Way::Pages(4),
    Way::Pages(10_000),
    Way::Subscribed,
    Way::Resumed,
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in FILTERS {
        for way in WAYS {
            let name = format!("filters::{}, {way:?}", row.0);
            cases.push(Case::new(name, move |fixture| {
                Box::pin(check(fixture, row, way))
            }));
        }
    }
    cases
}

/// Events of every segment, two keys and three types, in batches of three.
async fn fill(client: &dyn EventLog) -> Outcome {
    let mut events = (0..EVENTS).map(|n| {
        let mut event = event(SEGMENTS[n % 5], &format!("k{}", n / 2 % 2), "{}");
        event.kind = ["one", "two", "three"][n % 3].to_owned();
        event
    });
    loop {
        let batch: Vec<_> = events.by_ref().take(3).collect();
        if batch.is_empty() {
            return Ok(());
        }
        client.append(Append::of(batch)).await?;
    }
}

async fn check(fixture: &dyn Fixture, row: &'static Row, way: Way) -> Outcome {
    let (_, segments, kinds, key) = row;
    let filter = Filter {
        segments: globs(segments)?,
        kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
        key: key.map(str::to_owned),
    };
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 13).await?;
    fill(&*client).await?;
    let all = read_all(&*client, Filter::default(), 10_000).await?;
    assert_eq!(all.len(), EVENTS);
    let due: Vec<u64> = all
        .iter()
        .filter(|event| filter.matches(event))
        .map(|event| event.position.get())
        .collect();
    // From memory, and then from where they are stored.
    assert_eq!(seen(&*client, &filter, way).await?, due);
    served.close().await;
    drop((served, client));
    let (_served, client) = fixture.open(dir.path(), 1 << 13).await?;
    assert_eq!(seen(&*client, &filter, way).await?, due, "stored");
    Ok(())
}

async fn seen(client: &dyn EventLog, filter: &Filter, way: Way) -> Result<Vec<u64>, Wrong> {
    match way {
        Way::Pages(size) => {
            let read = read_all(client, filter.clone(), size).await?;
            let page = client.read(filter.clone(), Position(0), size).await?;
            assert!(page.events.len() <= size && page.head == Position(EVENTS as u64));
            Ok(positions(&read))
        }
        Way::Subscribed => subscribed(client, filter, Position(0), usize::MAX).await,
        Way::Resumed => {
            // A reader that ends after two events, and one that goes on where it ended.
            let mut first = subscribed(client, filter, Position(0), 2).await?;
            let after = match first[..] {
                [_, last] => Position(last),
                _ => Position(EVENTS as u64),
            };
            first.extend(subscribed(client, filter, after, usize::MAX).await?);
            Ok(first)
        }
    }
}

fn positions(events: &[Arc<Recorded>]) -> Vec<u64> {
    events.iter().map(|event| event.position.get()).collect()
}

/// Up to `limit` events until the reader has caught up.
async fn subscribed(
    client: &dyn EventLog,
    filter: &Filter,
    after: Position,
    limit: usize,
) -> Result<Vec<u64>, Wrong> {
    let mut subscription = client.subscribe(filter.clone(), after)?;
    let mut seen = Vec::new();
    while seen.len() < limit {
        match next(&mut *subscription).await? {
            Delivery::Event(event) => {
                assert!(filter.matches(&event));
                seen.push(event.position.get());
            }
            Delivery::Progress(_) => {}
            Delivery::CaughtUp(head) => {
                assert_eq!(head, Position(EVENTS as u64));
                break;
            }
        }
    }
    Ok(seen)
}
