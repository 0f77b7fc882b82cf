//! Counts requests and connections, and drains them: what `Status` reports and `Drain` waits for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// LIMIT: how long callers who have not heard yet that others serve from here on are still answered, each
/// with the word that its connection ends. Those who have heard close theirs at once.
const LINGER: Duration = Duration::from_secs(1);

/// What is under way and what has been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests being served.
    pub active: u64,
    /// Requests served since the runner began, with those being served.
    pub total: u64,
    /// Connections that are open.
    pub connections: u64,
    /// Whether connections that were let in may still be waiting to be taken.
    pub listening: bool,
}

impl Counts {
    /// Whether nothing is under way: no request, and no answer on its way out.
    #[must_use]
    pub const fn idle(&self) -> bool {
        self.active == 0 && self.connections == 0
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Requests that ended after it began.
    pub finished: u64,
    /// Requests that the deadline cut off.
    pub cut: u64,
}

/// The counters; clones count together.
#[derive(Debug, Clone)]
pub struct Traffic {
    counts: Arc<watch::Sender<Counts>>,
    requests_max: u64,
    leaving: CancellationToken,
    closing: CancellationToken,
    cut: CancellationToken,
}

/// A request that counts as being served until this is dropped.
#[derive(Debug)]
pub struct Permit(Arc<watch::Sender<Counts>>);

/// Until this is dropped, connections that were let in may still be waiting to be taken.
#[derive(Debug)]
pub struct Listening(Arc<watch::Sender<Counts>>);

/// A connection that counts as open until this is dropped.
#[derive(Debug)]
pub struct Connection(Arc<watch::Sender<Counts>>);

impl Traffic {
    /// Counters that admit at most `requests_max` requests at a time.
    #[must_use]
    pub fn new(requests_max: u64) -> Self {
        Self {
            counts: Arc::new(watch::Sender::new(Counts::default())),
            requests_max,
            leaving: CancellationToken::new(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Admits a request; `None` if as many as may be are being served.
    #[must_use]
    pub fn begin(&self) -> Option<Permit> {
        let admitted = self.counts.send_if_modified(|counts| {
            let admitted = counts.active < self.requests_max;
            if admitted {
                counts.active += 1;
                counts.total += 1;
            }
            admitted
        });
        admitted.then(|| Permit(Arc::clone(&self.counts)))
    }

    /// Held by who takes connections until it takes no more: a drain waits for what it lets in.
    #[must_use]
    pub fn listening(&self) -> Listening {
        self.counts.send_modify(|counts| counts.listening = true);
        Listening(Arc::clone(&self.counts))
    }

    /// Counts a connection.
    #[must_use]
    pub fn connect(&self) -> Connection {
        self.counts.send_modify(|counts| counts.connections += 1);
        Connection(Arc::clone(&self.counts))
    }

    /// The counts now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// The counts, as they change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// Does `then` before anything else begins, if nothing is under way and nothing has begun since `total` were
    /// counted. Says whether that is so, and what `then` says of itself.
    pub fn still(&self, total: u64, then: impl FnOnce() -> bool) -> bool {
        let mut done = false;
        self.counts.send_if_modified(|counts| {
            done = counts.active == 0 && counts.total == total && then();
            false
        });
        done
    }

    /// Whether no connection is to be kept for another request: every answer says so.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Cancelled when no connection is to be taken any more, and each open one is to end with the
    /// answer that it is sending.
    #[must_use]
    pub const fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Cancelled when every connection is to end at once.
    #[must_use]
    pub const fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Lets callers go, then takes no new connections, waits until all that has begun has ended and its
    /// answers are out, at most for `deadline`, and cuts the rest.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        let before = self.counts();
        self.leaving.cancel();
        let mut counts = self.counts.subscribe();
        // All outcomes, idle and the deadlines, end in the same count.
        let drained = async {
            let gone = counts.wait_for(|counts| counts.connections == 0);
            let _ = tokio::time::timeout(LINGER, gone).await;
            self.closing.cancel();
            // Who takes connections sees that it closes, and takes those that were let in before.
            let ended = counts.wait_for(|counts| counts.idle() && !counts.listening);
            let _ = ended.await;
        };
        let _ = tokio::time::timeout(deadline, drained).await;
        self.closing.cancel();
        let after = self.counts();
        self.cut.cancel();
        // Requests that were on their way on an open connection may have begun since.
        let begun = after.total - before.total;
        Drained {
            finished: before.active + begun - after.active,
            cut: after.active,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.send_modify(|counts| counts.active -= 1);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.send_modify(|counts| counts.listening = false);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.send_modify(|counts| counts.connections -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn admits_up_to_the_limit_and_waits_for_the_last() {
        let traffic = Traffic::new(2);
        let connection = traffic.connect();
        let first = traffic.begin().unwrap();
        let second = traffic.begin().unwrap();
        assert!(traffic.begin().is_none());
        drop(first);
        let third = traffic.begin().unwrap();
        assert_eq!(
            traffic.counts(),
            Counts {
                active: 2,
                total: 3,
                connections: 1,
                listening: false
            }
        );
        drop((second, third));
        assert!(!traffic.counts().idle());
        drop(connection);
        assert!(traffic.counts().idle());
    }

    /// Callers are told before connections are closed under them, and not for long.
    #[tokio::test(start_paused = true)]
    async fn who_has_not_heard_is_still_served() {
        let traffic = Traffic::new(9);
        let kept = traffic.connect();
        let begun = tokio::time::Instant::now();
        let (_, ()) = tokio::join!(traffic.drain(Duration::from_secs(5)), async {
            tokio::task::yield_now().await;
            assert!(traffic.is_leaving() && !traffic.closing().is_cancelled());
            drop(traffic.begin());
            traffic.closing().cancelled().await;
            assert_eq!(begun.elapsed().as_secs(), LINGER.as_secs());
            drop(kept);
        });
        assert_eq!(begun.elapsed().as_secs(), LINGER.as_secs());

        // With nobody left to be told, nobody is waited for; a deadline of nothing waits for nobody.
        let traffic = Traffic::new(9);
        let _ = traffic.drain(Duration::from_secs(5)).await;
        let traffic = Traffic::new(9);
        let _kept = traffic.connect();
        let _ = traffic.drain(Duration::ZERO).await;
        assert!(traffic.cut().is_cancelled());
        assert_eq!(begun.elapsed().as_secs(), LINGER.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_the_last_or_the_deadline() {
        let traffic = Traffic::new(9);
        let (connection, first, stuck) = (traffic.connect(), traffic.begin(), traffic.begin());
        let (drained, ()) = tokio::join!(traffic.drain(Duration::from_secs(5)), async {
            traffic.closing().cancelled().await;
            drop(first);
            drop(traffic.begin());
            assert!(!traffic.cut().is_cancelled());
        });
        assert_eq!(
            drained,
            Drained {
                finished: 2,
                cut: 1
            }
        );
        assert!(traffic.cut().is_cancelled());
        drop((connection, stuck));
        let drained = traffic.drain(Duration::MAX).await;
        assert_eq!(
            drained,
            Drained {
                finished: 0,
                cut: 0
            }
        );
    }
}
