//! Why a runner cannot even begin. What goes wrong with the app later is a
//! [`Failure`](tabbify_api::runner::Failure), told to the supervisor.

use std::io;
use std::path::PathBuf;

/// Why a runner cannot begin.
#[expect(
    clippy::error_impl_error,
    reason = "the house style names a crate's error so: runner::Error"
)]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process lives in this directory.
    #[error("another runner lives in {0}")]
    Held(PathBuf),
    /// Standard input is the birth record, but cannot be written.
    #[error("{0} is open as standard input, and not for reading and writing")]
    LockReadOnly(PathBuf),
    /// The lock cannot be taken.
    #[error("locking {path}")]
    Lock {
        /// The birth record.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The birth record cannot be written.
    #[error("writing the birth record")]
    Birth(#[source] io::Error),
    /// The boot document cannot be read.
    #[error("reading {path}")]
    ReadBoot {
        /// The boot document.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The boot document is not one.
    #[error("{path} is not a boot document")]
    ParseBoot {
        /// The boot document.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The boot document's secret is not 32 bytes in base64url.
    #[error("the secret in {0} is not 32 bytes in base64url")]
    Secret(PathBuf),
    /// A coordinator that cannot be asked.
    #[error("the boot document has a coordinator, and no door to it")]
    NoDoor,
    /// The coordinator's socket is not one.
    #[error("{0} is not the path of a socket")]
    Socket(PathBuf),
    /// TLS cannot be spoken.
    #[error("preparing to ask the coordinator")]
    Door(#[source] tabbify_membership::TlsKeyError),
    /// The platform's root key cannot be one.
    #[error("preparing to believe the coordinator")]
    Coordinator(#[source] tabbify_membership::JoinFailed),
    /// The control socket cannot be made.
    #[error("making the control socket")]
    Control(#[source] io::Error),
    /// The mesh cannot be joined.
    #[error("joining the mesh")]
    Mesh(#[source] tabbify_mesh::MeshError),
    /// The app's log cannot be opened.
    #[error("opening the app's log in {path}")]
    Output {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The asynchronous runtime or its signal handlers cannot be had.
    #[error("preparing the process")]
    Process(#[source] io::Error),
}
