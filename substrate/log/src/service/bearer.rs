//! Who asks. A token is judged once and believed for a second; what lasts longer than a request is
//! judged again every second, so that a token that ends or is revoked ends it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tabbify_api::auth::AuthError;
use tabbify_api::log::{Authorize, LogScope};
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tokio::time::Instant;

use crate::wire::problem;

/// LIMIT: how long a judged token is believed: a revocation takes effect within this.
pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// The token that a connection was used with last, and what it allowed.
#[derive(Debug, Default)]
pub(super) struct LastSeen(Mutex<Option<Judged>>);

#[derive(Debug)]
struct Judged {
    token: blake3::Hash,
    scope: LogScope,
    until: Instant,
}

impl LastSeen {
    /// The scope of the token.
    pub(super) fn scope(
        &self,
        authorize: &dyn Authorize,
        believed_for: Duration,
        token: &str,
    ) -> Result<LogScope, AuthError> {
        let hash = blake3::hash(token.as_bytes());
        let now = Instant::now();
        {
            let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(judged) = &*last
                && judged.token == hash
                && now < judged.until
            {
                return Ok(judged.scope.clone());
            }
        }
        let scope = authorize.authorize(token)?;
        let judged = Judged {
            token: hash,
            scope: scope.clone(),
            until: now + believed_for,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged);
        Ok(scope)
    }
}

/// The bearer token of a request. Nothing else says who asks.
pub(super) fn token(headers: &HeaderMap) -> Result<&str, Box<Problem>> {
    let presented = tabbify_http::presented(headers)
        .map_err(|twice| problem::plain(ErrorCode::BadRequest, &twice.to_string()))?;
    presented.ok_or_else(|| problem::plain(ErrorCode::TokenMissing, "no bearer token came along"))
}

pub(super) fn refused(error: &AuthError) -> Box<Problem> {
    tracing::debug!(%error, "a token is refused");
    problem::of_auth(error)
}

/// Watches over a token for as long as something goes on that it allowed.
pub(super) struct Watch {
    ended: BoxFuture<'static, Box<Problem>>,
}

impl Watch {
    pub(super) fn new(
        authorize: Arc<dyn Authorize>,
        every: Duration,
        token: String,
        scope: LogScope,
    ) -> Self {
        let ended = Box::pin(async move {
            loop {
                tokio::time::sleep(every).await;
                match authorize.authorize(&token) {
                    Ok(now) if now == scope => {}
                    Ok(_) => {
                        let detail = "what the token allows has changed: ask again";
                        return problem::plain(ErrorCode::Unavailable, detail);
                    }
                    // Nothing is known against the token: the issuer's keys are not at hand.
                    Err(AuthError::Unavailable(_) | AuthError::RateLimited) => {}
                    Err(error) => return refused(&error),
                }
            }
        });
        Self { ended }
    }

    /// Returns when the token allows it no more, and why. Safe to cancel; not to be asked again.
    pub(super) async fn ended(&mut self) -> Box<Problem> {
        (&mut self.ended).await
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
