//! Follows the log and checks tokens by what it says: all that a role needs which issues nothing.
//!
//! ```text
//!  platform, platform.auth ─▶ fold ─▶ issuer keys, revocations ─▶ verifier ─▶ yes or no, offline
//! ```

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{API_AUDIENCE, Verified};
use tabbify_api::auth::people::CONSOLE_AUDIENCE;
use tabbify_api::auth::{AuthError, Identity, Revocations};
use tabbify_api::log::{Delivery, EventLog, ReadError, Subscribe};
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_token::{Claims, Kind, TokenError, Verifier};
use tabbify_types::{AppId, MeshKey, Position, Timestamp};
use tokio::sync::watch;

use crate::state::{FoldError, State};

/// Kinds whose holders may call the platform's interfaces.
pub(crate) const CALLERS: &[Kind] = &[Kind::User, Kind::Agent];

/// How long to wait for a log that is away, at first and at most.
const AWAY_FOR: Duration = Duration::from_millis(100);
const AWAY_FOR_MAX: Duration = Duration::from_secs(5);

/// Why the log cannot be followed from its beginning.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Read(#[source] ReadError),
    /// The log cannot be followed.
    #[error("the log cannot be followed")]
    Fold(#[source] FoldError),
    /// The log has no platform.
    #[error("the log is empty: it is not a platform yet")]
    NoPlatform,
}

/// Checks tokens. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Checker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: RwLock<Known>,
    clock: Arc<dyn Clock>,
    /// Up to where the log has been followed.
    followed: watch::Receiver<Position>,
    /// How often something was revoked.
    changes: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Known {
    state: State,
    verifier: Verifier,
}

impl Checker {
    /// Replays the log, then follows it in the task `auth-follow`. `log` must let it read `platform`
    /// and `platform.auth`.
    ///
    /// # Errors
    /// [`FollowError`].
    pub async fn start(
        log: Arc<dyn EventLog>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, FollowError> {
        let mut state = State::default();
        let subscribed = log.subscribe(State::filter(), state.position());
        let mut events = subscribed.map_err(FollowError::Read)?;
        loop {
            match events.next().await.map_err(FollowError::Read)? {
                Delivery::Event(event) => {
                    state.apply(&event).map_err(FollowError::Fold)?;
                }
                Delivery::CaughtUp(_) => break,
                Delivery::Progress(_) => {}
            }
        }
        let verifier = state.verifier().ok_or(FollowError::NoPlatform)?;
        let (tell_followed, followed) = watch::channel(state.position());
        let (tell_changes, changes) = watch::channel(0);
        let known = RwLock::new(Known { state, verifier });
        let checker = Self(Arc::new(Inner {
            known,
            clock,
            followed,
            changes,
        }));
        let following = Following {
            checker: checker.clone(),
            log,
            tell_followed,
            tell_changes,
        };
        let stop = tasks.token();
        tasks.spawn("auth-follow", Importance::Essential, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = following.run(events) => {}
            }
        });
        Ok(checker)
    }

    /// Verifies with the keys that count now and refuses what is revoked now. Take a new one when
    /// either may have changed.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.known().verifier.clone()
    }

    /// What the log has said so far, as long as `read` looks at it.
    pub fn with_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.known().state)
    }

    /// Waits until the log has been followed up to `position`.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`] if it is not followed any more.
    pub async fn reached(&self, position: Position) -> Result<(), AuthError> {
        let mut followed = self.0.followed.clone();
        let reached = followed.wait_for(|at| *at >= position).await;
        reached
            .map(drop)
            .map_err(|_| AuthError::Unavailable("the log is not followed any more".to_owned()))
    }

    /// Waits until the log has said what `found` looks for.
    pub(crate) async fn found<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let mut followed = self.0.followed.clone();
        loop {
            followed.mark_unchanged();
            if let Some(found) = self.with_state(&mut found) {
                return Some(found);
            }
            followed.changed().await.ok()?;
        }
    }

    /// The issuer keys as a JWK set (RFC 7517), newest first.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        let keys = self.with_state(|state| {
            let newest_first = state.issuers().iter().rev();
            newest_first.map(jwk).collect::<Vec<_>>()
        });
        serde_json::json!({ "keys": keys })
    }

    /// Who a bearer token of a person or agent is.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] and [`AuthError::Expired`].
    pub fn identity(&self, token: &str) -> Result<Identity, AuthError> {
        self.claims(token, CALLERS, API_AUDIENCE).map(identity)
    }

    /// Who a session with `app` is.
    ///
    /// # Errors
    /// As [`Checker::identity`].
    pub fn session(&self, session: &str, app: AppId) -> Result<Identity, AuthError> {
        let audience = session_audience(app);
        self.claims(session, CALLERS, &audience).map(identity)
    }

    /// Who a session with the console is.
    ///
    /// # Errors
    /// As [`Checker::identity`].
    pub fn console(&self, session: &str) -> Result<Identity, AuthError> {
        let claims = self.claims(session, &[Kind::User], CONSOLE_AUDIENCE);
        claims.map(identity)
    }

    pub(crate) fn claims(
        &self,
        token: &str,
        kinds: &[Kind],
        audience: &str,
    ) -> Result<Claims, AuthError> {
        let verified = self.verifier().verify(token, kinds, audience, self.now());
        verified.map_err(|error| refused(&error))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Revocations for Checker {
    fn check(
        &self,
        token: &str,
        kinds: &[&str],
        audience: &str,
        proven: Option<MeshKey>,
    ) -> Result<Verified, AuthError> {
        let mut wanted = Kind::ALL.to_vec();
        wanted.retain(|kind| kinds.contains(&kind.as_str()));
        let claims = self.claims(token, &wanted, audience)?;
        let held = claims.check_holder(proven.as_ref());
        held.map_err(|error| refused(&error))?;
        Ok(verified(claims))
    }

    fn still(&self, verified: &Verified) -> Result<(), AuthError> {
        if self.now() >= verified.expires.plus(tabbify_token::LEEWAY) {
            return Err(AuthError::Expired(verified.expires));
        }
        let known = self.known();
        let revoked = known.state.revocations();
        if revoked.cover(&verified.jti, &verified.subject, verified.issued) {
            return Err(refused(&TokenError::Revoked));
        }
        Ok(())
    }

    fn changes(&self) -> u64 {
        *self.0.changes.borrow()
    }

    fn changed(&self, seen: u64) -> BoxFuture<'_, u64> {
        let mut changes = self.0.changes.clone();
        Box::pin(async move {
            let changed = changes.wait_for(|count| *count != seen).await;
            match changed.map(|count| *count).ok() {
                Some(count) => count,
                // Nothing is followed any more: the process is about to end.
                None => std::future::pending().await,
            }
        })
    }
}

/// The task that keeps a checker current.
struct Following {
    checker: Checker,
    log: Arc<dyn EventLog>,
    tell_followed: watch::Sender<Position>,
    tell_changes: watch::Sender<u64>,
}

impl Following {
    /// Returns when the log cannot be followed any more. One that is away is waited for: what was
    /// known goes on counting until then.
    async fn run(self, mut events: Box<dyn Subscribe>) {
        let mut away = AWAY_FOR;
        loop {
            let applied = match events.next().await {
                Ok(Delivery::Event(event)) => self.apply(&event),
                Ok(Delivery::CaughtUp(_) | Delivery::Progress(_)) => Ok(()),
                Err(ReadError::Stopping) => {
                    tracing::warn!(role = "auth", "the log is away");
                    tokio::time::sleep(away).await;
                    away = (2 * away).min(AWAY_FOR_MAX);
                    let position = self.checker.with_state(State::position);
                    match self.log.subscribe(State::filter(), position) {
                        Ok(again) => events = again,
                        Err(error) => {
                            tracing::error!(role = "auth", error = %chain(&error), "the log cannot be read");
                            return;
                        }
                    }
                    continue;
                }
                Err(error) => {
                    tracing::error!(role = "auth", error = %chain(&error), "the log cannot be read");
                    return;
                }
            };
            away = AWAY_FOR;
            if let Err(error) = applied {
                tracing::error!(role = "auth", error = %chain(&error), "the log cannot be followed");
                return;
            }
        }
    }

    fn apply(&self, event: &tabbify_types::Recorded) -> Result<(), FoldError> {
        let inner = &self.checker.0;
        let mut known = inner.known.write().unwrap_or_else(PoisonError::into_inner);
        let revokes = matches!(&*event.kind, "token_revoked" | "sessions_ended");
        if revokes {
            // The fold may then add to what was revoked without making a copy of all of it. Nobody
            // verifies with this one: it is replaced before the lock is given back.
            let verifier = known.verifier.clone();
            known.verifier = verifier.with_revocations(Arc::default());
        }
        let changed = known.state.apply(event)?;
        if changed && let Some(verifier) = known.state.verifier() {
            known.verifier = verifier;
        }
        drop(known);
        // First what open sessions wait for, then what whoever revoked them waits for.
        if revokes {
            self.tell_changes.send_modify(|count| *count += 1);
        }
        self.tell_followed.send_replace(event.position);
        Ok(())
    }
}

pub(crate) fn ticket_audience(app: AppId) -> String {
    format!("tabbify-ticket:{app}")
}

pub(crate) fn session_audience(app: AppId) -> String {
    format!("tabbify-session:{app}")
}

pub(crate) fn identity(claims: Claims) -> Identity {
    Identity {
        subject: claims.sub,
        tenant: claims.tenant,
        kind: claims.kind.as_str().to_owned(),
        scopes: claims.scopes.into_iter().map(String::from).collect(),
        expires: claims.exp,
    }
}

pub(crate) fn verified(claims: Claims) -> Verified {
    Verified {
        jti: claims.jti,
        kind: claims.kind.as_str().to_owned(),
        subject: claims.sub,
        tenant: claims.tenant,
        scopes: claims.scopes.into_iter().map(String::from).collect(),
        tags: claims.tags,
        ulas: claims.ulas,
        key: claims.cnf.map(|cnf| cnf.wg),
        issued: claims.iat,
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
pub(crate) fn refused(error: &TokenError) -> AuthError {
    match error {
        TokenError::Expired { at } => AuthError::Expired(*at),
        other => AuthError::Invalid(other.to_string()),
    }
}
