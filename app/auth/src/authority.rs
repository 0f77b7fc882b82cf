//! The issuer at work: exchanges proofs for tokens, tickets for sessions, and verifies.
//!
//! | what | audience | life | kept by |
//! |---|---|---|---|
//! | token | `tabbify-api` | 15 min | programs, as bearer |
//! | ticket | `tabbify-ticket:<app>` | 60 s, once | a link that opens a browser |
//! | session | `tabbify-session:<app>` | 12 h | a cookie of the app's own host |
//! | console session | `tabbify-console` | 12 h | a cookie of the console |
//!
//! All four are signed tokens of the caller's kind; their audiences keep them apart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{API_AUDIENCE, session_audience};
use tabbify_api::auth::people::Role;
use tabbify_api::auth::{self, AuthError, Authority, Identity, IssuedToken};
use tabbify_api::log::{Append, AppendError, EventLog, Expect, LogScope};
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_token::{Claims, Kind, LEEWAY, OwnerProof, PlatformId, Scope, Signer, Verifier};
use tabbify_types::event::v1::TokenIssued;
use tabbify_types::event::{Event, EventError};
use tabbify_types::{AppId, EventId, NewEvent, Position, Segment, SigningKeyId, Tenant, Timestamp};

use crate::checker::{CALLERS, Checker, FollowError, refused, ticket_audience};
use crate::issuers::IssuerKeys;
use crate::keyring::Keyring;
use crate::limits::Limiter;
use crate::once::{Once, Use};
use crate::password::{Cost, Passwords};
use crate::refusals::Refusals;
use crate::state::State;
use crate::{Keys, OWNER};

/// Life of a token that a proof was exchanged for.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
/// Life of a ticket: the time between a click and the page that it opens.
const TICKET_LIFE: Duration = Duration::from_secs(60);
/// Life of a browser's session with one app or with the console.
pub(crate) const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);

/// LIMIT: failures of one source that get their reason at once, and how fast they are forgiven.
const SOURCE_BURST: u32 = 20;
const SOURCE_REFILL: Duration = Duration::from_secs(3);
/// LIMIT: wrong passwords for one name from one source. Whoever forgot theirs has five tries, and then
/// one every half minute.
const PAIR_BURST: u32 = 5;
const PAIR_REFILL: Duration = Duration::from_secs(30);
/// LIMIT: wrong passwords for one name from everywhere: what is left to somebody with many addresses.
/// It shuts the name's owner out of signing in by password while it lasts, and of nothing else.
const SUBJECT_BURST: u32 = 50;
const SUBJECT_REFILL: Duration = Duration::from_secs(10);

/// How often refused sign-ins are written down, unless it is said.
const REFUSALS_EVERY: Duration = Duration::from_secs(60);

/// How the issuer works.
#[derive(Debug)]
pub struct Config {
    /// The keys that sign.
    pub issuers: IssuerKeys,
    /// Where the keys of subjects are; without, nobody has a password and nobody is invited.
    pub subjects: Option<PathBuf>,
    /// What a new password hash costs.
    pub password: Cost,
    /// How often refused sign-ins are written down, where there were any.
    pub refusals_every: Duration,
    /// Where what is known is stored, so that auth starts while the log is away.
    pub snapshots: Option<PathBuf>,
}

impl Config {
    /// With the keys of a platform, and everything else as it is by default.
    #[must_use]
    pub fn of(keys: &Keys) -> Self {
        Self {
            subjects: keys.dir.as_ref().map(|dir| dir.join("subjects")),
            ..Self::new(IssuerKeys::of(keys))
        }
    }

    /// With these keys alone, and everything else as it is by default.
    #[must_use]
    pub const fn new(issuers: IssuerKeys) -> Self {
        Self {
            issuers,
            subjects: None,
            password: Cost::RECOMMENDED,
            refusals_every: REFUSALS_EVERY,
            snapshots: None,
        }
    }
}

/// Why auth cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be followed.
    #[error("what auth knows cannot be read from the log")]
    Follow(#[source] FollowError),
    /// No issuer key of this machine counts.
    #[error("issuer key {kid} counts in the log and is not on this machine: restore its file")]
    IssuerKey {
        /// The newest that counts.
        kid: SigningKeyId,
    },
}

/// The issuer. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Auth(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) checker: Checker,
    pub(crate) issuers: IssuerKeys,
    pub(crate) keyring: Option<Keyring>,
    pub(crate) passwords: Passwords,
    pub(crate) by_source: Limiter,
    pub(crate) by_pair: Limiter,
    pub(crate) by_subject: Limiter,
    pub(crate) refusals: Refusals,
    first: Signer,
    clock: Arc<dyn Clock>,
    proofs: Once,
    tickets: Once,
}

impl Auth {
    /// Folds the log, then follows it in the task `auth-follow`; `auth-refusals` writes down how many
    /// sign-ins were refused. Waits for a log that is away, unless there is a snapshot to begin with.
    ///
    /// # Errors
    /// [`StartError`]; call [`crate::bootstrap()`] before.
    pub async fn start(
        log: Arc<dyn EventLog>,
        keys: &Keys,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        Self::open(log, Config::of(keys), clock, tasks).await
    }

    /// As [`Auth::start`], with everything said.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(
        log: Arc<dyn EventLog>,
        config: Config,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let (events, place) = (Arc::clone(&log), config.snapshots.as_deref());
        let checker = Checker::start(events, place, Arc::clone(&clock), tasks).await;
        let checker = checker.map_err(StartError::Follow)?;
        let platform = checker.verifier().platform().clone();
        let counting = checker.with_state(|state| state.issuers().to_vec());
        let Some(first) = config.issuers.signer(&platform, &counting) else {
            let newest = counting.last().map(|key| key.bytes().id());
            let kid = newest.ok_or(StartError::Follow(FollowError::NoPlatform))?;
            return Err(StartError::IssuerKey { kid });
        };
        let position = checker.known().read(|view| view.position);
        tracing::info!(role = "auth", %platform, %position, "started");
        let now = clock.now();
        let auth = Self(Arc::new(Inner {
            log,
            checker,
            issuers: config.issuers,
            keyring: config.subjects.map(Keyring::new),
            passwords: Passwords::new(config.password),
            by_source: Limiter::new(SOURCE_BURST, SOURCE_REFILL),
            by_pair: Limiter::new(PAIR_BURST, PAIR_REFILL),
            by_subject: Limiter::new(SUBJECT_BURST, SUBJECT_REFILL),
            refusals: Refusals::default(),
            first,
            clock,
            proofs: Once::new(now),
            tickets: Once::new(now),
        }));
        auth.destroy_erased().await;
        let (inner, stop, every) = (Arc::clone(&auth.0), tasks.token(), config.refusals_every);
        tasks.spawn("auth-refusals", Importance::Detached, async move {
            while stop
                .run_until_cancelled(tokio::time::sleep(every))
                .await
                .is_some()
            {
                inner.write_refusals().await;
            }
            inner.write_refusals().await;
        });
        Ok(auth)
    }

    /// What auth may do in the log, [`crate::bootstrap()`] included: read and write its own two
    /// segments.
    #[must_use]
    pub fn log_scope() -> LogScope {
        let own = State::filter().segments;
        LogScope {
            actor: "service:auth".to_owned(),
            write: own.clone(),
            read: own,
        }
    }

    /// Signs as this platform's issuer: leases, in the coordinator of the same process. Take a new one
    /// for every signature: the key that signs changes with a rotation.
    #[must_use]
    pub fn signer(&self) -> Signer {
        self.0.signer().unwrap_or_else(|| self.0.first.clone())
    }

    /// Verifies with the issuer keys that count now, and refuses what is revoked now. Take a new one
    /// for every token.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.0.checker.verifier()
    }

    /// Checks tokens of every kind, and tells of revocations.
    #[must_use]
    pub fn checker(&self) -> Checker {
        self.0.checker.clone()
    }

    /// A token for a role that the caller starts in this process or beside it: who may start roles may
    /// have their tokens. It is on record like any other, and lives for a day or until it is renewed.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`].
    pub async fn service_token(
        &self,
        role: &str,
        scopes: &[&str],
        audience: &str,
    ) -> Result<IssuedToken, AuthError> {
        let inner = &self.0;
        let scopes = scopes.iter().map(|scope| scope.parse());
        let scopes = scopes.collect::<Result<_, _>>();
        let scopes =
            scopes.map_err(|error: tabbify_token::claims::ScopeError| unavailable(&error))?;
        let draft = Draft {
            kind: Kind::Service,
            sub: format!("service:{role}"),
            tenant: Tenant::system(),
            aud: audience.to_owned(),
            life: Kind::Service.life_max(),
        };
        let claims = Claims {
            scopes,
            ..inner.claims(draft, EventId::mint())
        };
        inner.publish(&claims, Some(OWNER)).await
    }

    /// As [`Authority::exchange`], for somebody at `source`, such as an address.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn exchange_from(&self, proof: &str, source: &str) -> Result<IssuedToken, AuthError> {
        let inner = &self.0;
        let answer = inner.exchange(proof).await;
        if matches!(answer, Ok(_) | Err(AuthError::Unavailable(_))) {
            return answer;
        }
        // A valid proof is never refused for the failures of others: nobody can guess a signature,
        // so the limit is there for the log and the processor.
        let now = inner.now();
        let told = inner.by_source.take(source, now);
        inner.refusals.count("proof", None, !told, now);
        if told {
            answer
        } else {
            Err(AuthError::RateLimited)
        }
    }

    /// Writes down now how many sign-ins were refused since the last time.
    pub async fn write_refusals(&self) {
        self.0.write_refusals().await;
    }
}

/// The beginning of a token.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) sub: String,
    pub(crate) tenant: Tenant,
    pub(crate) aud: String,
    pub(crate) life: Duration,
}

impl Inner {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn signer(&self) -> Option<Signer> {
        let platform = self.first.platform();
        self.checker
            .with_state(|state| self.issuers.signer(platform, state.issuers()))
    }

    pub(crate) fn platform(&self) -> &PlatformId {
        self.first.platform()
    }

    /// Checks a proof and answers with whose it is, and under which id it counts once.
    pub(crate) fn check_proof(&self, proof: &str) -> Result<(String, Tenant, EventId), AuthError> {
        let now = self.now();
        let (proof, kid, tenant) = self.checker.with_state(|state| {
            let key_of = |kid: &SigningKeyId| state.user_by_key(kid)?.key.as_ref();
            let (proof, kid) = OwnerProof::verify(proof, self.platform(), now, key_of)
                .map_err(|error| refused(&error))?;
            let user = state
                .user_by_key(&kid)
                .filter(|user| user.subject == proof.sub);
            let user =
                user.ok_or_else(|| AuthError::Invalid("the key is another user's".to_owned()))?;
            Ok::<_, AuthError>((proof, kid, user.tenant.clone()))
        })?;
        let id = format!("{kid}/{}", proof.jti);
        self.use_once(&self.proofs, &id, proof.iat, proof.exp)?;
        Ok((proof.sub, tenant, once_under(&format!("proof/{id}"))))
    }

    fn use_once(
        &self,
        once: &Once,
        id: &str,
        made: Timestamp,
        exp: Timestamp,
    ) -> Result<(), AuthError> {
        match once.used(id, made, exp, self.now()) {
            Use::First => Ok(()),
            Use::Again => Err(AuthError::Replayed),
            Use::Full => Err(AuthError::RateLimited),
        }
    }

    async fn exchange(&self, proof: &str) -> Result<IssuedToken, AuthError> {
        let (subject, tenant, jti) = self.check_proof(proof).inspect_err(|error| {
            tracing::debug!(role = "auth", error = %chain(error), "proof refused");
        })?;
        let draft = Draft {
            kind: Kind::User,
            sub: subject,
            tenant,
            aud: API_AUDIENCE.to_owned(),
            life: TOKEN_LIFE,
        };
        self.publish_user(draft, jti).await
    }

    /// A token of somebody's own, with what they may do in its tenant.
    pub(crate) async fn publish_user(
        &self,
        draft: Draft,
        jti: EventId,
    ) -> Result<IssuedToken, AuthError> {
        let role = self.role(&draft.sub, &draft.tenant);
        let role =
            role.ok_or_else(|| AuthError::Invalid("nobody there is called so".to_owned()))?;
        let claims = Claims {
            scopes: scopes_of(role),
            ..self.claims(draft, jti)
        };
        self.publish(&claims, None).await
    }

    /// What somebody who is registered is in a tenant.
    pub(crate) fn role(&self, subject: &str, tenant: &Tenant) -> Option<Role> {
        self.checker.with_state(|state| {
            let user = state.user(subject)?;
            let said = state.person(subject).and_then(|person| person.role(tenant));
            // Who was registered with a key and nothing else belongs to one tenant.
            said.unwrap_or_else(|| match subject {
                _ if user.tenant != *tenant => None,
                OWNER => Some(Role::Owner),
                _ => Some(Role::Developer),
            })
        })
    }

    /// Sessions end with a whole second: what is issued in it after the end is of the next one.
    pub(crate) fn after_end(&self, subject: &str) -> Option<Timestamp> {
        let ended = self
            .checker
            .with_state(|state| state.revocations().ended(subject))?;
        Some(Timestamp::from_secs(ended.secs().saturating_add(1)))
    }

    /// The claims of a new token; what it may do is still nothing.
    pub(crate) fn claims(&self, draft: Draft, jti: EventId) -> Claims {
        let now = Timestamp::from_secs(self.now().secs());
        // A clock that was far ahead when sessions were ended is no reason to issue what counts then.
        let after = self.after_end(&draft.sub);
        let after = after.filter(|after| *after > now && *after <= now.plus(LEEWAY));
        let iat = after.unwrap_or(now);
        Claims {
            iss: self.platform().clone(),
            sub: draft.sub,
            aud: draft.aud,
            kind: draft.kind,
            tenant: draft.tenant,
            tags: Vec::new(),
            scopes: Vec::new(),
            ulas: Vec::new(),
            cnf: None,
            join: None,
            iat,
            nbf: iat,
            exp: iat.plus(draft.life),
            jti: jti.to_string(),
        }
    }

    /// Signs the token, puts it on record, and only then gives it away. A token id is on record once:
    /// who comes second with the same is told so.
    pub(crate) async fn publish(
        &self,
        claims: &Claims,
        by: Option<&str>,
    ) -> Result<IssuedToken, AuthError> {
        let issued = self.sign(claims)?;
        let event = Event::from(TokenIssued {
            jti: claims.jti.clone(),
            kind: claims.kind.as_str().to_owned(),
            subject: claims.sub.clone(),
            expires: claims.exp,
            tenant: Some(claims.tenant.clone()),
            scopes: claims.scopes.iter().map(ToString::to_string).collect(),
            tags: claims.tags.clone(),
            by: by.map(str::to_owned),
        });
        let event = NewEvent::new(Segment::auth(), &claims.jti, &event);
        let batch = Append::of(vec![
            event.map_err(|error: EventError| unavailable(&error))?,
        ]);
        let batch = batch.expecting(Segment::auth(), &claims.jti, Expect::None);
        match self.log.append(batch).await {
            Ok(appended) => self.checker.reached(appended.last).await?,
            Err(AppendError::Conflict { .. }) => return Err(AuthError::Replayed),
            Err(error) => return Err(unavailable(&error)),
        }
        Ok(issued)
    }

    /// Appends events about one thing, all under `key`, if nobody has written about it since `expect`.
    pub(crate) async fn record(
        &self,
        key: &str,
        events: Vec<Event>,
        expect: Option<Expect>,
    ) -> Result<Position, AppendError> {
        let invalid = |error: EventError| AppendError::Invalid {
            detail: error.to_string(),
        };
        let new = |event: &Event| NewEvent::new(Segment::auth(), key, event);
        let events = events.iter().map(new).collect::<Result<_, _>>();
        let mut batch = Append::of(events.map_err(invalid)?);
        if let Some(expect) = expect {
            batch = batch.expecting(Segment::auth(), key, expect);
        }
        let appended = self.log.append(batch).await?;
        // Who is told that it is done finds it done, here at least.
        let _ = self.checker.reached(appended.last).await;
        Ok(appended.last)
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<IssuedToken, AuthError> {
        let signer = self.signer().ok_or_else(|| {
            AuthError::Unavailable("no issuer key of this machine counts any more".to_owned())
        })?;
        let token = signer.sign(claims).map_err(|error| unavailable(&error))?;
        Ok(IssuedToken {
            token,
            expires: claims.exp,
        })
    }

    /// The claims of a token of the caller's kind that is good for one app and nothing else.
    fn for_app(
        &self,
        caller: &Identity,
        aud: String,
        life: Duration,
        jti: EventId,
    ) -> Result<Claims, AuthError> {
        let mut kinds = CALLERS.iter().copied();
        let kind = kinds.find(|kind| kind.as_str() == caller.kind);
        let kind =
            kind.ok_or_else(|| AuthError::Unavailable(format!("not for a {}", caller.kind)))?;
        let (sub, tenant) = (caller.subject.clone(), caller.tenant.clone());
        let draft = Draft {
            kind,
            sub,
            tenant,
            aud,
            life,
        };
        Ok(Claims {
            scopes: vec![Scope::app_open()],
            ..self.claims(draft, jti)
        })
    }

    /// What a ticket opens, if it is used for the first time here.
    fn redeemed(&self, ticket: &str, app: AppId) -> Result<Claims, AuthError> {
        let claims = self
            .checker
            .claims(ticket, CALLERS, &ticket_audience(app))?;
        self.use_once(&self.tickets, &claims.jti, claims.iat, claims.exp)?;
        let jti = once_under(&format!("session/{}", claims.jti));
        let caller = crate::checker::identity(claims);
        self.for_app(&caller, session_audience(app), SESSION_LIFE, jti)
    }

    async fn write_refusals(&self) {
        let refused = self.refusals.take();
        if refused.is_empty() {
            return;
        }
        let events = refused.into_iter().map(Event::from).collect();
        if let Err(error) = self.record("sign-ins", events, None).await {
            tracing::warn!(role = "auth", error = %chain(&error), "refused sign-ins are not on record");
        }
    }
}

/// The id of what may be done once under `name`: whoever does it again comes to the same id.
fn once_under(name: &str) -> EventId {
    let base: EventId = "00000000-0000-7000-8000-000000000000"
        .parse()
        .expect("INVARIANT: it is a hyphenated UUID");
    base.derived(name)
}

pub(crate) fn scopes_of(role: Role) -> Vec<Scope> {
    let scopes = role.scopes().iter();
    scopes.filter_map(|scope| scope.parse().ok()).collect()
}

pub(crate) fn unavailable(error: &dyn std::error::Error) -> AuthError {
    AuthError::Unavailable(chain(error).to_string())
}

impl Authority for Auth {
    fn platform(&self) -> auth::PlatformId {
        auth::PlatformId(self.0.platform().to_string())
    }

    fn jwks(&self) -> serde_json::Value {
        self.0.checker.jwks()
    }

    fn exchange(&self, proof: &str) -> BoxFuture<'_, Result<IssuedToken, AuthError>> {
        let proof = proof.to_owned();
        Box::pin(async move { self.exchange_from(&proof, "local").await })
    }

    fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        self.0.checker.identity(token)
    }

    fn ticket<'a>(
        &'a self,
        identity: &'a Identity,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>> {
        let (aud, life) = (ticket_audience(app), TICKET_LIFE);
        let claims = self.0.for_app(identity, aud, life, EventId::mint());
        let signed = claims.and_then(|claims| self.0.sign(&claims));
        Box::pin(async move { signed })
    }

    fn session<'a>(
        &'a self,
        ticket: &'a str,
        app: AppId,
    ) -> BoxFuture<'a, Result<IssuedToken, AuthError>> {
        Box::pin(async move { self.0.publish(&self.0.redeemed(ticket, app)?, None).await })
    }

    fn verify_session(&self, session: &str, app: AppId) -> Result<Identity, AuthError> {
        self.0.checker.session(session, app)
    }
}
