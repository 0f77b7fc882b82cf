//! A token bucket: so much per second, and a burst.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    burst: u64,
    level: u64,
    at: Instant,
}

impl Bucket {
    /// Full.
    pub(super) fn new(rate: u64, burst: u64, now: Instant) -> Self {
        Self {
            rate,
            burst,
            level: burst,
            at: now,
        }
    }

    /// Takes `n`, if they are there.
    pub(super) fn take(&mut self, n: u64, now: Instant) -> bool {
        let micros = u64::try_from((now - self.at).as_micros()).unwrap_or(u64::MAX);
        let earned = micros.saturating_mul(self.rate) / 1_000_000;
        if earned > 0 {
            self.level = self.level.saturating_add(earned).min(self.burst);
            // Only as far as it was paid for, so that nothing is lost to rounding.
            let paid = earned.saturating_mul(1_000_000) / self.rate.max(1);
            self.at = if self.level == self.burst {
                now
            } else {
                self.at + Duration::from_micros(paid)
            };
        }
        let is_enough = self.level >= n;
        if is_enough {
            self.level -= n;
        }
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_its_rate_and_its_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, 100, start);
        assert!(bucket.take(100, start) && !bucket.take(1, start));
        // In steps too short for one, still one each millisecond.
        let mut taken = 0;
        for micros in (0..1_000_000).step_by(300) {
            taken += u32::from(bucket.take(1, start + Duration::from_micros(micros)));
        }
        assert!((990..=1000).contains(&taken), "{taken}");
        let later = start + Duration::from_secs(3600);
        assert!(bucket.take(100, later) && !bucket.take(1, later));
    }
}
