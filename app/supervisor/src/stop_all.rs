//! Stops every runner of a data directory without a supervisor and without the log, by locks and
//! control sockets alone: what `tabbify down` does when `tabbify` is not running.

use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tabbify_process::chain;
use tabbify_types::event::v1::InstanceRef;

use crate::Error;
use crate::act::{Stopped, drain, stop};
use crate::config::runners_dir;
use crate::runner_dir::RunnerDir;
use crate::supervisor::lock;

/// LIMIT: runners being stopped at once.
const STOPPING_MAX: usize = 64;

/// What [`stop_all_runners`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Runners that were alive and have ended, in the order of their ids.
    pub stopped: Vec<InstanceRef>,
    /// Those among them that had to be killed.
    pub killed: Vec<InstanceRef>,
    /// Runners that may still live, and why.
    pub failed: Vec<(InstanceRef, String)>,
    /// Requests that ended well while draining.
    pub finished: u64,
    /// Requests that a deadline cut off.
    pub cut: u64,
}

/// Drains every living runner below `data_dir` for at most `deadline`, then stops it. What the log
/// desires stays as it is: the next supervisor reports them as ended, and they are placed anew.
///
/// # Errors
/// [`Error::InUse`] if a supervisor runs there, which would only start others;
/// [`Error::File`] if the directory cannot be read. A data directory without runners is none.
pub async fn stop_all_runners(data_dir: &Path, deadline: Duration) -> Result<StopReport, Error> {
    let data_dir = std::path::absolute(data_dir).map_err(Error::file(data_dir))?;
    let runners = runners_dir(&data_dir);
    if !runners.exists() {
        return Ok(StopReport::default());
    }
    let _lock = lock(&runners).await?;
    let dirs = RunnerDir::scan(&runners).map_err(Error::file(&runners))?;
    let mut ends: Vec<_> = stream::iter(dirs)
        .map(|dir| async move { (dir.of(), end(&dir, deadline).await) })
        .buffer_unordered(STOPPING_MAX)
        .collect()
        .await;
    ends.sort_by_key(|(of, _)| *of);

    let mut report = StopReport::default();
    for (of, end) in ends {
        match end {
            Ok(None) => {}
            Ok(Some(end)) => {
                report.stopped.push(of);
                if end.how == Stopped::Killed {
                    report.killed.push(of);
                }
                report.finished += end.finished;
                report.cut += end.cut;
            }
            Err(error) => report.failed.push((of, chain(&error).to_string())),
        }
    }
    Ok(report)
}

struct Ended {
    how: Stopped,
    finished: u64,
    cut: u64,
}

async fn end(dir: &RunnerDir, deadline: Duration) -> Result<Option<Ended>, Error> {
    if !dir.is_locked().map_err(Error::file(dir.path()))? {
        return Ok(None);
    }
    let (finished, cut) = drain(dir, deadline).await.unwrap_or_else(|error| {
        let path = dir.path().display();
        tracing::warn!(%path, error = %chain(&error), "a runner could not be drained");
        (0, 0)
    });
    let how = stop(dir).await?;
    Ok(Some(Ended { how, finished, cut }))
}
