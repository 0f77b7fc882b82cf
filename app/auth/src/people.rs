//! People: passwords, invitations, roles, the end of sessions, erasure.
//!
//! ```text
//!  invite ─▶ user_invited, role_changed ─▶ accept ─▶ user_registered, password_changed ─▶ login
//! ```
//!
//! Everything about somebody is under one key of the log, and each decision expects its revision:
//! of two that meet, one is told that something has changed meanwhile.

use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{Caller, RequestError};
use tabbify_api::auth::people::{
    AcceptRequest, CONSOLE_AUDIENCE, InviteRequest, Invited, LoginRequest, PasswordRequest, People,
    Role, RoleRequest, Secret, SubjectRequest,
};
use tabbify_api::auth::{AuthError, IssuedToken, scope};
use tabbify_api::log::{AppendError, Expect};
use tabbify_process::chain;
use tabbify_token::{Claims, Invitation, Kind};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{
    PasswordChanged, RoleChanged, SessionsEnded, SubjectErased, TokenRevoked, UserInvited,
    UserRegistered,
};
use tabbify_types::{EventId, InviteId, Rev, Sealed, Tenant, Timestamp};

use crate::OWNER;
use crate::authority::{Auth, Draft, Inner, SESSION_LIFE, unavailable};
use crate::issue::{allows, may, of_kind};
use crate::keyring::SealError;
use crate::password::{PasswordError, Passwords};

/// Life of an invitation.
const INVITATION_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// LIMIT: a user's name, in bytes.
const NAME_LEN_MAX: usize = 63;
/// LIMIT: a mail address, in bytes (RFC 5321 section 4.5.3.1.3).
const EMAIL_LEN_MAX: usize = 254;

/// What password verifiers are sealed as.
const PASSWORD: &str = "password";
/// What mail addresses are sealed as.
const EMAIL: &str = "email";

/// The one refusal of whoever does not sign in: it does not say what was wrong.
const REFUSED: &str = "the name or the password is wrong";
/// The one refusal of an invitation.
const NO_INVITATION: &str = "the invitation is not valid, or not any more";

impl Inner {
    async fn login(
        &self,
        caller: &Caller<'_>,
        request: LoginRequest,
    ) -> Result<IssuedToken, RequestError> {
        let subject = subject_of(&request.user).unwrap_or_default();
        self.check_password(caller.source, &subject, request.password)
            .await?;
        let home = self
            .checker
            .with_state(|state| state.user(&subject).map(|user| user.tenant.clone()));
        let wrong = || AuthError::Invalid(REFUSED.to_owned());
        let tenant = request.tenant.or(home).ok_or_else(wrong)?;
        let token = self.console_session(subject, tenant).await;
        // Somebody who belongs elsewhere learns no more than a stranger.
        token.map_err(|error| match error {
            AuthError::Invalid(_) => wrong().into(),
            other => other.into(),
        })
    }

    async fn console_session(&self, sub: String, tenant: Tenant) -> Result<IssuedToken, AuthError> {
        let draft = Draft {
            kind: Kind::User,
            sub,
            tenant,
            aud: CONSOLE_AUDIENCE.to_owned(),
            life: SESSION_LIFE,
        };
        self.publish_user(draft, EventId::mint()).await
    }

    /// Whether it is the subject's password; counted, limited, and as slow for whom there is not.
    async fn check_password(
        &self,
        source: &str,
        subject: &str,
        password: Secret,
    ) -> Result<(), AuthError> {
        let now = self.now();
        let known = self
            .checker
            .with_state(|state| state.user(subject).is_some());
        let counted = known.then_some(subject);
        let pair = format!("{subject} {source}");
        // Taken before the work and given back after it, so that a hundred at once are a hundred.
        let budgets = [
            (&self.by_source, source),
            (&self.by_pair, pair.as_str()),
            (&self.by_subject, subject),
        ];
        for (taken, (limiter, name)) in budgets.iter().enumerate() {
            if !limiter.take(name, now) {
                for (limiter, name) in &budgets[..taken] {
                    limiter.give_back(name, now);
                }
                self.refusals.count(PASSWORD, counted, true, now);
                return Err(AuthError::RateLimited);
            }
        }
        let give_back = || {
            for (limiter, name) in &budgets {
                limiter.give_back(name, now);
            }
        };
        let stored = self.stored(subject).await;
        match self.passwords.check(password, stored).await {
            Ok(true) => {
                give_back();
                Ok(())
            }
            Ok(false) => {
                self.refusals.count(PASSWORD, counted, false, now);
                Err(AuthError::Invalid(REFUSED.to_owned()))
            }
            Err(error) => {
                give_back();
                Err(hash_error(&error))
            }
        }
    }

    /// What the subject's password is checked with, if there is one that can be read.
    async fn stored(&self, subject: &str) -> Option<String> {
        let sealed = self.checker.with_state(|state| {
            state.user(subject)?;
            state.person(subject)?.password.clone()
        })?;
        let (keyring, subject) = (self.keyring.clone()?, subject.to_owned());
        let opening = move || {
            let opened = keyring.open(&subject, PASSWORD, &sealed);
            opened.map(|text| text.to_string())
        };
        match tokio::task::spawn_blocking(opening).await.ok()? {
            Ok(stored) => Some(stored),
            Err(error) => {
                tracing::error!(role = "auth", error = %chain(&error), "a password cannot be opened");
                None
            }
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

    /// The event of a new password, which must be one that will do.
    async fn new_password(&self, subject: &str, password: Secret) -> Result<Event, RequestError> {
        let unfit = |error: PasswordError| match error {
            PasswordError::Unfit(_) => RequestError::BadRequest(error.to_string()),
            other => hash_error(&other).into(),
        };
        Passwords::fit(&password, subject).map_err(unfit)?;
        let stored = self.passwords.hash(password).await.map_err(unfit)?;
        let changed = PasswordChanged {
            user: subject.to_owned(),
            verifier: self.seal(subject, PASSWORD, stored).await?,
        };
        Ok(changed.into())
    }

    async fn change_password(
        &self,
        caller: &Caller<'_>,
        request: PasswordRequest,
    ) -> Result<(), RequestError> {
        let subject = subject_of(&request.user).unwrap_or_default();
        // Before the check: what is decided below expects what was true when it was begun.
        let rev = self.rev(&subject);
        match (request.current, request.proof) {
            (Some(current), None) => {
                self.check_password(caller.source, &subject, current)
                    .await?
            }
            (None, Some(proof)) => {
                let proven =
                    self.check_proof(&proof)
                        .and_then(|(who, _, _)| match who == subject {
                            true => Ok(()),
                            false => {
                                Err(AuthError::Invalid("the proof is another user's".to_owned()))
                            }
                        });
                self.counted(caller, proven.map_err(RequestError::from))?;
            }
            _ => {
                let text = "give the current password or a proof, one of them";
                return Err(RequestError::BadRequest(text.to_owned()));
            }
        }
        let changed = self.new_password(&subject, request.new).await?;
        let ended = self.end_of(&subject);
        self.decide(&subject, vec![changed, ended], rev).await
    }

    async fn invite(
        &self,
        caller: &Caller<'_>,
        request: InviteRequest,
    ) -> Result<Invited, RequestError> {
        let asker = self.asker(caller, &[Kind::User, Kind::Agent])?;
        of_kind(&asker, Kind::User, "a person invites people")?;
        may(&asker, scope::PEOPLE_WRITE)?;
        self.within(&asker, Some(request.role))?;
        let subject = subject_of(&request.user).ok_or_else(|| {
            RequestError::BadRequest("a name is 1 to 63 of a-z 0-9 . _ -, such as anna".to_owned())
        })?;
        let email = request.email.as_ref().map_or("", Secret::reveal).to_owned();
        if email.len() > EMAIL_LEN_MAX || email.chars().any(char::is_control) {
            let text = "a mail address has at most 254 bytes and no control characters";
            return Err(RequestError::BadRequest(text.to_owned()));
        }
        let rev = self.rev(&subject);
        if self
            .checker
            .with_state(|state| state.user(&subject).is_some())
        {
            let text = format!("{subject} is there already: say what they may do here instead");
            return Err(RequestError::Conflict(text));
        }
        let iat = Timestamp::from_secs(self.now().secs());
        let invitation = Invitation {
            iss: self.platform().clone(),
            sub: subject.clone(),
            tenant: asker.tenant.clone(),
            jti: InviteId::mint(),
            iat,
            exp: iat.plus(INVITATION_LIFE),
        };
        let signer = self.signer().ok_or_else(|| {
            AuthError::Unavailable("no issuer key of this machine counts any more".to_owned())
        })?;
        let text = invitation
            .sign(&signer)
            .map_err(|error| unavailable(&error))?;
        let invited = UserInvited {
            invite: invitation.jti,
            user: subject.clone(),
            tenant: invitation.tenant.clone(),
            email: self.seal(&subject, EMAIL, email).await?,
            expires: invitation.exp,
        };
        let role = role_changed(&subject, &asker.tenant, Some(request.role));
        self.decide(&subject, vec![invited.into(), role], rev)
            .await?;
        Ok(Invited {
            invitation: text,
            user: subject,
            expires: invitation.exp,
        })
    }

    async fn accept(
        &self,
        caller: &Caller<'_>,
        request: AcceptRequest,
    ) -> Result<IssuedToken, RequestError> {
        let now = self.now();
        let limited = !self.by_source.take(caller.source, now);
        let refuse = |error: AuthError| {
            self.refusals.count("invitation", None, limited, now);
            error
        };
        if limited {
            return Err(refuse(AuthError::RateLimited).into());
        }
        let invalid = || refuse(AuthError::Invalid(NO_INVITATION.to_owned()));
        let text = request.invitation.reveal();
        let invitation = Invitation::verify(text, &self.checker.verifier(), now);
        let invitation = invitation.map_err(|error| {
            tracing::debug!(role = "auth", error = %chain(&error), "an invitation is refused");
            invalid()
        })?;
        let subject = invitation.sub;
        let rev = self.checker.with_state(|state| {
            let person = state.person(&subject)?;
            let newest = person.invite.as_ref()?;
            let good = newest.id == invitation.jti && newest.tenant == invitation.tenant;
            (good && state.user(&subject).is_none()).then_some(person.rev)
        });
        let rev = rev.ok_or_else(invalid)?;
        self.by_source.give_back(caller.source, now);
        let registered = UserRegistered {
            user: subject.clone(),
            tenant: invitation.tenant.clone(),
            key: None,
        };
        let password = self.new_password(&subject, request.password).await?;
        let decided = self
            .decide(&subject, vec![registered.into(), password], rev)
            .await;
        decided.map_err(|error| match error {
            RequestError::Conflict(_) => AuthError::Invalid(NO_INVITATION.to_owned()).into(),
            other => other,
        })?;
        Ok(self.console_session(subject, invitation.tenant).await?)
    }

    async fn set_role(
        &self,
        caller: &Caller<'_>,
        request: RoleRequest,
    ) -> Result<(), RequestError> {
        let asker = self.asker(caller, &[Kind::User, Kind::Agent])?;
        of_kind(&asker, Kind::User, "a person says what people may do")?;
        may(&asker, scope::PEOPLE_WRITE)?;
        self.within(&asker, request.role)?;
        let unknown = || RequestError::NotFound("such user".to_owned());
        let subject = subject_of(&request.user).ok_or_else(unknown)?;
        let rev = self.rev(&subject);
        if subject == OWNER {
            return Err(RequestError::Forbidden(format!(
                "{OWNER} stays what they are"
            )));
        }
        if self
            .checker
            .with_state(|state| state.user(&subject).is_none())
        {
            return Err(unknown());
        }
        // Nobody takes from somebody who is more than they are themselves.
        self.within(&asker, self.role(&subject, &asker.tenant))?;
        let role = role_changed(&subject, &asker.tenant, request.role);
        let ended = self.end_of(&subject);
        self.decide(&subject, vec![role, ended], rev).await?;
        self.revoke_agents(&subject, Some(&asker.tenant)).await
    }

    async fn end_sessions(
        &self,
        caller: &Caller<'_>,
        request: SubjectRequest,
    ) -> Result<(), RequestError> {
        let asker = self.asker(caller, &[Kind::User, Kind::Agent, Kind::Service])?;
        let subject = request.subject;
        let own = asker.sub == subject;
        let machine = ["host:", "runner:"]
            .iter()
            .any(|kind| subject.starts_with(kind));
        let in_tenant = self.role(&subject, &asker.tenant).is_some()
            || subject.starts_with(&format!("agent:{}/", asker.tenant));
        let allowed = match asker.kind {
            Kind::Service => machine && allows(&asker, scope::AUTH_ISSUE),
            Kind::User => own || in_tenant && allows(&asker, scope::PEOPLE_WRITE),
            _ => own,
        };
        if !allowed {
            return Err(RequestError::NotFound("such subject".to_owned()));
        }
        let ended = self.end_of(&subject);
        let recorded = self.record(&subject, vec![ended], None).await;
        recorded.map_err(|error| unavailable(&error))?;
        self.revoke_agents(&subject, None).await
    }

    async fn erase(
        &self,
        caller: &Caller<'_>,
        request: SubjectRequest,
    ) -> Result<(), RequestError> {
        let asker = self.asker(caller, &[Kind::User, Kind::Agent])?;
        of_kind(&asker, Kind::User, "a person has people erased")?;
        may(&asker, scope::PEOPLE_WRITE)?;
        let subject = request.subject;
        let rev = self.rev(&subject);
        let here = self.checker.with_state(|state| {
            let invited = state
                .person(&subject)
                .and_then(|person| person.invite.as_ref());
            let homes = [
                state.user(&subject).map(|user| &user.tenant),
                invited.map(|invite| &invite.tenant),
            ];
            homes
                .into_iter()
                .flatten()
                .any(|home| *home == asker.tenant)
        });
        if !here || subject == OWNER {
            return Err(RequestError::NotFound("such user".to_owned()));
        }
        let version = self.key_version(&subject);
        let erased = SubjectErased {
            subject: subject.clone(),
        };
        let events = vec![erased.into(), self.end_of(&subject)];
        self.decide(&subject, events, rev).await?;
        self.destroy(subject, version)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(())
    }

    async fn destroy(&self, subject: String, version: u32) -> Result<(), SealError> {
        let Some(keyring) = self.keyring.clone() else {
            return Ok(());
        };
        let destroying = move || keyring.destroy(&subject, version);
        // A task that is cancelled with the process is done again at the next start.
        tokio::task::spawn_blocking(destroying)
            .await
            .unwrap_or(Ok(()))
    }

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

    /// The agents that somebody has let act for them act no more.
    async fn revoke_agents(&self, by: &str, tenant: Option<&Tenant>) -> Result<(), RequestError> {
        let agents: Vec<(String, Timestamp)> = self.checker.with_state(|state| {
            let agents = state.tokens().filter(|(jti, token)| {
                token.kind == Kind::Agent.as_str()
                    && token.by.as_deref() == Some(by)
                    && tenant.is_none_or(|tenant| token.tenant.as_ref() == Some(tenant))
                    && !state.revocations().contain(jti)
            });
            agents
                .map(|(jti, token)| (jti.to_owned(), token.expires))
                .collect()
        });
        for (jti, expires) in agents {
            let revoked = TokenRevoked {
                jti: jti.clone(),
                expires,
            };
            let recorded = self.record(&jti, vec![revoked.into()], None).await;
            recorded.map_err(|error| unavailable(&error))?;
        }
        Ok(())
    }
}

impl Auth {
    /// Destroys what is to be destroyed: erasure is done again after a crash until it is done.
    pub(crate) async fn destroy_erased(&self) {
        let inner = &self.0;
        let erased: Vec<(String, u32)> = inner.checker.with_state(|state| {
            let erased = state.persons().filter(|(_, person)| person.erasures > 0);
            erased
                .map(|(subject, person)| (subject.to_owned(), person.erasures))
                .collect()
        });
        for (subject, version) in erased {
            if let Err(error) = inner.destroy(subject, version).await {
                tracing::error!(role = "auth", error = %chain(&error), "an erased key is still there");
            }
        }
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

fn hash_error(error: &PasswordError) -> AuthError {
    match error {
        PasswordError::Busy => AuthError::RateLimited,
        other => unavailable(other),
    }
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
