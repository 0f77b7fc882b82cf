//! Counts requests and connections, and drains them: what `Status` reports and `Drain` waits for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What is under way and what has been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests being served.
    pub active: u64,
    /// Requests served since the runner began, with those being served.
    pub total: u64,
    /// Connections that are open.
    pub connections: u64,
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
    closing: CancellationToken,
    cut: CancellationToken,
}

/// A request that counts as being served until this is dropped.
#[derive(Debug)]
pub struct Permit(Arc<watch::Sender<Counts>>);

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

    /// Takes no new connections, waits until all that has begun has ended and its answers are out,
    /// at most for `deadline`, and cuts the rest.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        let before = self.counts();
        self.closing.cancel();
        let mut counts = self.counts.subscribe();
        // Both outcomes, idle and the deadline, end in the same count.
        let _ = tokio::time::timeout(deadline, counts.wait_for(Counts::idle)).await;
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
                connections: 1
            }
        );
        drop((second, third));
        assert!(!traffic.counts().idle());
        drop(connection);
        assert!(traffic.counts().idle());
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
