//! Living sessions while rules change: a key that is nobody's any more loses its sessions at once; when who
//! may reach whom has changed, every peer is looked up again. New connections then go by the new rules, and
//! a session of two that may reach nothing of each other any more ends.
//!
//! ```text
//! resolver ─ changes ─▶ mesh-changes ─ gone ─────────▶ session ends
//!                            └ everything ─▶ mesh-review ─ by_key ─▶ new rules, or session ends
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tabbify_api::mesh::{Changed, Changes, ResolveError, Resolver};
use tabbify_process::Importance;
use tabbify_types::MeshKey;
use tokio::sync::Notify;

use crate::endpoint::Endpoint;

/// LIMIT: peers that are looked up again at once, and for how long each.
const REVIEWS_AT_ONCE: usize = 64;
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before changes are listened to again that were told no more.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Follows the changes that the resolver tells, if it tells any.
pub(crate) fn start(endpoint: &Arc<Endpoint>) {
    let Some(changes) = endpoint.resolver.changes() else {
        return;
    };
    let due = Arc::new(Notify::new());
    let follows = follow(Arc::clone(endpoint), changes, Arc::clone(&due));
    let tasks = &endpoint.tasks;
    tasks.spawn("mesh-changes", Importance::Detached, follows);
    let reviews = review(Arc::clone(endpoint), due);
    tasks.spawn("mesh-review", Importance::Detached, reviews);
}

async fn follow(endpoint: Arc<Endpoint>, mut changes: Box<dyn Changes>, due: Arc<Notify>) {
    loop {
        let changed = tokio::select! {
            changed = told(&mut changes, &*endpoint.resolver) => changed,
            () = endpoint.stop.cancelled() => return,
        };
        // First: whoever is being looked up meanwhile is looked up again.
        endpoint.doubt();
        match changed {
            Changed::Gone(key) => {
                endpoint.revoke(key);
            }
            Changed::Everything => due.notify_one(),
        }
    }
}

/// The next change. Where no more are told, it is listened anew, and everything may have changed meanwhile.
pub(crate) async fn told(changes: &mut Box<dyn Changes>, resolver: &dyn Resolver) -> Changed {
    if let Some(changed) = changes.next().await {
        return changed;
    }
    tracing::warn!("changes are not heard any more; listening anew");
    loop {
        tokio::time::sleep(LISTEN_AGAIN).await;
        if let Some(again) = resolver.changes() {
            *changes = again;
            return Changed::Everything;
        }
    }
}

async fn review(endpoint: Arc<Endpoint>, due: Arc<Notify>) {
    loop {
        tokio::select! {
            () = due.notified() => {}
            () = endpoint.stop.cancelled() => return,
        }
        let judged = stream::iter(endpoint.keys())
            .for_each_concurrent(REVIEWS_AT_ONCE, |key| judge(&endpoint, key));
        tokio::select! {
            () = judged => {}
            () = endpoint.stop.cancelled() => return,
        }
    }
}

/// Looks up what a peer may reach that we have dialed, and that begins to dial us.
pub(crate) fn look_up(endpoint: &Arc<Endpoint>, key: MeshKey) {
    let (tasks, endpoint) = (endpoint.tasks.clone(), Arc::clone(endpoint));
    tasks.spawn("mesh-lookup", Importance::Detached, async move {
        judge(&endpoint, key).await;
    });
}

/// Asks again about a peer with a session.
async fn judge(endpoint: &Endpoint, key: MeshKey) {
    let found = tokio::time::timeout(REVIEW_TIMEOUT, endpoint.resolver.by_key(key)).await;
    match found {
        Ok(Ok(record)) if record.key == key && !record.is_forbidden() => endpoint.renew(&record),
        // Nobody who can be believed takes anything back.
        Err(_) | Ok(Err(ResolveError::Unreachable(_) | ResolveError::Refused(_))) => {
            tracing::debug!(peer = %key, "peer not looked up again");
        }
        Ok(forbidden) => {
            tracing::debug!(peer = %key, ?forbidden, "peer may not talk to us any more");
            endpoint.revoke(key);
        }
    }
}
