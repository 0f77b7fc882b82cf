//! Why a supervisor cannot do what it was asked to.

use std::io;
use std::path::PathBuf;

use tabbify_api::fold::FollowError;
use tabbify_api::log::AppendError;
use tabbify_api::mesh::ResolveError;
use tabbify_types::event::EventError;

/// Why a supervisor cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by it: `tabbify_supervisor::Error`"
)]
pub enum Error {
    /// A file or directory of ours does not obey.
    #[error("{} cannot be used", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another supervisor, or a `stop_all_runners`, works in this data directory.
    #[error("{} is in use by another supervisor", path.display())]
    InUse {
        /// The directory of the runners.
        path: PathBuf,
    },
    /// The runner program could not be started.
    #[error("the runner program {} could not be started", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The control socket of a runner does not do what it must.
    #[error("the runner in {} cannot be controlled: {detail}", path.display())]
    Control {
        /// The runner's directory.
        path: PathBuf,
        /// What it did.
        detail: String,
    },
    /// A runner did not end, not even when it was killed.
    #[error("the runner in {} does not end", path.display())]
    Immortal {
        /// The runner's directory.
        path: PathBuf,
    },
    /// Something of a dead runner's is left in a container engine.
    #[error("what the runner in {} left is not removed: {detail}", path.display())]
    Unclean {
        /// The runner's directory.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// Who holds the lock of a runner's directory is not known, so nobody can be stopped.
    #[error("who runs in {} is not known", path.display())]
    Unidentified {
        /// The runner's directory.
        path: PathBuf,
    },
    /// A spawn ticket cannot be signed.
    #[error("a spawn ticket cannot be signed")]
    Ticket(#[source] tabbify_token::TokenError),
    /// The platform does not say whether callers of an idle instance are sent to the doorbell.
    #[error("it is not known where callers of an idle instance are sent")]
    Door(#[source] ResolveError),
    /// Callers of an idle instance are not sent to the doorbell yet.
    #[error("callers of an idle instance are not sent to the doorbell yet")]
    NotTold,
    /// A report was refused.
    #[error("a report was refused")]
    Report(#[source] AppendError),
    /// A report cannot be written.
    #[error("a report cannot be written")]
    Event(#[source] EventError),
    /// The log cannot be followed.
    #[error("the orders for this host cannot be followed")]
    Follow(#[source] FollowError<EventError>),
}

impl Error {
    /// For `map_err`: the system's word on a path.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
