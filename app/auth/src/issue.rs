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

use std::net::Ipv6Addr;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{
    API_AUDIENCE, Admission, AdmitRequest, Caller, Issuer, REGISTRY_AUDIENCE, RepositoryAccess,
    RequestError, TokenOrder, TokenRecord,
};
use tabbify_api::auth::people::CONSOLE_AUDIENCE;
use tabbify_api::auth::{AuthError, IssuedToken, scope};
use tabbify_api::log::{Append, AppendError};
use tabbify_token::{Claims, Confirmation, JoinTerms, Kind, Scope, TokenError};
use tabbify_types::event::v1::TokenRevoked;
use tabbify_types::{EventId, HostName, MeshKey, NewEvent, Segment, Tenant};

use crate::authority::{Auth, Draft, Inner, unavailable};
use crate::checker::refused;
use crate::state::Issued;
use crate::{OWNER, admit};

/// Life of an agent's token, unless another is asked for.
const AGENT_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Life of a join token, unless another is asked for.
const JOIN_LIFE: Duration = Duration::from_secs(10 * 60);
/// Life of what is renewed.
const HOST_LIFE: Duration = Duration::from_secs(3600);
const RUNNER_LIFE: Duration = Duration::from_secs(30 * 60);
const SERVICE_LIFE: Duration = Duration::from_secs(3600);
/// LIMIT: the shortest life that can be asked for: less is over before it is used.
const LIFE_MIN: Duration = Duration::from_secs(30);
/// LIMIT: repositories of one registry token; each gives at most two scopes.
const REPOSITORIES_MAX: usize = 16;
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
/// What no agent may do, whoever it acts for: a person decides about it each time.
const NOT_FOR_AGENTS: [&str; 5] = [
    "*",
    scope::PEOPLE_WRITE,
    scope::TOKENS_WRITE,
    scope::MACHINES_WRITE,
    scope::AUTH_ISSUE,
];

impl Inner {
    /// Who asks: the bearer of a token of one of `kinds`, over a connection that has proven its key.
    pub(crate) fn asker(
        &self,
        caller: &Caller<'_>,
        kinds: &[Kind],
    ) -> Result<Claims, RequestError> {
        self.counted(caller, self.known(caller, kinds))
    }

    /// The same answer, unless its source has had too many like it.
    pub(crate) fn counted<T>(
        &self,
        caller: &Caller<'_>,
        answer: Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        match &answer {
            // Whoever comes with a token that has ended was known.
            Err(RequestError::Caller(AuthError::Expired(_))) => answer,
            Err(RequestError::Caller(_)) => {
                let now = self.now();
                let told = self.by_source.take(caller.source, now);
                self.refusals.count("token", None, !told, now);
                if told {
                    answer
                } else {
                    Err(AuthError::RateLimited.into())
                }
            }
            _ => answer,
        }
    }

    fn known(&self, caller: &Caller<'_>, kinds: &[Kind]) -> Result<Claims, RequestError> {
        let invalid = |error: TokenError| RequestError::from(refused(&error));
        let (verifier, now) = (self.checker.verifier(), self.now());
        let claims = match verifier.verify(caller.token, kinds, API_AUDIENCE, now) {
            // A person at the console asks with the console's session.
            Err(TokenError::Audience) if kinds.contains(&Kind::User) => {
                verifier.verify(caller.token, &[Kind::User], CONSOLE_AUDIENCE, now)
            }
            verified => verified,
        };
        let claims = claims.map_err(invalid)?;
        claims
            .check_holder(caller.proven.as_ref())
            .map_err(invalid)?;
        Ok(claims)
    }

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

    fn agent(
        &self,
        asker: &Claims,
        name: &str,
        scopes: &[String],
        life_s: Option<u64>,
    ) -> Result<Claims, RequestError> {
        of_kind(asker, Kind::User, "an agent is a person's")?;
        if !is_slug(name) {
            return Err(bad("an agent's name is 1 to 32 of a-z 0-9 -"));
        }
        let scopes = scopes.iter().map(|scope| granted(asker, scope));
        let scopes = scopes.collect::<Result<Vec<_>, _>>()?;
        if scopes.is_empty() {
            return Err(bad("an agent that may do nothing needs no token"));
        }
        let sub = format!("agent:{}/{name}", asker.tenant);
        let now = self.now();
        let taken = self.checker.with_state(|state| {
            let mut tokens = state.tokens();
            tokens.any(|(jti, issued)| {
                issued.subject == sub && issued.expires > now && !state.revocations().contain(jti)
            })
        });
        if taken {
            let text = format!("there is an agent {name}: revoke it first, or take another name");
            return Err(RequestError::Conflict(text));
        }
        let draft = Draft {
            kind: Kind::Agent,
            sub,
            tenant: asker.tenant.clone(),
            aud: API_AUDIENCE.to_owned(),
            life: life(life_s, AGENT_LIFE, Kind::Agent)?,
        };
        Ok(Claims {
            scopes,
            ..self.claims(draft, EventId::mint())
        })
    }

    fn join(&self, asker: &Claims, order: TokenOrder) -> Result<Claims, RequestError> {
        let TokenOrder::Join {
            host,
            tenant,
            tags,
            capabilities,
            coordinator,
            life_s,
        } = order
        else {
            return Err(bad("it is no order of a join token"));
        };
        of_kind(asker, Kind::User, "a person lets machines join")?;
        may(asker, scope::MACHINES_WRITE)?;
        let tenant = tenant.unwrap_or_else(|| asker.tenant.clone());
        // A tenant's owner brings machines for that tenant; those that see others' apps are the
        // platform's, and so are its tags.
        if tenant != asker.tenant && asker.sub != OWNER {
            let text = format!("only {OWNER} lets a machine join for {tenant}");
            return Err(RequestError::Forbidden(text));
        }
        let root = self
            .checker
            .with_state(|state| state.root().map(tabbify_token::PublicKey::bytes));
        let root =
            root.ok_or_else(|| AuthError::Unavailable("there is no platform yet".to_owned()))?;
        let draft = Draft {
            kind: Kind::Join,
            sub: host_subject(&host),
            tenant,
            aud: API_AUDIENCE.to_owned(),
            life: life(life_s, JOIN_LIFE, Kind::Join)?,
        };
        let claims = Claims {
            tags,
            join: Some(JoinTerms {
                root,
                coordinator,
                capabilities,
            }),
            ..self.claims(draft, EventId::mint())
        };
        self.sound(claims)
    }

    /// What a service hands out: it has checked what it says about the machine or instance.
    fn machine(&self, asker: &Claims, order: TokenOrder) -> Result<Claims, RequestError> {
        of_kind(
            asker,
            Kind::Service,
            "machines and instances get their tokens from a service",
        )?;
        may(asker, scope::AUTH_ISSUE)?;
        let claims = match order {
            TokenOrder::Host {
                host,
                tenant,
                tags,
                ulas,
                key,
                audience,
            } => Claims {
                tags,
                ..self.bound(
                    Kind::Host,
                    host_subject(&host),
                    tenant,
                    (ulas, key),
                    audience,
                )?
            },
            TokenOrder::Runner {
                app,
                instance,
                tenant,
                ulas,
                key,
                audience,
            } => {
                let sub = format!("runner:{app}/{instance}");
                self.bound(Kind::Runner, sub, tenant, (ulas, key), audience)?
            }
            TokenOrder::Service {
                role,
                scopes,
                key,
                audience,
            } => {
                if !is_slug(&role) {
                    return Err(bad("a role is 1 to 32 of a-z 0-9 -"));
                }
                let draft = Draft {
                    kind: Kind::Service,
                    sub: format!("service:{role}"),
                    tenant: Tenant::system(),
                    aud: audience_of(audience)?,
                    life: SERVICE_LIFE,
                };
                let scopes = scopes.iter().map(|scope| held(asker, scope));
                Claims {
                    scopes: scopes.collect::<Result<_, _>>()?,
                    cnf: key.map(|wg| Confirmation { wg }),
                    ..self.claims(draft, EventId::mint())
                }
            }
            TokenOrder::Agent { .. } | TokenOrder::Join { .. } | TokenOrder::Registry { .. } => {
                return Err(bad("it is no order of a machine's token"));
            }
        };
        self.sound(claims)
    }

    fn bound(
        &self,
        kind: Kind,
        sub: String,
        tenant: Tenant,
        (ulas, wg): (Vec<Ipv6Addr>, MeshKey),
        audience: Option<String>,
    ) -> Result<Claims, RequestError> {
        let draft = Draft {
            kind,
            sub,
            tenant,
            aud: audience_of(audience)?,
            life: life_of(kind),
        };
        Ok(Claims {
            ulas,
            cnf: Some(Confirmation { wg }),
            ..self.claims(draft, EventId::mint())
        })
    }

    fn registry(
        &self,
        asker: &Claims,
        access: &[RepositoryAccess],
    ) -> Result<Claims, RequestError> {
        if access.is_empty() || access.len() > REPOSITORIES_MAX {
            return Err(bad("a registry token is for 1 to 16 repositories"));
        }
        let mut scopes = Vec::new();
        for RepositoryAccess { repository, push } in access {
            let namespace = namespace_of(repository);
            let namespace = namespace.ok_or_else(|| {
                bad("a repository is <tenant>/<name>, of a-z 0-9 and . _ - inside")
            })?;
            let scope = |what: &str| {
                let scope = format!("registry:{what}:{repository}").parse::<Scope>();
                scope.map_err(|_| bad("a repository's name has at most 100 bytes"))
            };
            let own = namespace == asker.tenant.as_str();
            let machine = matches!(asker.kind, Kind::Host | Kind::Runner | Kind::Service);
            let sees = machine || allows(asker, scope::APPS_READ);
            if !(namespace == "platform" || own && sees) {
                return Err(RequestError::Forbidden(format!(
                    "{repository} is not yours to pull"
                )));
            }
            scopes.push(scope("pull")?);
            if *push {
                let platforms_own = asker.kind == Kind::Service && asker.tenant == Tenant::system();
                let makes = own && allows(asker, scope::APPS_WRITE);
                if !(makes || namespace == "platform" && platforms_own) {
                    return Err(RequestError::Forbidden(format!(
                        "{repository} is not yours to push"
                    )));
                }
                scopes.push(scope("push")?);
            }
        }
        let draft = Draft {
            kind: Kind::Registry,
            sub: asker.sub.clone(),
            tenant: asker.tenant.clone(),
            aud: REGISTRY_AUDIENCE.to_owned(),
            life: Kind::Registry.life_max(),
        };
        Ok(Claims {
            scopes,
            ..self.claims(draft, EventId::mint())
        })
    }

    /// The same claims, if a token can be made of them: what is wrong with them is the asker's fault.
    fn sound(&self, claims: Claims) -> Result<Claims, RequestError> {
        match self.signer().map(|signer| signer.sign(&claims)) {
            Some(Err(error)) => Err(RequestError::BadRequest(format!("no such token: {error}"))),
            _ => Ok(claims),
        }
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

fn bad(text: &str) -> RequestError {
    RequestError::BadRequest(text.to_owned())
}

pub(crate) fn allows(asker: &Claims, scope: &str) -> bool {
    scope.parse().is_ok_and(|scope| asker.allows(&scope))
}

/// # Errors
/// [`RequestError::Forbidden`] with the scope that is missing.
pub(crate) fn may(asker: &Claims, scope: &str) -> Result<(), RequestError> {
    match allows(asker, scope) {
        true => Ok(()),
        false => Err(RequestError::Forbidden(format!(
            "it needs the scope {scope}"
        ))),
    }
}

pub(crate) fn of_kind(asker: &Claims, kind: Kind, why: &str) -> Result<(), RequestError> {
    match asker.kind == kind {
        true => Ok(()),
        false => Err(RequestError::Forbidden(format!(
            "{why}; a token of kind {} does not do",
            asker.kind
        ))),
    }
}

/// A scope that the asker holds, for all apps or for the one that it names.
fn held(asker: &Claims, text: &str) -> Result<Scope, RequestError> {
    let scope: Scope = text
        .parse()
        .map_err(|error| RequestError::BadRequest(format!("{text:?} is {error}")))?;
    let for_one_app = text.rsplit_once(':').is_some_and(|(wider, app)| {
        app.parse::<tabbify_types::AppId>().is_ok() && allows(asker, wider)
    });
    match asker.allows(&scope) || for_one_app {
        true => Ok(scope),
        false => Err(RequestError::Forbidden(format!(
            "{text} is more than you may do yourself"
        ))),
    }
}

/// The same for an agent.
fn granted(asker: &Claims, text: &str) -> Result<Scope, RequestError> {
    if NOT_FOR_AGENTS.contains(&text) {
        return Err(RequestError::Forbidden(format!(
            "{text} is not for an agent"
        )));
    }
    held(asker, text)
}

const fn life_of(kind: Kind) -> Duration {
    match kind {
        Kind::Host => HOST_LIFE,
        Kind::Runner => RUNNER_LIFE,
        _ => SERVICE_LIFE,
    }
}

fn life(asked: Option<u64>, usual: Duration, kind: Kind) -> Result<Duration, RequestError> {
    let life = asked.map_or(usual, Duration::from_secs);
    if (LIFE_MIN..=kind.life_max()).contains(&life) {
        return Ok(life);
    }
    let (min, max) = (LIFE_MIN.as_secs(), kind.life_max().as_secs());
    Err(RequestError::BadRequest(format!(
        "a token of kind {kind} lives {min} s to {max} s"
    )))
}

/// Audiences of people's sessions have a meaning of their own: nobody orders them.
fn audience_of(asked: Option<String>) -> Result<String, RequestError> {
    let audience = asked.unwrap_or_else(|| API_AUDIENCE.to_owned());
    let sound = audience
        .strip_prefix("tabbify-")
        .is_some_and(|rest| is_slug(rest) && audience != CONSOLE_AUDIENCE);
    match sound {
        true => Ok(audience),
        false => Err(bad("an audience is tabbify-<role>")),
    }
}

fn is_slug(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=32).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whose a repository is, if its name is one (OCI distribution specification, "pulling manifests"): no
/// part of it may lead elsewhere where it becomes a path.
fn namespace_of(repository: &str) -> Option<&str> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let ends = [part.bytes().next(), part.bytes().last()];
        ends.into_iter().all(|end| end.is_some_and(plain))
            && part.bytes().all(|b| plain(b) || b"._-".contains(&b))
            && !part.contains("..")
    };
    let (namespace, _) = repository.split_once('/')?;
    repository.split('/').all(part).then_some(namespace)
}

pub(crate) fn host_subject(host: &HostName) -> String {
    format!("host:{host}")
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
