//! What the answers of the read model are made of.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tabbify_types::event::v1::{
    Access, ApprovalRequested, BuildFailed, Capability, RuntimeKind, Source, Standing,
};
use tabbify_types::{
    AppId, AppName, AppUla, BuildId, DeployId, Digest, Epoch, EventId, HostName, HostUla,
    InstanceId, MeshKey, Position, Rev, Segment, SlotId, Tenant, Timestamp, VersionNumber,
};

use crate::apps::OperationStatus;

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRow {
    /// Its id.
    pub app: AppId,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its name.
    pub name: AppName,
    /// Its address.
    pub address: AppUla,
    /// When it was registered.
    pub created: Timestamp,
    /// The newest number that an upload has taken.
    pub reserved: Option<VersionNumber>,
    /// The newest published version.
    pub latest: Option<VersionNumber>,
    /// The version that has the traffic, while an instance of it lives.
    pub serving: Option<VersionNumber>,
    /// The instance that the app's address means, while one that has traffic lives.
    pub primary: Option<InstanceId>,
    /// What the last instance that failed said, or why the app is unavailable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When it was destroyed, if it was; then only its history is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed: Option<Timestamp>,
}

/// An app with its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDetail {
    /// The app.
    pub app: AppRow,
    /// Its newest instances that have not been stopped, at most [`super::ROWS_MAX`], newest first.
    pub instances: Vec<InstanceRow>,
    /// Every event up to here is in this.
    pub position: Position,
}

/// What an instance was last seen to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It has a place.
    Placed,
    /// It is about to run.
    Starting,
    /// It runs.
    Started,
    /// It answers.
    Healthy,
    /// It gets no new work.
    Drained,
    /// It has gone to sleep until somebody asks for the app.
    Idle,
    /// It cannot run or died.
    Failed,
}

/// An instance that has not been stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// Its number.
    pub instance: InstanceId,
    /// The version it runs.
    pub version: VersionNumber,
    /// The deploy it belongs to.
    pub deploy: DeployId,
    /// The machine.
    pub host: HostName,
    /// The slot.
    pub slot: SlotId,
    /// Its epoch in the slot.
    pub epoch: Epoch,
    /// What it was last seen to be.
    pub state: InstanceState,
    /// Whether it gets traffic.
    pub traffic: bool,
    /// When it was placed.
    pub placed: Timestamp,
    /// When it was last heard of.
    pub changed: Timestamp,
}

/// A published version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// Its number.
    pub version: VersionNumber,
    /// Digest of its `artifact.json`.
    pub artifact: Digest,
    /// Digest of its `tabbify.toml`.
    pub config: Digest,
    /// Who may open the app while it serves.
    pub access: Access,
    /// Its runtime.
    pub runtime: RuntimeKind,
    /// Names of the secrets it needs.
    pub secrets: Vec<String>,
    /// When it was published.
    pub published: Timestamp,
    /// By whom.
    pub actor: String,
}

/// A deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRow {
    /// Its id.
    pub deploy: DeployId,
    /// The app.
    pub app: AppId,
    /// The app's tenant.
    pub tenant: Tenant,
    /// The version it puts into service.
    pub version: VersionNumber,
    /// Where it stands.
    pub status: OperationStatus,
    /// When it was asked for.
    pub requested: Timestamp,
    /// By whom.
    pub actor: String,
    /// When it had an outcome.
    pub finished: Option<Timestamp>,
    /// For a failure: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The deploy that took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<DeployId>,
    /// What has been done, in order; at most [`super::STEPS_MAX`].
    pub steps: Vec<StepRow>,
}

/// A step of a deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    /// `requested`, `placed`, `starting`, `started`, `healthy`, `shifted`, `failed`, `finished`.
    pub step: String,
    /// The instance it is about, if it is about one.
    pub instance: Option<InstanceId>,
    /// When.
    pub at: Timestamp,
}

/// A machine of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Its name.
    pub host: HostName,
    /// Its network.
    pub network: String,
    /// Its address.
    pub address: HostUla,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Tags that its token claimed.
    pub tags: Vec<String>,
    /// When it joined.
    pub joined: Timestamp,
    /// As a machine that runs apps, if it is one.
    pub supervisor: Option<SupervisorRow>,
}

/// A machine as one that runs apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorRow {
    /// Whether it gets work.
    pub state: SupervisorState,
    /// What it has been seen to be able to run.
    pub capabilities: Vec<Capability>,
}

/// Whether a machine gets work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SupervisorState {
    /// It does.
    Ready,
    /// It has not been heard of for too long.
    Lost,
    /// It was emptied.
    Drained,
}

/// A lease that has not been released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The app.
    pub app: AppId,
    /// The app's tenant.
    pub tenant: Tenant,
    /// The instance.
    pub instance: InstanceId,
    /// The slot it fills.
    pub slot: SlotId,
    /// Its epoch in the slot.
    pub epoch: Epoch,
    /// The key that may answer for the app.
    pub key: MeshKey,
    /// The machine.
    pub host: HostName,
    /// When it was granted.
    pub granted: Timestamp,
}

/// A token that was issued; the token itself is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its id.
    pub jti: String,
    /// Its kind.
    pub kind: String,
    /// Its subject.
    pub subject: String,
    /// The tenant that the subject belongs to, if it is registered.
    pub tenant: Option<Tenant>,
    /// When it was issued.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// When it was used, if it is one that is used once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

/// Where a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// It waits for a machine.
    Requested,
    /// A machine works on it.
    Started,
    /// There is an artifact.
    Succeeded,
    /// There is none.
    Failed,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRow {
    /// Its id.
    pub build: BuildId,
    /// The app.
    pub app: AppId,
    /// The app's tenant.
    pub tenant: Tenant,
    /// What is built.
    pub source: Source,
    /// Where it stands.
    pub status: BuildStatus,
    /// When it was asked for.
    pub requested: Timestamp,
    /// By whom.
    pub actor: String,
    /// The machine that works on it.
    pub host: Option<HostName>,
    /// When it had an outcome.
    pub finished: Option<Timestamp>,
    /// What was built.
    pub artifact: Option<Digest>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<BuildFailed>,
}

/// Where an approval stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalStatus {
    /// Nobody has answered yet.
    Pending,
    /// Somebody said yes.
    Granted,
    /// Somebody said no.
    Denied,
    /// Nobody answered in time, which is a no.
    Expired,
    /// What was asked for has changed.
    Superseded,
    /// The yes was used.
    Consumed,
}

/// An approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRow {
    /// What was asked.
    pub request: ApprovalRequested,
    /// The tenant.
    pub tenant: Tenant,
    /// Where it stands.
    pub status: ApprovalStatus,
    /// When it was asked.
    pub requested: Timestamp,
    /// When somebody answered, or nobody did.
    pub decided: Option<Timestamp>,
    /// Who answered.
    pub by: Option<String>,
    /// For a no: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the yes goes on to allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
}

/// An event on record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditRow {
    /// Its place in the log.
    pub position: Position,
    /// When the log took it.
    pub at: Timestamp,
    /// Where it lives.
    pub segment: Segment,
    /// What it is about.
    pub key: String,
    /// Its place in the history of that.
    pub rev: Rev,
    /// Its id.
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version of the shape of `data`.
    pub version: u16,
    /// Who wrote it.
    pub actor: String,
    /// The tenant whose segment it is in; none for the platform's own.
    pub tenant: Option<Tenant>,
    /// The event that it follows from.
    pub cause: Option<Position>,
    /// W3C traceparent.
    pub trace: Option<String>,
    /// What it says.
    pub data: Box<RawValue>,
}
