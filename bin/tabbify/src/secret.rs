//! Secrets that a configuration or a command line refers to and never holds: every user of the machine
//! can read the one, and whoever copies the other copies them too.

use std::fmt;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tabbify_process::env;

/// Where a secret is: `env:NAME` or `file:PATH`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(crate) String);

impl Secret {
    /// What it refers to, without the white space around it. `key` says in whose name it is refused.
    pub(crate) fn read(&self, key: &str) -> anyhow::Result<String> {
        let text = match self.0.split_once(':') {
            Some(("env", name)) => {
                env::read(name).with_context(|| format!("{key}: the variable {name} is not set"))?
            }
            Some(("file", path)) => {
                std::fs::read_to_string(path).with_context(|| format!("{key}: {path}"))?
            }
            _ => bail!(
                "{key} takes env:NAME or file:PATH, the place of the secret, not the secret itself"
            ),
        };
        Ok(text.trim().to_owned())
    }
}

impl fmt::Debug for Secret {
    /// It may be the secret itself, put there by mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_only_referred_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "host=/tmp\n").unwrap();
        let reference = Secret(format!("file:{}", file.path().display()));
        assert_eq!(reference.read("--postgres").unwrap(), "host=/tmp");
        let inline = Secret("host=/tmp password=hunter2".to_owned());
        let refused = inline.read("--postgres").unwrap_err().to_string();
        assert!(
            refused.contains("--postgres") && !refused.contains("hunter2"),
            "{refused}"
        );
        assert_eq!(format!("{inline:?}"), "Secret");
        for missing in [
            "file:/nowhere/at/all",
            "env:TABBIFY_THERE_IS_NO_SUCH",
            "x:y",
            "",
        ] {
            assert!(Secret(missing.to_owned()).read("key").is_err(), "{missing}");
        }
    }
}
