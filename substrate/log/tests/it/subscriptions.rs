//! History, then live: no gap, no duplicate, marks where they belong.

use std::time::Duration;

use tabbify_api::log::{Append, Delivery, Filter, ReadError};
use tabbify_types::Position;

use crate::conformance::Fixture;
use crate::support::{Outcome, event, globs, next, sized};

pub(crate) async fn history_then_caught_up_once_then_live(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = fixture.open(dir.path(), 1 << 13).await?;
    for _ in 0..30 {
        client.append(sized(400)).await?;
    }
    let mut subscription = client.subscribe(Filter::default(), Position(10))?;
    for due in 11..=30 {
        let Delivery::Event(event) = next(&mut *subscription).await? else {
            panic!("event {due}")
        };
        assert_eq!(event.position, Position(due));
    }
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::CaughtUp(Position(30))
    ));
    for due in 31..=40 {
        // A wait that is given up loses nothing.
        let early = tokio::time::timeout(Duration::from_millis(1), subscription.next()).await;
        assert!(early.is_err());
        client.append(sized(400)).await?;
        let Delivery::Event(event) = next(&mut *subscription).await? else {
            panic!("event {due}")
        };
        assert_eq!(event.position, Position(due));
    }
    Ok(())
}

pub(crate) async fn what_does_not_match_is_told_as_progress(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (mut log, mut client) = fixture.open(dir.path(), 1 << 16).await?;
    let noise = |count: usize| {
        Append::of(
            (0..count)
                .map(|n| event("platform", &n.to_string(), "{}"))
                .collect(),
        )
    };
    let wanted = || Append::of(vec![event("tenant_a.chat", "k", "{}")]);
    client.append(wanted()).await?;
    for _ in 0..5 {
        client.append(noise(1000)).await?;
    }
    client.append(wanted()).await?;
    for _ in 0..3 {
        client.append(noise(501)).await?;
    }
    let chat = Filter::segments(globs(&["*.chat"])?);
    // From memory as far as it reaches, then all of it from files.
    for _ in 0..2 {
        let mut subscription = client.subscribe(chat.clone(), Position(0))?;
        let (mut events, mut progress) = (Vec::new(), Vec::new());
        let caught_up = loop {
            match next(&mut *subscription).await? {
                Delivery::Event(event) => events.push(event.position.get()),
                Delivery::Progress(position) => progress.push(position.get()),
                Delivery::CaughtUp(position) => break position,
            }
        };
        assert_eq!(events, [1, 5002]);
        assert_eq!(caught_up, Position(6505));
        // The last matching event is far behind: a subscriber that stops here need not read it all
        // again.
        assert!(
            progress.last() > Some(&6001) && progress.is_sorted(),
            "{progress:?}"
        );
        log.close().await;
        (log, client) = fixture.open(dir.path(), 1 << 16).await?;
    }
    let mut subscription = client.subscribe(chat, Position(6505))?;
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::CaughtUp(Position(6505))
    ));
    client.append(noise(2)).await?;
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::Progress(Position(6507))
    ));
    client.append(wanted()).await?;
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::Event(_)
    ));
    Ok(())
}

pub(crate) async fn a_reader_that_slept_reads_from_disk_and_misses_nothing(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = fixture.open(dir.path(), 1 << 16).await?;
    client.append(sized(10)).await?;
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::Event(_)
    ));
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::CaughtUp(_)
    ));
    // Far more than memory keeps; nobody waits for the sleeper.
    for _ in 0..10 {
        let batch = (0..1000).map(|_| event("platform", "k", "{}")).collect();
        client.append(Append::of(batch)).await?;
    }
    for due in 2..=10_001 {
        let Delivery::Event(event) = next(&mut *subscription).await? else {
            panic!("event {due}")
        };
        assert_eq!(event.position, Position(due));
    }
    Ok(())
}

pub(crate) async fn the_end_of_the_log_ends_a_subscription_after_the_last_event(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = fixture.open(dir.path(), 1 << 16).await?;
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    client.append(sized(10)).await?;
    log.close().await;
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::Event(_)
    ));
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::CaughtUp(_)
    ));
    assert_eq!(subscription.next().await.err(), Some(ReadError::Stopping));
    Ok(())
}

pub(crate) async fn damage_under_a_running_log_is_reported_to_readers(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = fixture.open(dir.path(), 1 << 16).await?;
    client.append(sized(100)).await?;
    log.close().await;
    let (_log, client) = fixture.open(dir.path(), 1 << 16).await?;
    let extent = &crate::support::extents(dir.path())?[0];
    let mut bytes = std::fs::read(extent)?;
    bytes[512 + 200] ^= 1;
    std::fs::write(extent, bytes)?;
    let page = client.read(Filter::default(), Position(0), 10).await;
    let Err(ReadError::Damaged { detail }) = page else {
        panic!("damage is seen: {page:?}")
    };
    assert!(detail.contains("at byte 512"), "{detail}");
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    assert!(matches!(
        subscription.next().await,
        Err(ReadError::Damaged { .. })
    ));
    assert!(matches!(
        subscription.next().await,
        Err(ReadError::Damaged { .. })
    ));
    Ok(())
}
