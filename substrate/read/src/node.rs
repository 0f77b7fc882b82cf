//! The read node: one follower that writes, a few readers that answer.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::log::EventLog;
use tabbify_api::read::{Answer, QueryError, ReadStatus};
use tabbify_process::{Clock, Importance, Tasks};
use tabbify_types::{Digest, Position};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{Config, QUERY_TIME_MAX};
use crate::digest;
use crate::error::ReadNodeError;
use crate::follow::{self, Follower, Rebuilt, Shared};
use crate::generation::Generations;
use crate::pool::Pool;
use crate::progress::{self, Progress};

/// The read model of a log, kept up to date. Clones are the same one; it can be asked what
/// [`tabbify_api::read::ReadModel`] says. When the last one is dropped, folding ends.
#[derive(Debug, Clone)]
pub struct ReadNode {
    shared: Shared,
    rebuilds: mpsc::Sender<follow::Rebuild>,
}

impl ReadNode {
    /// Opens the read model in `config.dir`, or begins one, and follows `log` from where it stands.
    ///
    /// `log` must show every segment. Spawns the task `read-node`, which is detached: others go on
    /// without it, and [`ReadStatus::stopped`] says when and why it does not fold. A file that is not
    /// the fold of a prefix of this log is not used: it is damaged, has other tables, is beyond the
    /// head, or is of another log; everything is folded again from position 0, and a warning says so.
    ///
    /// # Errors
    /// [`ReadNodeError`], if the directory cannot be used or the log cannot be read. A log that is away
    /// is no error if there is content: that is served, [`ReadStatus::lag_ms`] says how old it may be,
    /// and it is judged when the log is back.
    pub async fn start(
        config: Config,
        log: Arc<dyn EventLog>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, ReadNodeError> {
        let files = Arc::new(Generations::open(&config.dir)?);
        let opened = follow::open_or_trust(&files, &log).await?;
        let store = opened.store;
        let mut progress = Progress::of(&store);
        if store.position() == Position(0) {
            progress.fresh_at = clock.now();
        }
        let shared = Shared {
            pool: Pool::new(store.path(), QUERY_TIME_MAX),
            progress: Arc::new(watch::channel(progress).0),
            log,
            clock,
            files,
        };
        // One rebuild at a time; whoever asks meanwhile waits for the next one.
        let (rebuilds, asked) = mpsc::channel(1);
        let follower = Follower {
            shared: shared.clone(),
            rebuilds: asked,
            unfinished: opened.unfinished,
            trusted: opened.trusted,
        };
        let token = tasks.token();
        tasks.spawn(
            "read-node",
            Importance::Detached,
            follower.run(store, token),
        );
        Ok(Self { shared, rebuilds })
    }

    /// Folds the whole log again in a file of its own and takes that into service. Until then the old
    /// content is served and goes on, more slowly.
    ///
    /// # Errors
    /// [`ReadNodeError::Unfinished`]; [`ReadNodeError::Stopping`], if folding has ended.
    pub async fn rebuild(&self) -> Result<Rebuilt, ReadNodeError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.rebuilds.send(answer).await;
        sent.map_err(|_| ReadNodeError::Stopping)?;
        answered.await.map_err(|_| ReadNodeError::Stopping)?
    }

    /// The digest of everything that is folded, and where each projection stands; equal for every two
    /// read models of the same program that have folded the same events. Reads it all.
    ///
    /// # Errors
    /// [`ReadNodeError::Sqlite`].
    pub async fn digest(&self) -> Result<Digest, ReadNodeError> {
        let pool = self.shared.pool.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut conn = pool.connect()?;
            let path = conn.path().unwrap_or_default().to_owned();
            let digest = conn.transaction().and_then(|tx| digest::of(&tx));
            if let Err(error) = &digest {
                pool.tell_damage(path.as_ref(), error);
            }
            digest.map_err(ReadNodeError::sqlite("read", path))
        });
        reading.await.map_err(|_| ReadNodeError::Stopping)?
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    pub(crate) fn status_now(&self) -> ReadStatus {
        let Shared {
            progress,
            log,
            clock,
            ..
        } = &self.shared;
        progress::status(progress, log, clock)
    }

    pub(crate) fn wait(&self, position: Position, timeout: Duration) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut progress = self.shared.progress.subscribe();
            let reached = progress.wait_for(|progress| progress.position >= position);
            // The sender lives as long as this node: only the time can end the wait.
            let waited = tokio::time::timeout(timeout, reached).await.is_ok();
            match waited {
                true => Ok(()),
                false => Err(QueryError::Behind {
                    wanted: position,
                    position: self.shared.progress.borrow().position,
                }),
            }
        })
    }
}
