//! The configuration of `tabbify up`: one file with a table per role, then the environment, then
//! flags. Everything has a default, so that none of them is needed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tabbify_process::config::{ConfigError, load};
use tabbify_process::env;

use crate::log_settings::{AppendRates, ColdExtents, Settings};
use crate::objects::Objects;
use crate::{coordinator, gateway, member, relay};

/// The file; unknown keys are errors.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The node.
    pub(crate) node: Node,
    /// The log.
    pub(crate) log: Log,
    /// What all roles share.
    pub(crate) platform: Platform,
    /// The coordinator: on its socket alone unless it is told to listen.
    pub(crate) coordinator: coordinator::Settings,
    /// The relay: none unless it is told where.
    pub(crate) relay: relay::Section,
    /// The mesh: bound beside the coordinator's `listen`, else on loopback.
    pub(crate) mesh: member::Section,
    /// The gateway: none unless it is told to listen.
    pub(crate) gateway: gateway::Section,
}

/// `[log]`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// Where its checkpoints are kept: a directory, best on another disk or machine, or
    /// `s3://bucket/path`. Default `checkpoints` in the data directory.
    checkpoints: Option<String>,
    /// Where closed extents go. Default: they stay.
    cold: Option<ColdExtents>,
    /// The object store that `s3://` places are in.
    objects: Objects,
    /// What each tenant may append.
    rates: AppendRates,
}

impl Log {
    /// The same, as every role that has a log is told.
    pub(crate) fn settings(self) -> Settings {
        Settings {
            checkpoints: self.checkpoints,
            cold: self.cold,
            objects: self.objects,
            rates: self.rates,
            postgres: None,
        }
    }
}

/// `[node]`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    /// Where it listens; loopback only. Default `127.0.0.1:8090`.
    pub(crate) listen: Option<SocketAddr>,
}

/// `[platform]`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Platform {
    /// The data directory. Default `$XDG_DATA_HOME/tabbify`.
    pub(crate) data_dir: Option<PathBuf>,
}

/// Reads `path`, if there is one, under the environment.
pub(crate) fn read(path: Option<&Path>) -> Result<Config, ConfigError> {
    load(path, &env::overrides())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_a_configuration() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let config: Config = load(Some(&root.join("docs/operating/up.toml")), &[]).unwrap();
        assert_eq!(
            config.node.listen,
            Some(SocketAddr::from(([127, 0, 0, 1], 8090)))
        );
        assert!(config.platform.data_dir.is_some());
        assert!(config.coordinator.listen.is_some() && config.mesh.underlay.is_some());
        assert_ne!(config.relay, relay::Section::default());
        assert!(config.gateway.listen.is_some() && config.gateway.endpoint.is_some());
        let log = config.log.settings();
        assert!(log.checkpoints.is_some() && log.cold.is_some());
        assert_ne!(log.rates(), tabbify_log::Rates::default());
    }
}
