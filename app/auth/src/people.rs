//! People: passwords, invitations, roles, the end of sessions, erasure.
//!
//! ```text
//!  invite ─▶ user_invited, role_changed ─▶ accept ─▶ user_registered, password_changed ─▶ login
//! ```
//!
//! Everything about somebody is under one key of the log, and each decision expects its revision:
//! of two that meet, one is told that something has changed meanwhile.

mod change;
mod invite;
mod sign_in;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{Caller, RequestError};
use tabbify_api::auth::people::{
    AcceptRequest, InviteRequest, Invited, LoginRequest, PasswordRequest, People, Role,
    RoleRequest, SubjectRequest,
};
use tabbify_api::auth::{AuthError, IssuedToken};
use tabbify_api::log::{AppendError, Expect};
use tabbify_token::Claims;
use tabbify_types::event::Event;
use tabbify_types::event::v1::{RoleChanged, SessionsEnded};
use tabbify_types::{Rev, Sealed, Tenant, Timestamp};

use crate::authority::{Auth, Inner, unavailable};
use crate::keyring::SealError;

/// LIMIT: a user's name, in bytes.
const NAME_LEN_MAX: usize = 63;

impl Inner {
    /// Somebody says about others only what they could be made to be themselves.
    fn within(&self, asker: &Claims, role: Option<Role>) -> Result<(), RequestError> {
        let own = self.role(&asker.sub, &asker.tenant);
        match role {
            Some(role) if own.is_none_or(|own| role > own) => {
                let text = format!("{} is more than you are here", role.as_str());
                Err(RequestError::Forbidden(text))
            }
            _ => Ok(()),
        }
    }

    fn rev(&self, subject: &str) -> Rev {
        let rev = self
            .checker
            .with_state(|state| state.person(subject).map(|person| person.rev));
        rev.unwrap_or_default()
    }

    fn end_of(&self, subject: &str) -> Event {
        let now = Timestamp::from_secs(self.now().secs());
        // What was issued in the second of an earlier end is of the next second.
        let upto = self.after_end(subject).map_or(now, |after| after.max(now));
        let ended = SessionsEnded {
            subject: subject.to_owned(),
            upto,
        };
        ended.into()
    }

    /// Writes what was decided about somebody, if nothing has changed about them since `rev`.
    async fn decide(
        &self,
        subject: &str,
        events: Vec<Event>,
        rev: Rev,
    ) -> Result<(), RequestError> {
        let expect = match rev {
            Rev(0) => Expect::None,
            rev => Expect::Rev(rev),
        };
        match self.record(subject, events, Some(expect)).await {
            Ok(_) => Ok(()),
            Err(AppendError::Conflict { .. }) => {
                let text = format!("something about {subject} has changed meanwhile: look again");
                Err(RequestError::Conflict(text))
            }
            Err(error) => Err(unavailable(&error).into()),
        }
    }

    async fn seal(
        &self,
        subject: &str,
        what: &'static str,
        text: String,
    ) -> Result<Sealed, AuthError> {
        let none = "this issuer has no place for the keys of people";
        let keyring = self.keyring.clone();
        let keyring = keyring.ok_or_else(|| AuthError::Unavailable(none.to_owned()))?;
        let version = self.key_version(subject);
        let subject = subject.to_owned();
        let sealing = move || keyring.seal(&subject, version, what, &text);
        let sealed = tokio::task::spawn_blocking(sealing).await;
        let sealed = sealed.map_err(|error| unavailable(&error))?;
        sealed.map_err(|error: SealError| unavailable(&error))
    }

    fn key_version(&self, subject: &str) -> u32 {
        let erasures = self
            .checker
            .with_state(|state| state.person(subject).map(|person| person.erasures));
        erasures.unwrap_or(0).saturating_add(1)
    }
}

/// `anna` and `user:anna` are the same; anything else is nobody.
fn subject_of(name: &str) -> Option<String> {
    let name = name.strip_prefix("user:").unwrap_or(name);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let inside = |b: u8| plain(b) || b"._-".contains(&b);
    let good = (1..=NAME_LEN_MAX).contains(&name.len())
        && name.bytes().all(inside)
        && name.bytes().next().is_some_and(plain);
    good.then(|| format!("user:{name}"))
}

fn role_changed(subject: &str, tenant: &Tenant, role: Option<Role>) -> Event {
    let changed = RoleChanged {
        user: subject.to_owned(),
        tenant: tenant.clone(),
        role: role.map(|role| role.as_str().to_owned()),
    };
    changed.into()
}

impl People for Auth {
    fn login<'a>(
        &'a self,
        caller: Caller<'a>,
        request: LoginRequest,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move { self.0.login(&caller, request).await })
    }

    fn change_password<'a>(
        &'a self,
        caller: Caller<'a>,
        request: PasswordRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.0.change_password(&caller, request).await })
    }

    fn invite<'a>(
        &'a self,
        caller: Caller<'a>,
        request: InviteRequest,
    ) -> BoxFuture<'a, Result<Invited, RequestError>> {
        Box::pin(async move { self.0.invite(&caller, request).await })
    }

    fn accept<'a>(
        &'a self,
        caller: Caller<'a>,
        request: AcceptRequest,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move { self.0.accept(&caller, request).await })
    }

    fn set_role<'a>(
        &'a self,
        caller: Caller<'a>,
        request: RoleRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.0.set_role(&caller, request).await })
    }

    fn end_sessions<'a>(
        &'a self,
        caller: Caller<'a>,
        request: SubjectRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.0.end_sessions(&caller, request).await })
    }

    fn erase<'a>(
        &'a self,
        caller: Caller<'a>,
        request: SubjectRequest,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.0.erase(&caller, request).await })
    }
}
