//! `tabbify transaction-node`: the log as a process of its own, for the other roles of this machine.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use tabbify_auth::{Checker, Keys};
use tabbify_process::{Clock, SystemClock, Tasks, signals};

use crate::authorize::{Tokens, checker_scope};
use crate::role::{self, Arguments};
use crate::substrate::{LOG_SOCKET, Substrate};

/// Serves until a signal, or until the log fails.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.config::<Config>()?.transaction_node;
    let data = arguments.data_dir(config.data_dir)?;
    if !data.keys().is_dir() {
        let dir = data.path().display();
        bail!("{dir} is not a platform yet. Run: tabbify init --data-dir {dir}");
    }
    let _held = data.hold()?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let keys = Keys::open(&data.keys())?;
    let place = config.checkpoints.as_deref();
    let substrate = Substrate::open(&data, place, &keys.root, &clock, &tasks).await?;
    let log = Arc::clone(&substrate.log);
    let checker = Checker::start(log.client(checker_scope()), clock, &tasks).await?;
    substrate.serve(&data, Arc::new(Tokens(Arc::new(checker))), &tasks)?;
    role::say(&format!(
        "transaction-node · log {} at {} · {}\n",
        log.log_id(),
        log.head(),
        data.path().join(LOG_SOCKET).display()
    ));
    let ended = role::until_stopped(&tasks).await;
    substrate.close().await;
    ended
}

/// The file: `[transaction_node]` alone.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    transaction_node: Section,
}

/// `[transaction_node]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    /// The data directory. Default `$XDG_DATA_HOME/tabbify`.
    data_dir: Option<PathBuf>,
    /// Where what was signed of the log is kept. Default `checkpoints` in the data directory.
    checkpoints: Option<String>,
}
