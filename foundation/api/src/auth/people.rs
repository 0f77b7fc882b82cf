//! People: signing in with a password, invitations, what somebody may do in a tenant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tabbify_types::{Tenant, Timestamp};
use zeroize::Zeroize as _;

use super::{Caller, IssuedToken, RequestError, scope};
use crate::BoxFuture;

/// `POST` a [`LoginRequest`] for an [`IssuedToken`].
pub const LOGIN_PATH: &str = "/v1/auth/login";
/// `POST` a [`PasswordRequest`].
pub const PASSWORD_PATH: &str = "/v1/auth/password";
/// `POST` an [`InviteRequest`] for an [`Invited`].
pub const INVITATIONS_PATH: &str = "/v1/auth/invitations";
/// `POST` an [`AcceptRequest`] for an [`IssuedToken`].
pub const ACCEPT_PATH: &str = "/v1/auth/invitations/accept";
/// `POST` a [`RoleRequest`].
pub const ROLES_PATH: &str = "/v1/auth/roles";
/// `POST` a [`SubjectRequest`]: everything the subject was given is worth nothing from there on.
pub const END_SESSIONS_PATH: &str = "/v1/auth/sessions/end";
/// `POST` a [`SubjectRequest`]: what is sealed for the subject cannot be read by anybody any more.
pub const ERASE_PATH: &str = "/v1/auth/people/erase";

/// Who accepts what a password was exchanged for: the console.
pub const CONSOLE_AUDIENCE: &str = "tabbify-console";

/// LIMIT: a password, in characters: fewer can be guessed (NIST SP 800-63B section 3.1.1.2).
pub const PASSWORD_CHARS_MIN: usize = 12;
/// LIMIT: a password, in bytes: hashing takes the time it takes, for any length up to here.
pub const PASSWORD_LEN_MAX: usize = 1024;

/// A secret text on its way: not shown, and erased from memory when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What somebody is in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees apps, deploys, events and logs, and opens apps.
    Viewer,
    /// Also makes and changes apps, and sets their secrets.
    Developer,
    /// Does everything in the tenant.
    Owner,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Developer, Self::Owner];

    /// The role as it stands in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Developer => "developer",
            Self::Owner => "owner",
        }
    }

    /// What it may do.
    #[must_use]
    pub const fn scopes(self) -> &'static [&'static str] {
        match self {
            Self::Viewer => &[scope::APPS_READ, scope::EVENTS_READ, scope::APP_OPEN],
            Self::Developer => &[
                scope::APPS_READ,
                scope::EVENTS_READ,
                scope::APP_OPEN,
                scope::APPS_WRITE,
                scope::DEPLOY,
                scope::APP_EXEC,
                scope::APP_FORWARD,
                scope::SECRETS_READ,
                scope::SECRETS_WRITE,
            ],
            Self::Owner => &["*"],
        }
    }
}

impl FromStr for Role {
    type Err = ();

    /// A role of a newer release is no role here: it allows nothing.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut all = Self::ALL.into_iter();
        all.find(|role| role.as_str() == text).ok_or(())
    }
}

/// Body of [`LOGIN_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// Who, such as `anna` or `user:anna`.
    pub user: String,
    /// Their password.
    pub password: Secret,
    /// Where; the tenant that they were invited to if not given.
    #[serde(default)]
    pub tenant: Option<Tenant>,
}

/// Body of [`PASSWORD_PATH`]: what shows that it is the user, and the new password.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    /// Who, such as `anna` or `user:anna`.
    pub user: String,
    /// The password so far.
    #[serde(default)]
    pub current: Option<Secret>,
    /// A proof of the user's key, as for the token exchange, for who has one.
    #[serde(default)]
    pub proof: Option<String>,
    /// The password from here on.
    pub new: Secret,
}

/// Body of [`INVITATIONS_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The name that the person will have, such as `anna`.
    pub user: String,
    /// What they will be in the caller's tenant.
    pub role: Role,
    /// Their mail address, kept sealed; none if the invitation is handed over otherwise.
    #[serde(default)]
    pub email: Option<Secret>,
}

/// Answer of [`INVITATIONS_PATH`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Invited {
    /// What the person registers with, once. It is nowhere else.
    pub invitation: String,
    /// The subject that the person will be.
    pub user: String,
    /// When it ends.
    pub expires: Timestamp,
}

impl fmt::Debug for Invited {
    /// Without the invitation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invited")
            .field("user", &self.user)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Body of [`ACCEPT_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptRequest {
    /// The invitation.
    pub invitation: Secret,
    /// The password that the person chooses.
    pub password: Secret,
}

/// Body of [`ROLES_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleRequest {
    /// Who, such as `user:anna`.
    pub user: String,
    /// What they are in the caller's tenant from here on; nothing takes it away.
    #[serde(default)]
    pub role: Option<Role>,
}

/// Body of [`END_SESSIONS_PATH`] and [`ERASE_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectRequest {
    /// Whose, such as `user:anna`.
    pub subject: String,
}

/// What people ask of the issuer. Whoever cannot be told who they are learns nothing else: an unknown
/// name, a wrong password and somebody without one are the same refusal, after the same time.
pub trait People: Send + Sync + fmt::Debug {
    /// A token for the console ([`CONSOLE_AUDIENCE`]). `caller` has no token; its source is limited.
    fn login<'a>(
        &'a self,
        caller: Caller<'a>,
        request: LoginRequest,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>>;

    /// Another password, and no session of before counts any more.
    fn change_password<'a>(
        &'a self,
        caller: Caller<'a>,
        request: PasswordRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>>;

    /// An invitation into the caller's tenant; one of before for the same name is worth nothing then.
    fn invite<'a>(
        &'a self,
        caller: Caller<'a>,
        request: InviteRequest,
    ) -> BoxFuture<'a, Result<Invited, RequestError>>;

    /// Registers the invited person, once, and signs them in.
    fn accept<'a>(
        &'a self,
        caller: Caller<'a>,
        request: AcceptRequest,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>>;

    /// Says what somebody may do in the caller's tenant; their sessions end, so that it counts at once.
    fn set_role<'a>(
        &'a self,
        caller: Caller<'a>,
        request: RoleRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>>;

    /// Ends everything that a subject was given: the caller's own, or in the caller's tenant.
    fn end_sessions<'a>(
        &'a self,
        caller: Caller<'a>,
        request: SubjectRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>>;

    /// Destroys the keys of a subject's personal data, for ever.
    fn erase<'a>(
        &'a self,
        caller: Caller<'a>,
        request: SubjectRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_one_spelling_and_grow() {
        let mut before: &[&str] = &[];
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
            let scopes = role.scopes();
            assert!(scopes.contains(&"*") || before.iter().all(|scope| scopes.contains(scope)));
            before = scopes;
        }
        assert_eq!("Owner".parse::<Role>(), Err(()));
    }

    #[test]
    fn secrets_are_not_shown() {
        let request: LoginRequest =
            serde_json::from_str(r#"{"user":"anna","password":"sekrit"}"#).unwrap();
        assert!(!format!("{request:?}").contains("sekrit"));
        assert_eq!(request.password.reveal(), "sekrit");
        for bad in [
            "{}",
            r#"{"user":"anna"}"#,
            r#"{"user":"anna","password":1}"#,
            r#"{"user":"anna","password":"a","role":"owner"}"#,
            r#"{"user":"anna","user":"owner","password":"a"}"#,
        ] {
            assert!(serde_json::from_str::<LoginRequest>(bad).is_err(), "{bad}");
        }
    }
}
