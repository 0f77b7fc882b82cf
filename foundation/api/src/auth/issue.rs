//! Tokens of every kind: who may ask for which, how they are renewed and taken back, how a machine
//! joins. Every call shows the caller's own token; over HTTP it is the bearer of the request.

use std::fmt;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppId, HostName, InstanceId, MeshKey, Tenant, Timestamp, VerifyingKeyBytes};

use super::{AuthError, Identity, IssuedToken};
use crate::{BoxFuture, ErrorCode, Problem};

/// `POST` a [`TokenOrder`] for an [`IssuedToken`]; `GET` the list of [`TokenRecord`]; `DELETE` below it
/// by id revokes one.
pub const TOKENS_PATH: &str = "/v1/auth/tokens";
/// `POST` without a body: a new token for the bearer's, which must be of a kind that is renewed.
pub const RENEW_PATH: &str = "/v1/auth/renew";
/// `POST` a [`ValidateRequest`] for a [`Verified`].
pub const VALIDATE_PATH: &str = "/v1/auth/validate";
/// `POST` an [`AdmitRequest`] for an [`Admission`].
pub const ADMIT_PATH: &str = "/v1/auth/admit";
/// `POST` a [`TicketRequest`] for an [`IssuedToken`]; for the node alone.
pub const TICKETS_PATH: &str = "/v1/auth/tickets";
/// `POST` a [`SessionRequest`] for an [`IssuedToken`].
pub const SESSIONS_PATH: &str = "/v1/auth/sessions";

/// Who accepts bearer tokens unless another audience is asked for.
pub const API_AUDIENCE: &str = "tabbify-api";
/// Who accepts registry tokens.
pub const REGISTRY_AUDIENCE: &str = "tabbify-registry";

/// Who accepts a browser's session with `app`: its node, on the app's own host.
#[must_use]
pub fn session_audience(app: AppId) -> String {
    format!("tabbify-session:{app}")
}

/// Who asks, and how they are known: what the connection has proven comes from whoever accepted it.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The caller's token; empty if none came along.
    pub token: &'a str,
    /// The WireGuard key that the caller's connection has proven.
    pub proven: Option<MeshKey>,
    /// Where the call comes from, such as an address: failures are limited by it.
    pub source: &'a str,
}

impl<'a> Caller<'a> {
    /// The bearer of a token, from somewhere in this process.
    #[must_use]
    pub const fn bearer(token: &'a str) -> Self {
        Self {
            token,
            proven: None,
            source: "local",
        }
    }
}

impl fmt::Debug for Caller<'_> {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("proven", &self.proven)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The token's id.
    pub jti: String,
    /// Its kind, such as `host`.
    pub kind: String,
    /// Who it is about.
    pub subject: String,
    /// The tenant it counts in.
    pub tenant: Tenant,
    /// What its holder may do.
    pub scopes: Vec<String>,
    /// Tags that the platform gave the subject.
    pub tags: Vec<String>,
    /// Mesh addresses that its holder may use as its own.
    pub ulas: Vec<Ipv6Addr>,
    /// The WireGuard key that it is bound to.
    pub key: Option<MeshKey>,
    /// When it was issued.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

impl Verified {
    /// Whether the holder may do what `scope` names.
    #[must_use]
    pub fn allows(&self, scope: &str) -> bool {
        self.scopes.iter().any(|held| held == "*" || held == scope)
    }

    /// Whether the holder may do what `scope` names with `app`, be it with all apps or with it alone.
    #[must_use]
    pub fn allows_on(&self, scope: &str, app: AppId) -> bool {
        self.allows(scope) || self.scopes.contains(&super::scope::on(scope, app))
    }

    /// Whether the holder may do what `scope` names with some app at least.
    #[must_use]
    pub fn allows_on_some(&self, scope: &str) -> bool {
        let on_one = |held: &str| {
            held.strip_prefix(scope)
                .is_some_and(|app| app.starts_with(':'))
        };
        self.allows(scope) || self.scopes.iter().any(|held| on_one(held))
    }

    /// Who the holder is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            subject: self.subject.clone(),
            tenant: self.tenant.clone(),
            kind: self.kind.clone(),
            scopes: self.scopes.clone(),
            expires: self.expires,
        }
    }
}

/// A token that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenOrder {
    /// For an AI client that acts for the caller, within the caller's scopes.
    Agent {
        /// Its name, unique in the tenant.
        name: String,
        /// What it may do: nothing that the caller may not.
        scopes: Vec<String>,
        /// How long it lives, in seconds; 30 days if not given.
        #[serde(default)]
        life_s: Option<u64>,
    },
    /// For a machine that is to join, once.
    Join {
        /// The name that the machine will have.
        host: HostName,
        /// The tenant whose apps it may run; the caller's if not given, `system` for all.
        #[serde(default)]
        tenant: Option<Tenant>,
        /// The tags that it will have.
        #[serde(default)]
        tags: Vec<String>,
        /// What it may be used for, such as `docker`.
        #[serde(default)]
        capabilities: Vec<String>,
        /// How it knows the coordinator: the digest of its TLS key.
        coordinator: String,
        /// How long it lives, in seconds, at most an hour; 10 minutes if not given.
        #[serde(default)]
        life_s: Option<u64>,
    },
    /// For a machine that has joined.
    Host {
        /// Its name.
        host: HostName,
        /// The tenant whose apps it may run.
        tenant: Tenant,
        /// Its tags, as its join token had them.
        #[serde(default)]
        tags: Vec<String>,
        /// Its addresses.
        ulas: Vec<Ipv6Addr>,
        /// Its WireGuard key.
        key: MeshKey,
        /// Who accepts it; [`API_AUDIENCE`] if not given.
        #[serde(default)]
        audience: Option<String>,
    },
    /// For an instance of an app.
    Runner {
        /// The app.
        app: AppId,
        /// The instance.
        instance: InstanceId,
        /// The app's tenant.
        tenant: Tenant,
        /// Its addresses.
        ulas: Vec<Ipv6Addr>,
        /// The key it made at spawn.
        key: MeshKey,
        /// Who accepts it; [`API_AUDIENCE`] if not given.
        #[serde(default)]
        audience: Option<String>,
    },
    /// For a role of the platform.
    Service {
        /// The role, by the name that `tabbify <role>` has for it.
        role: String,
        /// What it may do.
        #[serde(default)]
        scopes: Vec<String>,
        /// The WireGuard key that it is bound to, if it comes over the mesh.
        #[serde(default)]
        key: Option<MeshKey>,
        /// Who accepts it; [`API_AUDIENCE`] if not given.
        #[serde(default)]
        audience: Option<String>,
    },
    /// For one push to or pull from the registry, in the caller's own name.
    Registry {
        /// What for.
        access: Vec<RepositoryAccess>,
    },
}

/// What a registry token allows with one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryAccess {
    /// The repository, such as `main/shop`.
    pub repository: String,
    /// Whether it may be written.
    #[serde(default)]
    pub push: bool,
}

/// A token that was issued and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its id.
    pub jti: String,
    /// Its kind.
    pub kind: String,
    /// Its subject.
    pub subject: String,
    /// Its tenant.
    pub tenant: Tenant,
    /// What its holder may do.
    pub scopes: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Who asked for it.
    pub by: Option<String>,
    /// When it was issued.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// The key that has used it up, if it is for single use.
    pub used: Option<MeshKey>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// Body of [`VALIDATE_PATH`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidateRequest {
    /// The token.
    pub token: String,
    /// Who would accept it; [`API_AUDIENCE`] if not given.
    #[serde(default)]
    pub audience: Option<String>,
    /// The WireGuard key that its bearer has proven to own.
    #[serde(default)]
    pub key: Option<MeshKey>,
}

/// Body of [`ADMIT_PATH`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmitRequest {
    /// The join token.
    pub token: String,
    /// The WireGuard key that the machine has proven to own.
    pub key: MeshKey,
}

/// What a join token admits: the same however often the same key asks while the token lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The token's id: the cause of whatever follows.
    pub jti: String,
    /// The machine.
    pub host: HostName,
    /// The tenant whose apps it may run; `system` for all.
    pub tenant: Tenant,
    /// Its tags.
    pub tags: Vec<String>,
    /// What it may be used for, once it has been seen to work.
    pub capabilities: Vec<String>,
    /// The key that it is bound to.
    pub key: MeshKey,
    /// The platform's root key, as the token pinned it.
    pub root: VerifyingKeyBytes,
    /// Until when the same key may ask again.
    pub expires: Timestamp,
}

/// Body of [`TICKETS_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketRequest {
    /// For whom, as the node has verified them.
    pub identity: Identity,
    /// For which app.
    pub app: AppId,
}

/// Body of [`SESSIONS_PATH`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// The ticket.
    pub ticket: String,
    /// The app that it is for.
    pub app: AppId,
}

macro_rules! secret_in_debug {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name {
            /// Without the token.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+};
}

secret_in_debug!(ValidateRequest, AdmitRequest, SessionRequest);

/// Why the issuer does not do what was asked. Nothing was recorded then, and nobody has anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The caller is not known: no token, or one that is refused.
    #[error(transparent)]
    Caller(#[from] AuthError),
    /// The caller is known and may not.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// What was asked for cannot be.
    #[error("{0}")]
    BadRequest(String),
    /// It is there already, or has changed meanwhile.
    #[error("{0}")]
    Conflict(String),
    /// There is no such thing, as far as the caller may know.
    #[error("there is no {0}")]
    NotFound(String),
}

impl RequestError {
    /// The code that the refusal carries.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Caller(error) => error.code(),
            Self::Forbidden(_) => ErrorCode::Forbidden,
            Self::BadRequest(_) => ErrorCode::BadRequest,
            Self::Conflict(_) => ErrorCode::Conflict,
            Self::NotFound(_) => ErrorCode::NotFound,
        }
    }

    /// The refusal as it crosses a network.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let detail = match self {
            Self::Caller(AuthError::Invalid(rule)) => rule.clone(),
            Self::Caller(AuthError::Expired(at)) => at.to_string(),
            Self::Caller(AuthError::Replayed) => REPLAYED.to_owned(),
            Self::Caller(AuthError::RateLimited) => String::new(),
            Self::Caller(AuthError::Unavailable(why))
            | Self::Forbidden(why)
            | Self::BadRequest(why)
            | Self::Conflict(why)
            | Self::NotFound(why) => why.clone(),
        };
        Problem::new(self.code(), detail)
    }

    /// The refusal that crossed a network.
    #[must_use]
    pub fn of(problem: Problem) -> Self {
        let detail = problem.detail;
        match problem.code {
            ErrorCode::TokenInvalid if detail == REPLAYED => Self::Caller(AuthError::Replayed),
            ErrorCode::TokenMissing | ErrorCode::TokenInvalid => {
                Self::Caller(AuthError::Invalid(detail))
            }
            ErrorCode::TokenExpired => Self::Caller(match detail.parse() {
                Ok(at) => AuthError::Expired(at),
                Err(_) => AuthError::Invalid(detail),
            }),
            ErrorCode::RateLimited => Self::Caller(AuthError::RateLimited),
            ErrorCode::Forbidden => Self::Forbidden(detail),
            ErrorCode::Conflict => Self::Conflict(detail),
            ErrorCode::NotFound => Self::NotFound(detail),
            ErrorCode::BadRequest | ErrorCode::TooLarge | ErrorCode::MethodNotAllowed => {
                Self::BadRequest(detail)
            }
            _ => Self::Caller(AuthError::Unavailable(detail)),
        }
    }
}

const REPLAYED: &str = "it was used before";

/// Issues tokens, and takes them back.
pub trait Issuer: Send + Sync + fmt::Debug {
    /// The token that is asked for, if the caller may have it.
    fn issue<'a>(
        &'a self,
        caller: Caller<'a>,
        order: TokenOrder,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>>;

    /// A new token like the caller's own, of kind `host`, `runner` or `service`.
    fn renew<'a>(&'a self, caller: Caller<'a>) -> BoxFuture<'a, Result<IssuedToken, RequestError>>;

    /// Revokes a token: the caller's own, or one of the caller's tenant.
    fn revoke<'a>(
        &'a self,
        caller: Caller<'a>,
        jti: &'a str,
    ) -> BoxFuture<'a, Result<(), RequestError>>;

    /// The tenant's tokens that have not ended, of kinds that people manage: `agent`, `join`, `host`.
    fn tokens<'a>(
        &'a self,
        caller: Caller<'a>,
    ) -> BoxFuture<'a, Result<Vec<TokenRecord>, RequestError>>;

    /// Uses a join token up for one key: a second key is refused, the same one gets the same answer.
    fn admit<'a>(
        &'a self,
        caller: Caller<'a>,
        request: AdmitRequest,
    ) -> BoxFuture<'a, Result<Admission, RequestError>>;
}

/// Checks tokens of every kind offline, and tells what happens to them: for whoever keeps something
/// open that a token opened.
pub trait Revocations: Send + Sync + fmt::Debug {
    /// What a token says, if it is of one of `kinds`, is meant for `audience`, may be acted on now and
    /// its bearer has proven the key that it is bound to.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] and [`AuthError::Expired`].
    fn check(
        &self,
        token: &str,
        kinds: &[&str],
        audience: &str,
        proven: Option<MeshKey>,
    ) -> Result<Verified, AuthError>;

    /// Whether what a token once said still counts: it has not ended and was not revoked.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] and [`AuthError::Expired`].
    fn still(&self, verified: &Verified) -> Result<(), AuthError>;

    /// Whether what a token once said was taken back, be it over or not.
    fn is_revoked(&self, verified: &Verified) -> bool;

    /// How often something was revoked; only ever grows.
    fn changes(&self) -> u64;

    /// Waits until [`Revocations::changes`] is not `seen`. Safe to cancel.
    fn changed(&self, seen: u64) -> BoxFuture<'_, u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_cross_a_network() {
        for error in [
            RequestError::Caller(AuthError::Invalid("its signature does not hold".to_owned())),
            RequestError::Caller(AuthError::Expired(Timestamp::from_secs(7))),
            RequestError::Caller(AuthError::Replayed),
            RequestError::Caller(AuthError::RateLimited),
            RequestError::Caller(AuthError::Unavailable("the log is stopping".to_owned())),
            RequestError::Forbidden("it needs people:write".to_owned()),
            RequestError::BadRequest("a name is missing".to_owned()),
            RequestError::Conflict("it is there".to_owned()),
            RequestError::NotFound("such token".to_owned()),
        ] {
            let text = serde_json::to_string(&error.problem()).unwrap();
            let back = RequestError::of(serde_json::from_str(&text).unwrap());
            assert_eq!(back, error);
        }
    }

    #[test]
    fn orders_are_strict() {
        let order = TokenOrder::Agent {
            name: "claude".to_owned(),
            scopes: vec!["deploy".to_owned()],
            life_s: None,
        };
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<TokenOrder>(&text).unwrap(), order);
        for bad in [
            "{}",
            "null",
            r#"{"kind":"root"}"#,
            r#"{"kind":"agent","name":"a"}"#,
            r#"{"kind":"agent","name":"a","scopes":[],"tenant":"other"}"#,
            r#"{"kind":"join","host":"UPPER","coordinator":"x"}"#,
            r#"{"kind":"join","host":"box2","coordinator":"x","scopes":["*"]}"#,
            r#"{"kind":"host","host":"box2","tenant":"main","ulas":[]}"#,
        ] {
            assert!(serde_json::from_str::<TokenOrder>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_not_shown() {
        let (token, app) = ("sekrit".to_owned(), AppId::mint());
        let audience = None;
        let shown = [
            format!("{:?}", Caller::bearer(&token)),
            format!(
                "{:?}",
                SessionRequest {
                    ticket: token.clone(),
                    app
                }
            ),
            format!(
                "{:?}",
                AdmitRequest {
                    token: token.clone(),
                    key: MeshKey([1; 32])
                }
            ),
            format!(
                "{:?}",
                ValidateRequest {
                    token,
                    audience,
                    key: None
                }
            ),
        ];
        assert!(
            shown.iter().all(|shown| !shown.contains("sekrit")),
            "{shown:?}"
        );
    }
}
