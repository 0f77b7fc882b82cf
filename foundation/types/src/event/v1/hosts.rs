//! What passes between the coordinator and a host: how an instance runs, which one it is, and why
//! one does not run. `platform.hosts.<host>` has copies of what that host must do, its `.reports`
//! what it says happened; the types of both stand with the tenant's own events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AppId, ByteSize, InstanceId};

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
}
