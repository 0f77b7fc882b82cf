//! What the role that has the log is told of it: the tables of `[log]` under `tabbify up`, and of
//! `[transaction_node]` where that role runs alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tabbify_log::{Cold, ColdStore, Rates, postgres};
use tabbify_process::config::load;
use tabbify_process::{Clock, env};
use tabbify_types::ByteSize;

use crate::data_dir::DataDir;
use crate::objects::{Objects, Place};
use crate::secret::Secret;
use crate::{config, transaction_node};

/// Bytes of extents that stay on the local disk: ten million small events, say.
const LOCAL: ByteSize = ByteSize::mib(4096);

/// Everything; the default is an embedded log that is all in the data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where what was signed is kept. Default `checkpoints` in the data directory.
    pub(crate) checkpoints: Option<String>,
    pub(crate) cold: Option<ColdExtents>,
    pub(crate) objects: Objects,
    pub(crate) rates: AppendRates,
    pub(crate) postgres: Option<Postgres>,
}

/// `cold`: closed extents go to an object store. Without it they stay where they are: a second copy on
/// the same disk would be of no use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ColdExtents {
    /// Where: a directory of another disk, or `s3://bucket/path`.
    store: String,
    /// Bytes of extents that stay on the local disk too. Default 4 GiB.
    local: Option<ByteSize>,
}

/// `rates`: what each tenant may append. Defaults are the log's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AppendRates {
    events_per_second: Option<u32>,
    events_burst: Option<u32>,
    bytes_per_second: Option<ByteSize>,
    bytes_burst: Option<ByteSize>,
}

/// `postgres`: the log is in PostgreSQL, not in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Postgres {
    /// Where the connection string is: `env:NAME` or `file:PATH`.
    connection: Secret,
    /// The schema. Default `tabbify_log`.
    schema: Option<String>,
    /// Takes a database that has no synchronous standby. Default false.
    #[serde(default)]
    without_standby: bool,
}

impl Settings {
    /// Reads a configuration for a command that looks at the log: of `tabbify up`, or of a
    /// transaction-node. Answers its data directory too.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<(Option<PathBuf>, Self)> {
        match config::read(path) {
            Ok(config) => Ok((config.platform.data_dir, config.log.settings())),
            Err(error) => match load::<transaction_node::Config>(path, &env::overrides()) {
                Ok(config) => Ok(config.into_settings()),
                Err(_) => Err(error.into()),
            },
        }
    }

    /// The object store of closed extents, if there is one.
    pub(crate) fn cold_store(&self, data: &DataDir) -> anyhow::Result<Option<ColdStore>> {
        let Some(cold) = &self.cold else {
            return Ok(None);
        };
        let place = Place::read("cold.store", &cold.store, &self.objects)?;
        let store = match place.outside("cold.store", &data.log())? {
            Place::Directory(dir) => ColdStore::local(&dir),
            Place::Bucket { store, base, shown } => ColdStore::new(store, base, &shown),
        };
        Ok(Some(store.with_context(|| {
            format!("cold.store = {:?}", cold.store)
        })?))
    }

    /// What becomes of closed extents.
    pub(crate) fn cold(&self, data: &DataDir) -> anyhow::Result<Option<Cold>> {
        let local = self.cold.as_ref().and_then(|cold| cold.local);
        let store = self.cold_store(data)?;
        Ok(store.map(|store| Cold::new(store, local.unwrap_or(LOCAL).bytes())))
    }

    /// What is of the embedded log alone is refused beside PostgreSQL rather than passed over.
    pub(crate) fn refuse_beside_postgres(&self) -> anyhow::Result<()> {
        if self.cold.is_some() || self.checkpoints.is_some() {
            bail!(
                "cold and checkpoints are of a log in the data directory, and postgres is set: remove \
                 one or the other"
            );
        }
        Ok(())
    }

    /// What each tenant may append.
    pub(crate) fn rates(&self) -> Rates {
        let (default, set) = (Rates::default(), &self.rates);
        let bytes = |size: Option<ByteSize>, default| {
            size.map_or(default, |size| {
                u32::try_from(size.bytes()).unwrap_or(u32::MAX)
            })
        };
        Rates {
            events_per_second: set.events_per_second.unwrap_or(default.events_per_second),
            events_burst: set.events_burst.unwrap_or(default.events_burst),
            bytes_per_second: bytes(set.bytes_per_second, default.bytes_per_second),
            bytes_burst: bytes(set.bytes_burst, default.bytes_burst),
        }
    }
}

impl Postgres {
    /// As the engine takes it.
    pub(crate) fn options(&self, clock: Arc<dyn Clock>) -> anyhow::Result<postgres::Options> {
        let connection = self.connection.read("postgres.connection")?;
        let mut options = postgres::Options::new(&connection, clock)?;
        if let Some(schema) = &self.schema {
            options = options.schema(schema)?;
        }
        let standby = match self.without_standby {
            true => postgres::Standby::Missed,
            false => postgres::Standby::Required,
        };
        Ok(options.standby(standby))
    }

    /// Of a command line.
    pub(crate) const fn of(
        connection: Secret,
        schema: Option<String>,
        without_standby: bool,
    ) -> Self {
        Self {
            connection,
            schema,
            without_standby,
        }
    }
}

#[cfg(test)]
impl AppendRates {
    /// Whether every rate is said.
    pub(crate) const fn is_complete(&self) -> bool {
        let events = self.events_per_second.is_some() && self.events_burst.is_some();
        events && self.bytes_per_second.is_some() && self.bytes_burst.is_some()
    }
}

#[cfg(test)]
impl Settings {
    /// Whether as much stays on the local disk as without being said.
    pub(crate) fn is_cold_by_default(&self) -> bool {
        self.cold.as_ref().and_then(|cold| cold.local) == Some(LOCAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Tables {
        rates: AppendRates,
        cold: Option<ColdExtents>,
    }

    fn settings(text: &str) -> anyhow::Result<Settings> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let Tables { rates, cold } = load(Some(file.path()), &[])?;
        Ok(Settings {
            rates,
            cold,
            ..Settings::default()
        })
    }

    #[test]
    fn rates_are_those_that_are_set() {
        let set = settings("rates = { events_per_second = 7, bytes_burst = \"64MiB\" }").unwrap();
        let default = Rates::default();
        let rates = set.rates();
        assert_eq!(rates.events_per_second, 7);
        assert_eq!(rates.bytes_burst, 64 << 20);
        assert_eq!(rates.events_burst, default.events_burst);
        assert_eq!(settings("").unwrap().rates(), default);
        assert!(settings("rates = { events = 7 }").is_err());
    }

    #[test]
    fn extents_go_where_they_are_told_and_nowhere_else() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().join("data"))).unwrap();
        assert!(settings("").unwrap().cold(&data).unwrap().is_none());
        let other = home.path().join("other").display().to_string();
        let set = settings(&format!("cold = {{ store = {other:?}, local = \"1GiB\" }}")).unwrap();
        let store = set.cold_store(&data).unwrap().unwrap();
        assert_eq!(store.shown(), other);
        assert!(set.cold(&data).unwrap().is_some());
        let within = data.log().join("cold").display().to_string();
        for refused in [within.as_str(), "s3://bucket", "s3:///x", "ftp://host/x"] {
            let set = settings(&format!("cold = {{ store = {refused:?} }}")).unwrap();
            assert!(set.cold(&data).is_err(), "{refused}");
        }
        assert!(
            settings("cold = { local = \"1GiB\" }").is_err(),
            "a store is needed"
        );
    }
}
