//! Version 1 of every event's data. Append-only: a changed event is a new version with an
//! upcaster, and these stay as they are.
//!
//! Unknown fields are ignored on reading, so that a later release may add optional ones.

use serde::{Deserialize, Serialize};

use crate::{
    AppId, AppName, AppUla, ByteSize, DeployId, Digest, Epoch, HostName, HostUla, InstanceId,
    InstanceUla, MeshKey, SigningKeyId, SlotId, Tenant, Timestamp, VerifyingKeyBytes,
    VersionNumber,
};

/// `platform`, key `platform`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformInitialized {
    /// Signs issuer keys and nothing else; pinned by every configuration and join token.
    pub root_key: VerifyingKeyBytes,
}

/// `platform.auth`, key = the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantCreated {
    /// The new tenant.
    pub tenant: Tenant,
}

/// `platform.auth`, key `issuer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerKeyRotated {
    /// The id under which tokens name the key.
    pub kid: SigningKeyId,
    /// The key.
    pub public: VerifyingKeyBytes,
    /// Base64url of the root key's signature over `tabbify-issuer-key-v1\0` and the 32 key bytes.
    pub signature: String,
}

/// `platform.auth`, key = the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRegistered {
    /// The subject of the user's tokens, such as `user:owner`.
    pub user: String,
    /// The tenant the user belongs to.
    pub tenant: Tenant,
    /// The key whose proofs sign the user in, if that is how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<VerifyingKeyBytes>,
}

/// `platform.auth`, key = the token's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenIssued {
    /// The token's id; the token itself is nowhere.
    pub jti: String,
    /// Its kind, such as `agent`.
    pub kind: String,
    /// Its subject.
    pub subject: String,
    /// When it ends.
    pub expires: Timestamp,
}

/// `platform.mesh.peers`, key = the network's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAllocated {
    /// The network's name; the first is `main`.
    pub network: String,
    /// Its number in host addresses.
    pub number: u16,
}

/// `platform.mesh.peers`, key = the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerJoined {
    /// The host's name.
    pub host: HostName,
    /// Its network.
    pub network: String,
    /// Its number in the network, never reused.
    pub index: u16,
    /// Its address, from the two numbers.
    pub address: HostUla,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Tags that its token claimed; these authorize.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// `platform.mesh.peers`, key = the address, so that `expect: none` refuses a second claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppAddressClaimed {
    /// The address.
    pub address: AppUla,
    /// The only app that may ever have it.
    pub app: AppId,
}

/// `platform.mesh.peers`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGranted {
    /// The app.
    pub app: AppId,
    /// Its tenant.
    pub tenant: Tenant,
    /// The slot it fills.
    pub slot: SlotId,
    /// Fences earlier holders of the slot.
    pub epoch: Epoch,
    /// The instance.
    pub instance: InstanceId,
    /// The key it made at spawn.
    pub key: MeshKey,
    /// The machine it runs on.
    pub host: HostName,
}

/// `platform.mesh.peers`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReleased {
    /// The app.
    pub app: AppId,
    /// The instance whose lease ended.
    pub instance: InstanceId,
}

/// What a machine has been seen to be able to do. Never a tag, never read by policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// A runtime, such as `wasm-http`.
    pub runtime: String,
    /// Whether a check of it worked.
    pub works: bool,
    /// What the check saw.
    #[serde(default)]
    pub detail: String,
}

/// `platform.supervisors`, key = the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorJoined {
    /// The machine.
    pub host: HostName,
    /// As checked.
    pub capabilities: Vec<Capability>,
}

/// Who may open an app without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Only callers with a token of the right scope.
    Private,
    /// Everybody.
    Public,
}

/// `tenant_*.apps`, key `name/<name>`, so that `expect: none` refuses a second claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppNameClaimed {
    /// The name.
    pub name: AppName,
    /// The app that has it.
    pub app: AppId,
}

/// `tenant_*.apps`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRegistered {
    /// The app.
    pub app: AppId,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its name, unique in the tenant.
    pub name: AppName,
    /// Its address.
    pub address: AppUla,
}

/// `tenant_*.apps`, key `versions/<app>`: its own, so that `expect` on the last revision decides
/// between two pushes and the events under the app's key do not disturb them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReserved {
    /// The app.
    pub app: AppId,
    /// The number that this upload has.
    pub version: VersionNumber,
}

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
    pub env: std::collections::BTreeMap<String, String>,
    /// How long a stopping instance may finish what it has begun, in milliseconds.
    pub stop_timeout_ms: u64,
    /// How long a starting instance may take until it answers, in milliseconds.
    pub healthy_within_ms: u64,
}

/// `tenant_*.apps`, key = the app. An immutable release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionPublished {
    /// The app.
    pub app: AppId,
    /// Its number.
    pub version: VersionNumber,
    /// Digest of `artifact.json`, which lists every file with size and digest.
    pub artifact: Digest,
    /// Digest of the uploaded `tabbify.toml`.
    pub config: Digest,
    /// Who may open the app while this version serves.
    pub access: Access,
    /// What an instance of it needs to run.
    pub run: RunConfig,
    /// Names of the secrets it needs, without versions.
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// `tenant_*.apps`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRequested {
    /// The app.
    pub app: AppId,
    /// This attempt; also the Operation's id.
    pub deploy: DeployId,
    /// The version to put into service.
    pub version: VersionNumber,
}

/// `tenant_*.apps`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploySuperseded {
    /// The app.
    pub app: AppId,
    /// The attempt that ends.
    pub deploy: DeployId,
    /// The newer attempt.
    pub by: DeployId,
}

/// `tenant_*.apps`, key = the app; copied to `platform.hosts.<host>` in the same batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppPlaced {
    /// The app.
    pub app: AppId,
    /// Its tenant.
    pub tenant: Tenant,
    /// The attempt that this belongs to.
    pub deploy: DeployId,
    /// The version to run.
    pub version: VersionNumber,
    /// The machine.
    pub host: HostName,
    /// The slot on it.
    pub slot: SlotId,
    /// Fences earlier holders of the slot.
    pub epoch: Epoch,
    /// The number of the new instance.
    pub instance: InstanceId,
    /// Digest of `artifact.json`.
    pub artifact: Digest,
    /// What it needs to run.
    pub run: RunConfig,
}

/// Which instance of which app an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceRef {
    /// The app.
    pub app: AppId,
    /// The instance.
    pub instance: InstanceId,
}

/// `platform.hosts.<host>.reports`, then `tenant_*.apps`; key = the app. The intent to spawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStarting {
    /// Which instance.
    #[serde(flatten)]
    pub of: InstanceRef,
}

/// `platform.hosts.<host>.reports`, then `tenant_*.apps`; key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStarted {
    /// Which instance.
    #[serde(flatten)]
    pub of: InstanceRef,
    /// The app's address.
    pub app_ula: AppUla,
    /// The instance's own address.
    pub instance_ula: InstanceUla,
    /// The WireGuard key that the runner made.
    pub key: MeshKey,
}

/// `platform.hosts.<host>.reports`, then `tenant_*.apps`; key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppHealthy {
    /// Which instance.
    #[serde(flatten)]
    pub of: InstanceRef,
}

/// `tenant_*.apps`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficShifted {
    /// The app.
    pub app: AppId,
    /// The attempt that caused it.
    pub deploy: DeployId,
    /// The version that serves from here on.
    pub version: VersionNumber,
    /// Instances that get traffic.
    pub instances: Vec<InstanceId>,
    /// The one that the app's address means.
    pub primary: InstanceId,
}

/// `platform.hosts.<host>.reports`, then `tenant_*.apps`; key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDrained {
    /// Which instance.
    #[serde(flatten)]
    pub of: InstanceRef,
    /// Requests that it finished after it got no new ones.
    pub finished: u64,
    /// Requests that its deadline cut off.
    pub cut: u64,
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

/// `platform.hosts.<host>.reports`, then `tenant_*.apps`; key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppFailed {
    /// Which instance.
    #[serde(flatten)]
    pub of: InstanceRef,
    /// Why, for programs.
    pub reason: FailureReason,
    /// Why, for people: what happened and what to do. At most 4 KiB.
    pub detail: String,
    /// The last lines of its output, at most 8 KiB.
    #[serde(default)]
    pub log_tail: String,
}

/// `tenant_*.apps` and `platform.hosts.<host>`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStopRequested {
    /// Which instance.
    #[serde(flatten)]
    pub of: InstanceRef,
    /// How long it may finish what it has begun, in milliseconds.
    pub drain_ms: u64,
}

/// `platform.hosts.<host>.reports`, then `tenant_*.apps`; key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStopped {
    /// Which instance.
    #[serde(flatten)]
    pub of: InstanceRef,
}

/// How a deploy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeployOutcome {
    /// The version serves.
    Succeeded,
    /// It does not; what served before still does.
    Failed,
}

/// `tenant_*.apps`, key = the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployFinished {
    /// The app.
    pub app: AppId,
    /// The attempt.
    pub deploy: DeployId,
    /// How it ended.
    pub outcome: DeployOutcome,
    /// For a failure: why, in one sentence, and what still serves.
    #[serde(default)]
    pub detail: String,
}
