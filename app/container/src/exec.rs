//! A command in a running container, and what it uses.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::{ContainerStatsResponse, ExecConfig};
use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt as _;

use crate::Error;
use crate::container::Container;

/// LIMIT: bytes that are kept of each of a command's streams.
pub const OUTPUT_LEN_MAX: usize = 1024 * 1024;

/// What came of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Executed {
    /// Its standard output, up to [`OUTPUT_LEN_MAX`].
    pub stdout: Vec<u8>,
    /// Its standard error, up to the same.
    pub stderr: Vec<u8>,
    /// Whether more was printed than is kept.
    pub cut: bool,
    /// Its exit code.
    pub code: i64,
}

/// What a container uses, since its start where it is a sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory now, without what the kernel would give up, in bytes.
    pub memory: u64,
    /// Processor time.
    pub cpu: Duration,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Processes and threads now.
    pub pids: u64,
}

impl Container {
    /// Runs a command in it, as its user, to its end. Who wants it to end sooner ends the container: engines
    /// cannot take a command back.
    ///
    /// # Errors
    /// Those of a call; a command that is not there is [`Error::Program`].
    pub async fn exec(&self, command: &[String]) -> Result<Executed, Error> {
        let docker = &self.engine.docker;
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.to_vec()),
            ..ExecConfig::default()
        };
        let made = docker.create_exec(&self.id, config).await;
        let id = made.map_err(Error::call("making a command"))?.id;
        let started = docker.start_exec(&id, None).await;
        let started = started.map_err(Error::call("starting a command"))?;
        let mut executed = Executed::default();
        if let StartExecResults::Attached { mut output, .. } = started {
            while let Some(piece) = output.next().await {
                match piece.map_err(Error::call("passing on what a command prints"))? {
                    LogOutput::StdErr { message } => {
                        executed.cut |= append(&mut executed.stderr, &message);
                    }
                    LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        executed.cut |= append(&mut executed.stdout, &message);
                    }
                    LogOutput::StdIn { .. } => {}
                }
            }
        }
        let inspected = docker.inspect_exec(&id).await;
        let inspected = inspected.map_err(Error::call("saying how a command ended"))?;
        executed.code = inspected.exit_code.ok_or(Error::Answer("an exit code"))?;
        Ok(executed)
    }

    /// What it uses.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let options = StatsOptionsBuilder::default()
            .stream(false)
            .one_shot(true)
            .build();
        let mut said = std::pin::pin!(self.engine.docker.stats(&self.id, Some(options)));
        let said = said.next().await.ok_or(Error::Answer("statistics"))?;
        Ok(usage(&said.map_err(Error::call("giving statistics"))?))
    }
}

/// Keeps what fits; whether something did not.
fn append(kept: &mut Vec<u8>, more: &[u8]) -> bool {
    let fits = more.len().min(OUTPUT_LEN_MAX - kept.len());
    kept.extend_from_slice(&more[..fits]);
    fits < more.len()
}

fn usage(said: &ContainerStatsResponse) -> Usage {
    let memory = said.memory_stats.as_ref();
    let counted = |name: &str| memory?.stats.as_ref()?.get(name).copied();
    // Pages of files that nobody maps: the names of the first and the second version of control groups.
    let cache = counted("total_inactive_file").or_else(|| counted("inactive_file"));
    let used = memory.and_then(|memory| memory.usage).unwrap_or_default();
    let cpu = said
        .cpu_stats
        .as_ref()
        .and_then(|cpu| cpu.cpu_usage.as_ref());
    let networks = said.networks.iter().flat_map(|networks| networks.values());
    let sum = |(received, sent): (u64, u64), network: &bollard::models::ContainerNetworkStats| {
        (
            received + network.rx_bytes.unwrap_or_default(),
            sent + network.tx_bytes.unwrap_or_default(),
        )
    };
    let (received, sent) = networks.fold((0, 0), sum);
    Usage {
        memory: used.saturating_sub(cache.unwrap_or_default()),
        cpu: Duration::from_nanos(cpu.and_then(|cpu| cpu.total_usage).unwrap_or_default()),
        received,
        sent,
        pids: said
            .pids_stats
            .as_ref()
            .and_then(|pids| pids.current)
            .unwrap_or_default(),
    }
}
