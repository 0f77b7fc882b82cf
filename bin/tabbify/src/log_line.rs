//! A log of another process that need not be there yet.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{EventLog, Line};
use tabbify_log::RemoteLog;
use tabbify_process::connect::{Bearer, Connect};
use tabbify_process::{Importance, Tasks, chain};
use tokio::time::sleep;

/// The pause before the second attempt to connect; doubles with each.
const PAUSE: Duration = Duration::from_millis(50);
/// LIMIT: the longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The log behind `connect`, as soon as it is there and takes the bearer's token.
pub(crate) fn connect_later(connect: Arc<dyn Connect>, bearer: Bearer, tasks: &Tasks) -> Arc<Line> {
    let line = Arc::new(Line::default());
    let (joined, children, stop) = (Arc::clone(&line), tasks.clone(), tasks.token());
    tasks.spawn("log connection", Importance::Detached, async move {
        let mut pause = PAUSE;
        loop {
            let asked = RemoteLog::connect(Arc::clone(&connect), Arc::clone(&bearer), &children);
            match asked.await {
                Ok(log) => return joined.join(Some(Arc::new(log) as Arc<dyn EventLog>)),
                Err(error) if pause == PAUSE => {
                    tracing::warn!(error = %chain(&error), "the log is away; trying again");
                }
                Err(error) => tracing::debug!(error = %chain(&error), "the log is away"),
            }
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    });
    line
}
