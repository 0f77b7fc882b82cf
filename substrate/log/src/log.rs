//! The log of this process: opened once, closed once, used through clients.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use tabbify_api::BoxFuture;
use tabbify_api::log::{EventLog, LogEngine, LogScope, ReadError};
use tabbify_types::{Position, Recorded};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::checkpoint;
use crate::client::Client;
use crate::cold::Cold;
use crate::disk::{Disk, OpenFiles, SyncPoint, Tiered};
use crate::error::{OpenError, TornTail};
use crate::extent;
use crate::files::Files;
use crate::index::Index;
use crate::opening;
use crate::options::{OnFailure, Options};
use crate::reader;
use crate::recent::Recent;
use crate::record::EventRef;
use crate::scan::{self, Depth};
use crate::verify;
use crate::writer::{QUEUE_LEN_MAX, QUEUE_REQUESTS_MAX, Request, Writer};

/// Names a log for ever: chosen when it was created, bound into the chain of its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub(crate) [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An open log. Dropping it closes it and waits for what was queued.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    verified: Arc<verify::Verified>,
}

/// What [`Log::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The log.
    pub log_id: LogId,
    /// The last position; every event up to it is intact.
    pub head: Position,
    /// Number of extent files.
    pub extents: usize,
    /// Number of frames, each one commit.
    pub frames: usize,
    /// An interrupted commit behind the last frame; opening cuts it.
    pub torn: Option<TornTail>,
}

impl Log {
    /// Opens the log in `dir`, or creates one if there is none, and verifies of it what is not sealed;
    /// the rest is verified while the log is in use ([`Options::verify_whole`] asks for all of it at
    /// once). Blocks; call it before serving.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has been changed then.
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        let (shared, mut writer) = Self::ready(dir, options)?;
        writer
            .keep_index(&shared)
            .map_err(OpenError::io("start the threads of", dir))?;
        let with_writer = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(&with_writer))
            .map_err(OpenError::io("start the writer of", dir))?;
        Ok(Self {
            shared,
            writer: Mutex::new(Some(thread)),
            verified: Arc::default(),
        })
    }

    /// A log whose writer works when it is told to, in the proofs.
    #[cfg(test)]
    pub(crate) fn open_in_steps(
        dir: &Path,
        options: Options,
    ) -> Result<(Self, Arc<Shared>, Writer), OpenError> {
        let (shared, writer) = Self::ready(dir, options)?;
        let log = Self {
            shared: Arc::clone(&shared),
            writer: Mutex::new(None),
            verified: Arc::default(),
        };
        Ok((log, shared, writer))
    }

    /// Recovery: everything up to where appends can be taken.
    fn ready(dir: &Path, mut options: Options) -> Result<(Arc<Shared>, Writer), OpenError> {
        let store = options.cold.as_ref().map(|cold| &cold.store);
        let tiered = Tiered::new(options.disk, store);
        options.stop = Arc::clone(tiered.blocks().stop());
        let disk: Arc<dyn Disk> = Arc::new(tiered.clone());
        options.disk = Arc::clone(&disk);
        extent::make_dir(&*disk, dir).map_err(OpenError::io("create", dir))?;
        let lock = extent::lock(&*disk, dir)?;
        // Before anything is made of what is there: the process before may have ended between giving
        // an extent its name and syncing that.
        disk.sync_dir(dir, SyncPoint::RecoveredNames)
            .map_err(OpenError::io("sync", dir))?;
        let found = opening::open(dir, &options)?;
        if let Some(signed) = &options.checkpoint {
            let end = found.as_ref().map(|log| (LogId(log.log_id), log.tip.head));
            checkpoint::hold_against(&*disk, dir, end, signed)?;
        }
        extent::remove_spare(&*disk, dir)
            .map_err(OpenError::io("remove the spare extent in", dir))?;
        let (requests, queue) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let on_failure = Arc::clone(&options.on_failure);
        let cold = options.cold.clone().map(|cold| (cold, tiered));
        let (writer, index) = Writer::start(dir, queue, lock, found, options)?;
        let (log_id, durable) = writer.state();
        let shared = Shared {
            dir: dir.to_owned(),
            log_id,
            requests: Mutex::new(Some(requests)),
            room: Arc::new(Semaphore::new(QUEUE_LEN_MAX)),
            durable,
            index,
            recent: RwLock::default(),
            files: OpenFiles::new(disk),
            cold,
            failed: AtomicBool::new(false),
            on_failure,
        };
        Ok((Arc::new(shared), writer))
    }

    /// Verifies the log in `dir` without opening it for use: every byte, and that every event can
    /// be read. Changes nothing, and is refused while the log is open. [`Files::verify`] does this for a
    /// log with extents in an object store.
    ///
    /// # Errors
    /// [`OpenError`], with the first thing that is wrong.
    pub fn verify(dir: &Path) -> Result<Verified, OpenError> {
        Files::new(None).verify(dir)
    }

    pub(crate) fn verify_on(disk: &dyn Disk, dir: &Path) -> Result<Verified, OpenError> {
        let missing = || OpenError::Missing {
            dir: dir.to_owned(),
        };
        if !disk.is_dir(dir) || extent::list(disk, dir)?.is_empty() {
            return Err(missing());
        }
        let _lock = extent::lock(disk, dir)?;
        let found = scan::scan(disk, dir, Depth::Events)?.ok_or_else(missing)?;
        Ok(Verified {
            log_id: LogId(found.log_id),
            head: found.tip.head,
            extents: found.extents,
            frames: found.frames,
            torn: found.torn,
        })
    }

    /// The log as `scope` may use it.
    #[must_use]
    pub fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        Arc::new(Client::new(Arc::clone(&self.shared), scope))
    }

    /// The last durable position.
    #[must_use]
    pub fn head(&self) -> Position {
        self.shared.head()
    }

    /// Which log this is.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.shared.log_id
    }

    /// Gives every event after `after` and up to `upto` to `take`, verified, as it lies in its frame,
    /// without taking it apart any further, until `take` breaks off. Answers the last position that was
    /// given. Blocks. For whoever reads much of the log and keeps little of it.
    ///
    /// # Errors
    /// [`ReadError::BeyondHead`] for an `upto` beyond the head, and [`ReadError::Damaged`].
    pub fn replay(
        &self,
        after: Position,
        upto: Position,
        take: impl FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<Position, ReadError> {
        let head = self.head();
        if upto > head {
            return Err(ReadError::BeyondHead { after: upto, head });
        }
        reader::replay(&self.shared, after, upto, take)
    }

    /// Returns when the writer has ended: after [`Log::close`], or because it failed. Whoever owns
    /// the log watches this as an essential task; nothing can be appended any more.
    pub async fn stopped(&self) {
        let mut durable = self.shared.durable.clone();
        // The writer drops the sending side last of all.
        while durable.changed().await.is_ok() {}
    }

    /// Takes no more appends, writes what is queued, and returns when the directory is free for
    /// another opener. Appends from here on, and readers at the head, get `Stopping`.
    pub async fn close(&self) {
        self.shared.stop();
        self.stopped().await;
        self.join();
    }

    /// For whoever follows the log in its files.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn join(&self) {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(_)) = writer.map(JoinHandle::join) {
            tracing::error!("the log's writer has panicked");
        }
    }
}

impl LogEngine for Log {
    fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        Self::client(self, scope)
    }

    fn head(&self) -> Position {
        Self::head(self)
    }

    fn verify(
        &self,
        after: Position,
        upto: Position,
    ) -> BoxFuture<'_, Result<Position, ReadError>> {
        let (shared, verified) = (Arc::clone(&self.shared), Arc::clone(&self.verified));
        Box::pin(async move {
            let piece = move || verify::piece(&shared, &verified, after, upto);
            let pass = tokio::task::spawn_blocking(piece);
            pass.await.unwrap_or(Err(ReadError::Stopping))
        })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.stop();
        self.join();
    }
}

/// What clients, readers and the writer have in common.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) log_id: LogId,
    /// Taken when the log stops; the writer ends when the last clone is gone.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    /// Bytes of batches that may wait, as permits.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) durable: watch::Receiver<Position>,
    pub(crate) index: Index,
    recent: RwLock<Recent>,
    /// Extents that are being read.
    pub(crate) files: OpenFiles,
    /// Where closed extents go, and the disk through which they are read again.
    pub(crate) cold: Option<(Cold, Tiered)>,
    failed: AtomicBool,
    on_failure: OnFailure,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("dir", &self.dir)
            .field("log_id", &self.log_id)
            .field("durable", &self.durable)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn head(&self) -> Position {
        *self.durable.borrow()
    }

    /// The way into the writer; `None` once the log stops.
    pub(crate) fn requests(&self) -> Option<mpsc::Sender<Request>> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the log has ended because its disk has failed or its files are damaged.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Ends the log: what it holds on disk is unknown, or is not what was written.
    pub(crate) fn fail(&self, error: &io::Error) {
        if self.failed.swap(true, Ordering::SeqCst) {
            return;
        }
        tracing::error!(error = error as &dyn std::error::Error, dir = %self.dir.display(),
            "the log's disk has failed");
        (self.on_failure)(error);
        self.stop();
        // Whoever waits for the index waits in vain.
        self.index.stop();
    }

    fn stop(&self) {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Keeps events that have just become durable.
    pub(crate) fn remember(&self, events: &[Arc<Recorded>]) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            recent.push(Arc::clone(event));
        }
    }

    /// Up to `limit` events after `after`, if the first of them is still in memory.
    pub(crate) fn recent(&self, after: Position, limit: usize) -> Option<Vec<Arc<Recorded>>> {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        recent.after(after, limit)
    }
}
