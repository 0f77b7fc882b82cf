//! A command in a running container, and what it uses.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::{ContainerStatsResponse, ExecConfig};
use bollard::query_parameters::StatsOptionsBuilder;
use bytes::Bytes;
use futures_util::StreamExt as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::container::Container;
use crate::enter::bring;
use crate::output::Stream;
use crate::{Engine, Enter, Error};

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

/// A command that runs in a container. Dropping it does not end the command: [`RunningHandle::kill`] does.
pub struct Running {
    engine: Engine,
    id: String,
    output: Pin<Box<dyn futures_util::Stream<Item = Piece> + Send>>,
}

type Piece = Result<LogOutput, bollard::errors::Error>;

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// A name for it, for whoever wants to end it while it is followed.
    #[must_use]
    pub fn handle(&self) -> RunningHandle {
        RunningHandle {
            engine: self.engine.clone(),
            id: self.id.clone(),
        }
    }

    /// Gives each piece of its output as it comes: it waits while `take` does. Its exit code.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn follow<F: Future<Output = ()>>(
        mut self,
        mut take: impl FnMut(Stream, Bytes) -> F,
    ) -> Result<i64, Error> {
        while let Some(piece) = self.output.next().await {
            match piece.map_err(Error::call("passing on what a command prints"))? {
                LogOutput::StdErr { message } => take(Stream::Stderr, message).await,
                LogOutput::StdOut { message } | LogOutput::Console { message } => {
                    take(Stream::Stdout, message).await;
                }
                LogOutput::StdIn { .. } => {}
            }
        }
        let inspected = self.engine.docker.inspect_exec(&self.id).await;
        let inspected = inspected.map_err(Error::call("saying how a command ended"))?;
        inspected.exit_code.ok_or(Error::Answer("an exit code"))
    }
}

/// Names a command that runs, or has run.
#[derive(Debug, Clone)]
pub struct RunningHandle {
    engine: Engine,
    id: String,
}

impl RunningHandle {
    /// Ends the command, if it still runs. Engines cannot, so it is done by its process id: who may ask an
    /// engine of this machine for containers is root on it anyway.
    pub async fn kill(&self) {
        let Some(pid) = self.pid().await else { return };
        // It may end at any moment.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        // A descriptor cannot come to mean another process. A number can, until it was opened: the engine is asked
        // once more.
        if self.pid().await != Some(pid) {
            return;
        }
        // It may have ended just now.
        if let Err(error) = pidfd_send_signal(&descriptor, Signal::KILL) {
            tracing::warn!(%error, "a command is not ended");
        }
    }

    /// Its process id, if it runs.
    async fn pid(&self) -> Option<Pid> {
        let inspected = self.engine.docker.inspect_exec(&self.id).await;
        let inspected = inspected.inspect_err(|error| {
            tracing::warn!(%error, "a command is not ended: the engine does not know it");
        });
        let running = inspected.ok().filter(|it| it.running == Some(true))?;
        Pid::from_raw(i32::try_from(running.pid?).ok()?)
    }
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
        let mut executed = Executed::default();
        let take = |stream: Stream, piece: Bytes| {
            executed.cut |= match stream {
                Stream::Stdout => append(&mut executed.stdout, &piece),
                Stream::Stderr => append(&mut executed.stderr, &piece),
            };
            std::future::ready(())
        };
        let running = self.start_command(command, None).await?;
        executed.code = running.follow(take).await?;
        Ok(executed)
    }

    /// Starts a command in it, with the secrets that its first process has.
    ///
    /// # Errors
    /// As [`Container::exec`].
    pub async fn start_command(
        &self,
        command: &[String],
        enter: Option<&Enter>,
    ) -> Result<Running, Error> {
        let docker = &self.engine.docker;
        let command = match enter {
            Some(_) => Enter::before(command),
            None => command.to_vec(),
        };
        let config = ExecConfig {
            attach_stdin: Some(enter.is_some()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command),
            ..ExecConfig::default()
        };
        let made = docker.create_exec(&self.id, config).await;
        let id = made.map_err(Error::call("making a command"))?.id;
        let started = docker.start_exec(&id, None).await;
        let started = started.map_err(Error::call("starting a command"))?;
        let StartExecResults::Attached { output, input } = started else {
            return Err(Error::Answer("a command's output"));
        };
        if let Some(enter) = enter {
            bring(input, enter.further()).await?;
        }
        Ok(Running {
            engine: self.engine.clone(),
            id,
            output,
        })
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
