//! Tokens of people's agents and of machines: what each order comes to, if the asker may have it.

use std::net::Ipv6Addr;
use std::time::Duration;

use tabbify_api::auth::issue::{API_AUDIENCE, RequestError, TokenOrder};
use tabbify_api::auth::people::CONSOLE_AUDIENCE;
use tabbify_api::auth::{AuthError, scope};
use tabbify_token::{Claims, Confirmation, JoinTerms, Kind, PublicKey, Scope};
use tabbify_types::{EventId, HostName, MeshKey, Tenant};

use super::{bad, life_of};
use crate::OWNER;
use crate::asker::{allows, may, of_kind};
use crate::authority::{Draft, Inner};

/// Life of an agent's token, unless another is asked for.
const AGENT_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Life of a join token, unless another is asked for.
const JOIN_LIFE: Duration = Duration::from_secs(10 * 60);
/// LIMIT: the shortest life that can be asked for: less is over before it is used.
const LIFE_MIN: Duration = Duration::from_secs(30);

/// What no agent may do, whoever it acts for: a person decides about it each time.
const NOT_FOR_AGENTS: [&str; 5] = [
    "*",
    scope::PEOPLE_WRITE,
    scope::TOKENS_WRITE,
    scope::MACHINES_WRITE,
    scope::AUTH_ISSUE,
];

impl Inner {
    pub(super) fn agent(
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

    pub(super) fn join(&self, asker: &Claims, order: TokenOrder) -> Result<Claims, RequestError> {
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
        // A tenant's owner brings machines for that tenant. Those that see others' apps are the
        // platform's, and so are tags: policy goes by them, also across tenants, and `role:node` hears
        // of every app.
        if (tenant != asker.tenant || !tags.is_empty()) && asker.sub != OWNER {
            let text = format!("only {OWNER} lets a machine join for another tenant or with tags");
            return Err(RequestError::Forbidden(text));
        }
        let root = self
            .checker
            .with_state(|state| state.root().map(PublicKey::bytes));
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
    pub(super) fn machine(
        &self,
        asker: &Claims,
        order: TokenOrder,
    ) -> Result<Claims, RequestError> {
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
                    life: life_of(Kind::Service),
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

    /// The same claims, if a token can be made of them: what is wrong with them is the asker's fault.
    fn sound(&self, claims: Claims) -> Result<Claims, RequestError> {
        match self.signer().map(|signer| signer.sign(&claims)) {
            Some(Err(error)) => Err(RequestError::BadRequest(format!("no such token: {error}"))),
            _ => Ok(claims),
        }
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

fn host_subject(host: &HostName) -> String {
    format!("host:{host}")
}
