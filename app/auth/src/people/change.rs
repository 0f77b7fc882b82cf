//! What changes about somebody who is there: what they may do, that they are signed out, that they go.

use tabbify_api::auth::issue::{Caller, RequestError};
use tabbify_api::auth::people::{RoleRequest, SubjectRequest};
use tabbify_api::auth::scope;
use tabbify_process::chain;
use tabbify_token::Kind;
use tabbify_types::event::v1::{SubjectErased, TokenRevoked};
use tabbify_types::{Tenant, Timestamp};

use super::{role_changed, subject_of};
use crate::OWNER;
use crate::asker::{allows, may, of_kind};
use crate::authority::{Auth, Inner, unavailable};
use crate::keyring::SealError;

impl Inner {
    pub(super) async fn set_role(
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

    pub(super) async fn end_sessions(
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

    pub(super) async fn erase(
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
