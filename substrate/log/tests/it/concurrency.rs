//! Many writers and readers at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tabbify_api::log::{Append, AppendError, Delivery, EventLog, Expect, Filter};
use tabbify_types::{Position, Rev};
use tokio::task::JoinSet;

use crate::conformance::Fixture;
use crate::support::{Outcome, Wrong, event, next, read_all, segment};

const WRITERS: u64 = 64;
const APPENDS: u64 = 25;

/// Appends batches of one to three events to a key of its own; answers their positions.
async fn write(client: Arc<dyn EventLog>, writer: u64) -> Result<Vec<u64>, Wrong> {
    let mut taken = Vec::new();
    for n in 0..APPENDS {
        let one = |_| event("platform", &format!("w{writer}"), &format!("{{\"n\":{n}}}"));
        let answer = client
            .append(Append::of((0..1 + writer % 3).map(one).collect()))
            .await?;
        assert!(
            client.head() >= answer.last,
            "answered before it was durable"
        );
        taken.extend(answer.first.get()..=answer.last.get());
    }
    Ok(taken)
}

/// Reads on until position `total`; answers where it started and what it saw.
async fn see_all(
    client: Arc<dyn EventLog>,
    after: Position,
    total: u64,
) -> Result<(u64, Vec<u64>), Wrong> {
    let mut subscription = client.subscribe(Filter::default(), after)?;
    let (mut seen, mut caught_up) = (Vec::new(), 0);
    while after.get() + (seen.len() as u64) < total || caught_up == 0 {
        match next(&mut *subscription).await? {
            Delivery::Event(event) => seen.push(event.position.get()),
            Delivery::CaughtUp(_) => caught_up += 1,
            Delivery::Progress(_) => return Err("nothing was skipped".into()),
        }
    }
    assert_eq!(caught_up, 1);
    Ok((after.get(), seen))
}

pub(crate) async fn positions_are_gapless_and_every_reader_sees_everything_once(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, client) = fixture.open(dir.path(), 1 << 15).await?;
    let total: u64 = (0..WRITERS).map(|w| APPENDS * (1 + w % 3)).sum();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(client.clone(), writer));
    }
    let mut readers = JoinSet::new();
    for reader in 0..24 {
        // Readers start wherever the log happens to be, some at its beginning.
        let after = if reader % 2 == 0 {
            Position(0)
        } else {
            client.head()
        };
        readers.spawn(see_all(client.clone(), after, total));
        tokio::task::yield_now().await;
    }
    let mut taken = Vec::new();
    while let Some(done) = writers.join_next().await {
        taken.extend(done??);
    }
    taken.sort_unstable();
    assert!(
        taken.iter().copied().eq(1..=total),
        "positions have gaps or repeat"
    );
    while let Some(done) = readers.join_next().await {
        let (after, seen) = done??;
        assert!(
            seen.iter().copied().eq(after + 1..=total),
            "from {after}: {} seen",
            seen.len()
        );
    }
    let mut revs: BTreeMap<String, u64> = BTreeMap::new();
    for event in read_all(&*client, Filter::default(), 500).await? {
        let rev = revs.entry(event.key.clone()).or_default();
        *rev += 1;
        assert_eq!(event.rev, Rev(*rev));
    }
    log.close().await;
    drop((log, client));
    let (head, commits) = fixture.verify(dir.path()).await?;
    assert_eq!(head, Position(total));
    // Group commit: batches that waited share one.
    assert!(commits < WRITERS * APPENDS, "{commits} commits");
    Ok(())
}

pub(crate) async fn one_of_many_wins_a_revision(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = fixture.open(dir.path(), 1 << 16).await?;
    for round in 0..20 {
        let mut tasks = JoinSet::new();
        for _ in 0..16 {
            let client = client.clone();
            let expect = if round == 0 {
                Expect::None
            } else {
                Expect::Rev(Rev(round))
            };
            let batch = Append::of(vec![event("platform", "k", "{}")]);
            let batch = batch.expecting(segment("platform"), "k", expect);
            tasks.spawn(async move { client.append(batch).await });
        }
        let mut won = 0;
        while let Some(answer) = tasks.join_next().await {
            match answer? {
                Ok(answer) => {
                    assert_eq!(answer.revs, [Rev(round + 1)]);
                    won += 1;
                }
                Err(AppendError::Conflict { actual, .. }) => assert_eq!(actual, Rev(round + 1)),
                Err(other) => return Err(other.into()),
            }
        }
        assert_eq!(won, 1, "round {round}");
    }
    Ok(())
}

pub(crate) async fn the_same_batch_from_many_at_once_is_written_once(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, client) = fixture.open(dir.path(), 1 << 16).await?;
    for round in 1..=20 {
        let batch = Append::of(vec![
            event("platform", "a", "{}"),
            event("platform", "b", "{}"),
        ]);
        let mut tasks = JoinSet::new();
        for _ in 0..16 {
            let (client, batch) = (client.clone(), batch.clone());
            tasks.spawn(async move { client.append(batch).await });
        }
        let mut answers = HashSet::new();
        while let Some(answer) = tasks.join_next().await {
            let answer = answer??;
            answers.insert((answer.first, answer.last, answer.revs));
        }
        let expected = (
            Position(2 * round - 1),
            Position(2 * round),
            vec![Rev(round); 2],
        );
        assert_eq!(answers, HashSet::from([expected]));
    }
    Ok(())
}
