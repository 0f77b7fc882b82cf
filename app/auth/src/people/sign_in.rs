//! Signing in by password, and changing it.

use tabbify_api::auth::issue::{Caller, RequestError};
use tabbify_api::auth::people::{CONSOLE_AUDIENCE, LoginRequest, PasswordRequest, Secret};
use tabbify_api::auth::{AuthError, IssuedToken};
use tabbify_process::chain;
use tabbify_token::Kind;
use tabbify_types::event::Event;
use tabbify_types::event::v1::PasswordChanged;
use tabbify_types::{EventId, Tenant};

use super::subject_of;
use crate::authority::{Draft, Inner, SESSION_LIFE, unavailable};
use crate::password::{PasswordError, Passwords};

/// What password verifiers are sealed as.
const PASSWORD: &str = "password";

/// The one refusal of whoever does not sign in: it does not say what was wrong.
const REFUSED: &str = "the name or the password is wrong";

impl Inner {
    pub(super) async fn login(
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

    pub(super) async fn console_session(
        &self,
        sub: String,
        tenant: Tenant,
    ) -> Result<IssuedToken, AuthError> {
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

    /// The event of a new password, which must be one that will do.
    pub(super) async fn new_password(
        &self,
        subject: &str,
        password: Secret,
    ) -> Result<Event, RequestError> {
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

    pub(super) async fn change_password(
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
}

fn hash_error(error: &PasswordError) -> AuthError {
    match error {
        PasswordError::Busy => AuthError::RateLimited,
        other => unavailable(other),
    }
}
