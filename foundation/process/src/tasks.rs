//! Named tasks with an owner: the only place that spawns.
//!
//! | how it ends | `Essential` | `Detached` |
//! |---|---|---|
//! | by itself, before shutdown | the process stops, with its name as the reason | nothing |
//! | by a panic | the process stops, with the panic as the reason | logged as an error |
//! | after shutdown began | expected | expected |

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// What the end of a task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Importance {
    /// The process cannot go on without it.
    Essential,
    /// Others go on without it.
    Detached,
}

/// A spawned task. Dropping it does nothing; its [`Tasks`] own it.
#[derive(Debug)]
pub struct TaskHandle(AbortHandle);

impl TaskHandle {
    /// Ends the task at its next await.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// Owner of tasks; clones own the same ones.
#[derive(Clone)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
    aborts: Arc<Mutex<Vec<(&'static str, AbortHandle)>>>,
    failure: Arc<Mutex<Option<String>>>,
    process: CancellationToken,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("running", &self.tracker.len())
            .finish_non_exhaustive()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// The tasks of a process.
    #[must_use]
    pub fn new() -> Self {
        let process = CancellationToken::new();
        Self {
            token: process.clone(),
            tracker: TaskTracker::new(),
            aborts: Arc::default(),
            failure: Arc::default(),
            process,
        }
    }

    /// Tasks that stop with these or before them. The end of an essential one still stops the
    /// process.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
            aborts: Arc::default(),
            failure: Arc::clone(&self.failure),
            process: self.process.clone(),
        }
    }

    /// Cancelled when these tasks are to end: stop accepting, drain, return.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Asks these tasks to end.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Why an essential task stopped the process, if one did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Runs `future` under `name`, in the caller's span.
    pub fn spawn(
        &self,
        name: &'static str,
        importance: Importance,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> TaskHandle {
        let this = self.clone();
        let watched = async move {
            let ended = AssertUnwindSafe(future).catch_unwind().await;
            this.ended(
                name,
                importance,
                ended.err().map(|panic| panic_text(&*panic)),
            );
        };
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        let handle = tokio::spawn(self.tracker.track_future(watched.in_current_span()));
        let abort = handle.abort_handle();
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        if aborts.len() == aborts.capacity() {
            // Grows only with tasks that are alive.
            aborts.retain(|(_, abort)| !abort.is_finished());
        }
        aborts.push((name, abort.clone()));
        TaskHandle(abort)
    }

    fn ended(&self, name: &'static str, importance: Importance, panic: Option<String>) {
        match (importance, &panic) {
            (Importance::Detached, None) => {}
            (Importance::Detached, Some(panic)) => {
                tracing::error!(task = name, panic, "task panicked")
            }
            (Importance::Essential, _) if self.token.is_cancelled() && panic.is_none() => {}
            (Importance::Essential, _) => {
                let why = panic.unwrap_or_else(|| "it returned".to_owned());
                tracing::error!(
                    task = name,
                    why,
                    "essential task ended, stopping the process"
                );
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(format!("task {name} ended: {why}"));
                self.process.cancel();
            }
        }
    }

    /// Asks these tasks to end, waits until they have, and aborts what is left at the deadline.
    /// Returns whether all ended by themselves.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        let done = tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok();
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<_> = aborts.drain(..).collect();
        drop(aborts);
        let left = left.iter().filter(|(_, abort)| !abort.is_finished());
        for (name, abort) in left {
            if !done {
                tracing::warn!(task = name, "it did not end in time");
            }
            abort.abort();
        }
        done
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn essential_end_stops_the_process() {
        let tasks = Tasks::new();
        let child = tasks.child();
        child.spawn("quiet", Importance::Detached, async {});
        child.spawn("vital", Importance::Essential, async {});
        tasks.token().cancelled().await;
        assert_eq!(tasks.failure().unwrap(), "task vital ended: it returned");
    }

    #[tokio::test]
    async fn panic_of_a_detached_task_is_contained() {
        let tasks = Tasks::new();
        let handle = tasks.spawn("fragile", Importance::Detached, async { panic!("boom") });
        while !handle.is_finished() {
            tokio::task::yield_now().await;
        }
        assert!(!tasks.token().is_cancelled());
        assert!(tasks.failure().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_then_aborts() {
        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("polite", Importance::Essential, async move {
            token.cancelled().await
        });
        assert!(tasks.shutdown(Duration::from_secs(1)).await);

        let tasks = Tasks::new();
        let stuck = tasks.spawn("stuck", Importance::Detached, std::future::pending());
        assert!(!tasks.shutdown(Duration::from_secs(1)).await);
        while !stuck.is_finished() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn stopping_a_child_leaves_the_parent() {
        let tasks = Tasks::new();
        let child = tasks.child();
        child.stop();
        assert!(child.token().is_cancelled());
        assert!(!tasks.token().is_cancelled());
    }
}
