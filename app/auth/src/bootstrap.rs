//! The first events of a log, and the check that a log and the keys beside it belong together.

use tabbify_api::log::{Append, AppendError, EventLog, Expect, Filter, ReadError};
use tabbify_token::{PlatformId, endorse_issuer};
use tabbify_types::event::v1::{
    IssuerKeyRotated, PlatformInitialized, TenantCreated, UserRegistered,
};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{NewEvent, Position, Segment, Tenant, VerifyingKeyBytes};

use crate::Keys;

/// The subject of the owner's tokens.
pub const OWNER: &str = "user:owner";

/// Key of `issuer_key_rotated` events.
pub(crate) const ISSUER: &str = "issuer";
/// Key of `platform_initialized`.
const PLATFORM: &str = "platform";

/// Why a platform cannot be started on this log with these keys.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The log is another platform's.
    #[error(
        "the log belongs to platform {log} and the keys to platform {keys}: put the keys of this \
         data directory back, or use an empty one"
    )]
    OtherPlatform {
        /// The platform in the log.
        log: PlatformId,
        /// The platform of the keys.
        keys: PlatformId,
    },
    /// Position 1 is not `platform_initialized`.
    #[error("the log does not begin with platform_initialized, but with {kind}")]
    NotAPlatform {
        /// The type of its first event.
        kind: String,
    },
    /// An event cannot be written or understood.
    #[error("the first events cannot be written or understood")]
    Event(#[source] EventError),
    /// The log does not take the first events.
    #[error("the first events cannot be appended")]
    Append(#[source] AppendError),
    /// The log cannot be read.
    #[error("the first event cannot be read")]
    Read(#[source] ReadError),
}

/// Makes an empty log the log of a new platform with these keys; checks that any other log is
/// theirs. Everything is one batch, so after a crash it is there or it is not, and a repetition,
/// or a second process, writes nothing.
///
/// # Errors
/// [`BootstrapError`].
pub async fn bootstrap(log: &dyn EventLog, keys: &Keys) -> Result<PlatformId, BootstrapError> {
    if log.head() == Position(0) {
        let batch = Append::of(first_events(keys).map_err(BootstrapError::Event)?);
        let batch = batch.expecting(Segment::platform(), PLATFORM, Expect::None);
        match log.append(batch).await {
            Ok(_) | Err(AppendError::Conflict { .. }) => {}
            Err(error) => return Err(BootstrapError::Append(error)),
        }
    }
    let in_log = PlatformId::of(&root_of(log).await?);
    let ours = PlatformId::of(&keys.root.public());
    if in_log != ours {
        return Err(BootstrapError::OtherPlatform {
            log: in_log,
            keys: ours,
        });
    }
    Ok(ours)
}

fn first_events(keys: &Keys) -> Result<Vec<NewEvent>, EventError> {
    let issuer = keys.issuer.public();
    let platform = Event::from(PlatformInitialized {
        root_key: keys.root.public(),
    });
    let tenant = Event::from(TenantCreated {
        tenant: Tenant::main(),
    });
    let rotated = Event::from(IssuerKeyRotated {
        kid: issuer.id(),
        public: issuer,
        signature: endorse_issuer(&keys.root, &issuer),
    });
    let owner = Event::from(UserRegistered {
        user: OWNER.to_owned(),
        tenant: Tenant::main(),
        key: Some(keys.owner.public()),
    });
    Ok(vec![
        NewEvent::new(Segment::platform(), PLATFORM, &platform)?,
        NewEvent::new(Segment::auth(), Tenant::main(), &tenant)?,
        NewEvent::new(Segment::auth(), ISSUER, &rotated)?,
        NewEvent::new(Segment::auth(), OWNER, &owner)?,
    ])
}

/// The root key at position 1, which is there.
async fn root_of(log: &dyn EventLog) -> Result<VerifyingKeyBytes, BootstrapError> {
    let page = log
        .read(Filter::default(), Position(0), 1)
        .await
        .map_err(BootstrapError::Read)?;
    let Some(first) = page.events.first() else {
        return Err(BootstrapError::NotAPlatform {
            kind: "nothing".to_owned(),
        });
    };
    match first.event().map_err(BootstrapError::Event)? {
        Some(Event::PlatformInitialized(data)) => Ok(data.root_key),
        _ => Err(BootstrapError::NotAPlatform {
            kind: first.kind.clone(),
        }),
    }
}
