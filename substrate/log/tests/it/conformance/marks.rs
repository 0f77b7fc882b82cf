//! What a subscriber is told: events once and in order, `CaughtUp` once, `Progress` where nothing
//! matched; and that it can stop and resume anywhere.

use std::time::Duration;

use tabbify_api::log::{Append, Delivery, EventLog, Filter, ReadError, Subscribe};
use tabbify_types::Position;

use super::Fixture;
use super::case::Case;
use crate::support::{Outcome, Wrong, event, globs, next, refused_subscription};

const APPS: &str = "tenant_main.apps";
const CHAT: &str = "tenant_main.chat";
const EVENTS: u64 = 6;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for after in 0..=EVENTS {
        cases.push(Case::new(format!("marks::from {after}"), move |fixture| {
            Box::pin(from(fixture, after))
        }));
        cases.push(Case::new(
            format!("marks::filtered, from {after}"),
            move |fixture| Box::pin(filtered_from(fixture, after)),
        ));
    }
    for after in [EVENTS + 1, EVENTS + 1000, u64::MAX] {
        cases.push(Case::new(
            format!("marks::from {after}, beyond"),
            move |fixture| Box::pin(beyond(fixture, after)),
        ));
    }
    cases.push(Case::new("marks::of an empty log", |fixture| {
        Box::pin(empty(fixture))
    }));
    cases.push(Case::new(
        "marks::progress is where one resumes",
        |fixture| Box::pin(progress(fixture)),
    ));
    cases.push(Case::new(
        "marks::a wait that is given up loses nothing",
        |fixture| Box::pin(given_up(fixture)),
    ));
    cases.push(Case::new(
        "marks::two readers do not know each other",
        |fixture| Box::pin(two(fixture)),
    ));
    cases.push(Case::new(
        "marks::an end of many loses nothing",
        |fixture| Box::pin(resumed_at_random(fixture)),
    ));
    cases
}

fn one(segment: &str) -> Append {
    Append::of(vec![event(segment, "k", "{}")])
}

/// Apps and chat by turns.
async fn fill(client: &dyn EventLog) -> Outcome {
    for n in 0..EVENTS {
        client
            .append(one(if n % 2 == 0 { APPS } else { CHAT }))
            .await?;
    }
    Ok(())
}

async fn due_event(subscription: &mut dyn Subscribe, position: u64) -> Outcome {
    match next(subscription).await? {
        Delivery::Event(event) if event.position == Position(position) => Ok(()),
        other => Err(format!("{other:?}, where {position} is due").into()),
    }
}

async fn due_caught_up(subscription: &mut dyn Subscribe, position: u64) -> Outcome {
    match next(subscription).await? {
        Delivery::CaughtUp(at) if at == Position(position) => Ok(()),
        other => Err(format!("{other:?}, where CaughtUp({position}) is due").into()),
    }
}

async fn due_progress(subscription: &mut dyn Subscribe, position: u64) -> Outcome {
    match next(subscription).await? {
        Delivery::Progress(at) if at == Position(position) => Ok(()),
        other => Err(format!("{other:?}, where Progress({position}) is due").into()),
    }
}

async fn from(fixture: &dyn Fixture, after: u64) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    fill(&*client).await?;
    let mut subscription = client.subscribe(Filter::default(), Position(after))?;
    for due in after + 1..=EVENTS {
        due_event(&mut *subscription, due).await?;
    }
    due_caught_up(&mut *subscription, EVENTS).await?;
    for due in EVENTS + 1..EVENTS + 4 {
        client.append(one(APPS)).await?;
        due_event(&mut *subscription, due).await?;
    }
    Ok(())
}

async fn filtered_from(fixture: &dyn Fixture, after: u64) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    fill(&*client).await?;
    let chat = Filter::segments(globs(&[CHAT])?);
    let mut subscription = client.subscribe(chat, Position(after))?;
    for due in (after + 1..=EVENTS).filter(|position| position % 2 == 0) {
        due_event(&mut *subscription, due).await?;
    }
    due_caught_up(&mut *subscription, EVENTS).await?;
    // What does not match moves the reader on, too.
    client.append(one(APPS)).await?;
    due_progress(&mut *subscription, EVENTS + 1).await?;
    client.append(one(CHAT)).await?;
    due_event(&mut *subscription, EVENTS + 2).await
}

async fn beyond(fixture: &dyn Fixture, after: u64) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    fill(&*client).await?;
    let due = ReadError::BeyondHead {
        after: Position(after),
        head: Position(EVENTS),
    };
    let filter = Filter::default();
    let subscribed = refused_subscription(&*client, filter.clone(), Position(after)).await?;
    assert_eq!(subscribed, due);
    assert_eq!(
        client.read(filter, Position(after), 9).await.err(),
        Some(due)
    );
    Ok(())
}

async fn empty(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let page = client.read(Filter::default(), Position(0), 9).await?;
    assert!(page.events.is_empty());
    assert_eq!((page.next_after, page.head), (Position(0), Position(0)));
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    due_caught_up(&mut *subscription, 0).await?;
    client.append(one(APPS)).await?;
    due_event(&mut *subscription, 1).await
}

async fn progress(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let noise = |count: usize| Append::of((0..count).map(|_| event(APPS, "k", "{}")).collect());
    client.append(one(CHAT)).await?;
    for _ in 0..3 {
        client.append(noise(1000)).await?;
    }
    let chat = Filter::segments(globs(&[CHAT])?);
    let mut subscription = client.subscribe(chat.clone(), Position(0))?;
    due_event(&mut *subscription, 1).await?;
    // Where nothing matches for long it may say so on the way.
    let mut told = Position(1);
    loop {
        match next(&mut *subscription).await? {
            Delivery::Progress(at) if at > told => told = at,
            Delivery::CaughtUp(Position(3001)) => break,
            other => return Err(format!("{other:?}").into()),
        }
    }
    client.append(noise(7)).await?;
    due_progress(&mut *subscription, 3008).await?;
    drop(subscription);
    client.append(one(CHAT)).await?;
    let mut resumed = client.subscribe(chat, Position(3008))?;
    due_event(&mut *resumed, 3009).await?;
    due_caught_up(&mut *resumed, 3009).await
}

async fn given_up(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 13).await?;
    fill(&*client).await?;
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    let (mut seen, mut caught_up) = (Vec::new(), 0);
    let mut appended = EVENTS;
    while seen.len() < 20 {
        // Each wait is cut short, most of them before anything is there.
        let wait = tokio::time::timeout(Duration::from_micros(50), subscription.next());
        match wait.await {
            Err(_) if appended < 20 && seen.len() as u64 == appended => {
                client.append(one(APPS)).await?;
                appended += 1;
            }
            Err(_) => {}
            Ok(Ok(Delivery::Event(event))) => seen.push(event.position.get()),
            Ok(Ok(Delivery::CaughtUp(_))) => caught_up += 1,
            Ok(other) => return Err(format!("{other:?}").into()),
        }
    }
    assert!(seen.iter().copied().eq(1..=20), "{seen:?}");
    assert_eq!(caught_up, 1);
    Ok(())
}

async fn two(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    fill(&*client).await?;
    let mut one_of = client.subscribe(Filter::default(), Position(0))?;
    let mut other = client.subscribe(Filter::default(), Position(3))?;
    due_event(&mut *one_of, 1).await?;
    for due in 4..=EVENTS {
        due_event(&mut *other, due).await?;
    }
    due_caught_up(&mut *other, EVENTS).await?;
    drop(other);
    for due in 2..=EVENTS {
        due_event(&mut *one_of, due).await?;
    }
    due_caught_up(&mut *one_of, EVENTS).await
}

/// Reads on from wherever it ended, again and again, while events come in.
async fn resumed_at_random(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 13).await?;
    let (mut seen, mut after): (Vec<u64>, Position) = (Vec::new(), Position(0));
    for round in 0..12_u64 {
        for _ in 0..round % 4 {
            client.append(one(APPS)).await?;
        }
        let mut subscription = client.subscribe(Filter::default(), after)?;
        for _ in 0..=round % 3 {
            match next(&mut *subscription).await? {
                Delivery::Event(event) => {
                    seen.push(event.position.get());
                    after = event.position;
                }
                Delivery::CaughtUp(at) => {
                    assert_eq!(at, after);
                    break;
                }
                other @ Delivery::Progress(_) => return Err(format!("{other:?}").into()),
            }
        }
    }
    let rest = client.read(Filter::default(), after, 100).await?;
    seen.extend(rest.events.iter().map(|event| event.position.get()));
    let head: Result<u64, Wrong> = Ok(client.head().get());
    assert!(seen.iter().copied().eq(1..=head?), "{seen:?}");
    Ok(())
}
