//! Between a supervisor and a runner: the boot document, the files of a runner's directory, and the
//! control socket.
//!
//! ```text
//! <runners>/<app>/<instance>/     0700, made by the supervisor before it spawns
//!   boot.json      0600, this module's [`Boot`]; synced before the spawn: the intent on disk
//!   birth.json     the lock: taken by the supervisor before it forks, inherited by the runner as
//!                  descriptor 0, held for life. Locked ⇔ alive. The runner writes [`Birth`] into it
//!   control.sock   the control socket
//!   exit.json      [`ExitRecord`], written by the runner as its last act
//!   runner.log     the runner's own log (its standard output and error)
//! ```
//!
//! The control socket speaks one JSON object a line, a request and its answer in turn, at most
//! [`LINE_LEN_MAX`] bytes. The first request must be [`Request::Hello`]: both sides know
//! [`Boot::secret`], and the answer proves that this is the runner that was spawned.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::{FailureReason, InstanceRef, RunConfig};
use tabbify_types::{
    AppName, DeployId, Digest, Epoch, MeshKey, SlotId, Tenant, Timestamp, VersionNumber,
};

use crate::mesh::PeerRecord;

/// File name of [`Boot`].
pub const BOOT_FILE: &str = "boot.json";
/// File name of [`Birth`], which is also the lock.
pub const BIRTH_FILE: &str = "birth.json";
/// File name of the control socket.
pub const CONTROL_SOCKET: &str = "control.sock";
/// File name of [`ExitRecord`].
pub const EXIT_FILE: &str = "exit.json";
/// File name of the runner's own log.
pub const RUNNER_LOG: &str = "runner.log";
/// LIMIT: one message on the control socket, in bytes.
pub const LINE_LEN_MAX: usize = 64 * 1024;

/// All a runner is told. It reads nothing else: no environment, no flags but the file's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Which instance of which app this is.
    pub of: InstanceRef,
    /// The app's tenant.
    pub tenant: Tenant,
    /// The app's name, for logs.
    pub name: Option<AppName>,
    /// The attempt that it belongs to.
    pub deploy: DeployId,
    /// The version to run.
    pub version: VersionNumber,
    /// The slot it fills.
    pub slot: SlotId,
    /// Fences earlier holders of the slot.
    pub epoch: Epoch,
    /// Digest of `artifact.json`.
    pub artifact: Digest,
    /// What it needs to run.
    pub run: RunConfig,
    /// URL of the object store that holds the artifact, such as `file:///var/lib/tabbify/objects`.
    pub store: String,
    /// Directory for the app's output: the runner writes `<instance>.ndjson` there.
    pub logs: PathBuf,
    /// Directory for compiled code.
    pub cache: PathBuf,
    /// Where the runner's WireGuard socket binds; port 0 picks one.
    pub underlay: SocketAddr,
    /// Who may call it; further peers come by [`Request::SetPeers`].
    pub peers: Vec<PeerRecord>,
    /// 32 random bytes in base64url: proves both sides of the control socket to each other.
    pub secret: String,
}

/// What a runner writes about itself once it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// Which instance of which app it is.
    pub of: InstanceRef,
    /// Its process id.
    pub pid: u32,
    /// When it began.
    pub at: Timestamp,
}

/// A runner's last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Its exit code.
    pub code: i32,
    /// Why it ended, if it failed.
    pub failure: Option<Failure>,
    /// When.
    pub at: Timestamp,
}

/// Why a runner cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub reason: FailureReason,
    /// For people: what happened and what to do.
    pub detail: String,
}

/// What a supervisor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Proves the caller and asks for proof. `proof` is the keyed BLAKE3 (key = the secret) of
    /// `tabbify-control-caller-v1\0` and the 32 nonce bytes, in hex.
    Hello {
        /// 32 fresh random bytes in base64url.
        nonce: String,
        /// The caller's proof.
        proof: String,
    },
    /// How are you?
    Status,
    /// Answers as soon as the state is another than `seen`, or after 30 s.
    Wait {
        /// The state the caller knows.
        seen: StateName,
    },
    /// Replaces the list of peers that may call.
    SetPeers {
        /// The new list.
        peers: Vec<PeerRecord>,
    },
    /// Take no new connections; finish what has begun; answer when done or at the deadline.
    Drain {
        /// Milliseconds from now.
        deadline_ms: u64,
    },
    /// End, now. Answers before it does.
    Stop,
}

/// What a runner answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Hello`]: the keyed BLAKE3 of `tabbify-control-runner-v1\0` and the caller's
    /// nonce bytes, in hex.
    Hello {
        /// The runner's proof.
        proof: String,
    },
    /// To [`Request::Status`] and [`Request::Wait`].
    Status(Status),
    /// To [`Request::Drain`].
    Drained {
        /// Requests that ended well after it began.
        finished: u64,
        /// Requests that the deadline cut off.
        cut: u64,
    },
    /// To the rest.
    Done,
    /// The request cannot be served.
    Refused {
        /// Why.
        detail: String,
    },
}

/// A runner's state without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// Fetching, compiling, joining the mesh.
    Starting,
    /// Answers on its addresses.
    Ready,
    /// Finishes what it has begun.
    Draining,
    /// Cannot serve, and is about to end.
    Failed,
}

/// How a runner is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its state.
    pub state: StateName,
    /// Why, if it failed.
    pub failure: Option<Failure>,
    /// Which instance of which app it is.
    pub of: InstanceRef,
    /// Its process id.
    pub pid: u32,
    /// The WireGuard key that it made; there from the first answer on.
    pub key: MeshKey,
    /// Where its WireGuard socket is.
    pub underlay: SocketAddr,
    /// Requests being served.
    pub active: u64,
    /// Requests served since it began.
    pub total: u64,
}
