//! The log goes away and comes back: what was folded is served, and its age is told.

use std::sync::Arc;

use tabbify_api::log::{EventLog, Line};
use tabbify_api::read::{ReadModel as _, ReadScope, Window};
use tabbify_types::Tenant;

use crate::history::served;
use crate::support::{Outcome, Running, Wrong, app, append, open_log};

/// Waits until the status is as wanted.
async fn until(
    running: &Running,
    wanted: impl Fn(&tabbify_api::read::ReadStatus) -> bool,
) -> Outcome {
    let waiting = async {
        while !wanted(&running.node.status()) {
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(crate::support::WATCHDOG, waiting).await?)
}

async fn apps(running: &Running) -> Result<usize, Wrong> {
    let page = running
        .node
        .apps(ReadScope::Platform, None, Window::first(99))
        .await?;
    Ok(page.rows.len())
}

#[tokio::test]
async fn it_starts_without_the_log_and_goes_on_when_it_is_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("read");
    let (handle, log) = open_log(&dir.path().join("log"))?;
    append(&log, served(&Tenant::main(), app(1), "shop", 1)).await?;
    let running = Running::start(&home, &log).await?;
    running.reach(log.head()).await?;
    running.stop().await?;

    let line = Arc::new(Line::default());
    let cut: Arc<dyn EventLog> = line.clone();
    let running = Running::start(&home, &cut).await?;
    assert_eq!(apps(&running).await?, 1);
    let status = running.node.status();
    assert!(status.stopped.is_some() && status.lag_ms > 0, "{status:?}");
    // Nothing is folded before the log has shown that it is the one.
    append(&log, served(&Tenant::main(), app(2), "blog", 2)).await?;
    line.join(Some(Arc::clone(&log)));
    running.reach(log.head()).await?;
    until(&running, |status| {
        status.stopped.is_none() && status.lag_ms == 0
    })
    .await?;
    assert_eq!(apps(&running).await?, 2);

    // It goes away under a running node, which finds it again by itself.
    line.join(None);
    handle.close().await;
    until(&running, |status| {
        status.stopped.is_some() && status.lag_ms > 0
    })
    .await?;
    assert_eq!(apps(&running).await?, 2);
    drop(handle);
    let (_handle, log) = open_log(&dir.path().join("log"))?;
    append(&log, served(&Tenant::main(), app(3), "wiki", 3)).await?;
    line.join(Some(Arc::clone(&log)));
    running.reach(log.head()).await?;
    assert_eq!(apps(&running).await?, 3);
    running.stop().await
}

#[tokio::test]
async fn what_was_trusted_and_is_of_another_log_is_built_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("read");
    let (_one, one) = open_log(&dir.path().join("one"))?;
    append(&one, served(&Tenant::main(), app(1), "shop", 1)).await?;
    let running = Running::start(&home, &one).await?;
    running.reach(one.head()).await?;
    running.stop().await?;

    let (_other, other) = open_log(&dir.path().join("other"))?;
    append(&other, served(&Tenant::main(), app(2), "blog", 2)).await?;
    append(&other, served(&Tenant::main(), app(3), "wiki", 3)).await?;
    let line = Arc::new(Line::default());
    let cut: Arc<dyn EventLog> = line.clone();
    let running = Running::start(&home, &cut).await?;
    assert_eq!(apps(&running).await?, 1);
    line.join(Some(Arc::clone(&other)));
    running.reach(other.head()).await?;
    assert_eq!(apps(&running).await?, 2);
    running.stop().await
}

#[tokio::test]
async fn without_content_and_without_the_log_there_is_nothing_to_serve() -> Outcome {
    let dir = tempfile::tempdir()?;
    let cut: Arc<dyn EventLog> = Arc::new(Line::default());
    // A new directory needs no log to begin with.
    let running = Running::start(&dir.path().join("read"), &cut).await?;
    assert_eq!(apps(&running).await?, 0);
    until(&running, |status| status.stopped.is_some()).await?;
    running.stop().await
}
