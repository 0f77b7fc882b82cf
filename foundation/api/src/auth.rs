//! Signing in and checking tokens, as the node offers it and `auth` implements it; what is asked of
//! the issuer is in [`issue`], what people ask in [`people`].

pub mod issue;
pub mod people;

use std::fmt;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppId, Tenant, Timestamp};

use crate::{BoxFuture, ErrorCode};

pub use issue::{Caller, Issuer, RequestError, Revocations, Verified};
pub use people::People;

/// Path of the token exchange.
pub const TOKEN_PATH: &str = "/v1/auth/token";
/// Path of the issuer's public keys (RFC 7517).
pub const JWKS_PATH: &str = "/v1/jwks";
/// Header in which a role of the platform tells auth where the request that it asks for came from;
/// from anybody else it counts for nothing.
pub const SOURCE_HEADER: &str = "x-tabbify-source";
/// Path that answers who the caller is.
pub const WHOAMI_PATH: &str = "/v1/whoami";

/// Scopes that this version checks; a token lists those it has, `*` is all of them.
pub mod scope {
    /// Read apps, versions, deploys and logs.
    pub const APPS_READ: &str = "apps:read";
    /// Register apps, upload and publish versions.
    pub const APPS_WRITE: &str = "apps:write";
    /// Put versions into service.
    pub const DEPLOY: &str = "deploy";
    /// Read the tenant's events.
    pub const EVENTS_READ: &str = "events:read";
    /// Open private apps.
    pub const APP_OPEN: &str = "app:open";
    /// Run commands in instances of apps.
    pub const APP_EXEC: &str = "app:exec";
    /// Connect to raw ports of apps.
    pub const APP_FORWARD: &str = "app:forward";
    /// Remove volumes, with what is in them.
    pub const VOLUMES_WRITE: &str = "volumes:write";
    /// Read names and versions of secrets; nothing gives their values.
    pub const SECRETS_READ: &str = "secrets:read";
    /// Set and remove secrets.
    pub const SECRETS_WRITE: &str = "secrets:write";
    /// Invite people, and say what they may do.
    pub const PEOPLE_WRITE: &str = "people:write";
    /// Issue, list and revoke the tenant's tokens.
    pub const TOKENS_WRITE: &str = "tokens:write";
    /// Let machines join.
    pub const MACHINES_WRITE: &str = "machines:write";
    /// Issue tokens to machines and instances, and admit machines; counts for services alone.
    pub const AUTH_ISSUE: &str = "auth:issue";

    /// A scope for one app alone, such as `deploy:<app id>`.
    #[must_use]
    pub fn on(scope: &str, app: tabbify_types::AppId) -> String {
        format!("{scope}:{app}")
    }
}

/// Subject of the person who owns the platform.
pub const OWNER_SUBJECT: &str = "user:owner";

/// Who a verified token or session says the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The token's subject, such as `user:owner`; stands as actor in events.
    pub subject: String,
    /// The tenant it acts in.
    pub tenant: Tenant,
    /// The token's kind, such as `user`.
    pub kind: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it ends.
    pub expires: Timestamp,
}

impl Identity {
    /// Whether the caller may do what `scope` names.
    #[must_use]
    pub fn allows(&self, scope: &str) -> bool {
        self.scopes.iter().any(|held| held == "*" || held == scope)
    }

    /// Whether the caller may do what `scope` names with `app`, be it with all apps or with it alone.
    #[must_use]
    pub fn allows_on(&self, scope: &str, app: AppId) -> bool {
        self.allows(scope) || self.scopes.contains(&self::scope::on(scope, app))
    }
}

/// Body of [`TOKEN_PATH`]: a signed proof (JWS of type `tabbify-owner-proof+jwt`) that the caller
/// holds a registered key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The proof.
    pub proof: String,
}

/// Answer of [`TOKEN_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IssuedToken {
    /// The bearer token.
    pub token: String,
    /// When it ends.
    pub expires: Timestamp,
}

/// What a client needs to sign in; `GET /health` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformId(pub String);

/// Why a token is refused. The caller learns the class, the log learns the rest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Not one of ours in form, kind, key, audience or signature.
    #[error("the token is refused: {0}")]
    Invalid(String),
    /// It has ended.
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    /// It was used before and may be used once.
    #[error("the proof was used before")]
    Replayed,
    /// Too many failures.
    #[error("too many attempts; wait a minute")]
    RateLimited,
    /// The issuer cannot work now.
    #[error("auth is not available: {0}")]
    Unavailable(String),
}

impl AuthError {
    /// The code that a refusal carries.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) | Self::Replayed => ErrorCode::TokenInvalid,
            Self::Expired(_) => ErrorCode::TokenExpired,
            Self::RateLimited => ErrorCode::RateLimited,
            Self::Unavailable(_) => ErrorCode::Unavailable,
        }
    }
}

/// The issuer, as the node uses it. Verification is offline: from the issuer keys in the log.
pub trait Authority: Send + Sync + fmt::Debug {
    /// The platform that its tokens name as issuer.
    fn platform(&self) -> PlatformId;

    /// The issuer's public keys as a JWK set.
    fn jwks(&self) -> serde_json::Value;

    /// Exchanges a proof of possession for a 15-minute token of kind `user`.
    fn exchange(&self, proof: &str) -> BoxFuture<'_, Result<IssuedToken, AuthError>>;

    /// Who a bearer token is, if it is valid now.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] and [`AuthError::Expired`].
    fn verify(&self, token: &str) -> Result<Identity, AuthError>;

    /// A ticket that opens `app` in a browser once, within a minute.
    fn ticket<'a>(
        &'a self,
        identity: &'a Identity,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>>;

    /// Exchanges a ticket for a session (12 h) that is valid for `app` alone. It is on record before
    /// anybody has it: a ticket counts once among several issuers.
    fn session<'a>(
        &'a self,
        ticket: &'a str,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>>;

    /// Who a session is, if it is valid now and for `app`.
    ///
    /// # Errors
    /// As [`Authority::verify`].
    fn verify_session(&self, session: &str, app: AppId) -> Result<Identity, AuthError>;
}
