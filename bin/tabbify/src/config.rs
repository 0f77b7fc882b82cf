//! The configuration of `tabbify up`: one file with a table per role, then the environment, then
//! flags. Everything has a default, so that none of them is needed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tabbify_process::config::{ConfigError, load};
use tabbify_process::env;

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
}

/// `[log]`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// The directory that keeps its checkpoints, best on another disk or machine. Default
    /// `checkpoints` in the data directory.
    pub(crate) checkpoints: Option<String>,
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
        assert!(config.log.checkpoints.is_some());
    }
}
