//! Why the engine did not do what it was asked to, in words that name the machine's next step.

use std::io;
use std::path::PathBuf;

use crate::archive::ArchiveError;

/// Why there is no engine, no image or no container.
#[expect(
    clippy::error_impl_error,
    reason = "the house style names a crate's error so: container::Error"
)]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configured address is none of a unix socket.
    #[error("{0:?} is not the address of a container engine. Set DOCKER_HOST to unix:///…")]
    Address(String),
    /// There is no socket.
    #[error("{0}: no such file: no container engine runs here. Install one (Debian: docker.io)")]
    Missing(PathBuf),
    /// The socket is there, and not ours to use.
    #[error(
        "{0}, permission denied. Add the platform's user to the socket's group, or run as root"
    )]
    Denied(PathBuf),
    /// Nobody answers at the socket.
    #[error("{socket}: the container engine does not answer")]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The engine cannot keep a limit that every app has.
    #[error(
        "the container engine cannot limit {0} (rootless on cgroup v1?). Run it as root, or on cgroup v2"
    )]
    Unlimited(&'static str),
    /// The engine's machine is none that we know the images of.
    #[error("the container engine runs on {0:?}, which images have no name for")]
    Platform(String),
    /// The file of the image is unusable.
    #[error(transparent)]
    Image(#[from] ArchiveError),
    /// The engine does not take the image.
    #[error("the container engine refuses the image")]
    Load(#[source] Box<bollard::errors::Error>),
    /// The engine does not take a container or network, or fails at it.
    #[error("the container engine fails at {doing}")]
    Call {
        /// What it was to do.
        doing: &'static str,
        /// What it said.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// The engine says nothing in time.
    #[error("the container engine does not answer in time at {0}")]
    Late(&'static str),
    /// The engine's answer lacks what it must have.
    #[error("the container engine's answer lacks {0}")]
    Answer(&'static str),
    /// The program of the image cannot be started.
    #[error("the image's program cannot be started: {0}")]
    Program(String),
    /// Every network that we may make is taken.
    #[error(
        "all of 10.213.0.0/16 is taken: no network is left for a container. Remove unused ones: docker network prune"
    )]
    Networks,
    /// The engine's networks are elsewhere.
    #[error(
        "the container engine keeps its networks out of this machine's (rootless, or in a machine of its \
         own), so that no app in it can be reached. Run an engine as root"
    )]
    Elsewhere,
    /// Containers would reach the machine's own services.
    #[error(
        "this machine's own ports cannot be closed to containers: {0}. Install iptables, and run the \
         platform as root"
    )]
    Open(String),
}

impl Error {
    pub(crate) fn call(doing: &'static str) -> impl FnOnce(bollard::errors::Error) -> Self {
        move |source| match source {
            bollard::errors::Error::RequestTimeoutError => Self::Late(doing),
            source => Self::Call {
                doing,
                source: Box::new(source),
            },
        }
    }

    /// Whether the image is at fault, and no machine can run it.
    #[must_use]
    pub const fn is_image(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Load(_))
    }
}

/// Whether the engine says that it knows no such thing.
pub(crate) fn is_missing(error: &bollard::errors::Error) -> bool {
    status(error) == Some(404)
}

/// Whether the engine says that something is in use, or done already.
pub(crate) fn is_conflict(error: &bollard::errors::Error) -> bool {
    status(error) == Some(409)
}

/// The engine's refusal: an answer, and not the lack of one.
pub(crate) fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
