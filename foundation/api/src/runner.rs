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
//!
//! A runner that has a coordinator ([`Boot::coordinator`]) begins in [`StateName::Unleased`]. Whoever is its
//! supervisor then gives it a spawn ticket ([`Request::Spawn`]), which never touches a disk; the runner
//! exchanges it for the lease of the key that it made. A ticket that did not count puts it back into
//! `Unleased`: a supervisor that died in between costs nothing, for the next one gives another ticket.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::{FailureReason, InstanceRef, RunConfig};
use tabbify_types::{
    AppName, DeployId, Digest, Epoch, MeshKey, SecretName, SecretVersion, SlotId, Tenant,
    Timestamp, VerifyingKeyBytes, VersionNumber,
};

use crate::coordinator::{EndorsedKey, Helpers, Spawn};
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
    /// Where the artifact is: an object store, such as `file:///var/lib/tabbify/objects`, or a service of
    /// the platform over the runner's own mesh, such as `mesh:[fd5a:1f00:1:1::1]:5000`.
    pub store: String,
    /// Where the vault is, over the runner's own mesh. Without, an app that names secrets does not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<SocketAddrV6>,
    /// Directory for the app's output: the runner writes `<instance>.ndjson` there.
    pub logs: PathBuf,
    /// Directory for compiled code.
    pub cache: PathBuf,
    /// Directory of the machine's volumes: an app's is `<app>/` in it. Without, no app that has one starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<PathBuf>,
    /// The container engine's socket, `unix:///run/user/1000/docker.sock`; without, the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// What the machine makes microVMs of; without, none can be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microvms: Option<MicroVms>,
    /// Where the runner's WireGuard socket binds; port 0 picks one.
    pub underlay: SocketAddr,
    /// Who may call it; further peers come by [`Request::SetPeers`]. With a coordinator they count while
    /// it cannot be reached.
    pub peers: Vec<PeerRecord>,
    /// Where the runner gets its lease, and learns who calls it; without, `peers` is all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorAt>,
    /// Its instance was idle and is woken: while it has no lease of its own it is reached through its machine's
    /// doorbell ([`Request::Door`]), and what can be started without asking anybody is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub woken: bool,
    /// 32 random bytes in base64url: proves both sides of the control socket to each other.
    pub secret: String,
}

/// What a machine makes microVMs of: files of its own, each by an absolute path. The runner program is asked with
/// this, as JSON, whether they do (`--probe-microvms`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MicroVms {
    /// The kernel of the guests: an uncompressed `vmlinux`, or a `bzImage`.
    pub kernel: PathBuf,
    /// Its modules, `lib/modules/<release>` of the kernel's own package; none if it has built in what guests need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<PathBuf>,
    /// The guests' first process, `tabbify-guest-init`.
    pub init: PathBuf,
    /// The program that runs them; without, the usual one by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<PathBuf>,
    /// Who executes the guests' instructions.
    #[serde(default)]
    pub acceleration: Acceleration,
}

/// Who executes the instructions of a microVM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// The processor if a guest has been seen to boot on it, else a program.
    #[default]
    Auto,
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// A program: slower, and everywhere.
    Tcg,
}

/// The coordinator, as a machine tells its runners. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorAt {
    /// Its doors, best first; several are coordinators on one log, or ways to one.
    pub doors: Vec<DoorAt>,
    /// The platform's root key.
    pub root: VerifyingKeyBytes,
    /// The issuer keys that are known; newer ones are asked for.
    pub issuers: Vec<EndorsedKey>,
    /// How long a lease that has ended may be used while no coordinator can be reached, in milliseconds.
    pub outage_grace_ms: u64,
    /// Relays and STUN servers, with their addresses filled in.
    #[serde(default)]
    pub helpers: Helpers,
    /// Whether to ask the NAT for a port.
    #[serde(default)]
    pub ask_nat: bool,
}

/// A way to a coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoorAt {
    /// Where it listens.
    pub at: Place,
    /// The digest of its TLS key.
    pub pin: Digest,
}

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A unix socket of this machine.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Where the coordinator is now: a supervisor that adopts a runner says it, since the place may be another
    /// than the one in the boot document. Only its doors count; the platform stays the same.
    SetCoordinator {
        /// Where.
        at: CoordinatorAt,
    },
    /// To a runner in [`StateName::Unleased`]: exchange this for your lease. It is in
    /// [`StateName::Starting`] when it answers.
    Spawn(Spawn),
    /// Take no new connections; finish what has begun; answer when done or at the deadline.
    Drain {
        /// Milliseconds from now.
        deadline_ms: u64,
    },
    /// As [`Request::Drain`], but only in [`StateName::Idle`]: a runner that has something to do again refuses,
    /// and goes on.
    Sleep {
        /// Milliseconds from now.
        deadline_ms: u64,
    },
    /// Serve this connection: after [`Answer::Done`], what follows on the socket, both ways, are the bytes of a
    /// caller's connection, which the machine's doorbell has let in. It is answered once the app can be reached,
    /// and refused if it will not be.
    Door(Visitor),
    /// End, now. Answers before it does.
    Stop,
}

/// Who has come to an instance through its machine's doorbell, as the mesh has proven it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Visitor {
    /// The port of the app that was dialed.
    pub port: u16,
    /// The caller's key.
    pub peer: MeshKey,
    /// The caller's inner address and port.
    pub remote: SocketAddrV6,
    /// Whether the platform calls it a public edge.
    pub is_node: bool,
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
    /// To [`Request::Drain`] and [`Request::Sleep`].
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
    /// Has made its key, and waits for a spawn ticket.
    Unleased,
    /// Getting its lease, fetching, compiling.
    Starting,
    /// Answers on its addresses.
    Ready,
    /// The same, and has had nothing to do for as long as its version says
    /// ([`RunConfig::idle_after_ms`]): its supervisor may end it until the next request.
    Idle,
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
    /// The secrets that the app got, with the versions of their values; empty until it has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretVersion>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_crosses_the_socket_and_is_not_shown() {
        let spawn = Spawn {
            certificate: "sekrit1".to_owned(),
            ticket: "sekrit2".to_owned(),
        };
        let request = Request::Spawn(spawn);
        assert!(!format!("{request:?}").contains("sekrit"));
        let text = serde_json::to_string(&request).unwrap();
        let expected = r#"{"request":"spawn","certificate":"sekrit1","ticket":"sekrit2"}"#;
        assert_eq!(text, expected);
        assert!(matches!(
            serde_json::from_str(&text).unwrap(),
            Request::Spawn(spawn) if spawn.ticket == "sekrit2"
        ));
        for bad in [
            r#"{"request":"spawn","certificate":"a"}"#,
            r#"{"request":"spawn","certificate":"a","ticket":"b","more":1}"#,
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn where_the_coordinator_is() {
        let at = CoordinatorAt {
            doors: vec![DoorAt {
                at: Place::Unix("/run/tabbify/coordinator.sock".into()),
                pin: Digest::of(b"tls"),
            }],
            root: VerifyingKeyBytes([7; 32]),
            issuers: Vec::new(),
            outage_grace_ms: 1,
            helpers: Helpers::default(),
            ask_nat: false,
        };
        let mut json = serde_json::to_value(&at).unwrap();
        assert_eq!(
            serde_json::from_value::<CoordinatorAt>(json.clone()).unwrap(),
            at
        );
        json["doors"][0]["at"] = serde_json::json!({"tcp": "192.0.2.1:8888"});
        let elsewhere: CoordinatorAt = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(elsewhere.doors[0].at.to_string(), "192.0.2.1:8888");
        json["key"] = serde_json::json!("sekrit");
        assert!(serde_json::from_value::<CoordinatorAt>(json).is_err());
    }
}
