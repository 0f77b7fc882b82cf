//! Who may have which token: the orders, the policy, renewal, revocation, the list.
//!
//! | kind | asked for by | life |
//! |---|---|---|
//! | `agent` | a person, within what they may do themselves | 30 days, at most 366 |
//! | `join` | a person who may let machines join | 10 min, at most 1 h |
//! | `host`, `runner`, `service` | a service that may issue; then renewed by the holder | 1 h, 30 min, 1 h |
//! | `registry` | whoever has a token, for their own repositories | 5 min |
//!
//! An agent never asks for a token. Who may not is told so (403); what is another tenant's is not
//! there (404).

mod orders;
mod registry;

use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{
    Admission, AdmitRequest, Caller, Issuer, RequestError, TokenOrder, TokenRecord,
};
use tabbify_api::auth::{IssuedToken, scope};
use tabbify_api::log::{Append, AppendError};
use tabbify_token::{Claims, Kind};
use tabbify_types::event::v1::TokenRevoked;
use tabbify_types::{EventId, NewEvent, Segment};

use crate::asker::allows;
use crate::authority::{Auth, Draft, Inner, unavailable};
use crate::checker::refused;
use crate::state::Issued;
use crate::{OWNER, admit};

/// Life of what is renewed.
const HOST_LIFE: Duration = Duration::from_secs(3600);
const RUNNER_LIFE: Duration = Duration::from_secs(30 * 60);
const SERVICE_LIFE: Duration = Duration::from_secs(3600);
/// LIMIT: tokens in one answer; more than a tenant can have in use.
const LIST_MAX: usize = 1000;

/// Who may ask for something.
const ASKERS: &[Kind] = &[
    Kind::User,
    Kind::Agent,
    Kind::Host,
    Kind::Runner,
    Kind::Service,
];
/// Kinds whose holders get a new token for their old one.
const RENEWED: &[Kind] = &[Kind::Host, Kind::Runner, Kind::Service];

impl Inner {
    async fn issue(
        &self,
        caller: &Caller<'_>,
        order: TokenOrder,
    ) -> Result<IssuedToken, RequestError> {
        let asker = self.asker(caller, ASKERS)?;
        let claims = match order {
            TokenOrder::Agent {
                name,
                scopes,
                life_s,
            } => self.agent(&asker, &name, &scopes, life_s)?,
            TokenOrder::Join { .. } => self.join(&asker, order)?,
            TokenOrder::Registry { access } => self.registry(&asker, &access)?,
            TokenOrder::Host { .. } | TokenOrder::Runner { .. } | TokenOrder::Service { .. } => {
                self.machine(&asker, order)?
            }
        };
        let by = (asker.sub != claims.sub).then_some(asker.sub.as_str());
        Ok(self.publish(&claims, by).await?)
    }

    async fn renew(&self, caller: &Caller<'_>) -> Result<IssuedToken, RequestError> {
        let verified = self
            .checker
            .verifier()
            .verify_own(caller.token, RENEWED, self.now());
        let held = verified.and_then(|old| {
            old.check_holder(caller.proven.as_ref())?;
            Ok(old)
        });
        let old = self.counted(caller, held.map_err(|error| refused(&error).into()))?;
        let draft = Draft {
            kind: old.kind,
            sub: old.sub.clone(),
            tenant: old.tenant.clone(),
            aud: old.aud.clone(),
            life: life_of(old.kind),
        };
        let fresh = self.claims(draft, EventId::mint());
        let claims = Claims {
            iat: fresh.iat,
            nbf: fresh.nbf,
            exp: fresh.exp,
            jti: fresh.jti,
            ..old
        };
        Ok(self.publish(&claims, None).await?)
    }

    async fn revoke(&self, caller: &Caller<'_>, jti: &str) -> Result<(), RequestError> {
        let asker = self.asker(caller, ASKERS)?;
        let unknown = || RequestError::NotFound("such token".to_owned());
        let expires = if asker.jti == jti {
            asker.exp
        } else {
            let token = self.checker.with_state(|state| state.token(jti).cloned());
            let token = token.ok_or_else(unknown)?;
            if !manages(&asker, &token) {
                return Err(unknown());
            }
            token.expires
        };
        let id: EventId = jti.parse().map_err(|_| unknown())?;
        let revoked = TokenRevoked {
            jti: jti.to_owned(),
            expires,
        };
        // Whoever revokes it again, here or elsewhere, appends nothing.
        let id = id.derived("revoked");
        let event = NewEvent::with_id(id, Segment::auth(), jti, &revoked.into());
        let event = event.map_err(|error| unavailable(&error))?;
        let appended = self.log.append(Append::of(vec![event])).await;
        let appended = appended.map_err(|error: AppendError| unavailable(&error))?;
        Ok(self.checker.reached(appended.last).await?)
    }

    fn tokens(&self, caller: &Caller<'_>) -> Result<Vec<TokenRecord>, RequestError> {
        let asker = self.asker(caller, ASKERS)?;
        let now = self.now();
        let listed = self.checker.with_state(|state| {
            let revoked = state.revocations();
            let mine = state
                .tokens()
                .filter(|(_, token)| token.expires > now && manages(&asker, token));
            let records = mine.map(|(jti, token)| TokenRecord {
                jti: jti.to_owned(),
                kind: token.kind.clone(),
                subject: token.subject.clone(),
                tenant: token.tenant.clone().unwrap_or_else(|| asker.tenant.clone()),
                scopes: token.scopes.clone(),
                tags: token.tags.clone(),
                by: token.by.clone(),
                issued: token.issued,
                expires: token.expires,
                used: token.used,
                revoked: revoked.cover(jti, &token.subject, token.issued),
            });
            records.take(LIST_MAX).collect()
        });
        Ok(listed)
    }
}

/// Whether somebody may see and revoke a token: their own doing, or their tenant's to manage.
fn manages(asker: &Claims, token: &Issued) -> bool {
    if asker.kind == Kind::Service {
        return allows(asker, scope::AUTH_ISSUE);
    }
    let own = token.tenant.as_ref() == Some(&asker.tenant);
    let scope = match token.kind.as_str() {
        "agent" => scope::TOKENS_WRITE,
        _ => scope::MACHINES_WRITE,
    };
    let asked = asker.kind == Kind::User && token.by.as_ref() == Some(&asker.sub);
    asker.sub == OWNER && allows(asker, scope) || own && (asked || allows(asker, scope))
}

const fn life_of(kind: Kind) -> Duration {
    match kind {
        Kind::Host => HOST_LIFE,
        Kind::Runner => RUNNER_LIFE,
        _ => SERVICE_LIFE,
    }
}

fn bad(text: &str) -> RequestError {
    RequestError::BadRequest(text.to_owned())
}

impl Issuer for Auth {
    fn issue<'a>(
        &'a self,
        caller: Caller<'a>,
        order: TokenOrder,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move { self.0.issue(&caller, order).await })
    }

    fn renew<'a>(&'a self, caller: Caller<'a>) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move { self.0.renew(&caller).await })
    }

    fn revoke<'a>(
        &'a self,
        caller: Caller<'a>,
        jti: &'a str,
    ) -> BoxFuture<'a, Result<(), RequestError>> {
        Box::pin(async move { self.0.revoke(&caller, jti).await })
    }

    fn tokens<'a>(
        &'a self,
        caller: Caller<'a>,
    ) -> BoxFuture<'a, Result<Vec<TokenRecord>, RequestError>> {
        Box::pin(async move { self.0.tokens(&caller) })
    }

    fn admit<'a>(
        &'a self,
        caller: Caller<'a>,
        request: AdmitRequest,
    ) -> BoxFuture<'a, Result<Admission, RequestError>> {
        Box::pin(async move { admit::admit(&self.0, &caller, request).await })
    }
}
