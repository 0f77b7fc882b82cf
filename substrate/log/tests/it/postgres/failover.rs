//! Connections that break, sessions that are ended, a primary that is lost: nothing acknowledged is
//! lost, nothing is written twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tabbify_api::log::{Append, AppendError, Delivery, EventLog, Filter};
use tabbify_log::postgres::Engine;
use tabbify_types::{EventId, Position};
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::{lead, options};
use crate::support::{Outcome, Wrong, event, next, read_all, scope};

const WRITERS: u64 = 8;

/// What was acknowledged: position and id of every event.
type Acknowledged = BTreeMap<u64, EventId>;

/// Writers that append until they are told to stop, each to its own key, and remember every answer. A
/// batch whose outcome is not known is sent again with the same ids.
struct Writers {
    tasks: JoinSet<Result<Acknowledged, Wrong>>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
}

impl Writers {
    fn start(client: &Arc<dyn EventLog>) -> Self {
        let mut this = Self {
            tasks: JoinSet::new(),
            stop: Arc::default(),
            count: Arc::default(),
        };
        for writer in 0..WRITERS {
            let (client, stop) = (client.clone(), this.stop.clone());
            let count = this.count.clone();
            this.tasks.spawn(async move {
                let mut acknowledged = Acknowledged::new();
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    let one =
                        |_| event("platform", &format!("w{writer}"), &format!("{{\"n\":{n}}}"));
                    let batch = Append::of((0..1 + n % 3).map(one).collect());
                    let ids: Vec<EventId> = batch.events.iter().map(|event| event.id).collect();
                    let answer = client.append(batch.clone()).await?;
                    // And once more, as a caller does that has not got the answer.
                    assert_eq!(client.append(batch).await?, answer);
                    acknowledged.extend((answer.first.get()..).zip(ids));
                    count.fetch_add(1, Ordering::Relaxed);
                    n += 1;
                }
                Ok(acknowledged)
            });
        }
        this
    }

    /// Returns when so many more batches have been acknowledged.
    async fn more(&self, batches: u64) -> Outcome {
        let due = self.count.load(Ordering::Relaxed) + batches;
        let waiting = async {
            while self.count.load(Ordering::Relaxed) < due {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        Ok(tokio::time::timeout(Duration::from_secs(90), waiting).await?)
    }

    async fn end(mut self) -> Result<Acknowledged, Wrong> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Acknowledged::new();
        while let Some(ended) = self.tasks.join_next().await {
            for (position, id) in ended?? {
                assert!(
                    all.insert(position, id).is_none(),
                    "{position} is given twice"
                );
            }
        }
        Ok(all)
    }
}

/// Everything acknowledged is there, everything there is there once, and the chain holds.
async fn check(
    cluster: &Cluster,
    client: &dyn EventLog,
    schema: &str,
    acked: &Acknowledged,
) -> Outcome {
    let all = read_all(client, Filter::default(), 1000).await?;
    assert!(
        all.iter()
            .map(|event| event.position.get())
            .eq(1..=client.head().get())
    );
    let ids: std::collections::HashSet<EventId> = all.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), all.len(), "an event is there twice");
    for (position, id) in acked {
        let found = all.get(usize::try_from(*position)? - 1);
        assert_eq!(
            found.map(|event| event.id),
            Some(*id),
            "position {position}"
        );
    }
    let verified = Engine::verify(options(cluster, schema)?).await?;
    assert_eq!(verified.content.head, client.head());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_is_written_once_however_often_its_connection_breaks() -> Outcome {
    let Some(cluster) = Cluster::start(1).await? else {
        return Ok(());
    };
    let (engine, client) = lead(&cluster, "breaking").await?;
    let mut subscription = client.subscribe(Filter::default(), Position(0))?;
    let writers = Writers::start(&client);
    let session = cluster.session(0).await?;
    let mut ended = 0;
    for _ in 0..10 {
        writers.more(20).await?;
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where application_name = 'tabbify-log'";
        ended += session.query_one(end, &[]).await?.get::<_, i64>(0);
    }
    writers.more(20).await?;
    assert!(ended >= 10, "{ended} sessions ended");
    let acked = writers.end().await?;
    check(&cluster, &*client, "breaking", &acked).await?;
    // Readers have seen all of it, once and in order, over every break.
    let mut due = 1;
    while due <= client.head().get() {
        match next(&mut *subscription).await? {
            Delivery::Event(event) => {
                assert_eq!(event.position, Position(due));
                due += 1;
            }
            Delivery::CaughtUp(_) => {}
            other @ Delivery::Progress(_) => return Err(format!("{other:?}").into()),
        }
    }
    engine.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_loss_of_the_primary_loses_nothing_acknowledged() -> Outcome {
    let Some(mut cluster) = Cluster::start(2).await? else {
        return Ok(());
    };
    let (engine, client) = lead(&cluster, "lost").await?;
    let follower = Engine::follow(options(&cluster, "lost")?).await?;
    let reader = follower.client(scope("reader", &[], &["**"])?);
    let mut subscription = reader.subscribe(Filter::default(), Position(0))?;
    let writers = Writers::start(&client);
    writers.more(50).await?;
    cluster.kill(0)?;
    // Under load: what is in flight now is committed or not, and nobody knows yet.
    let promoted = cluster.promote_furthest().await?;
    assert!(promoted > 0);
    writers.more(50).await?;
    let acked = writers.end().await?;
    check(&cluster, &*client, "lost", &acked).await?;
    // The follower in another process came along.
    let mut due = 1;
    while due <= client.head().get() {
        match next(&mut *subscription).await? {
            Delivery::Event(event) => {
                assert_eq!(event.position, Position(due));
                due += 1;
            }
            Delivery::CaughtUp(_) => {}
            other @ Delivery::Progress(_) => return Err(format!("{other:?}").into()),
        }
    }
    engine.close().await;
    follower.close().await;
    Ok(())
}

/// Somebody cancels the wait for the standby: PostgreSQL then says "done" with a warning, and the
/// commit may be on one machine only. It is not acknowledged before it is on two.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_commit_that_did_not_wait_for_the_standby_is_not_acknowledged() -> Outcome {
    let Some(cluster) = Cluster::start(1).await? else {
        return Ok(());
    };
    let (engine, client) = lead(&cluster, "canceled").await?;
    client
        .append(Append::of(vec![event("platform", "k", "{}")]))
        .await?;
    cluster.pause(1)?;
    let batch = Append::of(vec![event("platform", "k", "{}")]);
    let mut appending = JoinSet::new();
    let writer = client.clone();
    appending.spawn(async move { writer.append(batch).await });
    let session = cluster.session(0).await?;
    let mut canceled = 0;
    let waiting = "select count(pg_cancel_backend(pid)) from pg_stat_activity \
         where application_name = 'tabbify-log' and wait_event = 'SyncRep'";
    let canceling = async {
        // The commit, and then the renewal of the lead by which it is looked up.
        while canceled < 2 {
            canceled += session.query_one(waiting, &[]).await?.get::<_, i64>(0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, Wrong>(())
    };
    tokio::time::timeout(Duration::from_secs(50), canceling).await??;
    assert!(
        appending.try_join_next().is_none(),
        "acknowledged without the standby"
    );
    assert_eq!(client.head(), Position(1));
    cluster.go_on(1)?;
    let answer = appending.join_next().await.ok_or("an answer")??;
    assert_eq!(answer.map(|answer| answer.first), Ok(Position(2)));
    assert_eq!(read_all(&*client, Filter::default(), 9).await?.len(), 2);
    engine.close().await;
    Ok(())
}

/// The disk of the database is full, as it says by its code: appends are refused, nothing is
/// half-written, reading goes on, and so does writing once there is space.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_database_refuses_appends_and_goes_on() -> Outcome {
    let Some(cluster) = Cluster::start(0).await? else {
        return Ok(());
    };
    let (engine, client) = lead(&cluster, "fullness").await?;
    let one = || Append::of(vec![event("platform", "k", "{}")]);
    client.append(one()).await?;
    let session = cluster.session(0).await?;
    session
        .batch_execute(
            "create function fullness.full() returns trigger language plpgsql as \
             $$ begin raise exception 'no space left on device' using errcode = '53100'; end $$; \
             create trigger full_disk before insert on fullness.events execute function fullness.full()",
        )
        .await?;
    for _ in 0..2 {
        let refused = client.append(one()).await;
        let Err(AppendError::NoSpace { detail }) = refused else {
            panic!("{refused:?}")
        };
        assert!(detail.contains("no space left"), "{detail}");
    }
    assert_eq!(read_all(&*client, Filter::default(), 9).await?.len(), 1);
    session
        .batch_execute("drop trigger full_disk on fullness.events")
        .await?;
    assert_eq!(client.append(one()).await?.first, Position(2));
    engine.close().await;
    let verified = Engine::verify(options(&cluster, "fullness")?).await?;
    assert_eq!((verified.content.head, verified.frames), (Position(2), 2));
    Ok(())
}
