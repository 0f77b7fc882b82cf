//! The engine in PostgreSQL, against the real server with real standbys: the whole suite, and what
//! only this engine can show.

pub(crate) mod cluster;
mod failover;
mod fencing;
mod refusals;
mod transfer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::log::{Append, AppendError, EventLog, Expect, Filter};
use tabbify_log::LogId;
use tabbify_log::postgres::{Engine, Options, Standby};
use tabbify_process::SystemClock;
use tabbify_types::{Position, Rev};
use tokio::task::JoinSet;

use self::cluster::Cluster;
use crate::conformance::{self, InProcess, OverHttp, Store, case};
use crate::support::{Outcome, Wrong, event, read_all, scope, segment};

/// A log of a test in a schema of its own; of a primary without standbys only if there are none.
pub(crate) fn options(cluster: &Cluster, schema: &str) -> Result<Options, Wrong> {
    let options = Options::new(&cluster.conninfo(), Arc::new(SystemClock))?.schema(schema)?;
    let standby = if cluster.nodes.len() > 1 {
        Standby::Required
    } else {
        Standby::Missed
    };
    let seconds = Duration::from_secs;
    Ok(options
        .standby(standby)
        .times(seconds(3), seconds(40), seconds(60)))
}

/// A leader, and a client that may do everything.
pub(crate) async fn lead(
    cluster: &Cluster,
    schema: &str,
) -> Result<(Engine, Arc<dyn EventLog>), Wrong> {
    let engine = Engine::lead(options(cluster, schema)?).await?;
    let client = engine.client(scope("test", &["**"], &["**"])?);
    Ok((engine, client))
}

impl conformance::Engine for Engine {
    fn log_id(&self) -> LogId {
        Self::log_id(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(Self::close(self))
    }
}

/// Logs in a database; which one of them a directory is stands in a file there.
struct InDatabase(Cluster);

impl InDatabase {
    fn options(&self, dir: &Path) -> Result<Options, Wrong> {
        let file = dir.join("schema");
        if !file.exists() {
            let name = u64::from_le_bytes(tabbify_process::random());
            std::fs::write(&file, format!("log_{name:016x}"))?;
        }
        options(&self.0, &std::fs::read_to_string(file)?)
    }
}

impl Store for InDatabase {
    fn engine<'a>(
        &'a self,
        dir: &'a Path,
        _: u64,
    ) -> BoxFuture<'a, Result<Arc<dyn conformance::Engine>, Wrong>> {
        Box::pin(async move {
            let engine = Engine::lead(self.options(dir)?).await?;
            Ok(Arc::new(engine) as Arc<dyn conformance::Engine>)
        })
    }

    fn verify<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<(Position, u64), Wrong>> {
        Box::pin(async move {
            let verified = Engine::verify(self.options(dir)?).await?;
            Ok((verified.content.head, verified.frames))
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_in_process() -> Outcome {
    let Some(cluster) = Cluster::start(1).await? else {
        return Ok(());
    };
    case::run(
        Arc::new(InProcess(InDatabase(cluster))),
        conformance::cases(),
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_over_http() -> Outcome {
    let Some(cluster) = Cluster::start(1).await? else {
        return Ok(());
    };
    case::run(
        Arc::new(OverHttp(InDatabase(cluster))),
        conformance::cases(),
    )
    .await
}

/// Sixteen writers count one key up, each from what it has read: no step is lost and none is double.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_writers_that_race_for_a_revision_one_wins_each_time() -> Outcome {
    const WRITERS: u64 = 16;
    const STEPS: u64 = 10;
    let Some(cluster) = Cluster::start(1).await? else {
        return Ok(());
    };
    let (engine, client) = lead(&cluster, "races").await?;
    let mut writers: JoinSet<Result<u64, Wrong>> = JoinSet::new();
    for writer in 0..WRITERS {
        let client = client.clone();
        writers.spawn(async move {
            let (mut done, mut conflicts, mut expected) = (0, 0, Rev(0));
            while done < STEPS {
                let data = format!("{{\"writer\":{writer},\"after\":{expected}}}");
                let batch = Append::of(vec![event("platform", "counter", &data)]);
                let batch = batch.expecting(segment("platform"), "counter", Expect::Rev(expected));
                match client.append(batch).await {
                    Ok(answer) => {
                        expected = answer.revs[0];
                        done += 1;
                    }
                    Err(AppendError::Conflict { actual, .. }) => {
                        assert!(actual > expected);
                        expected = actual;
                        conflicts += 1;
                    }
                    Err(other) => return Err(other.into()),
                }
            }
            Ok(conflicts)
        });
    }
    let mut conflicts = 0;
    while let Some(ended) = writers.join_next().await {
        conflicts += ended??;
    }
    assert!(conflicts > 0, "they never met");
    let all = read_all(&*client, Filter::default(), 1000).await?;
    assert_eq!(all.len() as u64, WRITERS * STEPS);
    for (index, event) in (0..).zip(&all) {
        // Each was written right after the revision that its writer had read.
        assert_eq!(event.rev, Rev(index + 1));
        assert!(
            event.data.get().ends_with(&format!("\"after\":{index}}}")),
            "{event:?}"
        );
    }
    engine.close().await;
    Ok(())
}
