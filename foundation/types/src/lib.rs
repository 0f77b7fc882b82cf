//! The vocabulary of both planes: ids, addresses, segments, events.
//!
//! Pure: no IO, no async, no clock. Everything else depends on this crate, so it stays small.
//! Reading order: [`id`] names things, [`ula`] gives them addresses, [`segment`] says where events
//! live, [`envelope`] is one event as the log keeps it, [`event`] is what it says.

pub mod digest;
pub mod envelope;
pub mod event;
pub mod id;
pub mod key;
pub mod name;
pub mod sealed;
pub mod segment;
pub mod size;
pub mod time;
pub mod ula;

pub use digest::Digest;
pub use envelope::{NewEvent, Recorded};
pub use event::Event;
pub use id::{
    AppId, ApprovalId, BuildId, CallId, DeployId, Epoch, EventId, InstanceId, IntegrationId,
    InviteId, MessageId, Position, RequestId, Rev, SandboxId, SecretVersion, SlotId, VersionNumber,
};
pub use key::{MeshKey, SigningKeyId, VerifyingKeyBytes};
pub use name::{
    AppName, ConsumerName, DeviceName, DomainName, HostName, MemberName, SecretName, Tenant,
};
pub use sealed::{Base64Url, Sealed};
pub use segment::{Segment, SegmentGlob};
pub use size::ByteSize;
pub use time::Timestamp;
pub use ula::{AppUla, DeviceUla, HostUla, InstanceUla};

/// TCP port on which every runner answers for its app, on the app's and the instance's address.
pub const APP_PORT: u16 = 8730;

/// Why a text is not the thing it was taken for.
///
/// One type for the whole vocabulary: each newtype here has a single way to be wrong, and its
/// caller adds where the text came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseError {
    /// What was expected, with its form.
    pub expected: &'static str,
    /// The offending text, shortened to 80 characters.
    pub text: String,
}

impl ParseError {
    pub(crate) fn new(expected: &'static str, text: &str) -> Self {
        Self {
            expected,
            text: text.chars().take(80).collect(),
        }
    }
}
