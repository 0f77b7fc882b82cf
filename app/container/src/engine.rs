//! The engine: how it is reached, and what it is able to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::models::SystemInfoCgroupDriverEnum;
use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::net::UnixStream;

use crate::Error;

/// Where an engine listens unless something else is said.
pub const DEFAULT_ADDRESS: &str = "unix:///var/run/docker.sock";
/// LIMIT: how long the engine may take to begin an answer. It stops a container before it answers that.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// LIMIT: how long a socket may take to be accepted, and the engine to say what it is.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// An engine that has answered, and is able to do what is asked of it here. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) docker: Docker,
    socket: PathBuf,
    about: About,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its version.
    pub version: String,
    /// Who makes its control groups: `cgroupfs` or `systemd`.
    pub cgroups: String,
    /// The machine's architecture as images call it: `amd64`.
    pub architecture: &'static str,
}

impl Engine {
    /// Connects to the engine at `address`, `unix:///…`; without, to the usual socket.
    ///
    /// # Errors
    /// Why no containers can be run here.
    pub async fn connect(address: Option<&str>) -> Result<Self, Error> {
        let address = address.unwrap_or(DEFAULT_ADDRESS);
        let path = address.strip_prefix("unix://").map(Path::new);
        let Some(socket) = path.filter(|path| path.is_absolute()) else {
            return Err(Error::Address(address.to_owned()));
        };
        knock(socket).await?;
        let seconds = ANSWER_WITHIN.as_secs();
        let docker = Docker::connect_with_unix(address, seconds, API_DEFAULT_VERSION)
            .map_err(Error::call("connecting"))?;
        let hello = async {
            let docker = docker
                .negotiate_version()
                .await
                .map_err(Error::call("saying its version"))?;
            let about = About::of(&docker).await?;
            Ok::<_, Error>((docker, about))
        };
        let said = tokio::time::timeout(HELLO_WITHIN, hello).await;
        let (docker, about) = said.map_err(|_| Error::Late("saying what it is"))??;
        Ok(Self {
            docker,
            socket: socket.to_owned(),
            about,
        })
    }

    /// What it says of itself.
    #[must_use]
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// Tells apart what the client would call one error.
async fn knock(socket: &Path) -> Result<(), Error> {
    let connected = tokio::time::timeout(HELLO_WITHIN, UnixStream::connect(socket)).await;
    let error = match connected {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error,
        Err(_) => io::ErrorKind::TimedOut.into(),
    };
    Err(match error.kind() {
        io::ErrorKind::NotFound => Error::Missing(socket.to_owned()),
        io::ErrorKind::PermissionDenied => Error::Denied(socket.to_owned()),
        _ => Error::Silent {
            socket: socket.to_owned(),
            source: error,
        },
    })
}

impl About {
    async fn of(docker: &Docker) -> Result<Self, Error> {
        let info = docker
            .info()
            .await
            .map_err(Error::call("saying what it is"))?;
        let limits = [
            ("memory", info.memory_limit),
            ("processor time", info.cpu_cfs_quota),
            ("processes", info.pids_limit),
        ];
        let no_groups = info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::NONE);
        if let Some((what, _)) = limits
            .iter()
            .find(|(_, can)| no_groups || *can != Some(true))
        {
            return Err(Error::Unlimited(what));
        }
        let driver = info.cgroup_driver.map(|driver| driver.to_string());
        let machine = info.architecture.unwrap_or_default();
        Ok(Self {
            version: info.server_version.unwrap_or_default(),
            cgroups: driver.unwrap_or_default(),
            architecture: architecture(&machine).ok_or(Error::Platform(machine))?,
        })
    }
}

/// What images call a machine that its kernel calls `machine`.
fn architecture(machine: &str) -> Option<&'static str> {
    Some(match machine {
        "x86_64" | "amd64" => "amd64",
        "aarch64" | "arm64" => "arm64",
        "riscv64" => "riscv64",
        "s390x" => "s390x",
        "ppc64le" => "ppc64le",
        _ => return None,
    })
}
