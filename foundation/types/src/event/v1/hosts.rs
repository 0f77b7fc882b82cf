//! What passes between the coordinator and a host: how an instance runs, which one it is, and why
//! one does not run. `platform.hosts.<host>` has copies of what that host must do, its `.reports`
//! what it says happened; the types of both stand with the tenant's own events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AppId, ByteSize, HostName, InstanceId, SecretName};

/// Runtimes, by their names in `tabbify.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// A component with `wasi:http/incoming-handler`.
    WasmHttp,
    /// A container.
    Docker,
    /// A microVM.
    Firecracker,
}

/// What an instance needs to run: the resolved manifest of one target, as the runner gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunConfig {
    /// The runtime.
    pub runtime: RuntimeKind,
    /// The file of the artifact that is run, such as `app.wasm`.
    pub entry: String,
    /// The most memory that the app may use.
    pub memory: ByteSize,
    /// Plain environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How long a stopping instance may finish what it has begun, in milliseconds.
    pub stop_timeout_ms: u64,
    /// How long a starting instance may take until it answers, in milliseconds.
    pub healthy_within_ms: u64,
    /// How the image is run; `None` for a component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageConfig>,
    /// Variable → secret. Values are resolved when an instance starts, and never stand here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretUse>,
    /// Where it may connect to, as `[network] egress` has it; nowhere by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// How long it may have nothing to do before it is stopped, in milliseconds; the next request wakes it.
    /// Without, it runs until it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_after_ms: Option<u64>,
    /// What it keeps on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeUse>,
    /// Raw TCP: each is a port on its mesh address and, with the same number, in the app.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// The volume of an app, as its instances get it. It is one for the app on a machine, and outlives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Where the app sees it: an absolute path.
    pub mount: String,
    /// The most that it may hold.
    pub size: ByteSize,
    /// How often it is copied to the object store; without, only by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<SnapshotEvery>,
}

/// How often a volume is copied to the object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotEvery {
    /// Every hour.
    Hour,
    /// Every day.
    Day,
    /// Every week.
    Week,
}

/// How an OCI image is run, in a container or in a microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// A program and its arguments, instead of the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Where it answers HTTP.
    pub port: ImagePort,
    /// A path that answers 2xx once it is healthy; without it, accepting a connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_path: Option<String>,
    /// The most processor time that it may use, in thousandths of a processor.
    pub cpus_milli: u32,
}

/// Where an image answers HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagePort {
    /// Here; also in `$PORT`.
    Number(u16),
    /// Where its `EXPOSE` says, else on 8080.
    OfImage,
    /// Nowhere: a worker.
    None,
}

/// A secret that an app uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// Its name in the tenant.
    pub name: SecretName,
    /// How the app gets it.
    #[serde(default)]
    pub delivery: SecretDelivery,
}

/// How an app gets a secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretDelivery {
    /// As the value of the variable.
    #[default]
    Env,
    /// As a file whose path is in `<variable>_FILE`.
    File,
}

/// Where the instances of a version may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// On which machines.
    #[serde(default)]
    pub on: Machines,
    /// Whether they have a volume. It stays where it was made, and they with it.
    #[serde(default)]
    pub volume: bool,
    /// How many run at once.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub replicas: u16,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            on: Machines::default(),
            volume: false,
            replicas: 1,
        }
    }
}

fn one() -> u16 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_one(replicas: &u16) -> bool {
    *replicas == 1
}

/// A further `[[deploy]]` block of a version: other machines, or another runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployTarget {
    /// What an instance needs to run there.
    pub run: RunConfig,
    /// Where its instances may run.
    pub placement: Placement,
}

/// Machines, as `[[deploy]] supervisor` names them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Machines {
    /// Any that can run it.
    #[default]
    Any,
    /// The one with this name.
    Name(HostName),
    /// Any whose token claims this tag.
    Tag(String),
}

/// Which instance of which app an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceRef {
    /// The app.
    pub app: AppId,
    /// The instance.
    pub instance: InstanceId,
}

/// Why an instance does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The artifact does not match its digests or is missing.
    Artifact,
    /// The entry is not a WebAssembly component.
    NotAComponent,
    /// The component does not export `wasi:http/incoming-handler`, or imports what is not there.
    WrongWorld,
    /// It did not answer in time.
    Unhealthy,
    /// Its process ended.
    Exited,
    /// The process could not be started.
    Spawn,
    /// The image cannot be run: damaged, for another architecture, or without a command.
    Image,
    /// What runs it is missing or refuses: no container engine, no kernel, no `/dev/kvm`.
    Runtime,
    /// A secret that it needs cannot be had.
    Secret,
    /// Its volume cannot be had, or is full.
    Volume,
    /// It was ended because it used more memory than it may.
    Memory,
}
