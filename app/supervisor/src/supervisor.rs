//! The handle of a running supervisor, and the lock that makes it the only one.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use tabbify_api::log::EventLog;
use tabbify_api::mesh::Leases;
use tabbify_process::{Clock, Importance, TaskHandle, Tasks, chain, files};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::doorbell::Doorbell;
use crate::logs::keep::{self, Keep};
use crate::runner_dir::try_lock;
use crate::supervise::Supervision;
use crate::{Config, Error};

/// LIMIT: how long a supervisor that is ending may keep the directory of the runners.
const LOCK_WITHIN: Duration = Duration::from_secs(2);

/// How a supervisor is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overview {
    /// Whether it has read its orders to the end once; before that it adopts what lives, if it knows
    /// its orders from before, and does nothing else.
    pub caught_up: bool,
    /// Living runners that it watches.
    pub watched: usize,
    /// Those of them that say, with proof, that they answer requests.
    pub ready: usize,
}

/// A running supervisor. Dropping it changes nothing: it ends with its tasks' token, and leaves
/// every runner running.
#[derive(Debug)]
pub struct Supervisor {
    main: TaskHandle,
    doorbell: Doorbell,
    overview: watch::Receiver<Overview>,
}

impl Supervisor {
    /// Takes the data directory, looks at what lives in it, and starts to follow the log, which need
    /// not be there yet.
    ///
    /// # Errors
    /// [`Error::InUse`] if another supervisor has the data directory, and [`Error::File`] if it cannot
    /// be used.
    pub async fn start(
        mut config: Config,
        log: Arc<dyn EventLog>,
        leases: Arc<dyn Leases>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        // A runner has a working directory of its own.
        for path in [&mut config.data_dir, &mut config.runner] {
            *path = std::path::absolute(&*path).map_err(Error::file(&*path))?;
        }
        let runners = config.runners_dir();
        for dir in [&runners, &config.cache_dir()] {
            files::private_dir(dir).map_err(Error::file(dir))?;
        }
        let lock = lock(&runners).await?;
        keep_logs(&config, Arc::clone(&clock), tasks);
        let (mut supervision, overview) = Supervision::new(config, log, leases, clock, tasks);
        supervision.look(&runners)?;
        let doorbell = supervision.doorbell();
        let main = tasks.spawn("supervisor", Importance::Essential, async move {
            let _lock = lock;
            if let Err(error) = supervision.run().await {
                tracing::error!(error = %chain(&error), "the supervisor stops; runners go on");
            }
        });
        Ok(Self {
            main,
            doorbell,
            overview,
        })
    }

    /// Where callers of apps come in that are asleep on this machine.
    #[must_use]
    pub fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    /// How it is.
    #[must_use]
    pub fn overview(&self) -> Overview {
        *self.overview.borrow()
    }

    /// Waits until it is as `wanted` says; false if it ended before.
    pub async fn until(&mut self, wanted: impl FnMut(&Overview) -> bool) -> bool {
        self.overview.wait_for(wanted).await.is_ok()
    }

    /// Ends it at its next await, with everything half-done as it is: what a crash does. Runners go
    /// on, and the next supervisor of the data directory adopts them.
    pub fn abort(&self) {
        self.main.abort();
    }
}

/// Removes now and then what apps printed long ago.
fn keep_logs(config: &Config, clock: Arc<dyn Clock>, tasks: &Tasks) {
    let (logs, runners) = (config.data_dir.join("logs"), config.runners_dir());
    let stop = tasks.token();
    tasks.spawn("log retention", Importance::Detached, async move {
        loop {
            let (logs, runners, clock) = (logs.clone(), runners.clone(), Arc::clone(&clock));
            let swept = tokio::task::spawn_blocking(move || {
                keep::sweep(&logs, &runners, Keep::DEFAULT, &*clock);
            });
            // A panic has been logged; the next look may do better.
            let _ = swept.await;
            if stop.run_until_cancelled(sleep(keep::EVERY)).await.is_none() {
                return;
            }
        }
    });
}

/// INVARIANT: one supervisor per data directory. The lock ends with its holder.
pub(crate) async fn lock(runners: &Path) -> Result<File, Error> {
    let directory = File::open(runners).map_err(Error::file(runners))?;
    let taken = timeout(LOCK_WITHIN, async {
        loop {
            match try_lock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(true) => return Ok(()),
                Ok(false) => sleep(Duration::from_millis(10)).await,
                Err(error) => return Err(Error::file(runners)(error)),
            }
        }
    });
    let path = runners.to_owned();
    taken.await.map_err(|_| Error::InUse { path })??;
    Ok(directory)
}
