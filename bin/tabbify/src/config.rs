//! The configuration of `tabbify up`: one file with a table per role, then the environment, then
//! flags. Everything has a default, so that none of them is needed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tabbify_process::config::{ConfigError, load};
use tabbify_process::env;

use crate::log_settings::{AppendRates, ColdExtents, Settings};
use crate::objects::Objects;
use crate::{api_gateway, coordinator, gateway, member, microvms, relay};

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
    /// The vault.
    pub(crate) vault: api_gateway::Section,
    /// What microVMs are made of.
    pub(crate) microvm: microvms::Section,
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
    use std::io::Write as _;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/operating/up.toml");

    fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load(Some(file.path()), &[])
    }

    /// The page with the lines taken in that begin with one of these marks.
    fn page(marks: &[&str]) -> String {
        let is_setting = |line: &str| {
            let name = line.split([' ', ']']).next().unwrap_or_default();
            let name = name.strip_prefix('[').unwrap_or(name);
            let named = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b"abcdefghijklmnopqrstuvwxyz_.".contains(&b));
            named && (line.starts_with('[') || line[name.len()..].starts_with(" = "))
        };
        let line = |line: &str| {
            let bare = marks.iter().find_map(|mark| line.strip_prefix(mark));
            bare.filter(|bare| is_setting(bare))
                .map_or_else(|| line.to_owned(), str::to_owned)
        };
        PAGE.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    /// The keys that the program knows of a table; none if that is no table.
    fn keys(table: &str) -> Vec<String> {
        let header = if table.is_empty() {
            String::new()
        } else {
            format!("[{table}]\n")
        };
        let error = parsed::<Config>(&format!("{header}no_such_key = 1\n")).unwrap_err();
        let said = tabbify_process::chain(&error).to_string();
        let Some((_, expected)) = said.split_once("unknown field `no_such_key`, expected ") else {
            return Vec::new();
        };
        let expected = expected.lines().next().unwrap();
        expected
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn the_page_as_it_stands_changes_nothing() {
        assert_eq!(parsed::<Config>(PAGE).unwrap(), Config::default());
    }

    #[test]
    fn the_defaults_on_the_page_are_the_programs() {
        let config: Config = parsed(&page(&["# "])).unwrap();
        let node = SocketAddr::from(([127, 0, 0, 1], tabbify_node::config::PORT));
        assert_eq!(config.node.listen, Some(node));
        assert_eq!(config.coordinator, coordinator::Settings::shown_defaults());
        assert_eq!((config.relay, config.gateway), Default::default());
        assert_eq!(config.mesh, member::Section::default());
        assert_eq!(config.platform, Platform::default());
        assert_eq!(config.microvm, microvms::Section::default());
        assert_eq!(config.log.objects, Objects::shown_defaults());
        let log = config.log.settings();
        assert!(log.checkpoints.is_none() && log.cold.is_none());
        assert!(log.rates.is_complete());
        assert_eq!(log.rates(), tabbify_log::Rates::default());
    }

    #[test]
    fn the_page_has_every_key() {
        let text = page(&["# ", "#: "]);
        let config: Config = parsed(&text).unwrap();
        assert!(config.log.settings().is_cold_by_default());
        let page: serde_json::Value = parsed(&text).unwrap();
        let mut tables = vec![String::new()];
        while let Some(table) = tables.pop() {
            for key in keys(&table) {
                let path = if table.is_empty() {
                    key
                } else {
                    format!("{table}.{key}")
                };
                let found = page.pointer(&format!("/{}", path.replace('.', "/")));
                assert!(found.is_some(), "{path} is not on the page");
                tables.push(path);
            }
        }
        assert_eq!(keys("node"), ["listen"]);
        assert!(keys("log").contains(&"rates".to_owned()));
    }
}
