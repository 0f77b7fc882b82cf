//! How much processor time a request has used since a byte of its bodies last moved.
//!
//! Wall time would blame an app for a busy machine or a slow caller, and counting epoch ticks
//! would charge a whole tick for every short turn; so each poll of the guest is measured on the
//! thread's own clock. A guest that waits is not polled and uses nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The processor time of one request.
#[derive(Debug)]
pub(super) struct Meter {
    used_ns: AtomicU64,
    limit_ns: u64,
}

impl Meter {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            used_ns: AtomicU64::new(0),
            limit_ns: u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// A byte moved: the time starts again.
    pub(super) fn progress(&self) {
        self.used_ns.store(0, Ordering::Relaxed);
    }

    pub(super) fn exceeded(&self) -> bool {
        self.used_ns.load(Ordering::Relaxed) > self.limit_ns
    }
}

/// Charges what `future` uses to its meter.
#[derive(Debug)]
pub(super) struct Metered<F> {
    future: Pin<Box<F>>,
    meter: Arc<Meter>,
}

impl<F> Metered<F> {
    pub(super) fn new(meter: Arc<Meter>, future: F) -> Self {
        Self {
            future: Box::pin(future),
            meter,
        }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let began = thread_time_ns();
        let polled = self.future.as_mut().poll(cx);
        let used = thread_time_ns().saturating_sub(began);
        self.meter.used_ns.fetch_add(used, Ordering::Relaxed);
        polled
    }
}

/// Processor time that this thread has used, in nanoseconds.
fn thread_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (secs, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    secs.unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(nanos.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_counts_and_waiting_does_not() {
        let meter = Arc::new(Meter::new(Duration::from_millis(1)));
        let waiting = tokio::time::sleep(Duration::from_millis(30));
        Metered::new(Arc::clone(&meter), waiting).await;
        assert!(!meter.exceeded());
        let working = async {
            let began = thread_time_ns();
            while thread_time_ns() - began < 2_000_000 {
                std::hint::spin_loop();
            }
        };
        Metered::new(Arc::clone(&meter), working).await;
        assert!(meter.exceeded());
        meter.progress();
        assert!(!meter.exceeded());
    }
}
