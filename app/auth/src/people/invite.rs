//! Invitations: made by somebody who may, accepted once by whoever has the text.

use std::time::Duration;

use tabbify_api::auth::issue::{Caller, RequestError};
use tabbify_api::auth::people::{AcceptRequest, InviteRequest, Invited, Secret};
use tabbify_api::auth::{AuthError, IssuedToken, scope};
use tabbify_process::chain;
use tabbify_token::{Invitation, Kind};
use tabbify_types::event::v1::{UserInvited, UserRegistered};
use tabbify_types::{InviteId, Timestamp};

use super::{role_changed, subject_of};
use crate::asker::{may, of_kind};
use crate::authority::{Inner, unavailable};

/// Life of an invitation.
const INVITATION_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// LIMIT: a mail address, in bytes (RFC 5321 section 4.5.3.1.3).
const EMAIL_LEN_MAX: usize = 254;

/// What mail addresses are sealed as.
const EMAIL: &str = "email";

/// The one refusal of an invitation.
const NO_INVITATION: &str = "the invitation is not valid, or not any more";

impl Inner {
    pub(super) async fn invite(
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

    pub(super) async fn accept(
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
}
