//! A small vocabulary for stories about checkpoints: a platform's keys, a place for checkpoints, and
//! logs whose every commit is signed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tabbify_api::log::{Append, EventLog};
use tabbify_log::{
    Anchor, CheckpointStore, Log, LogKey, OpenError, Options, Publisher, Signed, StoreError, Trust,
};
use tabbify_process::Tasks;
use tabbify_token::SecretKey;
use tabbify_types::Position;

use crate::support::{Outcome, Wrong, event, options, scope};

/// A platform with a log and a place for checkpoints that is not the log's directory.
pub(crate) struct Platform {
    pub(crate) home: tempfile::TempDir,
    pub(crate) root: SecretKey,
    pub(crate) key: LogKey,
    pub(crate) store: CheckpointStore,
}

impl Platform {
    pub(crate) fn new() -> Result<Self, Wrong> {
        let home = tempfile::tempdir()?;
        let root = SecretKey::generate()?;
        let key = LogKey::certified(SecretKey::generate()?, &root);
        let store = CheckpointStore::local(&home.path().join("checkpoints"))?;
        Ok(Self {
            home,
            root,
            key,
            store,
        })
    }

    /// The log's directory.
    pub(crate) fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// Another directory of this platform.
    pub(crate) fn other(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn anchor(&self) -> Anchor {
        Anchor::Root(self.root.public())
    }

    pub(crate) async fn trust(&self) -> Result<Trust, StoreError> {
        self.store.trust(self.anchor()).await
    }

    pub(crate) async fn newest(&self) -> Result<Option<Signed>, StoreError> {
        self.store.newest(&self.trust().await?).await
    }

    pub(crate) async fn all(&self) -> Result<Vec<Signed>, StoreError> {
        self.store.all(&self.trust().await?).await
    }

    /// Opens the log as a platform does: held against its newest checkpoint.
    pub(crate) async fn open(&self, extent_len: u64) -> Result<Open, Wrong> {
        let options = options().extent_lens(extent_len, extent_len);
        self.open_with(options).await
    }

    /// The same, with options of the caller's.
    pub(crate) async fn open_with(&self, options: Options) -> Result<Open, Wrong> {
        let (trust, newest) = (self.trust().await?, self.newest().await?);
        let log = Log::open(&self.log(), options.checkpoint(newest.clone()))?;
        let tasks = Tasks::new();
        let (store, key) = (self.store.clone(), self.key.clone());
        let publisher = Publisher::start(&log, store, trust, key, newest.as_ref(), &tasks);
        let client = log.client(scope("test", &["**"], &["**"])?);
        Ok(Open {
            log,
            client,
            publisher,
            tasks,
        })
    }

    /// Why the log does not open.
    pub(crate) async fn refused(&self) -> Result<OpenError, Wrong> {
        let newest = self.newest().await?;
        let refused = Log::open(&self.log(), options().checkpoint(newest)).err();
        refused.ok_or_else(|| "it opens".into())
    }

    /// A log of `commits` small frames, with a checkpoint after each `every`.
    pub(crate) async fn filled(&self, commits: usize, every: usize) -> Outcome {
        let open = self.open(1 << 13).await?;
        for n in 1..=commits {
            open.append(n).await?;
            if n % every == 0 {
                open.publisher.finish().await?;
            }
        }
        open.close().await
    }
}

/// An open log with its publisher.
pub(crate) struct Open {
    pub(crate) log: Log,
    pub(crate) client: std::sync::Arc<dyn EventLog>,
    pub(crate) publisher: Publisher,
    pub(crate) tasks: Tasks,
}

impl Open {
    /// One commit of one or two events.
    pub(crate) async fn append(&self, n: usize) -> Outcome {
        let one = |data: &str| event("tenant_main.apps", "shop", data);
        let mut events = vec![one(&format!("{{\"n\":{n}}}"))];
        if n.is_multiple_of(3) {
            events.push(one("{}"));
        }
        self.client.append(Append::of(events)).await?;
        Ok(())
    }

    /// Closes the log and signs its end, as a platform does.
    pub(crate) async fn close(self) -> Outcome {
        self.tasks.shutdown(Duration::from_secs(20)).await;
        self.log.close().await;
        let head = self.log.head();
        let signed = self.publisher.finish().await?;
        assert_eq!(signed.unwrap_or_default(), head);
        Ok(())
    }
}

/// Where the frames of an extent begin and end.
pub(crate) fn frames(extent: &Path) -> Result<Vec<(usize, usize)>, Wrong> {
    let bytes = std::fs::read(extent)?;
    let (mut at, mut found) = (512, Vec::new());
    while bytes.get(at..at + 8) == Some(b"tabFRAME") {
        let len = bytes.get(at + 12..at + 16).ok_or("a length")?;
        let len = usize::try_from(u32::from_le_bytes(len.try_into()?))?;
        found.push((at, at + len));
        at += len;
    }
    Ok(found)
}

pub(crate) const fn position(n: u64) -> Position {
    Position(n)
}
