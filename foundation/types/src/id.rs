//! Names of things as newtypes: each displays, parses and serializes as the same text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ParseError;

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident, $expected:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that is already known to be one of these.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// A new UUID v7 (RFC 9562 section 5.7).
            #[must_use]
            pub fn mint() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            /// Only the hyphenated form: an id has one spelling, so that equal ids are equal texts.
            fn from_str(text: &str) -> Result<Self, ParseError> {
                if text.len() != 36 {
                    return Err(ParseError::new($expected, text));
                }
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| ParseError::new($expected, text))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    )+};
}

uuid_ids! {
    /// An app, for as long as it exists and after. UUID v7, minted once.
    AppId, "an app id (a hyphenated UUID such as 0191e7c2-1111-7222-8333-444455556666)";
    /// An event, chosen by its writer: appending the same id twice appends once.
    EventId, "an event id (a hyphenated UUID)";
    /// One attempt to put a version into service; also the id of its Operation.
    DeployId, "a deploy id (a hyphenated UUID)";
    /// One build of an app's source.
    BuildId, "a build id (a hyphenated UUID)";
    /// One short-lived run of code.
    SandboxId, "a sandbox id (a hyphenated UUID)";
    /// A question to a person.
    ApprovalId, "an approval id (a hyphenated UUID)";
    /// A message in a chat.
    MessageId, "a message id (a hyphenated UUID)";
    /// A connection to a service outside, such as a bot or a repository.
    IntegrationId, "an integration id (a hyphenated UUID)";
    /// One HTTP request that the platform makes for an app.
    CallId, "a call id (a hyphenated UUID)";
    /// One invitation of a person.
    InviteId, "an invitation id (a hyphenated UUID)";
    /// One request at the edge; stands in every error body and log line about it.
    RequestId, "a request id (a hyphenated UUID)";
}

impl EventId {
    /// The id of the event that follows from this one under `label`: the same inputs give the same
    /// id, so a step that is repeated after a crash appends nothing twice.
    ///
    /// Keeps the time bits of UUID v7 and fills the 74 random bits from BLAKE3.
    #[must_use]
    pub fn derived(self, label: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.0.as_bytes());
        hasher.update(label.as_bytes());
        let hash = hasher.finalize();
        let mut bytes = *self.0.as_bytes();
        bytes[6..].copy_from_slice(&hash.as_bytes()[..10]);
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(Uuid::from_bytes(bytes))
    }
}

macro_rules! number_ids {
    ($($(#[$doc:meta])* $name:ident($inner:ty), $expected:literal;)+) => {$(
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number itself.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The next one; saturates, so a counter at its end stops instead of wrapping.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                text.parse().map(Self).map_err(|_| ParseError::new($expected, text))
            }
        }
    )+};
}

number_ids! {
    /// Place of an event in the whole log: gapless from 1, given at commit. 0 means "before all".
    Position(u64), "a log position (a whole number)";
    /// Place of an event in the history of its (segment, key): gapless from 1. 0 means "none yet".
    Rev(u64), "a revision (a whole number)";
    /// A release of an app: v1, v2, …, reserved by the log.
    VersionNumber(u32), "a version number";
    /// One started copy of an app, numbered per app and never reused; forms its address.
    InstanceId(u32), "an instance number";
    /// A value that a secret has had, from 1.
    SecretVersion(u32), "a secret's version number";
    /// Fence of a slot: a holder with a lower epoch has lost it.
    Epoch(u32), "an epoch";
}

/// The place an instance fills: a deploy target of the manifest and an ordinal among its replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotId {
    /// Index of the `[[deploy]]` block; 0 when the manifest has none.
    pub target: u16,
    /// Which of the target's replicas, from 0.
    pub ordinal: u16,
}

impl SlotId {
    /// The only slot of an app with one target and one replica.
    pub const FIRST: Self = Self {
        target: 0,
        ordinal: 0,
    };
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.target, self.ordinal)
    }
}

impl FromStr for SlotId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new("a slot (target.ordinal)", text);
        let (target, ordinal) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Self {
            target: target.parse().map_err(|_| wrong())?,
            ordinal: ordinal.parse().map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_have_one_spelling() {
        let id = AppId::mint();
        assert_eq!(id.to_string().parse::<AppId>().unwrap(), id);
        assert_eq!(id.uuid().get_version_num(), 7);
        for bad in [
            "",
            "x",
            "0191e7c2111172228333444455556666",
            "{0191e7c2-1111-7222-8333-444455556666}",
        ] {
            assert!(bad.parse::<AppId>().is_err(), "{bad}");
        }
        let slot = SlotId {
            target: 2,
            ordinal: 7,
        };
        assert_eq!(slot.to_string().parse::<SlotId>().unwrap(), slot);
        assert!("2".parse::<SlotId>().is_err());
        assert_eq!("7".parse::<Position>().unwrap(), Position(7));
        assert!("-1".parse::<Rev>().is_err());
    }

    #[test]
    fn derived_ids_are_stable_and_distinct() {
        let id = EventId::mint();
        assert_eq!(id.derived("placed"), id.derived("placed"));
        assert_ne!(id.derived("placed"), id.derived("leased"));
        assert_eq!(id.derived("placed").uuid().get_version_num(), 7);
        assert_eq!(
            id.derived("placed").uuid().as_bytes()[..6],
            id.uuid().as_bytes()[..6]
        );
    }
}
