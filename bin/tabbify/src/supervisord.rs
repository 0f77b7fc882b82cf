//! `tabbify supervisord`: a machine that has joined runs the apps that the coordinator places on it. It
//! reads its orders and writes its reports over the mesh, and needs no token to start again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::artifact::ARTIFACTS_PORT;
use tabbify_api::mesh::Leases;
use tabbify_api::runner::MicroVms;
use tabbify_process::{Importance, env};
use tabbify_supervisor::{FileLogs, FileVolumes, Identity, Supervisor};
use tabbify_types::HostName;

use crate::data_dir::DataDir;
use crate::log_line;
use crate::member::{self, Again, Kept, Member};
use crate::over_mesh::{self, LOG_PORT};
use crate::{api_gateway, microvms, role, up};

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
    let again = Again::start(&data, kept, &config.mesh).await?;
    let Again {
        member,
        tasks,
        clock,
        ..
    } = &again;
    let way = member.service("transaction-node", LOG_PORT);
    let log = log_line::connect_soon(way, member.bearer(), tasks).await;
    let host = member.current().certificate.host;
    let supervised = tabbify_supervisor::Config {
        store: store(member)?,
        vault: api_gateway::of_instances(member),
        ..supervised(&data, &host, &runner, &config.microvms(&runner), member)
    };
    let volumes = FileVolumes::new(host.clone(), data.path());
    over_mesh::machine(member.mesh(), FileLogs::new(data.path()), volumes, tasks)?;
    let leases: Arc<dyn Leases> = Arc::new(member.coordinator().clone());
    let clock = Arc::clone(clock);
    let mut supervisor = Supervisor::start(supervised, log, leases, clock, tasks).await?;
    over_mesh::doorbell(member, supervisor.doorbell(), tasks)?;
    let stop = tasks.token();
    tasks.spawn("supervisor watch", Importance::Detached, async move {
        let read = supervisor.until(|seen| seen.caught_up);
        if stop.run_until_cancelled(read).await == Some(true) {
            tracing::info!(role = "supervisord", "its orders are read");
        }
    });
    let said = format!(
        "supervisord · {host} · {} · platform {} · mesh {}\n",
        member.address(),
        member.platform(),
        member.mesh().stack()
    );
    again.serve(&said).await
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

/// A supervisor's configuration on the machine that has artifacts and the vault.
pub(crate) fn supervised(
    data: &DataDir,
    host: &HostName,
    runner: &Path,
    microvms: &MicroVms,
    member: &Member,
) -> tabbify_supervisor::Config {
    tabbify_supervisor::Config {
        host: host.clone(),
        data_dir: data.path().to_path_buf(),
        runner: runner.to_path_buf(),
        store: data.store_url(),
        vault: Some(api_gateway::on(member.address())),
        engine: env::read(env::DOCKER_HOST),
        microvms: Some(microvms.clone()),
        underlay: member.runner_underlay(),
        peers: Vec::new(),
        doors: Some(Arc::new(member.coordinator().clone())),
        identity: Some(identity(member)),
    }
}

/// What the coordinator knows the machine by, as it is renewed.
fn identity(member: &Member) -> Identity {
    let (certified, told) = (member.clone(), member.clone());
    Identity::new(
        Arc::new(move || certified.current().signed),
        member.signing().clone(),
        Arc::new(move || told.coordinator_at()),
    )
}

/// The file: `[supervisord]`, `[mesh]` and `[microvm]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    supervisord: Section,
    mesh: member::Section,
    microvm: microvms::Section,
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

    /// What microVMs are made of.
    pub(crate) fn microvms(&self, runner: &Path) -> MicroVms {
        self.microvm.found(runner)
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
