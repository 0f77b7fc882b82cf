//! Why the coordinator does not do what a member asks, and how that crosses a network.

use tabbify_api::auth::RequestError;
use tabbify_api::coordinator::Ask;
use tabbify_api::log::AppendError;
use tabbify_api::names::NameAsk;
use tabbify_api::{ErrorCode, Problem};
use tabbify_process::chain;

use crate::join::JoinError;

/// Why not. Nothing was done then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key is neither a machine's nor an instance's.
    #[error("this key is no member of the mesh")]
    NotAMember,
    /// The member may not.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// Nobody holds a lease there, or policy forbids that the two talk: which of both is not told.
    #[error("no lease for {0}")]
    NoLease(Ask),
    /// The same, where it is policy that forbids it: that is known for sure.
    #[error("no lease for {0}")]
    Denied(Ask),
    /// Nobody is called so, or policy forbids that the two talk: which of both is not told.
    #[error("nobody is called {0}")]
    Nobody(NameAsk),
    /// A newer instance holds the slot.
    #[error("a newer instance has taken over: finish what has begun, and end")]
    Fenced,
    /// It belongs to another.
    #[error("{0}")]
    Conflict(String),
    /// What was sent cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The join token is refused.
    #[error(transparent)]
    Token(RequestError),
    /// Too many requests.
    #[error("too many requests; wait")]
    RateLimited,
    /// The coordinator cannot decide now.
    #[error("the coordinator cannot decide now: {0}")]
    Unavailable(String),
}

impl Refusal {
    /// The code that it carries.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotAMember | Self::Forbidden(_) => ErrorCode::Forbidden,
            Self::NoLease(_) | Self::Denied(_) => ErrorCode::NoLease,
            Self::Nobody(_) => ErrorCode::UnknownApp,
            Self::Fenced => ErrorCode::LeaseFenced,
            Self::Conflict(_) => ErrorCode::Conflict,
            Self::Invalid(_) => ErrorCode::BadRequest,
            Self::Token(error) => error.code(),
            Self::RateLimited => ErrorCode::RateLimited,
            Self::Unavailable(_) => ErrorCode::Unavailable,
        }
    }

    /// Whether it is refused for what is not known here: whoever has read more of the log may know it.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::NotAMember | Self::NoLease(_) | Self::Nobody(_))
    }

    /// As it crosses a network.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Token(error) => error.problem(),
            Self::NotAMember => Problem::new(self.code(), self.to_string())
                .with_fix("Run `tabbify join` with a new join token on this machine."),
            other => Problem::new(other.code(), other.to_string()),
        }
    }
}

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::KeyTaken(_) | JoinError::NameTaken(_) | JoinError::Full => {
                Self::Conflict(error.to_string())
            }
            JoinError::Contended => Self::Unavailable(error.to_string()),
            JoinError::Event(_) => Self::Invalid(chain(&error).to_string()),
        }
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        Self::Unavailable(chain(&error).to_string())
    }
}
