//! The object store as the engine uses it: blocking, from any thread. Requests run on a runtime of
//! their own, so that a thread that waits for one never holds up what it waits for.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use tabbify_process::{Importance, Tasks, chain};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// LIMIT: how long writing one object may take, some tens of MiB at most.
const PUT_WITHIN: Duration = Duration::from_secs(300);
/// LIMIT: how long one read may take; an append that repeats a very old one may wait for it.
const GET_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long a list may take.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// How often whoever waits looks whether it still is to.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// LIMIT: threads of a store that is a directory.
const BLOCKING_THREADS_MAX: usize = 4;

/// Why an object cannot be had or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ObjectsError {
    /// It is not there.
    Missing,
    /// The store does not answer, or refuses.
    Unreachable(String),
}

/// Whether an object that is there stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It stays: its name is the hash of its content.
    Create,
    /// It was found damaged, and goes.
    Replace,
}

/// What is to be written.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) parts: Vec<Bytes>,
    pub(crate) put: Put,
}

/// A store of objects. A request is waited for as long as it may take, or until `until` is set.
pub(crate) trait Objects: fmt::Debug + Send + Sync {
    /// Writes an object; when this returns it survives whatever the store survives.
    fn put(&self, name: &str, object: Object, until: &AtomicBool) -> Result<(), ObjectsError>;

    /// These bytes of an object; fewer if it is shorter.
    fn get(&self, name: &str, range: Range<u64>, until: &AtomicBool)
    -> Result<Bytes, ObjectsError>;

    /// The names that begin with `prefix`, with the lengths of the objects.
    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, ObjectsError>;

    /// The place, for people.
    fn shown(&self) -> &str;
}

/// [`Objects`] of any [`ObjectStore`].
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    base: Path,
    shown: String,
    tasks: Tasks,
    /// Taken when this is dropped.
    runtime: Option<Runtime>,
}

impl Remote {
    pub(super) fn new(store: Arc<dyn ObjectStore>, base: Path, shown: &str) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("log-objects")
            .enable_all()
            .build()?;
        Ok(Self {
            store,
            base,
            shown: shown.trim_end_matches('/').to_owned(),
            tasks: Tasks::new(),
            runtime: Some(runtime),
        })
    }

    fn at(&self, name: &str) -> Path {
        name.split('/')
            .fold(self.base.clone(), |path, part| path.join(part))
    }

    /// Runs a request there and waits for it here.
    fn wait<T: Send + 'static>(
        &self,
        within: Duration,
        until: &AtomicBool,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, ObjectsError> {
        let stopping = || ObjectsError::Unreachable("the log is stopping".to_owned());
        let runtime = self.runtime.as_ref().ok_or_else(stopping)?;
        let (answer, answered) = mpsc::sync_channel(1);
        let inside = runtime.enter();
        self.tasks
            .spawn("log object store", Importance::Detached, async move {
                // Whoever asked waits.
                let _ = answer.send(timeout(within, request).await);
            });
        drop(inside);
        let received = loop {
            match answered.recv_timeout(LOOK_EVERY) {
                Err(RecvTimeoutError::Timeout) if !until.load(Ordering::Relaxed) => {}
                received => break received,
            }
        };
        match received {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(object_store::Error::NotFound { .. }))) => Err(ObjectsError::Missing),
            Ok(Ok(Err(error))) => Err(ObjectsError::Unreachable(chain(&error).to_string())),
            Ok(Err(_)) => {
                let seconds = within.as_secs();
                let late = format!("no answer within {seconds} s");
                Err(ObjectsError::Unreachable(late))
            }
            // Nobody waits any more, or the runtime ends.
            Err(_) => Err(stopping()),
        }
    }
}

impl Objects for Remote {
    fn put(&self, name: &str, object: Object, until: &AtomicBool) -> Result<(), ObjectsError> {
        let (store, at) = (Arc::clone(&self.store), self.at(name));
        let mode = match object.put {
            Put::Create => PutMode::Create,
            Put::Replace => PutMode::Overwrite,
        };
        let payload = PutPayload::from_iter(object.parts);
        self.wait(PUT_WITHIN, until, async move {
            match store.put_opts(&at, payload, mode.into()).await {
                Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
                done => done.map(drop),
            }
        })
    }

    fn get(
        &self,
        name: &str,
        range: Range<u64>,
        until: &AtomicBool,
    ) -> Result<Bytes, ObjectsError> {
        let (store, at) = (Arc::clone(&self.store), self.at(name));
        self.wait(GET_WITHIN, until, async move {
            store.get_range(&at, range).await
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, ObjectsError> {
        let never = AtomicBool::new(false);
        let (store, below) = (
            Arc::clone(&self.store),
            self.at(prefix.trim_end_matches('/')),
        );
        let found: Vec<_> = self.wait(LIST_WITHIN, &never, async move {
            store.list(Some(&below)).try_collect().await
        })?;
        let name = |meta: object_store::ObjectMeta| {
            let name = meta.location.filename()?;
            Some((format!("{prefix}{name}"), meta.size))
        };
        Ok(found.into_iter().filter_map(name).collect())
    }

    fn shown(&self) -> &str {
        &self.shown
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropped in place it would wait, which an asynchronous caller must not.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("shown", &self.shown)
            .finish_non_exhaustive()
    }
}
