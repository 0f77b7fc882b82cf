//! What every role that runs alone does alike: configuration, the line that says it serves, the end.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use serde::de::DeserializeOwned;
use tabbify_process::config::{ConfigError, load};
use tabbify_process::{Tasks, env};

use crate::data_dir::DataDir;

/// LIMIT: how long a role may take to end: what is being answered is finished.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// Flags of a role; each overrides the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration file with the role's own table (docs/operating); none is needed
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

impl Arguments {
    /// Those that a command with more flags was given.
    pub(crate) const fn new(config: Option<PathBuf>, data_dir: Option<PathBuf>) -> Self {
        Self { config, data_dir }
    }

    /// The role's file, if there is one, under the environment.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        load(self.config.as_deref(), &env::overrides())
    }

    /// The data directory: a flag's, or the file's.
    pub(crate) fn data_dir(self, configured: Option<PathBuf>) -> anyhow::Result<DataDir> {
        DataDir::choose(self.data_dir.or(configured))
    }
}

/// Says on standard output that the role serves, and where.
pub(crate) fn say(text: &str) {
    // A reader that has gone away is no reason to end.
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        tracing::warn!(%error, "nobody reads standard output");
    }
}

/// Tells a person something beside what a program reads from standard output.
pub(crate) fn hint(text: &str) {
    // Nobody needs to read it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Waits for a signal or a failed part, then for the tasks to end.
pub(crate) async fn until_stopped(tasks: &Tasks) -> anyhow::Result<()> {
    tasks.token().cancelled().await;
    stop(tasks).await
}

/// Ends the tasks; tells what failed. Something that does not end by itself is a failure, too: it was cut off.
pub(crate) async fn stop(tasks: &Tasks) -> anyhow::Result<()> {
    let all_ended = tasks.shutdown(SHUTDOWN).await;
    match tasks.failure() {
        Some(failure) => bail!("{failure}"),
        None if !all_ended => bail!("not everything ended within {} s", SHUTDOWN.as_secs()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_documented_examples_are_configurations() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating");
        let log = load::<crate::transaction_node::Config>(
            Some(&examples.join("transaction-node.toml")),
            &[],
        );
        assert!(log.is_ok(), "{log:?}");
        let read = load::<crate::read_node::Config>(Some(&examples.join("read-node.toml")), &[]);
        assert!(read.is_ok(), "{read:?}");
        let auth = load::<crate::auth::Config>(Some(&examples.join("auth.toml")), &[]);
        assert!(auth.is_ok(), "{auth:?}");
    }
}
