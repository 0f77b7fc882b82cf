//! Why the vault refuses, and the one mapping from there to what a caller reads.

use std::path::PathBuf;

use tabbify_api::auth::AuthError;
use tabbify_api::log::AppendError;
use tabbify_api::secrets::{RELEASE_VALUES_LEN_MAX, SECRETS_MAX, VALUE_LEN_MAX};
use tabbify_api::{ErrorCode, Problem};
use tabbify_process::fold::FollowError;
use tabbify_types::event::EventError;
use tabbify_types::{SecretName, SecretVersion};

use crate::seal::OpenError;
use crate::store::StoreError;

/// Why the vault does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory cannot be used.
    #[error("the vault's directory {path} cannot be used")]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The log cannot be followed.
    #[error("the vault cannot follow the log")]
    Follow(#[source] FollowError<EventError>),
}

/// Why the vault does not do what was asked. Nothing secret is in it.
#[expect(
    clippy::error_impl_error,
    reason = "the house style names a crate's error so: gateway::Error"
)]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No token came along.
    #[error("this needs a token")]
    TokenMissing,
    /// The token does not count.
    #[error("the credential is refused")]
    Credential(#[source] AuthError),
    /// The token counts, and not for this.
    #[error("the token does not have the scope {0:?}")]
    Scope(&'static str),
    /// Programs that act for a person do not handle secrets.
    #[error("a secret is set and removed by a person, not by {0}")]
    NoPerson(String),
    /// The connection has proven no key.
    #[error("secrets are given to instances, over the mesh alone")]
    NoInstance,
    /// The key is no instance's that uses secrets, as far as the log says.
    #[error("this key has no lease of an instance that uses secrets")]
    NoLease,
    /// The instance speaks from an address that is not its own.
    #[error("this address is not one of the instance")]
    Elsewhere,
    /// The request cannot be.
    #[error("{0}")]
    Malformed(&'static str),
    /// Nothing is at this path.
    #[error("nothing is at this path")]
    NoSuchPath,
    /// The path takes others.
    #[error("this path takes {0}")]
    Method(&'static str),
    /// The value is too long.
    #[error("the value has more than {VALUE_LEN_MAX} bytes")]
    ValueTooLong,
    /// The tenant has as many as it may.
    #[error("there are {SECRETS_MAX} secrets already, as many as a tenant may have")]
    Full,
    /// There is no such secret.
    #[error("{}", missing(.0))]
    Missing(Vec<SecretName>),
    /// The values of one release are too much.
    #[error("the values together have more than {RELEASE_VALUES_LEN_MAX} bytes")]
    ReleaseTooLarge,
    /// Others changed the same secret, again and again.
    #[error("secret {0:?} is changed by others at the same time")]
    Contended(String),
    /// The log names a value that is not here.
    #[error("the value of version {version} of secret {name:?} is not in the vault")]
    Lost {
        /// Which.
        name: String,
        /// In which version.
        version: SecretVersion,
    },
    /// A value does not open.
    #[error("the value of version {version} of secret {name:?} cannot be opened: {why}")]
    Sealed {
        /// Which.
        name: String,
        /// In which version.
        version: SecretVersion,
        /// Why.
        why: String,
    },
    /// What the vault knows of the log is old.
    #[error("the vault has not read the log to its end")]
    Behind,
    /// The log did not take the event; nothing has changed.
    #[error("the log refuses the change")]
    Append(#[source] AppendError),
    /// The log did not say whether it took the event.
    #[error("the log is stopping: the change is made or not. Do it again")]
    Unknown,
    /// The disk fails.
    #[error("the vault's disk fails at {}", .path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// How.
        #[source]
        source: std::io::Error,
    },
    /// The process is stopping.
    #[error("the vault is stopping")]
    Stopping,
}

fn missing(names: &[SecretName]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.as_slice() {
        [one] => format!("secret {one} does not exist"),
        some => format!("secrets {} do not exist", some.join(", ")),
    }
}

impl Error {
    pub(crate) fn sealed(name: &SecretName, version: SecretVersion, why: OpenError) -> Self {
        Self::Sealed {
            name: name.to_string(),
            version,
            why: why.to_string(),
        }
    }

    /// The code, and with it the status.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TokenMissing => ErrorCode::TokenMissing,
            Self::Credential(error) => error.code(),
            Self::Scope(_)
            | Self::NoPerson(_)
            | Self::NoInstance
            | Self::NoLease
            | Self::Elsewhere => ErrorCode::Forbidden,
            Self::Malformed(_) => ErrorCode::BadRequest,
            Self::NoSuchPath => ErrorCode::NotFound,
            Self::Method(_) => ErrorCode::MethodNotAllowed,
            Self::ValueTooLong | Self::ReleaseTooLarge => ErrorCode::TooLarge,
            Self::Full => ErrorCode::SecretLimit,
            // A value that the log names and the vault has lost is to be set again, like one that is not.
            Self::Missing(_) | Self::Lost { .. } => ErrorCode::SecretMissing,
            Self::Contended(_) => ErrorCode::Conflict,
            Self::Sealed { .. } | Self::Disk { .. } => ErrorCode::Internal,
            Self::Behind | Self::Unknown | Self::Stopping => ErrorCode::Unavailable,
            Self::Append(AppendError::Rate { .. }) => ErrorCode::AppendRate,
            Self::Append(AppendError::NoSpace { .. }) => ErrorCode::LogNoSpace,
            Self::Append(_) => ErrorCode::Internal,
        }
    }

    fn fix(&self) -> Option<String> {
        match self {
            Self::Missing(names) => {
                let each = names.iter().map(|name| format!("tcli secrets set {name}"));
                Some(format!("Run: {}", each.collect::<Vec<_>>().join("; ")))
            }
            Self::Lost { name, .. } => Some(format!("Run: tcli secrets set {name}")),
            Self::Full => Some("Remove one that nobody uses: tcli secrets rm NAME".to_owned()),
            Self::Credential(AuthError::Expired(_)) => Some("Sign in again".to_owned()),
            _ => None,
        }
    }

    /// What the caller reads.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let mut problem = Problem::new(self.code(), self.to_string());
        problem.fix = self.fix();
        problem
    }
}

impl From<StoreError> for Error {
    fn from(StoreError { path, source }: StoreError) -> Self {
        Self::Disk { path, source }
    }
}

impl From<StoreError> for StartError {
    fn from(StoreError { path, source }: StoreError) -> Self {
        Self::Directory { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_mend_it() {
        let one = Error::Missing(vec!["api-key".parse().unwrap()]).problem();
        assert_eq!(one.detail, "secret \"api-key\" does not exist");
        assert_eq!(one.fix.unwrap(), "Run: tcli secrets set api-key");
        assert_eq!((one.status, one.code), (404, ErrorCode::SecretMissing));
        let both = ["a", "b"].map(|name| name.parse().unwrap()).to_vec();
        let both = Error::Missing(both).problem();
        assert_eq!(both.detail, "secrets \"a\", \"b\" do not exist");
        assert_eq!(
            both.fix.unwrap(),
            "Run: tcli secrets set a; tcli secrets set b"
        );
    }
}
