//! What an event says: the catalog (DESIGN section 6), whole.
//!
//! An unknown type is kept by the log and skipped by readers. An unknown version of a known type
//! stops the projection that claims it, loudly. As a page: docs/protocols/events.md.

#[macro_use]
mod catalog;

pub mod upcast;
pub mod v1;

use serde_json::value::RawValue;

pub use catalog::{About, Field, Home, Listed};

use crate::envelope::DATA_LEN_MAX;

/// Why an event cannot be written or understood.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The data is not the shape of this type and version, or too long.
    #[error("data of {kind} v{version} is malformed: {detail}")]
    Data {
        /// The event's type.
        kind: String,
        /// The event's version.
        version: u16,
        /// What is wrong with it.
        detail: String,
    },
    /// The type is known, its version is not: written by a newer Tabbify.
    #[error("{kind} v{version} is newer than this program understands; upgrade it")]
    Version {
        /// The event's type.
        kind: String,
        /// The event's version.
        version: u16,
    },
}

impl Event {
    /// The type as it stands in the log.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        self.about().kind
    }

    /// The version of the shape that [`Event::data`] writes.
    #[must_use]
    pub const fn version(&self) -> u16 {
        self.about().version
    }

    /// The event's data as JSON.
    ///
    /// # Errors
    /// [`EventError::Data`] if it is longer than [`DATA_LEN_MAX`].
    pub fn data(&self) -> Result<Box<RawValue>, EventError> {
        let wrong = |detail: String| EventError::Data {
            kind: self.kind().to_owned(),
            version: self.version(),
            detail,
        };
        let raw = self.to_json().map_err(|error| wrong(error.to_string()))?;
        let len = raw.get().len();
        if len > DATA_LEN_MAX {
            return Err(wrong(format!("{len} bytes, at most {DATA_LEN_MAX}")));
        }
        Ok(raw)
    }
}

catalog! {
    v1 => [
        PlatformInitialized, PlatformVersionRaised,
        TenantCreated, UserInvited, UserRegistered, RoleChanged, PasswordChanged, TokenIssued,
        TokenUsed, TokenRevoked, SessionsEnded, SignInsRefused, IssuerKeyRotated, SubjectErased,
        NetworkAllocated, PeerJoined, PeerLeft, AppAddressClaimed, LeaseGranted, LeaseReleased,
        PolicyChanged, DeviceAdded, DeviceRemoved,
        SupervisorJoined, SupervisorLost, SupervisorDrainRequested, SupervisorDrained,
        AppNameClaimed, AppRegistered, VersionReserved, VersionPublished, DeployRequested,
        DeploySuperseded, AppPlaced, AppStarting, AppStarted, AppHealthy, TrafficShifted,
        InstanceDrained, AppFailed, AppIdled, AppWoken, AppUnavailable, AppStopped, DeployFinished,
        AppRolledBack, DomainAdded, DomainRemoved, AppDestroyed,
        AppStartRequested, AppStopRequested, AppRestartRequested, AppWakeRequested,
        AppDestroyRequested, AppCommandAdmitted, AppPortAdmitted,
        BuildRequested, BuildStarted, BuildSucceeded, BuildFailed,
        SecretRegistered, SecretRotated, SecretRemoved,
        SandboxSpawnRequested, SandboxStarted, SandboxLog, SandboxExited,
        MessagePosted,
        ApprovalRequested, ApprovalGranted, ApprovalDenied, ApprovalExpired, ApprovalSuperseded,
        ApprovalConsumed,
        IntegrationRegistered, ExternalWebhookReceived, TelegramMessageReceived,
        GithubPushReceived, HttpRequestRequested, HttpRequestCompleted,
    ]
}

#[cfg(test)]
mod tests;
