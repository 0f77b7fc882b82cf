//! What is left of a consumer after a stop, a crash, and damage.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::consumers::{Consumer, Consumers as ConsumersTrait};
use tabbify_api::log::{EventLog, Filter};
use tabbify_log::{Consumers, ConsumersError, Log};
use tabbify_process::{SystemClock, Tasks};
use tabbify_types::Position;

use crate::consumers::{ack, given, name, poll, write};
use crate::support::{Outcome, Wrong, options, scope};

struct Open {
    _log: Arc<Log>,
    client: Arc<dyn EventLog>,
    consumers: Arc<dyn ConsumersTrait>,
    tasks: Tasks,
}

async fn open(dir: &Path, states: &Path) -> Result<Open, Wrong> {
    let log = Arc::new(Log::open(dir, options())?);
    let tasks = Tasks::new();
    let all = scope("test", &["**"], &["**"])?;
    let opened = Consumers::open(states, log.clone(), Arc::new(SystemClock), &tasks).await?;
    Ok(Open {
        client: log.client(all.clone()),
        _log: log,
        consumers: opened.client(all),
        tasks,
    })
}

impl Open {
    async fn close(self) {
        assert!(self.tasks.shutdown(Duration::from_secs(20)).await);
    }
}

#[tokio::test]
async fn a_stop_forgets_nothing() -> Outcome {
    let (dir, states) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let states = states.path().join("consumers");
    let opened = open(dir.path(), &states).await?;
    let one = name("one");
    let once = Consumer {
        attempts_max: 1,
        ..Consumer::of(Filter::default())
    };
    opened.consumers.create(one.clone(), once).await?;
    write(&*opened.client, &["a", "b", "a", "c", "d"]).await?;
    let taken = opened
        .consumers
        .next(one.clone(), poll("m", 9, 5_000))
        .await?;
    assert_eq!(given(&taken), [(1, 1), (2, 1), (4, 1), (5, 1)]);
    opened.consumers.ack(one.clone(), ack("m", &[2, 4])).await?;
    let nack = tabbify_api::consumers::Nack {
        member: "m".parse()?,
        position: Position(5),
        reason: "broken".to_owned(),
    };
    opened.consumers.nack(one.clone(), nack).await?;
    opened.close().await;

    let opened = open(dir.path(), &states).await?;
    let status = opened.consumers.status(one.clone()).await?;
    assert_eq!((status.floor, status.read), (Position(0), Position(5)));
    assert_eq!((status.waiting, status.in_flight, status.parked), (2, 0, 1));
    // What was with a member is given again; what was acknowledged is not.
    let taken = opened
        .consumers
        .next(one.clone(), poll("m", 9, 5_000))
        .await?;
    assert_eq!(given(&taken), [(1, 1)]);
    opened.consumers.ack(one.clone(), ack("m", &[1])).await?;
    let parked = opened.consumers.parked(one.clone(), Position(0), 9).await?;
    assert_eq!(
        (parked[0].position, &*parked[0].reason),
        (Position(5), "broken")
    );
    opened.consumers.retry(one.clone(), Position(5)).await?;
    let taken = opened
        .consumers
        .next(one.clone(), poll("m", 9, 5_000))
        .await?;
    assert_eq!(given(&taken), [(3, 1), (5, 1)]);
    opened.close().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_time_has_parked_is_parked_after_a_stop() -> Outcome {
    let (dir, states) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let opened = open(dir.path(), states.path()).await?;
    let one = name("one");
    let once = Consumer {
        attempts_max: 1,
        ack_timeout_ms: 5_000,
        ..Consumer::of(Filter::default())
    };
    opened.consumers.create(one.clone(), once).await?;
    write(&*opened.client, &["a"]).await?;
    let next = opened.consumers.next(one.clone(), poll("m", 9, 5_000));
    assert_eq!(given(&next.await?), [(1, 1)]);
    // Nobody acknowledges it, and nobody asks how it stands.
    let next = opened.consumers.next(one.clone(), poll("m", 9, 10_000));
    assert_eq!(given(&next.await?), []);
    opened.close().await;

    let opened = open(dir.path(), states.path()).await?;
    let parked = opened.consumers.parked(one.clone(), Position(0), 9).await?;
    assert_eq!(parked.len(), 1);
    let next = opened.consumers.next(one.clone(), poll("m", 9, 5_000));
    assert_eq!(given(&next.await?), []);
    opened.close().await;
    Ok(())
}

#[tokio::test]
async fn a_crash_skips_nothing() -> Outcome {
    let (dir, states, crashed) = (
        tempfile::tempdir()?,
        tempfile::tempdir()?,
        tempfile::tempdir()?,
    );
    let opened = open(dir.path(), states.path()).await?;
    let one = name("one");
    let consumer = Consumer::of(Filter::default());
    opened.consumers.create(one.clone(), consumer).await?;
    let keys: Vec<String> = (0..300).map(|n| format!("k{}", n % 7)).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    write(&*opened.client, &keys).await?;
    // Copies of the file as it is at some moments are what crashes at these moments leave.
    let (mut copies, mut acked) = (Vec::new(), Vec::new());
    let file = states.path().join("one.consumer");
    while acked.len() < 300 {
        let taken = opened
            .consumers
            .next(one.clone(), poll("m", 3, 5_000))
            .await?;
        let taken: Vec<u64> = given(&taken).into_iter().map(|one| one.0).collect();
        opened.consumers.ack(one.clone(), ack("m", &taken)).await?;
        acked.extend(taken);
        if acked.len() % 60 < 3 {
            copies.push((std::fs::read(&file)?, acked.clone()));
        }
    }
    opened.close().await;
    copies.push((std::fs::read(&file)?, acked));
    for (bytes, acked) in copies {
        std::fs::write(crashed.path().join("one.consumer"), bytes)?;
        let opened = open(dir.path(), crashed.path()).await?;
        let mut again = Vec::new();
        loop {
            let taken = opened
                .consumers
                .next(one.clone(), poll("m", 100, 0))
                .await?;
            let status = opened.consumers.status(one.clone()).await?;
            let taken: Vec<u64> = given(&taken).into_iter().map(|one| one.0).collect();
            opened.consumers.ack(one.clone(), ack("m", &taken)).await?;
            again.extend(taken);
            if status.lag == 0 && status.in_flight == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let missed = (1..=300).find(|n| !acked.contains(n) && !again.contains(n));
        assert_eq!(missed, None);
        // Nothing twice after the crash, and each key in its order.
        for key in 0..7 {
            let of_key: Vec<u64> = again
                .iter()
                .copied()
                .filter(|n| (n - 1) % 7 == key)
                .collect();
            assert!(of_key.is_sorted_by(|a, b| a < b), "{of_key:?}");
        }
        opened.close().await;
    }
    Ok(())
}

#[tokio::test]
async fn damage_is_refused_with_the_file() -> Outcome {
    let (dir, states) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let opened = open(dir.path(), states.path()).await?;
    let consumer = Consumer::of(Filter::default());
    opened.consumers.create(name("one"), consumer).await?;
    opened.close().await;
    let file = states.path().join("one.consumer");
    let whole = std::fs::read(&file)?;
    let mut bytes = whole.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes)?;
    let refused = open(dir.path(), states.path())
        .await
        .err()
        .ok_or("it opens")?;
    let refused = refused
        .downcast_ref::<ConsumersError>()
        .ok_or("another error")?;
    let ConsumersError::Damaged { file: named, what } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((named, what.contains("checksum")), (&file, true));
    // What is not a consumer's is left alone.
    std::fs::write(&file, whole)?;
    std::fs::write(states.path().join(".one.consumer.0123"), "half")?;
    open(dir.path(), states.path()).await?.close().await;
    Ok(())
}

#[tokio::test]
async fn a_position_of_another_log_is_said() -> Outcome {
    let (dir, other, states) = (
        tempfile::tempdir()?,
        tempfile::tempdir()?,
        tempfile::tempdir()?,
    );
    let opened = open(dir.path(), states.path()).await?;
    write(&*opened.client, &["a", "b"]).await?;
    opened
        .consumers
        .create(name("one"), Consumer::of(Filter::default()))
        .await?;
    opened
        .consumers
        .next(name("one"), poll("m", 9, 5_000))
        .await?;
    opened.close().await;
    let refused = open(other.path(), states.path())
        .await
        .err()
        .ok_or("it opens")?;
    let refused = refused
        .downcast_ref::<ConsumersError>()
        .ok_or("another error")?;
    assert!(
        matches!(
            refused,
            ConsumersError::Event {
                position: Position(1),
                source: None | Some(_),
                ..
            }
        ),
        "{refused:?}"
    );
    Ok(())
}
