//! `tabbify supervisord`: a machine that has joined runs the apps that the coordinator places on it. It
//! reads its orders and writes its reports over the mesh, and needs no token to start again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::artifact::ARTIFACTS_PORT;
use tabbify_api::mesh::Leases;
use tabbify_mesh::Mesh;
use tabbify_process::{Clock, Importance, SystemClock, Tasks, signals};
use tabbify_supervisor::{Identity, Supervisor};
use tabbify_types::HostName;

use crate::data_dir::{DataDir, UpRecord};
use crate::log_line;
use crate::member::{self, Beginning, Kept, Member, Secrets};
use crate::over_mesh::LOG_PORT;
use crate::{role, up};

/// Runs until a signal.
pub(crate) async fn run(arguments: role::Arguments) -> anyhow::Result<()> {
    let config = arguments.config::<Config>()?;
    let data = arguments.data_dir(config.data_dir())?;
    serve(data, config).await
}

/// The same, for whoever has read the configuration.
pub(crate) async fn serve(data: DataDir, config: Config) -> anyhow::Result<()> {
    let kept = Kept::read(&data)?;
    let runner = up::runner_program()?;
    let mut held = data.hold()?;
    held.clear()?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (beginning, secrets) = (Beginning::again(kept), Secrets::load_or_create(&data)?);
    let member = Member::start(&data, beginning, secrets, &config.mesh, &clock, &tasks).await?;
    let way = member.service("transaction-node", LOG_PORT);
    let log = log_line::connect_later(way, member.bearer(), &tasks);
    let host = member.current().certificate.host;
    let supervised = tabbify_supervisor::Config {
        store: store(&member)?,
        ..supervised(&data, &host, &runner, &member)
    };
    let leases: Arc<dyn Leases> = Arc::new(member.coordinator().clone());
    let mut supervisor = Supervisor::start(supervised, log, leases, clock, &tasks).await?;
    let stop = tasks.token();
    tasks.spawn("supervisor watch", Importance::Detached, async move {
        let read = supervisor.until(|seen| seen.caught_up);
        if stop.run_until_cancelled(read).await == Some(true) {
            tracing::info!(role = "supervisord", "its orders are read");
        }
    });
    let address = member.address();
    held.record(&UpRecord {
        pid: std::process::id(),
        server: address.to_string(),
    })?;
    announce(&host, &member);
    role::until_stopped(&tasks).await
}

/// Where the artifacts are: with the machine that has them, over the mesh.
fn store(member: &Member) -> anyhow::Result<String> {
    let machines = member.machines("registry");
    let machine = machines.first().context(
        "no machine of the platform has artifacts (the tag role:registry): \
         run `tabbify up` of this version on the platform's machine, and join again",
    )?;
    Ok(format!("mesh:[{machine}]:{ARTIFACTS_PORT}"))
}

/// A supervisor's configuration on a member, but for where artifacts are.
pub(crate) fn supervised(
    data: &DataDir,
    host: &HostName,
    runner: &Path,
    member: &Member,
) -> tabbify_supervisor::Config {
    tabbify_supervisor::Config {
        host: host.clone(),
        data_dir: data.path().to_path_buf(),
        runner: runner.to_path_buf(),
        store: data.store_url(),
        underlay: member.runner_underlay(),
        peers: Vec::new(),
        identity: Some(identity(member)),
    }
}

/// What the coordinator knows the machine by, as it is renewed.
fn identity(member: &Member) -> Identity {
    let certified = member.clone();
    Identity::new(
        Arc::new(move || certified.current().signed),
        member.signing().clone(),
        member.coordinator_at(),
    )
}

fn announce(host: &HostName, member: &Member) {
    let (address, platform) = (member.address(), member.platform());
    let mesh: &Mesh = member.mesh();
    role::say(&format!(
        "supervisord · {host} · {address} · platform {platform} · mesh {}\n",
        mesh.stack()
    ));
}

/// The file: `[supervisord]` and `[mesh]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    supervisord: Section,
    mesh: member::Section,
}

/// `[supervisord]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    /// The data directory. Default `$XDG_DATA_HOME/tabbify`.
    data_dir: Option<PathBuf>,
}

impl Config {
    /// The data directory, if the file says it.
    pub(crate) fn data_dir(&self) -> Option<PathBuf> {
        self.supervisord.data_dir.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_a_configuration() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating");
        let file = examples.join("supervisord.toml");
        let config: Config = tabbify_process::config::load(Some(&file), &[]).unwrap();
        assert!(config.data_dir().is_some() && config.mesh.underlay.is_some());
    }
}
