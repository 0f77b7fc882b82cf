//! The task that writes checkpoints: at most one a second, none while nothing happens, and one when
//! the log has been closed. It reads the frames from their files as they become durable, verifies them
//! once more, and keeps a few hashes; the writer knows nothing of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tabbify_process::{Importance, Tasks, chain};
use tabbify_token::PlatformId;
use tabbify_types::Position;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::error::OpenError;
use crate::log::{Log, LogId};
use crate::merkle::{Tree, TreeHash};

use super::store::RECENT_MAX;
use super::walk::{Place, Walk};
use super::{Checkpoint, CheckpointError, CheckpointStore, LogKey, Signed, StoreError, Trust};

/// How often a checkpoint is written under load.
const INTERVAL: Duration = Duration::from_secs(1);
/// LIMIT: the longest pause after a place for checkpoints that cannot be used.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// LIMIT: how long the last checkpoint may take; the log is closed by then.
const FINISH_WITHIN: Duration = Duration::from_secs(10);

/// Why no checkpoint could be written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The frames are not what was written.
    #[error("the log cannot be read for a checkpoint")]
    Log(#[source] OpenError),
    /// The place for checkpoints cannot be used, or holds others of ours.
    #[error("the checkpoint cannot be kept")]
    Store(#[source] StoreError),
    /// The checkpoint cannot be signed.
    #[error("the checkpoint cannot be signed")]
    Sign(#[source] CheckpointError),
    /// It took too long, or was told to stop.
    #[error("the checkpoint was given up before it was written")]
    GivenUp,
}

impl PublishError {
    /// Whether to go on would be to sign a log that is not the one that was signed before.
    const fn is_final(&self) -> bool {
        match self {
            Self::Store(StoreError::Fork { .. }) => true,
            // What cannot be read now may be read later; what reads differently has changed.
            Self::Log(error) => !matches!(error, OpenError::Io { .. } | OpenError::Stored { .. }),
            Self::Store(_) | Self::Sign(_) | Self::GivenUp => false,
        }
    }
}

/// Writes checkpoints of an open log.
#[derive(Debug, Clone)]
pub struct Publisher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    log_id: LogId,
    platform: PlatformId,
    durable: watch::Receiver<Position>,
    store: CheckpointStore,
    trust: Trust,
    key: LogKey,
    state: Mutex<State>,
}

/// What has been signed last, and where the log goes on.
#[derive(Debug, Clone, Default)]
struct State {
    last: Option<Checkpoint>,
    place: Option<Place>,
    certified: bool,
    since_thinned: usize,
}

impl Publisher {
    /// Spawns the task. `newest` is what `store` has, and what `log` has been opened with.
    #[must_use]
    pub fn start(
        log: &Log,
        store: CheckpointStore,
        mut trust: Trust,
        key: LogKey,
        newest: Option<&Signed>,
        tasks: &Tasks,
    ) -> Self {
        let shared = log.shared();
        let disk = shared.files.disk();
        if newest.is_none() && log.head() > Position(0) {
            tracing::warn!(place = store.shown(), head = %log.head(), "there is no checkpoint of this \
                log: whether its end was cut off cannot be told this time");
        }
        if let Err(error) = trust.add(key.certificate()) {
            // Whoever made the key has certified it with the root key of the same platform.
            tracing::error!(error = %chain(&error), "the log's key is not this platform's");
        }
        let inner = Arc::new(Inner {
            disk,
            dir: shared.dir.clone(),
            log_id: shared.log_id,
            platform: trust.platform().clone(),
            durable: shared.durable.clone(),
            store,
            trust,
            key,
            state: Mutex::new(State {
                last: newest.map(|signed| signed.checkpoint.clone()),
                ..State::default()
            }),
        });
        let (working, stop) = (Arc::clone(&inner), tasks.token());
        // Its end is that of the process: only a log that is not the signed one makes it return.
        tasks.spawn("log checkpoints", Importance::Essential, async move {
            working.run(stop).await;
        });
        Self(inner)
    }

    /// Writes the last checkpoint, once the log is closed. Answers up to where it is signed now.
    ///
    /// # Errors
    /// [`PublishError`]; the log is none the worse for it.
    pub async fn finish(&self) -> Result<Option<Position>, PublishError> {
        let done = tokio::time::timeout(FINISH_WITHIN, self.0.publish()).await;
        done.unwrap_or(Err(PublishError::GivenUp))
    }
}

impl Inner {
    async fn run(&self, stop: CancellationToken) {
        let mut durable = self.durable.clone();
        let mut pause = INTERVAL;
        loop {
            let begun = Instant::now();
            durable.mark_unchanged();
            let published = tokio::select! {
                published = self.publish() => published,
                () = stop.cancelled() => return,
            };
            pause = match published {
                Ok(_) => INTERVAL,
                Err(error) if error.is_final() => {
                    tracing::error!(error = %chain(&error), "the log is not the one that was signed");
                    return;
                }
                Err(error) => {
                    let place = self.store.shown();
                    tracing::warn!(error = %chain(&error), place, "no checkpoint was written");
                    // What is due stays due.
                    durable.mark_changed();
                    (pause * 2).min(PAUSE_MAX)
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(begun + pause) => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                changed = durable.changed() => if changed.is_err() {
                    // The log is closed; its end is signed by `finish`.
                    return stop.cancelled().await;
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Writes a checkpoint of all that is durable, unless there is one. Cancel-safe: the next one
    /// takes its place.
    async fn publish(&self) -> Result<Option<Position>, PublishError> {
        let mut state = self.state.lock().await;
        let head = *self.durable.borrow();
        let signed_upto = state.last.as_ref().map(|last| last.position);
        if head == Position(0) || signed_upto == Some(head) {
            return Ok(signed_upto);
        }
        if !state.certified {
            let certified = self.store.certify(self.key.certificate()).await;
            certified.map_err(PublishError::Store)?;
            state.certified = true;
        }
        let (checkpoint, place) = self.follow(&state, head).await?;
        let name = self.store.name_of(checkpoint.position);
        let signed = checkpoint.clone().sign(&self.key.secret, &name);
        let signed = signed.map_err(PublishError::Sign)?;
        let published = self.store.publish(&signed, &self.trust).await;
        published.map_err(PublishError::Store)?;
        (state.last, state.place) = (Some(checkpoint), place);
        state.since_thinned += 1;
        if state.since_thinned >= RECENT_MAX {
            state.since_thinned = 0;
            if let Err(error) = self.store.thin().await {
                tracing::debug!(error = %chain(&error), "old checkpoints stay");
            }
        }
        Ok(Some(head))
    }

    /// The checkpoint at `head`: the last one, and the frames since, on a thread that may block.
    async fn follow(
        &self,
        state: &State,
        head: Position,
    ) -> Result<(Checkpoint, Option<Place>), PublishError> {
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop.0);
        let (disk, dir) = (Arc::clone(&self.disk), self.dir.clone());
        let (log_id, platform) = (self.log_id, self.platform.clone());
        let (last, place) = (state.last.clone(), state.place.clone());
        let walked = tokio::task::spawn_blocking(move || {
            let (mut walk, mut tree) = match last {
                Some(last) => (Walk::after(disk, &dir, &last, place), last.tree),
                None => (Walk::begin(disk, &dir)?, Tree::default()),
            };
            while let Some((frame, _)) = walk.next(head)? {
                tree.push(TreeHash::of_frame(frame.hash));
                if stopped.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
            let (position, frame) = walk.end();
            let checkpoint = Checkpoint {
                platform,
                log_id,
                position,
                frame,
                tree,
            };
            Ok(Some((checkpoint, walk.place())))
        });
        match walked.await {
            Ok(Ok(Some(followed))) => Ok(followed),
            Ok(Err(error)) => Err(PublishError::Log(error)),
            Ok(Ok(None)) | Err(_) => Err(PublishError::GivenUp),
        }
    }
}

/// Tells a thread that nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
