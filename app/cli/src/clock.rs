//! Time: the wall clock, a stopwatch, and the pause between two attempts.

#![expect(
    clippy::disallowed_types,
    reason = "tcli has no tokio, whose Instant tests would pause"
)]

use std::time::Duration;

use tabbify_types::Timestamp;

/// The time of day.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the machine's clock"
)]
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.map_or(0, |span| span.as_millis());
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// Measures how long something takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(std::time::Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Waits before the next attempt; there is no event to wait for when a server does not answer.
#[expect(
    clippy::disallowed_methods,
    reason = "a pause between attempts, not synchronization"
)]
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// A span as people read it: `0.9 s`, `75 s`.
pub(crate) fn seconds(span: Duration) -> String {
    let secs = span.as_secs_f64();
    if secs < 60.0 {
        format!("{secs:.1} s")
    } else {
        format!("{secs:.0} s")
    }
}
