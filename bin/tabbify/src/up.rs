//! `tabbify up`: every role on this machine, with embedded defaults. Needs no configuration, no
//! root, no other program.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tabbify_node::config::PORT;
use tabbify_process::{Tasks, env, signals};
use tabbify_types::event::v1::Capability;

use crate::config;
use crate::coordinator::Record;
use crate::data_dir::{DataDir, UpRecord};
use crate::platform::{Platform, Told};

/// LIMIT: how long the roles may take to end: what is being answered is finished, the log is synced.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// Its flags; each overrides the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration file (docs/operating/up.toml); none is needed
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the node listens; loopback only, port 0 picks a free one [default: 127.0.0.1:8090]
    #[arg(long)]
    listen: Option<SocketAddr>,
}

/// Runs until a signal, or until a part without which nothing works has failed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = config::read(arguments.config.as_deref())?;
    let listen = arguments.listen.or(config.node.listen);
    let listen = listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    let data = DataDir::choose(arguments.data_dir.or(config.platform.data_dir))?;
    let runner = runner_program()?;
    let told = Told {
        listen,
        runner: runner.clone(),
        log: config.log.settings(),
        coordinator: config.coordinator,
        relay: config.relay,
        mesh: config.mesh,
        gateway: config.gateway,
        vault: config.vault,
        microvms: config.microvm.found(&runner),
    };
    // What can be seen to be wrong is said before there is a directory.
    told.relay.check()?;
    told.gateway.check()?;
    let new = data.create()?;
    let mut held = data.hold()?;
    held.clear()?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let platform = Platform::start(&data, &told, &tasks).await?;
    let server = format!("http://localhost:{}", platform.listen.port());
    held.record(&UpRecord {
        pid: std::process::id(),
        server: server.clone(),
    })?;
    let signed_in = platform.sign_in(&data, &server);
    let joins = joins(&Record::read(&data));
    announce(
        &data,
        new,
        &server,
        &platform.capabilities,
        signed_in,
        &joins,
    );
    tasks.token().cancelled().await;
    let all_ended = tasks.shutdown(SHUTDOWN).await;
    platform.close().await;
    match tasks.failure() {
        Some(failure) => bail!("{failure}; apps go on running"),
        None if !all_ended => bail!(
            "not everything ended within {} s; apps go on running",
            SHUTDOWN.as_secs()
        ),
        None => Ok(()),
    }
}

/// `TABBIFY_RUNNER`, or `tabbify-runner` beside this program.
pub(crate) fn runner_program() -> anyhow::Result<PathBuf> {
    let path = match env::read(env::RUNNER) {
        Some(path) => PathBuf::from(path),
        None => {
            let here = std::env::current_exe().context("where this program is")?;
            here.with_file_name("tabbify-runner")
        }
    };
    if !path.is_file() {
        bail!(
            "{} is missing. It belongs beside tabbify; or set {}",
            path.display(),
            env::RUNNER
        );
    }
    Ok(path)
}

/// What a person reads after typing `tabbify up`.
fn announce(
    data: &DataDir,
    new: bool,
    server: &str,
    capabilities: &[Capability],
    signed_in: anyhow::Result<Option<PathBuf>>,
    joins: &str,
) {
    let shown = |capability: &Capability| match (capability.works, capability.detail.as_str()) {
        (true, _) => format!("{} ✓", capability.runtime),
        (false, "") => format!("{} ✗", capability.runtime),
        (false, detail) => format!("{} ✗ {detail}", capability.runtime),
    };
    let runtimes: Vec<String> = capabilities.iter().map(shown).collect();
    let age = if new { " (new)" } else { "" };
    let version = env!("CARGO_PKG_VERSION");
    let tcli = match signed_in {
        Ok(Some(_)) => "tcli on this machine is signed in".to_owned(),
        Ok(None) => "tcli is not signed in: HOME is not set".to_owned(),
        Err(error) => format!("tcli is not signed in: {error:#}"),
    };
    let text = format!(
        "tabbify {version} · {}{age} · {}\n{server} · {tcli}\n{joins}\nNext: tcli init && tcli push\n",
        home_as_tilde(data.path()),
        runtimes.join(" · "),
    );
    // A reader that has gone away is no reason to end a platform.
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        tracing::warn!(%error, server, "nobody reads standard output");
    }
}

/// Where other machines come to this platform.
fn joins(coordinator: &Record) -> String {
    match coordinator.listen {
        Some(listen) => format!("Machines join at {listen}: tabbify invite <name>"),
        None => "No other machine can join: [coordinator] listen is not set".to_owned(),
    }
}

fn home_as_tilde(path: &Path) -> String {
    let home = env::read(env::HOME).map(PathBuf::from);
    match home.and_then(|home| path.strip_prefix(home).ok().map(Path::to_path_buf)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_machines_join() {
        let at = |listen: Option<&str>| {
            let listen = listen.map(|text| text.parse().unwrap());
            joins(&Record { listen })
        };
        let open = at(Some("0.0.0.0:8888"));
        assert_eq!(open, "Machines join at 0.0.0.0:8888: tabbify invite <name>");
        assert!(at(None).contains("[coordinator] listen"));
    }
}
