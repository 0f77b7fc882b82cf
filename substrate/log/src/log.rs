//! The log of this process: opened once, closed once, used through clients.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use tabbify_api::log::{EventLog, LogEngine, LogScope};
use tabbify_types::{Position, Recorded};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::client::Client;
use crate::error::{OpenError, TornTail};
use crate::extent;
use crate::index::Frames;
use crate::options::Options;
use crate::scan::{self, Depth};
use crate::writer::{QUEUE_LEN_MAX, QUEUE_REQUESTS_MAX, Request, Writer};

/// LIMIT: recent events kept in memory for readers at the head, and their bytes.
const RECENT_EVENTS_MAX: usize = 2048;
const RECENT_LEN_MAX: usize = 4 * 1024 * 1024;

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
    /// Opens the log in `dir`, or creates one if there is none, and verifies every byte of it.
    /// Blocks; call it before serving.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has been changed then.
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        extent::make_dir(dir)?;
        let lock = extent::lock(dir)?;
        let found = scan::scan(dir, Depth::Bytes)?;
        extent::remove_spare(dir).map_err(OpenError::io("remove the spare extent in", dir))?;
        let (requests, queue) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let mut shared = Shared {
            dir: dir.to_owned(),
            log_id: LogId([0; 16]),
            requests: Mutex::new(Some(requests)),
            room: Arc::new(Semaphore::new(QUEUE_LEN_MAX)),
            durable: watch::channel(Position(0)).1,
            frames: RwLock::default(),
            recent: RwLock::default(),
        };
        let writer = Writer::start(&mut shared, queue, lock, found, options)?;
        let shared = Arc::new(shared);
        let with_writer = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(&with_writer))
            .map_err(OpenError::io("start the writer of", dir))?;
        Ok(Self {
            shared,
            writer: Mutex::new(Some(thread)),
        })
    }

    /// Verifies the log in `dir` without opening it for use: every byte, and that every event can
    /// be read. Changes nothing, and is refused while the log is open.
    ///
    /// # Errors
    /// [`OpenError`], with the first thing that is wrong.
    pub fn verify(dir: &Path) -> Result<Verified, OpenError> {
        let missing = || OpenError::Missing {
            dir: dir.to_owned(),
        };
        if !dir.is_dir() || extent::list(dir)?.is_empty() {
            return Err(missing());
        }
        let _lock = extent::lock(dir)?;
        let found = scan::scan(dir, Depth::Events)?.ok_or_else(missing)?;
        Ok(Verified {
            log_id: LogId(found.log_id),
            head: found.tip.head,
            extents: found.frames.extent_count(),
            frames: found.frames.len(),
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
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.stop();
        self.join();
    }
}

/// What clients, readers and the writer have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) log_id: LogId,
    /// Taken when the log stops; the writer ends when the last clone is gone.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    /// Bytes of batches that may wait, as permits.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) durable: watch::Receiver<Position>,
    pub(crate) frames: RwLock<Frames>,
    recent: RwLock<Recent>,
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
        let first = recent.events.front()?.position;
        let skip = after.next().get().checked_sub(first.get())?;
        let skip = usize::try_from(skip).ok()?;
        Some(
            recent
                .events
                .iter()
                .skip(skip)
                .take(limit)
                .cloned()
                .collect(),
        )
    }
}

/// The last events, in position order without a gap.
#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<Arc<Recorded>>,
    len: usize,
}

impl Recent {
    fn push(&mut self, event: Arc<Recorded>) {
        let weight =
            |event: &Recorded| size_of::<Recorded>() + event.key.len() + event.data.get().len();
        self.len += weight(&event);
        self.events.push_back(event);
        while self.events.len() > RECENT_EVENTS_MAX || self.len > RECENT_LEN_MAX {
            let Some(gone) = self.events.pop_front() else {
                break;
            };
            self.len -= weight(&gone);
        }
    }
}
