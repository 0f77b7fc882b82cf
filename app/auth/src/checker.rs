//! Follows the log and checks tokens by what it says: all that a role needs which issues nothing.
//!
//! ```text
//!  platform, platform.auth ─▶ fold ─▶ issuer keys, revocations ─▶ verifier ─▶ yes or no, offline
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{API_AUDIENCE, Verified, session_audience};
use tabbify_api::auth::people::CONSOLE_AUDIENCE;
use tabbify_api::auth::{AuthError, Identity, Revocations};
use tabbify_api::log::EventLog;
use tabbify_process::fold::{self, Folded, Follow};
use tabbify_process::{Clock, Importance, Tasks};
use tabbify_token::{Claims, Kind, TokenError, Verifier};
use tabbify_types::{AppId, MeshKey, Position, Timestamp};
use tokio::sync::watch;

use crate::state::{FoldError, Revoked, State};

/// Kinds whose holders may call the platform's interfaces.
pub(crate) const CALLERS: &[Kind] = &[Kind::User, Kind::Agent];

/// LIMIT: how long what was appended may take to be heard of.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Why the log cannot be followed from its beginning.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The log cannot be followed.
    #[error("the log cannot be followed")]
    Follow(#[source] fold::FollowError<FoldError>),
    /// The log has no platform.
    #[error("the log is empty: it is not a platform yet")]
    NoPlatform,
    /// The process ends, and the log has not been there.
    #[error("the log was waited for and did not come")]
    Stopped,
}

/// Checks tokens. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Checker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: Folded<State>,
    clock: Arc<dyn Clock>,
    /// How often something was revoked.
    changes: watch::Receiver<u64>,
}

impl Checker {
    /// Folds the log, then follows it in the task `auth-follow`. `log` must let it read `platform` and
    /// `platform.auth`. With a directory, what is known is stored there now and then: with it a checker
    /// starts while the log is away; without, it waits for the log.
    ///
    /// # Errors
    /// [`FollowError`].
    pub async fn start(
        log: Arc<dyn EventLog>,
        snapshots: Option<&Path>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, FollowError> {
        let (tell_changes, changes) = watch::channel(0);
        let follow = Follow::open(State::default(), log, snapshots, Arc::clone(&clock));
        // Before the state with it is seen: whoever wakes then waits for that state.
        let mut follow = follow.hear(move |heard| {
            if heard.news == Revoked::Something {
                tell_changes.send_modify(|count| *count += 1);
            }
        });
        let stop = tasks.token();
        let caught_up = stop.run_until_cancelled(follow.catch_up()).await;
        let caught_up = caught_up.ok_or(FollowError::Stopped)?;
        caught_up.map_err(FollowError::Follow)?;
        if follow.read(|view| view.state.root().is_none()) {
            return Err(FollowError::NoPlatform);
        }
        let known = follow.spawn("auth-follow", Importance::Essential, tasks);
        Ok(Self(Arc::new(Inner {
            known,
            clock,
            changes,
        })))
    }

    /// Verifies with the keys that count now and refuses what is revoked now. Take a new one when
    /// either may have changed.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.with_state(State::verifier)
            .expect("INVARIANT: a platform that has begun does not end")
    }

    /// What the log has said so far, as long as `read` looks at it.
    pub fn with_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.0.known.read(|view| read(&view.state))
    }

    /// What is known, and how it stands to the log.
    #[must_use]
    pub fn known(&self) -> Folded<State> {
        self.0.known.clone()
    }

    /// Waits until the log has been followed up to `position`.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`] if that takes too long, or it is not followed any more.
    pub async fn reached(&self, position: Position) -> Result<(), AuthError> {
        match self.0.known.reach(position, HEARD_WITHIN).await {
            true => Ok(()),
            false => Err(AuthError::Unavailable(
                "what was just written is not heard of here".to_owned(),
            )),
        }
    }

    /// Waits until the log has said what `found` looks for; none if it is not followed any more.
    pub(crate) async fn found<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> Option<T> {
        self.0.known.find(|view| found(&view.state)).await
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
        match self.is_revoked(verified) {
            true => Err(refused(&TokenError::Revoked)),
            false => Ok(()),
        }
    }

    fn is_revoked(&self, verified: &Verified) -> bool {
        let Verified {
            jti,
            subject,
            issued,
            ..
        } = verified;
        self.with_state(|state| state.revocations().cover(jti, subject, *issued))
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

pub(crate) fn ticket_audience(app: AppId) -> String {
    format!("tabbify-ticket:{app}")
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
