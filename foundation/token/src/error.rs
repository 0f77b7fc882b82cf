//! Why a token is refused. The code says which rule, never what would have satisfied it.

use tabbify_types::Timestamp;

use crate::Kind;

/// Why a token or a signed document is not accepted, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than any token of ours.
    #[error("it is {len} bytes long, at most {max}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Not the compact form, not canonical base64url, or not the JSON that it must be.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// `alg` is not `EdDSA`.
    #[error("its algorithm is not EdDSA")]
    Algorithm,
    /// `typ` is of another kind of token, or of none.
    #[error("it is not of a kind that is accepted here")]
    Kind,
    /// `kid` is missing or names no key that is valid here.
    #[error("it is signed by a key that is not known here")]
    UnknownKey,
    /// The signature does not hold.
    #[error("its signature does not hold")]
    Signature,
    /// Issued by or for another platform.
    #[error("it was issued by another platform")]
    Issuer,
    /// Meant for somebody else.
    #[error("it is meant for another audience")]
    Audience,
    /// Its time is over.
    #[error("it expired at {at}")]
    Expired {
        /// When it ended.
        at: Timestamp,
    },
    /// Its time has not come, or it was issued in the future.
    #[error("it is not valid yet")]
    NotYet,
    /// It would live longer than its kind may, or ends before it begins.
    #[error("a {kind} token may not live that long, or ends before it begins")]
    Lifetime {
        /// Its kind.
        kind: Kind,
    },
    /// It was revoked, or its subject's sessions were ended.
    #[error("it was revoked")]
    Revoked,
    /// It is bound to a key that whoever shows it has not proven to own.
    #[error("it is bound to another key than its bearer has")]
    Holder,
    /// A kind that must be bound to a WireGuard key is not.
    #[error("a {kind} token must be bound to a key")]
    Unbound {
        /// Its kind.
        kind: Kind,
    },
}

impl TokenError {
    /// Every code, for the contract tests of `api`.
    pub const CODES: &'static [&'static str] = &[
        "token_too_long",
        "token_malformed",
        "token_algorithm",
        "token_kind",
        "token_unknown_key",
        "token_signature",
        "token_issuer",
        "token_audience",
        "token_expired",
        "token_not_yet_valid",
        "token_lifetime",
        "token_revoked",
        "token_holder",
        "token_unbound",
    ];

    /// A stable code, fit for an error body: it says which rule and nothing about the keys.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "token_too_long",
            Self::Malformed(_) => "token_malformed",
            Self::Algorithm => "token_algorithm",
            Self::Kind => "token_kind",
            Self::UnknownKey => "token_unknown_key",
            Self::Signature => "token_signature",
            Self::Issuer => "token_issuer",
            Self::Audience => "token_audience",
            Self::Expired { .. } => "token_expired",
            Self::NotYet => "token_not_yet_valid",
            Self::Lifetime { .. } => "token_lifetime",
            Self::Revoked => "token_revoked",
            Self::Holder => "token_holder",
            Self::Unbound { .. } => "token_unbound",
        }
    }
}
