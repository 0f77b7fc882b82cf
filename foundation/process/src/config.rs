//! One TOML file, a table per role, strict; then the environment, then flags.
//!
//! A key of `[node]` such as `listen` is overridden by `TABBIFY__NODE__LISTEN`. Values from the
//! environment are TOML if they parse as such, otherwise text.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::env::CONFIG_PREFIX;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or a key or value in it is not known.
    #[error("{} is not a configuration of this role", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// An environment variable names a key that the configuration cannot have.
    #[error("{name} does not name a configuration key (TABBIFY__ROLE__KEY)")]
    Variable {
        /// The variable.
        name: String,
    },
}

/// Reads `path` (a missing path means an empty file) under `overrides`, as `(variable, value)`.
///
/// # Errors
/// [`ConfigError`]: an unknown key is an error everywhere, if `T` denies unknown fields.
pub fn load<T: DeserializeOwned>(
    path: Option<&Path>,
    overrides: &[(String, String)],
) -> Result<T, ConfigError> {
    let shown = path.map_or_else(|| PathBuf::from("(no file)"), Path::to_path_buf);
    let text = match path {
        Some(path) => std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_path_buf(),
            source,
        })?,
        None => String::new(),
    };
    let parse = |source: toml::de::Error| ConfigError::Parse {
        path: shown.clone(),
        source: Box::new(source),
    };
    if overrides.is_empty() {
        // Straight from the text, so that an error names its line.
        return toml::from_str(&text).map_err(parse);
    }
    let mut table: Table = toml::from_str(&text).map_err(parse)?;
    for (name, value) in overrides {
        apply(&mut table, name, value)?;
    }
    table.try_into().map_err(parse)
}

fn apply(table: &mut Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let wrong = || ConfigError::Variable {
        name: name.to_owned(),
    };
    let path = name
        .strip_prefix(CONFIG_PREFIX)
        .ok_or_else(wrong)?
        .to_lowercase();
    let (role, key) = path.split_once("__").ok_or_else(wrong)?;
    if role.is_empty() || key.is_empty() || key.contains("__") {
        return Err(wrong());
    }
    let section = table
        .entry(role.to_owned())
        .or_insert_with(|| Value::Table(Table::new()))
        .as_table_mut()
        .ok_or_else(wrong)?;
    section.insert(key.to_owned(), read_value(value));
    Ok(())
}

fn read_value(text: &str) -> Value {
    let parsed: Result<Table, _> = toml::from_str(&format!("value = {text}"));
    let value = parsed.ok().and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        node: Node,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Node {
        listen: String,
        #[serde(default)]
        limit: u32,
    }

    #[test]
    fn environment_wins_over_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"[node]\nlisten = \"127.0.0.1:1\"\nlimit = 2\n")
            .unwrap();
        let over = [("TABBIFY__NODE__LISTEN".to_owned(), "127.0.0.1:9".to_owned())];
        let config: Config = load(Some(file.path()), &over).unwrap();
        assert_eq!(
            config.node,
            Node {
                listen: "127.0.0.1:9".to_owned(),
                limit: 2
            }
        );
    }

    #[test]
    fn unknown_keys_and_variables_are_errors() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"[node]\nlisten = \"x\"\nlimt = 2\n")
            .unwrap();
        let error = load::<Config>(Some(file.path()), &[]).unwrap_err();
        let shown = crate::chain(&error).to_string();
        assert!(
            shown.contains("limt") && shown.contains("line 3"),
            "{shown}"
        );
        for bad in ["TABBIFY__NODE", "TABBIFY__NODE__A__B", "TABBIFY____X"] {
            let over = [(bad.to_owned(), "1".to_owned())];
            let error = load::<Config>(None, &over).unwrap_err();
            assert!(matches!(error, ConfigError::Variable { .. }), "{bad}");
        }
    }
}
