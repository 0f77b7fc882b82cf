//! A container: made with its network, watched to its end, removed with all that was made for it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use bollard::models::{ContainerState, ContainerStateStatusEnum as Status};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::enter::bring;
use crate::error::{is_conflict, is_missing, status};
use crate::network::Network;
use crate::{Archive, Engine, Error, Spec};

/// LIMIT: how often an image that was removed meanwhile is loaded again.
const LOADS_MAX: usize = 3;
/// Pauses between questions to an engine that does not answer.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// LIMIT: the same.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// LIMIT: how long an engine may be away while nothing shows that the container lives.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// A container that was started.
#[derive(Debug, Clone)]
pub struct Container {
    pub(crate) engine: Engine,
    pub(crate) id: String,
    name: String,
    address: Ipv4Addr,
    host: Ipv4Addr,
    pid: Option<i32>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Its exit code; 128 and the signal's number for one that a signal ended.
    pub code: i64,
    /// Whether it, or a process in it, was killed for the memory that it wanted.
    pub out_of_memory: bool,
    /// How long it ran.
    pub ran_for: Duration,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signal = self.code.checked_sub(128).and_then(signal_name);
        match signal {
            Some(signal) => write!(f, "was ended by {signal}")?,
            None => write!(f, "ended with exit code {}", self.code)?,
        }
        write!(f, ", {} after start", seconds(self.ran_for))
    }
}

/// Whole seconds from one on, and tenths below.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{:.1} s", duration.as_secs_f64()),
        whole => format!("{whole} s"),
    }
}

/// The signals that end processes, by number, the same on every Linux we run on.
fn signal_name(number: i64) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return None,
    })
}

impl Engine {
    /// Loads the image, makes a container of it with a network of its own, and starts it. If that fails,
    /// nothing is left of it; if it is dropped in the middle, [`Engine::reap`] finds what is.
    ///
    /// # Errors
    /// Why not.
    pub async fn start(&self, archive: &Archive, spec: &Spec) -> Result<Container, Error> {
        let network = self.network(spec).await?;
        self.start_in(network, archive, spec).await
    }

    /// The same in a network that was made for this `spec`, but for its variables. The network goes as well if
    /// it fails.
    ///
    /// # Errors
    /// Why not.
    pub async fn start_in(
        &self,
        network: Network,
        archive: &Archive,
        spec: &Spec,
    ) -> Result<Container, Error> {
        let (name, host) = (network.name.clone(), network.host());
        let started = async {
            runnable(archive, spec)?;
            let id = self.create(archive, spec).await?;
            let pipe = match &spec.enter {
                Some(enter) => Some((self.pipe_to(&id).await?, enter)),
                None => None,
            };
            self.docker
                .start_container(&id, None)
                .await
                .map_err(refused)?;
            if let Some((pipe, enter)) = pipe {
                bring(pipe, enter.whole()).await?;
            }
            self.inspected(id, name.clone(), host).await
        };
        match started.await {
            Ok(container) => Ok(container),
            Err(error) => {
                // What made it fail matters more than what is left, which the next reaping finds.
                let removed = match self.remove_parts(&name, &name).await {
                    Ok(()) => self.remove_unused_images().await.map(drop),
                    Err(error) => Err(error),
                };
                if let Err(error) = removed {
                    tracing::warn!(%error, name, "a container that failed to start is left");
                }
                Err(error)
            }
        }
    }

    async fn create(&self, archive: &Archive, spec: &Spec) -> Result<String, Error> {
        let mut loads = 0;
        loop {
            let image = self.load(archive).await?;
            loads += 1;
            let options = CreateContainerOptionsBuilder::default()
                .name(&spec.name())
                .build();
            let body = spec.body(&image, &archive.facts);
            match self.docker.create_container(Some(options), body).await {
                Ok(created) => return Ok(created.id),
                // Somebody found it unused, between the two.
                Err(error) if is_missing(&error) && loads < LOADS_MAX => {}
                Err(error) => return Err(refused(error)),
            }
        }
    }

    async fn inspected(
        &self,
        id: String,
        name: String,
        host: Ipv4Addr,
    ) -> Result<Container, Error> {
        let inspected = self
            .docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await
            .map_err(Error::call("looking at a container"))?;
        let networks = inspected.network_settings.and_then(|all| all.networks);
        let endpoint = networks.and_then(|mut networks| networks.remove(&name));
        let address = endpoint.and_then(|endpoint| endpoint.ip_address);
        let parsed: Option<Ipv4Addr> = address.and_then(|text| text.parse().ok());
        let pid = inspected.state.and_then(|state| state.pid);
        let pid = pid.and_then(|pid| i32::try_from(pid).ok());
        // One that has ended by now has no address any more.
        let address = parsed.unwrap_or_else(|| Ipv4Addr::from(u32::from(host) + 1));
        Ok(Container {
            engine: self.clone(),
            id,
            name,
            address,
            host,
            pid: pid.filter(|pid| *pid > 0),
        })
    }

    /// Removes a container, running or not, with its anonymous volumes, and then its network.
    pub(crate) async fn remove_parts(&self, container: &str, network: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let removed = self.docker.remove_container(container, Some(options)).await;
        match removed {
            Ok(()) => {}
            Err(error) if is_missing(&error) => {}
            // Somebody else is removing it.
            Err(error) if is_conflict(&error) => self.wait_removed(container).await,
            Err(error) => return Err(Error::call("removing a container")(error)),
        }
        self.remove_network(network).await.map(drop)
    }

    async fn wait_removed(&self, container: &str) {
        let options = WaitContainerOptionsBuilder::default()
            .condition("removed")
            .build();
        let mut gone = std::pin::pin!(self.docker.wait_container(container, Some(options)));
        // However it ends, it is gone, or the network's removal says that it is not.
        let _ = tokio::time::timeout(AWAY_MAX, gone.next()).await;
    }
}

fn runnable(archive: &Archive, spec: &Spec) -> Result<(), Error> {
    if spec.command.is_empty() && archive.facts.command.is_empty() {
        return Err(crate::ArchiveError::NoCommand.into());
    }
    Ok(())
}

/// An engine refuses a program that is not there, or not one, with 400, in words that name it.
fn refused(error: bollard::errors::Error) -> Error {
    if let bollard::errors::Error::DockerResponseServerError { message, .. } = &error
        && matches!(status(&error), Some(400 | 404))
        && (message.contains("OCI runtime") || message.contains("runc"))
    {
        let why = message
            .rsplit_once("process: ")
            .map_or(message.as_str(), |(_, why)| why);
        return Error::Program(why.trim().trim_end_matches(": unknown").to_owned());
    }
    Error::call("starting a container")(error)
}

impl Container {
    /// Where its ports are.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The machine's address on its network.
    #[must_use]
    pub const fn host(&self) -> Ipv4Addr {
        self.host
    }

    /// The process id of its first process, as the engine's machine counts; `None` if it had ended before
    /// it was looked at.
    #[must_use]
    pub const fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns when it has ended. An engine that is restarted meanwhile is waited for: some take their
    /// containers along, others leave them running.
    ///
    /// # Errors
    /// If the engine has lost it, or stays away and nothing shows that the container still lives.
    pub async fn wait(&self) -> Result<End, Error> {
        let mut pause = PAUSE_MIN;
        let mut away_since: Option<Instant> = None;
        loop {
            match self.state().await {
                Ok(state) if has_ended(&state) => return Ok(end(&state)),
                Ok(_) => {
                    (pause, away_since) = (PAUSE_MIN, None);
                    self.watch().await;
                }
                Err(error) if is_missing(&error) => {
                    return Err(Error::call("finding the container that it ran")(error));
                }
                Err(error) => {
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > AWAY_MAX && !self.lives() {
                        return Err(Error::call("answering")(error));
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Returns when the engine says that it has ended, or says nothing any more.
    async fn watch(&self) {
        let options = WaitContainerOptionsBuilder::default()
            .condition("not-running")
            .build();
        let mut ended = std::pin::pin!(self.engine.docker.wait_container(&self.id, Some(options)));
        // An exit code other than 0 is an error to the client; the state says all of it.
        let _ = ended.next().await;
    }

    /// Whether its first process is there, as far as this machine can tell.
    pub(crate) fn lives(&self) -> bool {
        self.pid
            .is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
    }

    async fn state(&self) -> Result<ContainerState, bollard::errors::Error> {
        let docker = &self.engine.docker;
        let inspected = docker
            .inspect_container(&self.id, None::<InspectContainerOptions>)
            .await?;
        Ok(inspected.state.unwrap_or_default())
    }

    /// Whether it is running.
    pub(crate) async fn is_running(&self) -> Result<bool, bollard::errors::Error> {
        Ok(!has_ended(&self.state().await?))
    }

    /// Asks it to end with its image's stop signal, and kills it after `grace`.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn stop(&self, grace: Duration) -> Result<(), Error> {
        let docker = &self.engine.docker;
        let seconds = i32::try_from(grace.as_secs().max(1)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        // The engine answers when it has stopped: its own patience ends before ours does.
        let patience = grace + AWAY_MAX;
        let stopping = docker.clone().with_timeout(patience);
        match stopping.stop_container(&self.id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if is_missing(&error) || status(&error) == Some(304) => Ok(()),
            Err(error) => Err(Error::call("stopping a container")(error)),
        }
    }

    /// Kills it.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn kill(&self) -> Result<(), Error> {
        let options = KillContainerOptionsBuilder::default()
            .signal("KILL")
            .build();
        match self
            .engine
            .docker
            .kill_container(&self.id, Some(options))
            .await
        {
            Ok(()) => Ok(()),
            Err(error) if is_missing(&error) || is_conflict(&error) => Ok(()),
            Err(error) => Err(Error::call("killing a container")(error)),
        }
    }

    /// Removes it, running or not, its volumes, its network, and images that nobody uses now.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn remove(self) -> Result<(), Error> {
        self.engine.remove_parts(&self.id, &self.name).await?;
        self.engine.remove_unused_images().await.map(drop)
    }
}

fn has_ended(state: &ContainerState) -> bool {
    matches!(state.status, Some(Status::EXITED | Status::DEAD)) || state.running == Some(false)
}

fn end(state: &ContainerState) -> End {
    let time = |text: &Option<String>| text.as_deref()?.parse::<jiff::Timestamp>().ok();
    let ran_for = time(&state.started_at)
        .zip(time(&state.finished_at))
        .and_then(|(from, to)| Duration::try_from(to.duration_since(from)).ok());
    End {
        code: state.exit_code.unwrap_or(-1),
        out_of_memory: state.oom_killed == Some(true),
        ran_for: ran_for.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_words() {
        let check = |code: i64, millis: u64, expected: &str| {
            let end = End {
                code,
                out_of_memory: false,
                ran_for: Duration::from_millis(millis),
            };
            assert_eq!(end.to_string(), expected);
        };
        check(0, 3_400, "ended with exit code 0, 3 s after start");
        check(3, 400, "ended with exit code 3, 0.4 s after start");
        check(139, 61_000, "was ended by SIGSEGV, 61 s after start");
        check(255, 1_000, "ended with exit code 255, 1 s after start");
        check(
            i64::MIN,
            0,
            "ended with exit code -9223372036854775808, 0.0 s after start",
        );
    }
}
