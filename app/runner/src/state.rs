//! Where the runner stands, as the control socket tells it.
//!
//! ```text
//! Unleased ⇄ Starting ─▶ Ready ⇄ Idle ─▶ Draining
//!                └─────▶ Failed             (from all the others, too: a drain may come at any time)
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tabbify_api::runner::{Failure, StateName, Status};
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{MeshKey, SecretName, SecretVersion};
use tokio::sync::watch;

use crate::traffic::Traffic;

/// LIMIT: how long a `Wait` is held, as `api::runner` says.
const WAIT: Duration = Duration::from_secs(30);

/// What never changes about a runner.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Which instance of which app it is.
    pub of: InstanceRef,
    /// Its process id.
    pub pid: u32,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Where its WireGuard socket is.
    pub underlay: SocketAddr,
}

/// The runner's state and its counters.
#[derive(Debug)]
pub struct State {
    identity: Identity,
    traffic: Traffic,
    secrets: OnceLock<BTreeMap<SecretName, SecretVersion>>,
    stage: watch::Sender<(StateName, Option<Failure>)>,
    /// Requests that had been served when it was last said to be idle.
    idle_since: AtomicU64,
}

impl State {
    /// A runner that has begun.
    #[must_use]
    pub fn new(identity: Identity, traffic: Traffic) -> Self {
        Self {
            identity,
            traffic,
            secrets: OnceLock::new(),
            stage: watch::Sender::new((StateName::Starting, None)),
            idle_since: AtomicU64::new(0),
        }
    }

    /// The app has its secrets, in these versions; said once, before it is ready.
    pub fn has_secrets(&self, versions: BTreeMap<SecretName, SecretVersion>) {
        // Said again, it would be the same: a runner fetches them once.
        let _ = self.secrets.set(versions);
    }

    /// A spawn ticket is wanted.
    pub fn unleased(&self) {
        self.move_on(StateName::Unleased, None, |from| {
            from == StateName::Starting
        });
    }

    /// A spawn ticket is there. Says whether one was wanted.
    pub fn leasing(&self) -> bool {
        self.move_on(StateName::Starting, None, |from| {
            from == StateName::Unleased
        })
    }

    /// Whether no more requests are taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.stage.borrow().0 == StateName::Draining
    }

    /// The app can be served. Says whether that is news: a runner that drains stays so.
    pub fn ready(&self) -> bool {
        self.move_on(StateName::Ready, None, |from| from == StateName::Starting)
    }

    /// The app has had nothing to do for a while, since it had served `total` requests.
    pub fn idle(&self, total: u64) {
        self.idle_since.store(total, Ordering::Relaxed);
        self.move_on(StateName::Idle, None, |from| from == StateName::Ready);
    }

    /// The app has something to do again.
    pub fn busy(&self) {
        self.move_on(StateName::Ready, None, |from| from == StateName::Idle);
    }

    /// No more requests are taken, if there is nothing to do still. Says whether that is so.
    pub fn sleeping(&self) -> bool {
        let total = self.idle_since.load(Ordering::Relaxed);
        // INVARIANT: a request that has begun is not drained: whoever says that it is busy again may be late.
        self.traffic.still(total, || {
            self.move_on(StateName::Draining, None, |from| from == StateName::Idle)
        })
    }

    /// No more requests are taken.
    pub fn draining(&self) {
        self.move_on(StateName::Draining, None, |from| from != StateName::Failed);
    }

    /// The app cannot be served.
    pub fn failed(&self, failure: Failure) {
        self.move_on(StateName::Failed, Some(failure), |_| true);
    }

    fn move_on(
        &self,
        to: StateName,
        failure: Option<Failure>,
        may: impl FnOnce(StateName) -> bool,
    ) -> bool {
        self.stage.send_if_modified(|stage| {
            let moves = stage.0 != to && may(stage.0);
            if moves {
                *stage = (to, failure);
            }
            moves
        })
    }

    /// The whole of it, now.
    #[must_use]
    pub fn status(&self) -> Status {
        let (state, failure) = self.stage.borrow().clone();
        let counts = self.traffic.counts();
        Status {
            state,
            failure,
            of: self.identity.of,
            pid: self.identity.pid,
            key: self.identity.key,
            underlay: self.identity.underlay,
            active: counts.active,
            total: counts.total,
            secrets: self.secrets.get().cloned().unwrap_or_default(),
        }
    }

    /// The status as soon as the state is another than `seen`, or after 30 seconds.
    pub async fn wait(&self, seen: StateName) -> Status {
        let mut stage = self.stage.subscribe();
        // Both outcomes, a change and the end of the wait, give the status of now.
        let _ = tokio::time::timeout(WAIT, stage.wait_for(|(now, _)| *now != seen)).await;
        self.status()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tabbify_types::event::v1::FailureReason;
    use tabbify_types::{AppId, InstanceId};

    use super::*;

    fn state() -> State {
        counting(Traffic::new(1))
    }

    /// That of a runner that is ready and counts so.
    pub(crate) fn ready(traffic: &Traffic) -> State {
        let state = counting(traffic.clone());
        assert!(state.ready());
        state
    }

    fn counting(traffic: Traffic) -> State {
        let identity = Identity {
            of: InstanceRef {
                app: AppId::mint(),
                instance: InstanceId(1),
            },
            pid: 1,
            key: MeshKey([1; 32]),
            underlay: ([127, 0, 0, 1], 1).into(),
        };
        State::new(identity, traffic)
    }

    #[test]
    fn who_is_idle_may_go_to_sleep_and_nobody_else() {
        let state = state();
        state.idle(0);
        assert!(!state.sleeping(), "it is not ready yet");
        assert!(state.ready());
        assert!(!state.sleeping());
        state.idle(0);
        state.busy();
        assert!(!state.sleeping(), "it has something to do again");
        state.idle(0);
        assert!(state.sleeping() && !state.sleeping(), "once");
        state.busy();
        assert!(state.is_draining());
    }

    #[test]
    fn who_has_begun_anything_does_not_go_to_sleep() {
        let traffic = Traffic::new(9);
        let state = ready(&traffic);
        state.idle(0);
        // Nobody has noticed yet that there is something to do.
        let work = traffic.begin();
        assert!(!state.sleeping(), "it is under way");
        drop(work);
        assert!(!state.sleeping(), "it was");
        state.idle(1);
        assert!(state.sleeping());
    }

    #[test]
    fn never_goes_back() {
        let state = state();
        state.draining();
        assert!(!state.ready());
        assert_eq!(state.status().state, StateName::Draining);
        let failure = Failure {
            reason: FailureReason::Artifact,
            detail: "gone".into(),
        };
        state.failed(failure.clone());
        state.draining();
        assert_eq!(state.status().failure, Some(failure));
    }

    #[test]
    fn a_ticket_is_taken_when_it_is_wanted() {
        let state = state();
        assert!(!state.leasing(), "it has no coordinator");
        state.unleased();
        assert_eq!(state.status().state, StateName::Unleased);
        assert!(!state.ready(), "not without a lease");
        assert!(state.leasing());
        assert!(!state.leasing(), "once");
        assert!(state.ready());
        state.unleased();
        assert_eq!(state.status().state, StateName::Ready);
        assert!(!state.is_draining());
        state.draining();
        assert!(state.is_draining() && !state.leasing());
    }

    #[tokio::test(start_paused = true)]
    async fn wait_answers_on_a_change_or_after_its_time() {
        let state = state();
        let status = state.wait(StateName::Starting).await;
        assert_eq!(status.state, StateName::Starting);
        let (status, _) = tokio::join!(state.wait(StateName::Starting), async { state.ready() });
        assert_eq!(status.state, StateName::Ready);
        assert_eq!(
            state.wait(StateName::Starting).await.state,
            StateName::Ready
        );
    }
}
