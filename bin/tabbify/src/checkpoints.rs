//! The checkpoints of a data directory: where they are, whose word counts, and the task that writes
//! them.

use tabbify_log::{Anchor, CheckpointStore, Log, LogKey, Publisher, Signed, Trust};
use tabbify_process::{Tasks, chain};
use tabbify_token::SecretKey;

use crate::data_dir::DataDir;
use crate::log_settings::Settings;
use crate::objects::Place;

/// What is known of the log before it is opened, and what it takes to go on signing it.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    store: CheckpointStore,
    trust: Trust,
    key: LogKey,
    newest: Option<Signed>,
}

impl Checkpoints {
    /// Reads what the place that is set, or else the data directory's own, has. A place that cannot be reached is
    /// a warning: the platform starts as if there were none. One that holds something that cannot be
    /// relied on is refused.
    pub(crate) async fn open(
        data: &DataDir,
        settings: &Settings,
        root: &SecretKey,
    ) -> anyhow::Result<Self> {
        let key = LogKey::load_or_create(&data.log_key(), root)?;
        let anchor = Anchor::Root(root.public());
        let store = store(data, settings)?;
        let trust = match store.trust(anchor.clone()).await {
            Ok(trust) => trust,
            Err(error) => {
                let place = store.shown();
                tracing::warn!(error = %chain(&error), place, "checkpoints cannot be reached: whether \
                    the log's end was cut off cannot be told this time");
                return Ok(Self {
                    store,
                    trust: Trust::new(anchor),
                    key,
                    newest: None,
                });
            }
        };
        let newest = store.newest(&trust).await?;
        Ok(Self {
            store,
            trust,
            key,
            newest,
        })
    }

    /// What the log must be.
    pub(crate) fn newest(&self) -> Option<Signed> {
        self.newest.clone()
    }

    /// Signs the log, which has been opened with [`Checkpoints::newest`], from now on.
    pub(crate) fn start(self, log: &Log, tasks: &Tasks) -> Publisher {
        let newest = self.newest.as_ref();
        Publisher::start(log, self.store, self.trust, self.key, newest, tasks)
    }
}

/// Where checkpoints are: a directory, by default the data directory's own, or a bucket.
pub(crate) fn store(data: &DataDir, settings: &Settings) -> anyhow::Result<CheckpointStore> {
    let place = match &settings.checkpoints {
        None => Place::Directory(data.checkpoints()),
        Some(text) => Place::read("checkpoints", text, &settings.objects)?,
    };
    Ok(match place.outside("checkpoints", &data.log())? {
        Place::Directory(dir) => CheckpointStore::local(&dir)?,
        Place::Bucket { store, base, shown } => CheckpointStore::new(store, base, &shown),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_directories_outside_the_log() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().join("data"))).unwrap();
        let shown = |place: Option<&str>| {
            let settings = Settings {
                checkpoints: place.map(str::to_owned),
                ..Settings::default()
            };
            store(&data, &settings).map(|store| store.shown().to_owned())
        };
        assert_eq!(
            shown(None).unwrap(),
            data.checkpoints().display().to_string()
        );
        let other = home.path().join("other").display().to_string();
        assert_eq!(shown(Some(&other)).unwrap(), other);
        assert_eq!(shown(Some(&format!("file://{other}"))).unwrap(), other);
        let within = data.log().join("checkpoints").display().to_string();
        for bad in [
            within.as_str(),
            "s3://bucket/log",
            "file://relative",
            "http://x/",
        ] {
            assert!(shown(Some(bad)).is_err(), "{bad}");
        }
    }
}
