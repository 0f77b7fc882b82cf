//! Durable named consumers: `core` decides, `state` is the file, `running` is one consumer at work,
//! `client` who may, and this module keeps them all.
//!
//! A consumer reads only while a member asks: one that nobody works for costs nothing. Progress is
//! written behind the answers, by one task, at most once a second for each consumer; a crash
//! forgets acknowledgments of that second and delivers again. What people do (make, remove, reset,
//! retry, drop) is on disk before it is answered.

mod client;
mod core;
mod running;
mod state;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::consumers::{self, CONSUMERS_MAX, ConsumerName};
use tabbify_api::log::{LogEngine, LogScope, ReadError};
use tabbify_process::{Clock, Importance, Tasks, files};
use tabbify_types::Position;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use client::Client;
use running::Running;
use state::{FILE_LEN_MAX, Stored};

const EXTENSION: &str = "consumer";
/// At most so often is the progress of a consumer written.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Why the consumers of a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsumersError {
    /// The bytes are not what was written. Without the file, nobody knows what is still to be done:
    /// restore it, or remove it and make the consumer again from a position of your choice.
    #[error("{file} is not a consumer's state: {what}", file = file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There are more files than there may be consumers.
    #[error("{dir} holds more than {CONSUMERS_MAX} consumers", dir = dir.display())]
    TooMany {
        /// The directory.
        dir: PathBuf,
    },
    /// An event that is still to be done cannot be read from the log.
    #[error("consumer {name} needs the event at {position}, which the log does not give")]
    Event {
        /// Whose.
        name: ConsumerName,
        /// Which.
        position: Position,
        /// What the log said, if it said anything.
        #[source]
        source: Option<ReadError>,
    },
    /// The file system refused.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The consumers of one log: opened once, used through clients.
#[derive(Debug)]
pub struct Consumers {
    shared: Arc<Shared>,
}

/// What clients and the writing task have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    dir: PathBuf,
    engine: Arc<dyn LogEngine>,
    clock: Arc<dyn Clock>,
    running: Mutex<BTreeMap<ConsumerName, Arc<Running>>>,
    /// Held while one is made or removed, so that name, file and limit agree.
    changing: tokio::sync::Mutex<()>,
    /// Told when a consumer has something to write.
    changed: Arc<Notify>,
    closing: CancellationToken,
}

impl Consumers {
    /// Opens the consumers in `dir`, which is made if it is not there, and spawns the task that
    /// writes their progress. Whoever calls holds the lock of the log that `engine` is.
    ///
    /// # Errors
    /// [`ConsumersError`].
    pub async fn open(
        dir: &Path,
        engine: Arc<dyn LogEngine>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, ConsumersError> {
        files::private_dir(dir).map_err(wrong("make", dir))?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            engine,
            clock,
            running: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            changed: Arc::default(),
            closing: tasks.token(),
        });
        for (name, stored) in stored_in(dir)? {
            let running = shared.restore(name.clone(), stored).await?;
            shared.insert(name, running);
        }
        let writing = Arc::clone(&shared).write_changes();
        tasks.spawn("consumer states", Importance::Essential, writing);
        Ok(Self { shared })
    }

    /// The consumers as `scope` may use them.
    #[must_use]
    pub fn client(&self, scope: LogScope) -> Arc<dyn consumers::Consumers> {
        Arc::new(Client::new(Arc::clone(&self.shared), scope))
    }
}

impl Shared {
    async fn restore(
        &self,
        name: ConsumerName,
        stored: Stored,
    ) -> Result<Arc<Running>, ConsumersError> {
        let file = self.file(&name);
        let log = self.engine.client(LogScope {
            actor: format!("consumer:{name}"),
            write: Vec::new(),
            read: stored.globs.clone(),
        });
        let changed = Arc::clone(&self.changed);
        let clock = Arc::clone(&self.clock);
        let opened = Running::open(name.clone(), file, stored, log, clock, changed).await;
        opened
            .map(Arc::new)
            .map_err(|(position, source)| ConsumersError::Event {
                name,
                position,
                source,
            })
    }

    fn file(&self, name: &ConsumerName) -> PathBuf {
        self.dir.join(format!("{name}.{EXTENSION}"))
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<ConsumerName, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, name: ConsumerName, running: Arc<Running>) {
        self.locked().insert(name, running);
    }

    fn get(&self, name: &ConsumerName) -> Option<Arc<Running>> {
        self.locked().get(name).cloned()
    }

    fn all(&self) -> Vec<Arc<Running>> {
        self.locked().values().cloned().collect()
    }

    /// Writes what has changed, until the process stops, and then a last time.
    async fn write_changes(self: Arc<Self>) {
        while !self.closing.is_cancelled() {
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.closing.cancelled() => {}
            }
            for running in self.all() {
                // It has been logged; the change stays due and is tried again.
                let _ = running.save_if_changed().await;
            }
            tokio::select! {
                () = tokio::time::sleep(SAVE_EVERY) => {}
                () = self.closing.cancelled() => {}
            }
        }
        for running in self.all() {
            let _ = running.save_if_changed().await;
        }
    }
}

fn wrong(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConsumersError {
    let path = path.to_owned();
    move |source| ConsumersError::Io {
        action,
        path,
        source,
    }
}

/// Reads every file of the directory that is named like a consumer; others are left alone.
fn stored_in(dir: &Path) -> Result<Vec<(ConsumerName, Stored)>, ConsumersError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(wrong("list", dir))? {
        let path = entry.map_err(wrong("list", dir))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let name = stem.and_then(|stem| stem.parse::<ConsumerName>().ok());
        let ours = path
            .extension()
            .is_some_and(|extension| extension == EXTENSION);
        let Some(name) = name.filter(|_| ours) else {
            continue;
        };
        if found.len() == CONSUMERS_MAX {
            return Err(ConsumersError::TooMany {
                dir: dir.to_owned(),
            });
        }
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(wrong("open", &path))?;
        let read = file.take(FILE_LEN_MAX).read_to_end(&mut bytes);
        read.map_err(wrong("read", &path))?;
        let stored = Stored::decode(&bytes).map_err(|what| ConsumersError::Damaged {
            file: path.clone(),
            what,
        })?;
        found.push((name, stored));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}
