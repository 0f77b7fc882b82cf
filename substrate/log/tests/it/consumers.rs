//! Durable consumers: what the trait promises, case by case.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::consumers::{
    Ack, Consumer, ConsumerError, ConsumerName, Consumers, Delivered, Nack, Poll, Start,
};
use tabbify_api::log::{Append, EventLog, Filter, ReadError};
use tabbify_types::Position;
use tokio::task::JoinSet;

use crate::conformance::{Fixture, Served};
use crate::support::{Outcome, Wrong, event, globs, scope};

const APPS: &str = "tenant_main.apps";

pub(crate) fn name(text: &str) -> ConsumerName {
    text.parse().expect("a literal name of a test")
}

pub(crate) fn poll(member: &str, max: usize, wait_ms: u64) -> Poll {
    Poll {
        member: member.parse().expect("a literal name of a test"),
        max,
        wait_ms,
    }
}

pub(crate) fn ack(member: &str, positions: &[u64]) -> Ack {
    Ack {
        member: member.parse().expect("a literal name of a test"),
        positions: positions.iter().copied().map(Position).collect(),
    }
}

fn nack(member: &str, position: u64, reason: &str) -> Nack {
    Nack {
        member: member.parse().expect("a literal name of a test"),
        position: Position(position),
        reason: reason.to_owned(),
    }
}

pub(crate) fn given(delivered: &[Delivered]) -> Vec<(u64, u32)> {
    let one = |one: &Delivered| (one.event.position.get(), one.attempt);
    delivered.iter().map(one).collect()
}

fn not_delivered(positions: &[u64]) -> Result<(), ConsumerError> {
    let positions = positions.iter().copied().map(Position).collect();
    Err(ConsumerError::NotDelivered { positions })
}

/// One event for each key, in the order given.
pub(crate) async fn write(client: &dyn EventLog, keys: &[&str]) -> Outcome {
    let events = keys.iter().map(|key| event(APPS, key, "{ \"a\":\n1 }"));
    client.append(Append::of(events.collect())).await?;
    Ok(())
}

async fn everybody(served: &dyn Served) -> Result<Arc<dyn Consumers>, Wrong> {
    served.consumers(scope("test", &["**"], &["**"])?).await
}

pub(crate) async fn work_is_given_acknowledged_and_never_given_again(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let consumers = everybody(&*served).await?;
    write(&*client, &["a", "b", "a", "c"]).await?;
    let (one, made) = (name("one"), Consumer::of(Filter::default()));
    let status = consumers.create(one.clone(), made.clone()).await?;
    assert_eq!((status.floor, status.lag), (Position(0), 4));
    assert_eq!(consumers.create(one.clone(), made.clone()).await?, status);

    let taken = consumers.next(one.clone(), poll("m1", 2, 5_000)).await?;
    assert_eq!(given(&taken), [(1, 1), (2, 1)]);
    assert_eq!(taken[0].event.data.get(), "{ \"a\":\n1 }");
    // The second event of `a` waits for the first, whoever asks.
    let taken = consumers.next(one.clone(), poll("m2", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(4, 1)]);
    assert_eq!(consumers.ack(one.clone(), ack("m2", &[4])).await, Ok(()));
    let acked = consumers.ack(one.clone(), ack("m2", &[1, 3, 77])).await;
    assert_eq!(acked, not_delivered(&[1, 3, 77]));
    assert_eq!(consumers.ack(one.clone(), ack("m1", &[1, 2])).await, Ok(()));
    let status = consumers.status(one.clone()).await?;
    assert_eq!((status.floor, status.read), (Position(2), Position(4)));
    assert_eq!(
        (status.waiting, status.in_flight, status.members),
        (1, 0, 2)
    );
    let taken = consumers.next(one.clone(), poll("m2", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(3, 1)]);
    assert_eq!(consumers.ack(one.clone(), ack("m2", &[3])).await, Ok(()));
    assert_eq!(
        consumers.next(one.clone(), poll("m1", 9, 0)).await?.len(),
        0
    );
    assert_eq!(consumers.status(one.clone()).await?.lag, 0);

    // From the head on, and only one type.
    let filter = Filter {
        kinds: vec!["other_thing".to_owned()],
        ..Filter::segments(globs(&["tenant_*.apps"])?)
    };
    let late = Consumer {
        start: Start::Head,
        ..Consumer::of(filter)
    };
    consumers.create(name("late"), late).await?;
    let mut other = event(APPS, "a", "{}");
    other.kind = "other_thing".to_owned();
    write(&*client, &["a"]).await?;
    client.append(Append::of(vec![other])).await?;
    let taken = consumers.next(name("late"), poll("m", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(6, 1)]);
    let names: Vec<String> = consumers
        .list()
        .await?
        .iter()
        .map(|status| status.name.to_string())
        .collect();
    assert_eq!(names, ["late", "one"]);

    consumers.remove(one.clone()).await?;
    let gone = consumers.next(one.clone(), poll("m1", 1, 0)).await;
    assert_eq!(
        gone.err(),
        Some(ConsumerError::Unknown { name: one.clone() })
    );
    assert_eq!(consumers.create(one, made).await?.floor, Position(0));
    Ok(())
}

pub(crate) async fn what_fails_too_often_is_parked_and_its_key_goes_on(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let consumers = everybody(&*served).await?;
    write(&*client, &["a", "a", "b"]).await?;
    let one = name("one");
    let twice = Consumer {
        attempts_max: 2,
        ..Consumer::of(Filter::default())
    };
    consumers.create(one.clone(), twice).await?;
    let taken = consumers.next(one.clone(), poll("m", 1, 5_000)).await?;
    assert_eq!(given(&taken), [(1, 1)]);
    let refused = consumers.nack(one.clone(), nack("m", 3, "not mine")).await;
    assert_eq!(refused, not_delivered(&[3]));
    consumers.nack(one.clone(), nack("m", 1, "first")).await?;
    // Another key does not wait for it; then it comes again by itself, after its pause.
    let taken = consumers.next(one.clone(), poll("m", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(3, 1)]);
    let taken = consumers.next(one.clone(), poll("m2", 9, 20_000)).await?;
    assert_eq!(given(&taken), [(1, 2)]);
    consumers
        .nack(one.clone(), nack("m2", 1, "no such ü"))
        .await?;
    let taken = consumers.next(one.clone(), poll("m", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(2, 1)]);
    let parked = consumers.parked(one.clone(), Position(0), 10).await?;
    assert_eq!(parked.len(), 1);
    let first = &parked[0];
    assert_eq!((first.position, first.attempts), (Position(1), 2));
    assert_eq!((&*first.key, &*first.reason), ("a", "no such ü"));
    assert_eq!(consumers.parked(one.clone(), Position(1), 10).await?, []);

    let missing = Err(ConsumerError::NotParked {
        position: Position(2),
    });
    assert_eq!(consumers.retry(one.clone(), Position(2)).await, missing);
    assert_eq!(
        consumers.drop_parked(one.clone(), Position(2)).await,
        missing
    );
    consumers.retry(one.clone(), Position(1)).await?;
    assert_eq!(consumers.next(one.clone(), poll("m", 9, 0)).await?.len(), 0);
    consumers.ack(one.clone(), ack("m", &[2, 3])).await?;
    let taken = consumers.next(one.clone(), poll("m", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(1, 1)], "again with all its attempts");
    consumers.nack(one.clone(), nack("m", 1, "no")).await?;
    let taken = consumers.next(one.clone(), poll("m", 9, 20_000)).await?;
    assert_eq!(given(&taken), [(1, 2)]);
    consumers.nack(one.clone(), nack("m", 1, "no")).await?;
    consumers.drop_parked(one.clone(), Position(1)).await?;
    let status = consumers.status(one).await?;
    assert_eq!((status.parked, status.lag, status.stopped), (0, 0, None));
    Ok(())
}

pub(crate) async fn a_member_that_is_silent_loses_its_event(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let consumers = everybody(&*served).await?;
    write(&*client, &["a"]).await?;
    let one = name("one");
    let quick = Consumer {
        ack_timeout_ms: 100,
        ..Consumer::of(Filter::default())
    };
    consumers.create(one.clone(), quick).await?;
    let taken = consumers.next(one.clone(), poll("m1", 1, 5_000)).await?;
    assert_eq!(given(&taken), [(1, 1)]);
    let taken = consumers.next(one.clone(), poll("m2", 1, 20_000)).await?;
    assert_eq!(given(&taken), [(1, 2)]);
    let late = consumers.ack(one.clone(), ack("m1", &[1])).await;
    assert_eq!(late, not_delivered(&[1]));
    Ok(())
}

pub(crate) async fn a_member_that_waits_is_woken_by_an_append(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let consumers = everybody(&*served).await?;
    let one = name("one");
    consumers
        .create(one.clone(), Consumer::of(Filter::default()))
        .await?;
    assert_eq!(
        consumers.next(one.clone(), poll("m", 1, 50)).await?.len(),
        0
    );
    let mut members = JoinSet::new();
    for n in 0..3 {
        let (consumers, one) = (consumers.clone(), one.clone());
        members.spawn(async move { consumers.next(one, poll(&format!("m{n}"), 1, 25_000)).await });
    }
    // All three wait, and each gets one.
    while consumers.status(one.clone()).await?.members < 4 {
        tokio::task::yield_now().await;
    }
    write(&*client, &["a", "b", "c"]).await?;
    let mut taken = Vec::new();
    while let Some(answer) = members.join_next().await {
        taken.extend(given(&answer??));
    }
    taken.sort_unstable();
    assert_eq!(taken, [(1, 1), (2, 1), (3, 1)]);

    // One that waits when the consumer ends is told so.
    let waiting = {
        let (consumers, one) = (consumers.clone(), one.clone());
        let mut waiting = JoinSet::new();
        waiting.spawn(async move { consumers.next(one, poll("last", 1, 25_000)).await });
        waiting
    };
    while consumers.status(one.clone()).await?.members < 5 {
        tokio::task::yield_now().await;
    }
    consumers.remove(one.clone()).await?;
    let told = waiting.join_all().await.pop().ok_or("one member")?;
    assert_eq!(told.err(), Some(ConsumerError::Unknown { name: one }));
    Ok(())
}

/// Takes work until nothing has come for a while; some of it fails at first.
async fn work(
    consumers: Arc<dyn Consumers>,
    member: String,
    done: Arc<Mutex<BTreeMap<String, Vec<u64>>>>,
    total: usize,
) -> Outcome {
    loop {
        let taken = consumers.next(name("one"), poll(&member, 5, 100)).await?;
        for Delivered { event, attempt } in taken {
            let position = event.position.get();
            if attempt == 1 && position % 97 == 0 {
                let nack = nack(&member, position, "at first");
                consumers.nack(name("one"), nack).await?;
                continue;
            }
            {
                let mut by_key = done.lock().unwrap_or_else(PoisonError::into_inner);
                by_key.entry(event.key.clone()).or_default().push(position);
            }
            consumers
                .ack(name("one"), ack(&member, &[position]))
                .await?;
        }
        let by_key = done.lock().unwrap_or_else(PoisonError::into_inner);
        if by_key.values().map(Vec::len).sum::<usize>() >= total {
            return Ok(());
        }
    }
}

pub(crate) async fn many_members_keep_the_order_of_every_key(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let consumers = everybody(&*served).await?;
    consumers
        .create(name("one"), Consumer::of(Filter::default()))
        .await?;
    let done = Arc::default();
    let total = 600;
    let mut members = JoinSet::new();
    for n in 0..6 {
        members.spawn(work(
            consumers.clone(),
            format!("m{n}"),
            Arc::clone(&done),
            total,
        ));
    }
    for round in 0..60 {
        let keys: Vec<String> = (0..10).map(|n| format!("k{}", (n * round) % 17)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        write(&*client, &keys).await?;
    }
    while let Some(ended) = members.join_next().await {
        ended??;
    }
    let by_key = done.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all: Vec<u64> = Vec::new();
    for (key, positions) in &*by_key {
        // Nobody was slow, so at least once is once.
        assert!(positions.is_sorted_by(|a, b| a < b), "{key}: {positions:?}");
        all.extend(positions);
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=total as u64));
    Ok(())
}

pub(crate) async fn beginning_again_gives_everything_again(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let consumers = everybody(&*served).await?;
    write(&*client, &["a", "b", "c", "d"]).await?;
    let one = name("one");
    consumers
        .create(one.clone(), Consumer::of(Filter::default()))
        .await?;
    let taken = consumers.next(one.clone(), poll("m", 9, 5_000)).await?;
    assert_eq!(taken.len(), 4);
    consumers.ack(one.clone(), ack("m", &[1, 2, 4])).await?;
    let status = consumers.reset(one.clone(), Position(1)).await?;
    assert_eq!((status.floor, status.in_flight), (Position(1), 0));
    // What was given before is taken back.
    let late = consumers.ack(one.clone(), ack("m", &[3])).await;
    assert_eq!(late, not_delivered(&[3]));
    let taken = consumers.next(one.clone(), poll("m", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(2, 1), (3, 1), (4, 1)]);
    consumers.reset(one.clone(), Position(4)).await?;
    assert_eq!(consumers.next(one.clone(), poll("m", 9, 0)).await?.len(), 0);
    let beyond = ConsumerError::Read(ReadError::BeyondHead {
        after: Position(5),
        head: Position(4),
    });
    assert_eq!(consumers.reset(one, Position(5)).await.err(), Some(beyond));
    Ok(())
}

pub(crate) async fn whoever_may_not_read_may_not_consume(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let everybody = everybody(&*served).await?;
    client
        .append(Append::of(vec![
            event("tenant_a.apps", "k", "{}"),
            event("tenant_b.apps", "k", "{}"),
        ]))
        .await?;
    let tenant = served.consumers(scope("a", &[], &["tenant_a.*"])?).await?;
    let forbidden = |glob: &str| ConsumerError::Forbidden {
        actor: "a".to_owned(),
        glob: glob.parse().expect("a literal glob"),
    };
    let all = Consumer::of(Filter::segments(globs(&["**"])?));
    let refused = tenant.create(name("all"), all.clone()).await;
    assert_eq!(refused.err(), Some(forbidden("**")));
    everybody.create(name("all"), all).await?;
    let refused = tenant.next(name("all"), poll("m", 1, 0)).await;
    assert_eq!(refused.err(), Some(forbidden("**")));
    let refused = tenant.reset(name("all"), Position(0)).await;
    assert_eq!(refused.err(), Some(forbidden("**")));
    assert_eq!(
        tenant.remove(name("all")).await.err(),
        Some(forbidden("**"))
    );
    assert_eq!(tenant.list().await?, []);
    // Without a segment it gets what its maker may read, whoever uses it.
    tenant
        .create(name("own"), Consumer::of(Filter::default()))
        .await?;
    let taken = everybody.next(name("own"), poll("m", 9, 5_000)).await?;
    assert_eq!(given(&taken), [(1, 1)]);
    Ok(())
}

/// Consumers that are refused, and what is said about them.
fn refused() -> Result<Vec<(&'static str, Consumer)>, Wrong> {
    let plain = || Consumer::of(Filter::default());
    Ok(vec![
        (
            "65 globs",
            Consumer::of(Filter::segments(globs(&["**"; 65])?)),
        ),
        ("65 types", {
            let mut consumer = plain();
            consumer.filter.kinds = vec![String::new(); 65];
            consumer
        }),
        (
            "ack_timeout_ms is 99",
            Consumer {
                ack_timeout_ms: 99,
                ..plain()
            },
        ),
        (
            "attempts_max is 0",
            Consumer {
                attempts_max: 0,
                ..plain()
            },
        ),
    ])
}

pub(crate) async fn bad_requests_are_refused_by_name(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, _client) = fixture.open(dir.path(), 1 << 16).await?;
    let consumers = everybody(&*served).await?;
    let plain = || Consumer::of(Filter::default());
    for (part, consumer) in refused()? {
        let refused = consumers.create(name("one"), consumer).await;
        let Err(ConsumerError::Invalid { detail }) = &refused else {
            panic!("{part}: {refused:?}")
        };
        assert!(detail.contains(part), "{detail}");
    }
    let beyond = Consumer {
        start: Start::After(Position(1)),
        ..plain()
    };
    let refused = consumers.create(name("one"), beyond).await;
    let expected = ConsumerError::Read(ReadError::BeyondHead {
        after: Position(1),
        head: Position(0),
    });
    assert_eq!(refused.err(), Some(expected));
    consumers.create(name("one"), plain()).await?;
    let other = Consumer {
        attempts_max: 9,
        ..plain()
    };
    let refused = consumers.create(name("one"), other).await;
    assert_eq!(
        refused.err(),
        Some(ConsumerError::Exists { name: name("one") })
    );
    let many: Vec<u64> = (1..=1001).collect();
    let refused = consumers.ack(name("one"), ack("m", &many)).await;
    assert!(
        matches!(refused, Err(ConsumerError::Invalid { .. })),
        "{refused:?}"
    );
    for n in 0..64 {
        consumers
            .next(name("one"), poll(&format!("m{n}"), 1, 0))
            .await?;
    }
    let refused = consumers.next(name("one"), poll("m64", 1, 0)).await;
    let too_many = ConsumerError::TooMany {
        what: "members".to_owned(),
        max: 64,
    };
    assert_eq!(refused.err(), Some(too_many));
    Ok(())
}
