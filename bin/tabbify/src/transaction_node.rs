//! `tabbify transaction-node`: the log as a process of its own, for the other roles of this machine, and
//! over the mesh for other machines once this one has joined its own platform.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use tabbify_auth::{Checker, Keys};
use tabbify_process::{Clock, SystemClock, Tasks, signals};

use crate::authorize::{Tokens, checker_scope};
use crate::log_settings::{AppendRates, ColdExtents, Postgres, Settings};
use crate::member::{self, Beginning, Kept, Member, Secrets};
use crate::objects::Objects;
use crate::over_mesh::{self, LOG_PORT};
use crate::role::{self, Arguments};
use crate::substrate::{LOG_SOCKET, Substrate};

/// Serves until a signal, or until the log fails.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.config::<Config>()?;
    let mesh = config.mesh;
    let (configured, settings) = config.into_settings();
    let data = arguments.data_dir(configured)?;
    if !data.keys().is_dir() {
        let dir = data.path().display();
        bail!("{dir} is not a platform yet. Run: tabbify init --data-dir {dir}");
    }
    let _held = data.hold()?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let keys = Keys::open(&data.keys())?;
    let substrate = Substrate::open(&data, &settings, &keys.root, &clock, &tasks).await?;
    let log = substrate.log.clone();
    let (events, snapshots) = (log.client(checker_scope()), data.snapshots());
    let snapshots = snapshots.join("transaction-node");
    let checker = Checker::start(events, Some(&snapshots), Arc::clone(&clock), &tasks).await?;
    let tokens = Tokens::new(checker);
    let service = substrate.serve(&data, Arc::new(tokens.clone()), &tasks)?;
    let mut places = data.path().join(LOG_SOCKET).display().to_string();
    if data.membership().exists() {
        // Other machines find it by the tag role:transaction-node.
        let (kept, secrets) = (Kept::read(&data)?, Secrets::load_or_create(&data)?);
        let beginning = Beginning::again(kept);
        let member = Member::start(&data, beginning, secrets, &mesh, &clock, &tasks).await?;
        over_mesh::log(member.mesh(), service, &tokens, &tasks)?;
        places += &format!(" · [{}]:{LOG_PORT}", member.address());
    }
    role::say(&format!(
        "transaction-node · log {} at {} · {places}\n",
        log.log_id(),
        log.head(),
    ));
    let ended = role::until_stopped(&tasks).await;
    substrate.close().await;
    ended
}

/// The file: `[transaction_node]`, and `[mesh]` of a machine that has joined.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    transaction_node: Section,
    mesh: member::Section,
}

/// `[transaction_node]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    /// The data directory. Default `$XDG_DATA_HOME/tabbify`.
    data_dir: Option<PathBuf>,
    /// Where what was signed of the log is kept: a directory, or `s3://bucket/path`. Default
    /// `checkpoints` in the data directory.
    checkpoints: Option<String>,
    /// Where closed extents go. Default: they stay.
    cold: Option<ColdExtents>,
    /// The object store that `s3://` places are in.
    objects: Objects,
    /// What each tenant may append.
    rates: AppendRates,
    /// The log is in PostgreSQL. Default: it is in the data directory.
    postgres: Option<Postgres>,
}

impl Config {
    /// The data directory, and what there is to say of the log.
    pub(crate) fn into_settings(self) -> (Option<PathBuf>, Settings) {
        let section = self.transaction_node;
        let settings = Settings {
            checkpoints: section.checkpoints,
            cold: section.cold,
            objects: section.objects,
            rates: section.rates,
            postgres: section.postgres,
        };
        (section.data_dir, settings)
    }
}
