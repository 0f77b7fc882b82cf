//! The node's REST under `/v1`: apps, uploads, deploys.
//!
//! | method and path | body → answer | scope |
//! |---|---|---|
//! | `GET /health` | → [`Health`] | none |
//! | `POST /v1/apps` | [`RegisterApp`] → [`AppView`] (201, or 200 if it is there already) | `apps:write` |
//! | `GET /v1/apps` | → [`AppList`] | `apps:read` |
//! | `GET /v1/apps/{id}` | → [`AppView`] | `apps:read` |
//! | `POST /v1/apps/{id}/versions` | [`ReserveVersion`] → [`ReservedVersion`] (201) | `apps:write` |
//! | `PUT /v1/apps/{id}/versions/{n}/files/{*path}` | bytes → 204 | `apps:write` |
//! | `POST /v1/apps/{id}/versions/{n}/commit` | [`CommitVersion`] → [`VersionView`] | `apps:write` |
//! | `POST /v1/apps/{id}/open` | → [`OpenLink`] | `app:open` |
//! | `GET /v1/apps/{id}/logs?tail=&since=&follow=` | → NDJSON of `logs::LogLine` | `apps:read` |
//! | `POST /v1/deploys` | [`RequestDeploy`] → [`Operation`] (202) | `deploy` |
//! | `GET /v1/deploys?app={id}` | → [`DeployList`], newest first | `apps:read` |
//! | `GET /v1/deploys/{id}?wait_s=&seen=` | → [`Operation`], once it has moved on from `seen` steps | `apps:read` |
//! | `GET /v1/events?after=&segment=&type=&key=&follow=` | → NDJSON of `types::Recorded` of the caller's tenant; `segment` is a glob within it, such as `apps` | `events:read` |

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::{Access, RuntimeKind};
use tabbify_types::{
    AppId, AppName, AppUla, DeployId, Digest, HostName, InstanceId, Position, SlotId, Tenant,
    Timestamp, VersionNumber,
};

use crate::artifact::ArtifactFile;
use crate::error::ErrorCode;

/// LIMIT: longest wait of `GET /v1/deploys/{id}`, in seconds.
pub const WAIT_SECS_MAX: u64 = 50;

/// `GET /health`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The program's version.
    pub version: String,
    /// The platform's id, which proofs of sign-in name as audience.
    pub platform: String,
    /// Position up to which the node's view of the log reaches.
    pub position: Position,
    /// How old that view may be by now, in seconds; there only while the log is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_away_s: Option<u64>,
}

/// `POST /v1/apps`. The id is the caller's, minted once; repeating the call changes nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterApp {
    /// A UUID v7.
    pub id: AppId,
    /// Unique in the caller's tenant.
    pub name: AppName,
}

/// An app as its tenant sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppView {
    /// Its id.
    pub id: AppId,
    /// Its name.
    pub name: AppName,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its mesh address.
    pub address: AppUla,
    /// Its URL, by host.
    pub url: String,
    /// Who may open it without a token.
    pub access: Access,
    /// `new`, `deploying`, `healthy`, `idle` or `failed`.
    pub status: AppStatus,
    /// The version that serves.
    pub serving: Option<VersionNumber>,
    /// The newest published version.
    pub latest: Option<VersionNumber>,
    /// The instance that the app's address means.
    pub primary: Option<InstanceId>,
    /// The instances that get its traffic, by slot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<InstanceView>,
    /// When it was registered.
    pub created: Timestamp,
    /// Why it does not serve, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An instance that gets traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its number.
    pub instance: InstanceId,
    /// The slot that it fills: a target, and which of its replicas.
    pub slot: SlotId,
    /// Its machine.
    pub host: HostName,
    /// What runs it.
    pub runtime: RuntimeKind,
}

/// How an app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppStatus {
    /// Nothing was deployed yet.
    New,
    /// A deploy is under way and nothing serves yet.
    Deploying,
    /// An instance serves.
    Healthy,
    /// It serves, and sleeps until the next request.
    Idle,
    /// Nothing serves and nothing is under way.
    Failed,
}

/// `GET /v1/apps`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppList {
    /// Every app of the tenant, by name.
    pub apps: Vec<AppView>,
}

/// `POST /v1/apps/{id}/versions`: announces an upload.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveVersion {
    /// Every file that will be uploaded, with `tabbify.toml` among them.
    pub files: Vec<ArtifactFile>,
}

/// Its answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReservedVersion {
    /// The app.
    pub app: AppId,
    /// The number that this upload has, and nobody else.
    pub version: VersionNumber,
}

/// `POST /v1/apps/{id}/versions/{n}/commit`: everything is there, publish it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitVersion {
    /// The same list as announced.
    pub files: Vec<ArtifactFile>,
}

/// A published version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionView {
    /// The app.
    pub app: AppId,
    /// The version.
    pub version: VersionNumber,
    /// Digest of its `artifact.json`.
    pub artifact: Digest,
    /// Its runtime.
    pub runtime: RuntimeKind,
    /// When it was published.
    pub created: Timestamp,
}

/// `POST /v1/apps/{id}/open`: a link that signs a browser in to a private app, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenLink {
    /// The link.
    pub url: String,
    /// When it ends.
    pub expires: Timestamp,
}

/// `POST /v1/deploys`. The id is the caller's, so that repeating the call deploys once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestDeploy {
    /// A UUID v7; becomes the Operation's id.
    pub id: DeployId,
    /// The app.
    pub app: AppId,
    /// A published version of it.
    pub version: VersionNumber,
}

/// Long work, the same shape everywhere (DESIGN section 9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub operation: DeployId,
    /// The app that it is about.
    pub app: AppId,
    /// Where it stands.
    pub status: OperationStatus,
    /// What has been done, in order.
    pub steps: Vec<Step>,
    /// The version that it puts into service.
    pub version: VersionNumber,
    /// Where the app answers, once it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<OperationError>,
    /// Last lines of the app's output, if it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log_tail: String,
}

/// Where an Operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationStatus {
    /// Under way.
    Running,
    /// Waits for a person.
    AwaitingApproval,
    /// Done.
    Succeeded,
    /// Not done; what was before still is.
    Failed,
    /// A person said no.
    Denied,
    /// Nobody answered in time.
    Expired,
    /// A newer one took over.
    Superseded,
    /// The caller took it back.
    Cancelled,
}

impl OperationStatus {
    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Running | Self::AwaitingApproval)
    }
}

/// One thing that an Operation has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `requested`, `placed`, `starting`, `started`, `healthy`, `shifted`, `finished`.
    pub name: String,
    /// Milliseconds after the request.
    pub ms: u64,
    /// `done` or `failed`.
    pub status: StepStatus,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Well.
    Done,
    /// Not.
    Failed,
}

/// Why an Operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationError {
    /// For programs: an [`ErrorCode`], or the `reason` of an `app_failed` event.
    pub code: String,
    /// What happened, in one sentence.
    pub title: String,
    /// The rest of it.
    pub detail: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

/// `GET /v1/deploys?app=`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeployList {
    /// Newest first, at most 100.
    pub deploys: Vec<Operation>,
}

/// Path of an app's wire contract: `/app/<uuid>/<rest>`.
pub const APP_PATH_PREFIX: &str = "/app/";

/// Header in which a caller gives our token when the app needs its own `Authorization`.
pub const TOKEN_HEADER: &str = "x-tabbify-token";

/// Prefix of headers that only the platform sets; what a client or an app sends under it is dropped.
pub const PLATFORM_HEADER_PREFIX: &str = "x-tabbify-";

/// Whether a header of this name is the platform's alone: whatever a framework would take for one under
/// [`PLATFORM_HEADER_PREFIX`]. CGI and what follows it (RFC 3875, section 4.1.18) make the same variable of
/// `X-Tabbify-User` and `X_Tabbify_User`, and some do of any sign but letters and digits.
#[must_use]
pub fn is_platform_header(name: &str) -> bool {
    let name = name.as_bytes().get(..PLATFORM_HEADER_PREFIX.len());
    name.is_some_and(|name| {
        let folded = |byte: &u8| match byte.to_ascii_lowercase() {
            byte if byte.is_ascii_alphanumeric() => byte,
            _ => b'-',
        };
        name.iter().map(folded).eq(PLATFORM_HEADER_PREFIX.bytes())
    })
}

/// Header in which the node tells the app who opened it.
pub const USER_HEADER: &str = "x-tabbify-user";

/// Header in which a runner tells the node the [`ErrorCode`] of an answer that is not the app's.
pub const ERROR_HEADER: &str = "x-tabbify-error";

/// Prefix of the names of the node's own cookies; they never reach an app.
pub const COOKIE_PREFIX: &str = "tabbify_";

/// Reads an [`ERROR_HEADER`].
#[must_use]
pub fn runner_error(value: &str) -> Option<ErrorCode> {
    ErrorCode::from_code(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_framework_would_take_for_ours_is_ours() {
        for ours in [
            USER_HEADER,
            "X-Tabbify-User",
            "x_tabbify_user",
            "X-TABBIFY_anything",
            "x.tabbify.user",
            "x-tabbify-",
        ] {
            assert!(is_platform_header(ours), "{ours}");
        }
        for other in [
            "",
            "x-tabbify",
            "x-tabbifyed",
            "tabbify-user",
            "x-my-tabbify-user",
        ] {
            assert!(!is_platform_header(other), "{other}");
        }
    }
}
