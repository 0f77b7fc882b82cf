//! Closing and opening: what is there stays, what comes too late is told so.

use tabbify_api::log::{Append, AppendError, Delivery, Expect, Filter, ReadError};
use tabbify_types::{Position, Rev};

use super::Fixture;
use super::case::Case;
use crate::support::{Outcome, event, next, read_all, segment};

const APPS: &str = "tenant_main.apps";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("closing::a log goes on where it was", |fixture| {
            Box::pin(goes_on(fixture))
        }),
        Case::new("closing::an empty log stays the same log", |fixture| {
            Box::pin(stays_empty(fixture))
        }),
        Case::new("closing::what comes later is refused", |fixture| {
            Box::pin(too_late(fixture))
        }),
        Case::new("closing::what is there can still be read", |fixture| {
            Box::pin(still_read(fixture))
        }),
        Case::new("closing::a reader at the head is told", |fixture| {
            Box::pin(told(fixture))
        }),
        Case::new("closing::whatever was under way is answered", |fixture| {
            Box::pin(under_way(fixture))
        }),
    ]
}

fn one() -> Append {
    Append::of(vec![event(APPS, "k", "{}")])
}

async fn goes_on(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut known = None;
    for round in 0..4_u64 {
        let (served, client) = fixture.open(dir.path(), 1 << 13).await?;
        assert_eq!(served.head(), Position(2 * round));
        assert_eq!(
            *known.get_or_insert_with(|| served.log_id()),
            served.log_id()
        );
        let expecting = one().expecting(segment(APPS), "k", Expect::Rev(Rev(2 * round)));
        let answer = client.append(expecting).await?;
        assert_eq!(
            (answer.first, answer.revs),
            (Position(2 * round + 1), vec![Rev(2 * round + 1)])
        );
        client.append(one()).await?;
        served.close().await;
    }
    assert_eq!(fixture.verify(dir.path()).await?, (Position(8), 8));
    Ok(())
}

async fn stays_empty(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, _client) = fixture.open(dir.path(), 1 << 13).await?;
    let known = served.log_id();
    served.close().await;
    drop(served);
    let (served, _client) = fixture.open(dir.path(), 1 << 13).await?;
    assert_eq!((served.log_id(), served.head()), (known, Position(0)));
    Ok(())
}

async fn too_late(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 13).await?;
    client.append(one()).await?;
    served.close().await;
    for _ in 0..3 {
        assert_eq!(client.append(one()).await, Err(AppendError::Stopping));
    }
    served.close().await;
    assert_eq!(served.head(), Position(1));
    Ok(())
}

async fn still_read(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 13).await?;
    client.append(one()).await?;
    client.append(one()).await?;
    served.close().await;
    assert_eq!(read_all(&*client, Filter::default(), 1).await?.len(), 2);
    Ok(())
}

async fn told(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 13).await?;
    client.append(one()).await?;
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::Event(_)
    ));
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::CaughtUp(_)
    ));
    served.close().await;
    for _ in 0..2 {
        assert_eq!(subscription.next().await.err(), Some(ReadError::Stopping));
    }
    Ok(())
}

/// Of appends that race the close each is written and answered, or refused and not there.
async fn under_way(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 13).await?;
    let mut appends = tokio::task::JoinSet::new();
    for n in 0..20 {
        let client = client.clone();
        let batch = Append::of(vec![event(APPS, &format!("k{n}"), "{}")]);
        let id = batch.events[0].id;
        appends.spawn(async move { (id, client.append(batch).await) });
    }
    tokio::task::yield_now().await;
    served.close().await;
    let mut answered = Vec::new();
    while let Some(ended) = appends.join_next().await {
        match ended? {
            (id, Ok(answer)) => answered.push((answer.first, id)),
            (_, Err(error)) => assert_eq!(error, AppendError::Stopping),
        }
    }
    drop((served, client));
    let (_served, client) = fixture.open(dir.path(), 1 << 13).await?;
    let all = read_all(&*client, Filter::default(), 100).await?;
    let written: Vec<_> = all.iter().map(|event| (event.position, event.id)).collect();
    // An append that was refused may have been written: its writer repeats it with the same id.
    assert!(answered.iter().all(|answered| written.contains(answered)));
    Ok(())
}
