//! The issuer at work: exchanges proofs for tokens, tickets for sessions, and verifies.
//!
//! | what | audience | life | kept by |
//! |---|---|---|---|
//! | token | `tabbify-api` | 15 min | programs, as bearer |
//! | ticket | `tabbify-ticket:<app>` | 60 s, once | a link that opens a browser |
//! | session | `tabbify-session:<app>` | 12 h | a cookie of the app's own host |
//!
//! All three are signed tokens of the caller's kind; their audiences keep them apart.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::{self, AuthError, Authority, Identity, IssuedToken};
use tabbify_api::log::{Append, AppendError, Delivery, EventLog, LogScope, ReadError, Subscribe};
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_token::{Claims, Kind, OwnerProof, Scope, Signer, TokenError, Verifier};
use tabbify_types::event::v1::TokenIssued;
use tabbify_types::event::{Event, EventError};
use tabbify_types::{AppId, EventId, NewEvent, Segment, SigningKeyId, Tenant, Timestamp};
use tokio::sync::watch;

use crate::once::{Failures, Once, Use};
use crate::state::{FoldError, State};
use crate::{Keys, OWNER};

/// Who accepts bearer tokens.
pub const API_AUDIENCE: &str = "tabbify-api";

/// Life of a token that a proof was exchanged for.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
/// Life of a ticket: the time between a click and the page that it opens.
const TICKET_LIFE: Duration = Duration::from_secs(60);
/// Life of a browser's session with one app.
const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);

/// Kinds whose holders may call the platform's interfaces.
const CALLERS: &[Kind] = &[Kind::User, Kind::Agent];

/// Why auth cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Read(#[source] ReadError),
    /// The log cannot be followed.
    #[error("the log cannot be followed")]
    Fold(#[source] FoldError),
    /// The log has no platform.
    #[error("the log is empty: it is not a platform yet")]
    NoPlatform,
    /// The issuer key on disk is not one that counts.
    #[error("issuer key {kid} on disk is not valid in the log: restore the newer key file")]
    IssuerKey {
        /// Its id.
        kid: SigningKeyId,
    },
}

/// The issuer. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: Arc<dyn EventLog>,
    signer: Signer,
    clock: Arc<dyn Clock>,
    view: watch::Receiver<Arc<View>>,
    proofs: Once,
    tickets: Once,
    failures: Failures,
}

/// What every verification reads: the state, and the verifier made of it once.
#[derive(Debug)]
struct View {
    state: State,
    verifier: Verifier,
}

impl View {
    fn of(state: &State) -> Result<Arc<Self>, StartError> {
        let verifier = state.verifier().ok_or(StartError::NoPlatform)?;
        Ok(Arc::new(Self {
            state: state.clone(),
            verifier,
        }))
    }
}

impl Auth {
    /// Replays the log, then follows it in the task `auth-follow`.
    ///
    /// # Errors
    /// [`StartError`]; call [`crate::bootstrap()`] before.
    pub async fn start(
        log: Arc<dyn EventLog>,
        keys: &Keys,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let mut state = State::default();
        let mut events = log
            .subscribe(State::filter(), state.position())
            .map_err(StartError::Read)?;
        loop {
            match events.next().await.map_err(StartError::Read)? {
                Delivery::Event(event) => {
                    state.apply(&event).map_err(StartError::Fold)?;
                }
                Delivery::CaughtUp(_) => break,
                Delivery::Progress(_) => {}
            }
        }
        let view = View::of(&state)?;
        let platform = view.verifier.platform().clone();
        let kid = keys.issuer.id();
        if !view.verifier.keys().contains_key(&kid) {
            return Err(StartError::IssuerKey { kid });
        }
        tracing::info!(role = "auth", platform = %platform, position = %state.position(), "replayed");
        let (publish, view) = watch::channel(view);
        let stop = tasks.token();
        tasks.spawn("auth-follow", Importance::Essential, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(events, state, publish) => {}
            }
        });
        let now = clock.now();
        Ok(Self(Arc::new(Inner {
            signer: Signer::new(keys.issuer.clone(), platform),
            log,
            clock,
            view,
            proofs: Once::new(now),
            tickets: Once::new(now),
            failures: Failures::new(now),
        })))
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

    /// Signs as this platform's issuer: leases, in the coordinator of the same process.
    #[must_use]
    pub fn signer(&self) -> Signer {
        self.0.signer.clone()
    }

    /// Verifies with the issuer keys that count now. Take a new one after a rotation.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.0.view().verifier.clone()
    }
}

/// Keeps the view current; returns when the log cannot be followed any more.
async fn follow(
    mut events: Box<dyn Subscribe>,
    mut state: State,
    publish: watch::Sender<Arc<View>>,
) {
    loop {
        let event = match events.next().await {
            Ok(Delivery::Event(event)) => event,
            Ok(Delivery::CaughtUp(_) | Delivery::Progress(_)) => continue,
            Err(error) => {
                tracing::error!(role = "auth", error = %chain(&error), "the log cannot be read");
                return;
            }
        };
        let changed = match state.apply(&event) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::error!(role = "auth", error = %chain(&error), "the log cannot be followed");
                return;
            }
        };
        if changed && let Ok(view) = View::of(&state) {
            publish.send_replace(view);
        }
    }
}

impl Inner {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Checks a proof and answers with whose it is.
    fn check_proof(&self, proof: &str, now: Timestamp) -> Result<(String, Tenant), AuthError> {
        let view = self.view();
        let key_of = |kid: &SigningKeyId| view.state.user_by_key(kid)?.key.as_ref();
        let (proof, kid) = OwnerProof::verify(proof, view.verifier.platform(), now, key_of)
            .map_err(|error| refused(&error))?;
        let user = view
            .state
            .user_by_key(&kid)
            .filter(|user| user.subject == proof.sub);
        let user =
            user.ok_or_else(|| AuthError::Invalid("the key is another user's".to_owned()))?;
        let id = format!("{kid}/{}", proof.jti);
        self.use_once(&self.proofs, &id, proof.iat, proof.exp)?;
        Ok((user.subject.clone(), user.tenant.clone()))
    }

    fn use_once(
        &self,
        once: &Once,
        id: &str,
        made: Timestamp,
        exp: Timestamp,
    ) -> Result<(), AuthError> {
        match once.used(id, made, exp, self.clock.now()) {
            Use::First => Ok(()),
            Use::Again => Err(AuthError::Replayed),
            Use::Full => Err(AuthError::RateLimited),
        }
    }

    async fn exchange(&self, proof: &str) -> Result<IssuedToken, AuthError> {
        let now = self.clock.now();
        let (subject, tenant) = self.check_proof(proof, now).inspect_err(|error| {
            tracing::debug!(role = "auth", error = %chain(error), "proof refused");
        })?;
        let scopes = scopes_of(&subject);
        // The token's id is the id of the event that records it.
        let id = EventId::mint();
        let claims = self.claims(Kind::User, subject, tenant, API_AUDIENCE, TOKEN_LIFE, id);
        let claims = Claims { scopes, ..claims };
        let issued = self.sign(&claims)?;
        self.record(id, &claims).await?;
        Ok(issued)
    }

    async fn record(&self, id: EventId, claims: &Claims) -> Result<(), AuthError> {
        let event = Event::from(TokenIssued {
            jti: claims.jti.clone(),
            kind: claims.kind.as_str().to_owned(),
            subject: claims.sub.clone(),
            expires: claims.exp,
        });
        let event = NewEvent::with_id(id, Segment::auth(), &claims.jti, &event);
        let event = event.map_err(|error: EventError| unavailable(&error))?;
        let appended = self.log.append(Append::of(vec![event])).await;
        appended
            .map(drop)
            .map_err(|error: AppendError| unavailable(&error))
    }

    fn claims(
        &self,
        kind: Kind,
        sub: String,
        tenant: Tenant,
        aud: &str,
        life: Duration,
        id: EventId,
    ) -> Claims {
        let now = Timestamp::from_secs(self.clock.now().secs());
        Claims {
            iss: self.signer.platform().clone(),
            sub,
            aud: aud.to_owned(),
            kind,
            tenant,
            tags: Vec::new(),
            scopes: Vec::new(),
            ulas: Vec::new(),
            cnf: None,
            iat: now,
            nbf: now,
            exp: now.plus(life),
            jti: id.to_string(),
        }
    }

    fn sign(&self, claims: &Claims) -> Result<IssuedToken, AuthError> {
        let token = self
            .signer
            .sign(claims)
            .map_err(|error| unavailable(&error))?;
        Ok(IssuedToken {
            token,
            expires: claims.exp,
        })
    }

    /// A token of the caller's kind that is good for one app and nothing else.
    fn for_app(
        &self,
        caller: &Identity,
        audience: &str,
        life: Duration,
    ) -> Result<IssuedToken, AuthError> {
        let kind = CALLERS
            .iter()
            .copied()
            .find(|kind| kind.as_str() == caller.kind);
        let kind =
            kind.ok_or_else(|| AuthError::Unavailable(format!("not for a {}", caller.kind)))?;
        let (subject, tenant) = (caller.subject.clone(), caller.tenant.clone());
        let claims = self.claims(kind, subject, tenant, audience, life, EventId::mint());
        self.sign(&Claims {
            scopes: vec![Scope::app_open()],
            ..claims
        })
    }

    fn check(&self, token: &str, audience: &str) -> Result<Claims, AuthError> {
        let claims = self
            .view()
            .verifier
            .verify(token, CALLERS, audience, self.clock.now());
        claims.map_err(|error| refused(&error))
    }
}

impl Authority for Auth {
    fn platform(&self) -> auth::PlatformId {
        auth::PlatformId(self.0.signer.platform().to_string())
    }

    fn jwks(&self) -> serde_json::Value {
        let keys = self
            .0
            .view()
            .state
            .issuers()
            .iter()
            .rev()
            .map(jwk)
            .collect::<Vec<_>>();
        serde_json::json!({ "keys": keys })
    }

    fn exchange(&self, proof: &str) -> BoxFuture<'_, Result<IssuedToken, AuthError>> {
        let proof = proof.to_owned();
        Box::pin(async move {
            let answer = self.0.exchange(&proof).await;
            let failed = !matches!(answer, Ok(_) | Err(AuthError::Unavailable(_)));
            if failed && !self.0.failures.count(self.0.clock.now()) {
                return Err(AuthError::RateLimited);
            }
            answer
        })
    }

    fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        self.0.check(token, API_AUDIENCE).map(identity)
    }

    fn open_ticket(&self, identity: &Identity, app: AppId) -> Result<IssuedToken, AuthError> {
        self.0.for_app(identity, &ticket_audience(app), TICKET_LIFE)
    }

    fn redeem_ticket(&self, ticket: &str, app: AppId) -> Result<IssuedToken, AuthError> {
        let claims = self.0.check(ticket, &ticket_audience(app))?;
        self.0
            .use_once(&self.0.tickets, &claims.jti, claims.iat, claims.exp)?;
        self.0
            .for_app(&identity(claims), &session_audience(app), SESSION_LIFE)
    }

    fn verify_session(&self, session: &str, app: AppId) -> Result<Identity, AuthError> {
        self.0.check(session, &session_audience(app)).map(identity)
    }
}

fn ticket_audience(app: AppId) -> String {
    format!("tabbify-ticket:{app}")
}

fn session_audience(app: AppId) -> String {
    format!("tabbify-session:{app}")
}

/// The owner may do everything; others may do what concerns apps.
fn scopes_of(subject: &str) -> Vec<Scope> {
    if subject == OWNER {
        return vec![Scope::all()];
    }
    vec![
        Scope::apps_read(),
        Scope::apps_write(),
        Scope::deploy(),
        Scope::app_open(),
    ]
}

fn identity(claims: Claims) -> Identity {
    Identity {
        subject: claims.sub,
        tenant: claims.tenant,
        kind: claims.kind.as_str().to_owned(),
        scopes: claims.scopes.into_iter().map(String::from).collect(),
        expires: claims.exp,
    }
}

/// RFC 8037 section 2.
fn jwk(key: &tabbify_token::PublicKey) -> serde_json::Value {
    let bytes = key.bytes();
    serde_json::json!({
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
        "kid": bytes.id(), "x": bytes,
    })
}

/// What a caller may know: the rule, never what would have satisfied it.
fn refused(error: &TokenError) -> AuthError {
    match error {
        TokenError::Expired { at } => AuthError::Expired(*at),
        other => AuthError::Invalid(other.to_string()),
    }
}

fn unavailable(error: &dyn std::error::Error) -> AuthError {
    AuthError::Unavailable(chain(error).to_string())
}
