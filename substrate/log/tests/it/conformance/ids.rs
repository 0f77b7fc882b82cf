//! Ids: a batch is appended once, however often it is sent, and an id stands for one event in it.

use tabbify_api::log::{Append, AppendError, Appended, Expect, Filter};
use tabbify_types::{NewEvent, Position, Rev};

use super::Fixture;
use super::case::Case;
use crate::support::{Outcome, event, read_all, scope, segment};

const APPS: &str = "tenant_main.apps";

/// What is in the log: a batch of a, b and c, and a batch of d alone.
struct Known {
    batch: Vec<NewEvent>,
    alone: NewEvent,
}

fn known() -> Known {
    Known {
        batch: ["a", "b", "a"]
            .map(|key| event(APPS, key, "{\"n\":1}"))
            .to_vec(),
        alone: event(APPS, "a", "{\"n\":2}"),
    }
}

fn new() -> NewEvent {
    event(APPS, "new", "{}")
}

fn changed(event: &NewEvent, change: fn(&mut NewEvent)) -> NewEvent {
    let mut event = event.clone();
    change(&mut event);
    event
}

/// Sends what is there again, in some way; it gets its first answer.
type Again = (&'static str, fn(&Known) -> Append);

const AGAIN: &[Again] = &[
    ("as it was", |known| Append::of(known.batch.clone())),
    ("the single one", |known| {
        Append::of(vec![known.alone.clone()])
    }),
    ("with another trace", |known| {
        let mut batch = known.batch.clone();
        batch[1].trace = Some("00-trace".to_owned());
        Append::of(batch)
    }),
    ("with an expectation that held", |known| {
        Append::of(known.batch.clone()).expecting(segment(APPS), "a", Expect::None)
    }),
    ("with an expectation that never held", |known| {
        Append::of(known.batch.clone()).expecting(segment(APPS), "a", Expect::Rev(Rev(99)))
    }),
    ("with an expectation of another key", |known| {
        Append::of(vec![known.alone.clone()]).expecting(
            segment("platform"),
            "x",
            Expect::Rev(Rev(1)),
        )
    }),
];

/// Mixes what is there with something else; the event that is named is the first that is wrong.
type Mixed = (&'static str, usize, fn(&Known) -> Vec<NewEvent>);

const MIXED: &[Mixed] = &[
    ("with a new event behind", 0, |known| {
        [known.batch.clone(), vec![new()]].concat()
    }),
    ("with a new event before", 1, |known| {
        [vec![new()], known.batch.clone()].concat()
    }),
    ("with a new event between", 0, |known| {
        vec![known.batch[0].clone(), new(), known.batch[1].clone()]
    }),
    ("only its first event", 0, |known| known.batch[..1].to_vec()),
    ("only its first two", 0, |known| known.batch[..2].to_vec()),
    ("only its last", 0, |known| known.batch[2..].to_vec()),
    ("backwards", 0, |known| {
        known.batch.iter().rev().cloned().collect()
    }),
    ("two of it in another order", 0, |known| {
        vec![
            known.batch[1].clone(),
            known.batch[0].clone(),
            known.batch[2].clone(),
        ]
    }),
    ("with the batch behind it", 0, |known| {
        [known.batch.clone(), vec![known.alone.clone()]].concat()
    }),
    ("behind a new one, the single one", 1, |known| {
        vec![new(), known.alone.clone()]
    }),
    ("with another key", 2, |known| {
        let last = changed(&known.batch[2], |e| e.key = "c".to_owned());
        vec![known.batch[0].clone(), known.batch[1].clone(), last]
    }),
    ("with another segment", 0, |known| {
        vec![changed(&known.alone, |e| e.segment = segment("platform"))]
    }),
    ("with another type", 0, |known| {
        vec![changed(&known.alone, |e| e.kind = "other".to_owned())]
    }),
    ("with another version", 0, |known| {
        vec![changed(&known.alone, |e| e.version = 2)]
    }),
    ("with a cause", 0, |known| {
        vec![changed(&known.alone, |e| e.cause = Some(Position(1)))]
    }),
    ("with other data", 0, |known| {
        vec![changed(&known.alone, |e| {
            e.data = event(APPS, "a", "{\"n\":3}").data
        })]
    }),
    ("with the same data in other bytes", 1, |known| {
        let middle = changed(&known.batch[1], |e| {
            e.data = event(APPS, "a", "{\"n\": 1}").data
        });
        vec![known.batch[0].clone(), middle, known.batch[2].clone()]
    }),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, batch) in AGAIN {
        cases.push(Case::new(format!("ids::again, {name}"), move |fixture| {
            Box::pin(again(fixture, batch))
        }));
    }
    for (name, index, batch) in MIXED {
        cases.push(Case::new(format!("ids::mixed, {name}"), move |fixture| {
            Box::pin(mixed(fixture, *index, batch))
        }));
    }
    cases
}

fn first_answer(events: usize) -> Appended {
    if events == 1 {
        return Appended {
            first: Position(4),
            last: Position(4),
            revs: vec![Rev(3)],
        };
    }
    Appended {
        first: Position(1),
        last: Position(3),
        revs: vec![Rev(1), Rev(1), Rev(2)],
    }
}

async fn again(fixture: &dyn Fixture, batch: &fn(&Known) -> Append) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (mut served, mut client) = fixture.open(dir.path(), 1 << 16).await?;
    let known = known();
    client.append(Append::of(known.batch.clone())).await?;
    client.append(Append::of(vec![known.alone.clone()])).await?;
    let batch = batch(&known);
    for _ in 0..2 {
        let due = first_answer(batch.events.len());
        assert_eq!(client.append(batch.clone()).await?, due);
        let other = served.client(scope("other", &["**"], &["**"])?).await?;
        assert_eq!(other.append(batch.clone()).await?, due);
        assert_eq!(served.head(), Position(4));
        // The log remembers, not this process.
        served.close().await;
        drop((served, client));
        (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    }
    let all = read_all(&*client, Filter::default(), 10).await?;
    assert!(
        all.len() == 4
            && all
                .iter()
                .all(|event| event.actor == "test" && event.trace.is_none())
    );
    Ok(())
}

async fn mixed(
    fixture: &dyn Fixture,
    index: usize,
    events: &fn(&Known) -> Vec<NewEvent>,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let known = known();
    client.append(Append::of(known.batch.clone())).await?;
    client.append(Append::of(vec![known.alone.clone()])).await?;
    let events = events(&known);
    let id = events[index].id;
    for _ in 0..2 {
        let answer = client.append(Append::of(events.clone())).await;
        assert_eq!(answer, Err(AppendError::IdConflict { id }));
    }
    assert_eq!(served.head(), Position(4));
    // Whatever was new in it is still new.
    let answer = client.append(Append::of(vec![new()])).await?;
    assert_eq!((answer.first, answer.revs), (Position(5), vec![Rev(1)]));
    Ok(())
}
