//! Two that both believe they lead: whoever was passed over never acknowledges again.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tabbify_api::log::{Append, AppendError, EventLog, Filter};
use tabbify_log::postgres::{Engine, OpenError, Options, Standby};
use tabbify_process::SystemClock;
use tabbify_types::{EventId, Position};
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::{lead, options};
use crate::support::{Outcome, Wrong, event, next, read_all, scope};

/// Conninfo for the child; without it the child's test does nothing.
const CONNINFO: &str = "TABBIFY_LOG_FENCING_CONNINFO";
const SCHEMA: &str = "fenced";

fn one() -> Append {
    Append::of(vec![event("platform", "k", "{}")])
}

/// Ends the lease of whoever leads, as time would.
async fn expire(cluster: &Cluster, schema: &str) -> Outcome {
    let session = cluster.session(0).await?;
    let expire = format!("update {schema}.leader set until = 'epoch'");
    session.batch_execute(&expire).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_writer_that_was_passed_over_never_acknowledges_again() -> Outcome {
    let Some(cluster) = Cluster::start(1).await? else {
        return Ok(());
    };
    let (first, old) = lead(&cluster, "passed").await?;
    let repeated = one();
    old.append(repeated.clone()).await?;
    // Under load, so that the election falls between its commits.
    let mut appends: JoinSet<Result<Vec<(Position, EventId)>, AppendError>> = JoinSet::new();
    for _ in 0..6 {
        let old = old.clone();
        appends.spawn(async move {
            let mut acknowledged = Vec::new();
            loop {
                let batch = one();
                let id = batch.events[0].id;
                match old.append(batch).await {
                    Ok(answer) => acknowledged.push((answer.first, id)),
                    Err(AppendError::Stopping) => return Ok(acknowledged),
                    Err(other) => return Err(other),
                }
            }
        });
    }
    while first.head() < Position(30) {
        tokio::task::yield_now().await;
    }
    expire(&cluster, "passed").await?;
    let (second, new) = lead(&cluster, "passed").await?;
    new.append(one()).await?;
    let mut acknowledged = Vec::new();
    while let Some(ended) = appends.join_next().await {
        acknowledged.extend(ended??);
    }
    // Neither a new batch, nor a repetition, nor a refusal: it knows nothing any more.
    first.stopped().await;
    for batch in [one(), repeated] {
        assert_eq!(old.append(batch).await, Err(AppendError::Stopping));
    }
    new.append(one()).await?;
    let all = read_all(&*new, Filter::default(), 1000).await?;
    assert!(
        all.iter()
            .map(|event| event.position.get())
            .eq(1..=new.head().get())
    );
    for (position, id) in acknowledged {
        let found = &all[usize::try_from(position.get())? - 1];
        assert_eq!(found.id, id, "{position} was acknowledged");
    }
    second.close().await;
    let verified = Engine::verify(options(&cluster, "passed")?).await?;
    assert_eq!((verified.content.head, verified.epoch), (new.head(), 2));
    Ok(())
}

/// The child: leads, appends for ever, says what was acknowledged, and how it ended.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test's own re-execution, not configuration"
)]
fn leading_child() -> Outcome {
    let Ok(conninfo) = env::var(CONNINFO) else {
        return Ok(());
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let seconds = Duration::from_secs;
        let options = Options::new(&conninfo, Arc::new(SystemClock))?
            .schema(SCHEMA)?
            .standby(Standby::Required)
            .times(seconds(1), seconds(20), seconds(20));
        let engine = Engine::lead(options).await?;
        let client: Arc<dyn EventLog> = engine.client(scope("child", &["**"], &["**"])?);
        loop {
            let batch = one();
            let id = batch.events[0].id;
            match client.append(batch).await {
                Ok(answer) => println!("ack {} {id}", answer.first),
                Err(error) => {
                    println!("end {error:?}");
                    return Ok(());
                }
            }
        }
    })
}

fn signal(child: &Child, signal: Signal) -> Outcome {
    let pid = Pid::from_raw(i32::try_from(child.id())?).ok_or("a process")?;
    Ok(kill_process(pid, signal)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_process_that_slept_through_an_election_never_acknowledges_again() -> Outcome {
    let Some(cluster) = Cluster::start(1).await? else {
        return Ok(());
    };
    let mut child = Command::new(env::current_exe()?)
        .args([
            "postgres::fencing::leading_child",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CONNINFO, cluster.conninfo())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = child.stdout.take().ok_or("a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut acknowledged = Vec::new();
    let mut take =
        |lines: &mut dyn Iterator<Item = std::io::Result<String>>| -> Result<bool, Wrong> {
            let line = lines.next().ok_or("the child ended without a word")??;
            // libtest prints the name of the test without a line end.
            if let Some((_, ack)) = line.split_once("ack ") {
                let (position, id) = ack.split_once(' ').ok_or("a position and an id")?;
                acknowledged.push((position.parse::<usize>()?, id.to_owned()));
            }
            if line.contains("end ") {
                assert!(line.contains("Stopping"), "{line}");
                return Ok(false);
            }
            Ok(true)
        };
    for _ in 0..20 {
        assert!(take(&mut lines)?);
    }
    signal(&child, Signal::STOP)?;
    // Its lease runs out while it sleeps; the new leader need not be told of anything.
    let (engine, client) = lead(&cluster, SCHEMA).await?;
    let taken_over = client.append(one()).await?.first;
    signal(&child, Signal::CONT)?;
    while take(&mut lines)? {}
    child.wait()?;
    let all = read_all(&*client, Filter::default(), 1000).await?;
    for (position, id) in acknowledged {
        assert!(
            position < usize::try_from(taken_over.get())?,
            "{position} after the election"
        );
        assert_eq!(all[position - 1].id.to_string(), id);
    }
    engine.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_leader_is_waited_for_and_a_follower_reads_along() -> Outcome {
    let Some(cluster) = Cluster::start(0).await? else {
        return Ok(());
    };
    let missing = Engine::follow(options(&cluster, "along")?).await;
    assert!(
        matches!(missing, Err(OpenError::Missing { .. })),
        "{missing:?}"
    );
    let (leader, client) = lead(&cluster, "along").await?;
    // While it leads, nobody else does; it renews, so that takes longer than its lease.
    let impatient = options(&cluster, "along")?.times(
        Duration::from_secs(1),
        Duration::from_secs(4),
        Duration::from_secs(9),
    );
    let refused = Engine::lead(impatient).await;
    let Err(OpenError::Led { holder, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    let follower = Engine::follow(options(&cluster, "along")?).await?;
    let reader = follower.client(scope("reader", &["**"], &["**"])?);
    assert_eq!(follower.log_id(), leader.log_id());
    assert_eq!(reader.append(one()).await, Err(AppendError::Stopping));
    let mut subscription = reader.subscribe(Filter::default(), Position(0))?;
    assert!(matches!(
        next(&mut *subscription).await?,
        tabbify_api::log::Delivery::CaughtUp(Position(0))
    ));
    for due in 1..=5 {
        client.append(one()).await?;
        let tabbify_api::log::Delivery::Event(event) = next(&mut *subscription).await? else {
            panic!("event {due}")
        };
        assert_eq!(event.position, Position(due));
    }
    // A leader that gives up is followed at once, by one that waits.
    let waiting = lead(&cluster, "along");
    let (taken_over, ()) = tokio::join!(waiting, leader.close());
    let (next_leader, client) = taken_over?;
    assert_eq!(client.append(one()).await?.first, Position(6));
    assert!(matches!(
        next(&mut *subscription).await?,
        tabbify_api::log::Delivery::Event(_)
    ));
    next_leader.close().await;
    follower.close().await;
    assert_eq!(
        subscription.next().await.err(),
        Some(tabbify_api::log::ReadError::Stopping)
    );
    Ok(())
}
