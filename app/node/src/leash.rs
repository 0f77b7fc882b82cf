//! What a token opened ends with the token: streams, tunnels and waits hear of its revocation. That it
//! runs out ends nothing that is open: a page that is being read is read to its end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tabbify_api::BoxFuture;
use tabbify_api::auth::{AuthError, Revocations, Verified};

use crate::error::Refusal;

/// Ties something open to the token that opened it. Without a token nothing ends it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leash(Option<Held>);

#[derive(Debug, Clone)]
struct Held {
    tokens: Arc<dyn Revocations>,
    caller: Arc<Verified>,
}

/// The token was revoked.
#[derive(Debug, thiserror::Error)]
#[error("the token that opened this was revoked")]
pub(crate) struct Revoked;

impl From<Revoked> for Refusal {
    fn from(_: Revoked) -> Self {
        Self::Credential(AuthError::Invalid("it was revoked".to_owned()))
    }
}

impl Leash {
    /// Tied to the token of `caller`, if there is one.
    pub(crate) fn of(tokens: &Arc<dyn Revocations>, caller: Option<Verified>) -> Self {
        Self(caller.map(|caller| Held {
            tokens: Arc::clone(tokens),
            caller: Arc::new(caller),
        }))
    }

    /// Returns once the token is revoked, also if it is already. Safe to cancel.
    pub(crate) async fn cut(&self) -> Revoked {
        let Some(Held { tokens, caller }) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            // Before the question, so that no revocation falls between it and the wait.
            let seen = tokens.changes();
            if tokens.is_revoked(caller) {
                return Revoked;
            }
            tokens.changed(seen).await;
        }
    }

    /// What `future` gives, unless the token is revoked before.
    pub(crate) async fn hold<T>(&self, future: impl Future<Output = T>) -> Result<T, Revoked> {
        tokio::select! {
            biased;
            revoked = self.cut() => Err(revoked),
            done = future => Ok(done),
        }
    }

    /// The same for what is polled.
    pub(crate) const fn polled(self) -> PolledLeash {
        PolledLeash {
            leash: self,
            seen: None,
            cut: None,
        }
    }
}

/// A [`Leash`] on what is polled, such as a body.
pub(crate) struct PolledLeash {
    leash: Leash,
    /// The last count of revocations at which it still counted.
    seen: Option<u64>,
    /// There once something waits.
    cut: Option<BoxFuture<'static, Revoked>>,
}

impl PolledLeash {
    /// Whether the token is revoked, for whoever has something to pass on: a comparison, unless
    /// something was revoked since.
    pub(crate) fn is_cut(&mut self) -> bool {
        let Some(Held { tokens, caller }) = &self.leash.0 else {
            return false;
        };
        let changes = tokens.changes();
        if self.seen == Some(changes) {
            return false;
        }
        self.seen = Some(changes);
        tokens.is_revoked(caller)
    }

    /// Ready once the token is revoked, for whoever waits.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Revoked> {
        if self.leash.0.is_none() {
            return Poll::Pending;
        }
        let cut = self.cut.get_or_insert_with(|| {
            let leash = self.leash.clone();
            Box::pin(async move { leash.cut().await })
        });
        Pin::new(cut).poll(cx)
    }
}

impl fmt::Debug for PolledLeash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolledLeash")
            .field("leash", &self.leash)
            .finish_non_exhaustive()
    }
}
