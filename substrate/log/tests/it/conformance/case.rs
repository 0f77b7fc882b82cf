//! One case of the suite, and how many of them run: each on a log of its own, a few at a time.

use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tabbify_api::BoxFuture;
use tokio::task::JoinSet;

use super::Fixture;
use crate::support::Outcome;

/// Cases at a time.
const AT_ONCE: usize = 4;

type Run = dyn for<'a> Fn(&'a dyn Fixture) -> BoxFuture<'a, Outcome> + Send + Sync;

/// What every engine and transport must do.
pub(crate) struct Case {
    pub(crate) name: String,
    run: Box<Run>,
}

impl Case {
    pub(crate) fn new<F>(name: impl Into<String>, run: F) -> Self
    where
        F: for<'a> Fn(&'a dyn Fixture) -> BoxFuture<'a, Outcome> + Send + Sync + 'static,
    {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// Runs all cases on a fixture; says how many, and which of them fail and why.
pub(crate) async fn run(fixture: Arc<dyn Fixture>, cases: Vec<Case>) -> Outcome {
    let count = cases.len();
    let mut cases = cases.into_iter();
    let mut running = JoinSet::new();
    let mut failed = Vec::new();
    loop {
        while running.len() < AT_ONCE
            && let Some(case) = cases.next()
        {
            let fixture = Arc::clone(&fixture);
            running.spawn(async move {
                let done = AssertUnwindSafe((case.run)(&*fixture)).catch_unwind().await;
                (case.name, done)
            });
        }
        let Some(ended) = running.join_next().await else {
            break;
        };
        match ended? {
            (_, Ok(Ok(()))) => {}
            (name, Ok(Err(error))) => failed.push(format!("{name}: {error}")),
            // Where and why stands above, as of every panic.
            (name, Err(_)) => failed.push(format!("{name}: see its panic")),
        }
    }
    writeln!(std::io::stdout(), "{count} cases")?;
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("{} of {count} cases:\n{}", failed.len(), failed.join("\n")).into())
}
