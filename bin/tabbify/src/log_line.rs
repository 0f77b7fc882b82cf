//! A log of another process that need not be there yet.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::{EventLog, Line};
use tabbify_log::RemoteLog;
use tabbify_process::connect::{Bearer, Connect};
use tabbify_process::{Importance, Tasks, chain};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// The pause before the second attempt to connect; doubles with each.
const PAUSE: Duration = Duration::from_millis(50);
/// LIMIT: how long [`connect_soon`] waits; apps are adopted after that, whether there is a log or not.
const SOON: Duration = Duration::from_millis(300);
/// After so long without a log somebody is told.
const WARN_AFTER: Duration = Duration::from_secs(3);
/// LIMIT: the longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The log behind `connect`, as soon as it is there and takes the bearer's token. The moment is waited for in
/// which it mostly is there: whoever reads it then begins with a log, not without one.
pub(crate) async fn connect_soon(
    connect: Arc<dyn Connect>,
    bearer: Bearer,
    tasks: &Tasks,
) -> Arc<Line> {
    let (joined, is_joined) = oneshot::channel();
    let line = Arc::new(Line::default());
    let (line_joined, children, stop) = (Arc::clone(&line), tasks.clone(), tasks.token());
    tasks.spawn("log connection", Importance::Detached, async move {
        let (began, mut pause, mut is_told) = (Instant::now(), PAUSE, false);
        loop {
            let asked = RemoteLog::connect(Arc::clone(&connect), Arc::clone(&bearer), &children);
            let Some(asked) = stop.run_until_cancelled(asked).await else {
                return;
            };
            match asked {
                Ok(log) => {
                    line_joined.join(Some(Arc::new(log) as Arc<dyn EventLog>));
                    // Nobody may wait for it any more.
                    let _ = joined.send(());
                    return;
                }
                // Two that start together find each other a moment later: that is no trouble.
                Err(error) if !is_told && began.elapsed() >= WARN_AFTER => {
                    is_told = true;
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
    // Without a log the line is what it is: it is joined later.
    let _ = timeout(SOON, is_joined).await;
    line
}
