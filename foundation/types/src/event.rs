//! What an event says: the catalog (DESIGN section 6), as far as this version writes and reads it.
//!
//! An unknown type is kept by the log and skipped by readers. An unknown version of a known type
//! stops the projection that claims it, loudly.

pub mod v1;

use serde_json::value::RawValue;

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

macro_rules! catalog {
    ($($(#[$doc:meta])* $name:ident = $kind:literal,)*) => {
        /// Every event that this version knows, as its newest shape.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $name(v1::$name),)*
        }

        impl Event {
            /// Every type name of the catalog.
            pub const KINDS: &'static [&'static str] = &[$($kind,)*];

            /// The type as it stands in the log.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self { $(Self::$name(_) => $kind,)* }
            }

            /// The version of the shape that [`Event::data`] writes.
            #[must_use]
            pub const fn version(&self) -> u16 {
                match self { $(Self::$name(_) => 1,)* }
            }

            /// The event's data as JSON.
            ///
            /// # Errors
            /// [`EventError::Data`] if it is longer than [`DATA_LEN_MAX`].
            pub fn data(&self) -> Result<Box<RawValue>, EventError> {
                let made = match self { $(Self::$name(data) => serde_json::value::to_raw_value(data),)* };
                let wrong = |detail: String| EventError::Data {
                    kind: self.kind().to_owned(), version: self.version(), detail,
                };
                let raw = made.map_err(|error| wrong(error.to_string()))?;
                if raw.get().len() > DATA_LEN_MAX {
                    return Err(wrong(format!("{} bytes, at most {DATA_LEN_MAX}", raw.get().len())));
                }
                Ok(raw)
            }

            /// Reads an event of any released version. `None` for a type that is not in the catalog.
            ///
            /// # Errors
            /// [`EventError`] for a known type of unknown version or with data of another shape.
            pub fn decode(kind: &str, version: u16, data: &str) -> Result<Option<Self>, EventError> {
                match (kind, version) {
                    $(($kind, 1) => serde_json::from_str(data)
                        .map(|data| Some(Self::$name(data)))
                        .map_err(|error| EventError::Data {
                            kind: kind.to_owned(), version, detail: error.to_string(),
                        }),)*
                    $(($kind, _) => Err(EventError::Version { kind: kind.to_owned(), version }),)*
                    _ => Ok(None),
                }
            }
        }

        $(impl From<v1::$name> for Event {
            fn from(data: v1::$name) -> Self {
                Self::$name(data)
            }
        })*
    };
}

catalog! {
    /// Position 1 of every log.
    PlatformInitialized = "platform_initialized",
    /// A tenant exists.
    TenantCreated = "tenant_created",
    /// An issuer key is valid from here; the one before stays valid beside it.
    IssuerKeyRotated = "issuer_key_rotated",
    /// A person can sign in.
    UserRegistered = "user_registered",
    /// A token was issued (its id, never the token).
    TokenIssued = "token_issued",
    /// A network of hosts has a number.
    NetworkAllocated = "network_allocated",
    /// A host is part of the mesh.
    PeerJoined = "peer_joined",
    /// An app's address is taken, for ever.
    AppAddressClaimed = "app_address_claimed",
    /// An instance's key may answer for its app.
    LeaseGranted = "lease_granted",
    /// An instance's key may no longer answer for its app.
    LeaseReleased = "lease_released",
    /// A machine can run apps.
    SupervisorJoined = "supervisor_joined",
    /// A name in a tenant is taken by an app.
    AppNameClaimed = "app_name_claimed",
    /// An app exists.
    AppRegistered = "app_registered",
    /// A version number is taken by an upload.
    VersionReserved = "version_reserved",
    /// A version is an immutable release.
    VersionPublished = "version_published",
    /// Somebody wants a version in service.
    DeployRequested = "deploy_requested",
    /// A newer deploy took over.
    DeploySuperseded = "deploy_superseded",
    /// An instance has a slot on a machine.
    AppPlaced = "app_placed",
    /// An instance is about to be spawned: the intent.
    AppStarting = "app_starting",
    /// An instance runs: the outcome.
    AppStarted = "app_started",
    /// An instance answers.
    AppHealthy = "app_healthy",
    /// These instances get the traffic from here on.
    TrafficShifted = "traffic_shifted",
    /// An instance gets no new work and has finished what it had, or its deadline has come.
    InstanceDrained = "instance_drained",
    /// An instance cannot run or died.
    AppFailed = "app_failed",
    /// An instance is to end.
    AppStopRequested = "app_stop_requested",
    /// An instance has ended because it was told to.
    AppStopped = "app_stopped",
    /// A deploy has an outcome.
    DeployFinished = "deploy_finished",
}

#[cfg(test)]
mod tests;
